// Queries: the translation of an address, the entries on the way to it, all mappings as runs, all tables.

import MemoryPrimitives

/// One entry on the way to an address.
package struct WalkStep {
  /// The level of its table.
  package let level: TableLevel
  /// The entry's index in its table, 0 to 511.
  package let index: Int
  /// The physical address of the entry itself.
  package let entryAddress: PhysicalAddress
  /// The entry.
  package let entry: PageTableEntry
}

/// Leaves of one size and kind that follow each other in both address spaces.
package struct MappedRun {
  /// The first address.
  package var address: VirtualAddress
  /// The memory behind the first address.
  package var physical: PhysicalAddress
  /// Pages of 4 KiB.
  package var count: PageCount
  /// The level of the leaves.
  package var level: TableLevel
  /// The rights of the leaves.
  package var protection: Protection
  /// The cache attribute of the leaves.
  package var attribute: CacheAttribute

  /// The last byte, inclusive.
  var last: UInt64 { address.rawValue + (count.rawValue << Page.shift - 1) }
}

extension PageMap {
  /// Translates `address`; nil when it is not mapped.
  public func translate(_ address: VirtualAddress) -> PageTranslation? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      let path = tree.descend(address.rawValue)
      let entry = path.slot.entry
      guard entry.isPresent else { return nil }
      let offset = address.rawValue & (1 << TableTree.shift(path.level) - 1)
      return PageTranslation(
        physical: PhysicalAddress(entry.address(at: path.level) + offset), level: TableLevel(path.level),
        protection: entry.protection, attribute: entry.attribute(at: path.level))
    }
  }

  /// Visits the entries on the way to `address`, from the root down to the first that leads to no table. Visits none
  /// for an address that is not canonical. `visit` runs with no lock held.
  package func walk<E>(_ address: VirtualAddress, _ visit: (WalkStep) throws(E) -> Void) throws(E) {
    guard isCanonical(address) else { return }
    var entries: InlineArray<6, UInt64> = .init(repeating: 0)
    var places: InlineArray<6, UInt64> = .init(repeating: 0)
    let (levels, reached) = withTree { tree in
      let path = tree.descend(address.rawValue)
      for level in path.level...tree.levels {
        entries[level] = path[level].entry.rawValue
        let place = VirtualAddress(UnsafeRawPointer(path[level].pointer))
        places[level] = tree.directMap.physicalAddress(of: place).rawValue
      }
      return (tree.levels, path.level)
    }
    for level in stride(from: levels, through: reached, by: -1) {
      try visit(
        WalkStep(
          level: TableLevel(level), index: TableTree.index(address.rawValue, level),
          entryAddress: PhysicalAddress(places[level]), entry: PageTableEntry(entries[level])))
    }
  }

  @inline(__always) func isCanonical(_ address: VirtualAddress) -> Bool {
    TableTree.canonical(address.rawValue, state.pointee.levels) == address.rawValue
  }

  /// Tables in use, the root included, without the reserved ones.
  package var tableCount: PageCount { withTree { PageCount($0.tableCount) } }
  /// Tables reserved for splittable leaves.
  package var reservedTableCount: PageCount { withTree { PageCount($0.reserved.count) } }
  /// Leaves of a size: level 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB.
  package func leafCount(_ size: TableLevel) -> PageCount {
    withTree { PageCount($0.leafCount[Int(size.rawValue)]) }
  }
  /// Pages that are mapped, counted once for each mapping.
  public var mappedCount: PageCount {
    withTree { tree in
      var pages: UInt64 = 0
      for level in 1...3 { pages += tree.leafCount[level] * TableTree.span(level) }
      return PageCount(pages)
    }
  }

  /// Visits all mappings in the order of their addresses, as runs within one table. `visit` runs with no lock held.
  /// A mapping that changes during the walk may or may not be visited.
  package func forEachRun<E>(_ visit: (MappedRun) throws(E) -> Void) throws(E) {
    var at: UInt64? = 0
    while let address = at {
      let (run, next) = withTree { $0.nextRun(from: address) }
      if let run { try visit(run) }
      at = next
    }
  }

  /// Whether anything is mapped at any of `count` pages from `address` on. A step for each table on the way.
  package func isAnyMapped(_ address: VirtualAddress, count: PageCount) -> Bool {
    guard isCanonical(address), count > .zero else { return false }
    let first = address.rawValue
    var at: UInt64? = first
    while let here = at, (here &- first) >> Page.shift < count.rawValue {
      let (run, next) = withTree { $0.nextRun(from: here) }
      if let run, run.address <= address || (run.address.rawValue &- first) >> Page.shift < count.rawValue {
        return true
      }
      at = next
    }
    return false
  }

  /// Visits the frame of each table, the root first. `visit` runs with no lock held.
  package func forEachTable<E>(_ visit: (FrameNumber, TableLevel) throws(E) -> Void) throws(E) {
    try visitTables(state.pointee.levels, 0, visit)
  }

  private func visitTables<E>(
    _ level: Int, _ address: UInt64, _ visit: (FrameNumber, TableLevel) throws(E) -> Void
  ) throws(E) {
    guard let table = withTree({ $0.table(of: level, for: address) }) else { return }
    try visit(table, TableLevel(level))
    guard level > 1 else { return }
    let children = withTree { $0.children(of: level, for: address) }
    for word in 0..<8 {
      var left = children[word]
      while left != 0 {
        let i = word * 64 + left.trailingZeroBitCount
        left &= left - 1
        try visitTables(level - 1, withTree { $0.address(address, level, i) }, visit)
      }
    }
  }
}

