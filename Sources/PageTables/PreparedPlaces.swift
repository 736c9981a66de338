// Prepared places under one hold of the tables' lock, and the steps on them.

import MemoryPrimitives

/// Prepared places while the tables' lock is held: `PageMap.withPlaces` lends it.
package struct PreparedPlaces: ~Copyable {
  let tree: UnsafeMutablePointer<TableTree>

  /// Enters `frame` at the prepared page `address`, which is not mapped. Traps when the place is not prepared or is in
  /// use. Constant.
  @inline(__always)
  package func enter(_ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection) {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    tree.pointee.enter(address.rawValue, frame, protection)
  }

  /// Removes a mapping as `PageMap.remove` does.
  @inline(__always) package func remove(_ address: VirtualAddress) -> PageMapping? {
    isCanonical(address) ? tree.pointee.remove(address.rawValue) : nil
  }

  @inline(__always) private func isCanonical(_ address: VirtualAddress) -> Bool {
    TableTree.canonical(address.rawValue, tree.pointee.levels) == address.rawValue
  }
}

extension TableTree {
  /// Maps the prepared page at `address`, which is not mapped.
  @inline(__always)
  mutating func enter(_ address: UInt64, _ frame: FrameNumber, _ protection: Protection) {
    guard let slot = pageSlot(address), slot.entry == .preparedMark else {
      preconditionFailure("a pageable page was entered where no place is prepared, or twice")
    }
    let written = protection.contains(.writable) ? PageTableEntry.Bit.written : 0
    slot.store(PageTableEntry(PageTableEntry.pageable | frame.address.rawValue | written))
    leafCount[1] += 1
  }

  /// Unmaps the pageable page at `address`; the place stays prepared.
  @inline(__always) mutating func remove(_ address: UInt64) -> PageMapping? {
    guard let slot = pageablePage(address) else { return nil }
    leafCount[1] -= 1
    return PageMapping(slot.exchange(.preparedMark))
  }

  /// The entry for the page of 4 KiB at `address`, or nil where there is no table for it. A walk that records no path:
  /// seven instructions a level, as each knows its shift.
  @inline(__always) func pageSlot(_ address: UInt64) -> Slot? {
    var table = root.address.rawValue
    if levels == 5 {
      guard let next = below(table, address &>> 45) else { return nil }
      table = next
    }
    guard let level3 = below(table, address &>> 36), let level2 = below(level3, address &>> 27),
      let level1 = below(level2, address &>> 18)
    else { return nil }
    return slot(level1, address &>> 9)
  }

  /// The table that an entry leads to, eight bytes an entry; nil when that is no table.
  @inline(__always) private func below(_ table: UInt64, _ offset: UInt64) -> UInt64? {
    let entry = slot(table, offset).entry
    return entry.isTable(at: 2) ? entry.rawValue & PageTableEntry.Bit.address : nil
  }
  @inline(__always) private func slot(_ table: UInt64, _ offset: UInt64) -> Slot {
    Slot(directMap.pointer(to: PhysicalAddress(table &+ (offset & 0xff8))))
  }

  /// The entry for `address` if it is prepared and mapped.
  @inline(__always) func pageablePage(_ address: UInt64) -> Slot? {
    guard let slot = pageSlot(address), slot.entry.isPageable else { return nil }
    return slot
  }

  /// Counts pages from `address` on, within one table, up to one that was wired through its mapping.
  func pagesBeforeWired(_ address: UInt64, _ pages: UInt64) -> (pages: UInt64, isWired: Bool) {
    let path = descend(address)
    let span = Self.span(path.level)
    if path.level > 1 { return (min(span - (address >> Page.shift) % span, pages), false) }
    let some = min(UInt64(Self.stepLength(from: Self.index(address, 1))), pages)
    for i in 0..<Int(some) {
      let entry = (path.slot + i).entry
      if entry.isPageable && entry.wires > 0 { return (UInt64(i), true) }
    }
    return (some, false)
  }

  /// Counts the mapped and the prepared pages among `pages` from `address` on, within one table.
  func countPages(_ address: UInt64, _ pages: UInt64) -> (pages: UInt64, mapped: UInt64, prepared: UInt64) {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    if level > 1 {
      let some = min(span - (address >> Page.shift) % span, pages)
      return (some, path.slot.entry.isPresent ? some : 0, 0)
    }
    let some = min(UInt64(Self.stepLength(from: Self.index(address, 1))), pages)
    var (mapped, prepared): (UInt64, UInt64) = (0, 0)
    for i in 0..<Int(some) {
      let entry = (path.slot + i).entry
      if entry.isPresent { mapped += 1 }
      if entry.isPrepared { prepared += 1 }
    }
    return (some, mapped, prepared)
  }
}
