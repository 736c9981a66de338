// The tree of tables as plain data under its lock: each operation here is one step, a few hundred
// entries at most in one table, and calls nothing outside. PageMap.swift holds the theory.

import MemoryPrimitives

/// What to write into a range that is vacant.
enum Filling {
  /// Leaves for consecutive physical addresses, from this one on.
  case run(UInt64, Protection, CacheAttribute, LeafSizes, RangeTag)
  /// Leaves of 4 KiB for frames in any order.
  case frames(UnsafePointer<FrameNumber>, Protection, CacheAttribute, RangeTag)
  /// Marks that keep the places for a later map.
  case marks
}

/// What to write over a range that is mapped.
enum Change {
  case protection(Protection)
  case attribute(CacheAttribute)
}

/// How a step ended.
enum Step {
  /// So many pages from the start of the step are done.
  case done(UInt64)
  /// Nothing was changed: so many tables must be in preallocated.
  case needs(Int)
  /// Nothing was changed: a large leaf is to stand where an unlinked table still keeps its entry.
  case needsFreeEntry
  /// Nothing was changed: the page so many pages from the start is not as it should be.
  case conflict(UInt64)
}

/// Which entry was passed at each level.
struct Path {
  private var slots: InlineArray<6, UInt> = .init(repeating: 0)
  /// Where the walk ended.
  var level = 0

  subscript(level: Int) -> Slot {
    get { Slot(UnsafeMutableRawPointer(bitPattern: slots[level]).unsafelyUnwrapped) }
    set { slots[level] = UInt(bitPattern: newValue.pointer) }
  }
  var slot: Slot { self[level] }
}

/// Frames that a step took out of the tree, as runs.
struct Reclaimed {
  static var capacity: Int { 64 }
  var count = 0
  var starts: InlineArray<64, UInt64> = .init(repeating: 0)
  var lengths: InlineArray<64, UInt64> = .init(repeating: 0)

  /// False when there is no room.
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

/// Whether a step unlinked a table: then an invalidation must follow.
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
  var spares: FrameStack
  /// Changes under way, which rely on the boundaries between leaves that they made.
  var changing = 0
  /// First and last address of what could not be joined for that reason.
  var joinLater: (UInt64, UInt64)?
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

  /// The next address in the form that the processor takes; nil behind the last one.
  func canonical(behind address: UInt64, _ pages: UInt64) -> UInt64? {
    let next = address &+ pages << Page.shift
    if next < address || next == 0 { return nil }
    let half = UInt64(1) << (Self.shift(levels) + 8)
    return next == half ? ~(half - 1) : next
  }

  // MARK: Counting

  /// Counts entries that came into use, or went out of it, in the table of `level` on `path`.
  private func adjustUsed(_ path: Path, _ level: Int, by change: Int) {
    guard level < levels else { return }
    let slot = path[level + 1]
    slot.store(slot.entry.withUsed(UInt64(Int(slot.entry.used) + change)))
  }

  // MARK: Tables that leave

  /// Takes the table of `level` on `path` out of the tree if it has no entries. Its entry keeps the table until
  /// `freeUnlinked`, and counts as used until then.
  private func unlinkIfEmpty(_ path: Path, _ level: Int, _ unlinked: inout Unlinked) {
    guard level < levels, path[level + 1].entry.used == 0 else { return }
    let table = path[level + 1].entry.tableFrame
    slot(table, 0).store(.waiting(for: nextInvalidation))
    path[level + 1].store(.unlinked(table))
    unlinked = .some
  }

  /// Begins an invalidation of the way through all tables that were unlinked so far. Answers its number, for
  /// `freeUnlinked` once every processor has carried it out.
  mutating func beginInvalidation() -> UInt64 {
    nextInvalidation += 1
    return nextInvalidation - 1
  }

