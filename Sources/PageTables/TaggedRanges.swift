// Ranges: the tables themselves record which pages were mapped together, and for which purpose, by a tag on the
// first page. So the layers above need no list of their mappings, and a free is checked against the tables.
// A prepared place is in no range, mapped or not: ranges end in front of it.

import MemoryPrimitives

/// The purpose of a range: 1 to 15, as the layer that maps it decides. `none` is a page inside a range, or no range.
@frozen @usableFromInline package struct RangeTag: Equatable, Sendable {
  /// 0 to 15.
  @usableFromInline package let rawValue: UInt8
  /// Creates a tag from the low four bits.
  @inlinable package init(rawValue: UInt8) { self.rawValue = rawValue & 15 }
  /// No tag.
  @inlinable package static var none: Self { Self(rawValue: 0) }
  @inline(__always) var bits: UInt64 { UInt64(rawValue) << PageTableEntry.Bit.tagShift }
}

/// A range as the tables record it.
package struct TaggedRange: Equatable, Sendable {
  /// The first address.
  package var address: VirtualAddress
  /// Its length.
  package var count: PageCount
  /// Its purpose.
  package var tag: RangeTag

  /// Describes `count` pages from `address` on.
  package init(address: VirtualAddress, count: PageCount, tag: RangeTag) {
    self.address = address
    self.count = count
    self.tag = tag
  }
}

/// Whether a range to be unmapped is the one that the caller describes.
package enum RangeCheck: Equatable, Sendable {
  /// It is, and is unmapped now.
  case unmapped(RangeTag)
  /// No page is mapped there; nothing was changed.
  case notMapped
  /// The address lies inside a range, or in no tagged one; nothing was changed.
  case notTheStart
  /// The range has another purpose; nothing was changed.
  case otherTag(RangeTag)
  /// The range has this other number of pages; nothing was changed.
  case otherCount(PageCount)
}

extension PageMap {
  /// The range that begins at `address`, or nil. Costs a pass over it.
  package func range(at address: VirtualAddress) -> TaggedRange? {
    guard isRange(address, .one) else { return nil }
    var tag = RangeTag.none
    var count: UInt64 = 0
    var at = address.rawValue
    while true {
      let (pages, ends, next) = withTree { tree in
        if count == 0 {
          // One hold of the lock reads the tag and the first pages: another range may take their place between two.
          let path = tree.descend(at)
          let entry = path.slot.entry
          let isStart = entry.isPresent && !entry.isPrepared && TableTree.isAligned(at, path.level)
          tag = isStart ? entry.tag : .none
        }
        let (pages, ends) = tree.extent(at, isFirst: count == 0)
        return (pages, ends, tree.canonical(behind: at, pages))
      }
      guard tag != .none else { return nil }
      count += pages
      // A range ends where its half of the address space ends.
      guard !ends, let next, next == at + pages << Page.shift else { break }
      at = next
    }
    return TaggedRange(address: address, count: PageCount(count), tag: tag)
  }

  /// The range that holds `address`, or nil. Costs a pass over it.
  package func range(containing address: VirtualAddress) -> TaggedRange? {
    guard isCanonical(address) else { return nil }
    var at = address.rawValue
    while true {
      let (found, onward) = withTree { $0.rangeStart(atOrBelow: at) }
      if let found { return range(at: VirtualAddress(found)) }
      guard let onward, onward < at, isCanonical(VirtualAddress(onward)) else { return nil }
      at = onward
    }
  }

  /// Unmaps the range at `address` if it has `count` pages and one of the tags in `accepting`. Otherwise changes
  /// nothing and returns why. `visit` as in `unmap`. Of two callers at once that name the same range one succeeds.
  package func unmapRange(
    _ address: VirtualAddress, count: PageCount, accepting tags: RangeTagSet,
    visit: (PhysicalAddress, PageCount) -> Void
  ) -> RangeCheck {
    guard let range = range(at: address) else {
      return translate(address) == nil ? .notMapped : .notTheStart
    }
    guard tags.contains(range.tag) else { return .otherTag(range.tag) }
    guard range.count == count else { return .otherCount(range.count) }
    if makeAllNotPresent(address, count) != nil { return .notMapped }
    machine.shootDown(address, count)
    reclaim(address, count, marks: false, visit)
    return .unmapped(range.tag)
  }
}

/// A set of tags.
@frozen @usableFromInline package struct RangeTagSet: Sendable {
  let bits: UInt16
  /// Creates a set of one tag.
  package init(_ tag: RangeTag) { bits = 1 << tag.rawValue }
  init(bits: UInt16) { self.bits = bits }
  /// The tags of both sets.
  package func union(_ other: Self) -> Self { Self(bits: bits | other.bits) }
  /// Whether the tag is in the set; never for `none`.
  package func contains(_ tag: RangeTag) -> Bool { tag != .none && bits & 1 << tag.rawValue != 0 }
}
