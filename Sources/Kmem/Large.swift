// Requests above the largest class, and those above a page for whose slab no run is free: whole pages with an address of
// their own. ObjectPages.swift has those of object caches.
//
// The pages are counted at an index of their own, so a type's bytes derive from its counters here too. The arena of the
// address checks the size at a free.

import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// A source of whole pages with an address: two C functions and their context.
package struct LargePages {
  /// Allocates pages for a type of memory, by its number, and answers their address, 0 for none. Waits for them until
  /// `deadline`, a tick; 0 for a request that does not wait.
  package typealias AllocatePages =
    @convention(c) (
      _ context: UnsafeMutableRawPointer?, _ pages: UInt64, _ priority: UInt8, _ zeroed: Bool,
      _ type: UInt16, _ site: UInt32, _ deadline: UInt64
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
  func zallocLarge(
    _ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority, _ wait: WaitPolicy
  ) -> UnsafeMutableRawPointer? {
    let request = AllocationRequest(
      size: size, type: type, priority: priority, wait: wait,
      site: CallSite(codeAddress: cp_return_address()))
    guard let object = allocateAboveAPage(request) else { return allocateLarge(request, .yes) }
    object.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size))
    return object
  }

  /// The first size that no address space has.
  private static var sizeLimit: UInt64 { 1 << 47 }

  /// Allocates pages for a request. The limit of a class above a page binds these too.
  func allocateLarge(_ request: AllocationRequest, _ zeroed: Zeroed) -> UnsafeMutableRawPointer? {
    if let cacheIndex = SizeClasses.cacheIndexAboveAPage(request.size),
      cache(at: cacheIndex)?.isAtLimit == true
    {
      recordRefusal(request, because: "the limit of the cache")
      return nil
    }
    guard request.size < Self.sizeLimit, !state.machine.failsHere(.kmem) else {
      recordRefusal(request)
      return nil
    }
    var object = allocatePages(request, zeroed, until: Tick(0))
    if object == nil && request.priority != .interrupt {
      object = state.physical.retryAfterReclaim { allocatePages(request, zeroed, until: Tick(0)) }
      if object == nil && request.wait.mayWait {
        object = allocatePages(request, zeroed, until: request.wait.deadline)
      }
    }
    if object == nil { recordRefusal(request) }
    return object
  }

  /// Allocates the pages of a request, and counts them. Nil without a source, or without memory until `deadline`, a tick;
  /// 0 does not wait.
  func allocatePages(
    _ request: AllocationRequest, _ zeroed: Zeroed, until deadline: Tick
  ) -> UnsafeMutableRawPointer? {
    guard let large = state.large else { return nil }
    let pages = ByteCount(request.size).pagesRoundedUp.rawValue
    let address = large.allocatePages(
      large.context, pages, request.priority.rawValue, zeroed == .yes, request.type.index,
      request.site.rawValue, deadline.rawValue)
    guard address != 0 else { return nil }
    request.type.countAllocation(CacheIndex.large)
    request.type.countAllocation(CacheIndex.largePages, pages)
    return UnsafeMutableRawPointer(bitPattern: UInt(address))
  }

  /// Frees pages; answers false when the free was reported instead.
  func freeLarge(_ request: FreeRequest, _ type: MemoryType) -> Bool {
    let address = VirtualAddress(request.object)
    if let location = locate(address) {
      report(.wrongSize, "freed by a size above a page, but it is a small object", location, request)
      return false
    }
    guard let large = state.large, request.size < Self.sizeLimit else {
      reportForeign(request)
      return false
    }
    let pages = ByteCount(request.size).pagesRoundedUp.rawValue
    guard large.freePages(large.context, address.rawValue, pages, request.site.rawValue) else { return false }
    type.countFree(CacheIndex.large)
    type.countFree(CacheIndex.largePages, pages)
    return true
  }
}
