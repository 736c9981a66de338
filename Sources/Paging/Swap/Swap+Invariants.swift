// The check of the invariants at the head of Swap.swift, while nothing else uses the instance.

import MemoryPrimitives

extension Swap {
  /// Checks all invariants. Returns nil, or a message that begins with the number of one that is broken. A step for
  /// each slot.
  package func checkInvariants() -> StaticString? {
    guard let slots = state.core.quiet.pointee.slots else { return nil }
    if !slots.hasExactCounts { return "SW-1: the counts of free, used and bad slots" }
    if !slots.hasExactSummary { return "SW-2: the summary of the bitmap" }
    for index in 0..<slots.total {
      let isFree = slots.status(of: SwapSlot(UInt32(index))) == .free
      if isFree && attachment.checksums[index] != 0 { return "SW-3: a free slot has a checksum" }
    }
    return nil
  }
}