  /// Frees the tables that were unlinked before invalidation `number` began, and their entries, from `address` on
  /// as far as one table goes. Answers how many of `pages` that covers. A table may become empty by it, and is
  /// unlinked then.
  mutating func freeUnlinked(
    _ address: UInt64, _ pages: UInt64, invalidation number: UInt64, into freed: inout FrameStack,
    _ unlinked: inout Unlinked
  ) -> UInt64 {
    let path = descend(address)
    let level = path.level
    let first = Self.index(address, level)
    guard level > 1 else { return UInt64(512 - first) }
    let span = Self.span(level)
    var covered: UInt64 = 0
    var gone = 0
    for i in 0..<Self.toEnd(first) where covered < pages {
      let place = path.slot + i
      let entry = place.entry
      if entry.isTable(at: level) { break }
      covered += i == 0 ? span - (address >> Page.shift) % span : span
      guard entry.isUnlinked(at: level),
        slot(entry.tableFrame, 0).entry.isDone(after: number)
      else { continue }
      freed.push(entry.tableFrame)
      place.store(.empty)
      gone += 1
    }
    tableCount -= UInt64(gone)
    if gone > 0 {
      adjustUsed(path, level, by: -gone)
      unlinkIfEmpty(path, level, &unlinked)
    }
    return covered
  }

  /// Makes the unlinked table at `place` fit to be put back there: it is empty, and a processor that remembers the way
  /// through the entry walks the same table. The caller that unlinked it finds it in use, or unlinked for a later
  /// invalidation.
  private func relink(_ place: Slot) -> FrameNumber {
    let table = place.entry.tableFrame
    slot(table, 0).store(.empty)
    return table
  }

  // MARK: Filling

  /// Entries from `index` on that one step looks at: half a table at most, as the lock is held.
  static func toEnd(_ index: Int) -> Int { min(512 - index, 256) }

  /// Whether the pages from `address` on are vacant, as far as one table tells.
  func checkVacant(_ address: UInt64, _ pages: UInt64, for filling: Filling) -> Step {
    let path = descend(address)
    let level = path.level
    let first = Self.index(address, level)
    if level > 1 {
      guard Self.isVacant(path.slot.entry, at: level, for: filling) else { return .conflict(0) }
      let rest = Self.span(level) - (address >> Page.shift) % Self.span(level)
      return .done(min(rest, pages))
    }
    let count = min(UInt64(Self.toEnd(first)), pages)
    for i in 0..<Int(count) where !Self.isVacant((path.slot + i).entry, for: filling) {
      return .conflict(UInt64(i))
    }
    return .done(count)
  }

  /// Whether the pages from `address` on are prepared and not mapped, as far as one table tells.
  func checkMarked(_ address: UInt64, _ pages: UInt64) -> Step {
    let path = descend(address)
    guard path.level == 1 else { return .conflict(0) }
    let count = min(UInt64(Self.toEnd(Self.index(address, 1))), pages)
    for i in 0..<Int(count) where (path.slot + i).entry != .preparedMark { return .conflict(UInt64(i)) }
    return .done(count)
  }

  private static func isVacant(_ entry: PageTableEntry, at level: Int = 1, for filling: Filling) -> Bool {
    if entry.isEmpty { return true }
    if level > 1 { return entry.isUnlinked(at: level) }
    if case .marks = filling { return false }
    return entry == .preparedMark
  }

  /// The level of the largest leaf that may stand at `address`.
  private func leafLevel(_ address: UInt64, _ pages: UInt64, _ filling: Filling, _ done: UInt64) -> Int {
    guard case .run(let start, _, _, let sizes, _) = filling else { return 1 }
    let physical = start + done << Page.shift
    var level = min(largestLeaf, sizes.largest)
    while level > 1 {
      if Self.isAligned(address | physical, level) && pages >= Self.span(level) { return level }
      level -= 1
    }
    return 1
  }

  /// Fills from `address` on as much as one table takes, of `pages` that are left after `done`.
  mutating func fill(
    _ address: UInt64, _ pages: UInt64, with filling: Filling, done: UInt64, preallocated: inout FrameStack
  ) -> Step {
    var path = descend(address)
    let found = path.level
    let entry = path.slot.entry
    guard Self.isVacant(entry, at: found, for: filling) else { return .conflict(0) }
    let level = min(leafLevel(address, pages, filling, done), found)
    let isUnlinked = entry.isUnlinked(at: found)
    if isUnlinked && level == found { return .needsFreeEntry }
    let missing = found - level - (isUnlinked ? 1 : 0)
    let span = Self.span(level)
    let first = Self.index(address, level)
    var count = min(Self.toEnd(first), Int(truncatingIfNeeded: min(pages / span, 512)))

    var spare = 0
    if case .run(_, _, _, .splittable, _) = filling, level > 1 {
      count = min(count, 32)
      spare = count
    }
    if level == found {
      for i in 1..<max(count, 1) {
        let entry = (path.slot + i).entry
        if level == 1 {
          guard Self.isVacant(entry, for: filling) else { return .conflict(UInt64(i)) }
        } else if !entry.isEmpty {
          count = i
          break
        }
      }
    }
    guard preallocated.count >= missing + spare else { return .needs(missing + spare) }

    for upper in stride(from: found, to: level, by: -1) {
      let isBack = isUnlinked && upper == found
      let table = isBack ? relink(path[upper]) : preallocated.pop()
      path[upper].store(.table(table))
      if !isBack {
        tableCount += 1
        adjustUsed(path, upper, by: 1)
      }
      path[upper - 1] = slot(table, Self.index(address, upper - 1))
    }
    let came = write(filling, done, at: path[level], level, count)
    adjustUsed(path, level, by: came)
    if case .marks = filling { return .done(UInt64(count)) }
    leafCount[level] += UInt64(count)
    if spare > 0 {
      for _ in 0..<count { spares.push(preallocated.pop()) }
    }
    return .done(UInt64(count) * span)
  }

