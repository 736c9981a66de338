// Objects with bounds, which workers allocate beside each other: a cache and a type with limits, and a zone.
//
// A limit permits fewer objects than there are workers, so some of these wait for others, and it changes while they
// wait. A worker has one such object at a time, and waits for nothing else while it has it: so each wait ends. The
// demand of the zone is an object for each worker: it refuses none above normal priority, however little memory there
// is.

import KernelMemory
import Kmem
import MemoryPrimitives

/// The three sources, and their bounds.
struct BoundedObjects {
  /// A source, by the index of the count of its objects in use; bytes of the type.
  enum Source: Int { case cache, type, zone }

  private static var size: UInt64 { 320 }
  /// The sizes under the type, of which the largest is a class of kmem and the others cut it.
  private static var largestOfType: UInt64 { 128 }

  private let kmem: KmemAllocator
  private let cache: ObjectCache
  private let limitedType: LimitedType
  private let zone: ObjectCache
  private let type: MemoryType
  /// The highest limit of the cache; of the type, in its largest objects.
  private let mostObjects: UInt64

  /// Makes the sources and ends them, so that kmem has the tables for them.
  static func prepare(_ kmem: KmemAllocator) {
    if let objects = try? Self(kmem, workers: 1) { objects.end() }
  }

  init(_ kmem: KmemAllocator, workers: Int) throws(StressError) {
    self.kmem = kmem
    type = kmem.type(named: ShortName("stress"))
    mostObjects = UInt64(max(1, workers - 1))
    do throws(KmemError) {
      limitedType = try kmem.limitedType(
        named: ShortName("stress, limited"), limit: ByteCount(mostObjects * Self.largestOfType))
      cache = try kmem.createCache(name: ShortName("stress, limited"), size: ByteCount(Self.size))
    } catch { throw .noMemory }
    do throws(KmemError) {
      zone = try kmem.createZone(
        name: ShortName("stress, zone"), size: ByteCount(Self.size), demand: workers, type: type)
    } catch {
      kmem.destroy(cache)
      throw .noMemory
    }
    cache.setLimit(Int(mostObjects))
  }

  func end() {
    kmem.destroy(zone)
    kmem.destroy(cache)
    limitedType.limit = .zero
  }

  /// Allocates an object, waits for it where need be, keeps it for a moment, and frees it.
  func use(_ worker: StressWorker) {
    let wait = WaitPolicy.until(Tick(worker.stress.machine.now.rawValue + 500))
    switch worker.below(3) {
    case 0: useCache(worker, wait)
    case 1: useType(worker, wait)
    default: useZone(worker, wait)
    }
    if worker.oneIn(16) { changeLimit(worker) }
  }

  /// Chooses another limit, which is never above the highest.
  private func changeLimit(_ worker: StressWorker) {
    let objects = 1 + worker.below(mostObjects)
    if worker.oneIn(2) {
      cache.setLimit(Int(objects))
    } else {
      limitedType.limit = ByteCount(objects * Self.largestOfType)
    }
  }

  private func useCache(_ worker: StressWorker, _ wait: WaitPolicy) {
    guard let object = cache.alloc(type: type, wait: wait) else { return worker.countRefusal() }
    let count = worker.stress.count(.cache, by: 1)
    worker.require(
      count <= mostObjects, "a cache has more objects in use than its limit", found: UInt64(count),
      expected: mostObjects)
    keep(VirtualAddress(object), Self.size, worker)
    worker.stress.count(.cache, by: -1)
    cache.free(object, type: type)
  }

  private func useType(_ worker: StressWorker, _ wait: WaitPolicy) {
    let size = Self.largestOfType >> worker.below(2)
    guard let object = kmem.alloc(ByteCount(size), type: limitedType, wait: wait) else {
      return worker.countRefusal()
    }
    let (count, most) = (worker.stress.count(.type, by: Int(size)), mostObjects * Self.largestOfType)
    worker.require(
      count <= most, "a type has more bytes in use than its limit", found: UInt64(count), expected: most)
    keep(VirtualAddress(object), size, worker)
    worker.stress.count(.type, by: -Int(size))
    kmem.free(object, size: ByteCount(size), type: limitedType)
  }

  private func useZone(_ worker: StressWorker, _ wait: WaitPolicy) {
    let isDemand = worker.oneIn(2)
    guard
      let object = zone.alloc(
        type: type, priority: isDemand ? .system : .normal, wait: isDemand ? .forbidden : wait)
    else {
      worker.require(!isDemand, "a zone refused a request within its demand")
      return worker.countRefusal()
    }
    keep(VirtualAddress(object), Self.size, worker)
    zone.free(object, type: type)
  }

  /// Stamps the ends of an object, and checks after a moment that they are as they were.
  private func keep(_ object: VirtualAddress, _ size: UInt64, _ worker: StressWorker) {
    guard let first = object.pointer else { return }
    let (stamp, last) = (worker.stamp(), first + Int(size) - 8)
    first.storeBytes(of: stamp, as: UInt64.self)
    last.storeBytes(of: ~stamp, as: UInt64.self)
    if worker.oneIn(4) { withInterruptsOff {} }
    let (found, inverse) = (first.load(as: UInt64.self), last.load(as: UInt64.self))
    worker.require(
      found == stamp && inverse == ~stamp, "two workers have one object", object.rawValue, found: found,
      expected: stamp)
    worker.countOperation()
  }
}
