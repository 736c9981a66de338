// Object caches: one size, perhaps a constructor, and whatever the size classes have.
//
// A constructed object stays constructed while it is in the cache (Bonwick 1994): the constructor runs when
// its slab is made, the destructor when the slab goes back; in between it is handed out as its last user
// left it, who must have brought it back to the constructed state.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A cache of objects of one size: a handle. Also what `KmemAllocator.lookUp` answers.
@frozen public struct ObjectCache {
  @usableFromInline let kmem: KmemAllocator
  /// The cacheIndex of its counters, times 16.
  @usableFromInline let place: Int
  @usableFromInline let size: UInt32

  init(kmem: KmemAllocator, cacheIndex: Int, size: UInt32) {
    self.kmem = kmem
    place = cacheIndex * 16
    self.size = size
  }
  var cacheIndex: Int { place >> 4 }

  /// An object, counted under `type`; nil when there is no memory. Contents are as the constructor or the
  /// last user left them. About 20 instructions when this processor has one.
  @inline(always)
  public func alloc(type: MemoryType, priority: AllocationPriority = .normal) -> UnsafeMutableRawPointer? {
    kmem.take(place, type) ?? kmem.allocSlow(place, UInt64(size), type, priority)
  }

  /// Frees an object of this cache, by the type that it was allocated under.
  @inline(always)
  public func free(_ object: UnsafeMutableRawPointer, type: MemoryType) {
    if !kmem.put(object, place, type) { kmem.freeSlow(object, place, UInt64(size), type) }
  }

  /// The cache; nil when it was destroyed, which is reported: who has the handle still has a bug.
  var pointer: CachePointer? {
    let cache = kmem.cache(at: cacheIndex)
    if cache == nil { kmem.reportDestroyed(cacheIndex) }
    return cache
  }

  public var name: Name { pointer?.name ?? Name("destroyed") }
  /// Bytes of an object as it was asked for.
  public var objectSize: ByteCount { ByteCount(UInt64(size)) }

  /// Switches the audit of this cache. Asks every processor; no spin lock may be held. One caller at a time.
  public func setAudit(_ auditing: Auditing) { pointer?.setAudit(auditing) }
  public var auditing: Auditing { pointer?.auditPeriod == nil ? .off : .on }

  /// Takes all objects out of this cache's magazines, and gives back the slabs that nobody uses. Answers
  /// the pages given back. Asks every processor; no spin lock may be held.
  @discardableResult public func drain() -> PageCount {
    pointer?.drain() ?? .zero
  }
}

extension KmemAllocator {
  /// Makes a cache of objects of `size` bytes, 32 KiB at most, aligned as asked up to a page, to 8 bytes
  /// at least. The hooks are called with no lock held, with `context` first; they must not come back to
  /// this cache.
  ///
  /// Throws `.badConstraint` for a size of zero or an alignment above a page, `.tooLarge`,
  /// `.tooManyCaches` (90 fit), `.noMemory`; nothing has changed then.
  public func createCache(
    name: Name, size: ByteCount, alignment: Alignment = .byte, constructor: ObjectHook? = nil,
    destructor: ObjectHook? = nil, context: UnsafeMutableRawPointer? = nil
  ) throws(KmemError) -> ObjectCache {
    guard size > .zero && alignment <= .page else { throw .badConstraint }
    let aligned = max(8, alignment.rawValue)
    // The word of a constructed object stands behind it.
    let hasHooks = constructor != nil || destructor != nil
    guard size.rawValue <= 32 << 10 else { throw .tooLarge }
    let needed = (size.rawValue + (hasHooks ? 15 : 0) + aligned - 1) & ~(aligned - 1)
    guard needed <= 32 << 10 else { throw .tooLarge }
    guard let cacheIndex = reserveCacheIndex() else { throw .tooManyCaches }
    guard prepareDescriptor(cacheIndex) else {
      releaseCacheIndex(cacheIndex)
      throw .noMemory
    }
    makeCache(
      cacheIndex, name, size: Int(size.rawValue), alignment: Int(aligned), constructor: constructor,
      destructor: destructor, context: context)
    return ObjectCache(kmem: self, cacheIndex: cacheIndex, size: UInt32(size.rawValue))
  }

