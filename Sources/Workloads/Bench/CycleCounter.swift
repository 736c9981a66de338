// The unit of the cycle counter: QEMU's -icount shift=0 makes it count instructions, so that figures are exact.

import CPlatform

/// The counter behind `cp_cycles`.
package enum CycleCounter {
  /// Whether it counts instructions. Then the same instructions always have the same cost: the fewest there are, and a
  /// loop that takes long enough for a clock to differ from one time to the next.
  package static var countsInstructions: Bool {
    var first: (shortest: UInt64, loop: UInt64) = (0, 0)
    for turn in 0..<64 {
      let taken = (shortest: cycles(of: 0), loop: cycles(of: 256))
      if turn == 0 { first = taken }
      if taken != first || taken.shortest > 32 { return false }
    }
    return true
  }

  /// Measures a loop of so many turns, with interrupts off.
  private static func cycles(of turns: UInt64) -> UInt64 {
    let interrupts = cp_interrupts_disable()
    defer { cp_interrupts_restore(interrupts) }
    let before = cp_cycles()
    var left = turns
    while left > 0 { left = cp_opaque_number(left) &- 1 }
    return cp_cycles() &- before
  }

  /// The unit of a cost.
  package static var unit: StaticString { countsInstructions ? "instructions" : "cycles" }
}