  /// Writes `count` entries, the first of them for page `done` of what is filled in. Answers how many
  /// of the places were empty; the others were prepared and stay so.
  private func write(_ filling: Filling, _ done: UInt64, at slot: Slot, _ level: Int, _ count: Int) -> Int {
    var came = 0
    @inline(__always) func put(_ i: Int, _ entry: UInt64) {
      let place = slot + i
      let mark = place.entry.rawValue
      if mark == 0 { came += 1 }
      place.store(PageTableEntry(entry | mark))
    }
    switch filling {
    case .run(let start, let protection, let attribute, let sizes, let tag):
      var entry = PageTableEntry.leafBits(protection, attribute, at: level)
      if sizes == .splittable && level > 1 { entry |= PageTableEntry.Bit.splittable }
      entry |= start + done << Page.shift
      for i in 0..<count {
        put(i, done == 0 && i == 0 ? entry | tag.bits : entry)
        entry &+= 1 << Self.shift(level)
      }
    case .frames(let frames, let protection, let attribute, let tag):
      let bits = PageTableEntry.leafBits(protection, attribute, at: level)
      for i in 0..<count {
        let entry = bits | frames[Int(done) + i].address.rawValue
        put(i, done == 0 && i == 0 ? entry | tag.bits : entry)
      }
    case .marks:
      for i in 0..<count { put(i, PageTableEntry.Bit.prepared) }
    }
    return came
  }

  // MARK: Unmapping

  /// What `visitLeaves` does with each.
  enum Visit { case check, makeNotPresent, restore }

  /// Checks, retires or revives the leaves from `address` on, as far as one table goes. Splits a
  /// splittable leaf that is covered in part.
  mutating func visitLeaves(_ address: UInt64, _ pages: UInt64, _ visit: Visit) -> Step {
    let path = descend(address)
    let level = path.level
    let entry = path.slot.entry
    guard visit == .restore ? entry.isMadeNotPresent : entry.isPresent else { return .conflict(0) }
    let span = Self.span(level)
    if !Self.isAligned(address, level) || pages < span {
      guard entry.isSplittable else { return .conflict(0) }
      if visit == .check {
        return .done(min(pages, span - (address >> Page.shift) % span))
      }
      split(path, with: spares.pop())
      return .done(0)
    }
    let first = Self.index(address, level)
    let count = min(Self.toEnd(first), Int(truncatingIfNeeded: min(pages / span, 512)))
    var ready = 1
    while ready < count {
      let entry = (path.slot + ready).entry
      guard visit == .restore ? entry.isMadeNotPresent : entry.isLeaf(at: level) else {
        // At level 1 the rest of the range can't be right either.
        if level == 1 { return .conflict(UInt64(ready)) }
        break
      }
      ready += 1
    }
    if visit != .check {
      for i in 0..<ready {
        let slot = path.slot + i
        slot.store(visit == .makeNotPresent ? slot.entry.madeNotPresent : slot.entry.restored)
      }
    }
    return .done(UInt64(ready) * span)
  }

