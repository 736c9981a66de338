import Foundation
import HostMachine
import MemoryPrimitives
import PageTables
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

/// Caches whose slabs are runs of up to 64 frames.
final class ContiguousSlabTests: XCTestCase {
  private static let jumbo = ByteCount(9216)

  private func physicalAddress(_ rig: KmemFixture, _ object: UnsafeMutableRawPointer) -> UInt64 {
    rig.host.machine.directMap.physicalAddress(of: VirtualAddress(object)).rawValue
  }

  // MARK: Form

  /// Against all numbers of frames: no cache loses an eighth of a slab that could lose less.
  func testASlabLosesAnEighthAtMostWhereARunOf64FramesAllowsIt() throws {
    for most in [1, 4, 16, 64] {
      for chunk in stride(from: 8, through: most * 4096, by: chunkStep(most)) {
        func loss(_ frames: Int) -> Double {
          1 - Double(min(frames * 4096 / chunk, 512) * chunk) / Double(frames * 4096)
        }
        let form = try XCTUnwrap(RunForm(chunk: chunk, most: most, isAudited: false))
        let least = (1...most).map(loss).min()!
        XCTAssertLessThanOrEqual(form.fewest, form.preferred)
        XCTAssertGreaterThan(form.fewest * 4096 / chunk, 0)
        if least <= 0.125 {
          XCTAssertLessThanOrEqual(loss(form.fewest), 0.125, "\(chunk) bytes in \(most)")
          XCTAssertLessThanOrEqual(loss(form.preferred), max(least, 1.0 / 32), "\(chunk) bytes in \(most)")
        } else {
          XCTAssertEqual(loss(form.preferred), least, accuracy: 1e-9, "\(chunk) bytes in \(most)")
        }
      }
    }
    let jumbo = try XCTUnwrap(RunForm(chunk: 9216, most: 64, isAudited: false))
    XCTAssertEqual(jumbo.preferred, 9, "four frames of 9216 bytes")
    XCTAssertEqual(jumbo.fewest, 5)
    XCTAssertNil(RunForm(chunk: 4097, most: 1, isAudited: false))
  }

  private func chunkStep(_ most: Int) -> Int { most == 64 ? 264 : 8 }

  /// Each byte of slabs beyond 32 KiB belongs to the object that a division says.
  func testEachAddressOfALongSlabBelongsToItsObject() throws {
    let rig = try KmemFixture(frames: 512)
    let runs = rig.addRuns()
    for size in [4104, 8328, 9216, 12296, 20000, 40000, 131080, 200_000] {
      let cache = try rig.kmem.createCache(name: ShortName("c"), size: ByteCount(size), source: .contiguous())
      let object = try XCTUnwrap(cache.alloc(type: rig.type()))
      let slab = try XCTUnwrap(rig.kmem.locate(VirtualAddress(object))).slab
      let chunk = Int(try XCTUnwrap(cache.pointer).chunk)
      for offset in stride(from: 0, to: slab.frames * 4096, by: 8) {
        let location = try XCTUnwrap(rig.kmem.locate(VirtualAddress(slab.base + offset)))
        guard location.index == offset / chunk, location.offset == offset % chunk,
          location.slab.frame == slab.frame
        else { return XCTFail("\(size) bytes, offset \(offset)") }
      }
      cache.free(object, type: rig.type())
      rig.kmem.destroy(cache)
    }
    rig.expectEmpty()
    XCTAssertEqual(runs.live.count, 0)
  }

  // MARK: Place

