// selftest smp and zs: all layers, or the compressed store, at once on all processors of the live system.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension SelfTests {
  func testProcessors<O: SelfTestObserver>(_ turns: StressTurns, _ observer: O) -> SelfTestOutcome {
    guard processors > 0 else { return .notBegun(Line(StressError.noThreads.description)) }
    let plan = stressPlan(turns)
    do throws(StressError) {
      let outcome = try ProcessorStress.run(plan, on: memory, access) { ticks, _ in
        observer.progress(turns == .allLayers ? "smp" : "zs", ticks, of: plan.ticks, "ms")
      }
      observer.ran(plan, outcome)
      return SelfTestOutcome(outcome.failure?.invariant)
    } catch {
      return .notBegun(Line(error.description))
    }
  }

  /// A worker on each processor, four at least. As many pageable pages as there are frames, as far as three quarters
  /// of the free swap holds them.
  private func stressPlan(_ turns: StressTurns) -> ProcessorStressPlan {
    var pages = PageCount.zero
    if turns == .allLayers, memory.paging.swap.device != nil {
      let capacity = memory.paging.swap.figures.free.rawValue / 4 * 3
      pages = PageCount(min(memory.physical.freeCount.rawValue, capacity))
    }
    var plan = ProcessorStressPlan(
      seed: memory.machine.now.rawValue, processors: processors, workers: max(4, processors), pages: pages)
    plan.ticks = seconds * 1000
    plan.turns = turns
    return plan
  }
}
