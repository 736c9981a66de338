// Unmapping: make not present, shoot down, reclaim; and tables that leave the tree.

import MemoryPrimitives

extension PageMap {
  /// Unmaps `count` pages from `address` on, on every processor: needs no memory, can't fail.
  ///
  /// A page that is not mapped, or a part of a large leaf that is not splittable: a fault report, and nothing has
  /// changed.
  package func unmap(_ address: VirtualAddress, count: PageCount) {
    unmap(address, count: count) { _, _ in }
  }

  /// Unmaps as above, and calls `visit` with the physical memory, in runs, after every processor has invalidated it.
  /// `visit` runs with no lock held. The addresses may be used again when this returns.
  package func unmap(
    _ address: VirtualAddress, count: PageCount, visit: (PhysicalAddress, PageCount) -> Void
  ) {
    guard makeNotPresent(address, count: count) else { return }
    machine.shootDown(address, count)
    reclaim(address, count, marks: false, visit)
  }

  /// Checks the range and makes it not present. Returns false after a fault report.
  private func makeNotPresent(_ address: VirtualAddress, count: PageCount) -> Bool {
    guard isSound(address, count) else { return false }
    let what: StaticString =
      "a page to be unmapped was not mapped, or is part of a leaf that is not splittable"
    // The whole range is checked first, even inside one table: otherwise a splittable leaf at one end would be split
    // and the range refused.
    if let at = firstConflict(count, { $0.visitLeaves(address.rawValue + $1, $2, .check) }) {
      report(.notMapped, what, address, at)
      return false
    }
    if let at = makeAllNotPresent(address, count) {
      report(.notMapped, what, address, at)
      return false
    }
    return true
  }

  /// Makes a checked range not present. Returns the page that another caller has unmapped since the check, if any;
  /// then the others are present as before.
  func makeAllNotPresent(_ address: VirtualAddress, _ count: PageCount) -> UInt64? {
    let first = address.rawValue
    let conflict = firstConflict(count, { $0.visitLeaves(first + $1, $2, .makeNotPresent) })
    if let conflict {
      _ = firstConflict(PageCount(conflict), { $0.visitLeaves(first + $1, $2, .restore) })
    }
    return conflict
  }

  /// Reclaims leaves that were made not present, or clears marks, and frees the tables that become empty.
  func reclaim(
    _ address: VirtualAddress, _ count: PageCount, marks: Bool,
    _ visit: (PhysicalAddress, PageCount) -> Void
  ) {
    var freed = FrameStack(machine.directMap)
    var unlinked = Unlinked.none
    var done: UInt64 = 0
    while done < count.rawValue {
      var reclaimed = Reclaimed()
      let (at, left) = (address.rawValue + done << Page.shift, count.rawValue - done)
      let step = withTree {
        $0.reclaim(at, left, marks: marks, into: &reclaimed, freed: &freed, &unlinked)
      }
      guard case .done(let pages) = step else { break }
      done += pages
      for i in 0..<reclaimed.count {
        visit(PhysicalAddress(reclaimed.starts[i]), PageCount(reclaimed.lengths[i]))
      }
    }
    // Reserved tables of leaves that were reclaimed: no processor ever walked them.
    freeTables(&freed)
    if unlinked == .some { freeUnlinked(address, count) }
  }

  /// Frees the tables that were unlinked among `count` pages from `address` on, after an invalidation. A level at a
  /// time, as a table that is freed may leave the one above it empty.
  func freeUnlinked(_ address: VirtualAddress, _ count: PageCount) {
    var freed = FrameStack(machine.directMap)
    var unlinked = Unlinked.some
    while unlinked == .some {
      unlinked = .none
      let number = withTree { $0.beginInvalidation() }
      machine.shootDown(address.page, .one)
      var done: UInt64 = 0
      while done < count.rawValue {
        let (at, left) = (address.rawValue + done << Page.shift, count.rawValue - done)
        done += withTree { $0.freeUnlinked(at, left, invalidation: number, into: &freed, &unlinked) }
      }
      freeTables(&freed)
    }
  }
}
