// The experiment behind contigmalloc: memory full of dirty pages, and many runs requested one by one. It runs once
// with the strategy before 2004 (launder whole queues) and once with ours (empty the one run).
//
// Each strategy begins on a machine of its own in the same state: scattered wired frames, as a kernel has them after
// some work; the rest of the share in dirty pageable pages, with single free frames between them. The table counts
// the pages moved or written to swap from the first request to the last, for each page gained. Afterwards the study
// touches every page and checks its stamp.

import ArgumentParser
import BlockDevices
import ContiguousMemory
import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

struct ContigStudy: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "contig",
    abstract: "Contiguous runs on a machine full of dirty pages: the old strategy against the new one.",
    discussion: """
      The same experiment runs in the kernel, in instructions: make bench.

      Examples:
        strata study contig
        strata study contig --memory 256M --swap 1G --runs 64 --dirty 95
        strata study contig -j | jq .cost_per_page

      Exit status: 0; 70 when a page did not keep its stamp.
      """)

  @Option(help: "Memory of the machine.")
  var memory = Size(argument: "1G")!

  @Option(help: "Its swap device.")
  var swap = Size(argument: "3G")!

  @Option(help: "Percent of memory that is dirtied.")
  var dirty: UInt64 = 90

  @Option(help: "Wired frames, scattered in clusters; a quarter of memory at most.")
  var wired: UInt64 = 10_000

  @Option(help: "How many runs are requested.")
  var runs: Int = 256

  @Option(help: "The size of each, which is its alignment too.")
  var size = Size(argument: "2M")!

  @Option(help: "Seed of the initial state.")
  var seed: UInt64 = 1

  @Flag(name: [.customShort("j"), .long], help: "Print a row of JSON a strategy instead of a table.")
  var json = false

  func validate() throws {
    if Alignment(size.bytes.rawValue) == nil || size.bytes.rawValue < Page.size {
      throw ValidationError("--size is a power of two, from 4K on")
    }
    if size.bytes > .gibibytes(64) { throw ValidationError("--size is 64G at most") }
    if !(1...1_000_000).contains(runs) { throw ValidationError("--runs is 1 to 1000000") }
    if dirty > 400 { throw ValidationError("--dirty is 0 to 400") }
  }

  func run() throws {
    try complaining {
      Terminal.standard.beginProgress()
      let outcomes = try [ContiguousStrategy.old, .new].map { try experiment($0) }
      Terminal.standard.clearProgress()
      try printResult(json ? outcomes.map(\.json).joined(separator: "\n") : table(outcomes))
      if outcomes.contains(where: { $0.wrong > 0 }) {
        throw Complaint("pages did not keep their stamps", .software)
      }
    }
  }

  struct Outcome {
    var strategy: ContiguousStrategy
    var granted = 0
    var asked = 0
    var moved: UInt64 = 0
    var written: UInt64 = 0
    var gained: UInt64 = 0
    var seconds = 0.0
    var wrong: UInt64 = 0

    var name: String { strategy == .old ? "old" : "new" }
    var cost: Double { gained == 0 ? 0 : Double(moved + written) / Double(gained) }
    var json: String {
      """
      {"kind":"study","name":"contig","strategy":"\(name)","asked":\(asked),"granted":\(granted),\
      "pages_gained":\(gained),"pages_moved":\(moved),"pages_written":\(written),\
      "cost_per_page":\(String(format: "%.3f", cost)),"wrong":\(wrong)}
      """
    }
  }

  private func experiment(_ strategy: ContiguousStrategy) throws -> Outcome {
    let machine = try PagedMachine(memory: memory.bytes, swap: swap.bytes)
    let system = machine.memory
    var outcome = Outcome(strategy: strategy, asked: runs)
    let name = strategy == .old ? "old strategy" : "new strategy"
    let held = wireFrames(system.physical)
    defer { for frame in held { system.physical.free(FrameRun(first: frame, count: .one)) } }
    let pages = PageCount(system.physical.total.rawValue * dirty / 100)
    let fill: DirtyPages
    do throws(FillFailure) {
      fill = try DirtyPages.fill(pages, seed: seed, on: system, machine.access) {
        Terminal.standard.progress(name, $0, of: pages.rawValue, "pages dirtied")
        return .goOn
      }
    } catch {
      throw Complaint("\(dirty) % of memory can't be dirtied: \(error.error.description)", .unavailable)
    }
    system.contiguous.setStrategy(strategy)
    let type = system.kmem.type(named: ShortName("study"))
    let before = system.paging.figures
    let start = Date()
    var ranges: [(VirtualAddress, ByteCount)] = []
    var constraints = RunConstraints()
    constraints.alignment = Alignment(size.bytes.rawValue)!
    for i in 0..<runs {
      Terminal.standard.progress(name, UInt64(i), of: UInt64(runs), "runs requested")
      guard let range = try? system.contiguous.contigmalloc(size.bytes, type: type, where: constraints) else {
        continue
      }
      ranges.append((range.address, size.bytes))
      outcome.granted += 1
      outcome.gained += range.frames.count.rawValue
    }
    outcome.seconds = Date().timeIntervalSince(start)
    let after = system.paging.figures
    outcome.moved = after.moved - before.moved
    outcome.written = after.written - before.written
    for (address, size) in ranges { system.contiguous.contigfree(address, size: size, type: type) }
    let verdict = fill.verify(machine.access) {
      Terminal.standard.progress(name, $0, of: pages.rawValue, "pages verified")
      return .goOn
    }
    outcome.wrong = verdict.wrong + verdict.unreadable
    fill.release(system)
    if let broken = system.checkInvariants() { throw Complaint("\(broken)", .software) }
    return outcome
  }

  /// Wires frames in scattered clusters of eight.
  private func wireFrames(_ physical: FrameAllocator) -> [FrameNumber] {
    var (held, spare): ([FrameNumber], [FrameNumber]) = ([], [])
    var random = SeededRandom(seed: seed)
    let all = physical.freeCount.rawValue
    while UInt64(held.count) < min(wired, all / 4) {
      for _ in 0..<8 {
        if let frame = try? physical.allocate(BlockOrder(0), role: .wired) { held.append(frame) }
      }
      // The distance to the next cluster is random, as after allocations and frees of other users.
      for _ in 0..<random.below(24) {
        if let frame = try? physical.allocate(BlockOrder(0), role: .wired) { spare.append(frame) }
      }
    }
    for frame in spare { physical.free(FrameRun(first: frame, count: .one)) }
    return held
  }

  private func table(_ outcomes: [Outcome]) -> String {
    var lines = [
      "\(counted(UInt64(runs), "run")) of \(Line("\(size.bytes)").text) on \(Line("\(memory.bytes)").text), \(dirty) % of it dirty",
      "strategy   granted      moved    written  for each page gained  seconds",
    ]
    for outcome in outcomes {
      let cells = [
        outcome.name.left(8), "\(outcome.granted)".right(10), grouped(outcome.moved).right(11),
        grouped(outcome.written).right(11),
        (outcome.gained == 0 ? "-" : String(format: "%.2f", outcome.cost)).right(22),
        String(format: "%.2f", outcome.seconds).right(9),
      ]
      lines.append(cells.joined())
    }
    if outcomes.allSatisfy({ $0.wrong == 0 }) {
      lines.append("Every page was touched afterwards, and kept its stamp.")
    }
    return lines.joined(separator: "\n")
  }
}
