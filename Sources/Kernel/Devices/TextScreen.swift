// The VGA text screen: says that the console is on the serial port. A person who boots the ISO on a PC looks at the
// screen first, and would else see a machine that hangs.
//
// The BIOS data area shows whether the screen is in a text mode of 80 columns: the byte at 0x449 is the video mode, 3 for
// colour and 7 for monochrome, and the word at 0x44a the number of columns (Ralf Brown's Interrupt List, table M0040).
// Firmware without a BIOS leaves zeroes there, and the screen stays as it is. Text memory has two bytes a character:
// its code and its attribute. The stub's direct map reaches it; the final tables do not.

import CPlatform
import MemoryPrimitives

/// The text screen of a PC, before the final page tables.
enum TextScreen {
  private static var columns: Int { 80 }
  private static var rows: Int { 25 }
  /// Light grey on black, as the BIOS has it.
  private static var attribute: UInt16 { 0x0700 }

  /// Clears the screen and says where the console is, if the screen shows text.
  static func pointToConsole() {
    guard let text else { return }
    for i in 0..<(columns * rows) { text[i] = attribute | UInt16(UInt8(ascii: " ")) }
    if SerialPort.isThere {
      write("Strata runs. Its console is on the serial port COM1: 115200 baud, 8N1.", 0, text)
      write("Connect a terminal there; QEMU shows it with -serial stdio, as make run does.", 1, text)
    } else {
      write("Strata's console is on the serial port COM1, and this machine has none.", 0, text)
      write("Without it Strata runs the commands of run= on its command line only.", 1, text)
    }
  }

  /// The characters of the screen, when it shows text.
  private static var text: UnsafeMutablePointer<UInt16>? {
    let map = Executive.directMap
    let area = UnsafeRawPointer(map.pointer(to: PhysicalAddress(0x400)))
    guard area.loadUnaligned(fromByteOffset: 0x4a, as: UInt16.self) == UInt16(columns) else { return nil }
    let memory: UInt64
    switch area.load(fromByteOffset: 0x49, as: UInt8.self) {
    case 3: memory = 0xb8000
    case 7: memory = 0xb0000
    default: return nil
    }
    return map.pointer(to: PhysicalAddress(memory)).assumingMemoryBound(to: UInt16.self)
  }

  private static func write(_ line: StaticString, _ row: Int, _ text: UnsafeMutablePointer<UInt16>) {
    for i in 0..<min(line.utf8CodeUnitCount, columns) {
      text[row * columns + i] = attribute | UInt16(line.utf8Start[i])
    }
  }
}
