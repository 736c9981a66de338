import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

/// Objects above a page on a machine without two free frames in a row: they lie on pages of their own.
final class ObjectPagesTests: XCTestCase {
  private struct Machine {
    let rig: KmemFixture
    let type: MemoryType
    let cache: ObjectCache
    let wired: [FrameNumber]

    init(processors: Int = 1) throws {
      rig = try KmemFixture(frames: 512, processors: processors)
      type = rig.type()
      cache = try rig.kmem.createCache(name: ShortName("jumbo"), size: ByteCount(9216))
      var (wired, free): ([FrameNumber], [FrameNumber]) = ([], [])
      while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
        if frame.rawValue % 2 == 0 { wired.append(frame) } else { free.append(frame) }
      }
      for frame in free { rig.physical.free(frame, BlockOrder(0)) }
      self.wired = wired
    }

    func defragment() { for frame in wired { rig.physical.free(frame, BlockOrder(0)) } }

    func end(_ line: UInt = #line) {
      rig.kmem.destroy(cache)
      XCTAssertEqual(rig.large.live.count, 0, line: line)
      XCTAssertEqual(rig.kmem.describe(type).inUse, 0, line: line)
      rig.expectEmpty(#filePath, line)
    }
  }

  private func isOnPages(_ object: UnsafeMutableRawPointer, _ rig: KmemFixture) -> Bool {
    rig.large.live[VirtualAddress(object).rawValue] == 3
  }

  func testAnObjectWithoutARunLiesOnPages() throws {
    let machine = try Machine()
    let (rig, kmem, type, cache) = (machine.rig, machine.rig.kmem, machine.type, machine.cache)
    let objects = (0..<20).map { _ in cache.alloc(type: type) }.compactMap { $0 }
    XCTAssertEqual(objects.count, 20)
    XCTAssertTrue(objects.allSatisfy { isOnPages($0, rig) })
    XCTAssertEqual(kmem.describe(type).inUse, 20)
    XCTAssertEqual(kmem.describe(type).bytes, PageCount(60).bytes)
    XCTAssertEqual(kmem.describe(type).failed, 0)
    XCTAssertEqual(rig.description(of: "jumbo")?.inUse, 20)
    rig.check()
    for object in objects.dropLast() { cache.free(object, type: type) }
    rig.check()
    // Slabs serve again as soon as there are runs, and magazines once no object is on pages.
    machine.defragment()
    let inSlab = try XCTUnwrap(cache.alloc(type: type))
    XCTAssertNotNil(kmem.locate(VirtualAddress(inSlab)))
    cache.free(inSlab, type: type)
    XCTAssertEqual(kmem.whatIs(VirtualAddress(inSlab))?.standing, .freeInSlab)
    cache.free(objects[19], type: type)
    XCTAssertEqual(cache.alloc(type: type), inSlab)
    cache.free(inSlab, type: type)
    XCTAssertEqual(
      kmem.whatIs(VirtualAddress(inSlab))?.standing, .inMagazine(.processor(ProcessorIndex(0))))
    machine.end()
  }

