/// The block that a compression writes.
///
/// Each check looks ahead to the least that must follow, so that it fails exactly when the whole block would not fit.
/// This also leaves space for the coarse copy of literals: behind them come a distance, a token and five literals.
struct LZ4Writer {
  private let input: LZ4Source
  private let count: Int
  private let output: LZ4Target
  private let capacity: Int
  /// Bytes of the block so far.
  private var end = 0
  /// The first byte of the source that no sequence contains yet.
  private(set) var begin = 0

  init(from source: UnsafeRawBufferPointer, to target: UnsafeMutableRawBufferPointer) {
    input = LZ4Source(source)
    count = source.count
    output = LZ4Target(target)
    capacity = target.count
  }

  /// Appends the sequence of a match and the literals before it. Returns whether the block still fits.
  @inline(always) mutating func append(_ match: LZ4Match) -> Bool {
    let literals = match.position &- begin
    let token = end
    let tail = 2 &+ 1 &+ LZ4Block.literalsAtEnd
    end &+= 1
    var field = literals
    if literals < LZ4Block.fullField {
      guard literals &+ tail <= capacity &- end else { return false }
      output.store(input.eight(at: begin), at: end)
      if literals > 8 { output.store(input.eight(at: begin &+ 8), at: end &+ 8) }
    } else {
      guard extend(literals, tail: literals &+ tail) else { return false }
      field = LZ4Block.fullField
      output.copyCoarsely(literals, from: input, at: begin, to: end)
    }
    end &+= literals
    output.store(UInt16(truncatingIfNeeded: match.position &- match.origin), at: end)
    end &+= 2
    var lengthField = match.length &- LZ4Block.shortestMatch
    if lengthField >= LZ4Block.fullField {
      guard extend(lengthField, tail: 1 &+ LZ4Block.literalsAtEnd) else { return false }
      lengthField = LZ4Block.fullField
    }
    output.store(UInt8(truncatingIfNeeded: field &<< 4 | lengthField), at: token)
    begin = match.position &+ match.length
    return true
  }

  /// Appends the literals that are left. Returns the size of the block, or nil if it does not fit.
  mutating func finish() -> Int? {
    let literals = count &- begin
    let token = end
    let field = min(literals, LZ4Block.fullField)
    end &+= 1
    if literals < LZ4Block.fullField {
      guard literals <= capacity &- end else { return nil }
    } else {
      guard extend(literals, tail: literals) else { return nil }
    }
    output.store(UInt8(truncatingIfNeeded: field &<< 4), at: token)
    output.copyExactly(literals, from: input, at: begin, to: end)
    return end &+ literals
  }

  /// Appends the bytes that continue a full field with this value. Returns whether they fit with `tail` behind them.
  @inline(always) private mutating func extend(_ value: Int, tail: Int) -> Bool {
    var rest = value &- LZ4Block.fullField
    guard rest / 255 &+ 1 &+ tail <= capacity &- end else { return false }
    while rest >= 255 {
      output.store(255 as UInt8, at: end)
      end &+= 1
      rest &-= 255
    }
    output.store(UInt8(truncatingIfNeeded: rest), at: end)
    end &+= 1
    return true
  }
}
