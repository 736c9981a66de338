// Ranges for pageable memory: addresses whose tables stay, so that paging enters and removes a page without memory and
// without failure (PageTables/PageablePages.swift). The pages that are mapped there belong to paging.
//
// No tag records such a range, as any page of it may be unmapped. It is a busy segment of `kernel_va` whose
// first page is prepared: no other code prepares places in `kernel_va`.

import MemoryPrimitives
import PageTables
import Vmem

extension KernelAddressSpace {
  /// Reserves addresses for `count` pageable pages, and prepares the place of each. Errors: no frame for a table or for
  /// tags; no addresses; a count of zero. A store for each page.
  package func reservePageable(
    _ count: PageCount, priority: AllocationPriority = .normal, failures: FailureRecording = .here,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let request = RangeRequest(
      kind: .pageable, count: count, priority: priority, failures: failures, site: site)
    let address = try reserve(request)
    do throws(PageTableError) {
      try tables.prepare(address, count: count)
    } catch {
      release(.pageable, address, count, site)
      throw failed(.noMemory, request)
    }
    self.count(.pageable, mapped: count)
    return address
  }

  /// Releases a range of `reservePageable`, all of it. No page is mapped there any more, and every processor has
  /// invalidated it.
  ///
  /// Another size, a page that is still mapped, an address that is free, inside a range or in none that is pageable: a
  /// fault report, and nothing has changed.
  package func releasePageable(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    if let mistake = mistake(address, count) { return reportWrongFree(address, count, mistake, site) }
    guard tables.unprepare(address, count: count) else { return }
    self.count(.pageable, unmapped: count)
    release(.pageable, address, count, site)
  }

  /// Why `count` pages at `address` are not one pageable range; nil when they are. Constant when they are.
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
