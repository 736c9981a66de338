// Pageable ranges: addresses that map a part of an object. They are registered, unmapped, and found for a fault.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// A description of a pageable range.
package struct PageableRange: Sendable {
  /// Its first address.
  package var address: VirtualAddress
  /// Its pages.
  package var count: PageCount
  /// The number of its object.
  package var object: UInt32
  /// The page of the object that is mapped at `address`.
  package var offset: PageCount
  /// The accesses that it allows.
  package var protection: Protection
  let number: UInt64
  let wires: UInt64
}

extension PagedMemory {
  @inline(__always) func withMap<R>(_ body: (inout MapEntryTree) -> R) -> R {
    state.map.withLock { body(&$0) }
  }

  // MARK: Registering

  /// Reserves addresses for `count` pages of `object` from page `offset` on; faults bring the
  /// pages in. Allocates address space, page tables and an entry, so that faults need none of these.
  ///
  /// Throws `noMemory`, `noAddressSpace`; `badConstraint` for pages beyond the object, and for a
  /// protection that allows execution. Above normal priority, entries and tags come from what is kept for that.
  public func map(
    _ object: MemoryObject, from offset: PageCount = .zero, count: PageCount,
    protection: Protection = .kernelData, priority: AllocationPriority = .normal, at site: CallSite = .here
  ) throws(PagingError) -> VirtualAddress {
    guard count > .zero, offset <= object.pageCount, count <= object.pageCount - offset,
      !protection.contains(.executable)
    else { throw refused(.badConstraint, object.name, count, at: site) }
    guard !machine.failsHere(.paging),
      let memory = state.entryCache.allocUnlogged(type: state.type, priority: priority)
    else {
      throw refused(.noMemory, object.name, count, at: site)
    }
    let address: VirtualAddress
    do throws(KernelSpaceError) {
      address = try state.space.reservePageable(count, priority: priority, failures: .byCaller, at: site)
    } catch {
      state.entryCache.free(memory, type: state.type)
      let reason: PagingError = error == .noAddressSpace ? .noAddressSpace : .noMemory
      throw refused(reason, object.name, count, at: site)
    }
    let entry = memory.bindMemory(to: MapEntry.self, capacity: 1)
    entry.initialize(
      to: MapEntry(
        first: address.rawValue, pages: count.rawValue, object: object, offset: offset.rawValue,
        protection: protection))
    object.state.core.withLock {
      entry.nextOfObject = $0.firstEntry
      $0.firstEntry = entry
    }
    withMap { $0.insert(entry) }
    counters.ranges.count()
    return address
  }

  /// Unmaps a range, once the faults and wires in progress there have ended. Its pages stay with the object.
  /// Another size, an address that is no start of a range, or a page that was wired through it is a fault report, and
  /// nothing has changed at any moment.
  public func unmap(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    guard let entry = remove(address, count, site) else { return }
    let object = entry.object
    // It stays in the object's list until no TLB has a page of it, so that a thread that reclaims or moves a page
    // invalidates this address too.
    object.state.core.withLock { _ in entry.isGoing = true }
    var batch = ShootdownBatch()
    for i in 0..<count.rawValue {
      let page = address + PageCount(i)
      if remove(page, ofPage: entry.offset + i, object.acquire()) == .mayBeCached { batch.add(page) }
      if batch.isFull { batch.flush(on: machine) }
    }
    batch.flush(on: machine)
    unlink(entry, from: object.acquire())
    state.space.releasePageable(address, count, at: site)
    state.entryCache.free(UnsafeMutableRawPointer(entry), type: state.type)
    counters.ranges.uncount()
  }

  /// Whether a TLB may have a translation that the tables have no longer.
  private enum StaleTranslation { case mayBeCached, absent }

  /// Removes the mapping of page `index` of an object at `address`, and releases the object's lock.
  private func remove(
    _ address: VirtualAddress, ofPage index: UInt64, _ held: consuming HeldObject
  ) -> StaleTranslation {
    if tables.remove(address) != nil { return .mayBeCached }
    // A thread that moves or reclaims the page has removed the mapping, and ends its busy state only after the
    // invalidation.
    let slot = held.slot(index).value
    return slot.presence == .resident && record(slot.frame).busyWord.isBusy ? .mayBeCached : .absent
  }

  /// Removes an entry from its object's list, and releases the object's lock.
  private func unlink(_ entry: UnsafeMutablePointer<MapEntry>, from held: consuming HeldObject) {
    guard held.core.firstEntry != entry else {
      held.core.firstEntry = entry.nextOfObject
      return
    }
    var at = held.core.firstEntry
    while let other = at {
      if other.nextOfObject == entry {
        other.nextOfObject = entry.nextOfObject
        return
      }
      at = other.nextOfObject
    }
  }

