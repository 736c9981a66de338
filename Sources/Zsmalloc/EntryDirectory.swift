// Where the entries of a table are: the directory of its leaves, and the header of a leaf. Lookups take no lock.

import MemoryPrimitives
import Synchronization

/// Finds the entries of a table, without a lock.
struct EntryDirectory {
  let words: UnsafeMutablePointer<Atomic<UInt32>>
  private let directMap: DirectMap
  /// Binary logarithm of the entries that a leaf would have without a header.
  let shift: UInt32

  /// Words that name leaves, and words that name frames of further words.
  static var directWords: Int { 16 }
  static var indirectWords: Int { 64 }
  static var wordsInFrame: Int { 1024 }
  static var wordCount: Int { directWords + indirectWords }
  /// The most leaves.
  static var leafLimit: Int { directWords + indirectWords * wordsInFrame }

  /// A directory without leaves, in `wordCount` words of storage.
  init(_ words: UnsafeMutablePointer<Atomic<UInt32>>, shift: UInt32, _ directMap: DirectMap) {
    (self.words, self.shift, self.directMap) = (words, shift, directMap)
    for i in 0..<Self.wordCount { (words + i).initialize(to: Atomic(FrameNumber.none.rawValue)) }
  }

  /// The leaf with that number; nil when there is none.
  @inline(__always) func leaf(_ number: Int) -> EntryLeaf? {
    guard number < Self.leafLimit, let word = word(number) else { return nil }
    let frame = FrameNumber(word.pointee.load(ordering: .acquiring))
    return frame == .none ? nil : EntryLeaf(raw: directMap.pointer(to: frame))
  }

  /// The entry with that index, of `stride` bytes; nil where no leaf is, and for a place in a leaf's header.
  @inline(__always) func entry(_ index: UInt32, stride: Int) -> UnsafeMutableRawPointer? {
    let offset = Int(index & (1 << shift - 1)) &* stride
    guard offset >= EntryLeaf.headerSize, let leaf = leaf(Int(index >> shift)) else { return nil }
    return leaf.raw + offset
  }

  /// The word that names a leaf; nil where its frame of words is missing.
  @inline(__always) func word(_ number: Int) -> UnsafeMutablePointer<Atomic<UInt32>>? {
    if number < Self.directWords { return words + number }
    let (group, position) = (number - Self.directWords).quotientAndRemainder(dividingBy: Self.wordsInFrame)
    let frame = FrameNumber(indirectWord(group).pointee.load(ordering: .acquiring))
    guard frame != .none else { return nil }
    return directMap.pointer(to: frame).assumingMemoryBound(to: Atomic<UInt32>.self) + position
  }

  /// The word that names a frame of words.
  func indirectWord(_ group: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
    words + Self.directWords + group
  }

  // MARK: Lists of leaves

  func link(_ leaf: EntryLeaf, _ number: UInt32, into first: inout UInt32) {
    leaf.previous = EntryTable.noLeaf
    leaf.next = first
    if first != EntryTable.noLeaf { self.leaf(Int(first))?.previous = number }
    first = number
  }

  func unlink(_ leaf: EntryLeaf, from first: inout UInt32) {
    if leaf.previous == EntryTable.noLeaf {
      first = leaf.next
    } else {
      self.leaf(Int(leaf.previous))?.next = leaf.next
    }
    if leaf.next != EntryTable.noLeaf { self.leaf(Int(leaf.next))?.previous = leaf.previous }
  }

  /// Fills a frame of words that name no leaf.
  func initialize(wordsIn frame: FrameNumber) {
    let words = directMap.pointer(to: frame).assumingMemoryBound(to: Atomic<UInt32>.self)
    for i in 0..<Self.wordsInFrame { (words + i).initialize(to: Atomic(FrameNumber.none.rawValue)) }
  }
}

/// A leaf: one frame of entries, the first bytes of which are its header.
struct EntryLeaf {
  let raw: UnsafeMutableRawPointer

  /// Bytes of the header.
  static var headerSize: Int { 16 }

  /// Entries in use.
  var used: UInt16 {
    get { raw.loadUnaligned(as: UInt16.self) }
    nonmutating set { raw.storeBytes(of: newValue, as: UInt16.self) }
  }
  /// The position of the first entry that was used and freed; 0 for none. Each names the next one.
  var firstFree: UInt16 {
    get { raw.loadUnaligned(fromByteOffset: 2, as: UInt16.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 2, as: UInt16.self) }
  }
  /// The position from which on no entry was ever used.
  var untouched: UInt16 {
    get { raw.loadUnaligned(fromByteOffset: 4, as: UInt16.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 4, as: UInt16.self) }
  }
  /// The next and the previous leaf that has a free entry.
  var next: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 8, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 8, as: UInt32.self) }
  }
  var previous: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 12, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 12, as: UInt32.self) }
  }
}
