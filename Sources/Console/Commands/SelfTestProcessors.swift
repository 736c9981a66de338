// selftest smp: all layers at once on all processors of the live system, for some seconds.

import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Workloads

extension Shell {
  /// The duration of the test of processors: as given, 10 seconds when it runs by name, and one second among all
  /// tests.
  func seconds(_ name: Word?, _ arguments: Arguments) throws(CommandError) -> UInt64 {
    guard let name, name.bytes == "smp" else { return 1 }
    guard let word = arguments.next() else { return 10 }
    let seconds = try arguments.number(word)
    guard seconds > 0, seconds <= 86_400 else { throw refuse(word, "from a second to a day") }
    return seconds
  }

  /// The reason why this machine can't run the test of processors, or nil.
  var whyNoStress: StaticString? {
    state.pointee.host.executive == nil ? StressError.noThreads.description : nil
  }

  private var processorCount: Int {
    var count = 0
    state.pointee.host.executive?.forEachProcessor { _, _ in count += 1 }
    return max(1, count)
  }

  /// A worker on each processor, four at least. As many pageable pages as there are frames, as far as half of the
  /// free swap holds them.
  private func stressPlan(_ seconds: UInt64) -> ProcessorStressPlan {
    let processors = processorCount
    var pages = PageCount.zero
    if memory.paging.swap.device != nil {
      let room = memory.paging.swap.figures.free.rawValue / 4 * 3
      pages = PageCount(min(physical.freeCount.rawValue, room))
    }
    var plan = ProcessorStressPlan(
      seed: memory.machine.now.rawValue, processors: processors, workers: max(4, processors), pages: pages)
    plan.ticks = seconds * 1000
    return plan
  }

  func testProcessors(_ seconds: UInt64) -> TestOutcome {
    let plan = stressPlan(seconds)
    var bar = Bar(self)
    do throws(StressError) {
      let outcome = try ProcessorStress.run(plan, on: memory, access) { ticks, operations in
        bar.goesOn("smp", ticks, of: plan.ticks, "ms", every: 1) ? .goOn : .stop
      }
      bar.end()
      report(plan, outcome)
      return TestOutcome(outcome.failure?.invariant)
    } catch {
      bar.end()
      return .notBegun(Line(error.description))
    }
  }

  private func report(_ plan: ProcessorStressPlan, _ outcome: ProcessorStressOutcome) {
    row("smp") { row in
      row.field("processors", UInt64(plan.processors))
      row.field("workers", outcome.workers)
      row.field("seed", plan.seed)
      row.field("seconds", outcome.ticks / 1000)
      row.field("rounds", outcome.rounds)
      row.field("operations", outcome.operations)
      row.field("exchanged", outcome.exchanged)
      row.field("remapped", outcome.remapped)
      row.field("reads", outcome.reads)
      row.field("pages", outcome.pages)
      row.field("visitors", outcome.visitors)
      row.field("refused", outcome.refused)
      row.field("verdict", text: outcome.failure.map { Line($0.invariant) } ?? "held")
      row.field("subject", text: outcome.failure.map { "\(hex: $0.subject)" })
      row.field("found", text: outcome.failure.map { "\(hex: $0.found)" })
      row.field("expected", text: outcome.failure.map { "\(hex: $0.expected)" })
      row.field("processor", outcome.failure.map { UInt64($0.processor) })
    }
    print(
      "  \(count: UInt64(plan.processors), "processor"), \(count: outcome.workers) workers and \(count: outcome.visitors, "visitor"), \(count: outcome.ticks / 1000) s: \(count: outcome.operations) operations"
    )
    print(
      "  \(count: outcome.exchanged) exchanged, \(count: outcome.remapped) remapped and \(count: outcome.reads) read, \(count: outcome.pages) pages used, \(count: outcome.refused) refused"
    )
    if let trouble = outcome.failure {
      print(
        "! at \(hex: trouble.subject): found \(hex: trouble.found), expected \(hex: trouble.expected), seen on processor \(UInt64(trouble.processor)); seed \(plan.seed)"
      )
    }
  }
}
