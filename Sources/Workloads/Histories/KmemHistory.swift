// The history of kmem: sizes of all classes and above, object caches of its own, and sources with a bound
// (KmemBounds.swift), with a drain now and then.

import Kmem
import KernelMemory
import KernelSpace
import MemoryPrimitives
import PhysicalMemory

/// The sources of the history's objects: kmem by size, object caches, and those with a bound.
private struct KmemSources {
  static var cacheCount: Int { 4 }
  static var name: ShortName { ShortName("history") }

  let kmem: KmemAllocator
  let type: MemoryType
  private var caches = InlineArray<4, ObjectCache?>(repeating: nil)
  var bounds: KmemBounds

  static func objectSize(_ cache: Int) -> UInt64 {
    switch cache {
    case 0: 24
    case 1: 200
    case 2: 1000
    default: 6000
    }
  }

  init(_ kmem: KmemAllocator) throws(KmemError) {
    self.kmem = kmem
    type = kmem.type(named: Self.name)
    bounds = try KmemBounds(kmem, type)
    do throws(KmemError) {
      for i in 0..<Self.cacheCount {
        caches[i] = try kmem.createCache(
          name: Self.name, size: ByteCount(Self.objectSize(i)),
          alignment: i == 2 ? Alignment(64) ?? .byte : .byte)
      }
    } catch {
      end()
      throw error
    }
  }

  /// The object cache of an index that exists.
  func cache(_ index: Int) -> ObjectCache { caches[index].unsafelyUnwrapped }

  func end() {
    for i in 0..<Self.cacheCount { if let cache = caches[i] { kmem.destroy(cache) } }
    bounds.end(kmem)
  }
}

extension SeededHistory {
  mutating func runKmem() {
    let kmem = system.kmem
    let start: (PageCount, PageCount)
    var sources: KmemSources
    do throws(KmemError) {
      // Kmem keeps the tables of caches and types.
      try KmemSources(kmem).end()
      kmem.drain()
      kmem.drain()
      start = (system.physical.count(.slab), system.physical.count(.kmem))
      sources = try KmemSources(kmem)
    } catch {
      countRefusal(error.rawValue)
      return require(false, "there was no memory for an object cache")
    }
    repeated({ $0.operate(on: &sources) }) { $0.kmem.checkInvariants() ?? $0.physical.checkInvariants() }
    kmem.forEachCache { cache in
      fold(cache.objectSize.rawValue << 32 | cache.inUse)
      fold(cache.free << 32 | cache.frames.rawValue)
    }
    checkLimitedCache(sources.bounds)
    freeMemory(&sources.bounds)
    while used > 0 { freeObject(0, &sources) }
    require(kmem.describe(sources.type).inUse == 0, "objects are still counted as in use")
    sources.end()
    kmem.drain()
    kmem.drain()
    require(
      system.physical.count(.slab) == start.0 && system.physical.count(.kmem) == start.1,
      "kmem did not free all frames")
    examine { $0.kmem.checkInvariants() ?? $0.physical.checkInvariants() }
  }

  private mutating func operate(on sources: inout KmemSources) {
    if random.oneIn(16) {
      changeBounds(&sources.bounds)
    } else if !grows() {
      freeObject(Int(random.below(UInt64(used))), &sources)
    } else if random.oneIn(3) {
      requestBounded(&sources.bounds)
    } else {
      requestObject(sources)
    }
    // Without memory, little happens.
    if sources.bounds.taken != .none && random.oneIn(24) { freeMemory(&sources.bounds) }
    if random.oneIn(2048) { fold(system.kmem.drain().rawValue) }
  }

  /// Requests an object. Its slot has the address, size, 1 + the cache or 0, and a number of its own.
  private mutating func requestObject(_ sources: KmemSources) {
    let cache = random.oneIn(4) ? Int(random.below(UInt64(KmemSources.cacheCount))) : -1
    let isZeroed = cache < 0 && random.oneIn(4)
    let size = cache >= 0 ? KmemSources.objectSize(cache) : anySize()
    let priority = priority()
    let (kmem, type, wait) = (system.kmem, sources.type, waitPolicy(priority))
    let given =
      cache >= 0
      ? sources.cache(cache).alloc(type: type, priority: priority, wait: wait)
      : isZeroed
        ? kmem.zalloc(ByteCount(size), type: type, priority: priority, wait: wait)
        : kmem.alloc(ByteCount(size), type: type, priority: priority, wait: wait)
    guard let given else { return countRefusal(0) }
    let address = VirtualAddress(given)
    let isPages = size > 0 && size % Page.size == 0
    let alignment = cache >= 0 || size < 64 ? 8 : isPages ? Page.size : 64
    require(address.rawValue % alignment == 0, "an object is not aligned")
    if isZeroed && isReachable(address) {
      require(Stamp.isZero(address, size, DirectAccess()), "an object is not zero")
    }
    recordObject(address, Slot(a: 0, b: size, c: UInt64(cache + 1), d: granted))
  }

  /// Mostly up to two pages; one in 64 requests has megabytes, so that memory runs out.
  private mutating func anySize() -> UInt64 {
    1 + (random.oneIn(64) ? random.below(16 << 20) : random.below(8 << random.below(11)))
  }

  /// Stamps an object and records it in a slot, which has all but its address.
  mutating func recordObject(_ address: VirtualAddress, _ slot: Slot) {
    var slot = slot
    slot.a = address.rawValue
    if isReachable(address) {
      _ = stamp(slot).write(address, slot.b, DirectAccess())
      fold(offset(address))
    } else {
      fold(address.rawValue &- system.space.layout.kernelBase.rawValue)
    }
    record(slot)
  }

  private func stamp(_ slot: Slot) -> Stamp {
    Stamp(UInt32(truncatingIfNeeded: slot.b), UInt32(truncatingIfNeeded: slot.d))
  }

  private mutating func freeObject(_ index: Int, _ sources: inout KmemSources) {
    let slot = slots[index]
    let address = VirtualAddress(slot.a)
    if isReachable(address) {
      require(stamp(slot).holds(address, slot.b, DirectAccess()), "an object had two owners")
    }
    fold(slot.d)
    remove(index)
    guard let object = address.pointer else { return }
    switch slot.c {
    case 0: system.kmem.free(object, size: ByteCount(slot.b), type: sources.type)
    case 1...UInt64(KmemSources.cacheCount):
      sources.cache(Int(slot.c) - 1).free(object, type: sources.type)
    default: freeBounded(slot, &sources.bounds)
    }
  }

  /// Whether an object lies in the direct map: its bytes can be reached on any machine.
  private func isReachable(_ address: VirtualAddress) -> Bool {
    address.rawValue < system.space.layout.kernelBase.rawValue
  }
}
