// Object caches: objects of one size, perhaps with a constructor, with all that the size classes have.
//
// A constructed object stays constructed while it is in the cache (Bonwick 1994). The constructor runs when its slab is
// made, the destructor when the slab is released. Every caller must bring the object back to the constructed state
// before it frees it.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A cache of objects of one size: a handle. `KmemAllocator.lookUp` returns one for a size class.
@frozen public struct ObjectCache {
  @usableFromInline let kmem: KmemAllocator
  /// The cache index times 16: the offset of its counters.
  @usableFromInline let counterOffset: Int
  @usableFromInline let size: UInt32

  init(kmem: KmemAllocator, cacheIndex: Int, size: UInt32) {
    self.kmem = kmem
    counterOffset = cacheIndex * 16
    self.size = size
  }
  var cacheIndex: Int { counterOffset >> 4 }

  /// Allocates an object, counted under `type`; nil when there is no memory. Contents are as the constructor or the
  /// last user left them. About 20 instructions when this processor has one. It may wait, as `KmemAllocator.alloc`.
  @inline(always)
  public func alloc(
    type: MemoryType, priority: AllocationPriority = .normal, wait: WaitPolicy = .forbidden
  ) -> UnsafeMutableRawPointer? {
    kmem.popObject(counterOffset, type)
      ?? kmem.allocSlow(counterOffset, UInt64(size), type, priority, wait: wait)
  }

  /// Allocates as `alloc` does, for a layer that counts and records a refusal as one of its own request.
  package func allocUnlogged(
    type: MemoryType, priority: AllocationPriority = .normal, at site: CallSite = .here
  ) -> UnsafeMutableRawPointer? {
    kmem.popObject(counterOffset, type)
      ?? kmem.allocate(
        AllocationRequest(
          size: UInt64(size), type: type, priority: priority, site: site, failures: .byCaller),
        at: counterOffset)
  }

  /// Frees an object of this cache, by the type that it was allocated under.
  @inline(always)
  public func free(_ object: UnsafeMutableRawPointer, type: MemoryType) {
    if !kmem.pushObject(object, counterOffset, type) {
      kmem.freeSlow(object, counterOffset, UInt64(size), type)
    }
  }

  /// The cache; nil when it was destroyed, which is a fault report: no caller may keep the handle.
  var pointer: CachePointer? {
    let cache = kmem.cache(at: cacheIndex)
    if cache == nil { kmem.reportDestroyed(cacheIndex) }
    return cache
  }

  /// The name that it was made with; a fault report when it was destroyed.
  public var name: ShortName { pointer?.name ?? ShortName("destroyed") }
  /// Bytes of an object as its maker requested them.
  public var objectSize: ByteCount { ByteCount(UInt64(size)) }

  /// Switches the audit of this cache. Asks every processor; no spin lock may be held. One caller at a time.
  public func setAudit(_ auditing: Auditing) { pointer?.setAudit(auditing) }
  /// Whether the cache is audited.
  public var auditing: Auditing { pointer?.auditPeriod == nil ? .off : .on }

  /// Empties this cache's magazines, and releases its slabs without an object in use. Answers the pages released.
  /// Asks every processor; no spin lock may be held.
  @discardableResult public func drain() -> PageCount {
    pointer?.drain() ?? .zero
  }
}

/// The hooks of a cache of constructed objects.
private struct CacheHooks {
  let construct: ObjectHook?
  let destruct: ObjectHook?
  let context: UnsafeMutableRawPointer?
}