  func testEachObjectSatisfiesTheConstraints() throws {
    let seed = historySeed(17)
    var random = SeededRandom(seed: seed)
    var slabs = 0
    for round in 0..<60 {
      let rig = try KmemFixture(frames: 1024)
      let runs = rig.addRuns()
      let size = Int([64, 1000, 2048, 9216, 9216, 16384, 30000][Int(random.below(7))])
      let alignment = Alignment(UInt64(8) << random.below(12))!
      var constraints = RunConstraints(
        low: PhysicalAddress(random.below(300) << 12), high: PhysicalAddress((500 + random.below(500)) << 12))
      if random.oneIn(2) { constraints.boundary = Alignment(UInt64(512) << random.below(10))! }
      let attribute = CacheAttribute(rawValue: UInt8(random.below(4)))!
      let note = "STRATA_SEED=\(seed), round \(round), \(size) bytes, \(constraints), \(alignment)"
      let cache: ObjectCache
      do {
        cache = try rig.kmem.createCache(
          name: ShortName("c"), size: ByteCount(size), alignment: alignment,
          source: .contiguous(where: constraints, attribute: attribute))
      } catch {
        XCTAssertEqual(error, .badConstraint, note)
        let chunk = KmemAllocator.spacing(size, Int(alignment.rawValue), isConstructed: false)
        XCTAssertGreaterThan(chunk, Int(constraints.boundary?.rawValue ?? 0) / 2, note)
        continue
      }
      let type = rig.type()
      var live: [UnsafeMutableRawPointer] = []
      for _ in 0..<40 {
        guard let object = cache.alloc(type: type) else { break }
        live.append(object)
        let first = physicalAddress(rig, object)
        let last = first + UInt64(size) - 1
        XCTAssertGreaterThanOrEqual(first, constraints.low.rawValue, note)
        XCTAssertLessThan(last, constraints.high.rawValue, note)
        XCTAssertEqual(first % alignment.rawValue, 0, note)
        if let boundary = constraints.boundary {
          XCTAssertEqual(first / boundary.rawValue, last / boundary.rawValue, note)
        }
        let frame = PhysicalAddress(first).frame
        XCTAssertEqual(runs.live[rig.kmem.locate(VirtualAddress(object))!.slab.frame.rawValue], attribute)
        XCTAssertEqual(rig.physical.whatIs(frame).role, .slab)
      }
      XCTAssertGreaterThan(live.count, 0, note)
      rig.check(note)
      slabs += runs.live.count
      for object in live { cache.free(object, type: type) }
      rig.kmem.destroy(cache)
      XCTAssertEqual(runs.live.count, 0, note)
      rig.expectEmpty()
    }
    XCTAssertGreaterThan(slabs, 60)
  }

  func testConstraintsThatNoObjectCanSatisfyAreRefused() throws {
    let rig = try KmemFixture(frames: 512)
    func expect(
      _ error: KmemError, size: Int = 9216, alignment: UInt64 = 8, _ source: SlabSource, line: UInt = #line
    ) {
      XCTAssertThrowsError(
        try rig.kmem.createCache(
          name: ShortName("c"), size: ByteCount(size), alignment: Alignment(alignment)!, source: source),
        line: line
      ) { XCTAssertEqual($0 as? KmemError, error, line: line) }
    }
    expect(.badConstraint, .contiguous())
    let runs = rig.addRuns()
    expect(.badConstraint, size: 0, .contiguous())
    expect(.badConstraint, .contiguous(where: RunConstraints(boundary: Alignment(8192)!)))
    expect(.badConstraint, .contiguous(where: RunConstraints(high: PhysicalAddress(8192))))
    expect(.badConstraint, .contiguous(where: RunConstraints(low: PhysicalAddress(512 << 12))))
    expect(.badConstraint, alignment: 1 << 19, .contiguous())
    expect(.badConstraint, alignment: 8192, .anyMemory)
    expect(.tooLarge, size: 262_145, .contiguous())
    expect(.tooLarge, size: 32769, .anyMemory)
    XCTAssertEqual(runs.requests.count, 0)
    let largest = try rig.kmem.createCache(
      name: ShortName("c"), size: ByteCount(262_144), alignment: Alignment(262_144)!, source: .contiguous())
    let object = try XCTUnwrap(largest.alloc(type: rig.type()))
    XCTAssertEqual(physicalAddress(rig, object) % 262_144, 0)
    largest.setAudit(.on)
    XCTAssertEqual(largest.auditing, .off, "the record of an object has 16 bits for its size")
    largest.free(object, type: rig.type())
    rig.kmem.destroy(largest)
    rig.expectEmpty()
  }

  // MARK: Fragmented memory

