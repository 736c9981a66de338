// Wiring: pages that stay where they are, for devices and for code that must not fault.
//
// A wire is counted in the page's claims, so a page that is wired twice, through one range or two, counts once
// among the wired pages and needs to be unwired twice. Wiring makes the page accessible for all that the range
// allows: a writable one is made dirty and mapped writable at once, so that nothing faults there until it
// is unwired.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// Whether addresses between ranges may be part of what is wired.
@frozen public enum Holes: UInt8, Sendable {
  /// They are passed over.
  case allowed
  /// The call is refused before anything is wired.
  case forbidden
}

/// The pages that one range holds of a stretch of addresses.
private struct WiredPart {
  var first: VirtualAddress
  var pages: UInt64
}

extension Paging {
  /// Wires all pages of `count` from `address` on; what can't be done is undone. Costs a fault a page at worst, and
  /// one shootdown when a page was mapped read-only before.
  ///
  /// Throws `notPageable` for a hole that is forbidden, and when there is no page at all; errors as `fault`;
  /// `tooManyWires`; `badConstraint` for what is no range of whole pages.
  public func wire(
    _ address: VirtualAddress, _ count: PageCount, holes: Holes
  ) throws(PagingError) {
    guard let last = lastByte(address, count) else { throw .badConstraint }
    let covered = coverage(address, last)
    if covered == .zero || (holes == .forbidden && covered != count) { throw .notPageable }
    // A processor that remembers a page as read-only may fault once more, and a thread that stores with interrupts
    // off can't have that.
    var raised = ShootdownBatch()
    var next = address
    do throws(PagingError) {
      try forEachPart(address, last) { part throws(PagingError) in
        // A range may have gone since it was counted.
        if holes == .forbidden && part.first != next { throw .notPageable }
        for i in 0..<part.pages {
          next = part.first + PageCount(i)
          do throws(PagingError) {
            if try wire(next) == .raised { raised.add(next) }
          } catch {
            if error != .notPageable || holes == .forbidden { throw error }
          }
        }
        next = part.first + PageCount(part.pages)
      }
      if holes == .forbidden && next.rawValue != last &+ 1 { throw .notPageable }
    } catch {
      if next > address { unwirePages(address, next.rawValue - 1) }
      throw error
    }
    raised.flush(on: machine)
  }

  /// Undoes one `wire` of the same pages through the same ranges. A page that is not wired there, or no page at all:
  /// a fault report, and nothing has changed.
  public func unwire(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    func refuse(_ kind: FaultKind, _ what: StaticString, _ page: VirtualAddress) {
      var fault = FaultReport(kind, what, page.rawValue, .virtualAddress)
      fault.given = count.rawValue
      fault.reportedAt = site
      machine.report(fault)
    }
    guard let last = lastByte(address, count) else {
      return refuse(.badConstraint, "no range of whole pages was to be unwired", address)
    }
    var isAnyThere = false
    var loose: VirtualAddress?
    forEachPart(address, last) { part in
      isAnyThere = true
      for i in 0..<part.pages where loose == nil {
        let page = part.first + PageCount(i)
        if (tables.mapping(at: page)?.wires ?? 0) == 0 { loose = page }
      }
    }
    if let loose { return refuse(.notAllocated, "a page was unwired that is not wired", loose) }
    if !isAnyThere {
      return refuse(.notAllocated, "pages were unwired where none are pageable", address)
    }
    unwirePages(address, last)
  }

  /// The last byte of `count` whole pages from `address` on; nil when there is none such.
  private func lastByte(_ address: VirtualAddress, _ count: PageCount) -> UInt64? {
    let room = (UInt64.max - address.rawValue) >> Page.shift
    guard count > .zero, address.offsetInPage == 0, count.rawValue - 1 <= room else { return nil }
    return address.rawValue + ((count.rawValue - 1) << Page.shift + (Page.size - 1))
  }

  /// Calls `body` with each part of the addresses from `address` to `last` that a range holds: a step for each
  /// range, however long the holes are.
  private func forEachPart<E>(
    _ address: VirtualAddress, _ last: UInt64, _ body: (WiredPart) throws(E) -> Void
  ) throws(E) {
    var at = address.rawValue
    while let range = range(endingFrom: VirtualAddress(at)), range.address.rawValue <= last {
      let first = max(at, range.address.rawValue)
      let end = range.address.rawValue + (range.count.rawValue << Page.shift - 1)
      try body(
        WiredPart(first: VirtualAddress(first), pages: (min(last, end) - first) >> Page.shift + 1))
      guard end < last else { return }
      at = end + 1
    }
  }

  /// Pages that ranges hold of the addresses from `address` to `last`.
  private func coverage(_ address: VirtualAddress, _ last: UInt64) -> PageCount {
    var covered = PageCount.zero
    forEachPart(address, last) { part in covered = covered + PageCount(part.pages) }
    return covered
  }

  private func wire(_ page: VirtualAddress) throws(PagingError) -> RightsChange {
    guard let entry = enter(page) else { throw .notPageable }
    defer { leave(entry) }
    let protection = entry.pointee.protection
    let kind: AccessKind = protection.contains(.writable) ? .write : .read
    var isFull = false
    var change = RightsChange.none
    try withPage(entry.pointee.object, entry.pointee.index(page.rawValue), kind) { frame, record, _ in
      switch record.tryWire() {
      case .busy: return .busy
      case .tooMany:
        isFull = true
        return .done
      case .first:
        withQueues { _ = $0.remove(frame) }
        physical.note(frame, .fixed)
        counters.pointee.wired.count()
      case .again: break
      }
      change = show(frame, record, at: page, protection)
      tables.addWire(page)
      return .done
    }
    if isFull { throw .tooManyWires }
    return change
  }

  private func unwirePages(_ address: VirtualAddress, _ last: UInt64) {
    forEachPart(address, last) { part in
      for i in 0..<part.pages { unwirePage(part.first + PageCount(i)) }
    }
  }

  private func unwirePage(_ page: VirtualAddress) {
    guard let entry = enter(page) else { return }
    defer { leave(entry) }
    let object = entry.pointee.object
    let interrupts = object.lock()
    // None is left in a range that came into a hole in between, or where another thread has unwired the page.
    guard let frame = tables.removeWire(page) else { return object.unlock(interrupts) }
    let record = record(frame)
    var waiters = WaitersAnswer.nobodyWaits
    if record.claims.wires == 1 {
      // In its queue before anybody can claim it.
      if !record.claims.isBusy { withQueues { $0.append(frame, .active) } }
      physical.note(frame, .movable)
      counters.pointee.wired.uncount()
      if record.claims.hasWaiters { waiters = .somebodyWaits }
    }
    _ = record.endWire()
    object.unlock(interrupts)
    wake(waiters)
  }
}
