// Results, which go to standard output: unlike `print`, a full disk is noticed.

import Foundation

/// Prints a line of a result. Throws a complaint when it can't be written.
func printResult(_ line: String) throws { try write([UInt8]((line + "\n").utf8), to: "-") }

/// Prints text about a result, such as a summary. Where standard error is closed or full, the text is lost.
func printToStandardError(_ text: String) {
  try? write([UInt8](text.utf8), to: STDERR_FILENO, "standard error")
}

/// One row of JSON: `kind` first, then what is added.
struct JSONRow {
  private var body: String

  init(_ kind: String) { body = "{\"kind\":\"\(kind)\"" }

  var text: String { body + "}" }

  mutating func add(_ key: String, _ value: UInt64?) { addRaw(key, value.map { "\($0)" } ?? "null") }
  mutating func add(_ key: String, _ value: String?) { addRaw(key, value.map(Self.quoted) ?? "null") }
  mutating func add(_ key: String, _ value: Bool?) { addRaw(key, value.map { "\($0)" } ?? "null") }
  mutating func add(_ key: String, _ value: Double, decimals: Int) {
    addRaw(key, value.isFinite ? String(format: "%.\(decimals)f", value) : "null")
  }

  private mutating func addRaw(_ key: String, _ value: String) { body += ",\"\(key)\":\(value)" }

  static func quoted(_ text: String) -> String {
    var quoted = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": quoted += "\\\""
      case "\\": quoted += "\\\\"
      case _ where scalar.value < 0x20: quoted += String(format: "\\u%04x", scalar.value)
      default: quoted.unicodeScalars.append(scalar)
      }
    }
    return quoted + "\""
  }
}
