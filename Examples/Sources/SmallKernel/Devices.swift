// The serial port, QEMU's exit device, and the functions that the stub and the compiler want to find in a kernel.

import KernelMemory

/// COM1, which the stub has set up.
enum Serial {
  static func print(_ text: StaticString, _ number: UInt64) {
    write(text)
    write(number)
    write("\r\n")
  }

  static func write(_ text: StaticString) {
    for index in 0..<text.utf8CodeUnitCount { write(byte: text.utf8Start[index]) }
  }

  private static func write(_ number: UInt64) {
    if number >= 10 { write(number / 10) }
    write(byte: UInt8(ascii: "0") + UInt8(number % 10))
  }

  static func write(byte: UInt8) {
    // Bit 5 of the line status: the port accepts a byte.
    while cp_in8(0x3fd) & 1 << 5 == 0 {}
    cp_out8(0x3f8, byte)
  }
}

/// QEMU's isa-debug-exit at port 0xf4: QEMU ends with status 33 or 35.
enum Power: UInt8 {
  case success = 0x10
  case failed = 0x11

  static func off(_ status: Power, _ reason: StaticString) -> Never {
    Serial.write(reason)
    Serial.write("\r\n")
    cp_out8(0xf4, status.rawValue)
    while true { cp_halt() }
  }
}

/// The text of a Swift trap, before it stops the processor.
@c(putchar) public func putchar(_ character: CInt) -> CInt {
  Serial.write(byte: UInt8(truncatingIfNeeded: character))
  return character
}

/// The entries for interrupts, further processors and threads, which this kernel has none of.
@c(kernel_interrupt) public func kernelInterrupt(_ frame: UnsafeMutableRawPointer) {
  Power.off(.failed, "an interrupt")
}
@c(kernel_processor) public func kernelProcessor() -> Never { Power.off(.failed, "another processor") }
@c(kernel_thread) public func kernelThread() -> Never { Power.off(.failed, "a thread") }
