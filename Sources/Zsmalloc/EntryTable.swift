// A table of entries of one size that grows and shrinks by single frames: handle cells, and descriptors of zspages.
//
// A leaf is one frame of entries; the space of its first entries is its header. A directory of words finds the frame
// of a leaf: 16 words name leaves, and 64 name frames of 1024 such words, which a small table never needs. An entry
// keeps its address for its whole life, and a lookup takes no lock.
//
// The frame of a leaf that has become empty is released at once. Where a reader without a lock may still look at it,
// the owner of the table asks for it when it has made sure that none does.

import MemoryPrimitives
import Synchronization

/// The entries of a table: plain data under the lock of its owner.
struct EntryTable {
  let directory: EntryDirectory
  /// Bytes of an entry.
  let stride: Int
  /// The two bytes of a free entry that name the next free one.
  private let linkOffset: Int
  private let directMap: DirectMap
  /// The first leaf that has a free entry and one in use.
  private var available = Self.noLeaf
  /// The first leaf that has no entry in use.
  private var empty = Self.noLeaf
  /// Leaves that are named by the directory's own words, and by each frame of words.
  private var held: InlineArray<65, UInt16> = .init(repeating: 0)
  /// No lower position of the group is free.
  private var lowest: InlineArray<65, UInt16> = .init(repeating: 0)
  /// Entries in use.
  private(set) var count = 0
  /// Leaves.
  private(set) var leaves = 0
  /// Leaves and frames of words.
  private(set) var frames = 0

  static var noLeaf: UInt32 { .max }

  /// A table without entries of `stride` bytes, a power of two, in `EntryDirectory.wordCount` words of storage.
  init(
    _ words: UnsafeMutablePointer<Atomic<UInt32>>, stride: Int, linkOffset: Int, _ directMap: DirectMap
  ) {
    directory = EntryDirectory(
      words, shift: UInt32((Int(Page.size) / stride).trailingZeroBitCount), directMap)
    (self.stride, self.linkOffset, self.directMap) = (stride, linkOffset, directMap)
  }

  /// The position of the first entry of a leaf, behind its header.
  private var firstPosition: UInt16 { UInt16((EntryLeaf.headerSize + stride - 1) / stride) }
  private var end: UInt16 { UInt16(Int(Page.size) / stride) }
  private var capacity: UInt16 { end - firstPosition }
  /// The index behind that of the last entry: those of missing leaves and headers lie below it too.
  var indexEnd: UInt32 {
    var last = 0
    for group in 0...EntryDirectory.indirectWords where held[group] > 0 {
      last = EntryDirectory.directWords + group * EntryDirectory.wordsInFrame
    }
    return UInt32(last) << directory.shift
  }

  /// The entry with that index; nil where no leaf is.
  @inline(__always) subscript(index: UInt32) -> UnsafeMutableRawPointer? {
    directory.entry(index, stride: stride)
  }

  /// The frames that `allocate` would use; nil when the table has as many leaves as it may have.
  var framesNeeded: Int? {
    if available != Self.noLeaf || empty != Self.noLeaf { return 0 }
    guard let number = unusedLeafNumber else { return nil }
    return directory.word(number) == nil ? 2 : 1
  }

  /// Allocates an entry, with unknown contents but for those that were never used, which are zero. `frames` has as
  /// many zeroed frames as `framesNeeded` says. Constant, but for one leaf in a frame's worth of entries.
  mutating func allocate(_ frames: inout SpareFrames) -> UInt32 {
    if available == Self.noLeaf { addLeaf(&frames) }
    let number = available
    let leaf = leaf(number)
    var position = leaf.firstFree
    if position != 0 {
      leaf.firstFree = (leaf.raw + (Int(position) * stride + linkOffset)).loadUnaligned(as: UInt16.self)
    } else {
      position = leaf.untouched
      leaf.untouched = position + 1
    }
    leaf.used += 1
    if leaf.used == capacity { directory.unlink(leaf, from: &available) }
    count += 1
    return number << directory.shift | UInt32(position)
  }

  /// Frees an entry. With `.atOnce`, answers the frame of its leaf, if that has become empty and isn't the only one.
  /// Constant.
  mutating func free(_ index: UInt32, releasing release: LeafRelease) -> FrameNumber? {
    let number = index >> directory.shift
    let leaf = leaf(number)
    let position = UInt16(index & (1 << directory.shift - 1))
    (leaf.raw + (Int(position) * stride + linkOffset)).storeBytes(of: leaf.firstFree, as: UInt16.self)
    leaf.firstFree = position
    if leaf.used == capacity { directory.link(leaf, number, into: &available) }
    leaf.used -= 1
    count -= 1
    guard leaf.used == 0 else { return nil }
    directory.unlink(leaf, from: &available)
    if release == .atOnce && leaves > 1 { return removeLeaf(Int(number)) }
    directory.link(leaf, number, into: &empty)
    return nil
  }

  /// When an empty leaf is released.
  enum LeafRelease { case atOnce, onRequest }

