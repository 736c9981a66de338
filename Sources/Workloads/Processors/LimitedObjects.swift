// Objects of a cache with a limit: fewer than there are workers, so some of these wait for others.

import KernelMemory
import Kmem
import MemoryPrimitives
import Synchronization

/// The cache, and its limit.
struct LimitedObjects {
  private let cache: ObjectCache
  private let type: MemoryType
  private let limit: Int

  /// Makes the cache and destroys it, so that kmem has the tables for one more.
  static func prepare(_ kmem: KmemAllocator) {
    if let cache = try? makeCache(kmem) { kmem.destroy(cache) }
  }

  private static func makeCache(_ kmem: KmemAllocator) throws(StressError) -> ObjectCache {
    do throws(KmemError) {
      return try kmem.createCache(name: ShortName("stress, limited"), size: ByteCount(320))
    } catch {
      throw .noMemory
    }
  }

  init(_ memory: MemorySystem, workers: Int) throws(StressError) {
    cache = try Self.makeCache(memory.kmem)
    type = memory.kmem.type(named: ShortName("stress"))
    limit = max(1, workers - 1)
    cache.setLimit(limit)
  }

  func end(_ memory: MemorySystem) { memory.kmem.destroy(cache) }

  /// Allocates an object, waits for it where need be, keeps it for a moment, and frees it. A worker has at most one, and
  /// waits for nothing else while it has it.
  func use(_ worker: StressWorker) {
    let stress = worker.stress
    guard let object = cache.alloc(type: type, wait: .until(Tick(stress.machine.now.rawValue + 500))) else {
      return worker.countRefusal()
    }
    let count = stress.state.pointee.limitedInUse.add(1, ordering: .acquiringAndReleasing).newValue
    worker.require(
      count <= limit, "a cache has more objects in use than its limit", found: UInt64(count),
      expected: UInt64(limit))
    let stamp = worker.stamp()
    object.storeBytes(of: stamp, as: UInt64.self)
    if worker.oneIn(4) { withInterruptsOff {} }
    let found = object.load(as: UInt64.self)
    worker.require(found == stamp, "two workers have one object", found: found, expected: stamp)
    stress.state.pointee.limitedInUse.subtract(1, ordering: .acquiringAndReleasing)
    cache.free(object, type: type)
    worker.countOperation()
  }
}
