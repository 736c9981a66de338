// A prompt of last resort, until the console takes its place.

import CPlatform
import MemoryPrimitives

enum Prompt {
  static func run(_ boot: UnsafeMutablePointer<cp_boot_information>) -> Never {
    let text = cp_boot_line(boot)
    var given = Line()
    for i in 0..<Int(boot.pointee.line_length) {
      given.append(byte: text[i])
    }
    if let start = find("run=", in: given) {
      var command = Line()
      for i in start..<given.count {
        let byte = given[i]
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"): continue
        case UInt8(ascii: ";"):
          obey(command)
          command = Line()
        case UInt8(ascii: " ") where command.count == 0: continue
        default: command.append(byte: byte)
        }
      }
      if command.count > 0 { obey(command) }
      Stop.success.now()
    }
    var line = Line()
    SerialPort.print("Type poweroff, panic, or fault KIND.")
    write("strata> ")
    while true {
      guard let byte = SerialPort.read() else {
        Executive.rest()
        continue
      }
      switch byte {
      case 10, 13:
        SerialPort.print("")
        obey(line)
        line = Line()
        write("strata> ")
      case 0x20..<0x7f:
        SerialPort.write(byte)
        line.append(byte: byte)
      default: break
      }
    }
  }

  private static func write(_ line: Line) { line.withBytes { SerialPort.write($0) } }

  private static func find(_ word: StaticString, in line: Line) -> Int? {
    let length = word.utf8CodeUnitCount
    guard line.count >= length else { return nil }
    for start in 0...(line.count - length) {
      var i = 0
      while i < length && line[start + i] == word.utf8Start[i] { i += 1 }
      if i == length { return start + length }
    }
    return nil
  }

  private static func obey(_ line: Line) {
    if line.count == 0 { return }
    if find("poweroff", in: line) == 8 { Stop.success.now() }
    if find("panic", in: line) == 5 { Reports.panic("panic", "asked for at the prompt") }
    if find("fault ", in: line) == 6 {
      for raw in 0..<Provocation.count {
        if let kind = Provocation(rawValue: raw), find(kind.word, in: line) == line.count { kind.provoke() }
      }
    }
    SerialPort.print("No command \"\(line)\".")
    Stop.failure.now()
  }
}
