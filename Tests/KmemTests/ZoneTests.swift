import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

/// Zones: objects that requests can rely on when memory is gone.
final class ZoneTests: XCTestCase {
  private func exhaust(_ physical: FrameAllocator) -> [FrameNumber] {
    var frames: [FrameNumber] = []
    while let frame = try? physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      frames.append(frame)
    }
    return frames
  }

  func testTheDemandIsThereWhenMemoryIsGone() throws {
    for size in [64, 200, 1000, 4096] {
      let rig = try KmemFixture(processors: 2)
      let (kmem, type) = (rig.kmem, rig.type())
      let demand = 37
      let zone = try kmem.createZone(
        name: ShortName("zone"), size: ByteCount(size), demand: demand, type: type)
      var frames = exhaust(rig.physical)
      kmem.drain()
      frames += exhaust(rig.physical)
      var objects: [UnsafeMutableRawPointer] = []
      // Objects in slabs beyond the demand are for all.
      while let object = zone.alloc(type: type) { objects.append(object) }
      for turn in 0..<3 {
        var drawn: [UnsafeMutableRawPointer] = []
        for i in 0..<demand {
          rig.host.runAs(processor: i % 2) {
            let priority: AllocationPriority = i % 3 == 0 ? .interrupt : .system
            let object = zone.alloc(type: type, priority: priority)
            XCTAssertNotNil(object, "size \(size), turn \(turn), object \(i) of \(demand)")
            if let object { drawn.append(object) }
          }
        }
        XCTAssertNil(zone.alloc(type: type, priority: .system), "one more than the demand")
        XCTAssertNil(zone.alloc(type: type))
        rig.check()
        for object in drawn.reversed() { zone.free(object, type: type) }
      }
      XCTAssertNil(zone.alloc(type: type), "a request of normal priority leaves the demand")
      for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
      for object in objects { zone.free(object, type: type) }
      kmem.destroy(zone)
      rig.expectEmpty()
    }
  }

  func testADrainLeavesTheDemand() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let zone = try rig.kmem.createZone(
      name: ShortName("zone"), size: ByteCount(512), demand: 20, type: type)
    let objects = (0..<200).map { _ in zone.alloc(type: type)! }
    for object in objects { zone.free(object, type: type) }
    rig.kmem.drain()
    XCTAssertEqual(rig.physical.count(.slab), PageCount(3), "20 objects of 512 bytes")
    let frames = exhaust(rig.physical)
    let drawn = (0..<20).map { _ in zone.alloc(type: type, priority: .system) }
    XCTAssertFalse(drawn.contains { $0 == nil })
    for object in drawn { zone.free(object!, type: type) }
    for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
    rig.kmem.destroy(zone)
    rig.expectEmpty()
  }

  /// After a request has used the demand, the zone makes a slab at once where there is memory.
  func testTheDemandIsReplenishedWithoutWaiting() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let zone = try rig.kmem.createZone(
      name: ShortName("zone"), size: ByteCount(2048), demand: 4, type: type)
    var objects: [UnsafeMutableRawPointer] = []
    for _ in 0..<50 {
      objects.append(try XCTUnwrap(zone.alloc(type: type, priority: .system)))
      XCTAssertGreaterThanOrEqual(free(rig), 4)
    }
    let frames = exhaust(rig.physical)
    for _ in 0..<4 { objects.append(try XCTUnwrap(zone.alloc(type: type, priority: .system))) }
    XCTAssertLessThan(free(rig), 2)
    for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
    zone.free(objects.removeLast(), type: type)
    objects.append(try XCTUnwrap(zone.alloc(type: type)))
    XCTAssertGreaterThanOrEqual(free(rig), 4)
    for object in objects { zone.free(object, type: type) }
    rig.kmem.destroy(zone)
    rig.expectEmpty()
  }

  private func free(_ rig: KmemFixture) -> UInt64 {
    var free: UInt64 = 0
    rig.kmem.forEachZone { free = $0.free }
    return free
  }

  func testAZoneWithoutMemoryForItsDemandIsNotMade() throws {
    let rig = try KmemFixture()
    let frames = exhaust(rig.physical)
    XCTAssertThrowsError(
      try rig.kmem.createZone(name: ShortName("zone"), size: ByteCount(64), demand: 100, type: rig.type())
    ) {
      XCTAssertEqual($0 as? KmemError, .noMemory)
    }
    for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
    rig.kmem.forEachZone { _ in XCTFail("a zone is left") }
    rig.expectEmpty()
  }

  /// A random history against a model: above normal priority, a request fails only when fewer than the demand could be
  /// kept, which takes a machine without a frame.
  func testRandomHistoriesKeepTheDemand() throws {
    for seed in historySeeds(1, count: 30) {
      let rig = try KmemFixture(frames: 300, processors: 2)
      let type = rig.type()
      var random = SeededRandom(seed: seed)
      let demand = Int(random.below(40)) + 1
      let zone = try rig.kmem.createZone(
        name: ShortName("zone"), size: ByteCount(Int(random.below(1500)) + 8), demand: demand, type: type)
      var (normal, drawn): ([UnsafeMutableRawPointer], [UnsafeMutableRawPointer]) = ([], [])
      var frames: [FrameNumber] = []
      for step in 0..<2000 {
        rig.host.runAs(processor: Int(random.below(2))) {
          let note = "STRATA_SEED=\(seed), step \(step)"
          switch random.below(6) {
          case 0, 1:
            if let object = zone.alloc(type: type) { normal.append(object) }
          case 2:
            // As many as the demand at a time never fail.
            guard drawn.count < demand else { break }
            let object = zone.alloc(type: type, priority: .system)
            XCTAssertNotNil(object, note)
            if let object { drawn.append(object) }
          case 3:
            if !drawn.isEmpty {
              zone.free(drawn.remove(at: Int(random.below(UInt64(drawn.count)))), type: type)
            }
          case 4:
            if !normal.isEmpty {
              zone.free(normal.remove(at: Int(random.below(UInt64(normal.count)))), type: type)
            }
          default:
            if random.oneIn(2), let frame = frames.popLast() {
              rig.physical.free(frame, BlockOrder(0))
            } else {
              while true,
                let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt)
              {
                frames.append(frame)
              }
            }
          }
          if step % 200 == 0 { rig.check(note) }
        }
      }
      for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
      for object in normal + drawn { zone.free(object, type: type) }
      rig.kmem.destroy(zone)
      rig.expectEmpty()
    }
  }

  /// Objects that early memory handed out before there were frame records are freed to the zone like any others.
  func testRegisteredObjectsAreHandedOutBeforeKmemExists() throws {
    let machine = try FrameAllocatorFixture(frames: [(0, 600)], opens: false)
    var registered = try XCTUnwrap(
      RegisteredObjects(
        50, size: ByteCount(200), alignment: .cacheLine, from: machine.early,
        directMap: machine.host.machine.directMap))
    XCTAssertEqual(registered.count, 64, "objects of 256 bytes on four pages")
    var objects = (0..<37).map { _ in registered.alloc()! }
    for (i, object) in objects.enumerated() {
      object.initializeMemory(as: UInt8.self, repeating: UInt8(i), count: 200)
    }
    try machine.open()
    XCTAssertEqual(machine.memory.count(.slab), PageCount(4))
    let state = UnsafeMutableRawPointer.allocate(
      byteCount: Int(KmemAllocator.size(processors: 1).rawValue), alignment: 4096)
    defer { state.deallocate() }
    let kmem = KmemAllocator.create(
      in: state, physical: machine.memory, large: nil, machine: machine.host.machine)
    let type = kmem.type(named: ShortName("early"))
    let zone = try kmem.createZone(
      name: ShortName("early"), size: ByteCount(200), demand: 10, type: type, registered: registered)
    XCTAssertEqual(kmem.describe(type).inUse, 37)
    XCTAssertEqual(machine.memory.count(.slab), PageCount(4), "the demand was there")
    XCTAssertNil(kmem.checkInvariants())
    for _ in 0..<40 { objects.append(try XCTUnwrap(zone.alloc(type: type))) }
    XCTAssertEqual(Set(objects).count, 77, "an object was handed out twice")
    for i in 0..<37 {
      XCTAssertTrue((0..<200).allSatisfy { objects[i].load(fromByteOffset: $0, as: UInt8.self) == i })
    }
    for object in objects { zone.free(object, type: type) }
    XCTAssertNil(kmem.checkInvariants())
    let faults = machine.host.faults { zone.free(objects[3], type: type) }
    XCTAssertEqual(faults.map(\.kind), [.doubleFree])
    kmem.destroy(zone)
    XCTAssertEqual(machine.memory.count(.slab), .zero)
    machine.check()
  }

  func testAllRegisteredObjectsCanBeHandedOut() throws {
    let machine = try FrameAllocatorFixture(frames: [(0, 600)], opens: false)
    var registered = try XCTUnwrap(
      RegisteredObjects(
        1, size: ByteCount(1000), alignment: .cacheLine, from: machine.early,
        directMap: machine.host.machine.directMap))
    let objects = (0..<4).map { _ in registered.alloc() }
    XCTAssertFalse(objects.contains(nil))
    XCTAssertNil(registered.alloc())
  }

  func testTheDemandIsThereWhileCachesAreAudited() throws {
    for isBefore in [false, true] {
      let rig = try KmemFixture()
      let type = rig.type()
      if isBefore { rig.kmem.setAudit(.on) }
      let zone = try rig.kmem.createZone(
        name: ShortName("zone"), size: ByteCount(200), demand: 20, type: type)
      rig.kmem.setAudit(.on)
      XCTAssertEqual(zone.auditing, .off)
      let frames = exhaust(rig.physical)
      let drawn = (0..<20).map { _ in zone.alloc(type: type, priority: .system) }
      XCTAssertFalse(drawn.contains { $0 == nil })
      rig.kmem.setAudit(.off)
      for object in drawn { zone.free(object!, type: type) }
      for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
      rig.kmem.destroy(zone)
      rig.expectEmpty()
    }
  }
}
