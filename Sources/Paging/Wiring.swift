// Wiring: pages that stay where they are, for devices and for code that must not fault.
//
// A wire is counted in the page's busy word. A page that is wired twice, through one range or two, counts once
// among the wired pages and must be unwired twice. Wiring makes the page accessible for every access that the range
// allows: a writable one is made dirty and mapped writable at once, so that no thread faults there until it
// is unwired.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// Whether the addresses to be wired may include some that no range has.
@frozen public enum HolePolicy: UInt8, Sendable {
  /// They are skipped.
  case allowed
  /// The call is refused before anything is wired.
  case forbidden
}

/// The pages of one range among the addresses of a call.
private struct WiredPart {
  var first: VirtualAddress
  var pages: UInt64
}

extension PagedMemory {
  /// Wires all pages of `count` from `address` on, or none. Costs a fault a page at worst, and
  /// one shootdown of the writable pages that were mapped before: no processor faults on one of them after that.
  ///
  /// Returns the ranges that existed when it began. It wires no other: one that is mapped later is a hole.
  ///
  /// Throws `notPageable` for a hole that is forbidden, and when there is no page at all; errors as `fault`;
  /// `tooManyWires`; `badConstraint` for addresses that are not whole pages.
  @discardableResult public func wire(
    _ address: VirtualAddress, _ count: PageCount, holes: HolePolicy
  ) throws(PagingError) -> RangeGeneration {
    guard let last = lastByte(address, count) else { throw .badConstraint }
    let ranges = self.ranges
    let covered = coverage(address, last, of: ranges)
    if covered == .zero || (holes == .forbidden && covered != count) { throw .notPageable }
    // A processor whose TLB has a page as read-only, from before this call or before a fault elsewhere, may fault once
    // more. A thread that stores with interrupts off must not fault.
    var raised = ShootdownBatch()
    var next = address
    do throws(PagingError) {
      try forEachPart(address, last, of: ranges) { part throws(PagingError) in
        // A range may have been unmapped since it was counted.
        if holes == .forbidden && part.first != next { throw .notPageable }
        for i in 0..<part.pages {
          next = part.first + PageCount(i)
          do throws(PagingError) {
            if try wire(next, of: ranges) == .raised { raised.add(next) }
          } catch {
            if error != .notPageable || holes == .forbidden { throw error }
          }
        }
        next = part.first + PageCount(part.pages)
      }
      if holes == .forbidden && next.rawValue != last &+ 1 { throw .notPageable }
    } catch {
      // Each page below `next` that these ranges still have was wired: one that was not had lost its range, and a
      // range that is unmapped does not return.
      if next > address { unwirePages(address, next.rawValue - 1, of: ranges) }
      throw error
    }
    raised.flush(on: machine)
    return ranges
  }

  /// Undoes one `wire` of the same pages. A page that is not wired there, or no page at all, is a fault report, and
  /// nothing has changed.
  ///
  /// A caller that has wired across holes passes the ranges that `wire` returned, because other threads may have mapped
  /// and wired pages in the holes since. The default are the ranges that exist now.
  public func unwire(
    _ address: VirtualAddress, _ count: PageCount, of ranges: RangeGeneration? = nil,
    at site: CallSite = .here
  ) {
    func report(_ kind: FaultKind, _ what: StaticString, _ page: VirtualAddress) {
      var fault = FaultReport(kind, what, page.rawValue, .virtualAddress)
      fault.given = count.rawValue
      fault.reportedAt = site
      machine.report(fault)
    }
    guard let last = lastByte(address, count) else {
      return report(.badConstraint, "pages were unwired at addresses that are not whole pages", address)
    }
    // Other threads may map and wire more during the check.
    let ranges = ranges ?? self.ranges
    var hasPages = false
    var unwired: VirtualAddress?
    forEachPart(address, last, of: ranges) { part in
      hasPages = true
      for i in 0..<part.pages where unwired == nil {
        let page = part.first + PageCount(i)
        if (tables.mapping(at: page)?.wires ?? 0) == 0 { unwired = page }
      }
    }
    if let unwired { return report(.notAllocated, "a page was unwired that is not wired", unwired) }
    if !hasPages {
      return report(.notAllocated, "pages were unwired where none are pageable", address)
    }
    unwirePages(address, last, of: ranges)
  }

