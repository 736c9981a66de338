/// The positions at which a compression has last seen each hash of five bytes, in memory that the caller provides.
///
/// Five bytes and not four, because a short match costs nearly what it saves, and ends the search for a longer one.
/// On pages of programs, a table of half the size makes blocks 0.3 % larger, one of twice the size 0.1 % smaller.
package struct LZ4Table {
  private static var indexBits: UInt64 { 12 }

  /// Bytes that a table occupies. They need the alignment of a 16-bit word.
  package static var byteCount: Int { 2 << Int(indexBits) }

  private let positions: UnsafeMutablePointer<UInt16>

  /// Takes `byteCount` bytes of any contents. They belong to one compression at a time.
  package init(_ storage: UnsafeMutableRawPointer) {
    positions = storage.bindMemory(to: UInt16.self, capacity: 1 << Int(Self.indexBits))
  }

  /// Makes 0, the source's first byte, the last position with every hash.
  ///
  /// Without it, a block would depend on what was compressed before. It takes 1.5 % of a page's time. Entries
  /// with a generation in them need no clearing, but a comparison at each look-up: that took 30 %.
  @inline(always) func clear() {
    positions.update(repeating: 0, count: 1 << Int(Self.indexBits))
  }

  /// Returns the last position with the hash of the lowest five of `bytes`, and puts `position` in its place.
  @inline(always) func exchange(_ bytes: UInt64, _ position: Int) -> Int {
    let index = Int(truncatingIfNeeded: ((bytes &<< 24) &* 0x9e37_79b1_85eb_ca87) &>> (64 &- Self.indexBits))
    let last = positions[index]
    positions[index] = UInt16(truncatingIfNeeded: position)
    return Int(last)
  }
}
