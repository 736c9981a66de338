// The local interrupt controller of each processor (Intel SDM vol. 3A, chapter 11, "Advanced Programmable Interrupt
// Controller"), in the mode in which the firmware left it: as xAPIC, with registers in memory, one page, at the same
// address on all processors; or as x2APIC, with model-specific registers, which reaches identities of 32 bits. All
// processors use the mode of the first.
//
// It delivers the messages of other processors and the ticks of the processor's own timer. Devices still come through
// the 8259A pair, which is wired to LINT0 of the first processor ("virtual wire", MultiProcessor Specification 1.4,
// 3.6.2.2).

import ACPI
import CPlatform
import KernelSpace
import MemoryPrimitives
import Synchronization

/// The vectors that local APICs deliver, above those of the 8259A pair.
enum LocalVector {
  static var timer: UInt64 { 0xe0 }
  /// A message of another processor: `Messages`.
  static var message: UInt64 { 0xe1 }
  /// A thread is ready.
  static var reschedule: UInt64 { 0xe2 }
  /// The timer, once, for work that waits for an interrupt: `InterruptWork`.
  static var work: UInt64 { 0xe3 }
  /// The low bits are all ones, as 11.9 requires.
  static var spurious: UInt64 { 0xff }
}

/// Why there is no local APIC to use.
enum LocalAPICError: UInt8, Error {
  case absent
  case outOfReach

  var description: StaticString {
    switch self {
    case .absent: "its processor has no local interrupt controller (APIC)"
    case .outOfReach: "its local interrupt controller lies above 4 GiB"
    }
  }
}

enum LocalAPIC {
  private static let base = Atomic<UInt64>(0)
  /// Written once, before any other processor runs.
  nonisolated(unsafe) private(set) static var addressing = APICIdentity.Addressing.xAPIC
  /// Timer counts in a tick of a millisecond, at a sixteenth of the bus clock.
  private static let countsPerTick = Atomic<UInt32>(0)

  private enum Register {
    static var identity: LocalAPICRegister { .init(0x20) }
    static var taskPriority: LocalAPICRegister { .init(0x80) }
    static var endOfInterrupt: LocalAPICRegister { .init(0xb0) }
    static var spurious: LocalAPICRegister { .init(0xf0) }
    static var command: LocalAPICRegister { .init(0x300) }
    static var commandTarget: LocalAPICRegister { .init(0x310) }
    static var timer: LocalAPICRegister { .init(0x320) }
    static var line0: LocalAPICRegister { .init(0x350) }
    static var line1: LocalAPICRegister { .init(0x360) }
    static var error: LocalAPICRegister { .init(0x370) }
    static var initialCount: LocalAPICRegister { .init(0x380) }
    static var currentCount: LocalAPICRegister { .init(0x390) }
    static var divide: LocalAPICRegister { .init(0x3e0) }
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

  @inline(always) private static func read(_ register: LocalAPICRegister) -> UInt32 {
    switch addressing {
    case .xAPIC: cp_read32(base.load(ordering: .relaxed) &+ UInt64(register.offset))
    case .x2APIC: UInt32(truncatingIfNeeded: cp_read_msr(register.number))
    }
  }
  @inline(always) private static func write(_ value: UInt32, to register: LocalAPICRegister) {
    switch addressing {
    case .xAPIC: cp_write32(base.load(ordering: .relaxed) &+ UInt64(register.offset), value)
    case .x2APIC: cp_write_msr(register.number, UInt64(value))
    }
  }

  private static var ownBase: LocalAPICBase { LocalAPICBase(cp_read_msr(LocalAPICBase.register)) }

