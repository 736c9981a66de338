// Requests above the largest class, and those above a page for whose slab no run is free: whole pages with an address of
// their own.
//
// The pages are counted at an index of their own, so a type's bytes derive from its counters here too. The arena of the
// address checks the size at a free.

import CPlatform
import MemoryPrimitives

/// A source of whole pages with an address: two C functions and their context.
package struct LargePages {
  /// Allocates pages for a type of memory, by its number, and answers their address, 0 for none.
  package typealias AllocatePages =
    @convention(c) (
      _ context: UnsafeMutableRawPointer?, _ pages: UInt64, _ priority: UInt8, _ zeroed: Bool,
      _ type: UInt16, _ site: UInt32
    ) -> UInt64
  /// Frees pages; reports a wrong address or size and answers false.
  package typealias FreePages =
    @convention(c) (
      _ context: UnsafeMutableRawPointer?, _ address: UInt64, _ pages: UInt64, _ site: UInt32
    ) -> Bool

  let context: UnsafeMutableRawPointer?
  let allocatePages: AllocatePages
  let freePages: FreePages

  /// Makes a source of the two functions. kmem calls them with no lock held.
  package init(
    _ context: UnsafeMutableRawPointer?, allocatePages: @escaping AllocatePages,
    freePages: @escaping FreePages
  ) {
    self.context = context
    self.allocatePages = allocatePages
    self.freePages = freePages
  }
}

/// Whether pages must read as zero.
enum Zeroed { case no, yes }

extension KmemAllocator {
  @usableFromInline @inline(never)
  func zallocLarge(_ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority)
    -> UnsafeMutableRawPointer?
  {
    let request = AllocationRequest(
      size: size, type: type, priority: priority, site: CallSite(codeAddress: cp_return_address()))
    guard let object = allocateAboveAPage(request) else { return allocateLarge(request, .yes) }
    object.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size))
    return object
  }

  /// The first size that no address space has.
  private static var sizeLimit: UInt64 { 1 << 47 }

  func allocateLarge(_ request: AllocationRequest, _ zeroed: Zeroed) -> UnsafeMutableRawPointer? {
    let pages = ByteCount(request.size).pagesRoundedUp
    guard let large = state.pointee.large, request.size < Self.sizeLimit,
      !state.pointee.machine.failsHere(.kmem)
    else {
      recordRefusal(request)
      return nil
    }
    func allocate() -> UInt64 {
      large.allocatePages(
        large.context, pages.rawValue, request.priority.rawValue, zeroed == .yes, request.type.index,
        request.site.rawValue)
    }
    var address = allocate()
    if address == 0 && request.priority != .interrupt && reclaim() > .zero { address = allocate() }
    guard address != 0 else {
      recordRefusal(request)
      return nil
    }
    request.type.countAllocation(CacheIndex.large)
    request.type.countAllocation(CacheIndex.largePages, pages.rawValue)
    return UnsafeMutableRawPointer(bitPattern: UInt(address))
  }

  func freeLarge(_ request: FreeRequest, _ type: MemoryType) {
    let address = VirtualAddress(request.object)
    if let location = locate(address) {
      return report(
        .wrongSize, "freed by a size above a page, but it is a small object", location, request)
    }
    guard let large = state.pointee.large, request.size < Self.sizeLimit else {
      return reportForeign(request)
    }
    let pages = ByteCount(request.size).pagesRoundedUp.rawValue
    guard large.freePages(large.context, address.rawValue, pages, request.site.rawValue) else { return }
    type.countFree(CacheIndex.large)
    type.countFree(CacheIndex.largePages, pages)
  }
}
