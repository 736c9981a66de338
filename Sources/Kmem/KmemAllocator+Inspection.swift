// Descriptions of caches, types and objects for the console, the host tool and a user's own code. Figures are exact when
// nothing runs; functions that walk slabs or magazines say so.

import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A cache in figures.
package struct CacheDescription {
  /// The name that it was made with.
  package var name: ShortName
  /// Bytes of an object.
  package var objectSize: ByteCount
  /// Bytes from one object to the next.
  package var spacing: ByteCount
  /// Objects with callers.
  package var inUse: UInt64
  /// Objects that the cache keeps, in magazines and slabs.
  package var free: UInt64
  /// Slabs that it has.
  package var slabs: UInt64
  /// Frames of these slabs.
  package var frames: PageCount
  /// Allocations granted.
  package var requests: UInt64
  /// Allocations refused.
  package var failed: UInt64
  /// Allocations that slept.
  package var waits: UInt64
  /// The most objects that callers may have; nil for no limit.
  package var limit: UInt64?
  /// The most objects that were out of slabs at once: with callers or in magazines.
  package var peak: UInt64
  /// Bytes that the objects in use have beyond what was requested: by the requests of the slow path, of which each stands
  /// for those of one magazine.
  package var roundedBytes: ByteCount
  /// Magazines exchanged with the depot, filled from slabs, and emptied into slabs.
  package var exchanges: UInt64
  package var refills: UInt64
  package var spills: UInt64
  /// Slabs made since the cache was made.
  package var slabsMade: UInt64
  /// Slabs released since the cache was made.
  package var slabsGivenBack: UInt64
  /// Words that one of its magazines holds.
  package var magazineRounds: UInt64
  /// Magazines that it has.
  package var magazines: UInt64
  /// Whether it is audited.
  package var auditing: Auditing
  /// Whether its slabs are contiguous runs; blocks of the direct map otherwise.
  package var isContiguous: Bool
  /// Whether it serves kmem sizes; an object cache otherwise.
  package var isSizeClass: Bool

  /// Bytes of its slabs.
  package var held: ByteCount { frames.bytes }
}

/// A type in figures.
package struct TypeDescription {
  /// The name that it was made with.
  package var name: ShortName
  /// Objects and large requests in use.
  package var inUse: UInt64
  /// Bytes in use, each object counted with its cache's spacing, large requests and contiguous memory by
  /// pages.
  package var bytes: ByteCount
  /// The contiguous memory among them.
  package var contiguous: ByteCount
  /// Allocations granted.
  package var requests: UInt64
  /// Allocations refused.
  package var failed: UInt64
  /// The most bytes in use of all samples: one at each slab made, thirty-second request of a slow path, and look.
  package var peakBytes: ByteCount
  /// The most bytes that it may have; nil for a type without a limit.
  package var limit: ByteCount?
  /// Allocations that slept below the limit.
  package var waits: UInt64
}

/// The description of an address in a slab.
package struct ObjectDescription {
  /// Where the object at the address is.
  package enum Standing: Equatable, Sendable {
    case inUse
    case freeInSlab
    case inMagazine(MagazinePlace)
    /// Behind the last object of the slab.
    case noObject
  }

  /// The name of the object's cache.
  package var cache: ShortName
  /// Bytes of an object of that cache.
  package var objectSize: ByteCount
  /// The first address of the slab.
  package var slabStart: VirtualAddress
  /// The first frame of the slab.
  package var firstFrame: FrameNumber
  /// Frames of the slab.
  package var frames: PageCount
  /// The first address of the object.
  package var objectStart: VirtualAddress
  /// Bytes from there to the address.
  package var offset: ByteCount
  /// The number of the object in its slab.
  package var index: Int
  /// Objects of the slab.
  package var objects: Int
  /// Objects of this slab that are not free there: in use, or in magazines.
  package var out: Int
  /// Where the object is.
  package var standing: Standing
  /// The audit's record; nil unless the object was allocated while its cache was audited.
  package var audit: ObjectAudit?
}

/// The audit's record of an object.
package struct ObjectAudit {
  /// Bytes of the last request that got the object.
  package var size: ByteCount
  /// The type of that request.
  package var type: ShortName?
  /// The call site of that request.
  package var allocatedAt: CallSite
  /// The call site of the free before it.
  package var freedAt: CallSite
}

