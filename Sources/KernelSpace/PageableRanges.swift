// Ranges for pageable memory: addresses whose tables are there for good, so that a page comes and goes
// without memory and without fail (PageTables/PageablePages.swift). What is mapped there is paging's.
//
// No tag records such a range, as any page of it may be unmapped. It is a busy segment of `kernel_va` whose
// first page is prepared: nobody else prepares places here.

import MemoryPrimitives
import PageTables
import Vmem

extension KernelAddressSpace {
  /// Addresses for `count` pageable pages, with everything prepared to map each of them. Errors: no frame for
  /// a table or for tags; no addresses; a count of zero. A store for each page.
  public func reservePageable(
    _ count: PageCount, priority: AllocationPriority = .normal, at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let address = try reserve(.pageable, count, priority, site)
    do throws(PageTableError) {
      try tables.prepare(address, count: count)
    } catch {
      giveBack(.pageable, address, count, site)
      throw failed(.noMemory, .pageable, count, priority, site)
    }
    note(.pageable, came: count)
    return address
  }

  /// Gives back what `reservePageable` gave, all of it. Nothing is mapped there any more, and every
  /// processor knows.
  ///
  /// Another size, a page that is still mapped, an address that is free, inside a range or no pageable
  /// one: a fault report, and nothing has changed.
  public func releasePageable(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    if let mistake = mistake(address, count) { return refuse(address, count, mistake, site) }
    guard tables.unprepare(address, count: count) else { return }
    note(.pageable, went: count)
    giveBack(.pageable, address, count, site)
  }

  /// What keeps `count` pages at `address` from being one pageable range. Constant when it is one.
  private func mistake(_ address: VirtualAddress, _ count: PageCount) -> RangeCheck? {
    guard let segment = kernelArena.find(ArenaAddress(address.rawValue)), segment.kind == .busy else {
      return .notMapped
    }
    guard let range = pageableRange(segment) else {
      guard let range = tables.range(at: address) else { return .notTheStart }
      return .otherTag(range.tag)
    }
    if range.address != address { return .notTheStart }
    return range.count == count ? nil : .otherCount(range.count)
  }

  /// A segment of `kernel_va` as the pageable range that it is, if it is one.
  func pageableRange(_ segment: Segment) -> TaggedRange? {
    let first = VirtualAddress(segment.first.rawValue)
    guard segment.kind == .busy, tables.isPrepared(first) else { return nil }
    return TaggedRange(
      address: first, count: PageCount(segment.size.rawValue >> Page.shift), tag: RangeKind.pageable.tag)
  }
}
