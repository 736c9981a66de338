// A line of text, built in place. The console, the fault reports and the replay's summary use it on bare metal and on the
// host, where they must print the same.
//
// `String` needs an allocator; this is a fixed buffer that an interpolated literal fills. Text beyond its capacity is cut
// off.

/// Up to 320 bytes of text, built by interpolation: `"frames \(count) free, at \(hex: base)"`.
package struct Line: ExpressibleByStringInterpolation {
  /// Bytes that a line holds at most.
  package static var capacity: Int { 320 }
  var storage: InlineArray<320, UInt8> = .init(repeating: 0)
  /// Bytes of text.
  package private(set) var count = 0

  /// Makes an empty line.
  package init() {}

  /// Makes a line of a literal.
  package init(stringLiteral text: StaticString) { append(text) }

  /// Makes a line of a static text.
  package init(_ text: StaticString) { append(text) }

  /// Makes a line of an interpolated literal.
  package init(stringInterpolation: StringInterpolation) { self = stringInterpolation.line }

  /// Collects the segments of an interpolated literal.
  package struct StringInterpolation: StringInterpolationProtocol {
    /// The text so far.
    package var line = Line()
    /// Begins an empty text.
    package init(literalCapacity: Int, interpolationCount: Int) {}
    /// Appends a segment of the literal.
    @inline(never) package mutating func appendLiteral(_ text: StaticString) { line.append(text) }
    package mutating func appendInterpolation(_ text: StaticString) { line.append(text) }
    /// Appends a name.
    package mutating func appendInterpolation(_ name: ShortName) { line.append(name: name) }
    /// Appends another line.
    package mutating func appendInterpolation(_ text: Line) { line.append(line: text) }
    /// Plain decimal digits.
    package mutating func appendInterpolation(_ value: UInt64) { line.append(decimal: value) }
    /// Plain decimal digits.
    package mutating func appendInterpolation(_ value: UInt32) { line.append(decimal: UInt64(value)) }
    /// Plain decimal digits, with a sign below zero.
    package mutating func appendInterpolation(_ value: Int) { line.append(signed: value) }
    /// The number of a frame in decimal.
    package mutating func appendInterpolation(_ frame: FrameNumber) {
      line.append(decimal: UInt64(frame.rawValue))
    }
    /// Decimal with a comma after each thousand.
    package mutating func appendInterpolation(count value: UInt64) { line.append(grouped: value) }
    /// A count and its noun, with an `s` unless the count is one: `2 frames`.
    package mutating func appendInterpolation(count value: UInt64, _ noun: StaticString) {
      line.append(grouped: value)
      line.append(" ")
      line.append(noun)
      if value != 1 { line.append("s") }
    }
    /// Three significant digits and a unit: `3.62 MiB`.
    package mutating func appendInterpolation(_ size: ByteCount) { line.append(size: size) }
    /// `0x` and as many groups of four digits as `digits` asks for, more if needed.
    package mutating func appendInterpolation(hex value: UInt64, digits: Int = 4) {
      line.append(hex: value, digits: digits)
    }
    /// 16 digits in four groups.
    package mutating func appendInterpolation(_ address: VirtualAddress) {
      line.append(hex: address.rawValue, digits: 16)
    }
    /// 12 digits in three groups, or as many as needed.
    package mutating func appendInterpolation(_ address: PhysicalAddress) {
      line.append(hex: address.rawValue, digits: 12)
    }
    /// `text` with blanks before it up to `width`.
    package mutating func appendInterpolation(right text: Line, _ width: Int) {
      line.append(blanks: width - text.count)
      line.append(line: text)
    }
    /// `text` with blanks behind up to `width`.
    package mutating func appendInterpolation(left text: Line, _ width: Int) {
      line.append(line: text)
      line.append(blanks: width - text.count)
    }
  }

  /// The byte at `index`, which is below `count`.
  package subscript(index: Int) -> UInt8 {
    precondition(index >= 0 && index < count)
    return storage[index]
  }

  /// Runs `body` on the bytes of the text.
  package func withBytes<R>(_ body: (UnsafeBufferPointer<UInt8>) -> R) -> R {
    withUnsafePointer(to: storage) {
      $0.withMemoryRebound(to: UInt8.self, capacity: Self.capacity) {
        body(UnsafeBufferPointer(start: $0, count: count))
      }
    }
  }

  /// Appends a byte; has no effect when the line is full.
  package mutating func append(byte: UInt8) {
    guard count < Self.capacity else { return }
    storage[count] = byte
    count += 1
  }

  /// Appends a static text.
  @inline(never) package mutating func append(_ text: StaticString) {
    for byte in UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount) {
      append(byte: byte)
    }
  }

  /// Appends a name.
  package mutating func append(name: ShortName) {
    for i in 0..<name.count { append(byte: name[i]) }
  }

  /// Appends another line.
  @inline(never) package mutating func append(line other: Line) {
    for i in 0..<other.count { append(byte: other.storage[i]) }
  }

  /// Appends a byte; has no effect when the line is full.
  package mutating func append(bytes: UnsafeBufferPointer<UInt8>) {
    for byte in bytes { append(byte: byte) }
  }

  /// Appends blanks; none for a negative number.
  package mutating func append(blanks: Int) {
    guard blanks > 0 else { return }
    for _ in 0..<blanks { append(byte: UInt8(ascii: " ")) }
  }

  /// Appends plain decimal digits.
  @inline(never) package mutating func append(decimal value: UInt64) { append(digits: value, comma: false) }

  /// Appends decimal digits with a comma after each thousand.
  @inline(never) package mutating func append(grouped value: UInt64) { append(digits: value, comma: true) }

  /// Appends plain decimal digits, with a sign below zero.
  package mutating func append(signed value: Int) {
    if value < 0 { append(byte: UInt8(ascii: "-")) }
    append(decimal: UInt64(value.magnitude))
  }

  private mutating func append(digits value: UInt64, comma: Bool) {
    var power: UInt64 = 1
    var position = 0
    while value / power >= 10 {
      power *= 10
      position += 1
    }
    while true {
      append(byte: UInt8(ascii: "0") + UInt8(value / power % 10))
      if position == 0 { return }
      if comma && position % 3 == 0 { append(byte: UInt8(ascii: ",")) }
      position -= 1
      power /= 10
    }
  }

  /// Appends `0x` and at least `digits` digits in groups of four.
  @inline(never) package mutating func append(hex value: UInt64, digits: Int) {
    append("0x")
    let needed = max(1, (64 - value.leadingZeroBitCount + 3) / 4)
    let shown = min(16, (max(digits, needed) + 3) / 4 * 4)
    for position in stride(from: shown - 1, through: 0, by: -1) {
      let digit = UInt8(truncatingIfNeeded: value >> UInt64(position * 4)) & 15
      append(byte: digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") - 10 + digit)
      if position % 4 == 0 && position != 0 { append(byte: UInt8(ascii: "_")) }
    }
  }

  /// Appends `0x9a`, with as few digits as possible.
  package mutating func append(offset value: UInt64) {
    append("0x")
    var shift = max(0, (63 - value.leadingZeroBitCount) / 4 * 4)
    while shift >= 0 {
      let digit = UInt8(truncatingIfNeeded: value >> UInt64(shift)) & 15
      append(byte: digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") - 10 + digit)
      shift -= 4
    }
  }

  /// Removes the text after the first `length` bytes.
  package mutating func truncate(to length: Int) { count = min(count, max(0, length)) }

  /// Appends three significant digits; a whole number of the unit without a point, so that `2 MiB` is exact and
  /// `2.00 MiB` is not.
  @inline(never) package mutating func append(size: ByteCount) {
    var shift: UInt64 = 0
    while shift < 40 && size.rawValue >> (shift + 10) != 0 { shift += 10 }
    // A value that rounds up to 1024 of a unit is one of the next.
    if shift > 0 && shift < 40 && size.rawValue >> shift == 1023
      && size.rawValue >> (shift - 1) & 1 != 0
    {
      shift += 10
    }
    if shift == 0 || size.rawValue & ((1 << shift) - 1) == 0 {
      append(decimal: size.rawValue >> shift)
    } else {
      let (whole, rest) = (size.rawValue >> shift, size.rawValue & ((1 << shift) - 1))
      var places: UInt64 = whole >= 100 ? 1 : whole >= 10 ? 10 : 100
      var scaled = Self.rounded(whole, rest, shift, places)
      if scaled >= 1000 && places > 1 {
        places /= 10
        scaled = Self.rounded(whole, rest, shift, places)
      }
      append(decimal: scaled / places)
      if places > 1 {
        append(byte: UInt8(ascii: "."))
        let fraction = scaled % places
        if places == 100 && fraction < 10 { append(byte: UInt8(ascii: "0")) }
        append(decimal: fraction)
      }
    }
    switch shift {
    case 0: append(" B")
    case 10: append(" KiB")
    case 20: append(" MiB")
    case 30: append(" GiB")
    default: append(" TiB")
    }
  }

  /// Rounds `whole` and `rest` of `1 << shift` to units of one `places`-th.
  private static func rounded(_ whole: UInt64, _ rest: UInt64, _ shift: UInt64, _ places: UInt64) -> UInt64 {
    whole * places + ((rest >> (shift - 10)) * places + 512) >> 10
  }
}
