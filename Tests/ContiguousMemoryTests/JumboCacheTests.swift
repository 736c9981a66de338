import ContiguousMemory
import HostMachine
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Caches of jumbo frames, 9216 bytes, on a machine that has no two free frames in a row.
final class JumboCacheTests: XCTestCase {
  private static let jumbo = ByteCount(9216)

  /// A machine on which every second frame has a dirty page.
  private func fragmented(
    frames count: UInt64 = 2048, processors: Int = 1
  ) throws -> (system: TestSystem, area: Area) {
    let system = try TestSystem(frames: count, processors: processors)
    let target = system.paging.freeTarget.rawValue
    let reserve = system.physical.reserve(for: .normal).rawValue
    // Neither the daemon nor the reserve is to have a hand in this.
    system.setTarget(0)
    system.set("vm.reserve.normal", 0)
    defer {
      system.setTarget(target)
      system.set("vm.reserve.normal", reserve)
    }
    let area = try system.area(count)
    let all = system.takeAll()
    let (odd, even) = (all.filter { $0.rawValue % 2 == 1 }, all.filter { $0.rawValue % 2 == 0 })
    system.giveBack(odd)
    var filled: UInt64 = 0
    while system.physical.freeCount > PageCount(8) {
      try system.write(area, filled, 1000 + filled)
      filled += 1
    }
    // The rest of the odd frames has other owners.
    _ = system.takeAll()
    system.giveBack(even)
    return (system, Area(object: area.object, address: area.address, count: filled))
  }

  private func firstFrame(_ system: TestSystem, _ object: UnsafeMutableRawPointer) -> FrameNumber {
    system.host.machine.directMap.physicalAddress(of: VirtualAddress(object)).frame
  }

  /// Checks that an object lies in frames of its own slab that satisfy the constraints, mapped with the attribute.
  private func check(
    _ object: UnsafeMutableRawPointer, _ system: TestSystem, where constraints: RunConstraints,
    attribute: CacheAttribute, _ note: String
  ) {
    let first = system.host.machine.directMap.physicalAddress(of: VirtualAddress(object)).rawValue
    let last = first + Self.jumbo.rawValue - 1
    XCTAssertGreaterThanOrEqual(first, constraints.low.rawValue, note)
    XCTAssertLessThan(last, constraints.high.rawValue, note)
    if let boundary = constraints.boundary {
      XCTAssertEqual(first / boundary.rawValue, last / boundary.rawValue, note)
    }
    for number in first >> Page.shift...last >> Page.shift {
      let frame = FrameNumber(UInt32(number))
      XCTAssertEqual(system.physical.whatIs(frame).role, .slab, note)
      let place = system.tables.translate(system.host.machine.directMap.virtualAddress(of: frame.address))
      XCTAssertEqual(place?.attribute, attribute, note)
      XCTAssertEqual(place.map { $0.physical.frame }, frame, note)
    }
    let what = system.kmem.whatIs(VirtualAddress(object))
    XCTAssertEqual(what?.objectStart, VirtualAddress(object), note)
    XCTAssertEqual(what?.standing, .inUse, note)
    let lost = what.map { 1 - Double($0.objects) * 9216 / Double($0.frames.bytes.rawValue) }
    XCTAssertLessThanOrEqual(lost ?? 1, 0.125, note)
  }

  func testAJumboCacheWorksWhereEverySecondPageIsDirty() throws {
    let low = PhysicalAddress(600 << 12)
    let high = PhysicalAddress(1400 << 12)
    for attribute in [CacheAttribute.writeBack, .uncached, .writeCombining] {
      for boundary in [nil, Alignment(1 << 16)] {
        let (system, area) = try fragmented()
        let note = "\(attribute.description), boundary \(boundary?.rawValue ?? 0)"
        let (kmem, type) = (system.kmem, system.kmem.type(named: ShortName("network")))
        let constraints = RunConstraints(low: low, high: high, boundary: boundary)
        let cache = try kmem.createCache(
          name: ShortName("jumbo"), size: Self.jumbo,
          source: .contiguous(where: constraints, attribute: attribute))
        cache.setLimit(30)
        XCTAssertNil(cache.alloc(type: type), "no two free frames are in a row, \(note)")
        let written = system.swapDisk.requests.count
        var objects: [UnsafeMutableRawPointer] = []
        while objects.count < 30, let object = cache.alloc(type: type, wait: .allowed) {
          check(object, system, where: constraints, attribute: attribute, note)
          object.initializeMemory(
            as: UInt8.self, repeating: UInt8(objects.count), count: Int(Self.jumbo.rawValue))
          objects.append(object)
        }
        XCTAssertEqual(objects.count, 30, note)
        XCTAssertNil(cache.alloc(type: type), "the limit, \(note)")
        XCTAssertGreaterThan(system.contiguous.movedCount, PageCount(20), note)
        XCTAssertEqual(system.swapDisk.requests.count, written, "moved, and not written, \(note)")
        system.check(note)
        try system.verify(area)
        // Two of each three are free, and not the type's any more.
        for (index, object) in objects.enumerated() {
          for offset in [0, 4096, 9215] {
            XCTAssertEqual(object.load(fromByteOffset: offset, as: UInt8.self), UInt8(index), note)
          }
          if index % 3 > 0 { cache.free(object, type: type) }
        }
        XCTAssertEqual(kmem.describe(type).bytes, ByteCount(10 * 9216), note)
        XCTAssertEqual(kmem.describe(type).inUse, 10, note)
        var row: CacheDescription?
        kmem.forEachCache { if $0.name == ShortName("jumbo") { row = $0 } }
        XCTAssertEqual(row?.inUse, 10, note)
        XCTAssertEqual(row?.limit, 30, note)
        XCTAssertLessThanOrEqual(row?.held ?? .zero, ByteCount(32 * 9216 * 8 / 7), note)
        for index in stride(from: 0, to: 30, by: 3) { cache.free(objects[index], type: type) }
        kmem.destroy(cache)
        XCTAssertEqual(kmem.describe(type).bytes, .zero, note)
        XCTAssertEqual(system.physical.whatIs(firstFrame(system, objects[0])).role, .free, note)
        let alias = system.tables.translate(VirtualAddress(objects[0]))
        XCTAssertEqual(alias?.attribute, .writeBack, note)
        system.check(note)
        try system.verify(area)
      }
    }
  }

