// Checks of the codec on any bytes, that tests and fuzzers share. A check returns a description of its first
// complaint, and nil without one.

import Zsmalloc

/// The codec, over guarded buffers.
final class LZ4Checks {
  private let source: LZ4Guarded
  private let rest: LZ4Guarded
  private let target: LZ4Guarded
  private let storage: UnsafeMutableRawPointer

  /// Prepares for sources, blocks and targets of up to `count` bytes.
  init(_ count: Int) {
    let most = count + count / 255 + 16
    source = LZ4Guarded(most)
    rest = LZ4Guarded(most)
    target = LZ4Guarded(most)
    storage = .allocate(byteCount: LZ4Table.byteCount, alignment: 16)
    fillTable(1)
  }

  deinit { storage.deallocate() }

  /// Leaves something in the table, as another compression would.
  func fillTable(_ seed: UInt64) {
    let words = storage.assumingMemoryBound(to: UInt64.self)
    var state = seed
    for index in 0..<LZ4Table.byteCount / 8 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      words[index] = state
    }
  }

  /// The block of `bytes`, or nil if it needs more than `capacity` bytes.
  func compress(_ bytes: [UInt8], capacity: Int? = nil, at edge: LZ4Guarded.Edge = .end) -> [UInt8]? {
    let capacity = capacity ?? bytes.count + bytes.count / 255 + 16
    let (count, output) = target.with(capacity: capacity, at: edge) { target in
      source.with(bytes, at: edge) {
        LZ4Block.compress($0, into: target, table: LZ4Table(self.storage))
      }
    }
    return count.map { Array(output[..<$0]) }
  }

  /// The output of a block that begins with `block` and continues with `more`, or the error.
  func decompress(
    _ block: [UInt8], _ more: [UInt8]? = nil, capacity: Int, at edge: LZ4Guarded.Edge = .end
  ) -> Result<[UInt8], LZ4Error> {
    let (result, output) = target.with(capacity: capacity, at: edge) { target in
      Result<Int, LZ4Error> { () throws(LZ4Error) in
        try source.with(block, at: edge) { (first) throws(LZ4Error) in
          guard let more else { return try LZ4Block.decompress(first, into: target) }
          return try rest.with(more, at: edge) { (second) throws(LZ4Error) in
            try LZ4Block.decompress(first, continuedBy: second, into: target)
          }
        }
      }
    }
    return result.map { Array(output[..<$0]) }
  }

  /// Decodes any bytes, whole and cut in two at `cuts`, and compares with the model.
  func checkDecoding(_ block: [UInt8], capacity: Int, cuts: [Int], at edge: LZ4Guarded.Edge = .end) -> String?
  {
    let expected = LZ4Model(decoding: block, capacity: capacity)?.output
    let whole = decompress(block, capacity: capacity, at: edge)
    if (try? whole.get()) != expected {
      return "\(block) into \(capacity) bytes: \(whole), and by the model \(String(describing: expected))"
    }
    for cut in cuts {
      let parts = decompress(
        Array(block[..<cut]), Array(block[cut...]), capacity: capacity, at: edge)
      if parts != whole { return "\(block) into \(capacity) bytes, cut at \(cut): \(parts), whole \(whole)" }
    }
    return nil
  }

  /// Compresses, and checks the block by the model, by the codec and against the format's rules for its end.
  func checkRoundTrip(_ bytes: [UInt8], at edge: LZ4Guarded.Edge = .end) -> String? {
    guard let block = compress(bytes, at: edge) else { return "\(bytes): no block" }
    guard let model = LZ4Model(decoding: block, capacity: bytes.count), model.output == bytes else {
      return "\(bytes): the model does not restore them from \(block)"
    }
    guard decompress(block, capacity: bytes.count, at: edge) == .success(bytes) else {
      return "\(bytes): not restored from \(block)"
    }
    if let last = model.matches.last,
      last.start + last.length > bytes.count - 5 || last.start > bytes.count - 12
    {
      return "\(bytes): the match at \(last.start) is too near the end in \(block)"
    }
    guard compress(bytes, capacity: block.count, at: edge) == block else {
      return "\(bytes): no block, or another, in just enough capacity"
    }
    if compress(bytes, capacity: block.count - 1, at: edge) != nil {
      return "\(bytes): a block in too little capacity"
    }
    return nil
  }
}
