// The check of the invariants PT-1 to PT-7, which the head of PageMap.swift states.

import MemoryPrimitives

extension PageMap {
  /// The first invariant that is broken, by its number, or nil. One pass over all entries, a quarter of a table at a
  /// time; exact while nothing runs.
  public func checkInvariants() -> StaticString? {
    var counts = CheckedCounts(windows: windows)
    if let broken = check(state.pointee.levels, 0, &counts) { return broken }
    return withTree { tree in
      if counts.tables != tree.tableCount { return "PT-6: the count of tables is wrong" }
      for level in 1...3 where counts.leaves[level] != tree.leafCount[level] {
        return "PT-6: a count of leaves is wrong"
      }
      if counts.splittable != UInt64(tree.reserved.count) {
        return "PT-5: reserved tables and splittable leaves differ in number"
      }
      return nil
    }
  }

  private func check(_ level: Int, _ address: UInt64, _ counts: inout CheckedCounts) -> StaticString? {
    var used: UInt64 = 0
    for first in stride(from: 0, to: 512, by: 128) {
      if let broken = withTree({
        $0.check(level, address, entries: first..<first + 128, used: &used, counts: &counts)
      }) {
        return broken
      }
    }
    counts.tables += 1
    if let broken = withTree({ $0.checkUsed(level, address, used) }) { return broken }
    let children = withTree { $0.children(of: level, for: address) }
    for i in 0..<512 where children[i / 64] >> UInt64(i % 64) & 1 != 0 {
      if let broken = check(level - 1, withTree { $0.address(address, level, i) }, &counts) { return broken }
    }
    return nil
  }
}

/// The counts of a check.
struct CheckedCounts {
  let windows: PageWindows
  var tables: UInt64 = 0
  var splittable: UInt64 = 0
  var leaves: InlineArray<4, UInt64> = .init(repeating: 0)
}

extension TableTree {
  /// Checks a part of one table, and adds to `counts` and to the entries `used`.
  func check(
    _ level: Int, _ address: UInt64, entries part: Range<Int>, used: inout UInt64, counts: inout CheckedCounts
  ) -> StaticString? {
    guard let table = table(of: level, for: address) else { return nil }
    // The entry that continues a leaf that was found right.
    var next: UInt64 = 0
    let step = UInt64(1) << Self.shift(level)
    for i in part {
      let entry = slot(table, i).entry
      if entry.isEmpty { continue }
      used += 1
      if entry.meaning == next && entry.isPresent && (entry.isAccessed || entry.isPrepared) {
        counts.leaves[level] += 1
        if entry.isSplittable { counts.splittable += 1 }
        next &+= step
        continue
      }
      if entry.isTable(at: level) { continue }
      if entry == .preparedMark && level == 1 { continue }
      if entry.isWindow(at: TableLevel(level)),
        counts.windows.overlap(VirtualAddress(self.address(address, level, i)), .one)
      {
        if !entry.isSoundWindow { return "PT-7: a place of a page window has other bits" }
        continue
      }
      if entry.isUnlinked(at: level) {
        counts.tables += 1
        if isUsed(unlinked: entry.tableFrame) {
          return "PT-2: an unlinked table is not empty"
        }
        continue
      }
      guard entry.isPresent || entry.isMadeNotPresent, level <= largestLeaf else {
        return "PT-3: an entry is neither leaf nor table nor mark"
      }
      counts.leaves[level] += 1
      if entry.isSplittable { counts.splittable += 1 }
      if entry.isSplittable && level != 2 {
        return "PT-5: only leaves of 2 MiB are splittable"
      }
      // The bits that must be zero lie between the attribute's and the address.
      let reserved =
        level == 1 ? 0 : PageTableEntry.Bit.address & (1 << Self.shift(level) - 1) & ~UInt64(1 << 12)
      let kept = entry.isPrepared ? PageTableEntry.Bit.wires : PageTableEntry.Bit.tag
      if entry.rawValue & ~kept & (reserved | PageTableEntry.Bit.used) != 0 {
        return "PT-3: a reserved bit of a leaf is set"
      }
      if entry.isWritable && entry.isExecutable {
        return "PT-4: a leaf is writable and executable"
      }
      if entry.isDirty && !entry.isWritable {
        return "PT-3: a leaf that can't be written is dirty"
      }
      if entry.isWritable && !entry.isDirty {
        return "PT-3: a leaf that can be written is not dirty"
      }
      if !entry.isAccessed && !entry.isPrepared {
        return "PT-3: accessed is clear in a leaf that is not pageable"
      }
      next = entry.meaning &+ step
    }
    return nil
  }

  /// Checks that the table of `level` for `address` has `used` entries in use.
  func checkUsed(_ level: Int, _ address: UInt64, _ used: UInt64) -> StaticString? {
    guard level < levels, table(of: level, for: address) != nil else { return nil }
    if used == 0 { return "PT-2: an empty table is in the tree" }
    if descend(address, to: level + 1).slot.entry.used != used {
      return "PT-1: the number of entries in use is wrong"
    }
    return nil
  }

  /// Whether any entry but the first, which holds the number of an invalidation, is in use.
  private func isUsed(unlinked table: FrameNumber) -> Bool {
    if slot(table, 0).entry.isPresent { return true }
    for i in 1..<512 where !slot(table, i).entry.isEmpty { return true }
    return false
  }
}
