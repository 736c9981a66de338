// Steps that split leaves, change them, and join them.

import MemoryPrimitives

extension TableTree {
  /// Replaces a leaf by a table of 512 leaves with the same rights and attribute.
  mutating func split(_ path: Path, with table: FrameNumber) {
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

  /// Tables that a boundary between leaves at `edge` needs, without those that a boundary at `other` needs anyway.
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

  /// Splits leaves so that one begins at `first` and one behind the last of `pages`. These boundaries stay until
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
      split(path, with: path.slot.entry.isSplittable ? reserved.pop() : preallocated.pop())
    }
  }

  /// Whether the pages from `address` on are mapped, by leaves of any size.
  func checkMapped(_ address: UInt64, _ pages: UInt64) -> Step {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    var covered: UInt64 = 0
    for i in 0..<Self.stepLength(from: Self.index(address, level)) {
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

  /// Changes the leaves from `address` on, within one table. A leaf must end where the range does.
  mutating func change(_ address: UInt64, _ pages: UInt64, to change: Change) -> Step {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    var count = 0
    let most = min(
      Self.stepLength(from: Self.index(address, level)), Int(truncatingIfNeeded: min(pages / span, 512)))
    // Neighbours mostly have equal bits, so their new bits are computed once.
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

  /// Ends the change that `splitEdges` began. Returns the addresses to join now, if this was the last change.
  mutating func endChange() -> (UInt64, UInt64)? {
    changing -= 1
    guard changing == 0 else { return nil }
    defer { deferredJoin = nil }
    return deferredJoin
  }

  /// Replaces the table under the entry of `level` for `address` by one leaf, if its leaves are write-back, map
  /// consecutive addresses, and have equal rights. Returns the table, which has left the tree with its contents as they
  /// were.
  mutating func join(_ address: UInt64, at level: Int) -> FrameNumber? {
    guard level <= largestLeaf else { return nil }
    if changing > 0 {
      let later = deferredJoin ?? (address, address)
      deferredJoin = (min(later.0, address), max(later.1, address))
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
