// Looking at the tables: the translation of an address, the entries on the way to it, all mappings as
// runs, the structural check, and the proof that nothing is writable and executable.

import MemoryPrimitives

/// One entry on the way to an address.
public struct WalkStep {
  public let level: TableLevel
  /// The entry's place in its table, 0 to 511.
  public let index: Int
  public let entryAddress: PhysicalAddress
  public let entry: PageTableEntry
}

/// Leaves of one size and kind that follow each other in both address spaces.
public struct MappedRun {
  public var address: VirtualAddress
  public var physical: PhysicalAddress
  public var count: PageCount
  public var level: TableLevel
  public var protection: Protection
  public var attribute: CacheAttribute

  /// The last byte, inclusive.
  var last: UInt64 { address.rawValue + (count.rawValue << Page.shift - 1) }
}

/// A frame that could be written through one mapping and executed through another.
public struct WriteExecuteViolation {
  public let frame: PhysicalAddress
  public let executableAt: VirtualAddress
  /// Nil when the frame is one of the tables.
  public let writableAt: VirtualAddress?
}

extension PageMap {
  /// Where `address` leads, or nil when it is not mapped.
  public func translate(_ address: VirtualAddress) -> Translation? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      let path = tree.descend(address.rawValue)
      let entry = path.slot.entry
      guard entry.isPresent else { return nil }
      let offset = address.rawValue & (1 << TableTree.shift(path.level) - 1)
      return Translation(
        physical: PhysicalAddress(entry.address(at: path.level) + offset), level: TableLevel(path.level),
        protection: entry.protection, attribute: entry.attribute(at: path.level))
    }
  }

  /// Shows the entries on the way to `address`, from the root down to the first that is no table.
  /// Nothing is shown for an address that is not canonical. `visit` runs with no lock held.
  public func walk<E>(_ address: VirtualAddress, _ visit: (WalkStep) throws(E) -> Void) throws(E) {
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

  /// Tables in use, the root included, without the spare ones.
  public var tableCount: PageCount { withTree { PageCount($0.tableCount) } }
  /// Tables put by for splittable leaves.
  public var spareCount: PageCount { withTree { PageCount($0.spares.count) } }
  /// Leaves of a size: level 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB.
  public func leafCount(_ size: TableLevel) -> PageCount {
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

  /// Shows all mappings in the order of their addresses, as runs within one table. `visit` runs with no
  /// lock held; what changes meanwhile may or may not be seen.
  public func forEachRun<E>(_ visit: (MappedRun) throws(E) -> Void) throws(E) {
    var at: UInt64? = 0
    while let address = at {
      let (run, next) = withTree { $0.nextRun(from: address) }
      if let run { try visit(run) }
      at = next
    }
  }

  /// Whether anything is mapped at any of `count` pages from `address` on. A step for each table on the way.
  public func isAnyMapped(_ address: VirtualAddress, count: PageCount) -> Bool {
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

  /// Shows the frame of each table, the root first. `visit` runs with no lock held.
  public func forEachTable<E>(_ visit: (FrameNumber, TableLevel) throws(E) -> Void) throws(E) {
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

  // MARK: The proof

  /// Looks for a frame that one mapping lets be written and another, or the same, executed, and for a
  /// table that can be executed. Nil means there is none.
  ///
  /// Two passes over all runs for each 16 extents of executable memory: a kernel has one.
  public func proveWriteXorExecute() -> WriteExecuteViolation? {
    var at: UInt64? = 0
    while at != nil {
      // Executable memory in up to 16 extents, each with an address that executes it.
      var starts: InlineArray<16, UInt64> = .init(repeating: 0)
      var ends: InlineArray<16, UInt64> = .init(repeating: 0)
      var places: InlineArray<16, UInt64> = .init(repeating: 0)
      var count = 0
      while let address = at, count < 16 {
        let (run, next) = withTree { $0.nextRun(from: address) }
        at = next
        guard let run, run.protection.contains(.executable) else { continue }
        let end = run.physical.rawValue + run.count.bytes.rawValue
        if count > 0, ends[count - 1] == run.physical.rawValue,
          places[count - 1] + (ends[count - 1] - starts[count - 1]) == run.address.rawValue
        {
          ends[count - 1] = end
          continue
        }
        starts[count] = run.physical.rawValue
        ends[count] = end
        places[count] = run.address.rawValue
        count += 1
      }
      var found: WriteExecuteViolation?
      func look(_ start: UInt64, _ end: UInt64, writableAt: UInt64?) {
        for i in 0..<count where found == nil && start < ends[i] && starts[i] < end {
          let frame = max(start, starts[i])
          found = WriteExecuteViolation(
            frame: PhysicalAddress(frame),
            executableAt: VirtualAddress(places[i] + (frame - starts[i])),
            writableAt: writableAt.map { VirtualAddress($0 + (frame - start)) })
        }
      }
      forEachRun { run in
        guard run.protection.contains(.writable) else { return }
        let start = run.physical.rawValue
        look(start, start + run.count.bytes.rawValue, writableAt: run.address.rawValue)
      }
      forEachTable { frame, _ in
        look(frame.address.rawValue, frame.address.rawValue + Page.size, writableAt: nil)
      }
      if found != nil { return found }
    }
    return nil
  }

  // MARK: The check

  /// Which invariant is broken, or nil. One pass over all entries, a quarter of a table at a time; exact while nothing runs.
  public func checkInvariants() -> StaticString? {
    var sums = Sums()
    if let broken = check(state.pointee.levels, 0, &sums) { return broken }
    return withTree { tree in
      if sums.tables != tree.tableCount { return "page tables: invariant 6, the count of tables is wrong" }
      for level in 1...3 where sums.leaves[level] != tree.leafCount[level] {
        return "page tables: invariant 6, a count of leaves is wrong"
      }
      if sums.splittable != UInt64(tree.spares.count) {
        return "page tables: invariant 5, spare tables and splittable leaves differ in number"
      }
      return nil
    }
  }

  private func check(_ level: Int, _ address: UInt64, _ sums: inout Sums) -> StaticString? {
    var used: UInt64 = 0
    for first in stride(from: 0, to: 512, by: 128) {
      if let broken = withTree({ $0.check(level, address, first..<first + 128, &used, &sums) }) {
        return broken
      }
    }
    sums.tables += 1
    if let broken = withTree({ $0.checkUsed(level, address, used) }) { return broken }
    let children = withTree { $0.children(of: level, for: address) }
    for i in 0..<512 where children[i / 64] >> UInt64(i % 64) & 1 != 0 {
      if let broken = check(level - 1, withTree { $0.address(address, level, i) }, &sums) { return broken }
    }
    return nil
  }
}

/// What the check counts.
struct Sums {
  var tables: UInt64 = 0
  var splittable: UInt64 = 0
  var leaves: InlineArray<4, UInt64> = .init(repeating: 0)
}

extension TableTree {
  /// The first run at or above `from` in the lowest table for it, and where to look next; no run when
  /// the rest of that table has none, or 256 entries have none: the lock is held.
  func nextRun(from: UInt64) -> (MappedRun?, UInt64?) {
    let path = descend(from)
    let level = path.level
    let span = Self.span(level)
    let first = Self.index(from, level)
    let slot = path[level]
    // Most entries are empty, or continue the one before: both are passed over in a few instructions.
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

  /// Where entry `index` of the table of `level` for `address` begins to translate.
  func address(_ address: UInt64, _ level: Int, _ index: Int) -> UInt64 {
    let below: UInt64 = 1 << (Self.shift(level) + 9) - 1
    let start = address & ~below | UInt64(index) << Self.shift(level)
    return Self.canonical(start, levels)
  }

  /// Checks a part of one table, and adds to `sums` and to the entries `used`.
  func check(
    _ level: Int, _ address: UInt64, _ part: Range<Int>, _ used: inout UInt64, _ sums: inout Sums
  ) -> StaticString? {
    guard let table = table(of: level, for: address) else { return nil }
    // What the entry must be to continue a leaf that was found right.
    var next: UInt64 = 0
    let step = UInt64(1) << Self.shift(level)
    for i in part {
      let entry = slot(table, i).entry
      if entry.isEmpty { continue }
      used += 1
      if entry.meaning == next && entry.isPresent && (entry.isAccessed || entry.isPrepared) {
        sums.leaves[level] += 1
        if entry.isSplittable { sums.splittable += 1 }
        next &+= step
        continue
      }
      if entry.isTable(at: level) { continue }
      if entry == .preparedMark && level == 1 { continue }
      if entry.isUnlinked(at: level) {
        sums.tables += 1
        if isUsed(unlinked: entry.tableFrame) {
          return "page tables: invariant 2, an unlinked table is not empty"
        }
        continue
      }
      guard entry.isPresent || entry.isMadeNotPresent, level <= largestLeaf else {
        return "page tables: invariant 3, an entry is neither leaf nor table nor mark"
      }
      sums.leaves[level] += 1
      if entry.isSplittable { sums.splittable += 1 }
      if entry.isSplittable && level != 2 {
        return "page tables: invariant 5, only leaves of 2 MiB are splittable"
      }
      // The bits that must be zero lie between the attribute's and the address.
      let reserved =
        level == 1 ? 0 : PageTableEntry.Bit.address & (1 << Self.shift(level) - 1) & ~UInt64(1 << 12)
      let kept = entry.isPrepared ? PageTableEntry.Bit.wires : PageTableEntry.Bit.tag
      if entry.rawValue & ~kept & (reserved | PageTableEntry.Bit.used) != 0 {
        return "page tables: invariant 3, a reserved bit of a leaf is set"
      }
      if entry.isWritable && entry.isExecutable {
        return "page tables: invariant 4, a leaf is writable and executable"
      }
      if entry.isDirty && !entry.isWritable {
        return "page tables: invariant 3, a leaf that can't be written is dirty"
      }
      if entry.isWritable && !entry.isDirty {
        return "page tables: invariant 3, a leaf that can be written is not dirty"
      }
      if !entry.isAccessed && !entry.isPrepared {
        return "page tables: invariant 3, accessed is clear in a leaf that is not pageable"
      }
      next = entry.meaning &+ step
    }
    return nil
  }

  /// Checks that the table of `level` for `address` has `used` entries in use.
  func checkUsed(_ level: Int, _ address: UInt64, _ used: UInt64) -> StaticString? {
    guard level < levels, table(of: level, for: address) != nil else { return nil }
    if used == 0 { return "page tables: invariant 2, an empty table is in the tree" }
    if descend(address, to: level + 1).slot.entry.used != used {
      return "page tables: invariant 1, the number of entries in use is wrong"
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