  /// Takes madeNotPresent leaves, or marks, from `address` on out of the tree, as far as one table and
  /// `reclaimed` go.
  mutating func reclaim(
    _ address: UInt64, _ pages: UInt64, marks: Bool, into reclaimed: inout Reclaimed,
    freed: inout FrameStack, _ unlinked: inout Unlinked
  ) -> Step {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    let first = Self.index(address, level)
    // An entry costs three times what it does to check or to write one.
    let most = min(Self.toEnd(first), 128, Int(truncatingIfNeeded: min(pages / span, 512)))
    var count = 0
    var gone = 0
    while count < most {
      let slot = path.slot + count
      let entry = slot.entry
      if marks {
        guard level == 1, entry == .preparedMark else { break }
        slot.store(.empty)
        gone += 1
      } else {
        guard entry.isMadeNotPresent, reclaimed.add(entry.address(at: level), pages: span) else { break }
        if entry.isSplittable { freed.push(spares.pop()) }
        slot.store(entry.isPrepared ? .preparedMark : .empty)
        gone += entry.isPrepared ? 0 : 1
        leafCount[level] -= 1
      }
      count += 1
    }
    guard count > 0 else { return .conflict(0) }
    adjustUsed(path, level, by: -gone)
    unlinkIfEmpty(path, level, &unlinked)
    return .done(UInt64(count) * span)
  }

  // MARK: Ranges

  /// How far the range goes on at `address`, in the pages of one table: so many, and whether it ends
  /// there. At its start `isFirst` is set, and the tag found there does not end it.
  func extent(_ address: UInt64, isFirst: Bool) -> (pages: UInt64, ends: Bool) {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    let first = Self.index(address, level)
    var pages: UInt64 = 0
    for i in 0..<Self.toEnd(first) {
      let entry = (path.slot + i).entry
      if entry.isTable(at: level) { return (pages, false) }
      let isOther = entry.isPrepared || entry.tag != .none && !(isFirst && i == 0)
      if !entry.isPresent || isOther { return (pages, true) }
      pages += i == 0 ? span - (address >> Page.shift) % span : span
    }
    return (pages, false)
  }

  /// Looks downwards from `address`, in one table, for the page where a range begins: found, or where
  /// to look on, or neither when a page on the way is not mapped.
  func rangeStart(atOrBelow address: UInt64) -> (found: UInt64?, onward: UInt64?) {
    let path = descend(address)
    let level = path.level
    let index = Self.index(address, level)
    var start = address & ~(1 << Self.shift(level) - 1)
    for i in 0...index {
      let entry = (path.slot + -i).entry
      if entry.isTable(at: level) { return (nil, start + (1 << Self.shift(level) - 1)) }
      guard entry.isPresent, !entry.isPrepared else { return (nil, nil) }
      if entry.tag != .none { return (start, nil) }
      let below = start.subtractingReportingOverflow(1 << Self.shift(level))
      if below.overflow { return (nil, nil) }
      start = below.partialValue
    }
    return (nil, start + (1 << Self.shift(level) - 1))
  }

  // MARK: Splitting and joining

  /// Replaces a leaf by a table of 512 leaves that say the same.
  private mutating func split(_ path: Path, with table: FrameNumber) {
    let level = path.level
    let leaf = path.slot.entry
    var part = leaf.part(at: leaf.address(at: level), below: level).rawValue
    slot(table, 0).store(PageTableEntry(part | leaf.tag.bits))
    for i in 1..<512 {
      part &+= 1 << Self.shift(level - 1)
      slot(table, i).store(PageTableEntry(part))
    }
    path.slot.store(PageTableEntry.table(table).withUsed(512))
    tableCount += 1
    leafCount[level] -= 1
    leafCount[level - 1] += 512
  }

  /// Tables that it takes to have a boundary between leaves at `edge`, not counting those that a
  /// boundary at `other` takes anyway.
  private func tablesToSplit(at edge: UInt64, besides other: UInt64?) -> Int {
    let path = descend(edge)
    guard path.level > 1, path.slot.entry.isPresent, !path.slot.entry.isSplittable else { return 0 }
    var count = 0
    for level in stride(from: path.level, to: 1, by: -1) where !Self.isAligned(edge, level) {
      if let other, !Self.isAligned(other, level), (edge ^ other) >> Self.shift(level) == 0 { continue }
      count += 1
    }
    return count
  }

