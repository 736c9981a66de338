// The LZ4 block format: compression of a page, and decompression that no input can lead out of its buffers.
//
// STRUCTURES. A block is a row of sequences. A sequence is a token, literals, and a match that repeats bytes of the
// output. The token's upper four bits hold the number of literals, its lower four bits the match's length less 4. A
// field of 15 continues in the bytes that follow, as long as they are 255. The match's distance has two bytes, low
// byte first, and is never 0. The last sequence ends with its literals.
//
// The format asks more of a compressor: the last 5 bytes are literals, and no match begins in the last 12. Decoders
// that copy in large steps rely on it. This one does not, and takes blocks that break these two rules.
//
// STATE. None but the table of a compression, which the caller provides. No function allocates, waits or takes a
// lock.
//
// COST. LZ4Block+Compress.swift and LZ4Block+Decompress.swift describe what the time is spent on.
//
// SOURCES. "LZ4 Block Format Description" (lz4/lz4, doc/lz4_Block_format.md, 2022-07-31).

/// Compression and decompression of LZ4 blocks.
package enum LZ4Block {
  /// The most bytes that `compress` takes: a position in the table has 16 bits.
  package static var largestSource: Int { 65536 }

  /// The shortest match.
  static var shortestMatch: Int { 4 }
  /// The last bytes of the source, which are always literals.
  static var literalsAtEnd: Int { 5 }
  /// The last bytes of the source, in which no match begins.
  static var matchlessEnd: Int { 12 }
  /// The value of a token's field that continues in further bytes.
  static var fullField: Int { 15 }
}

/// The fault of a block that can't be decoded.
package enum LZ4Error: UInt8, Error {
  /// The block ends within a sequence, or with a match.
  case truncated
  /// The output does not fit into the target.
  case targetTooSmall
  /// A match's distance is 0, or leads to before the output's first byte.
  case wrongDistance
}
