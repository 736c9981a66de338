// `strata trace`: making packed traces.

import ArgumentParser
import Foundation
import Workloads

struct Trace: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make packed traces of a kernel's allocations.",
    subcommands: [Pack.self])

  struct Pack: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Pack ftrace's text into a trace that a kernel can replay.",
      discussion: """
        FTRACE is what /sys/kernel/tracing/trace prints with the events of group kmem on: plain, or \
        compressed by gzip or xz; - is standard input. Kept are kmalloc, kfree, kmem_cache_alloc, \
        kmem_cache_free, mm_page_alloc, mm_page_free and mm_page_free_batched.

        To record one (as root, on the machine to be studied):
          cd /sys/kernel/tracing
          echo 40000 > buffer_size_kb; echo 1 > events/kmem/enable
          make -C ~/project
          echo 0 > tracing_on; cat trace > ~/build.ftrace

        Examples:
          strata trace pack build.ftrace.xz -o build.trace
          ssh box cat /sys/kernel/tracing/trace | strata trace pack - -o box.trace
          strata trace pack build.ftrace -o start.trace --events 100000

        Replay it on this host with `strata replay build.trace`, in the kernel with \
        `make run TRACE=build.trace`.
        """)

    @Argument(help: "The text to pack; - for standard input.")
    var ftrace: String

    @Option(name: .shortAndLong, help: "The packed trace to write.")
    var output: String

    @Option(help: "Keep this many events, from the first on.")
    var events: Int?

    @Option(help: "The name in the trace (default: FTRACE's name).")
    var title: String?

    func validate() throws {
      if let events, events < 1 { throw ValidationError("--events is at least 1.") }
    }

    func run() throws {
      try complaining {
        let input = try TextInput(ftrace)
        guard !isSameFile(ftrace, output) else {
          throw Complaint("\(output): is the recording itself, which would be lost", .cannotCreate)
        }
        var packer = TracePacker(limit: events ?? .max)
        Terminal.standard.beginProgress()
        try input.forEachLine { line in
          try packer.take(line, of: input.name)
          if packer.lines % 4096 == 0 {
            Terminal.standard.progress(
              "pack", input.bytesRead, of: input.size, "\(grouped(packer.lines)) lines")
          }
        }
        Terminal.standard.clearProgress()
        guard packer.eventsByKind.contains(where: { $0 > 0 }) else {
          throw Complaint("\(input.name): no allocation event in \(grouped(packer.lines)) lines", .dataError)
        }
        let packed = packer.pack(title: title ?? Self.title(of: ftrace))
        try write(packed, to: output)
        print(PackSummary(packer, packed, from: input.name, to: output).text, terminator: "")
      }
    }

    /// The name without folders and endings: `linux-6.1-build` of `traces/linux-6.1-build.ftrace.xz`.
    static func title(of path: String) -> String {
      var name = Substring(path == "-" ? "" : URL(fileURLWithPath: path).lastPathComponent)
      for ending in [".xz", ".gz", ".txt", ".ftrace"] where name.hasSuffix(ending) {
        name = name.dropLast(ending.count)
      }
      return String(name)
    }
  }
}

/// The counts of events kept and dropped, with reasons.
struct PackSummary {
  let text: String

  init(_ packer: TracePacker, _ packed: [UInt8], from source: String, to output: String) {
    let counts = packed.withUnsafeBytes { (try? PackedTrace($0))?.counts ?? TraceCounts() }
    var lines = ["event                   kept"]
    var rows = (0..<TraceKind.count).compactMap { TraceKind(rawValue: UInt8($0)) }
    rows.sort { packer.eventsByKind[Int($0.rawValue)] > packer.eventsByKind[Int($1.rawValue)] }
    for kind in rows where packer.eventsByKind[Int(kind.rawValue)] > 0 {
      lines.append("\(kind.description)".left(20) + grouped(packer.eventsByKind[Int(kind.rawValue)]).right(8))
    }
    lines.append("all events".left(20) + grouped(counts.events).right(8))
    let dropped = packer.dropped
    var reasons: [String] = []
    if dropped.comments > 0 { reasons.append("\(grouped(dropped.comments)) comments") }
    for (name, count) in dropped.others.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
      reasons.append("\(grouped(count)) \(name) (no allocation)")
    }
    if dropped.beyondLimit > 0 { reasons.append("\(grouped(dropped.beyondLimit)) events beyond --events") }
    if !reasons.isEmpty { lines.append("Dropped: " + reasons.joined(separator: ", ") + ".") }
    if dropped.lost > 0 {
      lines.append("! ftrace lost \(grouped(dropped.lost)) events: record with a larger buffer_size_kb.")
    }
    let learned = packer.learned
    if counts.caches > 0 {
      var ways: [String] = []
      if learned.byPointer > 0 { ways.append("\(grouped(learned.byPointer)) by their own free") }
      if learned.bySite > 0 { ways.append("\(grouped(learned.bySite)) by their call site") }
      if learned.bySize > 0 { ways.append("\(grouped(learned.bySize)) by their sizes") }
      if learned.unknown > 0 { ways.append("\(grouped(learned.unknown)) not (named after the caller)") }
      lines.append("Caches: \(counts.caches); allocations found " + ways.joined(separator: ", ") + ".")
    }
    lines.append(
      "Live at most \(grouped(counts.peakObjects)) of \(grouped(counts.objects)) objects "
        + "(\(grouped(counts.peakBytes)) bytes) and \(grouped(counts.peakPages)) of \(grouped(counts.pages)) frames."
    )
    let each = Double(packed.count) / Double(max(1, counts.events))
    lines.append(
      "\(source), \(grouped(packer.bytes)) bytes of text, is now \(output), \(grouped(packed.count)) bytes: "
        + String(format: "%.1f an event.", each))
    text = lines.joined(separator: "\n") + "\n"
  }
}
