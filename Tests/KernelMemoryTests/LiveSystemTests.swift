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

/// Requests of all layers, each with the way to free its result.
private struct LayerRequests {
  typealias Request = (name: String, act: () throws -> Held)

  private struct Refused: Error {}

  let system: TestSystem
  let type: MemoryType
  private(set) var all: [Request] = []

  init(_ system: TestSystem) throws {
    (self.system, type) = (system, system.type())
    let run = try system.physical.allocate(
      run: PageCount(3), where: RunConstraints(alignment: Alignment(1 << 21)!), role: .loaned)
    for priority in [AllocationPriority.normal, .system, .interrupt] {
      addWired(priority)
      addRanges(of: run, priority)
      addObjects(priority)
    }
    addDeviceAndCache()
    addPages()
    addCompressed()
  }

  /// Objects of the compressed store: the first of a size, so that they need frames.
  private mutating func addCompressed() {
    let store = system.memory.compressed.store
    for length in [40, 2900, 4096] {
      add("object of the store, \(length) bytes") {
        let handle = try [UInt8](repeating: 7, count: length).withUnsafeBytes { try store.store($0) }
        return { store.free(handle) }
      }
    }
  }

  private mutating func add(_ name: String, _ act: @escaping () throws -> Held) { all.append((name, act)) }

  private mutating func addWired(_ priority: AllocationPriority) {
    let space = system.space
    for arena in [WiredArena.heap, .metadata, .interrupt, .kernel] {
      add("wired \(arena) \(priority)") {
        let address = try space.allocateWired(
          PageCount(70), from: arena, priority: priority, contents: .zero)
        return { space.freeWired(address, PageCount(70)) }
      }
    }
    add("stack \(priority)") {
      let stack = try space.allocateStack(PageCount(33), priority: priority)
      return { space.freeStack(stack) }
    }
  }

  private mutating func addRanges(of run: FrameRun, _ priority: AllocationPriority) {
    let space = system.space
    for attribute in [CacheAttribute.writeBack, .uncached] {
      add("contiguous \(attribute) \(priority)") {
        let range = try space.allocateContiguous(PageCount(600), attribute: attribute, priority: priority)
        return { space.freeContiguous(range.address, PageCount(600)) }
      }
      add("given \(attribute) \(priority)") {
        let address = try space.mapFrames(run, attribute, priority: priority)
        return { space.unmapFrames(address, PageCount(3)) }
      }
    }
  }

  private mutating func addObjects(_ priority: AllocationPriority) {
    let (kmem, type) = (system.kmem, type)
    for size in [16, 1152, 4096, 4097, 40_000, 2_100_000] where size < 1_000_000 || priority == .normal {
      add("alloc \(size) \(priority)") {
        guard let object = kmem.alloc(ByteCount(size), type: type, priority: priority) else {
          throw Refused()
        }
        return { kmem.free(object, size: ByteCount(size), type: type) }
      }
      add("zalloc \(size) \(priority)") {
        guard let object = kmem.zalloc(ByteCount(size), type: type, priority: priority) else {
          throw Refused()
        }
        return { kmem.free(object, size: ByteCount(size), type: type) }
      }
    }
  }

  private mutating func addDeviceAndCache() {
    let (space, kmem, type) = (system.space, system.kmem, type)
    add("device") {
      let address = try space.mapDevice(PhysicalAddress(0xc000_1000), .mebibytes(4))
      return { space.unmapDevice(address, .mebibytes(4)) }
    }
    add("cache") {
      let cache = try kmem.createCache(name: ShortName("c"), size: ByteCount(200))
      guard let object = cache.alloc(type: type) else {
        kmem.destroy(cache)
        throw Refused()
      }
      return {
        cache.free(object, type: type)
        kmem.destroy(cache)
      }
    }
  }

  private mutating func addPages() {
    let (paging, contiguous) = (system.memory.paging, system.memory.contiguous)
    add("pageable") {
      let count = PageCount(UInt64(600))
      let object = try paging.createObject(ShortName("o"), count)
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
    add("contiguous") {
      let run = try contiguous.allocContig(ContiguousRequest(PageCount(UInt64(8))))
      return { contiguous.releaseContig(run) }
    }
  }
}

/// A system in which each point that may fail does, in turn, for each request of any layer.
private struct FailingPoints {
  private let system: TestSystem
  private let requests: [LayerRequests.Request]
  /// How often the points of each module were reached.
  private(set) var reached = [UInt64](repeating: 0, count: FailurePoint.allCases.count)
  /// Points that have failed, and requests that were refused for that.
  private(set) var points = 0
  private(set) var refusals = 0

  private var failures: UnsafeMutablePointer<FailureInjection> { system.host.failures }

  init(_ system: TestSystem) throws {
    self.system = system
    requests = try LayerRequests(system).all
  }