  /// Removes an empty leaf from the directory, and answers its frame; nil when there is none. A reader that has
  /// looked it up before may still read it.
  mutating func releaseEmptyLeaf() -> FrameNumber? {
    guard empty != Self.noLeaf else { return nil }
    let number = empty
    let leaf = leaf(number)
    directory.unlink(leaf, from: &empty)
    return removeLeaf(Int(number))
  }

  /// Removes one empty leaf, or a frame of words that names none, and answers its frame; nil when there is none left.
  /// For a table without entries.
  mutating func releaseFrame() -> FrameNumber? {
    precondition(count == 0)
    if let frame = releaseEmptyLeaf() { return frame }
    for group in 0..<EntryDirectory.indirectWords {
      let word = directory.indirectWord(group)
      let frame = FrameNumber(word.pointee.load(ordering: .relaxed))
      if frame == .none { continue }
      word.pointee.store(FrameNumber.none.rawValue, ordering: .releasing)
      frames -= 1
      return frame
    }
    return nil
  }

  // MARK: Leaves

  private static func group(of number: Int) -> Int {
    number < EntryDirectory.directWords
      ? 0 : 1 + (number - EntryDirectory.directWords) / EntryDirectory.wordsInFrame
  }

  private static func position(of number: Int) -> UInt16 {
    UInt16(
      number < EntryDirectory.directWords
        ? number : (number - EntryDirectory.directWords) % EntryDirectory.wordsInFrame)
  }

  /// The lowest number that no leaf has. A step a group, and one for each word of a group that has one free.
  private var unusedLeafNumber: Int? {
    for group in 0...EntryDirectory.indirectWords {
      let first = group == 0 ? 0 : EntryDirectory.directWords + (group - 1) * EntryDirectory.wordsInFrame
      let size = group == 0 ? EntryDirectory.directWords : EntryDirectory.wordsInFrame
      if Int(held[group]) == size { continue }
      if held[group] == 0 { return first }
      for number in (first + Int(lowest[group]))..<(first + size) where directory.leaf(number) == nil {
        return number
      }
    }
    return nil
  }

  /// A leaf that exists.
  private func leaf(_ number: UInt32) -> EntryLeaf {
    guard let leaf = directory.leaf(Int(number)) else { preconditionFailure("a leaf is missing") }
    return leaf
  }

  private mutating func addLeaf(_ spare: inout SpareFrames) {
    if empty != Self.noLeaf {
      let number = empty
      let leaf = leaf(number)
      directory.unlink(leaf, from: &empty)
      return directory.link(leaf, number, into: &available)
    }
    guard let number = unusedLeafNumber else { preconditionFailure("the table is full") }
    let group = Self.group(of: number)
    if directory.word(number) == nil {
      let frame = spare.pop()
      directory.initialize(wordsIn: frame)
      directory.indirectWord(group - 1).pointee.store(frame.rawValue, ordering: .releasing)
      frames += 1
    }
    let frame = spare.pop()
    let leaf = EntryLeaf(raw: directMap.pointer(to: frame))
    leaf.untouched = firstPosition
    directory.word(number)?.pointee.store(frame.rawValue, ordering: .releasing)
    held[group] += 1
    lowest[group] = Self.position(of: number) + 1
    frames += 1
    leaves += 1
    directory.link(leaf, UInt32(number), into: &available)
  }

  private mutating func removeLeaf(_ number: Int) -> FrameNumber? {
    guard let word = directory.word(number) else { return nil }
    let frame = FrameNumber(word.pointee.load(ordering: .relaxed))
    word.pointee.store(FrameNumber.none.rawValue, ordering: .releasing)
    let group = Self.group(of: number)
    held[group] -= 1
    lowest[group] = min(lowest[group], Self.position(of: number))
    frames -= 1
    leaves -= 1
    return frame
  }

  // MARK: Check

  /// Whether leaves, entries and frames are as many as the counts say. Reads all leaves.
  func countsAreRight() -> Bool {
    var (entries, found, words, free) = (0, 0, 0, 0)
    for group in 0..<EntryDirectory.indirectWords
    where directory.indirectWord(group).pointee.load(ordering: .relaxed) != FrameNumber.none.rawValue {
      words += 1
    }
    for number in 0..<Int(indexEnd >> directory.shift) {
      guard let leaf = directory.leaf(number) else { continue }
      found += 1
      entries += Int(leaf.used)
      if leaf.used < capacity { free += 1 }
    }
    let listed =
      listedLeaves(from: available, atMost: free, isEmpty: false)
      + listedLeaves(from: empty, atMost: free, isEmpty: true)
    return entries == count && found == leaves && found + words == frames && listed == free
  }
}

extension EntryTable {
  private func listedLeaves(from first: UInt32, atMost limit: Int, isEmpty: Bool) -> Int {
    var (at, listed) = (first, 0)
    while at != Self.noLeaf, listed <= limit, let leaf = directory.leaf(Int(at)), (leaf.used == 0) == isEmpty
    {
      listed += 1
      at = leaf.next
    }
    return listed
  }
}