  /// Finds the controller of the first processor, and adopts its mode; one that is switched off becomes an xAPIC. The
  /// registers of an xAPIC are reached through the stub's direct map until `map` is called.
  static func find() throws(LocalAPICError) {
    if ownBase.addressing == nil { cp_write_msr(LocalAPICBase.register, ownBase.on(.xAPIC).rawValue) }
    // CPUID does not report a controller that is switched off.
    guard let addressing = ownBase.addressing, cp_cpuid(1, 0).edx & 1 << 9 != 0 else { throw .absent }
    Self.addressing = addressing
    guard addressing == .xAPIC else { return }
    guard ownBase.address.rawValue < 1 << 32 else { throw .outOfReach }
    base.store(Executive.directMap.virtualAddress(of: ownBase.address).rawValue, ordering: .relaxed)
  }

  /// Maps the registers of an xAPIC, uncached, in the final tables.
  static func map(_ space: KernelAddressSpace) throws(KernelSpaceError) {
    guard addressing == .xAPIC else { return }
    let place = try space.mapDevice(ownBase.address, ByteCount(Page.size))
    base.store(place.rawValue, ordering: .relaxed)
  }

  /// Brings the controller of another processor, which runs this, into the mode of the first.
  static func join() {
    let (present, wanted) = (ownBase, ownBase.on(addressing))
    guard present != wanted else { return }
    if !present.canBecome(wanted) { cp_write_msr(LocalAPICBase.register, present.off.rawValue) }
    cp_write_msr(LocalAPICBase.register, wanted.rawValue)
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
  static var identity: APICIdentity {
    APICIdentity(addressing == .xAPIC ? read(Register.identity) >> 24 : read(Register.identity))
  }

  static func acknowledge() { write(0, to: Register.endOfInterrupt) }

  // MARK: Timer

  /// Measures how fast the timer counts, in a tick of the clock. Interrupts must be on. Stops the machine when the
  /// clock or the timer stands still.
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

  /// Makes this processor's timer interrupt every `ticks` milliseconds.
  static func startTimer(every ticks: UInt32) {
    // Without this write, a timer that `fireTimer` has set would fire every few nanoseconds between the other two
    // writes.
    write(0, to: Register.initialCount)
    write(UInt32(LocalVector.timer) | Bits.periodic, to: Register.timer)
    write(countsPerTick.load(ordering: .relaxed) &* ticks, to: Register.initialCount)
  }

  /// Makes this processor's timer interrupt once, at once, by `vector`, in place of its regular ticks.
  static func fireTimer(_ vector: UInt64) {
    write(UInt32(vector), to: Register.timer)
    write(1, to: Register.initialCount)
  }

  // MARK: Messages (11.6)

  /// Reads of the command register before a message is sent anyway: some 100 ms, where delivery takes microseconds.
  private static var busyLimit: Int { 100_000 }

  private static func send(_ command: InterruptCommand) {
    switch addressing {
    case .xAPIC:
      // Both halves belong together: an interrupt handler may send as well.
      withInterruptsOff {
        // A controller that stays busy is written to all the same: no code waits for a device for ever.
        for _ in 0..<busyLimit {
          if read(Register.command) & Bits.pending == 0 { break }
          cp_pause(0)
        }
        write(command.upperHalf, to: Register.commandTarget)
        write(command.message, to: Register.command)
      }
    case .x2APIC:
      // The write does not wait for earlier stores, and the receiver must see all of them (11.12.3).
      cp_fence_messages()
      cp_write_msr(Register.command.number, command.whole)
    }
  }

  static func send(_ vector: UInt64, to identity: UInt32) {
    send(InterruptCommand(UInt32(vector) | Bits.assert, to: APICIdentity(identity)))
  }
  static func sendNMI(to identity: UInt32) {
    send(InterruptCommand(Bits.nmi | Bits.assert, to: APICIdentity(identity)))
  }
  static func sendInitialise(to identity: UInt32) {
    send(InterruptCommand(Bits.initialise | Bits.assert, to: APICIdentity(identity)))
  }
  /// Starts the processor in real mode at the first byte of `page`, below 1 MiB.
  static func sendStartUp(to identity: UInt32, at page: FrameNumber) {
    send(InterruptCommand(Bits.startUp | Bits.assert | page.rawValue, to: APICIdentity(identity)))
  }
}
