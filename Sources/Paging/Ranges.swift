// Pageable ranges: addresses that show a part of an object, and the treap that finds them.
//
// A treap (Seidel and Aragon, "Randomized search trees", 1996) keeps the entries in the order of their
// addresses; priorities are hashes of the addresses, so its shape depends on what is in it and nothing else.
// An entry is found and its users are counted under one lock, so that it does not go while a fault works with
// it; its object keeps a list of the entries that show it, under its own lock.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// A pageable range, in place.
struct MapEntry {
  let first: UInt64
  let pages: UInt64
  let object: MemoryObject
  /// The page of the object that `first` shows.
  let offset: UInt64
  let protection: Protection
  /// Under the lock of the map.
  var left: UnsafeMutablePointer<MapEntry>?
  var right: UnsafeMutablePointer<MapEntry>?
  /// Calls that work with the range now: each keeps it in the map.
  var users: UInt32 = 0
  /// A thread takes the range back once `users` is 0.
  var isAwaited = false
  /// Wires that were made through the range, each page's counted; a wire in progress is among `users` instead.
  var wires: UInt64 = 0
  /// Larger than the number of each range that was mapped before.
  var number: UInt64 = 0
  /// Under the object's lock.
  var nextOfObject: UnsafeMutablePointer<MapEntry>?
  /// The range is being taken back: nothing is shown in it any more, but a processor may remember what was.
  var isGoing = false

  var last: UInt64 { first + (pages << Page.shift - 1) }
  /// The page of the object at an address of the range.
  func index(_ address: UInt64) -> UInt64 { offset + (address - first) >> Page.shift }
  /// Where the range shows that page, if it does.
  func address(of index: UInt64) -> VirtualAddress? {
    index >= offset && index - offset < pages ? VirtualAddress(first + (index - offset) << Page.shift) : nil
  }
  var priority: UInt64 {
    var hash = first &* 0x9e37_79b9_7f4a_7c15
    hash ^= hash >> 29
    return hash &* 0xbf58_476d_1ce4_e5b9
  }
}

/// The ranges that there are at a moment: a range that is mapped later is not among them, even at the same address.
public struct RangeGeneration: Sendable {
  /// The largest number of a range that belongs to it.
  fileprivate let last: UInt64

  @inline(__always) fileprivate func contains(_ number: UInt64) -> Bool { number <= last }
}

/// All ranges, in the order of their addresses: plain data under its lock.
struct RangeMap {
  typealias Entry = UnsafeMutablePointer<MapEntry>
  private(set) var root: Entry?
  private(set) var count: UInt64 = 0
  /// Ranges that were mapped since the start, which number them.
  private var created: UInt64 = 0

  /// Why a range was not removed, or the range.
  enum Removal {
    case removed(Entry)
    /// By calls that will wake the thread that waits for them.
    case isUsed(number: UInt64)
    case isWired
    case hasOtherPages(first: UInt64, pages: UInt64)
    case isAbsent
  }

  var generation: RangeGeneration { RangeGeneration(last: created) }

