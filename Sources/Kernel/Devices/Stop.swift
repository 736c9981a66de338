// The end of the machine, with a status for the program that started it: QEMU's isa-debug-exit leaves with
// 2 * value + 1.

import CPlatform
import MemoryPrimitives

/// How the machine stops.
enum Stop: UInt8 {
  /// Status 33.
  case success = 0x10
  /// A command failed. Status 35.
  case failure = 0x11
  /// A fault report, a panic, or a machine that Strata refuses. Status 37.
  case fault = 0x12

  /// Stops. Where no emulator listens, the processor halts, and says so unless a fault report has.
  func now() -> Never {
    SerialPort.drain()
    cp_out8(0xf4, rawValue)
    if self != .fault { SerialPort.print("No device at port 0xf4 ends this machine: it halts.") }
    while true { cp_halt() }
  }
}
