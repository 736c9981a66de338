// The serial port COM1, 115200 8N1: a 16550 (National Semiconductor PC16550D data sheet).
//
// The interrupt handler stores input in a ring, so no byte is lost while a command runs. The console looks at bytes there,
// and removes those that it has used. When the ring is full, the handler switches the interrupt off, and the bytes wait
// in the port; `remove` switches it on again. QEMU's sender then holds back. A sender on a real line does not, as Strata
// uses no flow control: bytes beyond the ring and the port's queue are lost, and counted. Output is polled: it must work
// in a fault, with interrupts off, on any stack.
//
// A machine without the port runs all the same: output is dropped, and there is never input. QEMU's port accepts
// nothing while its own reader stands still. After 2^37 cycles of that, output is dropped until the port accepts a
// byte again.

import CPlatform
import MemoryPrimitives
import Synchronization

/// COM1. One writer at a time; one thread looks at input and removes it.
enum SerialPort {
  private static var base: UInt16 { 0x3f8 }
  private static var fifoDepth: Int { 16 }
  /// A power of two, so that the counts may wrap.
  private static var ringSize: UInt32 { 8192 }

  /// Bytes received and bytes removed so far: their difference lies in the ring.
  private static let received = Atomic<UInt32>(0)
  private static let taken = Atomic<UInt32>(0)
  /// Whether the interrupt is off because the ring was full; written under the lock.
  private static let isHeldBack = Atomic<Bool>(false)
  nonisolated(unsafe) private static let fullness = SpinLock(.serialPort)
  /// A sequence number that changes when input has come: a reader sleeps on it.
  nonisolated(unsafe) private static var arrivals: UInt64 = 0
  private static let overruns = Atomic<UInt32>(0)
  private static let hasPort = Atomic<Bool>(false)
  /// The port has accepted nothing for `busyLimit`, so no writer waits for it any more.
  private static let isStuck = Atomic<Bool>(false)
  private static var ring: UnsafeMutablePointer<UInt8> { cp_serial_input(Image.storage) }

  private enum Register {
    static var data: UInt16 { 0 }
    static var interrupts: UInt16 { 1 }
    static var fifo: UInt16 { 2 }
    static var lineControl: UInt16 { 3 }
    static var modemControl: UInt16 { 4 }
    static var lineStatus: UInt16 { 5 }
  }

  private enum Status {
    static var received: UInt8 { 1 << 0 }
    static var overrun: UInt8 { 1 << 1 }
    static var readyToSend: UInt8 { 1 << 5 }
    static var idle: UInt8 { 1 << 6 }
  }

  private static func write(_ value: UInt8, to register: UInt16) { cp_out8(base + register, value) }
  private static func read(_ register: UInt16) -> UInt8 { cp_in8(base + register) }

  /// Whether there is a port.
  static var isThere: Bool { hasPort.load(ordering: .relaxed) }

  /// Cycles that the boot waits for a port that should be idle: 2^31, which are 0.5 s at 4 GHz and 2 s at 1 GHz.
  private static var idleLimit: UInt64 { 1 << 31 }
  /// Cycles that a writer waits for a port at work: 2^37, which are 34 s at 4 GHz and 137 s at 1 GHz.
  private static var busyLimit: UInt64 { 1 << 37 }

  /// Sets the line up, with no interrupts. `Image.adopt` comes first: the ring lies in its storage.
  static func start() {
    write(0, to: Register.interrupts)
    // The upper bits of the register are always zero; where no device answers, a read gives ones.
    guard read(Register.interrupts) == 0, waits(for: Status.readyToSend, idleLimit) else { return }
    hasPort.store(true, ordering: .relaxed)
    write(0x80, to: Register.lineControl)
    write(1, to: Register.data)
    write(0, to: Register.interrupts)
    write(0x03, to: Register.lineControl)
    // Switching the FIFO on empties the port, so input that has already arrived is read out first.
    handleInterrupt()
    write(0xc1, to: Register.fifo)
    write(0x0b, to: Register.modemControl)
  }

  /// Switches the receive interrupt on.
  static func receiveByInterrupt() {
    if isThere { write(1, to: Register.interrupts) }
  }

  /// The interrupt's handler.
  static func handleInterrupt() {
    guard isThere else { return }
    let before = received.load(ordering: .relaxed)
    receive()
    guard received.load(ordering: .relaxed) != before else { return }
    withArrivals {
      UnsafeMutableRawPointer(mutating: $0).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
        .add(1, ordering: .sequentiallyConsistent)
      Scheduler.wake($0)
    }
  }