  /// The entry that holds `address`.
  func find(_ address: UInt64) -> Entry? {
    var at = root
    while let entry = at {
      if address < entry.pointee.first {
        at = entry.pointee.left
      } else if address > entry.pointee.last {
        at = entry.pointee.right
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
      if entry.pointee.last >= address {
        best = entry
        at = entry.pointee.left
      } else {
        at = entry.pointee.right
      }
    }
    return best
  }

  /// Removes the entry of exactly the `pages` pages from `first` on, if no call uses it and no page is wired through
  /// it. A caller that has waited says by `number` which range it has waited for.
  mutating func remove(_ first: UInt64, _ pages: UInt64, number: UInt64?) -> Removal {
    guard let entry = find(first), number == nil || entry.pointee.number == number else { return .isAbsent }
    guard entry.pointee.first == first, entry.pointee.pages == pages else {
      return .hasOtherPages(first: entry.pointee.first, pages: entry.pointee.pages)
    }
    if entry.pointee.wires > 0 { return .isWired }
    if entry.pointee.users > 0 {
      entry.pointee.isAwaited = true
      return .isUsed(number: entry.pointee.number)
    }
    remove(entry)
    return .removed(entry)
  }

  mutating func insert(_ entry: Entry) {
    count += 1
    created += 1
    entry.pointee.number = created
    var parts = split(root, at: entry.pointee.first)
    parts.0 = merge(parts.0, entry)
    root = merge(parts.0, parts.1)
  }

  private mutating func remove(_ entry: Entry) {
    count -= 1
    let merged = merge(entry.pointee.left, entry.pointee.right)
    (entry.pointee.left, entry.pointee.right) = (nil, nil)
    guard root != entry, var parent = root else {
      root = merged
      return
    }
    while true {
      if entry.pointee.first < parent.pointee.first {
        if parent.pointee.left == entry {
          parent.pointee.left = merged
          return
        }
        parent = parent.pointee.left.unsafelyUnwrapped
      } else {
        if parent.pointee.right == entry {
          parent.pointee.right = merged
          return
        }
        parent = parent.pointee.right.unsafelyUnwrapped
      }
    }
  }

  /// What begins below `address`, and the rest.
  private func split(_ tree: Entry?, at address: UInt64) -> (Entry?, Entry?) {
    guard let tree else { return (nil, nil) }
    if tree.pointee.first < address {
      let (below, above) = split(tree.pointee.right, at: address)
      tree.pointee.right = below
      return (tree, above)
    }
    let (below, above) = split(tree.pointee.left, at: address)
    tree.pointee.left = above
    return (below, tree)
  }

  /// One tree of two, all of the first below all of the second.
  private func merge(_ a: Entry?, _ b: Entry?) -> Entry? {
    guard let a else { return b }
    guard let b else { return a }
    if a.pointee.priority > b.pointee.priority {
      a.pointee.right = merge(a.pointee.right, b)
      return a
    }
    b.pointee.left = merge(a, b.pointee.left)
    return b
  }
}

/// A pageable range, for whoever looks.
public struct PageableRange: Sendable {
  public var address: VirtualAddress
  public var count: PageCount
  public var object: UInt32
  public var offset: PageCount
  public var protection: Protection
  let number: UInt64
  let wires: UInt64
}

extension PagedMemory {
  @inline(__always) func withMap<R>(_ body: (inout RangeMap) -> R) -> R {
    state.pointee.map.withLock { body(&$0) }
  }

  // MARK: Registering

  /// Addresses for `count` pages of `object` from page `offset` on: nothing is mapped yet, faults bring the
  /// pages in. Takes address space, tables and an entry; faults need none of these any more.
  ///
  /// Throws `noMemory`, `noAddressSpace`; `badConstraint` for pages that the object has not, and for a
  /// protection that allows execution.
  public func map(
    _ object: MemoryObject, from offset: PageCount = .zero, count: PageCount,
    protection: Protection = .kernelData, at site: CallSite = .here
  ) throws(PagingError) -> VirtualAddress {
    guard count > .zero, offset <= object.pageCount, count <= object.pageCount - offset,
      !protection.contains(.executable)
    else { throw .badConstraint }
    if machine.failsHere(.paging) { throw .noMemory }
    guard let memory = state.pointee.entryCache.alloc(type: state.pointee.type) else { throw .noMemory }
    let address: VirtualAddress
    do throws(KernelSpaceError) {
      address = try state.pointee.space.reservePageable(count, at: site)
    } catch {
      state.pointee.entryCache.free(memory, type: state.pointee.type)
      throw error == .noAddressSpace ? .noAddressSpace : .noMemory
    }
    let entry = memory.bindMemory(to: MapEntry.self, capacity: 1)
    entry.initialize(
      to: MapEntry(
        first: address.rawValue, pages: count.rawValue, object: object, offset: offset.rawValue,
        protection: protection))
    let interrupts = object.lock()
    entry.pointee.nextOfObject = object.core.pointee.firstEntry
    object.core.pointee.firstEntry = entry
    object.unlock(interrupts)
    withMap { $0.insert(entry) }
    counters.pointee.ranges.count()
    return address
  }

