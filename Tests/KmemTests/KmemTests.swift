import CPlatform
import HostMachine
import Magazines
import MemoryPrimitives
import Synchronization
import XCTest

@testable import Kmem
@testable import PhysicalMemory

final class KmemTests: XCTestCase {
  // MARK: Sizes

  func testTrimsGiveAPastBurstBack() throws {
    let rig = try KmemFixture(frames: 2048)
    let (type, size) = (rig.type(), ByteCount(256))
    let objects = (0..<6000).map { _ in rig.kmem.alloc(size, type: type)! }
    for object in objects { rig.kmem.free(object, size: size, type: type) }
    let burst = rig.physical.count(.slab)
    // The first look finds what was needed until now, the second what was not since.
    rig.kmem.trim()
    XCTAssertGreaterThan(rig.kmem.trim(), .zero)
    rig.kmem.trim()
    XCTAssertLessThan(rig.physical.count(.slab).rawValue, min(burst.rawValue, 12))
    rig.check()
    rig.expectEmpty()
  }

  func testTrimsKeepMagazinesThatAreNeededAllTheTime() throws {
    let rig = try KmemFixture(frames: 2048)
    let (type, size) = (rig.type(), ByteCount(256))
    func work() {
      let objects = (0..<200).map { _ in rig.kmem.alloc(size, type: type)! }
      for object in objects { rig.kmem.free(object, size: size, type: type) }
    }
    for _ in 0..<3 {
      work()
      rig.kmem.trim()
    }
    let made = try XCTUnwrap(rig.description(of: "kmem-256")).slabsMade
    for _ in 0..<20 {
      for _ in 0..<10 { work() }
      rig.kmem.trim()
      rig.check()
    }
    XCTAssertEqual(try XCTUnwrap(rig.description(of: "kmem-256")).slabsMade, made)
    rig.expectEmpty()
  }

  func testDrainsBesideTrimsGiveEverythingBack() throws {
    let rig = try KmemFixture(frames: 2048, processors: 2)
    rig.host.hasOtherThreads = true
    let (kmem, type, physical) = (rig.kmem, rig.type(), rig.physical)
    let size = ByteCount(512)
    let isOver = Atomic<Bool>(false)
    rig.host.onThreads(2) { me in
      if me == 0 {
        while !isOver.load(ordering: .relaxed) { kmem.trim() }
        return
      }
      for _ in 0..<200 {
        let objects = (0..<600).map { _ in kmem.alloc(size, type: type)! }
        for object in objects { kmem.free(object, size: size, type: type) }
        kmem.drain()
        kmem.drain()
        XCTAssertEqual(physical.count(.slab), .zero)
      }
      isOver.store(true, ordering: .relaxed)
    }
    rig.check()
    rig.expectEmpty()
  }

  /// Lets a trim stop in the middle, in a destructor, until a drain waits for it or has returned.
  private struct Midway: ~Copyable {
    let isReached = Atomic<Bool>(false)
    let mayEnd = Atomic<Bool>(false)
    let trimHasEnded = Atomic<Bool>(false)
  }

  func testADrainWaitsForATrimUnderWay() throws {
    let rig = try KmemFixture(frames: 512, processors: 2)
    let midway = UnsafeMutablePointer<Midway>.allocate(capacity: 1)
    midway.initialize(to: Midway())
    defer { midway.deallocate() }
    let cache = try rig.kmem.createCache(
      name: ShortName("slow to go"), size: ByteCount(4096),
      destruct: { context, _ in
        let midway = context!.assumingMemoryBound(to: Midway.self)
        guard cp_processor_index() == 1 else { return }
        midway.pointee.isReached.store(true, ordering: .releasing)
        // Interrupts come during the loop: the drain asks this processor for what it holds.
        while !midway.pointee.mayEnd.load(ordering: .acquiring) { withInterruptsOff {} }
      }, context: midway)
    let object = try XCTUnwrap(cache.alloc(type: rig.type()))
    cache.free(object, type: rig.type())
    cache.pointer!.magazines.drain { cache.pointer!.returnToSlab($0, .unknown) }
    // The first trim sees that the free slab is not needed, the second one gives it back.
    rig.kmem.trim()
    let (kmem, physical, machine) = (rig.kmem, rig.physical, rig.host.machine)
    nonisolated(unsafe) let shared = midway
    let hasOneLeft = physical.count(.slab)
    XCTAssertGreaterThan(hasOneLeft, .zero)
    // A sleeper lets the trim go on: the drain is one.
    rig.host.runDevices = {
      shared.pointee.mayEnd.store(true, ordering: .releasing)
      machine.run(on: ProcessorIndex(1), UnsafeMutableRawPointer(shared)) { _ in }
      sched_yield()
      return true
    }
    rig.host.onThreads(2) { me in
      if me == 1 {
        kmem.trim()
        shared.pointee.trimHasEnded.store(true, ordering: .releasing)
        return
      }
      while !shared.pointee.isReached.load(ordering: .acquiring) { withInterruptsOff {} }
      kmem.drain()
      XCTAssertEqual(
        physical.count(.slab), .zero, "the drain returned before the trim had given its slab back")
      shared.pointee.mayEnd.store(true, ordering: .releasing)
    }
    rig.host.runDevices = nil
    rig.check()
    rig.kmem.destroy(cache)
    rig.expectEmpty()
  }

