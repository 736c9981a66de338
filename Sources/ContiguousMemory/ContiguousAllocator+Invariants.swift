// The check of the invariants at the head of ContiguousAllocator.swift. They hold at every moment.

import MemoryPrimitives
import Synchronization

extension ContiguousAllocator {
  /// Checks all invariants. Returns nil, or a message that begins with the number of one that is broken. Constant.
  package func checkInvariants() -> StaticString? {
    let requests = counters.requests.load(ordering: .relaxed)
    let refused = counters.refused.load(ordering: .relaxed)
    if counters.granted.load(ordering: .relaxed) + refused > requests {
      return "CM-1: a request has ended twice"
    }
    let abandoned = counters.runsAbandoned.load(ordering: .relaxed)
    if counters.repeated.load(ordering: .relaxed) > refused
      || abandoned > requests * UInt64(ReclaimAttempt.runLimit)
    {
      return "CM-2: the counts of repeated requests and abandoned runs"
    }
    if UInt64(strategy.rawValue) != state.pointee.strategy.load(ordering: .relaxed)
      || UInt64(passes.rawValue) != state.pointee.passes.load(ordering: .relaxed)
    {
      return "CM-3: a tunable has no value of its type"
    }
    return nil
  }
}
