// Device registers: mapped into a window of their own, with a cache attribute.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

extension KernelAddressSpace {
  /// Maps `length` bytes of registers from `physical` on, at any offset in a page, into the device window, by large
  /// leaves where both addresses permit. Throws `badConstraint` for no bytes, for a range that wraps, and for memory of
  /// the map with another attribute than write-back: it has a write-back alias, see `mapFrames`.
  public func mapDevice(
    _ physical: PhysicalAddress, _ length: ByteCount, _ attribute: CacheAttribute = .uncached,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let limit = UInt64(1) << 52
    let first = PhysicalAddress(physical.rawValue - physical.offsetInPage)
    let count = Self.pages(physical.offsetInPage, length)
    let request = RangeRequest(kind: .device, count: count, site: site)
    guard length > .zero, physical.rawValue < limit, length.rawValue <= limit - physical.rawValue,
      attribute == .writeBack || !hasAlias(first, count)
    else { throw failed(.badConstraint, request) }
    let address = try reserve(request, where: Self.congruent(to: first, count))
    do throws(PageTableError) {
      try tables.map(
        address, to: first, count: count, protection: .kernelData, attribute: attribute, leaves: .whole,
        tag: RangeKind.device.tag)
    } catch {
      release(.device, address, count, site)
      throw failed(.noMemory, request)
    }
    self.count(.device, mapped: count)
    return address + ByteCount(physical.offsetInPage)
  }

  /// Unmaps the registers at an address of `mapDevice`, of the same length. Fault reports as `freeWired`.
  public func unmapDevice(_ address: VirtualAddress, _ length: ByteCount, at site: CallSite = .here) {
    let count = Self.pages(address.offsetInPage, length)
    guard
      unmap(address.page, count, RangeTagSet(RangeKind.device.tag), site, visit: { _, _ in }) != nil
    else { return }
    release(.device, address.page, count, site)
  }

  private static func pages(_ offset: UInt64, _ length: ByteCount) -> PageCount {
    let most = UInt64.max - offset
    return ByteCount(min(most, length.rawValue) + offset).pagesRoundedUp
  }

  /// Whether any page of the range is mapped in the direct map.
  private func hasAlias(_ first: PhysicalAddress, _ count: PageCount) -> Bool {
    let end = UInt64(FrameNumber.limit) << Page.shift
    guard first.rawValue < end else { return false }
    let pages = min(count.rawValue, (end - first.rawValue) >> Page.shift)
    return tables.isAnyMapped(alias(first), count: PageCount(pages))
  }

  /// Constraints for addresses that are congruent to the physical ones modulo the largest leaf that fits in.
  static func congruent(to first: PhysicalAddress, _ count: PageCount) -> ArenaConstraints {
    var constraints = ArenaConstraints()
    let leaf: UInt64 = count.rawValue >= 1 << 18 ? 1 << 30 : 2 << 20
    if count.rawValue >= 512, let alignment = Alignment(leaf) {
      constraints.alignment = alignment
      constraints.phase = ArenaSize(first.rawValue & (leaf - 1))
    }
    return constraints
  }

}
