import Foundation
import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

/// Requests that wait for memory, and what kmem gives back so that others need not wait.
final class KmemWaitingTests: XCTestCase {
  /// A machine whose memory is all in objects of one cache and in wired frames.
  private struct FullMachine {
    let rig: KmemFixture
    let type: MemoryType
    let cache: ObjectCache
    var objects: [UnsafeMutableRawPointer] = []
    var frames: [FrameNumber] = []

    init(filledAt priority: AllocationPriority = .normal) throws {
      rig = try KmemFixture(frames: 300, processors: 4)
      type = rig.type()
      cache = try rig.kmem.createCache(name: ShortName("full"), size: ByteCount(64))
      for _ in 0..<100 { objects.append(try XCTUnwrap(cache.alloc(type: type))) }
      while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: priority) {
        frames.append(frame)
      }
      while let object = cache.alloc(type: type, priority: priority) { objects.append(object) }
    }

    /// Frees all, and checks that nothing was lost.
    mutating func end(_ file: StaticString = #filePath, _ line: UInt = #line) {
      rig.host.hasOtherThreads = false
      rig.check("", file, line)
      for object in objects { cache.free(object, type: type) }
      for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
      XCTAssertEqual(rig.kmem.describe(type).inUse, 0, file: file, line: line)
      rig.expectEmpty(file, line)
    }
  }

  private static func awaitSleepers(_ count: Int, _ host: SimulatedMachine) {
    idle { host.sleeperCount >= count }
  }

  func testAFreeOfItsCacheServesARequestThatWaits() throws {
    var full = try FullMachine()
    let (cache, type, host) = (full.cache, full.type, full.rig.host)
    host.hasOtherThreads = true
    let freed = full.objects.removeLast()
    nonisolated(unsafe) var got: UnsafeMutableRawPointer?
    nonisolated(unsafe) let given = freed
    host.onThreads(2) { me in
      if me == 0 {
        got = cache.alloc(type: type, wait: .allowed)
      } else {
        Self.awaitSleepers(1, host)
        cache.free(given, type: type)
      }
    }
    XCTAssertEqual(got, freed)
    XCTAssertEqual(full.rig.kmem.describe(type).failed, 1, "only the request that filled memory")
    full.objects.append(try XCTUnwrap(got))
    full.end()
  }

  /// A slab of many objects needs tables, which lie in a frame of kmem's own: a waiter waits for both.
  func testAWaiterGetsTheTablesOfItsSlabToo() throws {
    let rig = try KmemFixture(frames: 300, processors: 2)
    let (kmem, type, host, physical) = (rig.kmem, rig.type(), rig.host, rig.physical)
    nonisolated(unsafe) var frames: [FrameNumber] = []
    while let frame = try? physical.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    host.hasOtherThreads = true
    nonisolated(unsafe) var got: UnsafeMutableRawPointer?
    let isServed = Atomic<Bool>(false)
    host.onThreads(2) { me in
      if me == 0 {
        got = kmem.alloc(ByteCount(24), type: type, wait: .allowed)
        isServed.store(true, ordering: .releasing)
      } else {
        for _ in 0..<2 {
          idle { host.sleeperCount == 1 }
          let waits = physical.awaited
          physical.free(frames.removeLast(), BlockOrder(0))
          // It takes the frame, finds none for the tables, and waits for two.
          idle {
            host.sleeperCount == 0 || physical.awaited > waits || isServed.load(ordering: .acquiring)
          }
        }
      }
    }
    host.hasOtherThreads = false
    kmem.free(try XCTUnwrap(got), size: ByteCount(24), type: type)
    for frame in frames { physical.free(frame, BlockOrder(0)) }
    rig.expectEmpty()
  }

  func testAFreedFrameServesARequestThatWaits() throws {
    var full = try FullMachine()
    let (cache, type, host, physical) = (full.cache, full.type, full.rig.host, full.rig.physical)
    host.hasOtherThreads = true
    let frame = full.frames.removeLast()
    nonisolated(unsafe) var got: UnsafeMutableRawPointer?
    host.onThreads(2) { me in
      if me == 0 {
        got = cache.alloc(type: type, wait: .allowed)
      } else {
        Self.awaitSleepers(1, host)
        physical.free(frame, BlockOrder(0))
      }
    }
    full.objects.append(try XCTUnwrap(got))
    full.end()
  }

  /// The slab that one waiter makes serves all that wait; without it, they are served by priority and in their order.
  func testWaitersAreServedByPriorityAndInOrder() throws {
    for isBySlab in [false, true] {
      var full = try FullMachine(filledAt: .system)
      let (cache, type, host, physical) = (full.cache, full.type, full.rig.host, full.rig.physical)
      host.hasOtherThreads = true
      let freed = (0..<3).map { _ in full.objects.removeLast() }
      let frame = full.frames.removeLast()
      nonisolated(unsafe) var order: [Int] = []
      nonisolated(unsafe) var got: [UnsafeMutableRawPointer] = []
      nonisolated(unsafe) let given = freed
      let lock = NSLock()
      let waiting = Atomic<Int>(0)
      // Two of normal priority, then one that may use the reserve.
      host.onThreads(4) { me in
        if me == 0 {
          Self.awaitSleepers(3, host)
          if isBySlab { return physical.free(frame, BlockOrder(0)) }
          for object in given {
            let before = lock.withLock { order.count }
            cache.free(object, type: type)
            idle { lock.withLock { order.count } > before }
          }
        } else {
          idle { waiting.load(ordering: .acquiring) == me - 1 && host.sleeperCount == me - 1 }
          waiting.add(1, ordering: .releasing)
          let object = cache.alloc(type: type, priority: me == 3 ? .system : .normal, wait: .allowed)
          lock.withLock {
            order.append(me)
            if let object { got.append(object) }
          }
        }
      }
      XCTAssertEqual(got.count, 3)
      if !isBySlab { XCTAssertEqual(order, [3, 1, 2]) }
      if isBySlab { full.objects += freed } else { full.frames.append(frame) }
      full.objects += got
      full.end()
    }
  }

  func testADeadlineEndsAWaitAndLeavesNothing() throws {
    var full = try FullMachine()
    let (cache, type, host) = (full.cache, full.type, full.rig.host)
    let failed = full.rig.kmem.describe(type).failed
    host.hasOtherThreads = true
    nonisolated(unsafe) var got: UnsafeMutableRawPointer?
    host.onThreads(2) { me in
      if me == 0 {
        got = cache.alloc(type: type, wait: .until(Tick(host.machine.now.rawValue + 50)))
      } else {
        Self.awaitSleepers(1, host)
        host.advance(ticks: 100)
      }
    }
    XCTAssertNil(got)
    XCTAssertEqual(full.rig.kmem.describe(type).failed, failed + 1)
    XCTAssertEqual(full.rig.physical.awaited, .zero)
    // The cache has its magazines again.
    let pointer = try XCTUnwrap(cache.pointer)
    XCTAssertTrue(pointer.magazines.isOn)
    XCTAssertNil(pointer.lists.withLock { $0.waiters.first })
    full.end()
  }

  func testNoWaitWithoutLeaveOrAtInterruptPriorityOrWhereNothingCanFree() throws {
    var full = try FullMachine()
    let (cache, type) = (full.cache, full.type)
    let waits = full.rig.physical.counted.waits.value
    XCTAssertNil(cache.alloc(type: type))
    XCTAssertNil(cache.alloc(type: type, wait: .until(Tick(0))))
    // The last frames are for this priority; then it is refused at once.
    while let object = cache.alloc(type: type, priority: .interrupt, wait: .allowed) {
      full.objects.append(object)
    }
    XCTAssertEqual(full.rig.physical.counted.waits.value, waits)
    // On a machine with one thread no other could free memory.
    XCTAssertNil(cache.alloc(type: type, wait: .allowed))
    XCTAssertTrue(try XCTUnwrap(cache.pointer).magazines.isOn)
    full.end()
  }

  /// An audit that is switched during a wait, in either order, decides about the magazines in the end.
  func testAuditAndWaitersShareTheSwitchOfTheMagazines() throws {
    let rig = try KmemFixture()
    let cache = try rig.kmem.createCache(name: ShortName("both"), size: ByteCount(64))
    let pointer = try XCTUnwrap(cache.pointer)
    cache.setAudit(.on)
    pointer.blockMagazines()
    cache.setAudit(.off)
    XCTAssertFalse(pointer.magazines.isOn, "a request waits")
    cache.setAudit(.on)
    pointer.unblockMagazines()
    XCTAssertFalse(pointer.magazines.isOn, "the cache is audited")
    cache.setAudit(.off)
    XCTAssertTrue(pointer.magazines.isOn)
    rig.check()
  }

  // MARK: Reclaiming

  /// Objects that lie free in magazines, of whatever processor, are no reason to refuse a frame.
  func testMemoryInMagazinesOfAnyProcessorIsFreedForARequest() throws {
    for processor in 0..<3 {
      let rig = try KmemFixture(frames: 300, processors: 3)
      let type = rig.type()
      rig.host.runAs(processor: processor) {
        var objects: [UnsafeMutableRawPointer] = []
        while let object = rig.kmem.alloc(ByteCount(4096), type: type) { objects.append(object) }
        for object in objects { rig.kmem.free(object, size: ByteCount(4096), type: type) }
      }
      var frames: [FrameNumber] = []
      while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .normal) {
        frames.append(frame)
      }
      XCTAssertEqual(rig.physical.count(.slab), .zero, "processor \(processor)")
      for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
      rig.expectEmpty()
    }
  }

  /// With a spin lock held or interrupts off, no other processor is asked, and no owner's hook runs.
  func testARequestThatHoldsALockAsksForTheFirstStepsOnly() throws {
    let rig = try KmemFixture(frames: 300, processors: 2)
    let type = rig.type()
    let kept = rig.host
    rig.host.runAs(processor: 1) {
      var objects: [UnsafeMutableRawPointer] = []
      while let object = rig.kmem.alloc(ByteCount(4096), type: type) { objects.append(object) }
      for object in objects { rig.kmem.free(object, size: ByteCount(4096), type: type) }
    }
    while (try? rig.physical.allocateUnlogged(BlockOrder(0), role: .wired)) != nil {}
    let inMagazines = rig.kmem.cache(at: 34)!.magazines.wordCount
    XCTAssertGreaterThan(inMagazines, 0)
    withInterruptsOff {
      while (try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .normal)) != nil {}
    }
    XCTAssertEqual(rig.kmem.cache(at: 34)!.magazines.stockedCount, 0, "the depot is asked")
    XCTAssertGreaterThan(rig.kmem.cache(at: 34)!.magazines.wordCount, 0, "the other processor is not")
    XCTAssertNoThrow(try rig.physical.allocate(BlockOrder(0), role: .wired, priority: .normal))
    XCTAssertEqual(rig.kmem.cache(at: 34)!.magazines.wordCount, 0)
    withExtendedLifetime(kept) {}
    rig.check()
  }

  /// The first step frees what was not needed since the last trim, and leaves the rest.
  func testTheFirstStepFreesTheSurplusOnly() throws {
    let rig = try KmemFixture(frames: 2048)
    let (type, size) = (rig.type(), ByteCount(1024))
    let pointer = try XCTUnwrap(rig.kmem.lookUp(size)?.pointer)
    func burst(_ count: Int) {
      let objects = (0..<count).map { _ in rig.kmem.alloc(size, type: type)! }
      for object in objects { rig.kmem.free(object, size: size, type: type) }
    }
    burst(800)
    rig.kmem.trim()
    let stocked = pointer.magazines.stockedCount
    XCTAssertGreaterThan(stocked, 1)
    burst(30)
    rig.kmem.reclaim(.surplus)
    XCTAssertLessThan(pointer.magazines.stockedCount, stocked)
    rig.check()
    XCTAssertGreaterThan(rig.kmem.slabPages, .zero)
    rig.kmem.reclaim(.allProcessors)
    XCTAssertEqual(rig.kmem.slabPages, .zero)
    rig.expectEmpty()
  }

  /// Threads that want more than there is, and wait for each other: each is served in the end, and nothing is lost.
  func testThreadsThatWaitForEachOtherAreAllServed() throws {
    let rig = try KmemFixture(frames: 320, processors: 4)
    let (kmem, host, type) = (rig.kmem, rig.host, rig.type())
    let sizes = [24, 64, 200, 1024, 4096, 6000]
    let refusals = Atomic<Int>(0)
    host.hasOtherThreads = true
    let seed = historySeed(71)
    host.onThreads(4) { me in
      var random = SeededRandom(seed: seed &+ UInt64(me))
      for _ in 0..<60 {
        // No thread waits with an object in its hands, so there is no circle of waiters.
        let size = ByteCount(sizes[Int(random.below(UInt64(sizes.count)))])
        guard let first = kmem.alloc(size, type: type, wait: .allowed) else {
          refusals.add(1, ordering: .relaxed)
          continue
        }
        var objects = [first]
        for _ in 0..<random.below(600) {
          guard let object = kmem.alloc(size, type: type) else { break }
          objects.append(object)
        }
        for object in objects { kmem.free(object, size: size, type: type) }
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(refusals.load(ordering: .relaxed), 0, "STRATA_SEED=\(seed)")
    XCTAssertEqual(kmem.describe(type).inUse, 0)
    rig.expectEmpty()
  }
}
