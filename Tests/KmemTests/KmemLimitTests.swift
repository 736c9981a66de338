import Foundation
import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

/// Limits of caches and of types.
final class KmemLimitTests: XCTestCase {
  // MARK: Caches

  /// On an empty machine a request is granted exactly when fewer objects than the limit are in use.
  func testACachesLimitIsExactOnEveryProcessor() throws {
    for seed in historySeeds(1, count: 20) {
      let rig = try KmemFixture(frames: 1024, processors: 3)
      let (kmem, type, host) = (rig.kmem, rig.type(), rig.host)
      var random = SeededRandom(seed: seed)
      let size = 16 << random.below(8)
      let cache = try kmem.createCache(name: ShortName("limited"), size: ByteCount(Int(size)))
      var limit = Int(random.below(300)) + 1
      cache.setLimit(limit)
      var live: [UnsafeMutableRawPointer] = []
      for step in 0..<3000 {
        host.runAs(processor: Int(random.below(3))) {
          let wantsMore = random.oneIn(step / 500 % 2 == 0 ? 3 : 2)
          if random.oneIn(400) {
            limit = Int(random.below(300)) + 1
            cache.setLimit(limit)
          } else if wantsMore || live.isEmpty {
            for _ in 0..<random.below(40) {
              let object = cache.alloc(type: type)
              XCTAssertEqual(object != nil, live.count < limit, "STRATA_SEED=\(seed), step \(step)")
              if let object { live.append(object) }
            }
          } else {
            for _ in 0..<min(Int(random.below(40)), live.count) {
              cache.free(live.remove(at: Int(random.below(UInt64(live.count)))), type: type)
            }
          }
        }
        if step % 100 == 0 { rig.check("STRATA_SEED=\(seed), step \(step)") }
      }
      for object in live { cache.free(object, type: type) }
      rig.expectEmpty()
    }
  }

  func testARefusalAtALimitIsCounted() throws {
    let rig = try KmemFixture()
    let (kmem, type) = (rig.kmem, rig.type())
    let cache = try kmem.createCache(name: ShortName("one"), size: ByteCount(100))
    cache.setLimit(1)
    let object = try XCTUnwrap(cache.alloc(type: type))
    XCTAssertNil(cache.alloc(type: type))
    XCTAssertNil(cache.alloc(type: type, priority: .interrupt))
    XCTAssertEqual(kmem.describe(type).failed, 2)
    XCTAssertEqual(rig.description(of: "one")?.failed, 2)
    cache.setLimit(nil)
    XCTAssertNil(cache.limit)
    let other = try XCTUnwrap(cache.alloc(type: type))
    cache.free(object, type: type)
    cache.free(other, type: type)
    rig.expectEmpty()
  }

  func testARequestWithInterruptsOffStaysBelowTheLimit() throws {
    let rig = try KmemFixture(processors: 2)
    let type = rig.type()
    let cache = try rig.kmem.createCache(name: ShortName("few"), size: ByteCount(64))
    cache.setLimit(40)
    var live = (0..<40).map { _ in cache.alloc(type: type)! }
    // Free objects in its own magazines can be used; those of another processor can't be asked for.
    for _ in 0..<10 { cache.free(live.removeLast(), type: type) }
    withInterruptsOff {
      for _ in 0..<10 { live.append(cache.alloc(type: type)!) }
      XCTAssertNil(cache.alloc(type: type))
    }
    for object in live { cache.free(object, type: type) }
    rig.expectEmpty()
  }

