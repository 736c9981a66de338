// Bytes of a recorder's text, taken apart without copies.

/// The bytes of a line, in memory of the reader.
typealias LineBytes = UnsafeBufferPointer<UInt8>
/// A part of a line.
typealias Text = Slice<LineBytes>

extension Text {
  static func == (a: Text, b: StaticString) -> Bool {
    a.count == b.utf8CodeUnitCount && a.elementsEqual(LineBytes(start: b.utf8Start, count: a.count))
  }

  func starts(with prefix: StaticString) -> Bool { self.prefix(prefix.utf8CodeUnitCount) == prefix }

  func ends(with suffix: StaticString) -> Bool { self.suffix(suffix.utf8CodeUnitCount) == suffix }

  /// The position of the first `wanted`.
  func first(_ wanted: Character) -> Int? { wanted.asciiValue.flatMap { firstIndex(of: $0) } }

  var string: String { String(decoding: self, as: UTF8.self) }

  var trimmed: Text {
    var text = self
    while text.first?.isBlank == true { text.removeFirst() }
    while text.last?.isBlank == true { text.removeLast() }
    return text
  }

  /// Removes the next word from the front.
  mutating func popWord() -> Text? {
    var start = startIndex
    while start < endIndex, self[start].isBlank { start += 1 }
    var end = start
    while end < endIndex, !self[end].isBlank { end += 1 }
    defer { self = self[end...] }
    return start == end ? nil : self[start..<end]
  }

  /// The words, of which the last begins with the `most`-th.
  func words(atMost most: Int) -> [Text] {
    var (rest, words) = (self, [Text]())
    while words.count < most, let word = rest.popWord() { words.append(word) }
    return words
  }

  /// Removes the decimal digits at the front.
  mutating func popDigits() -> Text {
    let digits = prefix { $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }
    self = self[digits.endIndex...]
    return digits
  }

  var decimal: UInt64? { number(base: 10) }
  var hexadecimal: UInt64? { number(base: 16) }
  /// Hexadecimal behind `0x`, else decimal.
  var number: UInt64? { starts(with: "0x") ? dropFirst(2).hexadecimal : decimal }

  private func number(base: UInt64) -> UInt64? {
    var value: UInt64 = 0
    for byte in self {
      let digit: UInt64
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = UInt64(byte - UInt8(ascii: "0"))
      case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = UInt64(byte - UInt8(ascii: "a")) + 10
      case UInt8(ascii: "A")...UInt8(ascii: "F"): digit = UInt64(byte - UInt8(ascii: "A")) + 10
      default: return nil
      }
      let (product, over) = value.multipliedReportingOverflow(by: base)
      guard digit < base, !over, product <= .max - digit else { return nil }
      value = product + digit
    }
    return isEmpty ? nil : value
  }

  /// `8.991063:`, or `1839201938:` of a clock that counts.
  var isTime: Bool {
    guard last == UInt8(ascii: ":") else { return false }
    let text = dropLast()
    guard let dot = text.first(".") else { return text.decimal != nil }
    return text[..<dot].decimal != nil && text[(dot + 1)...].decimal != nil
  }

  /// `12us`, `12us+:` or `12:`, as latency format prints it; whether the colon is there.
  var latencyTime: (isTime: Bool, hasColon: Bool) {
    var rest = self
    guard !rest.popDigits().isEmpty else { return (false, false) }
    let hasColon = rest.last == UInt8(ascii: ":")
    if hasColon { rest = rest.dropLast() }
    guard rest.starts(with: "us") else { return (rest.isEmpty && hasColon, hasColon) }
    // A mark for a long time: + ! # * @ $.
    return (rest.count <= 3, hasColon)
  }
}

extension UInt8 {
  var isBlank: Bool { self == UInt8(ascii: " ") || self == UInt8(ascii: "\t") }
}