  mutating func run() throws {
    // Memory that stays once it was needed (tags, descriptors) is there.
    for request in requests { try request.act()() }
    for request in requests {
      var nth: Int64 = 0
      while attempt(request, failingAt: nth) {
        nth += 1
        points += 1
        guard nth < 800 else { return XCTFail("\(request.name) passes points without end") }
      }
    }
  }

  /// Makes a request of which point `nth` fails, and checks that nothing has changed after the refusal, or after the free.
  /// Answers false when it has fewer points.
  private mutating func attempt(_ request: LayerRequests.Request, failingAt nth: Int64) -> Bool {
    let note = "\(request.name), point \(nth)"
    let before = system.layerPicture(tags: false)
    failures.pointee.hasFailed = false
    failures.pointee.countdown = nth
    let counts = failures.pointee.reached
    var giveBack: Held?
    do { giveBack = try request.act() } catch {
      refusals += 1
      if let error = error as? KernelSpaceError { XCTAssertEqual(error, .noMemory, note) }
      XCTAssertTrue(failures.pointee.hasFailed, "\(request.name) was refused without a failure")
    }
    let hasFailed = failures.pointee.hasFailed
    failures.pointee.countdown = -1
    for point in FailurePoint.allCases {
      let index = Int(point.rawValue)
      reached[index] += failures.pointee.reached[index] - counts[index]
    }
    system.check(note)
    if let giveBack {
      // Freeing needs no memory.
      failures.pointee.countdown = 0
      giveBack()
      failures.pointee.countdown = -1
    }
    XCTAssertEqual(system.layerPicture(tags: false), before, note)
    return hasFailed
  }
}

/// Bugs of callers, while resources of all layers are live. Each is reported once, and changes nothing.
private final class CallersBugs {
  private let system: TestSystem
  private let type: MemoryType
  private let other: MemoryType
  private let wired: VirtualAddress
  private let stack: KernelStack
  private let range: ContiguousRange
  private let frame: FrameNumber
  private let large: UnsafeMutableRawPointer
  private let small: UnsafeMutableRawPointer
  private let audited: UnsafeMutableRawPointer
  private let gone: UnsafeMutableRawPointer
  private let cache: ObjectCache
  private let leaked: UnsafeMutableRawPointer
  private let arenaStorage: UnsafeMutableRawPointer
  private let numbers: Arena
  private let number: ArenaAddress
  private let before: TestSystem.LayerPicture
  /// The kinds of faults that were reported.
  private(set) var seen: Set<FaultKind> = []

  private var space: KernelAddressSpace { system.space }
  private var kmem: KmemAllocator { system.kmem }
  private var physical: FrameAllocator { system.physical }
  private var tables: PageMap { system.tables }
  private var map: DirectMap { system.host.machine.directMap }

  init(_ system: TestSystem) throws {
    let (space, kmem) = (system.space, system.kmem)
    self.system = system
    (type, other) = (system.type(), system.type("other"))
    wired = try space.allocateWired(PageCount(8))
    stack = try space.allocateStack(PageCount(2))
    range = try space.allocateContiguous(PageCount(4), attribute: .uncached)
    frame = try system.physical.allocate(BlockOrder(2), role: .loaned)
    large = try XCTUnwrap(kmem.alloc(ByteCount(20_000), type: type))
    small = try XCTUnwrap(kmem.alloc(ByteCount(60), type: type))
    kmem.setAudit(.on)
    audited = try XCTUnwrap(kmem.alloc(ByteCount(60), type: type))
    gone = try XCTUnwrap(kmem.alloc(ByteCount(60), type: type))
    kmem.free(gone, size: ByteCount(60), type: type)
    cache = try kmem.createCache(name: ShortName("leaky"), size: ByteCount(100))
    leaked = try XCTUnwrap(cache.alloc(type: type))
    let size = Int(Arena.stateSize.rawValue)
    arenaStorage = .allocate(byteCount: size, alignment: 64)
    arenaStorage.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    numbers = Arena.create(
      ArenaOptions(name: "numbers", quantum: .byte), in: arenaStorage, tags: space.tags)
    try numbers.add(ArenaAddress(0), ArenaSize(100))
    number = try numbers.alloc(ArenaSize(5))
    before = system.layerPicture()
  }

  deinit { arenaStorage.deallocate() }