  /// At the limit a free serves the waiter of the highest priority that came first; a raised limit serves all.
  func testWaitersBelowALimitAreServedInOrder() throws {
    for isByRaising in [false, true] {
      let rig = try KmemFixture(frames: 512, processors: 4)
      let (type, host) = (rig.type(), rig.host)
      let cache = try rig.kmem.createCache(name: ShortName("limited"), size: ByteCount(256))
      cache.setLimit(5)
      host.hasOtherThreads = true
      nonisolated(unsafe) var live = (0..<5).map { _ in cache.alloc(type: type)! }
      nonisolated(unsafe) var order: [Int] = []
      let lock = NSLock()
      host.onThreads(4) { me in
        if me == 0 {
          idle { host.sleeperCount == 3 }
          if isByRaising { return cache.setLimit(8) }
          for _ in 0..<3 {
            let before = lock.withLock { order.count }
            cache.free(lock.withLock { live.removeFirst() }, type: type)
            idle { lock.withLock { order.count } > before }
          }
        } else {
          idle { host.sleeperCount == me - 1 }
          let object = cache.alloc(type: type, priority: me == 2 ? .system : .normal, wait: .allowed)
          lock.withLock {
            order.append(me)
            if let object { live.append(object) }
          }
        }
      }
      XCTAssertEqual(live.count, isByRaising ? 8 : 5)
      if !isByRaising { XCTAssertEqual(order, [2, 1, 3]) }
      host.hasOtherThreads = false
      for object in live { cache.free(object, type: type) }
      rig.expectEmpty()
    }
  }

  func testADeadlineEndsAWaitBelowALimit() throws {
    let rig = try KmemFixture(frames: 512, processors: 2)
    let (type, host) = (rig.type(), rig.host)
    let cache = try rig.kmem.createCache(name: ShortName("limited"), size: ByteCount(256))
    cache.setLimit(1)
    host.hasOtherThreads = true
    let object = try XCTUnwrap(cache.alloc(type: type))
    nonisolated(unsafe) var second: UnsafeMutableRawPointer?
    host.onThreads(2) { me in
      if me == 0 {
        second = cache.alloc(type: type, wait: .until(Tick(host.machine.now.rawValue + 20)))
      } else {
        idle { host.sleeperCount == 1 }
        for _ in 0..<30 { host.advance() }
      }
    }
    XCTAssertNil(second)
    host.hasOtherThreads = false
    cache.free(object, type: type)
    XCTAssertEqual(cache.alloc(type: type).map { cache.free($0, type: type) } != nil, true)
    rig.expectEmpty()
  }

