// The slow path of allocations and frees: magazines, depot, slabs, frames, in this order. The part of a cache is in
// Cache+SlowPath.swift, reports are in KmemAllocator+Reports.swift.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A request for memory.
struct AllocationRequest {
  let size: UInt64
  let type: MemoryType
  let priority: AllocationPriority
  var wait = WaitPolicy.forbidden
  /// The caller, for reports and the audit.
  let site: CallSite
  /// Whether kmem counts and records a refusal, or the caller does.
  var failures = FailureRecording.here
}

/// A request to free memory.
struct FreeRequest {
  let object: UnsafeMutableRawPointer
  let size: UInt64
  /// Nil when kmem no longer knows it.
  let type: MemoryType?
  /// The caller, for reports and the audit.
  let site: CallSite
}

extension KmemAllocator {
  @usableFromInline @inline(never)
  func allocSlow(
    _ offset: Int, _ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority, wait: WaitPolicy
  ) -> UnsafeMutableRawPointer? {
    return allocate(
      AllocationRequest(
        size: size, type: type, priority: priority, wait: wait,
        site: CallSite(codeAddress: cp_return_address())),
      at: offset)
  }

  /// Carries out a request of the class at a counter offset.
  func allocate(_ request: AllocationRequest, at offset: Int) -> UnsafeMutableRawPointer? {
    assert(state.physical.mayAllocate, "an owner of memory allocates while it frees memory")
    if offset == CacheIndex.large * 16 {
      return allocateAboveAPage(request) ?? allocateLarge(request, .no)
    }
    // A size of zero is served like a size of one.
    let cacheIndex = max(offset >> 4, CacheIndex.firstClass)
    guard let cache = cache(at: cacheIndex) else {
      reportDestroyed(cacheIndex)
      return nil
    }
    if let object = allocate(request, from: cache) { return object }
    cache.descriptor.failed.add(1, ordering: .relaxed)
    recordRefusal(request, because: cache.isAtLimit ? "the limit of the cache" : "no memory")
    return nil
  }

  /// Allocates an object of a class above a page; nil when no class is that large, or physical memory has no run for
  /// its slab.
  func allocateAboveAPage(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    guard let cacheIndex = SizeClasses.cacheIndexAboveAPage(request.size), let cache = cache(at: cacheIndex)
    else { return nil }
    return allocate(request, from: cache)
  }

  /// Allocates an object past the fast path, and counts it. Nil when the cache is at its limit, or gets no slab even after
  /// all owners of memory freed what they keep, and the request waits no longer.
  private func allocate(
    _ request: AllocationRequest, from cache: CachePointer
  ) -> UnsafeMutableRawPointer? {
    var object = cache.allocate(request)
    if object == nil && cache.isAtLimit {
      object = cache.allocateAtLimit(request)
      if object == nil && request.wait.mayWait && request.priority != .interrupt {
        object = cache.waitForObject(request)
      }
    } else if object == nil && request.priority != .interrupt {
      // Pages of its own cost less than the memory that all caches keep free.
      if let pages = cache.allocateOnPages(request) { return pages }
      object = state.physical.retryAfterReclaim { cache.allocate(request) }
      if object == nil, let pages = cache.allocateOnPages(request) { return pages }
      if object == nil && request.wait.mayWait {
        object = cache.waitForObject(request)
        if object == nil, let pages = cache.allocateOnPages(request) { return pages }
      }
    }
    if object != nil {
      request.type.countAllocation(cache.cacheIndex)
      sample(request, cache)
    }
    if cache.isShortOfDemand { cache.replenish() }
    return object
  }

  @usableFromInline @inline(never)
  func freeSlow(_ object: UnsafeMutableRawPointer, _ offset: Int, _ size: UInt64, _ type: MemoryType) {
    let request = FreeRequest(
      object: object, size: size, type: type, site: CallSite(codeAddress: cp_return_address()))
    _ = free(request, type, at: offset)
  }

  /// Frees an object of the class at a counter offset past the fast path. Answers false when it was reported instead.
  func free(_ request: FreeRequest, _ type: MemoryType, at offset: Int) -> Bool {
    let (object, size) = (request.object, request.size)
    let location = locate(VirtualAddress(object))
    var cacheIndex = max(offset >> 4, CacheIndex.firstClass)
    if cacheIndex == CacheIndex.large {
      guard location != nil, let aboveAPage = SizeClasses.cacheIndexAboveAPage(size) else {
        return freeLarge(request, type)
      }
      cacheIndex = aboveAPage
    }
    guard let found = location else {
      if let cache = cache(at: cacheIndex), cache.mayUsePages { return cache.freeOnPages(request, type) }
      reportForeign(request)
      return false
    }
    if let mistake = found.mistake(cacheIndex) {
      report(mistake.kind, mistake.what, found, request)
      return false
    }
    if found.slab.isAudited { return freeAudited(found, request, type) }
    if found.cache.isFreeLocked(found.slab, found.index)
      || found.cache.magazines.isOnTop(UInt(bitPattern: object))
    {
      report(.doubleFree, "freed an object that is free already", found, request)
      return false
    }
    found.cache.free(UInt(bitPattern: object), request.site)
    type.countFree(cacheIndex)
    return true
  }

  /// Finds the object that an address belongs to; nil when it is in no slab.
  func locate(_ address: VirtualAddress) -> ObjectLocation? {
    let machine = state.machine
    let physical = machine.directMap.physicalAddress(of: address).rawValue
    guard physical >> Page.shift < UInt64(FrameNumber.limit) else { return nil }
    guard let record = state.physical.record(PhysicalAddress(physical).frame), record.role == .slab,
      record.queue == .owner, let cache = cache(at: Slab.cache(record))
    else { return nil }
    let frame = PhysicalAddress(physical).frame
    let first = Slab.first(frame, record)
    let slab = first == frame ? Slab(frame, record, machine.directMap) : cache.slab(first)
    let offset = Int(address.rawValue - UInt64(UInt(bitPattern: slab.base)))
    // The quotient by multiplication is exact for offsets below 2^15 only.
    let index =
      offset < 1 << 15
      ? Int((UInt64(offset) &* cache.descriptor.reciprocal) >> 32) : offset / cache.chunk
    return ObjectLocation(cache: cache, slab: slab, index: index, offset: offset - index * cache.chunk)
  }
}

/// An address by its slab.
struct ObjectLocation {
  let cache: CachePointer
  let slab: Slab
  let index: Int
  /// Bytes into the object.
  let offset: Int

  /// Says why the address can't be freed as an object of the cache at `cacheIndex`; nil if it can.
  func mistake(_ cacheIndex: Int) -> (kind: FaultKind, what: StaticString)? {
    if index >= slab.objects { return (.foreignPointer, "freed an address behind the objects of a slab") }
    if offset != 0 { return (.foreignPointer, "freed an address inside an object") }
    if cache.cacheIndex == cacheIndex { return nil }
    if cache.cacheIndex < CacheIndex.firstObjectCache && cacheIndex < CacheIndex.firstObjectCache {
      return (.wrongSize, "freed by another size than it was allocated by")
    }
    return (.foreignPointer, "freed to another cache than it came from")
  }
}
