// The map entries of pageable ranges, and the treap that finds them.
//
// A treap (Seidel and Aragon, "Randomized search trees", 1996) keeps the entries in the order of their
// addresses. Priorities are hashes of the addresses, so its shape depends on its content only.
// An entry is found and its users are counted under one lock, so that it stays while a fault works with
// it. Its object keeps a list of its entries, under the object's lock.

import MemoryPrimitives
import PageTables

/// The entry of a pageable range, in place.
struct MapEntry {
  let first: UInt64
  let pages: UInt64
  let object: MemoryObject
  /// The page of the object that is mapped at `first`.
  let offset: UInt64
  let protection: Protection
  /// The two subtrees. These and the fields up to `number` are under the lock of the map.
  var left: UnsafeMutablePointer<MapEntry>?
  var right: UnsafeMutablePointer<MapEntry>?
  /// Calls that work with the range now: each keeps it in the tree.
  var users: UInt32 = 0
  /// A thread waits to unmap the range once `users` is 0.
  var isAwaited = false
  /// Wires that were made through the range, each page's counted. A wire in progress is among `users` instead.
  var wires: UInt64 = 0
  /// Larger than the number of each range that was mapped before.
  var number: UInt64 = 0
  /// The next range of the same object. This and `isGoing` are under the object's lock.
  var nextOfObject: UnsafeMutablePointer<MapEntry>?
  /// The range is being unmapped: no page is entered in it any more, but a TLB may still have old mappings.
  var isGoing = false

}

/// The fields of an entry, in place, and what follows from them.
extension UnsafeMutablePointer<MapEntry> {
  var first: UInt64 { pointee.first }
  var pages: UInt64 { pointee.pages }
  var object: MemoryObject { pointee.object }
  var offset: UInt64 { pointee.offset }
  var protection: Protection { pointee.protection }
  var left: Self? {
    get { pointee.left }
    nonmutating set { pointee.left = newValue }
  }
  var right: Self? {
    get { pointee.right }
    nonmutating set { pointee.right = newValue }
  }
  var users: UInt32 {
    get { pointee.users }
    nonmutating set { pointee.users = newValue }
  }
  var isAwaited: Bool {
    get { pointee.isAwaited }
    nonmutating set { pointee.isAwaited = newValue }
  }
  var wires: UInt64 {
    get { pointee.wires }
    nonmutating set { pointee.wires = newValue }
  }
  var number: UInt64 {
    get { pointee.number }
    nonmutating set { pointee.number = newValue }
  }
  var nextOfObject: Self? {
    get { pointee.nextOfObject }
    nonmutating set { pointee.nextOfObject = newValue }
  }
  var isGoing: Bool {
    get { pointee.isGoing }
    nonmutating set { pointee.isGoing = newValue }
  }

  var last: UInt64 { first + (pages << Page.shift - 1) }
  /// The page of the object at an address of the range.
  func index(_ address: UInt64) -> UInt64 { offset + (address - first) >> Page.shift }
  /// The address at which the range maps that page, if it does.
  func address(of index: UInt64) -> VirtualAddress? {
    index >= offset && index - offset < pages ? VirtualAddress(first + (index - offset) << Page.shift) : nil
  }
  var priority: UInt64 {
    var hash = first &* 0x9e37_79b9_7f4a_7c15
    hash ^= hash >> 29
    return hash &* 0xbf58_476d_1ce4_e5b9
  }
}

/// The ranges that exist at a moment: a range that is mapped later is not among them, even at the same address.
public struct RangeGeneration: Sendable {
  /// The largest number of a range that belongs to it.
  fileprivate let last: UInt64

  @inline(__always) func contains(_ number: UInt64) -> Bool { number <= last }
}

/// All entries, in the order of their addresses: plain data under its lock.
struct MapEntryTree {
  typealias Entry = UnsafeMutablePointer<MapEntry>
  private(set) var root: Entry?
  private(set) var count: UInt64 = 0
  /// Entries that were inserted since the start, which number them.
  private var created: UInt64 = 0

  /// The entry that was removed, or why none was.
  enum Removal {
    case removed(Entry)
    /// Calls use the range; the last one wakes the thread that waits.
    case isUsed(number: UInt64)
    case isWired
    case hasOtherPages(first: UInt64, pages: UInt64)
    case isAbsent
  }

  var generation: RangeGeneration { RangeGeneration(last: created) }

  /// The entry whose range has `address`.
  func find(_ address: UInt64) -> Entry? {
    var at = root
    while let entry = at {
      if address < entry.first {
        at = entry.left
      } else if address > entry.last {
        at = entry.right
      } else {
        return entry
      }
    }
    return nil
  }

  /// The first entry that ends at or behind `address`.
  func first(endingFrom address: UInt64) -> Entry? {
    var at = root
    var best: Entry?
    while let entry = at {
      if entry.last >= address {
        best = entry
        at = entry.left
      } else {
        at = entry.right
      }
    }
    return best
  }

  /// Removes the entry of exactly the `pages` pages from `first` on, if no call uses it and no page is wired through
  /// it. A caller that has waited says by `number` which range it has waited for.
  mutating func remove(_ first: UInt64, _ pages: UInt64, number: UInt64?) -> Removal {
    guard let entry = find(first), number == nil || entry.number == number else { return .isAbsent }
    guard entry.first == first, entry.pages == pages else {
      return .hasOtherPages(first: entry.first, pages: entry.pages)
    }
    if entry.wires > 0 { return .isWired }
    if entry.users > 0 {
      entry.isAwaited = true
      return .isUsed(number: entry.number)
    }
    remove(entry)
    return .removed(entry)
  }

  mutating func insert(_ entry: Entry) {
    count += 1
    created += 1
    entry.number = created
    var parts = split(root, at: entry.first)
    parts.0 = merge(parts.0, entry)
    root = merge(parts.0, parts.1)
  }

  private mutating func remove(_ entry: Entry) {
    count -= 1
    let merged = merge(entry.left, entry.right)
    (entry.left, entry.right) = (nil, nil)
    guard root != entry, var parent = root else {
      root = merged
      return
    }
    while true {
      if entry.first < parent.first {
        if parent.left == entry {
          parent.left = merged
          return
        }
        parent = parent.left.unsafelyUnwrapped
      } else {
        if parent.right == entry {
          parent.right = merged
          return
        }
        parent = parent.right.unsafelyUnwrapped
      }
    }
  }

  /// Splits a tree into the entries that begin below `address`, and the rest.
  private func split(_ tree: Entry?, at address: UInt64) -> (Entry?, Entry?) {
    guard let tree else { return (nil, nil) }
    if tree.first < address {
      let (below, above) = split(tree.right, at: address)
      tree.right = below
      return (tree, above)
    }
    let (below, above) = split(tree.left, at: address)
    tree.left = above
    return (below, tree)
  }

  /// Merges two trees, all entries of the first below all of the second.
  private func merge(_ a: Entry?, _ b: Entry?) -> Entry? {
    guard let a else { return b }
    guard let b else { return a }
    if a.priority > b.priority {
      a.right = merge(a.right, b)
      return a
    }
    b.left = merge(a, b.left)
    return b
  }
}
