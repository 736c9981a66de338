// Steps along a tagged range: its extent and its start.

import MemoryPrimitives

extension TableTree {
  /// The pages of the range from `address` on, within one table, and whether the range ends there. At its start
  /// `isFirst` is set, and the tag found there does not end it.
  func extent(_ address: UInt64, isFirst: Bool) -> (pages: UInt64, ends: Bool) {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    let first = Self.index(address, level)
    var pages: UInt64 = 0
    for i in 0..<Self.stepLength(from: first) {
      let entry = (path.slot + i).entry
      if entry.isTable(at: level) { return (pages, false) }
      let isOther = entry.isPrepared || entry.tag != .none && !(isFirst && i == 0)
      if !entry.isPresent || isOther { return (pages, true) }
      pages += i == 0 ? span - (address >> Page.shift) % span : span
    }
    return (pages, false)
  }

  /// Searches downwards from `address`, in one table, for the page where a range begins. Returns that page, or the
  /// address to continue at, or neither when a page on the way is not mapped.
  func rangeStart(atOrBelow address: UInt64) -> (found: UInt64?, onward: UInt64?) {
    let path = descend(address)
    let level = path.level
    let index = Self.index(address, level)
    var start = address & ~(1 << Self.shift(level) - 1)
    for i in 0...index {
      let entry = (path.slot + -i).entry
      if entry.isTable(at: level) { return (nil, start + (1 << Self.shift(level) - 1)) }
      guard entry.isPresent, !entry.isPrepared else { return (nil, nil) }
      if entry.tag != .none { return (start, nil) }
      let below = start.subtractingReportingOverflow(1 << Self.shift(level))
      if below.overflow { return (nil, nil) }
      start = below.partialValue
    }
    return (nil, start + (1 << Self.shift(level) - 1))
  }
}
