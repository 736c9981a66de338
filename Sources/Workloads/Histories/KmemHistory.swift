// The history of kmem: sizes of all classes and above, and object caches of its own, with a drain now and then.

import Kmem
import KernelMemory
import KernelSpace
import MemoryPrimitives
import PhysicalMemory

extension SeededHistory {
  /// Object caches of the history; other objects are allocated by size.
  private static var caches: Int { 4 }

  private static func objectSize(_ cache: Int) -> UInt64 {
    switch cache {
    case 0: 24
    case 1: 200
    case 2: 1000
    default: 6000
    }
  }

  mutating func runKmem() {
    let kmem = system.kmem
    let type = kmem.type(named: ShortName("history"))
    let caches = extra.bindMemory(to: ObjectCache.self, capacity: Self.caches)
    for i in 0..<Self.caches {
      do throws(KmemError) {
        let cache = try kmem.createCache(
          name: ShortName("history"), size: ByteCount(Self.objectSize(i)),
          alignment: i == 2 ? Alignment(64) ?? .byte : .byte)
        (caches + i).initialize(to: cache)
      } catch {
        countRefusal(error.rawValue)
        for made in 0..<i { kmem.destroy(caches[made]) }
        require(false, "there was no memory for an object cache")
        return
      }
    }
    kmem.drain()
    kmem.drain()
    let start = (system.physical.count(.slab), system.physical.count(.kmem))
    repeated({ history in
      if history.grows() {
        history.requestObject(type, caches)
      } else {
        history.freeObject(Int(history.random.below(UInt64(history.used))), type, caches)
      }
      if history.random.oneIn(2048) { history.fold(kmem.drain().rawValue) }
    }) { $0.kmem.checkInvariants() ?? $0.physical.checkInvariants() }
    kmem.forEachCache { cache in
      fold(cache.objectSize.rawValue << 32 | cache.inUse)
      fold(cache.free << 32 | cache.frames.rawValue)
    }
    while used > 0 { freeObject(0, type, caches) }
    require(kmem.describe(type).inUse == 0, "objects are still counted as in use")
    for i in 0..<Self.caches { kmem.destroy(caches[i]) }
    kmem.drain()
    kmem.drain()
    require(
      system.physical.count(.slab) == start.0 && system.physical.count(.kmem) == start.1,
      "kmem did not free all frames")
    examine { $0.kmem.checkInvariants() ?? $0.physical.checkInvariants() }
  }

  /// Requests an object. Its slot has the address, size, 1 + the cache or 0, and the number of its operation.
  private mutating func requestObject(_ type: MemoryType, _ caches: UnsafeMutablePointer<ObjectCache>) {
    let cache = random.oneIn(4) ? Int(random.below(UInt64(Self.caches))) : -1
    let isZeroed = cache < 0 && random.oneIn(4)
    let size = cache >= 0 ? Self.objectSize(cache) : anySize()
    let priority = priority()
    let given =
      cache >= 0
      ? caches[cache].alloc(type: type, priority: priority)
      : isZeroed
        ? system.kmem.zalloc(ByteCount(size), type: type, priority: priority)
        : system.kmem.alloc(ByteCount(size), type: type, priority: priority)
    guard let given else { return countRefusal(0) }
    let address = VirtualAddress(given)
    let isPages = size > 0 && size % Page.size == 0
    let alignment = cache >= 0 || size < 64 ? 8 : isPages ? Page.size : 64
    require(address.rawValue % alignment == 0, "an object is not aligned")
    if isReachable(address) {
      if isZeroed { require(Stamp.isZero(address, size, DirectAccess()), "an object is not zero") }
      _ = Stamp(UInt32(truncatingIfNeeded: size), UInt32(truncatingIfNeeded: done)).write(
        address, size, DirectAccess())
      fold(offset(address))
    } else {
      fold(address.rawValue &- system.space.layout.kernelBase.rawValue)
    }
    record(Slot(a: address.rawValue, b: size, c: UInt64(cache + 1), d: done))
  }

  /// Mostly up to two pages; one in 64 requests has megabytes, so that memory runs out.
  private mutating func anySize() -> UInt64 {
    1 + (random.oneIn(64) ? random.below(16 << 20) : random.below(8 << random.below(11)))
  }

  private mutating func freeObject(
    _ index: Int, _ type: MemoryType, _ caches: UnsafeMutablePointer<ObjectCache>
  ) {
    let slot = slots[index]
    let address = VirtualAddress(slot.a)
    if isReachable(address) {
      let stamp = Stamp(UInt32(truncatingIfNeeded: slot.b), UInt32(truncatingIfNeeded: slot.d))
      require(stamp.holds(address, slot.b, DirectAccess()), "an object had two owners")
    }
    fold(slot.d)
    remove(index)
    guard let object = address.pointer else { return }
    if slot.c > 0 {
      caches[Int(slot.c) - 1].free(object, type: type)
    } else {
      system.kmem.free(object, size: ByteCount(slot.b), type: type)
    }
  }

  /// Whether an object lies in the direct map: its bytes can be reached on any machine.
  private func isReachable(_ address: VirtualAddress) -> Bool {
    address.rawValue < system.space.layout.kernelBase.rawValue
  }
}
