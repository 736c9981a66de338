// Reading what a person types: numbers, sizes, addresses and ranges, in every spelling that the console
// itself prints, so that what is seen can be pasted back.

import MemoryPrimitives

/// Text somewhere in the console's memory.
typealias Bytes = UnsafeBufferPointer<UInt8>

/// Why a figure could not be read. `at` counts bytes from the start of the figure.
struct FigureError: Error, Equatable {
  enum Reason: UInt8 { case empty, notADigit, tooLarge, unknownUnit, noUnitAllowed, noPlus, emptyRange }
  var reason: Reason
  var at: Int

  var description: StaticString {
    switch reason {
    case .empty: "a number is missing here"
    case .notADigit: "no number: digits, with _ or , between them, or 0x and hex digits"
    case .tooLarge: "too large: it does not fit 64 bits"
    case .unknownUnit: "no unit: B, K, M, G, T or KiB, MiB, GiB, TiB (powers of 1024)"
    case .noUnitAllowed: "a plain number has no unit"
    case .noPlus: "a range is ADDRESS+SIZE, as in 0x10_0000+2M"
    case .emptyRange: "a range of no bytes"
    }
  }
}

enum Figures {
  /// The lower case of a letter, for comparing.
  static func lower(_ byte: UInt8) -> UInt8 {
    byte >= UInt8(ascii: "A") && byte <= UInt8(ascii: "Z") ? byte + 32 : byte
  }

  private static func value(_ byte: UInt8, base: UInt64) -> UInt64? {
    let low = lower(byte)
    if low >= UInt8(ascii: "0") && low <= UInt8(ascii: "9") { return UInt64(low - UInt8(ascii: "0")) }
    if base == 16 && low >= UInt8(ascii: "a") && low <= UInt8(ascii: "f") {
      return UInt64(low - UInt8(ascii: "a") + 10)
    }
    return nil
  }

  /// The number at the start of `text` and how many bytes it takes.
  static func leadingNumber(_ text: Bytes, base asked: UInt64? = nil) throws(FigureError)
    -> (value: UInt64, length: Int)
  {
    var i = 0
    var base = asked ?? 10
    if text.count >= 2 && text[0] == UInt8(ascii: "0") && lower(text[1]) == UInt8(ascii: "x") {
      base = 16
      i = 2
    }
    guard i < text.count else { throw FigureError(reason: .empty, at: i) }
    var value: UInt64 = 0
    var digits = 0
    while i < text.count {
      let byte = text[i]
      if let digit = Self.value(byte, base: base) {
        let (shifted, over) = value.multipliedReportingOverflow(by: base)
        let (sum, carry) = shifted.addingReportingOverflow(digit)
        if over || carry { throw FigureError(reason: .tooLarge, at: i) }
        value = sum
        digits += 1
      } else if digits == 0 || (byte != UInt8(ascii: "_") && byte != UInt8(ascii: ",")) {
        break
      }
      i += 1
    }
    guard digits > 0 else { throw FigureError(reason: .notADigit, at: i) }
    return (value, i)
  }

  /// A whole number: `1_000`, `1,000`, `0x3e8`.
  static func number(_ text: Bytes) throws(FigureError) -> UInt64 {
    let (value, length) = try leadingNumber(text)
    if length < text.count {
      throw FigureError(reason: unit(text, from: length) == nil ? .notADigit : .noUnitAllowed, at: length)
    }
    return value
  }

  /// Bytes: `4096`, `2M`, `2MiB`, `2 MiB` (as a quoted word), `0x20_0000`.
  static func size(_ text: Bytes) throws(FigureError) -> ByteCount {
    let (value, length) = try leadingNumber(text)
    guard length < text.count else { return ByteCount(value) }
    guard let shift = unit(text, from: length) else {
      let digit = text[length] >= UInt8(ascii: "0") && text[length] <= UInt8(ascii: "9")
      let letter = lower(text[length]) >= UInt8(ascii: "a") && lower(text[length]) <= UInt8(ascii: "z")
      throw FigureError(reason: digit || !letter ? .notADigit : .unknownUnit, at: length)
    }
    guard value.leadingZeroBitCount >= Int(shift) else { throw FigureError(reason: .tooLarge, at: 0) }
    return ByteCount(value << shift)
  }