extension TableTree {
  /// The first run at or above `from` in the lowest table for it, and the address to continue at. No run when the rest
  /// of that table has none, or 256 entries have none: the lock is held.
  func nextRun(from: UInt64) -> (MappedRun?, UInt64?) {
    let path = descend(from)
    let level = path.level
    let span = Self.span(level)
    let first = Self.index(from, level)
    let slot = path[level]
    // Most entries are empty, or continue the one before: a few instructions skip either.
    let count = min(512 - first, 256)
    var i = 0
    while i < count && !(slot + i).entry.isPresent { i += 1 }
    if i == count { return (nil, canonical(behind: address(from, level, first + count - 1), span)) }
    let base = address(from, level, first + i)
    let entry = (slot + i).entry
    if entry.isTable(at: level) { return (nil, base) }
    let step = UInt64(1) << Self.shift(level)
    var next = entry.meaning &+ step
    var end = i + 1
    while end < count && (slot + end).entry.meaning == next {
      next &+= step
      end += 1
    }
    let pages = UInt64(end - i) * span
    let run = MappedRun(
      address: VirtualAddress(base), physical: PhysicalAddress(entry.address(at: level)),
      count: PageCount(pages), level: TableLevel(level), protection: entry.protection,
      attribute: entry.attribute(at: level))
    return (run, canonical(behind: base, pages))
  }

  /// The table of `level` that translates `address`.
  func table(of level: Int, for address: UInt64) -> FrameNumber? {
    if level == levels { return root }
    let path = descend(address, to: level + 1)
    guard path.level == level + 1, path.slot.entry.isTable(at: level + 1) else { return nil }
    return path.slot.entry.tableFrame
  }

  /// A bit for each entry of that table that points to a table.
  func children(of level: Int, for address: UInt64) -> InlineArray<8, UInt64> {
    var bits: InlineArray<8, UInt64> = .init(repeating: 0)
    guard let table = table(of: level, for: address) else { return bits }
    for i in 0..<512 where slot(table, i).entry.isTable(at: level) {
      bits[i / 64] |= 1 << UInt64(i % 64)
    }
    return bits
  }

  /// The first address that entry `index` of the table of `level` for `address` translates.
  func address(_ address: UInt64, _ level: Int, _ index: Int) -> UInt64 {
    let below: UInt64 = 1 << (Self.shift(level) + 9) - 1
    let start = address & ~below | UInt64(index) << Self.shift(level)
    return Self.canonical(start, levels)
  }
}
