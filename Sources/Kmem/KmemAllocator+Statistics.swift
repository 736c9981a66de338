// Sums over an instance, and their rows in the registry of statistics.

import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension KmemAllocator {
  /// Sums the bytes of objects in use, with their caches' spacing, and of large requests' pages.
  public var usedBytes: ByteCount {
    var bytes: UInt64 = 0
    forEachType { bytes &+= $0.bytes.rawValue &- $0.contiguous.rawValue }
    return ByteCount(bytes)
  }

  /// Sums the bytes of contiguous memory in use under all types. It is not kmem's: neither used nor held counts it.
  package var contiguousBytes: ByteCount {
    let pages = sums(CacheIndex.contiguousPages)
    return PageCount(pages.allocations &- pages.frees).bytes
  }

  /// Sums the bytes of all slabs, of large requests' pages, and of kmem's own tables.
  public var heldBytes: ByteCount {
    let large = sums(CacheIndex.largePages)
    return (slabPages + PageCount(large.allocations &- large.frees)).bytes + metadataBytes
  }

  /// Sums the bytes of kmem's own tables: state, slots, descriptors, counters.
  package var metadataBytes: ByteCount {
    Self.size(processors: machine.processorCount)
      + PageCount(state.metadataPages.load(ordering: .relaxed)).bytes
  }

  /// Sums the requests granted since the start, those for contiguous memory included.
  package var requests: UInt64 {
    var requests: UInt64 = 0
    forEachType { requests += $0.requests }
    return requests
  }
  /// Sums the requests refused since the start, those for contiguous memory included.
  package var failedRequests: UInt64 { sums(CacheIndex.failed).allocations }
  /// Sums those that kmem itself refused, and recorded: the layer of contiguous memory records its own.
  private var ownRefusals: UInt64 {
    failedRequests &- state.contiguousFailures.load(ordering: .relaxed)
  }

  // MARK: Statistics

  /// Adds kmem's rows to the registry.
  package func register(in statistics: Statistics) {
    func row(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, kind, about, context: base, read: read))
    }
    row("kmem.used", .bytes, .gauge, "objects in use and large requests") {
      KmemAllocator($0).usedBytes.rawValue
    }
    row("kmem.held", .bytes, .gauge, "slabs, large requests and kmem's own tables") {
      KmemAllocator($0).heldBytes.rawValue
    }
    row("kmem.metadata", .bytes, .gauge, "kmem's own tables") { KmemAllocator($0).metadataBytes.rawValue }
    row("kmem.slab_pages", .pages, .gauge, "frames of slabs") { KmemAllocator($0).slabPages.rawValue }
    row("kmem.requests", .requests, .counter, "allocations granted") { KmemAllocator($0).requests }
    row("kmem.failed", .requests, .counter, "allocations refused; failures lists the last") {
      KmemAllocator($0).ownRefusals
    }
    row("kmem.depot.exchanges", .events, .counter, "magazines exchanged with a depot") {
      KmemAllocator($0).sum(.exchanges)
    }
    row("kmem.magazine.refills", .events, .counter, "magazines filled from slabs") {
      KmemAllocator($0).sum(.refills)
    }
    row("kmem.magazine.spills", .events, .counter, "magazines emptied into slabs") {
      KmemAllocator($0).sum(.spills)
    }
    row("kmem.slabs_made", .events, .counter, "slabs made") {
      KmemAllocator($0).sum(.slabsMade)
    }
    row("kmem.slabs_given_back", .events, .counter, "slabs released to physical memory") {
      KmemAllocator($0).sum(.slabsGivenBack)
    }
    row("kmem.reclaims", .events, .counter, "times caches were asked for the memory that they keep free") {
      KmemAllocator($0).state.reclaims.load(ordering: .relaxed)
    }
    row("kmem.trims", .events, .counter, "times the memory that no cache needed for a while was released") {
      KmemAllocator($0).state.trimmer.trims.load(ordering: .relaxed)
    }
    statistics.add(
      Statistic(
        "kmem.trim_every", .ticks, .tunable, "time from one trim of the trimming thread to the next",
        range: 1...86_400_000, context: base, read: { KmemAllocator($0).trimInterval },
        write: { KmemAllocator($0).setTrimInterval($1) }))
    statistics.add(
      Statistic(
        "kmem.audit", .switchOnOff, .tunable, "record each object: size, type, call sites",
        context: base, read: { KmemAllocator($0).auditing == .on ? 1 : 0 },
        write: { KmemAllocator($0).setAudit($1 == 1 ? .on : .off) }))
    registerLimits(in: statistics)
  }

  /// Adds the limits of caches and types.
  private func registerLimits(in statistics: Statistics) {
    let ofCache = Statistic(
      "kmem.limit", .objects, .tunable, "objects that callers may have at once; 0 for no limit",
      range: 0...UInt64(UInt32.max), context: base,
      read: { UInt64(KmemAllocator.cache(of: $0).limit ?? 0) },
      write: { KmemAllocator.cache(of: $0).setLimit($1 == 0 ? nil : Int($1)) })
    statistics.add(
      StatisticFamily(ofCache, limit: CacheIndex.limit) { list, index, name in
        guard let cache = KmemAllocator(list).cache(at: index) else { return nil }
        name.assumingMemoryBound(to: ShortName.self).pointee = cache.name
        return UnsafeMutableRawPointer(cache.cache)
      })
    let ofType = Statistic(
      "kmem.type_limit", .bytes, .tunable, "bytes that its objects may have at once; 0 for no limit",
      context: base,
      read: { KmemAllocator.limitedType(of: $0).limit.rawValue },
      write: { KmemAllocator.limitedType(of: $0).limit = ByteCount($1) })
    statistics.add(
      StatisticFamily(ofType, limit: Self.typeLimit) { list, index, name in
        let kmem = KmemAllocator(list)
        guard let type = kmem.type(at: UInt16(index)), let limited = kmem.limitedType(type) else {
          return nil
        }
        name.assumingMemoryBound(to: ShortName.self).pointee = type.name
        return UnsafeMutableRawPointer(limited.storage)
      })
  }

  private static func cache(of context: UnsafeMutableRawPointer?) -> CachePointer {
    let cache = context.unsafelyUnwrapped.assumingMemoryBound(to: Cache.self)
    return CachePointer(cache: cache, kmem: cache.pointee.kmem)
  }
  private static func limitedType(of context: UnsafeMutableRawPointer?) -> LimitedType {
    LimitedType(storage: context.unsafelyUnwrapped.assumingMemoryBound(to: TypeLimit.self))
  }

  /// Makes the handle from the context of a row.
  private init(_ context: UnsafeMutableRawPointer?) { self.init(at: context.unsafelyUnwrapped) }

  /// Sums an event over all caches, the destroyed ones included.
  private func sum(_ event: CacheEvent) -> UInt64 {
    var sum = state.past[event.rawValue].load(ordering: .relaxed)
    forEach { sum &+= $0.count(event) }
    return sum
  }
}

/// The events that a cache counts.
enum CacheEvent: Int {
  case exchanges, refills, spills, slabsMade, slabsGivenBack

  static var count: Int { 5 }
}

extension CachePointer {
  /// Counts an event since the cache was made.
  func count(_ event: CacheEvent) -> UInt64 {
    switch event {
    case .exchanges: magazines.exchanges
    case .refills: magazines.refills
    case .spills: magazines.spills
    case .slabsMade: lists.withLock { $0.created }
    case .slabsGivenBack: lists.withLock { $0.released }
    }
  }
}
