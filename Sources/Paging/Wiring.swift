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

extension Paging {
  /// Wires all pages of `count` from `address` on; what can't be done is undone. Costs a fault a page at worst.
  ///
  /// Throws `notPageable` for a hole that is forbidden, and when there is no page at all; errors as `fault`;
  /// `tooManyWires`.
  public func wire(
    _ address: VirtualAddress, _ count: PageCount, holes: Holes
  ) throws(PagingError) {
    guard count > .zero, address.offsetInPage == 0, count.rawValue < 1 << 40 else { throw .badConstraint }
    let covered = try coverage(address, count)
    if covered == .zero || (holes == .forbidden && covered != count) { throw .notPageable }
    for i in 0..<count.rawValue {
      do throws(PagingError) {
        try wire(address + PageCount(i))
      } catch {
        if error == .notPageable && holes == .allowed { continue }
        unwirePages(address, PageCount(i))
        throw error
      }
    }
  }

  /// Undoes one `wire` of the same pages. A page that is not wired, or no page at all: a fault report, and nothing
  /// has changed.
  public func unwire(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    func refuse(_ what: StaticString, _ page: VirtualAddress) {
      var fault = FaultReport(.notAllocated, what, page.rawValue, .virtualAddress)
      fault.given = count.rawValue
      fault.reportedAt = site
      machine.report(fault)
    }
    var isAnyThere = false
    for i in 0..<count.rawValue {
      let page = address + PageCount(i)
      guard let entry = enter(page) else { continue }
      isAnyThere = true
      let isWired = wires(entry, page) > 0
      leave(entry)
      if !isWired { return refuse("a page was unwired that is not wired", page) }
    }
    if !isAnyThere { return refuse("pages were unwired where none are pageable", address) }
    unwirePages(address, count)
  }

  /// Pages of the range that some pageable range holds.
  private func coverage(_ address: VirtualAddress, _ count: PageCount) throws(PagingError) -> PageCount {
    let (end, wraps) = address.rawValue.addingReportingOverflow(count.bytes.rawValue)
    if wraps { throw .badConstraint }
    var covered: UInt64 = 0
    var at = address.rawValue
    while at < end, let range = range(endingFrom: VirtualAddress(at)), range.address.rawValue < end {
      let from = max(at, range.address.rawValue)
      let to = min(end, range.address.rawValue + range.count.bytes.rawValue)
      covered += (to - from) >> Page.shift
      at = to
    }
    return PageCount(covered)
  }

  private func wires(_ entry: UnsafeMutablePointer<MapEntry>, _ page: VirtualAddress) -> UInt32 {
    let object = entry.pointee.object
    let interrupts = object.lock()
    defer { object.unlock(interrupts) }
    let slot = object.slot(entry.pointee.index(page.rawValue)).value
    return slot.presence == .resident ? record(slot.frame).claims.wires : 0
  }

  private func wire(_ page: VirtualAddress) throws(PagingError) {
    guard let entry = enter(page) else { throw .notPageable }
    defer { leave(entry) }
    let protection = entry.pointee.protection
    let kind: AccessKind = protection.contains(.writable) ? .write : .read
    var isFull = false
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
      show(frame, record, at: page, protection)
      return .done
    }
    if isFull { throw .tooManyWires }
  }

  private func unwirePages(_ address: VirtualAddress, _ count: PageCount) {
    for i in 0..<count.rawValue {
      let page = address + PageCount(i)
      guard let entry = enter(page) else { continue }
      let object = entry.pointee.object
      let interrupts = object.lock()
      let slot = object.slot(entry.pointee.index(page.rawValue)).value
      // A range that came into a hole meanwhile, or a page that somebody else has unwired.
      guard slot.presence == .resident, record(slot.frame).claims.wires > 0 else {
        object.unlock(interrupts)
        leave(entry)
        continue
      }
      let frame = slot.frame
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
      leave(entry)
      wake(waiters)
    }
  }
}
