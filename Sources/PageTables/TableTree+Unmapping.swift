// Steps that make leaves not present, restore them, and reclaim them.

import MemoryPrimitives

extension TableTree {
  /// The action of `visitLeaves` on each leaf.
  enum Visit { case check, makeNotPresent, restore }

  /// Checks, makes not present or restores the leaves from `address` on, within one table. Splits a splittable leaf
  /// that is covered in part, unless it only checks.
  mutating func visitLeaves(_ address: UInt64, _ pages: UInt64, _ visit: Visit) -> Step {
    let path = descend(address)
    let level = path.level
    let entry = path.slot.entry
    guard visit == .restore ? entry.isMadeNotPresent : entry.isPresent else { return .conflict(0) }
    let span = Self.span(level)
    if !Self.isAligned(address, level) || pages < span {
      guard entry.isSplittable else { return .conflict(0) }
      if visit == .check {
        return .done(min(pages, span - (address >> Page.shift) % span))
      }
      split(path, with: reserved.pop())
      return .done(0)
    }
    let first = Self.index(address, level)
    let count = min(Self.stepLength(from: first), Int(truncatingIfNeeded: min(pages / span, 512)))
    var ready = 1
    while ready < count {
      let entry = (path.slot + ready).entry
      guard visit == .restore ? entry.isMadeNotPresent : entry.isLeaf(at: level) else {
        // At level 1 the rest of the range can't be right either.
        if level == 1 { return .conflict(UInt64(ready)) }
        break
      }
      ready += 1
    }
    if visit != .check {
      for i in 0..<ready {
        let slot = path.slot + i
        slot.store(visit == .makeNotPresent ? slot.entry.madeNotPresent : slot.entry.restored)
      }
    }
    return .done(UInt64(ready) * span)
  }

  /// Clears leaves that were made not present, or marks, from `address` on, within one table and as many as `reclaimed`
  /// holds.
  mutating func reclaim(
    _ address: UInt64, _ pages: UInt64, marks: Bool, into reclaimed: inout Reclaimed,
    freed: inout FrameStack, _ unlinked: inout Unlinked
  ) -> Step {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    let first = Self.index(address, level)
    // Reclaiming an entry costs three times as much as checking or writing one.
    let most = min(Self.stepLength(from: first), 128, Int(truncatingIfNeeded: min(pages / span, 512)))
    var count = 0
    var removed = 0
    while count < most {
      let slot = path.slot + count
      let entry = slot.entry
      if marks {
        guard level == 1, entry == .preparedMark || entry == .closedWindow else { break }
        slot.store(.empty)
        removed += 1
      } else {
        guard entry.isMadeNotPresent, reclaimed.add(entry.address(at: level), pages: span) else { break }
        if entry.isSplittable { freed.push(reserved.pop()) }
        slot.store(entry.isPrepared ? .preparedMark : .empty)
        removed += entry.isPrepared ? 0 : 1
        leafCount[level] -= 1
      }
      count += 1
    }
    guard count > 0 else { return .conflict(0) }
    adjustUsed(path, level, by: -removed)
    unlinkIfEmpty(path, level, &unlinked)
    return .done(UInt64(count) * span)
  }
}
