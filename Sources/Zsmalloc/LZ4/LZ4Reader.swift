/// The input of a decompression, which may continue in other memory.
struct LZ4Reader {
  /// The memory that is being read, the offset of its next byte, and its size.
  private(set) var source: LZ4Source
  var at = 0
  private(set) var end: Int
  private var rest: UnsafeRawBufferPointer

  init(_ source: UnsafeRawBufferPointer, continuedBy rest: UnsafeRawBufferPointer) {
    self.source = LZ4Source(source)
    end = source.count
    self.rest = rest
  }

  /// Decodes one sequence with every check. Returns false if it was the last one.
  @inline(never) mutating func decodeSequence(
    into output: LZ4Output, _ written: inout Int
  ) throws(LZ4Error) -> Bool {
    let token = try nextByte()
    let literals = try value(of: token &>> 4)
    guard literals <= output.capacity &- written else { throw .targetTooSmall }
    try copyLiterals(literals, to: output.target, at: written)
    written &+= literals
    guard hasMore() else { return false }
    let distance = try nextByte() | nextByte() &<< 8
    guard output.reaches(back: distance, from: written) else { throw .wrongDistance }
    let length = try value(of: token & LZ4Block.fullField) &+ LZ4Block.shortestMatch
    guard length <= output.capacity &- written else { throw .targetTooSmall }
    output.target.repeatExactly(length, distance: distance, to: written)
    written &+= length
    return true
  }

  private mutating func copyLiterals(_ count: Int, to target: LZ4Target, at place: Int) throws(LZ4Error) {
    var done = 0
    while done < count {
      guard hasMore() else { throw .truncated }
      let now = min(count &- done, end &- at)
      target.copyExactly(now, from: source, at: at, to: place &+ done)
      at &+= now
      done &+= now
    }
  }

  /// The value of a token's field, which continues in the input if the field is full.
  private mutating func value(of field: Int) throws(LZ4Error) -> Int {
    var value = field
    var more = field == LZ4Block.fullField ? 255 : 0
    while more == 255 {
      more = try nextByte()
      value &+= more
    }
    return value
  }

  private mutating func nextByte() throws(LZ4Error) -> Int {
    guard hasMore() else { throw .truncated }
    let byte = source.byte(at: at)
    at &+= 1
    return Int(byte)
  }

  /// Whether there is a byte left. Goes on to the rest of the input at the end of its first part.
  private mutating func hasMore() -> Bool {
    if at < end { return true }
    if rest.isEmpty { return false }
    source = LZ4Source(rest)
    at = 0
    end = rest.count
    rest = UnsafeRawBufferPointer(start: nil, count: 0)
    return true
  }
}