  /// Threads that allocate and free beside each other never have more objects than the limit.
  func testThreadsBesideEachOtherStayBelowALimit() throws {
    let rig = try KmemFixture(frames: 1024, processors: 4)
    let (type, host) = (rig.type(), rig.host)
    let cache = try rig.kmem.createCache(name: ShortName("limited"), size: ByteCount(128))
    // One thread alone reaches it.
    let limit = 30
    cache.setLimit(limit)
    host.hasOtherThreads = true
    let live = Atomic<Int>(0)
    let most = Atomic<Int>(0)
    let seed = historySeed(1)
    host.onThreads(4) { me in
      var random = SeededRandom(seed: seed &+ UInt64(me))
      var mine: [UnsafeMutableRawPointer] = []
      for _ in 0..<4000 {
        if mine.isEmpty || (mine.count < 40 && random.oneIn(2)) {
          // A thread with objects does not wait: all might wait for each other.
          guard let object = cache.alloc(type: type, wait: mine.isEmpty ? .allowed : .forbidden) else {
            continue
          }
          most.max(live.add(1, ordering: .relaxed).newValue, ordering: .relaxed)
          mine.append(object)
        } else {
          live.subtract(1, ordering: .relaxed)
          cache.free(mine.removeLast(), type: type)
        }
      }
      for object in mine {
        live.subtract(1, ordering: .relaxed)
        cache.free(object, type: type)
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(most.load(ordering: .relaxed), limit, "STRATA_SEED=\(seed)")
    rig.expectEmpty()
  }

  // MARK: Types

  /// A request under a limited type is granted exactly when its bytes stay below the limit.
  func testATypesLimitIsExact() throws {
    for seed in historySeeds(1, count: 20) {
      let rig = try KmemFixture(frames: 1024, processors: 2)
      let kmem = rig.kmem
      var random = SeededRandom(seed: seed)
      let limit = ByteCount(UInt64(20_000 + random.below(60_000)))
      let type = try kmem.limitedType(named: ShortName("limited"), limit: limit)
      XCTAssertEqual(kmem.type(named: ShortName("limited")), type.type)
      var live: [(UnsafeMutableRawPointer, ByteCount)] = []
      var used: UInt64 = 0
      for step in 0..<1500 {
        rig.host.runAs(processor: Int(random.below(2))) {
          if live.isEmpty || random.oneIn(2) {
            let size = ByteCount(random.below(random.oneIn(8) ? 20_000 : 2000))
            let bytes = Self.spacing(size, kmem)
            let object = kmem.alloc(size, type: type)
            XCTAssertEqual(
              object != nil, used + bytes <= limit.rawValue, "STRATA_SEED=\(seed), step \(step), \(size)")
            if let object {
              live.append((object, size))
              used += bytes
            }
          } else {
            let (object, size) = live.remove(at: Int(random.below(UInt64(live.count))))
            kmem.free(object, size: size, type: type)
            used -= Self.spacing(size, kmem)
          }
        }
      }
      for (object, size) in live { kmem.free(object, size: size, type: type) }
      XCTAssertEqual(kmem.describe(type.type).inUse, 0)
      rig.expectEmpty()
    }
  }

  /// Bytes of an object of the smallest class that holds `size`, or of its pages.
  private static func spacing(_ size: ByteCount, _ kmem: KmemAllocator) -> UInt64 {
    var least = (size.rawValue + 4095) & ~4095
    if size.rawValue == 0 { least = 8 }
    kmem.forEachCache { cache in
      if cache.isSizeClass && cache.objectSize >= size { least = min(least, cache.spacing.rawValue) }
    }
    return least
  }

  func testAWrongFreeUnderALimitedTypeChangesNothing() throws {
    let rig = try KmemFixture()
    let kmem = rig.kmem
    let type = try kmem.limitedType(named: ShortName("limited"), limit: ByteCount(64))
    kmem.setAudit(.on)
    let object = try XCTUnwrap(kmem.alloc(ByteCount(64), type: type))
    let faults = rig.host.faults { kmem.free(object, size: ByteCount(32), type: type) }
    XCTAssertEqual(faults.map(\.kind), [.wrongSize])
    XCTAssertNil(kmem.alloc(ByteCount(8), type: type), "its bytes are still charged")
    kmem.free(object, size: ByteCount(64), type: type)
    let next = try XCTUnwrap(kmem.alloc(ByteCount(64), type: type))
    kmem.free(next, size: ByteCount(64), type: type)
    kmem.setAudit(.off)
    rig.expectEmpty()
  }

  /// A waiter that needs much is not passed by those that need little.
  func testWaitersForATypeAreServedInOrder() throws {
    let rig = try KmemFixture(frames: 512, processors: 3)
    let (kmem, host) = (rig.kmem, rig.host)
    let type = try kmem.limitedType(named: ShortName("limited"), limit: ByteCount(4096))
    host.hasOtherThreads = true
    nonisolated(unsafe) let held = (0..<4).map { _ in kmem.alloc(ByteCount(1024), type: type)! }
    nonisolated(unsafe) var order: [Int] = []
    let lock = NSLock()
    host.onThreads(3) { me in
      if me == 0 {
        idle { host.sleeperCount == 2 }
        kmem.free(held[0], size: ByteCount(1024), type: type)
        XCTAssertNil(kmem.alloc(ByteCount(4096), type: type))
        XCTAssertEqual(host.sleeperCount, 2, "1 KiB is enough for the second waiter only")
        for object in held[1...] { kmem.free(object, size: ByteCount(1024), type: type) }
      } else {
        idle { host.sleeperCount == me - 1 }
        let size = ByteCount(me == 1 ? 4096 : 64)
        let object = kmem.alloc(size, type: type, wait: .allowed)
        lock.withLock { order.append(me) }
        if let object { kmem.free(object, size: size, type: type) }
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(order, [1, 2])
    XCTAssertNil(kmem.alloc(ByteCount(8192), type: type, wait: .allowed), "more than the limit never fits")
    rig.expectEmpty()
  }

  /// A waiter below a limit that finds no free object in a slab may make a slab, once the limit permits.
  func testAWaiterWithoutAFreeObjectIsWokenToo() throws {
    for audits in [false, true] {
      let rig = try KmemFixture(frames: 512, processors: 2)
      let (type, host) = (rig.type(), rig.host)
      let cache = try rig.kmem.createCache(name: ShortName("pages"), size: ByteCount(audits ? 2000 : 4096))
      cache.setLimit(1)
      let first = try XCTUnwrap(cache.alloc(type: type))
      if audits { cache.setAudit(.on) }
      host.hasOtherThreads = true
      nonisolated(unsafe) var second: UnsafeMutableRawPointer?
      nonisolated(unsafe) let given = first
      host.onThreads(2) { me in
        if me == 0 {
          second = cache.alloc(type: type, wait: .allowed)
        } else {
          idle { host.sleeperCount == 1 }
          // An object of a plain slab is no use for an audited request.
          if audits { cache.free(given, type: type) } else { cache.setLimit(2) }
        }
      }
      host.hasOtherThreads = false
      XCTAssertNotNil(second)
      if !audits { cache.free(first, type: type) }
      if let second { cache.free(second, type: type) }
      cache.setAudit(.off)
      rig.expectEmpty()
    }
  }

  /// A limit that is lowered below a waiter's request refuses it, and those behind it go on.
  func testAWaiterThatALoweredLimitCantSatisfyIsRefused() throws {
    let rig = try KmemFixture(frames: 512, processors: 3)
    let (kmem, host) = (rig.kmem, rig.host)
    let type = try kmem.limitedType(named: ShortName("limited"), limit: ByteCount(4096))
    host.hasOtherThreads = true
    nonisolated(unsafe) let held = kmem.alloc(ByteCount(1024), type: type)!
    nonisolated(unsafe) var answers: [Int: Bool] = [:]
    let lock = NSLock()
    host.onThreads(3) { me in
      if me == 0 {
        idle { host.sleeperCount == 2 }
        type.limit = ByteCount(1088)
      } else {
        idle { host.sleeperCount == me - 1 }
        let size = ByteCount(me == 1 ? 4096 : 64)
        let object = kmem.alloc(size, type: type, wait: .allowed)
        lock.withLock { answers[me] = object != nil }
        if let object { kmem.free(object, size: size, type: type) }
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(answers, [1: false, 2: true])
    kmem.free(held, size: ByteCount(1024), type: type)
    rig.expectEmpty()
  }

  /// A wrong free that kmem sees later does not make the type's charge negative.
  func testAWrongFreeDoesNotBlockALimitedType() throws {
    let rig = try KmemFixture()
    let kmem = rig.kmem
    let type = try kmem.limitedType(named: ShortName("limited"), limit: ByteCount(8192))
    let object = try XCTUnwrap(kmem.alloc(ByteCount(64), type: type))
    let faults = rig.host.faults {
      // Not the one freed last, so that only the slab sees it.
      let other = kmem.alloc(ByteCount(64), type: type)!
      kmem.free(object, size: ByteCount(64), type: type)
      kmem.free(other, size: ByteCount(64), type: type)
      kmem.free(object, size: ByteCount(64), type: type)
      kmem.drain()
    }
    XCTAssertEqual(faults.map(\.kind), [.doubleFree])
    let next = try XCTUnwrap(kmem.alloc(ByteCount(4096), type: type))
    kmem.free(next, size: ByteCount(4096), type: type)
  }

  func testTheLimitOfAClassAboveAPageBindsItsPages() throws {
    let rig = try KmemFixture()
    let (kmem, type) = (rig.kmem, rig.type())
    let object = try XCTUnwrap(kmem.alloc(ByteCount(6000), type: type))
    kmem.forEach { if $0.name == ShortName("kmem-6528") { $0.setLimit(1) } }
    XCTAssertNil(kmem.alloc(ByteCount(6000), type: type))
    XCTAssertNil(kmem.zalloc(ByteCount(6000), type: type))
    kmem.free(object, size: ByteCount(6000), type: type)
    let next = try XCTUnwrap(kmem.zalloc(ByteCount(6000), type: type))
    kmem.free(next, size: ByteCount(6000), type: type)
    rig.expectEmpty()
  }
}
