// A decoder of LZ4 blocks that is slow and plainly right, to compare the codec's with: the format's description, a
// statement for each of its sentences. Fuzzers use it too, so this file imports nothing.

/// A block, decoded.
struct LZ4Model {
  /// A match: where the output repeats earlier bytes, and how many.
  struct Match {
    var start: Int
    var length: Int
    var distance: Int
  }

  private(set) var output: [UInt8] = []
  private(set) var matches: [Match] = []
  private var unread: ArraySlice<UInt8>

  /// Decodes a block. Returns nil if it is malformed, or has more than `capacity` bytes of output.
  init?(decoding block: [UInt8], capacity: Int) {
    unread = block[...]
    while true {
      guard let token = unread.popFirst() else { return nil }
      guard let literals = value(of: token / 16), literals <= unread.count else { return nil }
      guard literals <= capacity - output.count else { return nil }
      output += unread.prefix(literals)
      unread = unread.dropFirst(literals)
      if unread.isEmpty { return }
      guard let low = unread.popFirst(), let high = unread.popFirst() else { return nil }
      let distance = Int(low) + Int(high) * 256
      guard distance > 0, distance <= output.count else { return nil }
      guard let more = value(of: token % 16), more + 4 <= capacity - output.count else { return nil }
      matches.append(Match(start: output.count, length: more + 4, distance: distance))
      for _ in 0..<more + 4 { output.append(output[output.count - distance]) }
    }
  }

  /// The value of a token's field, with the bytes that continue it. Nil if they do not end.
  private mutating func value(of field: UInt8) -> Int? {
    var value = Int(field)
    guard field == 15 else { return value }
    while let more = unread.popFirst() {
      value += Int(more)
      if more < 255 { return value }
    }
    return nil
  }
}