  func testTheLimitCountsObjectsOnPages() throws {
    let machine = try Machine(processors: 2)
    let (host, type, cache) = (machine.rig.host, machine.type, machine.cache)
    cache.setLimit(3)
    nonisolated(unsafe) var objects = (0..<3).compactMap { _ in cache.alloc(type: type) }
    XCTAssertEqual(objects.count, 3)
    XCTAssertNil(cache.alloc(type: type))
    machine.rig.check()
    machine.defragment()
    host.hasOtherThreads = true
    nonisolated(unsafe) let freed = objects.removeLast()
    host.onThreads(2) { me in
      if me == 0 {
        cache.alloc(type: type, wait: .allowed).map { objects.append($0) }
      } else {
        idle { host.sleeperCount > 0 }
        cache.free(freed, type: type)
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(objects.count, 3)
    machine.rig.check()
    for object in objects { cache.free(object, type: type) }
    machine.end()
  }

  func testOnlyARequestThatMayAskProcessorsGetsPages() throws {
    let machine = try Machine()
    let (rig, type, cache) = (machine.rig, machine.type, machine.cache)
    XCTAssertNil(withInterruptsOff { cache.alloc(type: type) })
    XCTAssertNil(cache.alloc(type: type, priority: .interrupt))
    let constructed = try rig.kmem.createCache(
      name: ShortName("constructed"), size: ByteCount(9216), construct: { _, _ in })
    XCTAssertNil(constructed.alloc(type: type))
    rig.large.left = 0
    XCTAssertNil(cache.alloc(type: type))
    rig.check()
    rig.kmem.destroy(constructed)
    machine.defragment()
    machine.end()
  }

  func testWrongFreesAreReported() throws {
    let machine = try Machine()
    let (rig, type, cache) = (machine.rig, machine.type, machine.cache)
    func expect(_ kind: FaultKind, line: UInt = #line, _ body: () -> Void) {
      XCTAssertEqual(rig.host.faults(in: body).map(\.kind), [kind], line: line)
      rig.check("", #filePath, line)
    }
    let stranger = UnsafeMutableRawPointer(bitPattern: UInt(0xffff_d000_0000_0000))!
    cache.setAudit(.on)
    expect(.foreignPointer) { cache.free(stranger, type: type) }
    let object = try XCTUnwrap(cache.alloc(type: type))
    let other = try XCTUnwrap(cache.alloc(type: type))
    let longer = try XCTUnwrap(rig.kmem.alloc(ByteCount(20000), type: type))
    expect(.notAllocated) { cache.free(object + 8, type: type) }
    expect(.wrongSize) { cache.free(longer, type: type) }
    expect(.leak) { rig.kmem.destroy(cache) }
    cache.free(object, type: type)
    expect(.notAllocated) { cache.free(object, type: type) }
    cache.free(other, type: type)
    rig.kmem.free(longer, size: ByteCount(20000), type: type)
    machine.defragment()
    machine.end()
  }

  func testEachPointThatFailsLeavesEverythingAsItWas() throws {
    let machine = try Machine()
    let (rig, type, cache) = (machine.rig, machine.type, machine.cache)
    var (points, refusals) = (0, 0)
    for point in 0..<100 {
      rig.host.failures.pointee.hasFailed = false
      rig.host.failures.pointee.countdown = Int64(point)
      let object = cache.alloc(type: type)
      rig.host.failures.pointee.countdown = -1
      rig.check("point \(point)")
      if let object { cache.free(object, type: type) } else { refusals += 1 }
      XCTAssertEqual(rig.kmem.describe(type).inUse, 0)
      guard rig.host.failures.pointee.hasFailed else { break }
      points += 1
    }
    XCTAssertGreaterThan(points, 1)
    XCTAssertEqual(refusals, 0, "the next means served each time")
    machine.defragment()
    machine.end()
  }

  func testThreadsShareACacheThatComesAndGoesToPages() throws {
    let seed = historySeed(11)
    let machine = try Machine(processors: 4)
    let (host, physical, type, cache) = (machine.rig.host, machine.rig.physical, machine.type, machine.cache)
    let wired = machine.wired
    host.onThreads(4) { me in
      var random = SeededRandom(seed: seed &+ UInt64(me))
      var live: [UnsafeMutableRawPointer] = []
      if me == 0 {
        // Runs appear one by one.
        for frame in wired {
          physical.free(frame, BlockOrder(0))
          idle(1) { true }
          for _ in 0..<20 { withInterruptsOff {} }
        }
        return
      }
      for _ in 0..<3000 {
        if live.count < 12 && random.oneIn(2) {
          if let object = cache.alloc(type: type) { live.append(object) }
        } else if !live.isEmpty {
          cache.free(live.remove(at: Int(random.below(UInt64(live.count)))), type: type)
        }
      }
      for object in live { cache.free(object, type: type) }
    }
    machine.rig.check("STRATA_SEED=\(seed)")
    machine.end()
  }
}
