// The unit of the cycle counter: QEMU's -icount shift=0 makes it count instructions, so that figures are exact.

import CPlatform

/// The counter behind `cp_cycles`.
package enum CycleCounter {
  /// Whether it counts instructions. Then the same few instructions always have the same cost, which no clock shows.
  package static var countsInstructions: Bool {
    var first: UInt64 = 0
    for turn in 0..<64 {
      let interrupts = cp_interrupts_disable()
      let before = cp_cycles()
      let taken = cp_cycles() &- before
      cp_interrupts_restore(interrupts)
      if turn == 0 { first = taken }
      if taken != first || taken > 32 { return false }
    }
    return true
  }

  /// The unit of a cost.
  package static var unit: StaticString { countsInstructions ? "instructions" : "cycles" }
}