  /// Two processors write no counter of the other's: each looks whether its own stay as they are while it has
  /// interrupts off.
  func testDestroyWritesNoCountersOfAnotherProcessor() throws {
    let rig = try KmemFixture(frames: 512, processors: 2)
    let kmem = rig.kmem
    let isOver = Atomic<Bool>(false)
    let changes = Atomic<Int>(0)
    rig.host.onThreads(2) { me in
      if me == 0 {
        for _ in 0..<20 {
          let cache = try! kmem.createCache(name: ShortName("short-lived"), size: ByteCount(128))
          // Both processors have counted for it.
          nonisolated(unsafe) var request = cache
          withUnsafeMutablePointer(to: &request) {
            kmem.state.machine.run(on: ProcessorIndex(1), UnsafeMutableRawPointer($0)) {
              let cache = $0.assumingMemoryBound(to: ObjectCache.self).pointee
              cache.kmem.otherType.countAllocation(cache.cacheIndex)
              cache.kmem.otherType.countFree(cache.cacheIndex)
            }
          }
          kmem.destroy(cache)
        }
        isOver.store(true, ordering: .releasing)
        return
      }
      func counters() -> UInt64 {
        var sum: UInt64 = 0
        for cacheIndex in 0..<CacheIndex.limit {
          let own = kmem.otherType.counters(1, cacheIndex)
          sum = sum &* 31 &+ own.pointee.allocations.value
          sum = sum &* 31 &+ own.pointee.frees.value
        }
        return sum
      }
      while !isOver.load(ordering: .acquiring) {
        withInterruptsOff {
          let before = counters()
          for _ in 0..<20 where counters() != before { changes.add(1, ordering: .relaxed) }
        }
      }
    }
    XCTAssertEqual(changes.load(ordering: .relaxed), 0)
    XCTAssertEqual(rig.kmem.requests, 20)
    rig.expectEmpty()
  }

  /// A trim has a magazine of a cache in hand when that is to be destroyed: its objects are not in use.
  func testCachesAreDestroyedBesideTrims() throws {
    let rig = try KmemFixture(frames: 2048, processors: 2)
    let (kmem, type) = (rig.kmem, rig.type())
    let isOver = Atomic<Bool>(false)
    let faults = rig.host.faults {
      rig.host.onThreads(2) { me in
        if me == 0 {
          while !isOver.load(ordering: .relaxed) { kmem.trim() }
          return
        }
        for round in 0..<1500 {
          // Of one size after the other, as a cacheIndex's next cache may have smaller magazines.
          let size = ByteCount(UInt64(round % 2 == 0 ? 128 : 640))
          let cache = try! kmem.createCache(name: ShortName("short-lived"), size: size)
          for _ in 0..<3 {
            let objects = (0..<400).map { _ in cache.alloc(type: type)! }
            for object in objects { cache.free(object, type: type) }
          }
          kmem.destroy(cache)
        }
        isOver.store(true, ordering: .relaxed)
      }
    }
    XCTAssertEqual(faults.count, 0, "\(faults.first?.what ?? "")")
    rig.expectEmpty()
  }

  func testAMachineWithoutThreadsDoesNotTrim() throws {
    let rig = try KmemFixture()
    XCTAssertFalse(rig.kmem.startTrimming())
    rig.kmem.endTrimming()
  }

  func testAThreadTrimsAndEnds() throws {
    let rig = try KmemFixture(frames: 2048, processors: 2)
    rig.host.hasOtherThreads = true
    let (type, size) = (rig.type(), ByteCount(256))
    rig.kmem.setTrimInterval(1)
    XCTAssertTrue(rig.kmem.startTrimming())
    let objects = (0..<6000).map { _ in rig.kmem.alloc(size, type: type)! }
    for object in objects { rig.kmem.free(object, size: size, type: type) }
    // However long that takes on a busy host.
    while rig.physical.count(.slab).rawValue > 12 {
      rig.host.advance()
      usleep(100)
    }
    rig.kmem.setTrimInterval(1_000_000)
    rig.kmem.endTrimming()
    rig.host.hasOtherThreads = false
    rig.expectEmpty()
  }