  /// The shift of a unit that fills the rest of `text`.
  private static func unit(_ text: Bytes, from start: Int) -> UInt64? {
    var i = start
    while i < text.count && text[i] == UInt8(ascii: " ") { i += 1 }
    guard i < text.count else { return nil }
    let shift: UInt64
    switch lower(text[i]) {
    case UInt8(ascii: "b"): return i + 1 == text.count ? 0 : nil
    case UInt8(ascii: "k"): shift = 10
    case UInt8(ascii: "m"): shift = 20
    case UInt8(ascii: "g"): shift = 30
    case UInt8(ascii: "t"): shift = 40
    default: return nil
    }
    i += 1
    if i == text.count { return shift }
    guard i + 2 == text.count, lower(text[i]) == UInt8(ascii: "i"), lower(text[i + 1]) == UInt8(ascii: "b")
    else { return nil }
    return shift
  }

  /// An address: hexadecimal, with or without `0x`, as the console and a register dump print it.
  static func address(_ text: Bytes) throws(FigureError) -> UInt64 {
    guard text.count > 0 else { throw FigureError(reason: .empty, at: 0) }
    let (value, length) = try leadingNumber(text, base: 16)
    guard length == text.count else { throw FigureError(reason: .notADigit, at: length) }
    return value
  }

  /// `0x10_0000+2M`, or `0x10_0000` with `length` assumed.
  static func range(_ text: Bytes, length assumed: ByteCount?) throws(FigureError)
    -> (start: UInt64, length: ByteCount)
  {
    var plus = 0
    while plus < text.count && text[plus] != UInt8(ascii: "+") { plus += 1 }
    let start = try address(Bytes(rebasing: text[0..<plus]))
    guard plus < text.count else {
      guard let assumed else { throw FigureError(reason: .noPlus, at: plus) }
      return (start, assumed)
    }
    let length: ByteCount
    do throws(FigureError) {
      length = try size(Bytes(rebasing: text[(plus + 1)...]))
    } catch {
      throw FigureError(reason: error.reason, at: error.at + plus + 1)
    }
    guard length > .zero else { throw FigureError(reason: .emptyRange, at: plus + 1) }
    guard start <= UInt64.max - (length.rawValue - 1) else {
      throw FigureError(reason: .tooLarge, at: plus + 1)
    }
    return (start, length)
  }
}

/// Whether `bytes` spell `text`.
func == (bytes: Bytes, text: StaticString) -> Bool {
  guard bytes.count == text.utf8CodeUnitCount else { return false }
  let other = Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount)
  for i in 0..<bytes.count where bytes[i] != other[i] { return false }
  return true
}

extension ShortName {
  /// Whether `bytes` spell this name.
  func isSpelled(by bytes: Bytes) -> Bool {
    guard bytes.count == count else { return false }
    for i in 0..<bytes.count where bytes[i] != self[i] { return false }
    return true
  }
}

/// How many keys would have to be typed differently (the restricted Damerau-Levenshtein distance, as
/// one swap of neighbours is one slip), or `limit` when it is that or more. Words up to 31 bytes.
func slips(_ a: Bytes, _ b: Bytes, limit: Int) -> Int {
  guard a.count < 32, b.count < 32 else { return limit }
  var before = InlineArray<32, UInt8>(repeating: 0)
  var above = InlineArray<32, UInt8>(repeating: 0)
  for j in 0...b.count { above[j] = UInt8(j) }
  var i = 1
  while i <= a.count {
    var row = InlineArray<32, UInt8>(repeating: 0)
    row[0] = UInt8(i)
    var j = 1
    while j <= b.count {
      let (x, y) = (Figures.lower(a[i - 1]), Figures.lower(b[j - 1]))
      var cost = min(min(above[j], row[j - 1]) + 1, above[j - 1] + (x == y ? 0 : 1))
      if i > 1 && j > 1 && x == Figures.lower(b[j - 2]) && y == Figures.lower(a[i - 2]) {
        cost = min(cost, before[j - 2] + 1)
      }
      row[j] = cost
      j += 1
    }
    before = above
    above = row
    i += 1
  }
  return min(limit, Int(above[b.count]))
}
