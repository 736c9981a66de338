// The layers together: failures, faults, threads and interrupts in one live system.

import ContiguousMemory
import Paging
import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Vmem
import Workloads
import XCTest

final class LiveSystemTests: XCTestCase {
  /// Frees a resource of any layer.
  private typealias Held = () -> Void

  private static let sizes = [1, 8, 24, 64, 100, 512, 1152, 4096, 4097, 10_000, 200_000]

  /// One request of a random kind, or nil when it was refused.
  private static func ask(
    _ system: TestSystem, _ type: MemoryType, _ random: inout SeededRandom,
    priority: AllocationPriority = .normal
  ) -> Held? {
    let space = system.space
    do {
      switch random.below(10) {
      case 0:
        let pages = PageCount(1 + random.below(60))
        let arena: WiredArena = [.heap, .metadata, .interrupt, .kernel][Int(random.below(4))]
        let address = try space.allocateWired(pages, from: arena, priority: priority)
        return { space.freeWired(address, pages) }
      case 1:
        let stack = try space.allocateStack(PageCount(1 + random.below(6)), priority: priority)
        return { space.freeStack(stack) }
      case 2:
        let length = ByteCount(1 + random.below(4 << 20))
        let address = try space.mapDevice(PhysicalAddress(0xfd_0000_0000 + random.below(1 << 24)), length)
        return { space.unmapDevice(address, length) }
      case 3:
        let attribute: CacheAttribute = random.oneIn(2) ? .writeCombining : .writeBack
        let range = try space.allocateContiguous(
          PageCount(1 + random.below(40)), attribute: attribute, priority: priority)
        return { space.freeContiguous(range.address, range.frames.count) }
      case 4:
        let order = Order(UInt8(random.below(4)))
        let frame = try system.physical.allocate(order, role: .loaned, priority: priority)
        return { system.physical.free(frame, order) }
      default:
        let size = sizes[Int(random.below(UInt64(sizes.count)))]
        let object =
          random.oneIn(2)
          ? system.kmem.alloc(ByteCount(size), type: type, priority: priority)
          : system.kmem.zalloc(ByteCount(size), type: type, priority: priority)
        guard let object else { return nil }
        return { system.kmem.free(object, size: ByteCount(size), type: type) }
      }
    } catch {
      return nil
    }
  }

  func testEverythingThatWasAllocatedIsFreed() throws {
    let system = try TestSystem(.mebibytes(8))
    let type = system.type()
    // Types and tags stay once they are there.
    for _ in 0..<2 {
      let before = system.layerPicture(tags: false)
      var random = SeededRandom(seed: testSeed)
      var held: [Held] = []
      var refused = 0
      for operation in 0..<6000 {
        let grows = operation / 1500 % 2 == 0
        if random.below(10) < (grows ? 7 : 3) {
          if let one = Self.ask(system, type, &random) { held.append(one) } else { refused += 1 }
        } else if !held.isEmpty {
          held.remove(at: Int(random.below(UInt64(held.count))))()
        }
        if operation % 500 == 0 { system.check("STRATA_SEED=\(testSeed), operation \(operation)") }
      }
      XCTAssertGreaterThan(refused, 0)
      for one in held { one() }
      system.check("STRATA_SEED=\(testSeed)")
      XCTAssertEqual(system.layerPicture(tags: false), before, "STRATA_SEED=\(testSeed)")
      XCTAssertEqual(system.kmem.describe(type).inUse, 0)
      XCTAssertEqual(system.kmem.describe(type).bytes, .zero)
    }
  }

  // MARK: Failures

