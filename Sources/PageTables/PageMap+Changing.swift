// Changing what is mapped: protection, cache attribute, and joining small leaves into large ones.

import MemoryPrimitives

extension PageMap {
  /// Changes the rights of `count` mapped pages, on every processor. Splits a large leaf at either end of the range
  /// where it must, and throws `noMemory`, with all as before, when no frame is free for that.
  package func protect(
    _ address: VirtualAddress, count: PageCount, _ protection: Protection
  ) throws(PageTableError) {
    guard isSound(protection, address) else { return }
    try change(address, count, to: .protection(protection))
  }

  /// Changes how `count` mapped pages are cached, on every processor. Splits large leaves as `protect` does. Every
  /// processor invalidates everything, as it may still translate the page window of another to one of the frames.
  ///
  /// Writes no cache line back: a caller that leaves write-back flushes them afterwards (SDM vol. 3, 12.12.4).
  package func setAttribute(
    _ address: VirtualAddress, count: PageCount, _ attribute: CacheAttribute
  ) throws(PageTableError) {
    try change(address, count, to: .attribute(attribute))
  }

  private func change(
    _ address: VirtualAddress, _ count: PageCount, to change: Change
  ) throws(PageTableError) {
    guard isSound(address, count) else { return }
    let first = address.rawValue
    if let at = firstConflict(count, { $0.checkMapped(first + $1, $2) }) {
      return report(.notMapped, "a page to be changed was not mapped", address, at)
    }
    var preallocated = FrameStack(machine.directMap)
    while case .needs(let tables) = withTree({
      $0.splitEdges(first, count.rawValue, preallocated: &preallocated)
    }) {
      guard allocateTables(tables, into: &preallocated) else { throw .noMemory }
    }
    freeTables(&preallocated)
    let conflict = firstConflict(count, { $0.change(first + $1, $2, to: change) })
    let later = withTree { $0.endChange() }
    switch change {
    case .attribute where windows.arePrepared: machine.shootDownAll()
    default: machine.shootDown(address, count)
    }
    if let later { joinBlocks(later.0, later.1) }
    if let at = conflict {
      report(.notMapped, "a page was unmapped while it was being changed", address, at)
    }
  }

  /// Joins small write-back leaves for consecutive addresses with equal rights into large leaves, in each 2 MiB and
  /// 1 GiB that the range touches. Only for ranges that are never unmapped in part, as the direct map.
  ///
  /// Memory with another attribute stays in the parts in which it was changed, and can be changed back in them
  /// without a table. While another change of rights or attributes runs, joining is deferred until that change ends.
  package func join(_ address: VirtualAddress, count: PageCount) {
    guard isSound(address, count) else { return }
    joinBlocks(address.rawValue, address.rawValue + (count.rawValue - 1) << Page.shift)
  }

  private func joinBlocks(_ first: UInt64, _ last: UInt64) {
    for level in 2...3 {
      let shift = TableTree.shift(level)
      for block in (first >> shift)...(last >> shift) {
        guard let table = withTree({ $0.join(block << shift, at: level) }) else { continue }
        // Its leaves still serve processors that cache the way through it, so it is not touched before.
        machine.shootDown(VirtualAddress(block << shift), .one)
        withTree { $0.source }.free(table)
      }
    }
  }
}