extension KmemAllocator {
  /// Makes a cache of objects of `size` bytes, 32 KiB at most, with an alignment from 8 bytes to a page. kmem calls the
  /// hooks with no lock held, with `context` first; they must not use this cache.
  ///
  /// An object above a page, in a cache without hooks, gets whole pages with an address of their own where memory has no
  /// run for its slab. It counts as a large request under its type, and is freed as one: with no spin lock held.
  ///
  /// Slabs from `SlabSource.contiguous` are runs of up to 64 frames, so objects may have 256 KiB, and that alignment. At
  /// most an eighth of a slab is unused where a run of 64 frames within the boundary allows that. A request that may wait
  /// has a run emptied: it costs as much as `ContiguousAllocator.allocContig`. Others get runs that are free. With a cache
  /// attribute, a request with a spin lock held or interrupts off gets no new slab.
  ///
  /// Throws `.badConstraint` for a size of zero, an alignment above a page, or constraints that an object does not fit
  /// or no memory satisfies; `.tooLarge`; `.tooManyCaches` (80 fit); `.noMemory`. Nothing has changed then.
  public func createCache(
    name: ShortName, size: ByteCount, alignment: Alignment = .byte, source: SlabSource = .anyMemory,
    construct: ObjectHook? = nil, destruct: ObjectHook? = nil, context: UnsafeMutableRawPointer? = nil
  ) throws(KmemError) -> ObjectCache {
    let hooks: CacheHooks? =
      construct == nil && destruct == nil
      ? nil : CacheHooks(construct: construct, destruct: destruct, context: context)
    do throws(KmemError) {
      return try makeCache(name, size, alignment, hooks, source: source)
    } catch {
      recordRefusal(
        AllocationRequest(size: size.rawValue, type: ownType, priority: .normal, site: .unknown),
        as: name, because: error.description)
      throw error
    }
  }

  private func makeCache(
    _ name: ShortName, _ size: ByteCount, _ alignment: Alignment, _ hooks: CacheHooks?, source: SlabSource
  ) throws(KmemError) -> ObjectCache {
    let largest = source.largestObject
    let largestAlignment = source.isContiguous ? largest : Page.size
    guard size > .zero && alignment.rawValue <= largestAlignment else { throw .badConstraint }
    let aligned = max(8, alignment.rawValue)
    guard size.rawValue <= largest else { throw .tooLarge }
    let spacing = source.spacing(
      Self.spacing(Int(size.rawValue), Int(aligned), isConstructed: hooks != nil))
    guard spacing <= largest else { throw .tooLarge }
    guard canServe(source, chunk: spacing, alignment) else { throw .badConstraint }
    guard let cacheIndex = reserveCacheIndex() else { throw .tooManyCaches }
    guard prepareDescriptor(cacheIndex) else {
      releaseCacheIndex(cacheIndex)
      throw .noMemory
    }
    makeCache(
      cacheIndex, name, size: Int(size.rawValue), alignment: Int(aligned),
      construct: hooks?.construct, destruct: hooks?.destruct, context: hooks?.context,
      source: source.aligned(to: alignment))
    return ObjectCache(kmem: self, cacheIndex: cacheIndex, size: UInt32(size.rawValue))
  }

  /// Destroys a cache and releases all of its memory. Objects still in use are a fault report (`leak`, with their
  /// number), and the cache stays.
  ///
  /// No other call may use the cache at the same time, or later: such a use is a fault report until another cache gets
  /// its index. Asks every processor, and sleeps while a walk over all caches has this one pinned.
  public func destroy(_ cache: ObjectCache) {
    guard let pointer = cache.pointer else { return }
    guard cache.cacheIndex >= CacheIndex.firstObjectCache else {
      var fault = FaultReport(
        .foreignPointer, "a size class can't be destroyed", UInt64(cache.cacheIndex), .identifier)
      fault.owner = pointer.name
      return state.machine.report(fault)
    }
    // Else a walk might be moving objects that no caller uses.
    close(pointer)
    let demand = pointer.lists.withLock { lists in
      defer { lists.demand = 0 }
      return lists.demand
    }
    _ = pointer.drain()
    let inUse = pointer.lists.withLock { $0.out + $0.onPages }
    guard inUse == 0 else {
      var fault = FaultReport(
        .leak, "a cache was destroyed while objects were in use", UInt64(cache.cacheIndex), .identifier)
      fault.given = UInt64(inUse)
      fault.owner = pointer.name
      pointer.forEachSlab { slab in
        for index in 0..<slab.objects where !slab.isFree(index) {
          let object = pointer.object(slab, index)
          (fault.subject, fault.place) = (VirtualAddress(object).rawValue, .virtualAddress)
          if slab.isAudited {
            fault.allocatedAt = slab.entry(index).pointee.allocatedAt
            fault.type = type(at: slab.entry(index).pointee.type)?.name
          }
        }
      }
      pointer.lists.withLock { $0.demand = demand }
      pointer.descriptor.pins.open()
      return state.machine.report(fault)
    }
    pointer.descriptor.isLive.store(false, ordering: .releasing)
    pointer.releaseDamagedSlabs()
    pointer.preserveEventCounts()
    clearCounters(cache.cacheIndex)
    releaseCacheIndex(cache.cacheIndex)
  }