  private func expect(_ kind: FaultKind, line: UInt = #line, _ body: () throws -> Void) rethrows {
    let faults = try system.host.faults(in: body)
    XCTAssertEqual(faults.map(\.kind), [kind], line: line)
    seen.insert(kind)
    system.check("", #filePath, line)
    XCTAssertEqual(system.layerPicture(), before, line: line)
  }
  private func bytes(_ count: Int) -> ByteCount { ByteCount(count) }

  func misuseFrames() {
    let one = PageCount.one
    expect(.doubleFree) { physical.free(FrameRun(first: physical.memoryFrame(.free), count: one)) }
    expect(.notAllocated) { physical.free(FrameRun(first: physical.memoryFrame(.records), count: one)) }
    expect(.foreignPointer) { physical.free(FrameRun(first: FrameNumber(1 << 30), count: one)) }
    expect(.foreignPointer) {
      physical.free(FrameRun(first: frame, count: PageCount(UInt64(FrameNumber.limit))))
    }
    expect(.wrongSize) { physical.free(FrameRun(first: frame, count: .zero)) }
    expect(.wrongSize) { physical.free(frame, BlockOrder(19)) }
  }

  func misuseTables() throws {
    let one = PageCount.one
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
  }

  func misuseKernelSpace() {
    let one = PageCount.one
    expect(.wrongSize) { space.freeWired(wired, PageCount(7)) }
    expect(.wrongType) { space.freeWired(stack.bottom, PageCount(2)) }
    expect(.foreignPointer) { space.freeWired(wired + one, PageCount(7)) }
    expect(.foreignPointer) {
      space.freeStack(KernelStack(bottom: VirtualAddress(0), count: PageCount(UInt64.max)))
    }
    expect(.foreignPointer) { space.unmapDevice(VirtualAddress(UInt64.max), bytes(1)) }
    expect(.wrongType) { space.unmapFrames(range.address, PageCount(4)) }
    expect(.doubleFree) { space.freeWired(range.address + PageCount(UInt64(1) << 30), one) }
    expect(.notAllocated) {
      let address = try? space.mapFrames(FrameRun(first: physical.memoryFrame(.free), count: one))
      XCTAssertNil(address)
    }
  }

  func misuseNumbers() {
    expect(.wrongSize) { numbers.free(number, ArenaSize(4)) }
    expect(.leak) { numbers.destroy() }
  }

  func misuseObjects() {
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
  }

  /// Frees all of it: it is as good as before.
  func freeAll() {
    cache.free(leaked, type: type)
    kmem.destroy(cache)
    kmem.free(audited, size: bytes(60), type: type)
    kmem.setAudit(.off)
    kmem.free(small, size: bytes(60), type: type)
    kmem.free(large, size: bytes(20_000), type: type)
    numbers.free(number, ArenaSize(5))
    numbers.destroy()
    physical.free(frame, BlockOrder(2))
    space.freeContiguous(range.address, PageCount(4))
    space.freeStack(stack)
    space.freeWired(wired, PageCount(8))
    system.check()
    XCTAssertEqual(system.host.faults { kmem.drain() }.count, 0)
    // Those of the zones stay.
    var zones = PageCount.zero
    kmem.forEachZone { _ in zones += .one }
    XCTAssertEqual(physical.count(.slab), zones)
  }

  func writeToFreeObject() {
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
  }

  /// Writes behind the last object of an audited slab.
  func writeBehindLastObject() {
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
  }
}

/// Frees a resource of any layer.
private typealias Held = () -> Void

final class LiveSystemTests: XCTestCase {
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
        let order = BlockOrder(UInt8(random.below(4)))
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
    var failing = try FailingPoints(TestSystem(.mebibytes(16)))
    try failing.run()
    let reached = failing.reached
    let table = FailurePoint.allCases.map { "\($0) \(reached[Int($0.rawValue)])" }.joined(separator: ", ")
    print(
      "KernelMemory: \(failing.points) allocation points failed in turn, \(failing.refusals) requests refused"
    )
    print("KernelMemory: allocation points reached in each module: \(table)")
    // Magazines have no point of their own: their memory comes from kmem.
    for point in FailurePoint.allCases where point != .magazines {
      XCTAssertGreaterThan(reached[Int(point.rawValue)], 0, "\(point) was never reached")
    }
    XCTAssertGreaterThan(failing.refusals, 100)
  }

  // MARK: Faults

  func testEachKindOfFaultIsReportedAndChangesNothing() throws {
    let bugs = try CallersBugs(TestSystem(.mebibytes(16)))
    bugs.misuseFrames()
    try bugs.misuseTables()
    bugs.misuseKernelSpace()
    bugs.misuseNumbers()
    bugs.misuseObjects()
    bugs.freeAll()
    // Last, as the slab stays out of use.
    bugs.writeToFreeObject()
    bugs.writeBehindLastObject()
    let kinds: Set<FaultKind> = [
      .doubleFree, .wrongSize, .wrongType, .foreignPointer, .notAllocated, .doubleMap, .notMapped,
      .badConstraint,
      .leak, .writeAfterFree, .overrun,
    ]
    XCTAssertEqual(bugs.seen, kinds)
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
