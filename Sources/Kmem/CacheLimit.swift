// The limit of a cache: the most objects that callers may have at once.
//
// Objects out of slabs are with callers or in magazines, so their number, which the cache's lock guards, is at most the
// limit at all times. Far below the limit nothing else is counted, and the fast path tests for nothing. A request that
// finds the number at the limit takes the magazines from the cache first: then the objects out of slabs are those with
// callers, and the limit is exact. The magazines come back when an eighth of the limit is free again.
//
// At the limit a request that may wait sleeps until an object is freed, in the order of priority and arrival; another
// one is refused. Interrupt priority does not exceed a limit.

import CPlatform
import Magazines
import MemoryPrimitives
import Synchronization

extension ObjectCache {
  /// Limits the objects that callers may have at once; nil for no limit. Objects beyond a lowered limit stay in use, and
  /// no further one is allocated until enough are freed.
  ///
  /// At the limit, a request waits or is refused as when memory is short. Near it the cache works without magazines.
  /// Asks every processor; no spin lock may be held.
  public func setLimit(_ objects: Int?) { pointer?.setLimit(objects) }
  /// The limit; nil for none.
  public var limit: Int? { pointer?.limit }
}

extension CachePointer {
  /// The limit in objects; nil for none.
  var limit: Int? {
    let limit = descriptor.limit.load(ordering: .relaxed)
    return limit == 0 ? nil : limit
  }

  func setLimit(_ objects: Int?) {
    descriptor.limit.store(objects.map { max(1, $0) } ?? 0, ordering: .relaxed)
    let (isAbove, mustWake, isFar) = lists.withLock { lists in
      (objectsLeft(&lists) < 0, serveAfterFree(&lists), leavesLimit(&lists))
    }
    if mustWake { wakeWaiters() }
    if isFar { unblockMagazines() }
    // Magazines may have more objects than the limit leaves to callers.
    if isAbove { approachLimit() }
  }

  /// Objects that may still leave slabs; negative above a lowered limit.
  @inline(__always) func objectsLeft(_ lists: inout SlabLists) -> Int {
    let limit = descriptor.limit.load(ordering: .relaxed)
    return limit == 0 ? .max : limit - lists.out - lists.onPages
  }

  /// Objects that may still leave slabs for a request: one of normal priority leaves a zone its demand.
  @inline(__always) func objectsLeft(_ lists: inout SlabLists, _ priority: AllocationPriority) -> Int {
    let left = objectsLeft(&lists)
    return lists.demand == 0 || priority != .normal ? left : min(left, lists.free - lists.demand)
  }

  /// Whether no object may leave a slab.
  var isAtLimit: Bool { lists.withLock { objectsLeft(&$0) <= 0 } }

  /// Takes the magazines from the cache, because it is near its limit. Asks every processor.
  private func approachLimit() {
    blockMagazines()
    let wasNear = lists.withLock { lists in
      defer { lists.isNearLimit = true }
      return lists.isNearLimit
    }
    if wasNear { unblockMagazines() }
  }

  /// Whether the cache, which is near its limit, has left it behind; the caller then ends the block of magazines.
  func leavesLimit(_ lists: inout SlabLists) -> Bool {
    guard lists.isNearLimit, lists.waiters.first == nil else { return false }
    let limit = descriptor.limit.load(ordering: .relaxed)
    guard limit == 0 || objectsLeft(&lists) > limit / 8 else { return false }
    lists.isNearLimit = false
    return true
  }

  /// Allocates an object for a request that found the cache at its limit: objects in magazines don't count. Nil when as
  /// many as the limit are with callers, or are in magazines of processors that this caller can't ask.
  func allocateAtLimit(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    if mayAskProcessors() {
      approachLimit()
    } else {
      withInterruptsOff { magazines.unload() }
      magazines.drainDepot { returnToSlab($0, request.site) }
    }
    return allocateFromSlab(request)
  }

  /// Sleeps until an object may leave a slab. Answers false when the deadline has passed or no thread can free one.
  func waitBelowLimit(_ waiter: UnsafeMutablePointer<KmemWaiter>) -> Bool {
    let (ticket, isOver) = lists.withLock { lists in
      (kmem.state.objectFreed.ticket(), waiter.pointee.object != nil || objectsLeft(&lists) > 0)
    }
    return isOver
      || kmem.state.objectFreed.sleep(
        ticket, until: waiter.pointee.request.wait.deadline, on: machine)
  }
}
