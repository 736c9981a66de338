// The local interrupt controller of each processor, as xAPIC: registers in memory, one page, at the same address on
// all of them (Intel SDM vol. 3A, chapter 10, "Advanced Programmable Interrupt Controller").
//
// It brings what other processors send and the ticks of the processor's own timer. Devices still come through the
// 8259A pair, which is wired to LINT0 of the first processor ("virtual wire", MultiProcessor Specification 1.4,
// 3.6.2.2).

import CPlatform
import KernelSpace
import MemoryPrimitives
import Synchronization

/// The vectors that local APICs deliver, above those of the 8259A pair.
enum LocalVector {
  static var timer: UInt64 { 0xe0 }
  /// Another processor wants something: `Messages`.
  static var message: UInt64 { 0xe1 }
  /// There is a thread to run.
  static var reschedule: UInt64 { 0xe2 }
  /// The timer, once, for work that waits for an interrupt: `InterruptWork`.
  static var work: UInt64 { 0xe3 }
  /// Low bits all ones, as 10.9 asks of it.
  static var spurious: UInt64 { 0xff }
}

enum LocalAPIC {
  private static let base = Atomic<UInt64>(0)
  /// Timer counts of a tick of a millisecond, at a sixteenth of the bus clock.
  private static let countsPerTick = Atomic<UInt32>(0)

  /// Offsets (table 10-1).
  private enum Register {
    static var identity: UInt64 { 0x20 }
    static var taskPriority: UInt64 { 0x80 }
    static var endOfInterrupt: UInt64 { 0xb0 }
    static var spurious: UInt64 { 0xf0 }
    static var commandLow: UInt64 { 0x300 }
    static var commandHigh: UInt64 { 0x310 }
    static var timer: UInt64 { 0x320 }
    static var line0: UInt64 { 0x350 }
    static var line1: UInt64 { 0x360 }
    static var error: UInt64 { 0x370 }
    static var initialCount: UInt64 { 0x380 }
    static var currentCount: UInt64 { 0x390 }
    static var divide: UInt64 { 0x3e0 }
  }

  private enum Bits {
    static var masked: UInt32 { 1 << 16 }
    static var enabled: UInt32 { 1 << 8 }
    static var periodic: UInt32 { 1 << 17 }
    static var external: UInt32 { 7 << 8 }
    static var nmi: UInt32 { 4 << 8 }
    static var initialise: UInt32 { 5 << 8 }
    static var startUp: UInt32 { 6 << 8 }
    static var assert: UInt32 { 1 << 14 }
    static var pending: UInt32 { 1 << 12 }
    static var divideBy16: UInt32 { 3 }
  }

  private static func read(_ register: UInt64) -> UInt32 {
    cp_read32(base.load(ordering: .relaxed) &+ register)
  }
  private static func write(_ value: UInt32, to register: UInt64) {
    cp_write32(base.load(ordering: .relaxed) &+ register, value)
  }

  /// Whether this processor has a controller that is switched on (IA32_APIC_BASE, 10.4.3).
  static var isThere: Bool { cp_cpuid(1, 0).edx & 1 << 9 != 0 && cp_read_msr(0x1b) & 1 << 11 != 0 }

  /// Whether `map` has been called.
  static var isMapped: Bool { base.load(ordering: .relaxed) != 0 }

  /// Maps the registers, which lie at physical `address`, uncached.
  static func map(_ address: PhysicalAddress, _ space: KernelSpace) throws(KernelSpaceError) {
    let place = try space.mapDevice(address, ByteCount(Page.size))
    base.store(place.rawValue, ordering: .relaxed)
  }

  /// Switches this processor's controller on; `first` is the one that the devices are wired to.
  static func enable(_ which: Which) {
    write(0, to: Register.taskPriority)
    write(Bits.masked, to: Register.timer)
    write(Bits.masked, to: Register.error)
    write(which == .first ? Bits.external : Bits.masked, to: Register.line0)
    write(Bits.nmi, to: Register.line1)
    write(UInt32(LocalVector.spurious) | Bits.enabled, to: Register.spurious)
    write(Bits.divideBy16, to: Register.divide)
  }
  enum Which { case first, other }

  /// This processor's identity.
  static var identity: UInt32 { read(Register.identity) >> 24 }

  static func acknowledge() { write(0, to: Register.endOfInterrupt) }

  // MARK: Timer

  /// Learns how fast the timer counts, in a tick of the clock. Interrupts must be on. Stops the machine when the clock
  /// or the timer stands still.
  static func calibrate() {
    write(Bits.masked, to: Register.timer)
    Timer.waitForTick()
    write(UInt32.max, to: Register.initialCount)
    let start = Timer.now
    Timer.waitForTick()
    let counts = UInt32.max - read(Register.currentCount)
    let ticks = UInt32(truncatingIfNeeded: Timer.now.rawValue - start.rawValue)
    write(0, to: Register.initialCount)
    guard counts > 0 else {
      Reports.panic(
        "a machine that Strata refuses", "the timer of its local interrupt controller (APIC) stands still")
    }
    countsPerTick.store(max(1, counts / ticks), ordering: .relaxed)
  }

  /// Lets this processor's timer interrupt every `ticks` milliseconds.
  static func startTimer(every ticks: UInt32) {
    // Or it would come every few nanoseconds, between the two writes, when it was to come at once before.
    write(0, to: Register.initialCount)
    write(UInt32(LocalVector.timer) | Bits.periodic, to: Register.timer)
    write(countsPerTick.load(ordering: .relaxed) &* ticks, to: Register.initialCount)
  }

  /// Lets this processor's timer interrupt once, at once, by a vector of its own, instead of every few ticks.
  static func fireTimer(_ vector: UInt64) {
    write(UInt32(vector), to: Register.timer)
    write(1, to: Register.initialCount)
  }

  // MARK: Messages (10.6)

  /// Reads in which a message leaves the controller: some 100 ms, where it takes microseconds.
  private static var busyLimit: Int { 100_000 }

  private static func command(_ low: UInt32, to identity: UInt32) {
    // Both halves belong together: an interrupt handler may send as well.
    withInterruptsOff {
      // One that stays busy is written to all the same: nothing waits for a device for ever.
      for _ in 0..<busyLimit {
        if read(Register.commandLow) & Bits.pending == 0 { break }
        cp_pause(0)
      }
      write(identity << 24, to: Register.commandHigh)
      write(low, to: Register.commandLow)
    }
  }

  static func send(_ vector: UInt64, to identity: UInt32) {
    command(UInt32(vector) | Bits.assert, to: identity)
  }
  static func sendNMI(to identity: UInt32) { command(Bits.nmi | Bits.assert, to: identity) }
  static func sendInitialise(to identity: UInt32) { command(Bits.initialise | Bits.assert, to: identity) }
  /// Starts it in real mode at the first byte of `page`, below 1 MiB.
  static func sendStartUp(to identity: UInt32, at page: FrameNumber) {
    command(Bits.startUp | Bits.assert | page.rawValue, to: identity)
  }
}
