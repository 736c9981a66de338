// Time: channel 0 of the programmable interval timer (Intel 8254) at 1000 Hz, through interrupt line 0.
//
// The channel raises one interrupt a period and queues none that could not be delivered, so ticks are lost while a
// host pauses this processor. The time stamp counter goes on. It is compared with the channel at the start, and an
// interrupt that comes several periods after the previous one counts for all of them. The interrupts of those periods
// may still come, in quick succession: then they count for nothing.

import CPlatform
import MemoryPrimitives
import Synchronization

/// The clock of the machine, in ticks of a millisecond.
enum Timer {
  private static let ticks = Atomic<UInt64>(0)
  /// Cycles of the time stamp counter in one tick.
  private static let cyclesPerTick = Atomic<UInt64>(.max)
  /// When the last interrupt came. Interrupts of this line come on one processor.
  private static let lastCycles = Atomic<UInt64>(0)
  /// Ticks that were counted before their interrupts, which may still come.
  private static let ahead = Atomic<UInt64>(0)

  /// The PIT counts 1 193 182 times a second.
  private static var divisor: UInt16 { 1193 }
  /// A counter that jumps by more ticks is another processor's: no host pauses a processor for so long.
  private static var mostTicks: UInt64 { 60_000 }

  /// Reads within which a running counter changes: it does so every microsecond, and a read takes as long.
  private static var readLimit: Int { 10_000 }
  /// Ticks within which an interrupt of the channel must come.
  private static var interruptLimit: UInt64 { 500 }
  /// Reads of the clock at least before a missing interrupt is reported, because a host may pause this processor.
  private static var pollLimit: UInt64 { 4_000_000 }

  /// Starts the channel, and compares the time stamp counter with it: some 5 ms. Interrupts are off. Stops the machine
  /// when no counter runs there.
  static func start() {
    cp_out8(0x43, 0x34)  // channel 0, both bytes, rate generator
    cp_out8(0x40, UInt8(truncatingIfNeeded: divisor))
    cp_out8(0x40, UInt8(truncatingIfNeeded: divisor >> 8))
    var least = UInt64.max
    for _ in 0..<5 {
      guard let cycles = measure() else {
        Reports.panic(
          "a machine that Strata refuses", "it has no interval timer: no 8254 counts at port 0x40")
      }
      least = min(least, cycles)
    }
    cyclesPerTick.store(least, ordering: .relaxed)
    lastCycles.store(cp_cycles(), ordering: .relaxed)
  }

  /// Cycles in a tick, from half a period or more; nil when the counter does not run. Too many when the host has
  /// paused the processor during the measurement.
  private static func measure() -> UInt64? {
    // From the start of a period, so that it does not end on the way.
    guard var before = count(otherThan: .max) else { return nil }
    while true {
      guard let now = count(otherThan: before) else { return nil }
      if now > before { break }
      before = now
    }
    let (start, first) = (cp_cycles(), count())
    var last = first
    while last <= first && first &- last < divisor / 2 {
      guard let now = count(otherThan: last) else { return nil }
      last = now
    }
    let cycles = cp_cycles() &- start
    guard last < first else { return .max }
    let (product, isTooMuch) = cycles.multipliedReportingOverflow(by: UInt64(divisor))
    return isTooMuch ? .max : max(1, product / UInt64(first - last))
  }

  /// The counts that the channel has left of its period.
  private static func count() -> UInt16 {
    cp_out8(0x43, 0)  // latch channel 0
    let low = UInt16(cp_in8(0x40))
    return UInt16(cp_in8(0x40)) << 8 | low
  }

  /// Reads the count until it differs from `before`; nil when it does not, or is always more than a period.
  private static func count(otherThan before: UInt16) -> UInt16? {
    for _ in 0..<readLimit {
      let now = count()
      if now != before && now <= divisor { return now }
    }
    return nil
  }

  /// Waits until the next tick has been counted. Interrupts must be on. Stops the machine when none comes.
  static func waitForTick() {
    let (before, start) = (now, cp_cycles())
    let (limit, isNone) = cyclesPerTick.load(ordering: .relaxed).multipliedReportingOverflow(
      by: interruptLimit)
    var polls: UInt64 = 0
    while now == before {
      polls &+= 1
      if polls > pollLimit && cp_cycles() &- start > (isNone ? 1 << 31 : limit) {
        Reports.panic(
          "a machine that Strata refuses",
          "its interval timer does not interrupt: no tick came in half a second")
      }
      cp_pause(0)
    }
  }

  static func handleInterrupt() {
    let before = ticks.load(ordering: .relaxed)
    let now = before &+ ticksGone()
    ticks.store(now, ordering: .relaxed)
    Scheduler.tick(now)
    Watchdog.feed(now, after: before)
  }

  /// The ticks that this interrupt counts for.
  private static func ticksGone() -> UInt64 {
    let (cycles, period) = (cp_cycles(), cyclesPerTick.load(ordering: .relaxed))
    let periods = (cycles &- lastCycles.load(ordering: .relaxed) &+ period / 2) / period
    lastCycles.store(cycles, ordering: .relaxed)
    let known = ahead.load(ordering: .relaxed)
    if periods == 0 && known > 0 {
      ahead.store(known - 1, ordering: .relaxed)
      return 0
    }
    let gone = periods > mostTicks ? 1 : max(1, periods)
    ahead.store(gone - 1, ordering: .relaxed)
    return gone
  }

  /// Milliseconds since `start`.
  static var now: Tick { Tick(ticks.load(ordering: .relaxed)) }
}