  /// Wires every second frame; answers these frames.
  private func fragment(_ rig: KmemFixture) -> [FrameNumber] {
    var (wired, free): ([FrameNumber], [FrameNumber]) = ([], [])
    while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      if frame.rawValue % 2 == 0 { wired.append(frame) } else { free.append(frame) }
    }
    for frame in free { rig.physical.free(frame, BlockOrder(0)) }
    return wired
  }

  func testOnlyARequestThatMayWaitHasARunEmptied() throws {
    let rig = try KmemFixture(frames: 512)
    let runs = rig.addRuns()
    let (kmem, type) = (rig.kmem, rig.type())
    let cache = try kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
    runs.obstacles = fragment(rig)
    XCTAssertNil(cache.alloc(type: type))
    XCTAssertNil(cache.alloc(type: type, priority: .interrupt, wait: .allowed))
    XCTAssertFalse(runs.requests.contains { $0.mayWait })
    rig.check()
    let object = try XCTUnwrap(cache.alloc(type: type, wait: .allowed))
    XCTAssertEqual(runs.requests.last.map { [$0.count.rawValue, $0.mayWait ? 1 : 0] }, [9, 1])
    XCTAssertEqual(kmem.whatIs(VirtualAddress(object))?.frames, PageCount(9))
    XCTAssertEqual(kmem.describe(type).failed, 2)
    XCTAssertEqual(kmem.describe(type).bytes, Self.jumbo, "free objects are not the type's")
    rig.check()
    cache.free(object, type: type)
    kmem.destroy(cache)
    rig.expectEmpty()
  }

  func testARunOfFewerFramesServesWhereThePreferredOneIsNot() throws {
    let rig = try KmemFixture(frames: 512)
    let runs = rig.addRuns()
    let type = rig.type()
    let cache = try rig.kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
    let wired = fragment(rig)
    // Two obstacles in a row are gone: five frames.
    let freed = Array(wired.sorted { $0.rawValue < $1.rawValue }[100..<102])
    XCTAssertEqual(freed[0].rawValue + 2, freed[1].rawValue)
    for frame in freed { rig.physical.free(frame, BlockOrder(0)) }
    let object = try XCTUnwrap(cache.alloc(type: type))
    XCTAssertEqual(runs.requests.map(\.count.rawValue), [9, 5])
    XCTAssertEqual(rig.kmem.whatIs(VirtualAddress(object))?.objects, 2)
    rig.check()
    cache.free(object, type: type)
    rig.kmem.destroy(cache)
    for frame in wired where !freed.contains(frame) { rig.physical.free(frame, BlockOrder(0)) }
    rig.expectEmpty()
  }

  /// Frames enough are free, and no run can be emptied: that will not change by waiting.
  func testAWaitEndsWhereNoRunCanBeEmptied() throws {
    let rig = try KmemFixture(frames: 512)
    _ = rig.addRuns()
    let cache = try rig.kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
    let wired = fragment(rig)
    XCTAssertNil(cache.alloc(type: rig.type(), wait: .allowed))
    rig.check()
    for frame in wired { rig.physical.free(frame, BlockOrder(0)) }
    rig.expectEmpty()
  }

  func testFreedFramesServeARequestThatWaits() throws {
    let rig = try KmemFixture(frames: 512, processors: 2)
    let runs = rig.addRuns()
    let (host, physical, type) = (rig.host, rig.physical, rig.type())
    let cache = try rig.kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
    host.hasOtherThreads = true
    nonisolated(unsafe) var wired: [FrameNumber] = []
    while let frame = try? physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      wired.append(frame)
    }
    nonisolated(unsafe) var object: UnsafeMutableRawPointer?
    host.onThreads(2) { me in
      if me == 0 {
        object = cache.alloc(type: type, wait: .allowed)
      } else {
        idle { host.sleeperCount > 0 }
        for frame in wired { physical.free(frame, BlockOrder(0)) }
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(runs.requests.last?.mayWait, true)
    cache.free(try XCTUnwrap(object), type: type)
    rig.kmem.destroy(cache)
    rig.expectEmpty()
  }

  func testAFreeServesARequestThatWaitsAtTheLimit() throws {
    let rig = try KmemFixture(frames: 512, processors: 2)
    let runs = rig.addRuns()
    let (host, type) = (rig.host, rig.type())
    let cache = try rig.kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
    cache.setLimit(3)
    nonisolated(unsafe) var objects = (0..<3).map { _ in cache.alloc(type: type)! }
    XCTAssertNil(cache.alloc(type: type))
    host.hasOtherThreads = true
    let freed = objects.removeLast()
    nonisolated(unsafe) let given = freed
    host.onThreads(2) { me in
      if me == 0 {
        cache.alloc(type: type, wait: .allowed).map { objects.append($0) }
      } else {
        idle { host.sleeperCount > 0 }
        cache.free(given, type: type)
      }
    }
    host.hasOtherThreads = false
    XCTAssertEqual(objects.last, freed)
    XCTAssertEqual(runs.requests.count, 1, "one slab has four objects")
    rig.check()
    for object in objects { cache.free(object, type: type) }
    rig.kmem.destroy(cache)
    rig.expectEmpty()
  }

  // MARK: Wrong frees

  func testWrongFreesAreReported() throws {
    for auditing in [Auditing.off, .on] {
      let rig = try KmemFixture(frames: 512)
      _ = rig.addRuns()
      let type = rig.type()
      let cache = try rig.kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous())
      let other = try rig.kmem.createCache(name: ShortName("other"), size: Self.jumbo)
      cache.setAudit(auditing)
      let objects = (0..<3).map { _ in cache.alloc(type: type)! }
      let slab = rig.kmem.locate(VirtualAddress(objects[0]))!.slab
      let end = slab.base + slab.frames * 4096
      func expect(_ kind: FaultKind, line: UInt = #line, _ body: () -> Void) {
        XCTAssertEqual(rig.host.faults(in: body).map(\.kind), [kind], line: line)
        rig.check("", #filePath, line)
      }
      func free(_ object: UnsafeMutableRawPointer, to cache: ObjectCache) {
        // Past the magazines, where a wrong word would wait for its check.
        _ = rig.kmem.free(
          FreeRequest(object: object, size: UInt64(cache.size), type: type, site: .unknown), type,
          at: cache.counterOffset)
      }
      expect(.foreignPointer) { free(objects[1] + 4096, to: cache) }
      expect(.foreignPointer) { free(objects[1] + 8, to: cache) }
      expect(.foreignPointer) { free(objects[1], to: other) }
      if auditing == .on { expect(.foreignPointer) { free(end - 8, to: cache) } }
      free(objects[1], to: cache)
      expect(.doubleFree) { free(objects[1], to: cache) }
      expect(.foreignPointer) {
        cache.free(objects[0] + 8, type: type)
        cache.drain()
      }
      cache.free(objects[0], type: type)
      expect(.leak) { rig.kmem.destroy(cache) }
      cache.free(objects[2], type: type)
      rig.kmem.destroy(cache)
      rig.kmem.destroy(other)
      rig.expectEmpty()
    }
  }

  func testTheCheckFindsASlabOutsideOfItsRange() throws {
    let rig = try KmemFixture(frames: 512)
    let runs = rig.addRuns()
    let low = try rig.physical.allocate(
      run: PageCount(9), where: RunConstraints(high: PhysicalAddress(300 << 12)), role: .slab,
      priority: .normal)
    let cache = try rig.kmem.createCache(
      name: ShortName("jumbo"), size: Self.jumbo,
      source: .contiguous(where: RunConstraints(low: PhysicalAddress(300 << 12))))
    runs.wrongRun = low
    XCTAssertNotNil(cache.alloc(type: rig.type()))
    XCTAssertEqual(rig.kmem.checkInvariants().map { "\($0)".hasPrefix("KM-10: ") }, true)
  }

  // MARK: Cache attributes

  func testASlabWithAnAttributeIsMadeAndReleasedOnlyWhereProcessorsMayBeAsked() throws {
    let rig = try KmemFixture(frames: 512)
    let runs = rig.addRuns()
    let (kmem, type) = (rig.kmem, rig.type())
    let cache = try kmem.createCache(
      name: ShortName("ring"), size: Self.jumbo, source: .contiguous(attribute: .uncached))
    XCTAssertNil(withInterruptsOff { cache.alloc(type: type) })
    XCTAssertEqual(runs.requests.count, 0)
    let objects = (0..<8).map { _ in cache.alloc(type: type)! }
    XCTAssertEqual(runs.live.count, 2)
    withInterruptsOff {
      for object in objects { cache.free(object, type: type) }
      kmem.reclaim(.free)
    }
    XCTAssertEqual(runs.live.count, 2, "no slab was released with interrupts off")
    rig.check()
    let lock = Locked(.kmemCaches, 0)
    lock.withLock { _ in _ = kmem.reclaim(.surplus) }
    XCTAssertEqual(runs.live.count, 2, "no slab was released with a spin lock held")
    // Two slabs of nine frames, and the frame of the magazines.
    XCTAssertEqual(kmem.reclaim(.allProcessors), PageCount(19))
    XCTAssertEqual(runs.live.count, 0)
    kmem.destroy(cache)
    rig.expectEmpty()
  }

  // MARK: Histories

  /// Contiguous slabs of several forms, and one cache without them.
  private func makeCaches(_ rig: KmemFixture) throws -> [ObjectCache] {
    let below = RunConstraints(high: PhysicalAddress(200 << 12), boundary: Alignment(1 << 16)!)
    return [
      try rig.kmem.createCache(name: ShortName("jumbo"), size: Self.jumbo, source: .contiguous()),
      try rig.kmem.createCache(
        name: ShortName("low"), size: ByteCount(4200), alignment: .cacheLine,
        source: .contiguous(where: below, attribute: .uncached)),
      try rig.kmem.createCache(
        name: ShortName("descriptor"), size: ByteCount(48), source: .contiguous(where: below)),
      try rig.kmem.createCache(
        name: ShortName("constructed"), size: ByteCount(20000), source: .contiguous(),
        construct: { _, _ in }, destruct: { _, _ in }),
      try rig.kmem.createCache(name: ShortName("plain"), size: Self.jumbo),
    ]
  }

  func testRandomHistoriesKeepEveryStampAndInvariant() throws {
    var emptied = 0
    for seed in historySeeds(3, count: 6) {
      var random = SeededRandom(seed: seed)
      let rig = try KmemFixture(frames: 300, processors: 2)
      let runs = rig.addRuns()
      let types = [rig.type("a"), rig.type("b")]
      let caches = try makeCaches(rig)
      var limits: [Int?] = caches.map { _ in nil }
      var live: [LiveObject] = []
      for turn in 0..<2500 {
        let note = "STRATA_SEED=\(seed), turn \(turn)"
        let number = Int(random.below(5))
        let cache = caches[number]
        rig.host.runAs(processor: Int(random.below(2))) {
          switch random.below(100) {
          case 0: rig.kmem.drain()
          case 1: cache.setAudit(random.oneIn(2) ? .on : .off)
          case 2: rig.kmem.reclaim(ReclaimStep(rawValue: UInt8(random.below(4)))!)
          case 3: rig.kmem.trim()
          case 4:
            limits[number] = random.oneIn(2) ? nil : Int(random.below(12)) + 1
            cache.setLimit(limits[number])
          case 5: withInterruptsOff { _ = rig.kmem.reclaim(.free) }
          case 6..<60 where live.count < 90:
            let type = types[Int(random.below(2))]
            let before = live.filter { $0.cache?.cacheIndex == cache.cacheIndex }.count
            guard
              let pointer = cache.alloc(
                type: type, priority: [.normal, .system, .interrupt][Int(random.below(3))],
                wait: random.oneIn(3) ? .allowed : .forbidden)
            else { return }
            XCTAssertLessThan(before, limits[number] ?? .max, note)
            let object = LiveObject(
              pointer: pointer, size: Int(cache.objectSize.rawValue), type: type, cache: cache,
              stamp: UInt8(truncatingIfNeeded: random.next()))
            for other in live where other.overlaps(object) { XCTFail("objects overlap: \(note)") }
            object.fill()
            live.append(object)
          default:
            guard !live.isEmpty else { return }
            let object = live.remove(at: Int(random.below(UInt64(live.count))))
            XCTAssertTrue(object.isIntact, note)
            object.free(rig.kmem)
          }
        }
        rig.check(note)
      }
      emptied += runs.requests.filter(\.mayWait).count
      let used = live.reduce(UInt64(0)) {
        $0
          + ($1.isLarge
            ? ByteCount($1.size).pagesRoundedUp.bytes.rawValue
            : UInt64(rig.kmem.locate(VirtualAddress($1.pointer))!.cache.chunk))
      }
      XCTAssertEqual(types.reduce(UInt64(0)) { $0 + rig.kmem.describe($1).bytes.rawValue }, used)
      for object in live {
        XCTAssertTrue(object.isIntact)
        object.free(rig.kmem)
      }
      for cache in caches { rig.kmem.destroy(cache) }
      rig.expectEmpty()
      XCTAssertEqual(runs.live.count, 0)
    }
    XCTAssertGreaterThan(emptied, 3)
  }

  func testEachPointThatFailsLeavesEverythingAsItWas() throws {
    var (points, refusals) = (0, 0)
    for auditing in [Auditing.off, .on] {
      for size in [48, 9216] {
        let rig = try KmemFixture(frames: 512)
        let runs = rig.addRuns()
        let type = rig.type()
        for wait in [WaitPolicy.forbidden, .allowed] {
          for point in 0..<100 {
            rig.host.failures.pointee.hasFailed = false
            rig.host.failures.pointee.countdown = Int64(point)
            let object: UnsafeMutableRawPointer?
            let cache = try? rig.kmem.createCache(
              name: ShortName("c"), size: ByteCount(size), source: .contiguous())
            cache?.setAudit(auditing)
            object = cache?.alloc(type: type, wait: wait)
            if let object { cache?.free(object, type: type) }
            rig.host.failures.pointee.countdown = -1
            rig.check("\(size) bytes, point \(point)")
            XCTAssertNil(rig.physical.checkInvariants())
            if let cache { rig.kmem.destroy(cache) }
            XCTAssertEqual(runs.live.count, 0)
            XCTAssertEqual(rig.kmem.describe(type).inUse, 0)
            guard rig.host.failures.pointee.hasFailed else { break }
            points += 1
            if object == nil { refusals += 1 }
          }
        }
        rig.expectEmpty()
      }
    }
    XCTAssertGreaterThan(points, 20)
    XCTAssertGreaterThan(refusals, 5)
  }
}
