// `strata replay`: a packed trace against Strata in this process, on a simulated machine.

import ArgumentParser
import Foundation
import HostMachine
import MemoryPrimitives
import Workloads

struct ReplayCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "replay",
    abstract: "Replay a packed trace against Strata's allocators, on a simulated machine.",
    discussion: """
      The same code as the console's `replay`, with the same figures. kmalloc and kmem_cache events go to \
      kmem, mm_page events to physical memory; everything is stamped when it comes and checked when it \
      goes; at the end what the trace leaves live is freed, and the machine must be as it was.

      Examples:
        strata replay build.trace
        strata replay build.trace --memory 64M     is that enough?
        strata replay build.trace --processors 4   the same counts, by four threads
        strata replay build.trace -j | jq .peak_pages
        strata replay build.trace --against mimalloc,jemalloc,tcmalloc,glibc

      With --processors the events are divided among that many threads, each a processor of the machine; events \
      that the trace recorded in interrupts run in interrupts of these. All counts are those of one processor; of \
      what is live at once, the highest sample is printed.

      With --against the objects of the trace go through kmem and through each malloc, in processes of their own \
      and in turns; one table has times and bytes held. Scripts/install-tools bench installs the first three.

      Exit status: 0 when all went well, 65 for a bad trace, 69 for a machine that is too small, 70 when \
      something was damaged or lost or too much had to be skipped.
      """)

  @Argument(help: "The packed trace; - for standard input.")
  var file: String

  @Option(name: .shortAndLong, help: "Memory of the simulated machine, as in 64M or 4G.")
  var memory = Size(argument: "256M")!

  @Option(help: "Threads to split it over, each a processor; without it, this thread does everything.")
  var processors: Int?

  @Option(help: ArgumentHelp("Compare with these allocators instead, by name.", valueName: "names"))
  var against: String?

  @Flag(name: [.customShort("j"), .long], help: "Print rows of JSON instead of tables.")
  var json = false

  func validate() throws {
    if let processors, !(1...ReplaySplit.mostWorkers).contains(processors) {
      throw ValidationError("--processors is 1 to \(ReplaySplit.mostWorkers)")
    }
    guard let against else { return }
    if processors != nil { throw ValidationError("--against measures one processor: leave out --processors") }
    do { _ = try Rival.named(against) } catch { throw ValidationError("\(error)") }
  }

  func run() throws {
    try complaining {
      if let against {
        let table = try AllocatorComparison.objects(of: file, on: Rival.named(against))
        return try printResult(json ? table.json : table.text)
      }
      let summary = try replay()
      Terminal.standard.clearProgress()
      if json {
        var row = ""
        summary.writeJSON(cycles: "cycles", lineEnd: "\n") { row += $0.text }
        try printResult(row)
      } else {
        var lines: [String] = []
        summary.print(cycles: "cycles") { lines.append($0.text) }
        try printResult(lines.joined(separator: "\n"))
      }
      guard summary.succeeded else { throw Complaint("\(name): the replay failed", .software) }
    }
  }

  private var name: String { file == "-" ? "standard input" : file }

  private func replay() throws -> ReplaySummary {
    let data = try packedTrace(at: file)
    return try data.withUnsafeBytes { bytes in
      do {
        let machine = try HostSystem(toolMemory: memory.bytes, threads: processors ?? 0)
        let split = processors.map {
          ReplaySplit(workers: $0, firstProcessor: ProcessorIndex(1), interrupts: machine.interrupts)
        }
        Terminal.standard.beginProgress()
        return try Replay.whole(bytes, on: machine.memory, split: split) {
          Terminal.standard.progress(
            "replay", $0.events, of: $0.of,
            "\(grouped($0.events)) of \(grouped($0.of)) events   \(grouped($0.liveObjects)) live")
          return .goOn
        }
      } catch let error as ReplayError {
        if case .trace = error { throw Complaint(name + error.describe("").text, .dataError) }
        throw Complaint(name + error.describe("").text + " Try --memory 1G.", .unavailable)
      }
    }
  }
}

extension Line {
  init(_ text: String) {
    self.init()
    for byte in text.utf8 { append(byte: byte) }
  }

  var text: String { withBytes { String(decoding: $0, as: UTF8.self) } }
}
