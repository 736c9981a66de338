// Steps that check and fill vacant entries.

import MemoryPrimitives

extension TableTree {
  /// Entries from `index` on that one step covers: half a table at most, as the lock is held.
  static func stepLength(from index: Int) -> Int { min(512 - index, 256) }

  /// Checks that the pages from `address` on are vacant, within one table.
  func checkVacant(_ address: UInt64, _ pages: UInt64, for filling: Filling) -> Step {
    let path = descend(address)
    let level = path.level
    let first = Self.index(address, level)
    if level > 1 {
      guard Self.isVacant(path.slot.entry, at: level, for: filling) else { return .conflict(0) }
      let rest = Self.span(level) - (address >> Page.shift) % Self.span(level)
      return .done(min(rest, pages))
    }
    let count = min(UInt64(Self.stepLength(from: first)), pages)
    for i in 0..<Int(count) where !Self.isVacant((path.slot + i).entry, for: filling) {
      return .conflict(UInt64(i))
    }
    return .done(count)
  }

  /// Checks that the pages from `address` on are prepared and not mapped, within one table.
  func checkMarked(_ address: UInt64, _ pages: UInt64) -> Step {
    let path = descend(address)
    guard path.level == 1 else { return .conflict(0) }
    let count = min(UInt64(Self.stepLength(from: Self.index(address, 1))), pages)
    for i in 0..<Int(count) where (path.slot + i).entry != .preparedMark { return .conflict(UInt64(i)) }
    return .done(count)
  }

  private static func isVacant(_ entry: PageTableEntry, at level: Int = 1, for filling: Filling) -> Bool {
    if entry.isEmpty { return true }
    if level > 1 { return entry.isUnlinked(at: level) }
    switch filling {
    case .marks, .windows: return false
    case .run, .frames: break
    }
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

  /// Fills the entries of one table from `address` on, of `pages` that are left after `done`.
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
    var count = min(Self.stepLength(from: first), Int(truncatingIfNeeded: min(pages / span, 512)))

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
    let added = write(filling, done, at: path[level], level, count)
    adjustUsed(path, level, by: added)
    switch filling {
    case .marks, .windows: return .done(UInt64(count))
    case .run, .frames: break
    }
    leafCount[level] += UInt64(count)
    if spare > 0 {
      for _ in 0..<count { reserved.push(preallocated.pop()) }
    }
    return .done(UInt64(count) * span)
  }

  /// Writes `count` entries, the first of them for page `done` of the filling. Returns how many of the slots were
  /// empty; the others were prepared and stay so.
  private func write(_ filling: Filling, _ done: UInt64, at slot: Slot, _ level: Int, _ count: Int) -> Int {
    var added = 0
    @inline(__always) func store(_ i: Int, _ entry: UInt64) {
      let target = slot + i
      let mark = target.entry.rawValue
      if mark == 0 { added += 1 }
      target.store(PageTableEntry(entry | mark))
    }
    switch filling {
    case .run(let start, let protection, let attribute, let sizes, let tag):
      var entry = PageTableEntry.leafBits(protection, attribute, at: level)
      if sizes == .splittable && level > 1 { entry |= PageTableEntry.Bit.splittable }
      entry |= start + done << Page.shift
      for i in 0..<count {
        store(i, done == 0 && i == 0 ? entry | tag.bits : entry)
        entry &+= 1 << Self.shift(level)
      }
    case .frames(let frames, let protection, let attribute, let tag):
      let bits = PageTableEntry.leafBits(protection, attribute, at: level)
      for i in 0..<count {
        let entry = bits | frames[Int(done) + i].address.rawValue
        store(i, done == 0 && i == 0 ? entry | tag.bits : entry)
      }
    case .marks:
      for i in 0..<count { store(i, PageTableEntry.Bit.prepared) }
    case .windows:
      for i in 0..<count { store(i, WindowEntry.closed) }
    }
    return added
  }
}