  func testEachPointThatFailsLeavesAllLayersAsTheyWere() throws {
    let system = try TestSystem(.mebibytes(16))
    let (space, kmem, type) = (system.space, system.kmem, system.type())
    let failures = system.host.failures
    let run = try system.physical.allocate(
      run: PageCount(3), where: RunConstraints(alignment: Alignment(1 << 21)!), role: .loaned)
    struct Refused: Error {}
    func unless(_ object: UnsafeMutableRawPointer?) throws -> UnsafeMutableRawPointer {
      guard let object else { throw Refused() }
      return object
    }
    /// Requests, each with the way to free its result.
    var acts: [(String, () throws -> Held)] = []
    for priority in [AllocationPriority.normal, .system, .interrupt] {
      for arena in [WiredArena.heap, .metadata, .interrupt, .kernel] {
        acts.append(
          (
            "wired \(arena) \(priority)",
            {
              let address = try space.allocateWired(
                PageCount(70), from: arena, priority: priority, contents: .zero)
              return { space.freeWired(address, PageCount(70)) }
            }
          ))
      }
      acts.append(
        (
          "stack \(priority)",
          {
            let stack = try space.allocateStack(PageCount(33), priority: priority)
            return { space.freeStack(stack) }
          }
        ))
      for attribute in [CacheAttribute.writeBack, .uncached] {
        acts.append(
          (
            "contiguous \(attribute) \(priority)",
            {
              let range = try space.allocateContiguous(
                PageCount(600), attribute: attribute, priority: priority)
              return { space.freeContiguous(range.address, PageCount(600)) }
            }
          ))
        acts.append(
          (
            "given \(attribute) \(priority)",
            {
              let address = try space.mapFrames(run, attribute, priority: priority)
              return { space.unmapFrames(address, PageCount(3)) }
            }
          ))
      }
      for size in [16, 1152, 4096, 4097, 40_000, 2_100_000] where size < 1_000_000 || priority == .normal {
        acts.append(
          (
            "alloc \(size) \(priority)",
            {
              let object = try unless(kmem.alloc(ByteCount(size), type: type, priority: priority))
              return { kmem.free(object, size: ByteCount(size), type: type) }
            }
          ))
        acts.append(
          (
            "zalloc \(size) \(priority)",
            {
              let object = try unless(kmem.zalloc(ByteCount(size), type: type, priority: priority))
              return { kmem.free(object, size: ByteCount(size), type: type) }
            }
          ))
      }
    }
    acts.append(
      (
        "device",
        {
          let address = try space.mapDevice(PhysicalAddress(0xc000_1000), .mebibytes(4))
          return { space.unmapDevice(address, .mebibytes(4)) }
        }
      ))
    acts.append(
      (
        "cache",
        {
          let cache = try kmem.createCache(name: Name("c"), size: ByteCount(200))
          guard let object = cache.alloc(type: type) else {
            kmem.destroy(cache)
            throw Refused()
          }
          return {
            cache.free(object, type: type)
            kmem.destroy(cache)
          }
        }
      ))
    let (paging, contiguous) = (system.memory.paging, system.memory.contiguous)
    acts.append(
      (
        "pageable",
        {
          let count = PageCount(UInt64(600))
          let object = try paging.createObject(Name("o"), count)
          do {
            let address = try paging.map(object, count: count)
            do { try paging.fault(address, .write) } catch {
              paging.unmap(address, count)
              throw error
            }
            return {
              paging.unmap(address, count)
              paging.destroy(object)
            }
          } catch {
            paging.destroy(object)
            throw error
          }
        }
      ))
    acts.append(
      (
        "contiguous",
        {
          let run = try contiguous.allocContig(ContiguousRequest(PageCount(UInt64(8))))
          return { contiguous.releaseContig(run) }
        }
      ))
    // Memory that stays once it was needed (tags, descriptors) is there.
    for (_, act) in acts { try act()() }

    var reached = [UInt64](repeating: 0, count: FailurePoint.allCases.count)
    var (points, refusals) = (0, 0)
    for (name, act) in acts {
      var nth: Int64 = 0
      while true {
        let before = system.layerPicture(tags: false)
        failures.pointee.hasFailed = false
        failures.pointee.countdown = nth
        let counts = failures.pointee.reached
        var giveBack: Held?
        do { giveBack = try act() } catch {
          refusals += 1
          if let error = error as? KernelSpaceError {
            XCTAssertEqual(error, .noMemory, "\(name), point \(nth)")
          }
          XCTAssertTrue(failures.pointee.hasFailed, "\(name) was refused without a failure")
        }
        let hasFailed = failures.pointee.hasFailed
        failures.pointee.countdown = -1
        for point in FailurePoint.allCases {
          let index = Int(point.rawValue)
          reached[index] += failures.pointee.reached[index] - counts[index]
        }
        system.check("\(name), point \(nth)")
        if let giveBack {
          // Freeing needs no memory.
          failures.pointee.countdown = 0
          giveBack()
          failures.pointee.countdown = -1
        }
        XCTAssertEqual(system.layerPicture(tags: false), before, "\(name), point \(nth)")
        if !hasFailed { break }
        nth += 1
        points += 1
        guard nth < 800 else { return XCTFail("\(name) passes points without end") }
      }
    }
    let table = FailurePoint.allCases.map { "\($0) \(reached[Int($0.rawValue)])" }.joined(separator: ", ")
    print("KernelMemory: \(points) allocation points failed in turn, \(refusals) requests refused")
    print("KernelMemory: allocation points reached in each module: \(table)")
    // Magazines have no point of their own: their memory comes from kmem.
    for point in FailurePoint.allCases where point != .magazines {
      XCTAssertGreaterThan(reached[Int(point.rawValue)], 0, "\(point) was never reached")
    }
    XCTAssertGreaterThan(refusals, 100)
  }

