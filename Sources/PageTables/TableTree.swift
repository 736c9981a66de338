// The tree of tables as plain data under its lock. Each operation is one step over a few hundred entries at most, in
// one table, and calls nothing outside. The head of PageMap.swift explains it.

import MemoryPrimitives

/// The contents for a vacant range.
enum Filling {
  /// Leaves for consecutive physical addresses, from this one on.
  case run(UInt64, Protection, CacheAttribute, LeafSizes, RangeTag)
  /// Leaves of 4 KiB for frames in any order.
  case frames(UnsafePointer<FrameNumber>, Protection, CacheAttribute, RangeTag)
  /// Marks that keep the places for a later map.
  case marks
  /// The places of a page window, closed.
  case windows
}

/// The change to a range that is mapped.
enum Change {
  case protection(Protection)
  case attribute(CacheAttribute)
}

/// How a step ended.
enum Step {
  /// This many pages from the start of the step are done.
  case done(UInt64)
  /// Nothing was changed: the step needs this many preallocated tables.
  case needs(Int)
  /// Nothing was changed: a large leaf is to stand where an unlinked table still keeps its entry.
  case needsFreeEntry
  /// Nothing was changed: the page at this offset from the start is not in the expected state.
  case conflict(UInt64)
}

/// The entry at each level of a walk.
struct Path {
  private var slots: InlineArray<6, UInt> = .init(repeating: 0)
  /// The level at which the walk ended.
  var level = 0

  subscript(level: Int) -> Slot {
    get { Slot(UnsafeMutableRawPointer(bitPattern: slots[level]).unsafelyUnwrapped) }
    set { slots[level] = UInt(bitPattern: newValue.pointer) }
  }
  var slot: Slot { self[level] }
}

/// Frames that a step unmapped, as runs.
struct Reclaimed {
  static var capacity: Int { 64 }
  var count = 0
  var starts: InlineArray<64, UInt64> = .init(repeating: 0)
  var lengths: InlineArray<64, UInt64> = .init(repeating: 0)

  /// Adds frames. Returns false when the capacity is reached.
  mutating func add(_ address: UInt64, pages: UInt64) -> Bool {
    if count > 0, starts[count - 1] + lengths[count - 1] << Page.shift == address {
      lengths[count - 1] += pages
      return true
    }
    guard count < Self.capacity else { return false }
    starts[count] = address
    lengths[count] = pages
    count += 1
    return true
  }
}

/// Whether a step unlinked a table; if so, an invalidation must follow.
enum Unlinked { case none, some }

struct TableTree {
  let directMap: DirectMap
  let levels: Int
  let largestLeaf: Int
  let root: FrameNumber
  var source: FrameSource
  /// Tables in the tree, the root included.
  var tableCount: UInt64 = 1
  /// Leaves present or made not present, by level.
  var leafCount: InlineArray<4, UInt64> = .init(repeating: 0)
  /// One for each splittable leaf.
  var reserved: FrameStack
  /// Changes that run now, which rely on the boundaries between leaves that they made.
  var changing = 0
  /// The first and last address of leaves whose joining was deferred for that reason.
  var deferredJoin: (UInt64, UInt64)?
  /// The number of the next invalidation that unlinked tables wait for.
  var nextInvalidation: UInt64 = 0

  // MARK: Walking

  @inline(__always) static func shift(_ level: Int) -> UInt64 { 3 &+ 9 &* UInt64(truncatingIfNeeded: level) }
  /// Pages that an entry of `level` covers.
  @inline(__always) static func span(_ level: Int) -> UInt64 { 1 << (9 * UInt64(level - 1)) }
  @inline(__always) static func index(_ address: UInt64, _ level: Int) -> Int {
    Int(truncatingIfNeeded: address >> shift(level)) & 511
  }
  @inline(__always) static func isAligned(_ address: UInt64, _ level: Int) -> Bool {
    address & (1 << shift(level) - 1) == 0
  }

  /// `address` with the bits above those that `levels` levels translate like the highest of them.
  @inline(__always) static func canonical(_ address: UInt64, _ levels: Int) -> UInt64 {
    let unused = 64 &- (shift(levels) &+ 9)
    return UInt64(bitPattern: Int64(bitPattern: address &<< unused) &>> Int64(bitPattern: unused))
  }

  @inline(__always) func slot(_ table: FrameNumber, _ index: Int) -> Slot {
    Slot(directMap.pointer(to: table)) + index
  }

  /// Walks towards `address` down to level `lowest`, or to the first entry that is no table.
  func descend(_ address: UInt64, to lowest: Int = 1) -> Path {
    var path = Path()
    var level = levels
    var table = root
    while true {
      let slot = slot(table, Self.index(address, level))
      path[level] = slot
      path.level = level
      let entry = slot.entry
      if level == lowest || !entry.isTable(at: level) { return path }
      table = entry.tableFrame
      level -= 1
    }
  }

  /// The next canonical address; nil behind the last one.
  func canonical(behind address: UInt64, _ pages: UInt64) -> UInt64? {
    let next = address &+ pages << Page.shift
    if next < address || next == 0 { return nil }
    let half = UInt64(1) << (Self.shift(levels) + 8)
    return next == half ? ~(half - 1) : next
  }

  // MARK: Counting

  /// Adds `change` to the count of used entries in the table of `level` on `path`.
  func adjustUsed(_ path: Path, _ level: Int, by change: Int) {
    guard level < levels else { return }
    let slot = path[level + 1]
    slot.store(slot.entry.withUsed(UInt64(Int(slot.entry.used) + change)))
  }
}