  /// Removes a range from the tree once it has no users. Reports a range that does not match the call or has a wired
  /// page, and returns nil.
  private func remove(
    _ address: VirtualAddress, _ count: PageCount, _ site: CallSite
  ) -> UnsafeMutablePointer<MapEntry>? {
    var number: UInt64?
    while true {
      let ticket = state.waiting.ticket()
      switch withMap({ $0.remove(address.rawValue, count.rawValue, number: number) }) {
      case .removed(let entry): return entry
      case .isUsed(let used):
        number = used
        let woken = state.waiting.sleep(ticket, on: machine)
        precondition(woken, "a range that is unmapped is in use, and no thread runs that could end that")
        continue
      case .isWired: reportWired(address, count, site)
      case .hasOtherPages(let first, let pages):
        report(
          first == address.rawValue ? .wrongSize : .foreignPointer,
          "a pageable range was unmapped in part", address, expected: pages, given: count.rawValue, at: site)
      case .isAbsent:
        let what: StaticString =
          number == nil
          ? "a pageable range was unmapped that does not exist"
          : "a pageable range was unmapped twice at once"
        report(.notAllocated, what, address, expected: 0, given: count.rawValue, at: site)
      }
      return nil
    }
  }

  /// Reports the first page that was wired through a range, and how often. A wire of the same page through another range
  /// does not count.
  private func reportWired(_ address: VirtualAddress, _ count: PageCount, _ site: CallSite) {
    let page = tables.firstWired(address, count: count) ?? address
    report(
      .notAllocated, "a pageable range was unmapped while a page of it is wired", address,
      expected: (page.rawValue - address.rawValue) >> Page.shift,
      given: UInt64(tables.mapping(at: page)?.wires ?? 0), at: site)
  }

  private func report(
    _ kind: FaultKind, _ what: StaticString, _ address: VirtualAddress, expected: UInt64, given: UInt64,
    at site: CallSite
  ) {
    var fault = FaultReport(kind, what, address.rawValue, .virtualAddress)
    (fault.expected, fault.given, fault.reportedAt) = (expected, given, site)
    machine.report(fault)
  }

  // MARK: Finding

  /// Finds the range that has `address`, and is of the generation if one is given. It stays until the use ends.
  @inline(__always) func beginUse(
    of address: VirtualAddress, in generation: RangeGeneration? = nil
  ) -> RangeUse? {
    let found: UnsafeMutablePointer<MapEntry>? = withMap { map in
      guard let entry = map.find(address.rawValue) else { return nil }
      if let generation, !generation.contains(entry.number) { return nil }
      entry.users += 1
      return entry
    }
    guard let found else { return nil }
    return RangeUse(paging: self, entry: found)
  }
  /// Ends a use of the range, and counts the wire that it has made or undone: in one hold of the lock, so that the range
  /// has a user or a wire at each moment.
  @inline(__always) fileprivate func endUse(of entry: UnsafeMutablePointer<MapEntry>, _ change: WireChange) {
    let mustWake = withMap { _ in
      switch change {
      case .none: break
      case .made: entry.wires += 1
      case .undone: entry.wires -= 1
      }
      entry.users -= 1
      guard entry.users == 0 && entry.isAwaited else { return false }
      entry.isAwaited = false
      return true
    }
    if mustWake { state.waiting.wake(on: machine) }
  }

  /// The ranges that exist now.
  package var ranges: RangeGeneration { withMap { $0.generation } }

  /// The range that has `address`, or the first one above it; of these `ranges`, if they are given.
  package func range(
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
  package func forEachRange<E>(_ body: (PageableRange) throws(E) -> Void) throws(E) {
    var at: UInt64 = 0
    while let range = range(endingFrom: VirtualAddress(at)) {
      try body(range)
      at = range.address.rawValue + range.count.bytes.rawValue
    }
  }
}

/// Whether a use of a range has changed its count of wires.
enum WireChange { case none, made, undone }

/// A range that a call works with, so that it stays mapped. Ends when it goes out of scope.
struct RangeUse: ~Copyable {
  fileprivate let paging: PagedMemory
  let entry: UnsafeMutablePointer<MapEntry>
  /// The wire that the call has made or undone through the range.
  var wires = WireChange.none

  fileprivate init(paging: PagedMemory, entry: UnsafeMutablePointer<MapEntry>) {
    self.paging = paging
    self.entry = entry
  }

  @inline(__always) deinit { paging.endUse(of: entry, wires) }
}