  /// Dirty pages nearly everywhere, and few frames to move them to: they are written out.
  func testASlabsRunIsLaunderedWhereNoFrameIsFreeToMoveTo() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 20)
    let type = system.kmem.type(named: ShortName("network"))
    let cache = try system.kmem.createCache(
      name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
    XCTAssertNil(cache.alloc(type: type))
    let objects = (0..<12).compactMap { _ in cache.alloc(type: type, wait: .allowed) }
    XCTAssertEqual(objects.count, 12)
    XCTAssertGreaterThan(system.swapDisk.requests.count, 0)
    for object in objects { check(object, system, where: RunConstraints(), attribute: .writeBack, "") }
    system.check()
    for object in objects { cache.free(object, type: type) }
    system.kmem.destroy(cache)
    try system.verify(area)
    system.check()
  }

  /// Contiguity isn't asked for: single frames behind an address of the heap serve, and no page is moved.
  func testAPlainCacheGetsSinglePagesWhereNoRunIsFree() throws {
    let (system, area) = try fragmented()
    let (kmem, type) = (system.kmem, system.kmem.type(named: ShortName("network")))
    let cache = try kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo)
    let objects = (0..<30).compactMap { _ in cache.alloc(type: type) }
    XCTAssertEqual(objects.count, 30)
    for object in objects {
      XCTAssertNil(kmem.whatIs(VirtualAddress(object)), "it is in no slab")
      let frames = (0..<3).map {
        system.tables.translate(VirtualAddress(object) + PageCount($0))?.physical.frame
      }
      XCTAssertEqual(Set(frames.compactMap { $0?.rawValue }).count, 3)
    }
    XCTAssertEqual(system.contiguous.movedCount, .zero)
    XCTAssertEqual(kmem.describe(type).bytes, PageCount(90).bytes)
    system.check()
    for object in objects { cache.free(object, type: type) }
    kmem.destroy(cache)
    XCTAssertEqual(kmem.describe(type).bytes, .zero)
    try system.verify(area)
    system.check()
  }

  func testEachPointThatFailsLeavesAllLayersAsTheyWere() throws {
    var (points, refusals) = (0, 0)
    let (system, area) = try fragmented()
    let (kmem, type) = (system.kmem, system.kmem.type(named: ShortName("network")))
    let cache = try kmem.createCache(
      name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous(attribute: .uncached))
    for point in 0..<200 {
      system.host.failures.pointee.hasFailed = false
      system.host.failures.pointee.countdown = Int64(point)
      let object = cache.alloc(type: type, wait: .allowed)
      system.host.failures.pointee.countdown = -1
      system.check("point \(point)")
      if let object { cache.free(object, type: type) }
      cache.drain()
      XCTAssertEqual(kmem.describe(type).bytes, .zero)
      XCTAssertEqual(system.physical.count(.contiguous), .zero, "point \(point)")
      guard system.host.failures.pointee.hasFailed else { break }
      points += 1
      if object == nil { refusals += 1 }
    }
    XCTAssertGreaterThan(points, 3)
    XCTAssertEqual(refusals, 0, "the next means served each time")
    kmem.destroy(cache)
    XCTAssertEqual(system.physical.count(.slab), slabsElsewhere(system), "every run was freed")
    try system.verify(area)
    system.check()
  }

  private func slabsElsewhere(_ system: TestSystem) -> PageCount {
    var pages = PageCount.zero
    system.kmem.forEachCache { pages += $0.frames }
    return pages
  }
}
