// Time: channel 0 of the programmable interval timer (Intel 8254) at 1000 Hz, through interrupt line 0.

import CPlatform
import MemoryPrimitives
import Synchronization

/// The clock of the machine, in ticks of a millisecond.
enum Timer {
  private static let ticks = Atomic<UInt64>(0)

  /// The PIT counts 1 193 182 times a second.
  private static var divisor: UInt16 { 1193 }

  static func start() {
    cp_out8(0x43, 0x34)  // channel 0, both bytes, rate generator
    cp_out8(0x40, UInt8(truncatingIfNeeded: divisor))
    cp_out8(0x40, UInt8(truncatingIfNeeded: divisor >> 8))
  }

  static func handleInterrupt() {
    let now = ticks.load(ordering: .relaxed) &+ 1
    ticks.store(now, ordering: .relaxed)
    Scheduler.tick(now)
    Watchdog.feed(now)
  }

  /// Milliseconds since `start`.
  static var now: Tick { Tick(ticks.load(ordering: .relaxed)) }
}
