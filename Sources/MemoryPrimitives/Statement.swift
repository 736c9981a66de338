// A sentence with keyed figures in it, so that a result is described once: a person reads the sentence, a tool gets the
// figures by their keys. The figures keep their order.

/// A line of text some of whose figures have keys, built by interpolation: `"\(key: "intact", count: n, "page") intact."`.
package struct Statement: ExpressibleByStringInterpolation {
  /// Figures that a statement holds at most.
  package static var capacity: Int { 8 }

  /// The answer to a yes-or-no question.
  package enum Truth: UInt8, Sendable { case yes, no }

  /// The value that a tool gets for a key.
  package enum Value {
    /// Nothing is known, or nothing applies.
    case none
    /// A count, or a size in bytes.
    case number(UInt64)
    /// An address or a checksum: a string of so many hexadecimal digits.
    case hex(UInt64, digits: Int)
    /// A yes or a no.
    case truth(Truth)
    /// Plain words without quotes.
    case words(StaticString)
  }

  private struct Figure {
    var key: StaticString
    /// The end of the key, where several figures are of one thing.
    var part: StaticString
    var value: Value
  }

  /// The sentence.
  package private(set) var text = Line()
  private var figures = InlineArray<8, Figure>(repeating: Figure(key: "", part: "", value: .none))
  private var count = 0

  /// Makes a statement without figures.
  package init(stringLiteral text: StaticString) { self.text.append(text) }

  /// Makes a statement of an interpolated literal.
  package init(stringInterpolation: StringInterpolation) { self = stringInterpolation.statement }

  private init() {}

  private mutating func add(_ key: StaticString, part: StaticString = "", _ value: Value) {
    precondition(count < Self.capacity, "a statement has more figures than it holds")
    figures[count] = Figure(key: key, part: part, value: value)
    count += 1
  }

  /// Writes the figures as parts of a JSON object, each behind a comma.
  package func writeFigures(_ sink: (Line) -> Void) {
    for i in 0..<count {
      var part: Line = ",\"\(figures[i].key)\(figures[i].part)\":"
      switch figures[i].value {
      case .none: part.append("null")
      case .number(let value): part.append(decimal: value)
      case .hex(let value, let digits): part.append(line: "\"\(hex: value, digits: digits)\"")
      case .truth(let value): part.append(value == .yes ? "true" : "false")
      case .words(let words): part.append(line: "\"\(words)\"")
      }
      sink(part)
    }
  }

  /// Collects the segments of an interpolated literal.
  package struct StringInterpolation: StringInterpolationProtocol {
    var statement = Statement()
    /// Begins an empty statement.
    package init(literalCapacity: Int, interpolationCount: Int) {}
    /// Appends a segment of the literal.
    @inline(never) package mutating func appendLiteral(_ text: StaticString) { statement.text.append(text) }
    /// Appends words.
    package mutating func appendInterpolation(_ text: StaticString) { statement.text.append(text) }
    /// Appends text for a person.
    package mutating func appendInterpolation(_ text: Line) { statement.text.append(line: text) }
    /// Appends plain decimal digits for a person.
    package mutating func appendInterpolation(_ value: UInt64) { statement.text.append(decimal: value) }
    /// Appends a size for a person.
    package mutating func appendInterpolation(_ size: ByteCount) { statement.text.append(size: size) }
    /// Appends a count for a person.
    package mutating func appendInterpolation(count value: UInt64) { statement.text.append(grouped: value) }
    /// Appends a figure for a tool only.
    package mutating func appendInterpolation(key: StaticString, only value: Value) {
      statement.add(key, value)
    }
    /// Appends a number for a tool only.
    package mutating func appendInterpolation(
      key: StaticString, part: StaticString = "", only value: UInt64
    ) {
      statement.add(key, part: part, .number(value))
    }
    /// Appends a count with commas.
    @inline(never) package mutating func appendInterpolation(key: StaticString, count value: UInt64) {
      statement.text.append(grouped: value)
      statement.add(key, .number(value))
    }
    /// Appends a count with commas and its noun, with an `s` unless the count is one.
    @inline(never) package mutating func appendInterpolation(
      key: StaticString, count value: UInt64, _ noun: StaticString
    ) {
      statement.text.append(line: "\(count: value, noun)")
      statement.add(key, .number(value))
    }
    /// Appends a count with commas, and blanks before it up to `width`.
    @inline(never) package mutating func appendInterpolation(
      key: StaticString, right value: UInt64, _ width: Int
    ) {
      statement.text.append(line: "\(right: "\(count: value)", width)")
      statement.add(key, .number(value))
    }
    /// Appends plain decimal digits.
    package mutating func appendInterpolation(key: StaticString, plain value: UInt64) {
      statement.text.append(decimal: value)
      statement.add(key, .number(value))
    }
    /// Appends a size.
    @inline(never) package mutating func appendInterpolation(key: StaticString, size value: ByteCount) {
      statement.text.append(size: value)
      statement.add(key, .number(value.rawValue))
    }
    /// Appends an address.
    package mutating func appendInterpolation(key: StaticString, _ address: VirtualAddress) {
      appendInterpolation(key: key, hex: address.rawValue, digits: 16)
    }
    /// Appends `0x` and as many groups of four digits as `digits` asks for, more if needed.
    @inline(never) package mutating func appendInterpolation(
      key: StaticString, hex value: UInt64, digits: Int = 4
    ) {
      statement.text.append(hex: value, digits: digits)
      statement.add(key, .hex(value, digits: digits))
    }
  }
}
