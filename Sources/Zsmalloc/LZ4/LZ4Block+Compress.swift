// Compression of a block: the search for matches, and the sequences that they become.
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
