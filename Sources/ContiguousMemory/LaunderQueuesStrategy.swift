// The strategy of contigmalloc before 2004, to compare with: it launders whole queues until a run happens to be free.

import MemoryPrimitives
import Paging
import PhysicalMemory
import Synchronization

extension ReclaimAttempt {
  /// Tries three times to allocate a run. Between the tries it launders as many pages of the laundry and inactive
  /// queues, then of the active one, as there are, wherever they lie. After the last try it launders nothing.
  mutating func launderQueues(_ observe: Observer) throws(ContiguousFailure) -> FrameRun {
    if allocator.machine.failsHere(.contiguous) { throw .injected }
    // No page is written for a request that memory can't hold.
    guard physical.hasPlace(forRun: request.count, where: request.constraints) else {
      throw ContiguousFailure(.never)
    }
    for turn in 0..<3 {
      if let run = try freeRun() {
        observe(.foundFree(run))
        return run
      }
      if turn == 2 || !request.waitPolicy.mayWait { break }
      launderAll(turn == 0 ? .laundry : .active, observe)
      if turn == 0 { launderAll(.inactive, observe) }
    }
    var failure = ContiguousFailure(.notNow)
    failure.longest = allocator.longestEmptiableRun(where: request.constraints)
    throw failure
  }

  private mutating func launderAll(_ queue: PageQueue, _ observe: Observer) {
    let outcome = paging.launder(queue, upTo: paging.count(queue), referenced: .launder)
    spent.written += outcome.written
    allocator.counters.written.add(outcome.written.rawValue, ordering: .relaxed)
    observe(.laundered(queue, outcome))
  }
}
