// Tables that leave the tree: unlinked, waiting for an invalidation, freed or put back.

import MemoryPrimitives

extension TableTree {
  /// Unlinks the table of `level` on `path` if it has no entries. Its entry keeps the table until `freeUnlinked`, and
  /// counts as used until then.
  func unlinkIfEmpty(_ path: Path, _ level: Int, _ unlinked: inout Unlinked) {
    guard level < levels, path[level + 1].entry.used == 0 else { return }
    let table = path[level + 1].entry.tableFrame
    slot(table, 0).store(.waiting(for: nextInvalidation))
    path[level + 1].store(.unlinked(table))
    unlinked = .some
  }

  /// Begins an invalidation of the way through all tables that were unlinked so far. Returns its number, for
  /// `freeUnlinked` once every processor has carried it out.
  mutating func beginInvalidation() -> UInt64 {
    nextInvalidation += 1
    return nextInvalidation - 1
  }

  /// Frees the tables that were unlinked before invalidation `number` began, and their entries, from `address` on,
  /// within one table. Returns how many of `pages` that covers. A table that becomes empty by it is unlinked.
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
    var removed = 0
    for i in 0..<Self.stepLength(from: first) where covered < pages {
      let place = path.slot + i
      let entry = place.entry
      if entry.isTable(at: level) { break }
      covered += i == 0 ? span - (address >> Page.shift) % span : span
      guard entry.isUnlinked(at: level),
        slot(entry.tableFrame, 0).entry.isDone(after: number)
      else { continue }
      freed.push(entry.tableFrame)
      place.store(.empty)
      removed += 1
    }
    tableCount -= UInt64(removed)
    if removed > 0 {
      adjustUsed(path, level, by: -removed)
      unlinkIfEmpty(path, level, &unlinked)
    }
    return covered
  }

  /// Prepares the unlinked table of `entry` to be linked there again: it is empty, and a processor that caches the way
  /// through the entry walks the same table. The caller that unlinked it finds it in use, or unlinked for a later
  /// invalidation.
  func relink(_ entry: Slot) -> FrameNumber {
    let table = entry.entry.tableFrame
    slot(table, 0).store(.empty)
    return table
  }
}
