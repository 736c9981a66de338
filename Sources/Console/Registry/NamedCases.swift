// Enums whose cases a person types by name: commands, faults, benches, self-tests.

import MemoryPrimitives

/// An enum whose raw values count up from 0, with a name for each case.
protocol NamedCases: RawRepresentable where RawValue == UInt8 {
  /// The case with the highest raw value.
  static var last: Self { get }
  var name: StaticString { get }
}

extension NamedCases {
  static var count: Int { Int(last.rawValue) + 1 }

  /// Calls `body` with each case.
  static func forEach(_ body: (Self) -> Void) {
    for value in 0..<count {
      if let found = Self(rawValue: UInt8(value)) { body(found) }
    }
  }

  /// The case with this name.
  static func named(_ word: Bytes) -> Self? {
    var found: Self?
    forEach { if word == $0.name { found = $0 } }
    return found
  }
}

extension Shell {
  /// The case that a word names; nil for no word. Refuses any other word, and lists the names behind `otherwise`.
  func named<Case: NamedCases>(_ word: Word?, otherwise: Line) throws(CommandError) -> Case? {
    guard let word else { return nil }
    if let found = Case.named(word.bytes) { return found }
    var names = otherwise
    Case.forEach { names.append(line: " \($0.name)") }
    throw refuse(word, names)
  }
}