  /// Splits leaves so that one begins at `first` and one behind the last of `pages`, and keeps it so until
  /// `endChange`.
  mutating func splitEdges(_ first: UInt64, _ pages: UInt64, preallocated: inout FrameStack) -> Step {
    let end = first &+ pages << Page.shift
    let hasEnd = end != 0 && end == canonical(behind: first, pages)
    let needed =
      tablesToSplit(at: first, besides: nil) + (hasEnd ? tablesToSplit(at: end, besides: first) : 0)
    guard preallocated.count >= needed else { return .needs(needed) }
    split(at: first, preallocated: &preallocated)
    if hasEnd { split(at: end, preallocated: &preallocated) }
    changing += 1
    return .done(0)
  }

  private mutating func split(at edge: UInt64, preallocated: inout FrameStack) {
    while true {
      let path = descend(edge)
      guard path.level > 1, path.slot.entry.isPresent, !Self.isAligned(edge, path.level) else { return }
      split(path, with: path.slot.entry.isSplittable ? spares.pop() : preallocated.pop())
    }
  }

  /// Whether the pages from `address` on are mapped, by leaves of any size.
  func checkMapped(_ address: UInt64, _ pages: UInt64) -> Step {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    var covered: UInt64 = 0
    for i in 0..<Self.toEnd(Self.index(address, level)) {
      let entry = (path.slot + i).entry
      guard entry.isLeaf(at: level) else {
        if covered == 0 || level == 1 { return .conflict(covered) }
        break
      }
      covered += i == 0 ? span - (address >> Page.shift) % span : span
      if covered >= pages { break }
    }
    return .done(min(covered, pages))
  }

  /// Changes the leaves from `address` on, as far as one table goes; a leaf ends where the range does.
  mutating func change(_ address: UInt64, _ pages: UInt64, to change: Change) -> Step {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    var count = 0
    let most = min(Self.toEnd(Self.index(address, level)), Int(truncatingIfNeeded: min(pages / span, 512)))
    // Neighbours mostly say the same, so their new bits are worked out once.
    let same = ~(PageTableEntry.Bit.kept | (PageTableEntry.Bit.address & ~(1 << Self.shift(level) - 1)))
    var (before, after): (UInt64, UInt64) = (0, 0)
    while count < most {
      let slot = path.slot + count
      let entry = slot.entry
      guard entry.isLeaf(at: level) else { break }
      if entry.rawValue & same != before {
        before = entry.rawValue & same
        switch change {
        case .protection(let protection):
          after = PageTableEntry.leafBits(protection, entry.attribute(at: level), at: level)
        case .attribute(let attribute):
          after = PageTableEntry.leafBits(entry.protection, attribute, at: level)
        }
      }
      slot.store(PageTableEntry(entry.rawValue & ~same | after))
      count += 1
    }
    return count == 0 ? .conflict(0) : .done(UInt64(count) * span)
  }

  /// Ends what `splitEdges` began. Answers what is to be joined now.
  mutating func endChange() -> (UInt64, UInt64)? {
    changing -= 1
    guard changing == 0 else { return nil }
    defer { joinLater = nil }
    return joinLater
  }

  /// Makes one leaf of the table under the entry of `level` for `address`, if its leaves say the same
  /// for consecutive addresses, and are write-back. Answers the table, which is out of the tree but stays
  /// as it was.
  mutating func join(_ address: UInt64, at level: Int) -> FrameNumber? {
    guard level <= largestLeaf else { return nil }
    if changing > 0 {
      let later = joinLater ?? (address, address)
      joinLater = (min(later.0, address), max(later.1, address))
      return nil
    }
    let path = descend(address, to: level)
    guard path.level == level, path.slot.entry.isTable(at: level) else { return nil }
    let table = path.slot.entry.tableFrame
    let first = slot(table, 0).entry
    let start = first.address(at: level - 1)
    guard path.slot.entry.used == 512, first.isLeaf(at: level - 1), Self.isAligned(start, level),
      first.attribute(at: level - 1) == .writeBack
    else { return nil }
    let step = UInt64(1) << Self.shift(level - 1)
    // Marks would be lost in the leaf; accessed and dirty are constant here.
    guard !first.isPrepared, !first.isSplittable else { return nil }
    for i in 1..<512 where slot(table, i).entry.rawValue != first.rawValue + UInt64(i) * step {
      return nil
    }
    let bits = PageTableEntry.leafBits(first.protection, first.attribute(at: level - 1), at: level)
    path.slot.store(PageTableEntry(bits | start))
    tableCount -= 1
    leafCount[level - 1] -= 512
    leafCount[level] += 1
    return table
  }
}