  func testEverySizeFindsTheSmallestClassThatHoldsIt() throws {
    let rig = try KmemFixture()
    for size in 1...10880 {
      let cacheIndex =
        size <= 4096
        ? rig.kmem.cacheIndex(UInt64(size)) : try XCTUnwrap(SizeClasses.cacheIndexAboveAPage(UInt64(size)))
      XCTAssertGreaterThanOrEqual(SizeClasses.size(cacheIndex), size)
      if cacheIndex > 1 { XCTAssertLessThan(SizeClasses.size(cacheIndex - 1), size) }
    }
    XCTAssertEqual(rig.kmem.cacheIndex(0), CacheIndex.failed)
    XCTAssertEqual(rig.kmem.cacheIndex(4097), CacheIndex.large)
    for size in [10880, UInt64(1) << 40, .max - 7, .max] {
      XCTAssertEqual(rig.kmem.cacheIndex(size), CacheIndex.large, "\(size)")
    }
    XCTAssertNil(SizeClasses.cacheIndexAboveAPage(10881))
    XCTAssertNil(SizeClasses.cacheIndexAboveAPage(.max))
    XCTAssertEqual(SizeClasses.name(1), ShortName("kmem-8"))
    XCTAssertEqual(SizeClasses.name(34), ShortName("kmem-4096"))
    XCTAssertEqual(SizeClasses.name(CacheIndex.lastClass), ShortName("kmem-10880"))
    XCTAssertEqual(MemoryLayout<AuditEntry>.size, 16)
  }

  func testObjectsAreAlignedAsTheirSizeAsks() throws {
    let rig = try KmemFixture(frames: 4096)
    let sizes = [
      0, 1, 8, 16, 24, 32, 40, 64, 65, 100, 128, 192, 500, 1000, 2048, 2049, 4095, 4096, 4097, 8191, 8192,
      8328,
      10880, 12288,
    ]
    for size in sizes {
      for _ in 0..<10 {
        let object = rig.kmem.alloc(ByteCount(size), type: rig.type())!
        let address = UInt(bitPattern: object)
        XCTAssertEqual(address % 8, 0)
        if size >= 64 { XCTAssertEqual(address % 64, 0, "\(size)") }
        if size > 0 && size % 4096 == 0 { XCTAssertEqual(address % 4096, 0, "\(size)") }
        if size > 0 && size < 64 && size & (size - 1) == 0 { XCTAssertEqual(address % UInt(size), 0) }
      }
    }
    rig.check()
  }