  /// Sets all counters of an index to zero for its next cache. Their counts stay in the sums of the types and of the
  /// instance, which only rise. Each processor does it with its own counters, which no other may write to.
  private func clearCounters(_ cacheIndex: Int) {
    var request = (kmem: self, cacheIndex: cacheIndex)
    for processor in 0..<state.machine.processorCount {
      withUnsafeMutablePointer(to: &request) {
        state.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer($0)) {
          let request = $0.assumingMemoryBound(to: (kmem: KmemAllocator, cacheIndex: Int).self).pointee
          request.kmem.clearOwnCounters(request.cacheIndex)
        }
      }
    }
  }

  /// Runs on the processor whose counters they are, with interrupts off.
  private func clearOwnCounters(_ cacheIndex: Int) {
    let processor = Int(cp_processor_index())
    forEachTypeToken { type in
      let counters = type.counters(processor, cacheIndex)
      type.counters(processor, CacheIndex.failed).pointee.frees.add(counters.pointee.allocations.value)
      counters.pointee.allocations.set(0)
      counters.pointee.frees.set(0)
    }
  }

  private func reserveCacheIndex() -> Int? {
    state.registry.withLock { registry -> Int? in
      for cacheIndex in CacheIndex.firstObjectCache..<CacheIndex.limit
      where registry.cacheIndices[cacheIndex >> 6] & 1 << UInt64(cacheIndex & 63) == 0 {
        registry.cacheIndices[cacheIndex >> 6] |= 1 << UInt64(cacheIndex & 63)
        return cacheIndex
      }
      return nil
    }
  }

  private func releaseCacheIndex(_ cacheIndex: Int) {
    state.registry.withLock { $0.cacheIndices[cacheIndex >> 6] &= ~(1 << UInt64(cacheIndex & 63)) }
  }

  /// Allocates the page of descriptors for this index, unless it exists.
  private func prepareDescriptor(_ cacheIndex: Int) -> Bool {
    if descriptor(cacheIndex) != nil { return true }
    guard let page = carve(ByteCount(Page.size), priority: .normal) else { return false }
    page.initializeMemory(as: UInt8.self, repeating: 0, count: Cache.perPage * Cache.stride)
    // If another processor was first, its page serves, and this one is lost.
    _ = descriptorPage(cacheIndex / Cache.perPage).pointee.compareExchange(
      expected: 0, desired: UInt(bitPattern: page), ordering: .releasing)
    return true
  }
}

extension CachePointer {
  /// Adds the counts of a cache that is being destroyed to the sums of those that were.
  func preserveEventCounts() {
    for number in 0..<CacheEvent.count {
      let count = count(CacheEvent(rawValue: number).unsafelyUnwrapped)
      kmem.state.past[number].add(count, ordering: .relaxed)
    }
  }

  /// Releases the damaged slabs of a cache that is being destroyed.
  func releaseDamagedSlabs() {
    var chain = FrameNumber.none
    lists.withLock { lists in
      while true {
        let plain = lists.plain.full.first
        let first = plain != .none ? plain : lists.audited.full.first
        guard first != .none else { break }
        let slab = slab(first)
        if slab.isAudited {
          lists.audited.full.remove(slab, physical)
        } else {
          lists.plain.full.remove(slab, physical)
        }
        lists.released += 1
        kmem.state.slabFrames.subtract(slab.frames, ordering: .relaxed)
        slab.record.next = chain
        chain = slab.frame
      }
    }
    releaseSlabs(chain)
  }

  /// Visits every slab. No lock is held, so no other processor may use the cache.
  func forEachSlab(_ body: (Slab) -> Void) {
    func visit(_ list: SlabList) {
      var next = list.first
      while next != .none {
        let slab = slab(next)
        next = slab.record.next
        body(slab)
      }
    }
    let (plain, audited) = lists.withLock { ($0.plain, $0.audited) }
    for set in (0..<2) {
      let set = set == 0 ? plain : audited
      visit(set.partial)
      visit(set.full)
      visit(set.free)
    }
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension ObjectCache: @unchecked Sendable {}
