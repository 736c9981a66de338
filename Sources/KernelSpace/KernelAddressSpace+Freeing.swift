// Freeing a range: the tables check it, unmap it, and a wrong free becomes a fault report.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

extension KernelAddressSpace {
  /// Unmaps a range that is one of `kinds` and has `count` pages, and returns its kind. Otherwise reports a fault,
  /// changes nothing, and returns nil.
  func unmap(
    _ address: VirtualAddress, _ count: PageCount, _ kinds: RangeTagSet, _ site: CallSite,
    visit: (PhysicalAddress, PageCount) -> Void
  ) -> RangeKind? {
    let check = tables.unmapRange(address, count: count, accepting: kinds, visit: visit)
    if case .unmapped(let tag) = check, let kind = RangeKind(rawValue: tag.rawValue) {
      self.count(kind, unmapped: count)
      return kind
    }
    reportWrongFree(address, count, check, site)
    return nil
  }

  /// Reports a free that does not fit the range at `address`.
  @inline(never) func reportWrongFree(
    _ address: VirtualAddress, _ count: PageCount, _ check: RangeCheck, _ site: CallSite
  ) {
    let what = whatIs(address)
    var fault: FaultReport
    switch check {
    case .otherCount(let pages):
      fault = FaultReport(
        .wrongSize, "a range was freed with another number of pages", address.rawValue, .virtualAddress)
      fault.expected = pages.rawValue
    case .otherTag(let tag):
      fault = FaultReport(
        .wrongType, "a range was freed as another kind than it is", address.rawValue, .virtualAddress)
      fault.expected = UInt64(tag.rawValue)
    case .notTheStart:
      fault = FaultReport(
        .foreignPointer, "what was freed is not the start of a range", address.rawValue, .virtualAddress)
      fault.expected = what.range?.address.rawValue ?? 0
    case .notMapped, .unmapped:
      let isOurs = what.segment?.kind == .free
      fault = FaultReport(
        isOurs ? .doubleFree : .foreignPointer,
        isOurs ? "a range was freed while free" : "what was freed is no range of kernel space",
        address.rawValue, .virtualAddress)
    }
    fault.given = count.rawValue
    fault.owner = what.arena
    fault.allocatedAt = what.segment?.allocatedAt ?? .unknown
    fault.reportedAt = site
    machine.report(fault)
  }

  func free(_ start: PhysicalAddress, _ count: PageCount) {
    physical.free(FrameRun(first: start.frame, count: count))
  }
}
