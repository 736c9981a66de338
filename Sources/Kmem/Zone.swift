// Zones: object caches with a demand. So many objects are kept free for requests that must not fail.
//
// A request of normal priority never uses the demand: it makes a slab first, and waits or is refused without memory for
// one. A request of a higher priority uses it, and can't fail as long as no more than the demand are asked for. After
// each such request the zone makes a slab again, without waiting; where there is no memory, the next request tries
// again. So the caller of such a request needs no memory of physical memory.
//
// A zone works without magazines. A free object is in its slab, where each processor can reach it, so the demand and the
// limit are exact at all times. A pair costs a lock each way. A zone is not audited.
//
// Objects can be registered before physical memory and kmem exist (`RegisteredObjects`): their pages come from early
// memory. The zone takes them over when it is made.
//
// Typed zones of DragonFly (kmalloc_obj) replaced its zalloc and its private reserves in the same way; FreeBSD has
// uma_zone_reserve.

import CPlatform
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// Objects that a zone hands out before there are frame records, from pages of early memory.
///
/// One processor uses it, before anything else runs.
package struct RegisteredObjects {
  /// The pages; no page when early memory had none.
  let run: FrameRun
  let base: UnsafeMutableRawPointer
  let chunk: Int
  /// Objects handed out so far.
  private(set) var used = 0

  /// Registers at least `count` objects of `size` bytes. Nil when early memory has no pages for them.
  package init?(
    _ count: Int, size: ByteCount, alignment: Alignment, from early: EarlyMemory, directMap: DirectMap
  ) {
    chunk = KmemAllocator.spacing(Int(size.rawValue), max(8, Int(alignment.rawValue)), isConstructed: false)
    let perPage = Int(Page.size) / chunk
    // So a slab of them needs no tables, and the zone can take them over without memory.
    precondition(perPage > 0 && perPage <= 64, "objects of 64 bytes to a page can be registered")
    let pages = PageCount(UInt64((count + perPage - 1) / perPage))
    guard let run = early.allocate(pages, role: .slab, for: FrameOwner("Kmem, registered objects")) else {
      return nil
    }
    self.run = run
    base = directMap.pointer(to: run.first)
  }

  private var perPage: Int { Int(Page.size) / chunk }
  /// Objects in all.
  package var count: Int { Int(run.count.rawValue) * perPage }

  /// Hands out an object; nil when all are. It must not be freed before the zone exists.
  package mutating func alloc() -> UnsafeMutableRawPointer? {
    guard used < count else { return nil }
    defer { used += 1 }
    return base + used / perPage * Int(Page.size) + used % perPage * chunk
  }

  /// Objects handed out of the page at `index`.
  func used(inPage index: Int) -> Int { min(perPage, max(0, used - index * perPage)) }
}

/// A zone in figures.
package struct ZoneDescription {
  /// The name that it was made with.
  package var name: ShortName
  /// Objects with callers, and free ones.
  package var inUse: UInt64
  package var free: UInt64
  /// Free objects that it keeps for requests above normal priority.
  package var demand: UInt64
  /// Objects that were registered before kmem existed.
  package var registered: UInt64
  /// The fewest free objects since it was made.
  package var lowWater: UInt64
  /// The most objects that callers may have; nil for no limit.
  package var limit: UInt64?
}

extension KmemAllocator {
  /// Makes a zone: a cache, without hooks, that keeps `demand` objects free for requests above normal priority.
  /// `registered` are objects that were handed out before: they count as allocated under `type`, and are freed to the zone.
  ///
  /// Throws as `createCache`; `.noMemory` also when there is none for the demand.
  package func createZone(
    name: ShortName, size: ByteCount, alignment: Alignment = .cacheLine, demand: Int, type: MemoryType,
    registered: RegisteredObjects? = nil
  ) throws(KmemError) -> ObjectCache {
    let zone = try createCache(name: name, size: size, alignment: alignment)
    guard let cache = zone.pointer else { throw .noMemory }
    cache.blockMagazines()
    cache.setAudit(.off)
    cache.descriptor.isZone.store(true, ordering: .relaxed)
    if let registered {
      cache.adopt(registered)
      type.countAllocation(cache.cacheIndex, UInt64(registered.used))
    }
    cache.lists.withLock { $0.demand = demand }
    guard cache.replenish() == .met else {
      cache.lists.withLock { $0.demand = 0 }
      if registered == nil { destroy(zone) }
      throw .noMemory
    }
    cache.lists.withLock { $0.lowWater = $0.free }
    return zone
  }

  /// Visits every zone.
  package func forEachZone<E>(_ body: (ZoneDescription) throws(E) -> Void) throws(E) {
    try forEach { (cache) throws(E) in
      let lists = cache.lists.withLock { $0 }
      guard lists.demand > 0 else { return }
      try body(
        ZoneDescription(
          name: cache.name, inUse: UInt64(lists.out), free: UInt64(lists.free), demand: UInt64(lists.demand),
          registered: UInt64(lists.registered), lowWater: UInt64(lists.lowWater),
          limit: cache.limit.map { UInt64($0) }))
    }
  }
}

extension SlabLists {
  /// Objects that can be allocated from slabs.
  var free: Int { objects - out - lost }
}

extension CachePointer {
  enum Demand { case met, short }

  /// Whether requests have used a part of the demand.
  var isShortOfDemand: Bool {
    descriptor.isZone.load(ordering: .relaxed) && lists.withLock { $0.free < $0.demand }
  }

  /// Makes slabs, without waiting, until the demand is met.
  @discardableResult func replenish() -> Demand {
    while lists.withLock({ $0.free < $0.demand }) {
      guard let slab = makeSlab(isAudited: auditPeriod != nil, priority: .normal) else { return .short }
      let mustWake = lists.withLock { lists in
        insert(&lists, slab)
        return serveWaiters(&lists)
      }
      if mustWake { wakeWaiters() }
    }
    return .met
  }

  /// Whether a slab whose objects are all free is not needed for the demand.
  func isBeyondDemand(_ lists: inout SlabLists, _ slab: Slab) -> Bool {
    lists.demand == 0 || lists.free - slab.objects >= lists.demand
  }

  /// Takes over the pages of registered objects as slabs. Their frames have records by now.
  fileprivate func adopt(_ registered: RegisteredObjects) {
    precondition(registered.chunk == chunk, "objects were registered with another size")
    for index in 0..<Int(registered.run.count.rawValue) {
      let objects = Int(Page.size) / chunk
      let slab = Slab.create(
        FrameRun(first: registered.run.first + PageCount(UInt64(index)), count: .one), cache: cacheIndex,
        objects: objects, isAudited: false, tables: nil, physical: physical, directMap: machine.directMap)
      let used = registered.used(inPage: index)
      for free in used..<objects { setWord(of: object(slab, free), FreeWord.of(object(slab, free))) }
      lists.withLock { lists in
        insert(&lists, slab)
        slab.setFree(0, slab.free(0) & ~(1 << UInt64(used) &- 1))
        move(&lists, slab, from: .free, out: used)
        lists.registered += objects
      }
    }
  }
}