  static var arrived: UInt64 {
    withArrivals {
      UnsafeRawPointer($0).assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .acquiring)
    }
  }
  static func withArrivals<R>(_ body: (UnsafePointer<UInt64>) -> R) -> R {
    withUnsafePointer(to: &arrivals, body)
  }

  private static func receive() {
    while true {
      let status = read(Register.lineStatus)
      if status & Status.overrun != 0 { overruns.add(1, ordering: .relaxed) }
      guard status & Status.received != 0 else { return }
      let count = received.load(ordering: .relaxed)
      if count &- taken.load(ordering: .acquiring) >= ringSize && holdBack(at: count) { return }
      ring[Int(count % ringSize)] = read(Register.data)
      received.store(count &+ 1, ordering: .releasing)
    }
  }

  /// Switches the interrupt off when the ring is still full. Under the lock, since another processor may remove bytes
  /// and switch it on at this moment: of the two, the later one decides by what the ring has.
  private static func holdBack(at count: UInt32) -> Bool {
    let held = fullness.acquire()
    let isFull = count &- taken.load(ordering: .acquiring) >= ringSize
    if isFull {
      isHeldBack.store(true, ordering: .relaxed)
      write(0, to: Register.interrupts)
    }
    held.release()
    return isFull
  }

  /// Switches the interrupt on again, after bytes were removed.
  private static func endHoldingBack() {
    let held = fullness.acquire()
    if isHeldBack.exchange(false, ordering: .relaxed) { write(1, to: Register.interrupts) }
    held.release()
  }

  /// Bytes of input that have not been removed.
  static var unread: Int {
    Int(received.load(ordering: .acquiring) &- taken.load(ordering: .relaxed))
  }

  /// The byte of input `index` places after the oldest, of the `unread` ones.
  static func byte(at index: Int) -> UInt8 {
    ring[Int((taken.load(ordering: .relaxed) &+ UInt32(index)) % ringSize)]
  }

  /// Removes `count` bytes of input, the first of them `index` places after the oldest. Moves the bytes before them, of
  /// which there are few, so the handler's end of the ring stays as it is.
  static func remove(at index: Int, count: Int) {
    let first = taken.load(ordering: .relaxed)
    for i in stride(from: index - 1, through: 0, by: -1) {
      ring[Int((first &+ UInt32(i + count)) % ringSize)] = byte(at: i)
    }
    let wasFull = Int(received.load(ordering: .acquiring) &- first) >= Int(ringSize)
    taken.store(first &+ UInt32(count), ordering: .releasing)
    if wasFull || isHeldBack.load(ordering: .relaxed) { endHoldingBack() }
  }

  /// Times that the port dropped bytes because the interrupt handler did not read them in time.
  static var lostBytes: UInt32 { overruns.load(ordering: .relaxed) }

  /// Sends bytes as they are. Returns when the last is in the port.
  static func write(_ bytes: UnsafeBufferPointer<UInt8>) {
    var free = 0
    for byte in bytes {
      if free == 0 {
        guard waitForFIFO() else { return }
        free = fifoDepth
      }
      write(byte, to: Register.data)
      free -= 1
    }
  }

  /// Sends one byte.
  static func write(_ byte: UInt8) {
    if waitForFIFO() { write(byte, to: Register.data) }
  }

  private static func waitForFIFO() -> Bool {
    guard isThere else { return false }
    let isReady = waits(for: Status.readyToSend, isStuck.load(ordering: .relaxed) ? 0 : busyLimit)
    isStuck.store(!isReady, ordering: .relaxed)
    return isReady
  }

  /// Waits until the line status has `bit`. False when it does not get it within `cycles`.
  private static func waits(for bit: UInt8, _ cycles: UInt64) -> Bool {
    let start = cp_cycles()
    while read(Register.lineStatus) & bit == 0 {
      guard cp_cycles() &- start < cycles else { return false }
      cp_pause(0)
    }
    return true
  }

  /// Sends a line and its end.
  static func print(_ line: Line) {
    line.withBytes { write($0) }
    write(UInt8(ascii: "\r"))
    write(UInt8(ascii: "\n"))
  }

  /// Waits until the last bit has left the port.
  static func drain() {
    if isThere && !isStuck.load(ordering: .relaxed) { _ = waits(for: Status.idle, busyLimit) }
  }
}
