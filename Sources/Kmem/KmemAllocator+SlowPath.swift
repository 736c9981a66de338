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
  func allocSlow(_ offset: Int, _ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority)
    -> UnsafeMutableRawPointer?
  {
    return allocate(
      AllocationRequest(
        size: size, type: type, priority: priority, site: CallSite(codeAddress: cp_return_address())),
      at: offset)
  }

  /// Carries out a request of the class at a counter offset.
  func allocate(_ request: AllocationRequest, at offset: Int) -> UnsafeMutableRawPointer? {
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
    cache.cache.pointee.failed.add(1, ordering: .relaxed)
    recordRefusal(request)
    return nil
  }

  /// Allocates an object of a class above a page; nil when no class is that large, or physical memory has no run for
  /// its slab.
  func allocateAboveAPage(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    guard let cacheIndex = SizeClasses.cacheIndexAboveAPage(request.size), let cache = cache(at: cacheIndex)
    else { return nil }
    return allocate(request, from: cache)
  }

  /// Allocates an object past the fast path, and counts it. Nil when the cache gets no slab, even after all caches
  /// released what they keep free.
  private func allocate(
    _ request: AllocationRequest, from cache: CachePointer
  ) -> UnsafeMutableRawPointer? {
    var object = cache.allocate(request)
    if object == nil && request.priority != .interrupt && reclaim() > .zero {
      object = cache.allocate(request)
    }
    if object != nil { request.type.countAllocation(cache.cacheIndex) }
    return object
  }

  @usableFromInline @inline(never)
  func freeSlow(_ object: UnsafeMutableRawPointer, _ offset: Int, _ size: UInt64, _ type: MemoryType) {
    let request = FreeRequest(
      object: object, size: size, type: type, site: CallSite(codeAddress: cp_return_address()))
    let location = locate(VirtualAddress(object))
    var cacheIndex = max(offset >> 4, CacheIndex.firstClass)
    if cacheIndex == CacheIndex.large {
      guard location != nil, let aboveAPage = SizeClasses.cacheIndexAboveAPage(size) else {
        return freeLarge(request, type)
      }
      cacheIndex = aboveAPage
    }
    guard let found = location else { return reportForeign(request) }
    if let mistake = found.mistake(cacheIndex) {
      return report(mistake.kind, mistake.what, found, request)
    }
    if found.slab.isAudited { return freeAudited(found, request, type) }
    if found.cache.isFreeLocked(found.slab, found.index)
      || found.cache.magazines.isOnTop(UInt(bitPattern: object))
    {
      return report(.doubleFree, "freed an object that is free already", found, request)
    }
    found.cache.free(UInt(bitPattern: object), request.site)
    type.countFree(cacheIndex)
  }

  /// Finds the object that an address belongs to; nil when it is in no slab.
  func locate(_ address: VirtualAddress) -> ObjectLocation? {
    let machine = state.pointee.machine
    let physical = machine.directMap.physicalAddress(of: address).rawValue
    guard physical >> Page.shift < UInt64(FrameNumber.limit) else { return nil }
    guard let record = state.pointee.physical.record(PhysicalAddress(physical).frame), record.role == .slab,
      record.queue == .owner, let cache = cache(at: Slab.cache(record))
    else { return nil }
    let frame = PhysicalAddress(physical).frame
    let first = Slab.first(frame, record)
    let slab = first == frame ? Slab(frame, record, machine.directMap) : cache.slab(first)
    let offset = Int(address.rawValue - UInt64(UInt(bitPattern: slab.base)))
    // The quotient by multiplication, exact for offsets below 2^15.
    let index = Int((UInt64(offset) &* cache.cache.pointee.reciprocal) >> 32)
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

// MARK: - Releasing memory

extension KmemAllocator {
  /// Empties all magazines and releases every slab that has no object in use. Answers the pages released.
  ///
  /// Asks every processor, and waits for a trim to end; no spin lock may be held.
  @discardableResult package func drain() -> PageCount {
    let before = slabPages
    forEach { cache in
      cache.lowerDepotLimit()
      cache.magazines.drain { cache.returnToSlab($0, .unknown) }
      cache.freeEmptyMagazines()
    }
    // The objects that a trim is moving are in no depot and no slab; a trim that begins now finds the depots empty.
    state.pointee.trimmer.lock.withLock(on: state.pointee.machine) {}
    forEach { $0.releaseFreeSlabs() }
    return before.subtractingSaturated(slabPages)
  }

  /// Releases the memory that no processor has: the objects in depots, and slabs without any in use. Answers the
  /// pages released.
  func reclaim() -> PageCount {
    state.pointee.reclaims.add(1, ordering: .relaxed)
    let before = slabPages
    forEach { cache in
      cache.lowerDepotLimit()
      cache.magazines.drainDepot { cache.returnToSlab($0, .unknown) }
      cache.releaseFreeSlabs()
    }
    return before.subtractingSaturated(slabPages)
  }

  /// Frames of all slabs.
  var slabPages: PageCount {
    var frames = 0
    forEach { frames += $0.cache.pointee.lists.withLock { $0.frames } }
    return PageCount(frames)
  }
}