  /// Takes a range back, once the faults and wires in progress there have ended. Its pages stay with the object.
  /// Another size, an address that is no start of a range, or a page that was wired through it: a fault report, and
  /// nothing has changed at any moment.
  public func unmap(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    guard let entry = remove(address, count, site) else { return }
    let object = entry.pointee.object
    // It stays known to whoever takes a page away, until no processor remembers a page of it.
    var interrupts = object.lock()
    entry.pointee.isGoing = true
    object.unlock(interrupts)
    var batch = ShootdownBatch()
    for i in 0..<count.rawValue {
      let page = address + PageCount(i)
      let interrupts = object.lock()
      let mapping = tables.remove(page)
      object.unlock(interrupts)
      if mapping != nil { batch.add(page) }
      if batch.isFull { batch.flush(on: machine) }
    }
    batch.flush(on: machine)
    interrupts = object.lock()
    unlink(entry, from: object)
    object.unlock(interrupts)
    state.pointee.space.releasePageable(address, count, at: site)
    state.pointee.entryCache.free(UnsafeMutableRawPointer(entry), type: state.pointee.type)
    counters.pointee.ranges.uncount()
  }

  private func unlink(_ entry: UnsafeMutablePointer<MapEntry>, from object: MemoryObject) {
    guard object.core.pointee.firstEntry != entry else {
      object.core.pointee.firstEntry = entry.pointee.nextOfObject
      return
    }
    var at = object.core.pointee.firstEntry
    while let other = at {
      if other.pointee.nextOfObject == entry {
        other.pointee.nextOfObject = entry.pointee.nextOfObject
        return
      }
      at = other.pointee.nextOfObject
    }
  }

  /// Removes a range from the map, where it stays while it has users or wires. Nil when it is not what the caller
  /// takes it for, or has a wired page, which is reported.
  private func remove(
    _ address: VirtualAddress, _ count: PageCount, _ site: CallSite
  ) -> UnsafeMutablePointer<MapEntry>? {
    var number: UInt64?
    while true {
      let ticket = state.pointee.waiting.ticket()
      switch withMap({ $0.remove(address.rawValue, count.rawValue, number: number) }) {
      case .removed(let entry): return entry
      case .isUsed(let used):
        number = used
        let woken = state.pointee.waiting.sleep(ticket, on: machine)
        precondition(woken, "a fault in a range that goes, and nothing runs that could end it")
        continue
      case .isWired: reportWired(address, count, site)
      case .hasOtherPages(let first, let pages):
        report(
          first == address.rawValue ? .wrongSize : .foreignPointer,
          "a pageable range was taken back in part", address, pages, count.rawValue, site)
      case .isAbsent:
        let what: StaticString =
          number == nil
          ? "a pageable range was taken back that there is not"
          : "a pageable range was taken back twice at once"
        report(.notAllocated, what, address, 0, count.rawValue, site)
      }
      return nil
    }
  }

  /// Reports the first page that was wired through a range, and how often. A wire that another range made of the same
  /// page is that one's.
  private func reportWired(_ address: VirtualAddress, _ count: PageCount, _ site: CallSite) {
    let page = tables.firstWired(address, count: count) ?? address
    report(
      .notAllocated, "a pageable range was taken back while a page of it is wired", address,
      (page.rawValue - address.rawValue) >> Page.shift, UInt64(tables.mapping(at: page)?.wires ?? 0), site)
  }

  private func report(
    _ kind: FaultKind, _ what: StaticString, _ address: VirtualAddress, _ expected: UInt64, _ given: UInt64,
    _ site: CallSite
  ) {
    var fault = FaultReport(kind, what, address.rawValue, .virtualAddress)
    (fault.expected, fault.given, fault.reportedAt) = (expected, given, site)
    machine.report(fault)
  }

  // MARK: Finding