  // MARK: Faults

  func testEachKindOfFaultIsReportedAndChangesNothing() throws {
    let system = try TestSystem(.mebibytes(16))
    let (space, kmem, physical, tables) = (system.space, system.kmem, system.physical, system.tables)
    let (type, other) = (system.type(), system.type("other"))
    let one = PageCount.one
    // All of it is live while everything is driven.
    let wired = try space.allocateWired(PageCount(8))
    let stack = try space.allocateStack(PageCount(2))
    let range = try space.allocateContiguous(PageCount(4), attribute: .uncached)
    let frame = try physical.allocate(Order(2), role: .loaned)
    let large = try XCTUnwrap(kmem.alloc(ByteCount(20_000), type: type))
    let small = try XCTUnwrap(kmem.alloc(ByteCount(60), type: type))
    kmem.setAudit(.on)
    let audited = try XCTUnwrap(kmem.alloc(ByteCount(60), type: type))
    let gone = try XCTUnwrap(kmem.alloc(ByteCount(60), type: type))
    kmem.free(gone, size: ByteCount(60), type: type)
    let cache = try kmem.createCache(name: Name("leaky"), size: ByteCount(100))
    let leaked = try XCTUnwrap(cache.alloc(type: type))
    let arenaRoom = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Arena.stateSize.rawValue), alignment: 64)
    defer { arenaRoom.deallocate() }
    arenaRoom.initializeMemory(as: UInt8.self, repeating: 0, count: Int(Arena.stateSize.rawValue))
    let numbers = Arena.create(
      in: arenaRoom, name: Name("numbers"), quantum: .byte, tags: space.tags, machine: system.host.machine)
    try numbers.add(ArenaAddress(0), ArenaSize(100))
    let number = try numbers.alloc(ArenaSize(5))
    let image = physical.memoryFrame(.records)

    var seen: Set<FaultKind> = []
    let before = system.layerPicture()
    func expect(_ kind: FaultKind, line: UInt = #line, _ body: () throws -> Void) rethrows {
      let faults = try system.host.faults(in: body)
      XCTAssertEqual(faults.map(\.kind), [kind], line: line)
      seen.insert(kind)
      system.check("", #filePath, line)
      XCTAssertEqual(system.layerPicture(), before, line: line)
    }
    func bytes(_ count: Int) -> ByteCount { ByteCount(count) }
    let map = system.host.machine.directMap
    // Frames.
    expect(.doubleFree) { physical.free(FrameRun(first: physical.memoryFrame(.free), count: one)) }
    expect(.notAllocated) { physical.free(FrameRun(first: image, count: one)) }
    expect(.foreignPointer) { physical.free(FrameRun(first: FrameNumber(1 << 30), count: one)) }
    expect(.foreignPointer) {
      physical.free(FrameRun(first: frame, count: PageCount(UInt64(FrameNumber.limit))))
    }
    expect(.wrongSize) { physical.free(FrameRun(first: frame, count: .zero)) }
    expect(.wrongSize) { physical.free(frame, Order(19)) }
    // Tables.
    try expect(.doubleMap) {
      try tables.map(wired, to: PhysicalAddress(0), count: one, protection: .kernelData)
    }
    try expect(.doubleMap) {
      try tables.map(stack.guardPage, to: PhysicalAddress(0), count: PageCount(3), protection: .kernelData)
    }
    try expect(.doubleMap) { try tables.prepare(stack.guardPage, count: PageCount(2)) }
    expect(.notMapped) { tables.unmap(stack.guardPage, count: PageCount(3)) }
    expect(.notMapped) { tables.unprepare(wired, count: one) }
    expect(.notMapped) { tables.unmap(map.virtualAddress(of: PhysicalAddress(5 << 20)), count: one) }
    try expect(.notMapped) { try tables.protect(stack.guardPage, count: one, .kernelReadOnly) }
    try expect(.badConstraint) { try tables.protect(wired, count: one, [.writable, .executable]) }
    try expect(.badConstraint) { try tables.setAttribute(wired, count: .zero, .uncached) }
    expect(.badConstraint) { tables.unmap(VirtualAddress(1 << 47), count: one) }
    try expect(.badConstraint) {
      try tables.map(
        VirtualAddress(0 &- 4096), to: PhysicalAddress(0), count: PageCount(2), protection: .kernelData)
    }
    // Kernel space.
    expect(.wrongSize) { space.freeWired(wired, PageCount(7)) }
    expect(.wrongType) { space.freeWired(stack.bottom, PageCount(2)) }
    expect(.foreignPointer) { space.freeWired(wired + one, PageCount(7)) }
    expect(.foreignPointer) {
      space.freeStack(Stack(bottom: VirtualAddress(0), count: PageCount(UInt64.max)))
    }
    expect(.foreignPointer) { space.unmapDevice(VirtualAddress(UInt64.max), bytes(1)) }
    expect(.wrongType) { space.unmapFrames(range.address, PageCount(4)) }
    expect(.doubleFree) { space.freeWired(range.address + PageCount(UInt64(1) << 30), one) }
    expect(.notAllocated) {
      let address = try? space.mapFrames(FrameRun(first: physical.memoryFrame(.free), count: one))
      XCTAssertNil(address)
    }
    // Numbers.
    expect(.wrongSize) { numbers.free(number, ArenaSize(4)) }
    expect(.leak) { numbers.destroy() }
    // Objects.
    expect(.wrongSize) { kmem.free(large, size: bytes(30_000), type: type) }
    expect(.wrongSize) { kmem.free(audited, size: bytes(61), type: type) }
    expect(.wrongSize) { kmem.free(small, size: bytes(5000), type: type) }
    expect(.wrongType) { kmem.free(audited, size: bytes(60), type: other) }
    expect(.doubleFree) { kmem.free(gone, size: bytes(60), type: type) }
    expect(.foreignPointer) { kmem.free(audited + 8, size: bytes(60), type: type) }
    expect(.foreignPointer) { kmem.free(large, size: bytes(60), type: type) }
    expect(.foreignPointer) { kmem.free(large + 4096, size: bytes(15_000), type: type) }
    expect(.foreignPointer) { kmem.free(map.pointer(to: frame), size: bytes(20_000), type: type) }
    expect(.foreignPointer) { kmem.destroy(try! XCTUnwrap(kmem.lookUp(bytes(64)))) }
    expect(.leak) { kmem.destroy(cache) }
    // All of it is as good as before.
    cache.free(leaked, type: type)
    kmem.destroy(cache)
    kmem.free(audited, size: bytes(60), type: type)
    kmem.setAudit(.off)
    kmem.free(small, size: bytes(60), type: type)
    kmem.free(large, size: bytes(20_000), type: type)
    numbers.free(number, ArenaSize(5))
    numbers.destroy()
    physical.free(frame, Order(2))
    space.freeContiguous(range.address, PageCount(4))
    space.freeStack(stack)
    space.freeWired(wired, PageCount(8))
    system.check()
    XCTAssertEqual(system.host.faults { kmem.drain() }.count, 0)
    XCTAssertEqual(physical.count(.slab), .zero)

    // Last, as the slab stays out of use: a write to a free object.
    let objects = (0..<64).map { _ in kmem.alloc(bytes(64), type: type)! }
    for object in objects.dropFirst() { kmem.free(object, size: bytes(64), type: type) }
    kmem.drain()
    objects[40].storeBytes(of: 0xdead_beef, as: UInt64.self)
    var got: [UnsafeMutableRawPointer] = []
    let faults = system.host.faults { for _ in 0..<100 { got.append(kmem.alloc(bytes(64), type: type)!) } }
    XCTAssertEqual(faults.map(\.kind), [.writeAfterFree])
    seen.insert(.writeAfterFree)
    system.check()
    for object in got + [objects[0]] { kmem.free(object, size: bytes(64), type: type) }
    system.check()

    // And one behind the last object of an audited slab.
    kmem.setAudit(.on)
    let row = (0..<63).map { _ in kmem.alloc(bytes(64), type: type)! }
    let end = row.max()! + 64
    let byte = end.load(as: UInt8.self)
    end.storeBytes(of: ~byte, as: UInt8.self)
    let overruns = system.host.faults { kmem.free(end - 64, size: bytes(64), type: type) }
    XCTAssertEqual(overruns.map(\.kind), [.overrun])
    XCTAssertEqual(overruns.first?.subject, VirtualAddress(end - 64).rawValue)
    seen.insert(.overrun)
    end.storeBytes(of: byte, as: UInt8.self)
    for object in row { kmem.free(object, size: bytes(64), type: type) }
    kmem.setAudit(.off)
    system.check()
    let kinds: Set<FaultKind> = [
      .doubleFree, .wrongSize, .wrongType, .foreignPointer, .notAllocated, .doubleMap, .notMapped,
      .badConstraint,
      .leak, .writeAfterFree, .overrun,
    ]
    XCTAssertEqual(seen, kinds)
  }

  // MARK: Together

  func testTwoThreadsAllocateFromAllLayers() throws {
    let system = try TestSystem(.mebibytes(32))
    let type = system.type()
    let before = system.layerPicture(tags: false)
    system.host.onThreads(2) { thread in
      let type = system.type()
      var random = SeededRandom(seed: testSeed &+ UInt64(thread))
      var held: [Held] = []
      for _ in 0..<4000 {
        if random.below(10) < 5 || held.isEmpty {
          if let one = Self.ask(system, type, &random) { held.append(one) }
        } else {
          held.remove(at: Int(random.below(UInt64(held.count))))()
        }
        if held.count > 60 { held.removeFirst()() }
      }
      for one in held { one() }
    }
    system.check("STRATA_SEED=\(testSeed)")
    XCTAssertEqual(system.layerPicture(tags: false), before, "STRATA_SEED=\(testSeed)")
    XCTAssertEqual(system.kmem.describe(type).inUse, 0)
  }

  func testTwoThreadsGoOnWhenMemoryRunsOut() throws {
    let system = try TestSystem(.mebibytes(6))
    _ = system.type()
    let before = system.layerPicture(tags: false)
    system.host.onThreads(2) { thread in
      let type = system.type()
      var random = SeededRandom(seed: testSeed &+ UInt64(thread))
      for _ in 0..<12 {
        var held: [Held] = []
        var refused = 0
        while refused < 20 {
          if let one = Self.ask(system, type, &random) { held.append(one) } else { refused += 1 }
        }
        for one in held { one() }
      }
    }
    system.check("STRATA_SEED=\(testSeed)")
    XCTAssertEqual(system.layerPicture(tags: false), before, "STRATA_SEED=\(testSeed)")
  }

  func testInterruptsAllocateAndFreeInAllLayers() throws {
    for oneIn in [UInt64(2), 7] {
      let system = try TestSystem(.mebibytes(12))
      let (type, handlers) = (system.type(), system.type("interrupt"))
      let before = system.layerPicture(tags: false)
      var kept: [Held] = []
      var fired = 0
      var inner = SeededRandom(seed: testSeed)
      var random = SeededRandom(seed: testSeed &+ 1)
      system.host.withInterrupts(
        seed: testSeed, oneIn: oneIn,
        handler: {
          fired += 1
          if kept.count < 20, inner.oneIn(2) {
            if let one = Self.ask(system, handlers, &inner, priority: .interrupt) { kept.append(one) }
          } else if !kept.isEmpty {
            kept.remove(at: Int(inner.below(UInt64(kept.count))))()
          }
        },
        {
          var held: [Held] = []
          for operation in 0..<1500 {
            if random.below(10) < (operation / 250 % 2 == 0 ? 8 : 3) || held.isEmpty {
              if let one = Self.ask(system, type, &random) { held.append(one) }
            } else {
              held.remove(at: Int(random.below(UInt64(held.count))))()
            }
          }
          for one in held { one() }
        })
      XCTAssertGreaterThan(fired, 1000)
      system.check("STRATA_SEED=\(testSeed)")
      for one in kept { one() }
      system.check("STRATA_SEED=\(testSeed)")
      XCTAssertEqual(system.layerPicture(tags: false), before, "STRATA_SEED=\(testSeed)")
    }
  }
}

/// The seed of the random histories: STRATA_SEED replays one.
private let testSeed = historySeed(20_261, "LiveSystemTests")

extension FrameAllocator {
  /// Some frame with `role`.
  fileprivate func memoryFrame(_ role: FrameRole) -> FrameNumber {
    for number in UInt32(256)... where whatIs(FrameNumber(number)).role == role { return FrameNumber(number) }
    fatalError("no frame has that role")
  }
}