  /// The last byte of `count` whole pages from `address` on; nil when they are not whole or end above the address space.
  private func lastByte(_ address: VirtualAddress, _ count: PageCount) -> UInt64? {
    let pagesAbove = (UInt64.max - address.rawValue) >> Page.shift
    guard count > .zero, address.offsetInPage == 0, count.rawValue - 1 <= pagesAbove else { return nil }
    return address.rawValue + ((count.rawValue - 1) << Page.shift + (Page.size - 1))
  }

  /// Calls `body` with each part of the addresses from `address` to `last` that belongs to one of `ranges`: a step for
  /// each range, however long the holes are.
  private func forEachPart<E>(
    _ address: VirtualAddress, _ last: UInt64, of ranges: RangeGeneration,
    _ body: (WiredPart) throws(E) -> Void
  ) throws(E) {
    var at = address.rawValue
    while let range = range(endingFrom: VirtualAddress(at), of: ranges), range.address.rawValue <= last {
      let first = max(at, range.address.rawValue)
      let end = range.address.rawValue + (range.count.rawValue << Page.shift - 1)
      try body(WiredPart(first: VirtualAddress(first), pages: (min(last, end) - first) >> Page.shift + 1))
      guard end < last else { return }
      at = end + 1
    }
  }

  /// Counts the pages of `ranges` among the addresses from `address` to `last`.
  private func coverage(
    _ address: VirtualAddress, _ last: UInt64, of ranges: RangeGeneration
  ) -> PageCount {
    var covered = PageCount.zero
    forEachPart(address, last, of: ranges) { part in covered += PageCount(part.pages) }
    return covered
  }

  private func wire(_ page: VirtualAddress, of ranges: RangeGeneration) throws(PagingError) -> RightsChange {
    guard var use = beginUse(of: page, in: ranges) else { throw .notPageable }
    let entry = use.entry
    let protection = entry.protection
    let kind: AccessKind = protection.contains(.writable) ? .write : .read
    var isFull = false
    var change = RightsChange.none
    try withPage(entry.object, entry.index(page.rawValue), kind) { frame, record in
      switch record.tryWire() {
      case .busy: return .busy
      case .tooMany:
        isFull = true
        return .done
      case .first:
        withQueues { _ = $0.remove(frame) }
        physical.setMobility(of: frame, .unmovable)
        counters.wired.count()
      case .again: break
      }
      change = enter(frame, record, at: page, protection)
      tables.addWire(page)
      use.wires = .made
      return .done
    }
    if isFull { throw .tooManyWires }
    return change
  }

  private func unwirePages(_ address: VirtualAddress, _ last: UInt64, of ranges: RangeGeneration) {
    forEachPart(address, last, of: ranges) { part in
      for i in 0..<part.pages { unwirePage(part.first + PageCount(i), of: ranges) }
    }
  }

  private func unwirePage(_ page: VirtualAddress, of ranges: RangeGeneration) {
    guard var use = beginUse(of: page, in: ranges) else { return }
    var waiters = Waiters.absent
    let held = use.entry.object.acquire()
    // None is left where another thread has unwired the page since this call checked.
    if let frame = tables.removeWire(page) {
      use.wires = .undone
      let record = record(frame)
      if record.busyWord.wires == 1 {
        // In its queue before any thread can make it busy.
        if !record.busyWord.isBusy { withQueues { $0.append(frame, .active) } }
        physical.setMobility(of: frame, .movable)
        counters.wired.uncount()
        if record.busyWord.hasWaiters { waiters = .present }
      }
      _ = record.endWire()
    }
    held.release()
    wake(waiters)
  }
}
