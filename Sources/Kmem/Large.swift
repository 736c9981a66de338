// Requests above the largest class: whole pages with an address of their own.
//
// The pages are counted in a cacheIndex of their own, so a type's bytes derive from its counters here too.
// Whether the size at a free is right, the arena knows that gave the address.

import CPlatform
import MemoryPrimitives

/// Who gives whole pages with an address.
public struct LargePages {
  public typealias Take =
    @convention(c) (
      _ context: UnsafeMutableRawPointer?, _ pages: UInt64, _ priority: UInt8, _ zeroed: Bool, _ site: UInt32
    ) -> UInt64
  public typealias Give =
    @convention(c) (
      _ context: UnsafeMutableRawPointer?, _ address: UInt64, _ pages: UInt64, _ site: UInt32
    ) -> Bool

  let context: UnsafeMutableRawPointer?
  let taking: Take
  let giving: Give

  /// `take` answers an address, 0 for none; `give` takes it back, or reports what is wrong and answers
  /// false.
  public init(_ context: UnsafeMutableRawPointer?, take: @escaping Take, give: @escaping Give) {
    self.context = context
    taking = take
    giving = give
  }
}

/// Whether pages must read as zero.
enum Zeroed { case no, yes }

extension KmemAllocator {
  @usableFromInline @inline(never)
  func zallocLarge(_ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority)
    -> UnsafeMutableRawPointer?
  {
    allocateLarge(size, type, priority, .yes, CallSite(codeAddress: cp_return_address()))
  }

  func allocateLarge(
    _ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority, _ zeroed: Zeroed, _ site: CallSite
  ) -> UnsafeMutableRawPointer? {
    let pages = ByteCount(size).pagesRoundedUp
    guard let large = state.pointee.large, size < 1 << 47, !state.pointee.machine.failsHere(.kmem) else {
      noteRefused(size, type, priority, site)
      return nil
    }
    func take() -> UInt64 {
      large.taking(large.context, pages.rawValue, priority.rawValue, zeroed == .yes, site.rawValue)
    }
    var address = take()
    if address == 0 && priority != .interrupt && reclaim() > .zero { address = take() }
    guard address != 0 else {
      noteRefused(size, type, priority, site)
      return nil
    }
    type.countAllocation(CacheIndex.large)
    type.countAllocation(CacheIndex.largePages, pages.rawValue)
    return UnsafeMutableRawPointer(bitPattern: UInt(address))
  }

  func freeLarge(_ object: UnsafeMutableRawPointer, _ size: UInt64, _ type: MemoryType, _ site: CallSite) {
    if let place = locate(VirtualAddress(object)) {
      return report(
        .wrongSize, "freed by a size above a page, but it is a small object", place, object, size, type, site)
    }
    guard let large = state.pointee.large, size < 1 << 47 else {
      var fault = FaultReport(
        .foreignPointer, "freed what kmem never gave", VirtualAddress(object).rawValue, .virtualAddress)
      fault.given = size
      fault.type = type.name
      fault.reportedAt = site
      return state.pointee.machine.report(fault)
    }
    let pages = ByteCount(size).pagesRoundedUp.rawValue
    guard large.giving(large.context, VirtualAddress(object).rawValue, pages, site.rawValue) else { return }
    type.countFree(CacheIndex.large)
    type.countFree(CacheIndex.largePages, pages)
  }
}