extension KmemAllocator {
  // MARK: Caches and types

  /// Visits every cache, size classes first. Takes as long as caches times types times processors.
  package func forEachCache<E>(_ body: (CacheDescription) throws(E) -> Void) throws(E) {
    try forEach { (cache) throws(E) in try body(describe(cache)) }
  }

  func describe(_ cache: CachePointer) -> CacheDescription {
    let sums = sums(cache.cacheIndex)
    let lists = cache.lists.withLock { $0 }
    let inUse = sums.allocations &- sums.frees
    return CacheDescription(
      name: cache.name, objectSize: ByteCount(cache.size), spacing: ByteCount(cache.chunk),
      inUse: inUse &+ UInt64(lists.onPages), free: UInt64(lists.objects) &- min(inUse, UInt64(lists.objects)),
      slabs: UInt64(lists.plain.count + lists.audited.count), frames: PageCount(lists.frames),
      requests: sums.allocations, failed: cache.descriptor.failed.load(ordering: .relaxed),
      waits: cache.descriptor.waits.load(ordering: .relaxed), limit: cache.limit.map { UInt64($0) },
      peak: UInt64(lists.peakOut), roundedBytes: roundedBytes(of: cache, inUse: inUse),
      exchanges: cache.magazines.exchanges, refills: cache.magazines.refills, spills: cache.magazines.spills,
      slabsMade: lists.created, slabsGivenBack: lists.released,
      magazineRounds: UInt64(cache.magazines.rounds), magazines: UInt64(cache.magazines.magazineCount),
      auditing: cache.auditPeriod == nil ? .off : .on, isContiguous: cache.source.isContiguous,
      isSizeClass: cache.cacheIndex < CacheIndex.firstObjectCache)
  }

  /// Estimates the bytes that objects in use have beyond what was requested.
  private func roundedBytes(of cache: CachePointer, inUse: UInt64) -> ByteCount {
    let requests = cache.descriptor.roundedRequests.load(ordering: .relaxed)
    guard requests > 0 else { return .zero }
    let rounded = cache.descriptor.roundedBytes.load(ordering: .relaxed)
    return ByteCount(rounded / requests * inUse + rounded % requests * inUse / requests)
  }