  /// Gives up a cache and all of its memory. Objects still in use are a fault report (`leak`, with their
  /// number), and the cache stays. Nobody may use the cache meanwhile, or afterwards; that is a fault report
  /// until another cache takes its place. Asks every processor, and sleeps while a walk over all caches has it.
  public func destroy(_ cache: ObjectCache) {
    guard let pointer = cache.pointer else { return }
    guard cache.cacheIndex >= CacheIndex.firstObjectCache else {
      var fault = FaultReport(
        .foreignPointer, "a size class can't be destroyed", UInt64(cache.cacheIndex), .identifier)
      fault.owner = pointer.name
      return state.pointee.machine.report(fault)
    }
    // Else one of them might have objects in hand that are in nobody's use.
    close(pointer)
    _ = pointer.drain()
    let lists = pointer.cache.pointee.lists.withLock { ($0.out, $0.frames) }
    guard lists.0 == 0 else {
      var fault = FaultReport(
        .leak, "a cache was destroyed while objects were in use", UInt64(cache.cacheIndex), .identifier)
      fault.given = UInt64(lists.0)
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
      pointer.cache.pointee.visits.open()
      return state.pointee.machine.report(fault)
    }
    pointer.cache.pointee.isLive.store(false, ordering: .releasing)
    pointer.giveBackDamaged()
    pointer.keepEvents()
    clearCounters(cache.cacheIndex)
    releaseCacheIndex(cache.cacheIndex)
  }

  /// Sets all counters of a cacheIndex to zero, so that its next cache starts anew. What they had counted stays
  /// in the sums of the types and of the instance, which only rise. Each processor does it with its own, which no
  /// other may write to.
  private func clearCounters(_ cacheIndex: Int) {
    var request = (kmem: self, cacheIndex: cacheIndex)
    for processor in 0..<state.pointee.machine.processorCount {
      withUnsafeMutablePointer(to: &request) {
        state.pointee.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer($0)) {
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

  func reportDestroyed(_ cacheIndex: Int) {
    state.pointee.machine.report(
      FaultReport(.notAllocated, "a cache was used after it was destroyed", UInt64(cacheIndex), .identifier))
  }

  private func reserveCacheIndex() -> Int? {
    state.pointee.registry.withLock { registry -> Int? in
      for cacheIndex in CacheIndex.firstObjectCache..<CacheIndex.limit
      where registry.cacheIndices[cacheIndex >> 6] & 1 << UInt64(cacheIndex & 63) == 0 {
        registry.cacheIndices[cacheIndex >> 6] |= 1 << UInt64(cacheIndex & 63)
        return cacheIndex
      }
      return nil
    }
  }

  private func releaseCacheIndex(_ cacheIndex: Int) {
    state.pointee.registry.withLock { $0.cacheIndices[cacheIndex >> 6] &= ~(1 << UInt64(cacheIndex & 63)) }
  }

  /// Makes sure that the page of descriptors with this cacheIndex's is there.
  private func prepareDescriptor(_ cacheIndex: Int) -> Bool {
    if descriptor(cacheIndex) != nil { return true }
    guard let page = carve(ByteCount(8 * Cache.stride), priority: .normal) else { return false }
    page.initializeMemory(as: UInt8.self, repeating: 0, count: 8 * Cache.stride)
    // Another may have been quicker; its page serves then, and this one is lost.
    _ = descriptorPage(cacheIndex >> 3).pointee.compareExchange(
      expected: 0, desired: UInt(bitPattern: page), ordering: .releasing)
    return true
  }
}

extension CachePointer {
  /// Adds what a cache that is going has counted to the sums of those that are gone.
  func keepEvents() {
    for number in 0..<CacheEvent.count {
      let count = count(CacheEvent(rawValue: number).unsafelyUnwrapped)
      kmem.state.pointee.past[number].add(count, ordering: .relaxed)
    }
  }

  /// Gives back damaged slabs of a cache that is going.
  func giveBackDamaged() {
    var chain = FrameNumber.none
    cache.pointee.lists.withLock { lists in
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
        kmem.state.pointee.slabFrames.subtract(Int(slab.order.frames.rawValue), ordering: .relaxed)
        slab.record.next = chain
        chain = slab.frame
      }
    }
    giveBack(chain)
  }

  /// Visits every slab. Only when nobody else is at the cache: no lock is held.
  func forEachSlab(_ body: (Slab) -> Void) {
    func visit(_ list: SlabList) {
      var next = list.first
      while next != .none {
        let slab = slab(next)
        next = slab.record.next
        body(slab)
      }
    }
    let (plain, audited) = cache.pointee.lists.withLock { ($0.plain, $0.audited) }
    for set in (0..<2) {
      let set = set == 0 ? plain : audited
      visit(set.partial)
      visit(set.full)
      visit(set.free)
    }
  }
}
