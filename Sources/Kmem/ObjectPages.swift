// Objects above a page for whose slab memory has no run: whole pages with an address of their own.
//
// The size classes above a page do this too (Large.swift). An object cache does it where no contiguity was asked for and
// there are no hooks, and where the request may ask every processor. Such an object counts as a large request under its
// type, by pages, and toward the limit of its cache.
//
// A magazine holds objects of slabs only, and the fast path does not look. So the cache has no magazines while any of its
// objects lies on pages: each is one reason to block them. A free then finds by the address that no slab has the object,
// and the arena of the address checks it.
//   The limit: kmem does not see that the pages of a large request are freed to a cache that has objects on as many pages,
// or the reverse.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension CachePointer {
  /// Whether an object of the cache may lie on pages of its own.
  var mayUsePages: Bool {
    cacheIndex >= CacheIndex.firstObjectCache && chunk > Int(Page.size) && !source.isContiguous
      && descriptor.construct == nil && descriptor.destruct == nil
      && !descriptor.isZone.load(ordering: .relaxed)
  }

  /// Allocates pages for an object, and counts them. Nil at the limit and without memory. Does not wait.
  func allocateOnPages(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    guard mayUsePages && mayAskProcessors() && !machine.failsHere(.kmem) else { return nil }
    blockMagazines()
    let isBelowLimit = lists.withLock { lists in
      guard objectsLeft(&lists) > 0 else { return false }
      lists.onPages += 1
      return true
    }
    if isBelowLimit {
      if let object = kmem.allocatePages(request, .no, until: Tick(0)) { return object }
      endPages()
    } else {
      unblockMagazines()
    }
    return nil
  }

  /// Frees the pages of an object; answers false when the free was reported instead.
  func freeOnPages(_ request: FreeRequest, _ type: MemoryType) -> Bool {
    guard lists.withLock({ $0.onPages > 0 }) else {
      kmem.reportForeign(request)
      return false
    }
    guard kmem.freeLarge(request, type) else { return false }
    endPages()
    return true
  }

  /// Counts an object less on pages.
  private func endPages() {
    let (mustUnblock, mustWake, isFarFromLimit) = lists.withLock { lists in
      // Two wrong frees may have ended more than there were.
      let mustUnblock = lists.onPages > 0
      if mustUnblock { lists.onPages -= 1 }
      let hasWaiters = lists.waiters.first != nil
      return (mustUnblock, serveWaiters(&lists) || hasWaiters, leavesLimit(&lists))
    }
    if mustWake { wakeWaiters() }
    if isFarFromLimit { unblockMagazines() }
    if mustUnblock { unblockMagazines() }
  }
}
