// One JSON object a line (RFC 8259), `kind` first: the output of each command for tools.
//
// Numbers are plain integers, addresses are strings as a person would see them. Bytes that are no ASCII
// are written as `\u00xx`, so a line is valid whatever bytes a trace or a command line holds.

import MemoryPrimitives

/// An object that is being printed. Its parts are written at once, so a row has no maximum length.
struct JSONRow {
  let terminal: Terminal

  private func key(_ name: Line) {
    terminal.write(",")
    string(name)
    terminal.write(":")
  }

  /// Begins an object of `kind`.
  func open(_ kind: StaticString) {
    terminal.write("{\"kind\":")
    string(Line(kind))
  }

  func string(_ text: Line) { text.withBytes { string($0) } }

  func string(_ bytes: Bytes) {
    var line = Line("\"")
    for byte in bytes {
      if line.count > Line.capacity - 16 {
        terminal.write(line)
        line = Line()
      }
      switch byte {
      case UInt8(ascii: "\""): line.append("\\\"")
      case UInt8(ascii: "\\"): line.append("\\\\")
      case 0x0a: line.append("\\n")
      case 0x0d: line.append("\\r")
      case 0x09: line.append("\\t")
      case 0x20..<0x7f: line.append(byte: byte)
      default:
        line.append("\\u00")
        line.append(byte: Self.digit(byte >> 4))
        line.append(byte: Self.digit(byte & 15))
      }
    }
    line.append("\"")
    terminal.write(line)
  }

  private static func digit(_ nibble: UInt8) -> UInt8 {
    nibble < 10 ? UInt8(ascii: "0") + nibble : UInt8(ascii: "a") - 10 + nibble
  }

  /// A number; null for none. All rows of a kind have the same keys.
  func field(_ name: Line, _ value: UInt64?) {
    guard let value else { return none(name) }
    key(name)
    terminal.write("\(value)")
  }
  /// A number that is spelled already: with a sign, with a point.
  func field(_ name: Line, figure: Line) {
    key(name)
    terminal.write(figure)
  }
  func field(_ name: Line, text: Line?) {
    guard let text else { return none(name) }
    key(name)
    string(text)
  }
  func field(_ name: Line, bytes: Bytes) {
    key(name)
    string(bytes)
  }
  func field(_ name: Line, _ address: VirtualAddress?) { field(name, text: address.map { "\($0)" }) }
  func field(_ name: Line, _ address: PhysicalAddress) { field(name, text: "\(address)") }
  func field(_ name: Line, truth: Truth?) {
    guard let truth else { return none(name) }
    key(name)
    terminal.write(truth == .yes ? "true" : "false")
  }
  /// A cost and its unit, which depends on the machine: instructions or cycles.
  func cost(_ value: UInt64, _ unit: StaticString) {
    field("cost", value)
    field("unit", text: Line(unit))
  }
  enum Truth: UInt8 { case yes, no }

  /// Nothing is known or nothing applies.
  func none(_ name: Line) {
    key(name)
    terminal.write("null")
  }
}

extension Shell {
  /// Prints one object of `kind` with the fields that `body` adds. Only with `-j`.
  func row(_ kind: StaticString, _ body: (JSONRow) -> Void) {
    guard isJSON, !shouldStop else { return }
    let row = JSONRow(terminal: terminal)
    row.open(kind)
    body(row)
    terminal.write("}")
    newline()
  }
}
