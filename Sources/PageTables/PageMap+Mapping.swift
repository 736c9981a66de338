// Mapping: a range is filled with leaves or with marks, step by step, or left as it was.

import MemoryPrimitives

extension PageMap {
  /// Maps `count` pages from `address` on to consecutive frames from `physical` on: all or nothing. Throws `noMemory`
  /// when no frame is free for a table.
  ///
  /// A fault report, and nothing changed, for: a range that is mapped in part already, rights to write and to execute
  /// at once, an address that is not the start of a page or not canonical.
  package func map(
    _ address: VirtualAddress, to physical: PhysicalAddress, count: PageCount, protection: Protection,
    attribute: CacheAttribute = .writeBack, leaves: LeafSizes = .pages, tag: RangeTag = .none
  ) throws(PageTableError) {
    guard isSound(address, count), isSound(protection, address), isSound(physical, count, address) else {
      return
    }
    try fill(address, count, with: .run(physical.rawValue, protection, attribute, leaves, tag))
  }

  /// Maps each of `frames`, in their order, from `address` on, by leaves of 4 KiB: all or nothing. Errors and fault
  /// reports as above.
  package func map(
    _ address: VirtualAddress, frames: UnsafeBufferPointer<FrameNumber>, protection: Protection,
    attribute: CacheAttribute = .writeBack, tag: RangeTag = .none
  ) throws(PageTableError) {
    let count = PageCount(frames.count)
    guard isSound(address, count), isSound(protection, address), let list = frames.baseAddress else {
      return
    }
    try fill(address, count, with: .frames(list, protection, attribute, tag))
  }

  /// Prepares the places of `count` unmapped pages, so that mapping and unmapping them by leaves of 4 KiB can't fail
  /// until `unprepare`. Throws `noMemory`, with all as before, when no frame is free for a table.
  package func prepare(_ address: VirtualAddress, count: PageCount) throws(PageTableError) {
    guard isSound(address, count) else { return }
    try fill(address, count, with: .marks)
  }

  /// Undoes `prepare` for pages that are not mapped. Returns false after a fault report: a page was not prepared, or is
  /// mapped; then nothing has changed.
  @discardableResult
  package func unprepare(_ address: VirtualAddress, count: PageCount) -> Bool {
    guard isSound(address, count) else { return false }
    if let at = firstConflict(count, { $0.checkMarked(address.rawValue + $1, $2) }) {
      report(.notMapped, "a page to be unprepared was not prepared", address, at)
      return false
    }
    clearMarks(address, count)
    return true
  }

  func fill(
    _ address: VirtualAddress, _ count: PageCount, with filling: Filling
  ) throws(PageTableError) {
    let first = address.rawValue
    if !liesInOneTable(address, count) {
      if let at = firstConflict(count, { $0.checkVacant(first + $1, $2, for: filling) }) {
        return report(.doubleMap, "a page to be mapped was in use", address, at)
      }
    }
    var preallocated = FrameStack(machine.directMap)
    var done: UInt64 = 0
    while done < count.rawValue {
      let left = count.rawValue - done
      switch withTree({
        $0.fill(first + done << Page.shift, left, with: filling, done: done, preallocated: &preallocated)
      }) {
      case .done(let pages):
        done += pages
      case .needs(let tables):
        guard allocateTables(tables, into: &preallocated) else {
          undo(address, PageCount(done), of: filling)
          throw .noMemory
        }
      case .needsFreeEntry:
        // The entry lies in this range alone, so nothing is unlinked there again.
        freeUnlinked(VirtualAddress(first + done << Page.shift), .one)
      case .conflict(let pages):
        freeTables(&preallocated)
        undo(address, PageCount(done), of: filling)
        return report(.doubleMap, "a page to be mapped was in use", address, done + pages)
      }
    }
    freeTables(&preallocated)
  }

  /// Undoes what `fill` has done so far.
  private func undo(_ address: VirtualAddress, _ count: PageCount, of filling: Filling) {
    guard count > .zero else { return }
    switch filling {
    case .marks, .windows: clearMarks(address, count)
    case .run, .frames: unmap(address, count: count)
    }
  }

  /// Clears the marks of places at which nothing is mapped, and frees the tables that become empty.
  func clearMarks(_ address: VirtualAddress, _ count: PageCount) {
    reclaim(address, count, marks: true) { _, _ in }
  }
}