  /// The range that holds `address`, and is of the generation if one is given: it does not go until `leave`.
  @inline(__always) func enter(
    _ address: VirtualAddress, of generation: RangeGeneration? = nil
  ) -> UnsafeMutablePointer<MapEntry>? {
    withMap { map in
      guard let entry = map.find(address.rawValue) else { return nil }
      if let generation, !generation.contains(entry.pointee.number) { return nil }
      entry.pointee.users += 1
      return entry
    }
  }
  /// Ends a use of the range, which has made or undone a wire: in one hold of the lock, so that the range has a user
  /// or a wire at each moment.
  @inline(__always) func leave(_ entry: UnsafeMutablePointer<MapEntry>, _ change: WireChange = .none) {
    let mustWake = withMap { _ in
      switch change {
      case .none: break
      case .made: entry.pointee.wires += 1
      case .undone: entry.pointee.wires -= 1
      }
      entry.pointee.users -= 1
      guard entry.pointee.users == 0 && entry.pointee.isAwaited else { return false }
      entry.pointee.isAwaited = false
      return true
    }
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// The ranges that there are now.
  public var ranges: RangeGeneration { withMap { $0.generation } }

  /// The range that holds `address`, or the first one above it; of these `ranges`, if they are given.
  public func range(
    endingFrom address: VirtualAddress, of ranges: RangeGeneration? = nil
  ) -> PageableRange? {
    var at = address.rawValue
    while true {
      let found: PageableRange? = withMap { map in
        guard let entry = map.first(endingFrom: at)?.pointee else { return nil }
        return PageableRange(
          address: VirtualAddress(entry.first), count: PageCount(entry.pages), object: entry.object.number,
          offset: PageCount(entry.offset), protection: entry.protection, number: entry.number,
          wires: entry.wires)
      }
      guard let found, let ranges, !ranges.contains(found.number) else { return found }
      at = found.address.rawValue + found.count.bytes.rawValue
    }
  }

  /// Calls `body` with each range in the order of addresses.
  public func forEachRange<E>(_ body: (PageableRange) throws(E) -> Void) throws(E) {
    var at: UInt64 = 0
    while let range = range(endingFrom: VirtualAddress(at)) {
      try body(range)
      at = range.address.rawValue + range.count.bytes.rawValue
    }
  }

  // MARK: Mappings of a page, under the object's lock

  /// Calls `body` with each address at which a range shows page `index` of `object`, and whether the range is
  /// being taken back: then its address is to be forgotten, whatever the tables say. Answers how many ranges it
  /// has looked at.
  @discardableResult @inline(__always) func forEachAddress(
    of index: UInt64, _ object: MemoryObject, _ body: (_ address: VirtualAddress, _ isGoing: Bool) -> Void
  ) -> Int {
    var at = object.core.pointee.firstEntry
    var ranges = 0
    while let entry = at {
      if let address = entry.pointee.address(of: index) { body(address, entry.pointee.isGoing) }
      at = entry.pointee.nextOfObject
      ranges &+= 1
    }
    return ranges
  }

  /// Unmaps a page everywhere; its addresses go into `batch`, to be forgotten once the lock is dropped.
  func removeAll(_ index: UInt64, _ object: MemoryObject, _ batch: inout ShootdownBatch) {
    forEachAddress(of: index, object) { address, isGoing in
      if tables.remove(address) != nil || isGoing { batch.add(address) }
    }
  }

  /// Takes the right to write from all mappings of a page.
  func writeProtectAll(_ index: UInt64, _ object: MemoryObject, _ batch: inout ShootdownBatch) {
    forEachAddress(of: index, object) { address, isGoing in
      if let mapping = tables.writeProtect(address), mapping.isWritable { batch.add(address) }
      if isGoing { batch.add(address) }
    }
  }

  /// Whether the page was used since this was last asked: by any mapping, or by a fault.
  func takeReferenced(_ index: UInt64, _ object: MemoryObject, _ record: FrameRecordPointer) -> Usage {
    var usage: Usage = record.pageFlags.contains(.referenced) ? .used : .unused
    record.pageFlags.remove(.referenced)
    forEachAddress(of: index, object) { address, _ in
      if tables.testAndClearAccessed(address) { usage = .used }
    }
    return usage
  }
}

/// Whether a use of a range has changed its count of wires.
enum WireChange { case none, made, undone }

/// Whether a page was used of late.
enum Usage { case used, unused }
