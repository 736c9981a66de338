// Compression of a block: greedy, with one step of hindsight.
//
// The search looks at two neighbouring positions at a time. It asks the table where their bytes were last seen, and
// compares. A match of fewer than 12 bytes gives way to a longer one at the next position: blocks become 1.7 % smaller,
// for 6 % more time. A match grows backwards over the literals before it. The longer a search finds nothing, the
// larger are its steps, so bytes that can't be compressed are passed quickly.
//
// A page of a program has some 280 sequences and takes about 34,000 instructions. The time goes into branches that
// the processor mispredicts. Variants with conditional moves in their place were slower: they wait for a load where a
// right guess does not.

extension LZ4Block {
  /// Compresses `source` into the start of `target` and returns the block's size, or nil if it does not fit.
  ///
  /// A block never needs more than `source.count + source.count / 255 + 16` bytes. A smaller target finds out early
  /// that a page is not worth its compression. Equal sources give equal blocks, whatever the table held. Nil is also
  /// the answer to a source of more than `largestSource` bytes. After a nil, the contents of `target` are undefined.
  @inline(never)
  package static func compress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer, table: LZ4Table
  ) -> Int? {
    guard source.count <= largestSource else { return nil }
    var writer = LZ4Writer(from: source, to: target)
    // The search looks at two positions behind the one at which it is.
    let lastSearched = source.count &- matchlessEnd &- 2
    guard lastSearched >= 1 else { return writer.finish() }
    table.clear()
    let search = LZ4Search(source, table)
    var position = 1
    while let found = search.match(from: position, notBehind: lastSearched) {
      guard writer.append(search.extended(found, backTo: writer.begin)) else { return nil }
      position = writer.begin
      if position > lastSearched { break }
      search.note(position &- 2)
    }
    return writer.finish()
  }
}

/// A repetition of earlier bytes.
struct LZ4Match {
  /// Where the repetition begins.
  var position: Int
  /// Where its bytes are first.
  var origin: Int
  var length: Int
}

/// The search for matches in a source.
struct LZ4Search {
  private let input: LZ4Source
  private let count: Int
  private let table: LZ4Table

  init(_ source: UnsafeRawBufferPointer, _ table: LZ4Table) {
    input = LZ4Source(source)
    count = source.count
    self.table = table
  }

  /// Finds the next match at `start` or later.
  @inline(always) func match(from start: Int, notBehind last: Int) -> LZ4Match? {
    var position = start
    // The distance to the next pair of positions, in 32nds: one byte more after each 32 pairs without a match.
    var step = 2 * 32
    repeat {
      let bytes = input.eight(at: position)
      let origin = table.exchange(bytes, position)
      let nextBytes = bytes &>> 8
      let nextOrigin = table.exchange(nextBytes, position &+ 1)
      if isMatch(bytes, origin) {
        let match = measured(position, origin)
        return match.length < 12 ? longer(match, nextBytes, nextOrigin) : match
      }
      if isMatch(nextBytes, nextOrigin) {
        let match = measured(position &+ 1, nextOrigin)
        guard match.length < 12 else { return match }
        let third = input.eight(at: position &+ 2)
        return longer(match, third, table.exchange(third, position &+ 2))
      }
      position &+= step &>> 5
      step &+= 1
    } while position <= last
    return nil
  }

  /// Remembers a position that a match has passed.
  @inline(always) func note(_ position: Int) {
    _ = table.exchange(input.eight(at: position), position)
  }

  /// Whether four of `bytes` are at `origin` too.
  @inline(always) private func isMatch(_ bytes: UInt64, _ origin: Int) -> Bool {
    input.four(at: origin) == UInt32(truncatingIfNeeded: bytes)
  }

  /// A match that was found, or one at the next position if that is longer.
  @inline(always) private func longer(_ match: LZ4Match, _ nextBytes: UInt64, _ nextOrigin: Int) -> LZ4Match {
    guard isMatch(nextBytes, nextOrigin) else { return match }
    let next = measured(match.position &+ 1, nextOrigin)
    return next.length > match.length ? next : match
  }

  /// A match of four bytes with the equal bytes behind them, up to eight.
  @inline(always) private func measured(_ position: Int, _ origin: Int) -> LZ4Match {
    let difference = input.eight(at: position &+ 4) ^ input.eight(at: origin &+ 4)
    return LZ4Match(position: position, origin: origin, length: 4 &+ difference.trailingZeroBitCount &>> 3)
  }

  /// A match with all the equal bytes behind it, and those before it from `first` on.
  @inline(always) func extended(_ match: LZ4Match, backTo first: Int) -> LZ4Match {
    var match = match
    let most = count &- LZ4Block.literalsAtEnd &- match.position
    if match.length == 12 { measureFarther(&match, most) }
    match.length = min(match.length, most)
    while match.position > first, match.origin > 0,
      input.byte(at: match.position &- 1) == input.byte(at: match.origin &- 1)
    {
      match.position &-= 1
      match.origin &-= 1
      match.length &+= 1
    }
    return match
  }

  /// Adds the equal bytes that follow a match, at least as far as to the length `most`.
  @inline(always) private func measureFarther(_ match: inout LZ4Match, _ most: Int) {
    while match.position &+ match.length &+ 8 <= count {
      let difference =
        input.eight(at: match.position &+ match.length) ^ input.eight(at: match.origin &+ match.length)
      if difference != 0 {
        match.length &+= difference.trailingZeroBitCount &>> 3
        return
      }
      match.length &+= 8
    }
    while match.length < most,
      input.byte(at: match.position &+ match.length) == input.byte(at: match.origin &+ match.length)
    { match.length &+= 1 }
  }
}

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
    if lengthField < LZ4Block.fullField {
      guard 1 &+ LZ4Block.literalsAtEnd <= capacity &- end else { return false }
    } else {
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
    guard end < capacity else { return nil }
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