  /// A size just above a page comes from a slab. Where no run is free, it comes from pages with an address of their
  /// own; a free distinguishes the two.
  func testSizesJustAboveAPageAreServedFromSlabsAndWithoutARunFromPages() throws {
    let rig = try KmemFixture(frames: 512)
    let type = rig.type()
    let fromSlab = try XCTUnwrap(rig.kmem.zalloc(ByteCount(8328), type: type))
    XCTAssertEqual(rig.kmem.whatIs(VirtualAddress(fromSlab))?.cache, ShortName("kmem-10880"))
    XCTAssertEqual(rig.kmem.describe(type).bytes, ByteCount(10880))
    for i in 0..<8328 { XCTAssertEqual(fromSlab.load(fromByteOffset: i, as: UInt8.self), 0) }
    // Every second frame in use, and the slab's objects too: no two frames lie side by side.
    var frames: [FrameNumber] = []
    while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .normal) {
      frames.append(frame)
    }
    frames.sort { $0.rawValue < $1.rawValue }
    for frame in frames where frame.rawValue % 2 == 0 { rig.physical.free(frame, BlockOrder(0)) }
    var all = [fromSlab]
    while rig.large.live.isEmpty { all.append(try XCTUnwrap(rig.kmem.alloc(ByteCount(8328), type: type))) }
    let fromPages = all.removeLast()
    XCTAssertEqual(rig.large.live[UInt64(UInt(bitPattern: fromPages))], 3)
    XCTAssertEqual(rig.kmem.describe(type).failed, 0)
    rig.check()
    rig.kmem.free(fromPages, size: ByteCount(8328), type: type)
    XCTAssertTrue(rig.large.live.isEmpty)
    // Where neither has anything, the request is one refusal.
    rig.large.left = 0
    XCTAssertNil(rig.kmem.alloc(ByteCount(8328), type: type))
    XCTAssertEqual(rig.kmem.describe(type).failed, 1)
    for object in all { rig.kmem.free(object, size: ByteCount(8328), type: type) }
    XCTAssertEqual(rig.kmem.describe(type).bytes, .zero)
    XCTAssertEqual(rig.kmem.describe(type).inUse, 0)
    rig.check()
  }

  func testFreedObjectsAreAllocatedAgainAndAllMemoryComesBack() throws {
    let rig = try KmemFixture()
    let free = rig.physical.freeCount
    let type = rig.type()
    let first = rig.kmem.alloc(ByteCount(60), type: type)!
    rig.kmem.free(first, size: ByteCount(60), type: type)
    XCTAssertEqual(rig.kmem.alloc(ByteCount(64), type: type), first)
    rig.kmem.free(first, size: ByteCount(64), type: type)
    rig.check()
    rig.expectEmpty()
    XCTAssertEqual(rig.physical.freeCount + rig.physical.count(.kmem), free)
  }

  func testASizeOfZeroIsAnObjectLikeAnyOther() throws {
    let rig = try KmemFixture()
    let a = rig.kmem.alloc(.zero, type: rig.type())!
    let b = rig.kmem.alloc(.zero, type: rig.type())!
    XCTAssertNotEqual(a, b)
    rig.kmem.free(a, size: .zero, type: rig.type())
    rig.kmem.free(b, size: .zero, type: rig.type())
    rig.expectEmpty()
  }

  func testZallocClearsTheBytesOfTheLastUser() throws {
    let rig = try KmemFixture()
    for size in [1, 24, 64, 200, 4096] {
      let object = rig.kmem.alloc(ByteCount(size), type: rig.type())!
      object.initializeMemory(as: UInt8.self, repeating: 0xaa, count: size)
      rig.kmem.free(object, size: ByteCount(size), type: rig.type())
      let again = rig.kmem.zalloc(ByteCount(size), type: rig.type())!
      XCTAssertEqual(again, object)
      for i in 0..<size { XCTAssertEqual(again.load(fromByteOffset: i, as: UInt8.self), 0) }
    }
  }

  func testLargeRequestsTakeWholePagesAndCountThem() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let object = rig.kmem.zalloc(ByteCount(15000), type: type)!
    XCTAssertEqual(rig.large.live[UInt64(UInt(bitPattern: object))], 4)
    XCTAssertEqual(rig.kmem.describe(type).bytes, ByteCount(4 * 4096))
    XCTAssertEqual(rig.kmem.describe(type).inUse, 1)
    XCTAssertNil(rig.kmem.alloc(ByteCount(UInt64.max), type: type))
    XCTAssertNil(rig.kmem.alloc(ByteCount(4096 * 1001), type: type))
    XCTAssertEqual(rig.kmem.describe(type).failed, 2)
    rig.kmem.free(object, size: ByteCount(13000), type: type)
    XCTAssertTrue(rig.large.live.isEmpty)
    XCTAssertEqual(rig.kmem.describe(type).bytes, .zero)
    XCTAssertEqual(rig.kmem.describe(type).requests, 1)
  }

  func testALookedUpCacheServesItsSize() throws {
    let rig = try KmemFixture()
    let cache = rig.kmem.lookUp(ByteCount(100))!
    XCTAssertNil(rig.kmem.lookUp(ByteCount(4097)))
    let object = cache.alloc(type: rig.type())!
    rig.kmem.free(object, size: ByteCount(100), type: rig.type())
    let other = rig.kmem.alloc(ByteCount(100), type: rig.type())!
    cache.free(other, type: rig.type())
    rig.expectEmpty()
  }

  // MARK: Object caches

  private struct Hooks {
    var constructed = 0
    var destructed = 0
  }

  func testConstructedObjectsStayConstructed() throws {
    let rig = try KmemFixture()
    var hooks = Hooks()
    try withUnsafeMutablePointer(to: &hooks) { hooks in
      let cache = try rig.kmem.createCache(
        name: ShortName("inode"), size: ByteCount(100),
        construct: { context, object in
          context!.assumingMemoryBound(to: Hooks.self).pointee.constructed += 1
          object.initializeMemory(as: UInt8.self, repeating: 0x5a, count: 100)
        },
        destruct: { context, object in
          context!.assumingMemoryBound(to: Hooks.self).pointee.destructed += 1
          for i in 0..<100 { XCTAssertEqual(object.load(fromByteOffset: i, as: UInt8.self), 0x5a) }
        }, context: hooks)
      let type = rig.type()
      for _ in 0..<3 {
        let objects = (0..<100).map { _ in cache.alloc(type: type)! }
        for object in objects {
          for i in 0..<100 { XCTAssertEqual(object.load(fromByteOffset: i, as: UInt8.self), 0x5a) }
        }
        rig.check()
        for object in objects { cache.free(object, type: type) }
        rig.check()
      }
      XCTAssertGreaterThanOrEqual(hooks.pointee.constructed, 100)
      rig.kmem.destroy(cache)
      XCTAssertEqual(hooks.pointee.constructed, hooks.pointee.destructed)
      XCTAssertNil(rig.description(of: "inode"))
    }
    rig.expectEmpty()
  }

  func testCachesOfAllSizesAndAlignmentsServeObjects() throws {
    let rig = try KmemFixture(frames: 4096)
    for size in [1, 7, 8, 33, 100, 1184, 2080, 4096, 5000, 8328, 16384, 32768] {
      for alignment: UInt64 in [1, 16, 64, 4096] {
        let cache = try rig.kmem.createCache(
          name: ShortName("any"), size: ByteCount(size), alignment: Alignment(alignment)!)
        let objects = (0..<20).map { _ in cache.alloc(type: rig.type())! }
        XCTAssertEqual(Set(objects).count, 20)
        for object in objects {
          XCTAssertEqual(UInt(bitPattern: object) % UInt(alignment), 0)
          object.initializeMemory(as: UInt8.self, repeating: 0xff, count: size)
        }
        rig.check("\(size) \(alignment)")
        for object in objects { cache.free(object, type: rig.type()) }
        rig.check("\(size) \(alignment)")
        rig.kmem.destroy(cache)
      }
    }
    rig.expectEmpty()
  }

  func testAColumnIsUsedAgainWithFreshCounters() throws {
    let rig = try KmemFixture(frames: 2048)
    for round in 0..<200 {
      let cache = try rig.kmem.createCache(name: ShortName("short"), size: ByteCount(50))
      let object = cache.alloc(type: rig.type())!
      XCTAssertEqual(rig.description(of: "short")?.requests, 1, "round \(round)")
      cache.free(object, type: rig.type())
      rig.kmem.destroy(cache)
    }
    var caches: [ObjectCache] = []
    while let cache = try? rig.kmem.createCache(name: ShortName("many"), size: ByteCount(50)) {
      caches.append(cache)
    }
    XCTAssertEqual(caches.count, 80)
    XCTAssertThrowsError(try rig.kmem.createCache(name: ShortName("more"), size: ByteCount(50))) {
      XCTAssertEqual($0 as? KmemError, .tooManyCaches)
    }
    for cache in caches { rig.kmem.destroy(cache) }
    rig.expectEmpty()
  }

  func testACacheWhoseObjectsLeaveNoSpaceForAnAuditIsServedWithoutOne() throws {
    let rig = try KmemFixture()
    rig.kmem.setAudit(.on)
    let cache = try rig.kmem.createCache(name: ShortName("whole slabs"), size: ByteCount(32768))
    XCTAssertEqual(cache.auditing, .off)
    let object = try XCTUnwrap(cache.alloc(type: rig.type()))
    rig.check()
    cache.free(object, type: rig.type())
    rig.kmem.destroy(cache)
    rig.kmem.setAudit(.off)
    rig.expectEmpty()
  }

  func testCountsOfRequestsOutliveACache() throws {
    let rig = try KmemFixture()
    let cache = try rig.kmem.createCache(name: ShortName("short"), size: ByteCount(50))
    let objects = (0..<10).map { _ in cache.alloc(type: rig.type())! }
    for object in objects { cache.free(object, type: rig.type()) }
    rig.kmem.drain()
    let (all, ofType) = (rig.kmem.requests, rig.kmem.describe(rig.type()).requests)
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Statistics.size(capacity: 40).rawValue), alignment: 64)
    defer { memory.deallocate() }
    let statistics = Statistics(memory, capacity: 40)
    rig.kmem.register(in: statistics)
    func counters() -> [UInt64] {
      (0..<statistics.count).map { statistics[$0] }.filter { $0.kind == .counter }.map(\.value)
    }
    let before = counters()
    XCTAssertGreaterThan(before.filter { $0 > 0 }.count, 3)
    rig.kmem.destroy(cache)
    XCTAssertEqual(counters(), before)
    XCTAssertEqual(rig.kmem.requests, all)
    XCTAssertEqual(rig.kmem.describe(rig.type()).requests, ofType)
    XCTAssertEqual(ofType, 10)
    rig.expectEmpty()
  }

  func testACacheThatCanNotBeIsRefused() throws {
    let rig = try KmemFixture()
    XCTAssertThrowsError(try rig.kmem.createCache(name: ShortName("x"), size: .zero)) {
      XCTAssertEqual($0 as? KmemError, .badConstraint)
    }
    XCTAssertThrowsError(
      try rig.kmem.createCache(name: ShortName("x"), size: ByteCount(8), alignment: Alignment(8192)!)
    ) { XCTAssertEqual($0 as? KmemError, .badConstraint) }
    for size in [32769, UInt64.max] {
      XCTAssertThrowsError(try rig.kmem.createCache(name: ShortName("x"), size: ByteCount(size))) {
        XCTAssertEqual($0 as? KmemError, .tooLarge)
      }
    }
    XCTAssertThrowsError(
      try rig.kmem.createCache(name: ShortName("x"), size: ByteCount(32768), construct: { _, _ in })
    ) { XCTAssertEqual($0 as? KmemError, .tooLarge) }
  }

  // MARK: When memory is gone

  func testMemoryRunsOutAndComesBack() throws {
    let rig = try KmemFixture(frames: 512)
    let type = rig.type()
    for size in [8, 64, 1152, 4096] {
      var objects: [UnsafeMutableRawPointer] = []
      for priority in [AllocationPriority.normal, .system, .interrupt] {
        while let object = rig.kmem.alloc(ByteCount(size), type: type, priority: priority) {
          objects.append(object)
        }
        rig.check()
      }
      XCTAssertEqual(Set(objects).count, objects.count)
      XCTAssertGreaterThan(objects.count * size, 512 * 4096 * 7 / 10)
      XCTAssertNil(rig.kmem.alloc(ByteCount(size), type: type))
      for object in objects { rig.kmem.free(object, size: ByteCount(size), type: type) }
      rig.check()
      rig.kmem.drain()
      XCTAssertEqual(rig.physical.count(.slab), .zero, "\(size)")
    }
    XCTAssertEqual(rig.description(of: "kmem-64")!.failed, 4)
    rig.expectEmpty()
  }

  func testFreeSlabsOfOtherCachesAreFreedBeforeARequestFails() throws {
    let rig = try KmemFixture(frames: 512)
    let type = rig.type()
    var objects: [UnsafeMutableRawPointer] = []
    while let object = rig.kmem.alloc(ByteCount(64), type: type) { objects.append(object) }
    let slabs = rig.physical.count(.slab)
    for object in objects { rig.kmem.free(object, size: ByteCount(64), type: type) }
    XCTAssertLessThan(rig.physical.count(.slab), slabs)
    // Another size gets nearly all of it, though magazines and kept slabs of the first hold some.
    objects = []
    while let object = rig.kmem.alloc(ByteCount(1024), type: type) { objects.append(object) }
    XCTAssertGreaterThan(rig.physical.count(.slab), slabs - PageCount(UInt64(8)))
    for object in objects { rig.kmem.free(object, size: ByteCount(1024), type: type) }
    rig.expectEmpty()
  }

  func testABurstMeetsItsOwnFreesAgainAndADrainTakesAllBack() throws {
    let rig = try KmemFixture(frames: 8192)
    let type = rig.type()
    func burst(_ size: Int) {
      let objects = (0..<100).map { _ in rig.kmem.alloc(ByteCount(size), type: type)! }
      for object in objects { rig.kmem.free(object, size: ByteCount(size), type: type) }
      rig.check()
    }
    for _ in 0..<3 { burst(1024) }
    let made = rig.description(of: "kmem-1024")!.slabsMade
    for _ in 0..<10 { burst(1024) }
    XCTAssertEqual(rig.description(of: "kmem-1024")!.slabsMade, made)
    for size in [64, 192, 512, 2048, 4096] { for _ in 0..<5 { burst(size) } }
    // Within the allowances, and what each cache keeps in any case.
    XCTAssertLessThan(rig.kmem.slabPages.bytes, ByteCount.kibibytes(2 * 128 + 8 * 100))
    rig.expectEmpty()
  }

  func testSmallerSlabsServeWhereNoRunIsFree() throws {
    let rig = try KmemFixture(frames: 512)
    let type = rig.type()
    // Every second frame: no two that follow each other.
    var frames: [FrameNumber] = []
    while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      frames.append(frame)
    }
    for frame in frames where frame.rawValue % 2 == 1 { rig.physical.free(frame, BlockOrder(0)) }
    // 1152 bytes would like two frames, seven objects.
    let object = rig.kmem.alloc(ByteCount(1152), type: type)!
    XCTAssertEqual(rig.kmem.whatIs(VirtualAddress(object))?.frames, .one)
    rig.kmem.free(object, size: ByteCount(1152), type: type)
    // An object of 8000 bytes fits into no single frame: it gets pages with an address of their own, or none.
    let cache = try rig.kmem.createCache(name: ShortName("big"), size: ByteCount(8000))
    XCTAssertNil(withInterruptsOff { cache.alloc(type: type) }, "no processor may be asked")
    let onPages = try XCTUnwrap(cache.alloc(type: type))
    XCTAssertEqual(rig.large.live[VirtualAddress(onPages).rawValue], 2)
    cache.free(onPages, type: type)
    rig.large.left = 0
    XCTAssertNil(cache.alloc(type: type))
    rig.check()
    rig.kmem.destroy(cache)
  }

  // MARK: Figures

  func testStatisticsOfCachesAndTypesAddUp() throws {
    let rig = try KmemFixture()
    let (a, b) = (rig.type("a"), rig.type("b"))
    XCTAssertEqual(rig.type("a"), a)
    let small = (0..<10).map { _ in rig.kmem.alloc(ByteCount(60), type: a)! }
    let page = rig.kmem.alloc(ByteCount(4096), type: b)!
    let cache = rig.description(of: "kmem-64")!
    XCTAssertEqual(cache.inUse, 10)
    XCTAssertEqual(cache.inUse + cache.free, cache.slabs * 64)
    XCTAssertEqual(cache.held, ByteCount(4096))
    XCTAssertEqual(rig.kmem.describe(a).bytes, ByteCount(640))
    XCTAssertEqual(rig.kmem.describe(b).bytes, ByteCount(4096))
    var sizes: [UInt64] = []
    rig.kmem.forEachSize(of: a) { size, requests, inUse in
      sizes.append(size!.rawValue)
      XCTAssertEqual(requests, 10)
      XCTAssertEqual(inUse, 10)
    }
    XCTAssertEqual(sizes, [64])
    var names: [ShortName] = []
    rig.kmem.forEachType { names.append($0.name) }
    XCTAssertEqual(names, [ShortName("other"), ShortName("kmem"), ShortName("a"), ShortName("b")])
    for object in small { rig.kmem.free(object, size: ByteCount(60), type: a) }
    rig.kmem.free(page, size: ByteCount(4096), type: b)
    XCTAssertEqual(rig.kmem.describe(a).inUse, 0)
    XCTAssertEqual(rig.kmem.describe(a).requests, 10)
    XCTAssertGreaterThan(rig.kmem.heldBytes, rig.kmem.metadataBytes)
    rig.expectEmpty()
    XCTAssertEqual(rig.kmem.heldBytes, rig.kmem.metadataBytes)
  }

  func testContiguousMemoryIsAccountedByType() throws {
    let rig = try KmemFixture()
    let (a, b) = (rig.type("a"), rig.type("b"))
    let object = rig.kmem.alloc(ByteCount(60), type: a)!
    let large = rig.kmem.alloc(ByteCount(16384), type: a)!
    let (used, held) = (rig.kmem.usedBytes, rig.kmem.heldBytes)
    let requests = rig.kmem.requests
    rig.kmem.countContiguous(a, PageCount(512))
    rig.kmem.countContiguous(a, PageCount(3))
    var figures = rig.kmem.describe(a)
    XCTAssertEqual(figures.inUse, 4)
    XCTAssertEqual(figures.requests, 4)
    XCTAssertEqual(figures.failed, 0)
    XCTAssertEqual(figures.bytes, ByteCount(64 + 16384 + 515 * 4096))
    XCTAssertEqual(rig.kmem.contiguous(a).requests, 2)
    XCTAssertEqual(rig.kmem.contiguous(a).pages, PageCount(515))
    XCTAssertEqual(rig.kmem.contiguousBytes, ByteCount(515 * 4096))
    XCTAssertEqual(rig.kmem.requests, requests + 2)
    // It is nothing of kmem's.
    XCTAssertEqual(rig.kmem.usedBytes, used)
    XCTAssertEqual(rig.kmem.heldBytes, held)
    var sizes: [[UInt64]] = []
    rig.kmem.forEachSize(of: a) { sizes.append([$0?.rawValue ?? 0, $1, $2]) }
    XCTAssertEqual(sizes, [[64, 1, 1], [0, 3, 3]])

    XCTAssertTrue(rig.kmem.uncountContiguous(a, PageCount(512)))
    figures = rig.kmem.describe(a)
    XCTAssertEqual([figures.inUse, figures.requests], [3, 4])
    XCTAssertEqual(figures.bytes, ByteCount(64 + 16384 + 3 * 4096))
    XCTAssertEqual(rig.kmem.describe(b).requests, 0)
    XCTAssertTrue(rig.kmem.uncountContiguous(a, PageCount(3)))
    rig.kmem.free(object, size: ByteCount(60), type: a)
    rig.kmem.free(large, size: ByteCount(16384), type: a)
    XCTAssertEqual(rig.kmem.describe(a).bytes, .zero)
    rig.expectEmpty()
  }

  func testAContiguousRequestThatFailedCountsAsNoAllocation() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    rig.kmem.countContiguousFailure(type)
    rig.kmem.countContiguousFailure(type)
    func figures() -> [UInt64] {
      let figures = rig.kmem.describe(type)
      return [figures.inUse, figures.bytes.rawValue, figures.requests, figures.failed]
    }
    XCTAssertEqual(figures(), [0, 0, 0, 2])
    XCTAssertEqual(rig.kmem.failedRequests, 2)
    // Memory that was never counted can't be uncounted, nor under another type.
    func refused(_ type: MemoryType, _ pages: UInt64, _ expected: UInt64, line: UInt = #line) {
      let before = figures()
      let faults = rig.host.faults {
        XCTAssertFalse(rig.kmem.uncountContiguous(type, PageCount(pages)), line: line)
      }
      XCTAssertEqual(faults.map(\.kind), [.wrongType], line: line)
      XCTAssertEqual(faults.first?.given, pages, line: line)
      XCTAssertEqual(faults.first?.expected, expected, line: line)
      XCTAssertEqual(faults.first?.type, type.name, line: line)
      XCTAssertEqual(figures(), before, line: line)
    }
    refused(type, 0, 0)
    refused(type, 1, 0)
    rig.kmem.countContiguous(type, PageCount(8))
    refused(type, 9, 8)
    refused(rig.type("another"), 8, 0)
    XCTAssertEqual(figures(), [1, 8 * 4096, 1, 2])
    XCTAssertTrue(rig.kmem.uncountContiguous(type, PageCount(8)))
    refused(type, 8, 0)
    rig.expectEmpty()
  }

  func testProcessorsShareOneAccountOfContiguousMemory() throws {
    let rig = try KmemFixture(processors: 2)
    let type = rig.type()
    let kmem = rig.kmem
    let shared = type
    rig.host.onThreads(2) { _ in
      for round in UInt64(1)...2000 {
        kmem.countContiguous(shared, PageCount(round))
        if round % 3 == 0 { kmem.countContiguousFailure(shared) }
        XCTAssertTrue(kmem.uncountContiguous(shared, PageCount(round)))
      }
    }
    let figures = rig.kmem.describe(type)
    XCTAssertEqual([figures.inUse, figures.requests, figures.failed], [0, 4000, 2 * 666])
    // Counted by one processor, given back on another.
    rig.host.runAs(processor: 0) { kmem.countContiguous(shared, PageCount(5)) }
    rig.host.runAs(processor: 1) { XCTAssertTrue(kmem.uncountContiguous(shared, PageCount(5))) }
    XCTAssertEqual(rig.kmem.describe(type).bytes, .zero)
    rig.expectEmpty()
  }

  func testTheRegistryHasKmemsRowsAndTheAuditTunable() throws {
    let rig = try KmemFixture()
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Statistics.size(capacity: 40).rawValue), alignment: 64)
    defer { memory.deallocate() }
    let statistics = Statistics(memory, capacity: 40)
    rig.kmem.register(in: statistics)
    _ = rig.kmem.alloc(ByteCount(60), type: rig.type())
    var values: [String: UInt64] = [:]
    for i in 0..<statistics.count { values[statistics[i].name.description] = statistics[i].value }
    XCTAssertEqual(values["kmem.requests"], 2, "one of them a page for magazines")
    XCTAssertEqual(values["kmem.used"], 64 + 4096)
    XCTAssertEqual(values["kmem.audit"], 0)
    let audit = statistics[statistics.count - 1]
    XCTAssertEqual(audit.set(2), .out_of_range)
    XCTAssertEqual(audit.set(1), .accepted)
    XCTAssertEqual(rig.kmem.auditing, .on)
    XCTAssertEqual(try rig.kmem.createCache(name: ShortName("later"), size: ByteCount(9)).auditing, .on)
    rig.check()
  }

  func testTooManyTypesShareOne() throws {
    let rig = try KmemFixture()
    var tokens: [MemoryType] = []
    for i in 0..<300 {
      let name = Array("type\(i)".utf8).withUnsafeBufferPointer { ShortName(bytes: $0) }
      tokens.append(rig.kmem.type(named: name))
    }
    XCTAssertEqual(tokens.filter { $0 != rig.kmem.otherType }.count, KmemAllocator.typeLimit - 2)
    let held = rig.kmem.metadataBytes
    for _ in 0..<100 { XCTAssertEqual(rig.kmem.type(named: ShortName("one more")), rig.kmem.otherType) }
    XCTAssertEqual(rig.kmem.metadataBytes, held, "a refused type takes no memory")
    let object = rig.kmem.alloc(ByteCount(8), type: tokens[299])!
    rig.kmem.free(object, size: ByteCount(8), type: tokens[299])
  }

  func testALookupFindsAnObjectByAnyOfItsBytes() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let object = rig.kmem.alloc(ByteCount(60), type: type)!
    let inside = rig.kmem.whatIs(VirtualAddress(object + 18))!
    XCTAssertEqual(inside.cache, ShortName("kmem-64"))
    XCTAssertEqual(inside.objectStart, VirtualAddress(object))
    XCTAssertEqual(inside.offset, ByteCount(18))
    XCTAssertEqual(inside.standing, .inUse)
    XCTAssertEqual(inside.objects, 64)
    XCTAssertNil(inside.audit)
    rig.kmem.free(object, size: ByteCount(60), type: type)
    XCTAssertEqual(
      rig.kmem.whatIs(VirtualAddress(object))!.standing, .inMagazine(.processor(ProcessorIndex(0))))
    rig.kmem.drain()
    XCTAssertNil(rig.kmem.whatIs(VirtualAddress(object)), "the slab is gone")
    let other = rig.kmem.alloc(ByteCount(1152), type: type)!
    let second = VirtualAddress(other) + ByteCount(5000)
    XCTAssertEqual(rig.kmem.whatIs(second)!.slabStart, rig.kmem.whatIs(VirtualAddress(other))!.slabStart)
    XCTAssertEqual(rig.kmem.whatIs(rig.kmem.whatIs(second)!.slabStart + ByteCount(8191))!.standing, .noObject)
    XCTAssertNil(rig.kmem.whatIs(VirtualAddress(UInt64(0xffff_c000_0000_0000))))
    XCTAssertNil(rig.kmem.whatIs(VirtualAddress(UInt64(0))))
  }
}