  /// Counts what a request in the slow path leaves unused, and now and then what its type has in use.
  func sample(_ request: AllocationRequest, _ cache: CachePointer) {
    cache.descriptor.roundedBytes.add(UInt64(cache.chunk) &- request.size, ordering: .relaxed)
    let requests = cache.descriptor.roundedRequests.add(1, ordering: .relaxed).newValue
    guard requests % 32 == 0 else { return }
    let type = request.type
    var bytes: UInt64 = 0
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      bytes &+= bytesInUse(type.sums(cacheIndex, processors: machine.processorCount), cacheIndex)
    }
    // A free that another processor has counted already makes a sum look negative.
    if Int64(bitPattern: bytes) > 0 { type.header.pointee.peakBytes.max(bytes, ordering: .relaxed) }
  }

  /// The bytes in use at an index, with the spacing of its cache. Those of large requests stand at the index of their
  /// pages.
  private func bytesInUse(_ sums: (allocations: UInt64, frees: UInt64), _ cacheIndex: Int) -> UInt64 {
    let inUse = sums.allocations &- sums.frees
    if cacheIndex == CacheIndex.largePages || cacheIndex == CacheIndex.contiguousPages {
      return inUse &* Page.size
    }
    return inUse == 0 ? 0 : cache(at: cacheIndex).map { inUse &* UInt64($0.chunk) } ?? 0
  }

  /// Sums the allocations and frees of a cache index over all types.
  func sums(_ cacheIndex: Int) -> (allocations: UInt64, frees: UInt64) {
    var (allocations, frees): (UInt64, UInt64) = (0, 0)
    forEachTypeToken { type in
      let sums = type.sums(cacheIndex, processors: machine.processorCount)
      allocations &+= sums.allocations
      frees &+= sums.frees
    }
    return (allocations, frees)
  }

  /// Visits every type in the order in which they were made, for `vmstat -m`.
  package func forEachType<E>(_ body: (TypeDescription) throws(E) -> Void) throws(E) {
    var next: MemoryType? = otherType
    while let type = next {
      try body(describe(type))
      next = type.header.pointee.nextRow.map { MemoryType(row: $0) }
    }
  }

  /// Describes a type.
  package func describe(_ type: MemoryType) -> TypeDescription {
    let processors = machine.processorCount
    let (failed, past) = type.sums(CacheIndex.failed, processors: processors)
    var description = TypeDescription(
      name: type.name, inUse: 0, bytes: .zero, contiguous: .zero, requests: past, failed: failed,
      peakBytes: .zero, limit: nil, waits: 0)
    var bytes: UInt64 = 0
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      let sums = type.sums(cacheIndex, processors: processors)
      let ofIndex = bytesInUse(sums, cacheIndex)
      bytes &+= ofIndex
      if cacheIndex == CacheIndex.contiguousPages { description.contiguous = ByteCount(ofIndex) }
      if cacheIndex == CacheIndex.largePages || cacheIndex == CacheIndex.contiguousPages { continue }
      description.inUse &+= sums.allocations &- sums.frees
      description.requests += sums.allocations
    }
    description.bytes = ByteCount(bytes)
    type.header.pointee.peakBytes.max(bytes, ordering: .relaxed)
    description.peakBytes = ByteCount(type.header.pointee.peakBytes.load(ordering: .relaxed))
    if let limited = limitedType(type) {
      description.limit = limited.limit > .zero ? limited.limit : nil
      description.waits = limited.state.waits.load(ordering: .relaxed)
    }
    return description
  }

  /// Visits the sizes that a type has requested: spacing, requests, in use. Large requests and contiguous memory, whose
  /// sizes differ, come together, and without a spacing.
  package func forEachSize(
    of type: MemoryType, _ body: (ByteCount?, _ requests: UInt64, _ inUse: UInt64) -> Void
  ) {
    let processors = machine.processorCount
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      if cacheIndex > CacheIndex.large && cacheIndex < CacheIndex.firstObjectCache { continue }
      var sums = type.sums(cacheIndex, processors: processors)
      if cacheIndex == CacheIndex.large {
        let contiguous = type.sums(CacheIndex.contiguous, processors: processors)
        sums.allocations &+= contiguous.allocations
        sums.frees &+= contiguous.frees
      }
      guard sums.allocations > 0 else { continue }
      body(
        cache(at: cacheIndex).map { ByteCount($0.chunk) }, sums.allocations, sums.allocations &- sums.frees)
    }
  }

  // MARK: One address

  /// Describes an address in a slab; nil when no slab holds it. Searches the magazines of its cache, on every processor:
  /// no spin lock may be held. While other processors use the cache, the answer may be out of date.
  package func whatIs(_ address: VirtualAddress) -> ObjectDescription? {
    guard let location = locate(address) else { return nil }
    let (cache, slab, index) = (location.cache, location.slab, location.index)
    let isObject = index < slab.objects
    var description = ObjectDescription(
      cache: cache.name, objectSize: ByteCount(cache.size),
      slabStart: VirtualAddress(UnsafeRawPointer(slab.base)), firstFrame: slab.frame,
      frames: PageCount(slab.frames),
      objectStart: VirtualAddress(UnsafeRawPointer(cache.object(slab, index))),
      offset: ByteCount(location.offset), index: index, objects: slab.objects, out: 0,
      standing: .noObject, audit: nil)
    cache.lists.withLock { _ in
      description.out = slab.out
      guard isObject else { return }
      description.standing = slab.isFree(index) ? .freeInSlab : .inUse
      guard slab.isAudited else { return }
      let entry = slab.entry(index).pointee
      guard entry.period != 0 else { return }
      description.audit = ObjectAudit(
        size: ByteCount(Int(entry.size)), type: type(at: entry.type)?.name, allocatedAt: entry.allocatedAt,
        freedAt: entry.freedAt)
    }
    if description.standing == .inUse {
      let word = UInt(description.objectStart.rawValue)
      if let magazine = cache.magazines.location(of: word) { description.standing = .inMagazine(magazine) }
    }
    return description
  }

  /// Visits every slab, in an order that depends on the history alone. Nothing else may use the instance.
  package func forEachSlab(
    _ body: (_ cache: ShortName, FrameNumber, PageCount, _ objects: Int, _ out: Int, Auditing) -> Void
  ) {
    forEach { cache in
      cache.forEachSlab {
        body(cache.name, $0.frame, PageCount($0.frames), $0.objects, $0.out, $0.isAudited ? .on : .off)
      }
    }
  }
}
