// A name of up to 31 bytes, held in place. Names of caches and types come from traces as well as from source, so
// `StaticString` is not enough, and `String` needs an allocator.

/// Up to 31 bytes of text, held in place.
@frozen public struct ShortName: Equatable, Sendable, ExpressibleByStringLiteral {
  @usableFromInline var words: InlineArray<4, UInt64>

  /// The longest name, in bytes. A longer one loses its end.
  public static var capacity: Int { 31 }

  /// Makes a name of a static text.
  public init(_ text: StaticString) {
    self.init(bytes: UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
  }

  /// Makes a name of a literal.
  public init(stringLiteral text: StaticString) { self.init(text) }

  /// Makes a name of the first 31 of `bytes`. A byte that is not printable ASCII becomes `?`.
  public init(bytes: UnsafeBufferPointer<UInt8>) {
    words = InlineArray(repeating: 0)
    let length = min(bytes.count, Self.capacity)
    for i in 0..<length {
      let byte = bytes[i] >= 0x20 && bytes[i] < 0x7f ? bytes[i] : UInt8(ascii: "?")
      words[i / 8] |= UInt64(byte) << UInt64(i % 8 * 8)
    }
    words[3] |= UInt64(length) << 56
  }

  /// Bytes of text.
  public var count: Int { Int(words[3] >> 56) }

  /// The byte at `index`, below `count`.
  public subscript(index: Int) -> UInt8 {
    UInt8(truncatingIfNeeded: words[index / 8] >> UInt64(index % 8 * 8))
  }

  public static func == (a: ShortName, b: ShortName) -> Bool {
    a.words[0] == b.words[0] && a.words[1] == b.words[1] && a.words[2] == b.words[2]
      && a.words[3] == b.words[3]
  }
}
