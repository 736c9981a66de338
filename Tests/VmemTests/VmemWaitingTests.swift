import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import XCTest

@testable import Vmem

/// Requests that wait for space, and the order in which frees serve them.
final class VmemWaitingTests: XCTestCase {
  /// A machine on which only its processors wake a sleeper, and the requests that wait on them.
  private final class Bed: @unchecked Sendable {
    let fixture: VmemFixture
    var host: SimulatedMachine { fixture.host }
    private let lock = NSLock()
    private var granted: [Int: UInt64] = [:]
    private var refused: [Int: VmemError] = [:]
    /// Threads whose requests are not answered yet.
    private let waiting = Atomic<Int>(0)

    init(processors: Int = 5, staticPages: UInt64 = 1) {
      fixture = VmemFixture(staticPages: staticPages, processors: processors)
      host.hasOtherThreads = true
      host.isClosed = true
    }

    /// The answer to each waiter.
    var places: [Int: UInt64] { lock.withLock { granted } }
    var errors: [Int: VmemError] { lock.withLock { refused } }

    /// Makes each request on a thread of its own, the next one when the one before it sleeps. Runs `body` when all
    /// sleep.
    func run(_ requests: [() throws -> ArenaAddress], then body: @escaping () -> Void) {
      nonisolated(unsafe) let requests = requests
      nonisolated(unsafe) let body = body
      waiting.store(requests.count, ordering: .relaxed)
      host.onThreads(requests.count + 1) { [self] index in
        idle { host.sleeperCount >= index }
        if index == requests.count { return body() }
        do {
          let place = try requests[index]()
          lock.withLock { granted[index] = place.rawValue }
        } catch {
          lock.withLock { refused[index] = error as? VmemError }
        }
        waiting.subtract(1, ordering: .releasing)
      }
    }

    /// Checks all invariants, once each thread has its answer or sleeps: those that a wake did not serve look again.
    func check(_ file: StaticString = #filePath, _ line: UInt = #line) {
      idle { host.restingCount == waiting.load(ordering: .acquiring) }
      fixture.check(file: file, line: line)
    }

    func close(refusals: Int = 0, _ file: StaticString = #filePath, _ line: UInt = #line) {
      XCTAssertEqual(host.refusals, refusals, "refused for want of a wake-up", file: file, line: line)
      XCTAssertEqual(host.rescues, 0, "threads that were not woken", file: file, line: line)
      fixture.tags.forEachArena { XCTAssertEqual($0.waiting, 0, file: file, line: line) }
      XCTAssertEqual(fixture.tags.state.waiters.load(ordering: .relaxed), 0, file: file, line: line)
      XCTAssertEqual(fixture.tags.state.retrying.load(ordering: .relaxed), 0, file: file, line: line)
      check(file, line)
    }
  }

  private static func wait(_ arena: Arena, _ size: UInt64, until deadline: Tick = .never) -> () throws ->
    ArenaAddress
  {
    { try arena.alloc(ArenaSize(size), until: deadline) }
  }

  func testAFreeServesWaitersInOrderOfArrivalAndTheRestOfItTheNext() throws {
    let bed = Bed()
    let arena = bed.fixture.arena()
    try arena.add(0...99)
    let all = arena.alloc(100)!
    bed.run([Self.wait(arena, 60), Self.wait(arena, 30), Self.wait(arena, 20)]) {
      XCTAssertEqual(arena.waiting, 3)
      bed.check()
      arena.free(all, 100)
      // Served by the free itself, before any of them runs.
      XCTAssertEqual(arena.waiting, 1)
      XCTAssertEqual(arena.size(.allocated), ArenaSize(90))
      // The ten that are left satisfy no waiter, so a request that doesn't wait gets them.
      XCTAssertNil(arena.alloc(11))
      XCTAssertEqual(arena.alloc(10), 90)
      idle { bed.places.count == 2 }
      bed.check()
      arena.free(bed.places[1]!, 30)
    }
    XCTAssertEqual(bed.places, [0: 0, 1: 60, 2: 60])
    XCTAssertEqual(arena.figures.waits, 3)
    XCTAssertEqual(arena.figures.allocations, 5)
    bed.close()
  }

  func testAWaiterThatTheSpaceDoesNotSatisfyHoldsUpNoOther() throws {
    let bed = Bed()
    let arena = bed.fixture.arena()
    try arena.add(0...99)
    let few = arena.alloc(10)!
    let many = arena.alloc(90)!
    bed.run([Self.wait(arena, 50), Self.wait(arena, 10), Self.wait(arena, 90)]) {
      arena.free(few, 10)
      XCTAssertEqual(arena.waiting, 2)
      XCTAssertNil(arena.alloc(1))
      arena.free(many, 90)
      // Fifty of the ninety went to the first, so the third has to wait for more.
      XCTAssertEqual(arena.waiting, 1)
      idle { bed.places.count == 2 }
      bed.check()
      for (size, waiter) in [(50, 0), (10, 1)] { arena.free(bed.places[waiter]!, UInt64(size)) }
    }
    XCTAssertEqual(bed.places[1], 0)
    XCTAssertEqual(bed.places.count, 3)
    bed.close()
  }

  /// As soon as a free leaves enough, the waiter has it, though the same thread asks for a part of it right away.
  func testAStreamOfSmallRequestsDoesNotStarveALargeOne() throws {
    let bed = Bed()
    let arena = bed.fixture.arena()
    try arena.add(0...63)
    var held = (0..<4).map { _ in arena.alloc(8)! }
    bed.run([Self.wait(arena, 40)]) {
      for _ in 0..<1000 {
        for index in 0..<3 {
          arena.free(held[index], 8)
          held[index] = arena.alloc(8)!
        }
      }
      bed.check()
      arena.free(held[3], 8)
      XCTAssertNil(arena.alloc(8))
      XCTAssertEqual(arena.waiting, 0)
    }
    XCTAssertEqual(bed.places, [0: 24])
    bed.close()
  }

  func testThreadsThatTakeAndGiveDoNotStarveALargeRequest() throws {
    let bed = Bed()
    let arena = bed.fixture.arena()
    try arena.add(0...63)
    let isServed = Atomic<Bool>(false)
    let all = arena.alloc(64)!
    withUnsafePointer(to: isServed) { flag in
      nonisolated(unsafe) let flag = flag
      bed.host.onThreads(3) { index in
        if index == 0 {
          let place = try? arena.alloc(ArenaSize(64), until: .never)
          XCTAssertEqual(place, ArenaAddress(0))
          flag.pointee.store(true, ordering: .releasing)
          return
        }
        if index == 1 {
          idle { bed.host.sleeperCount == 1 }
          // The only free that leaves all of it.
          arena.free(all, 64)
        }
        for _ in 0..<1000 { XCTAssertNil(arena.alloc(1)) }
        idle { flag.pointee.load(ordering: .acquiring) }
      }
    }
    bed.close()
  }

  func testADeadlineEndsAWaitAndLeavesNothing() throws {
    let bed = Bed()
    let root = bed.fixture.arena("root")
    try root.add(0...99)
    let child = bed.fixture.arena("child", source: .arena(root))
    let all = root.alloc(100)!
    let before = root.figures.spareTags
    bed.run([
      Self.wait(child, 100, until: Tick(5)), Self.wait(root, 60, until: Tick(5)), Self.wait(root, 50),
    ]) {
      XCTAssertEqual(root.waiting, 3)
      XCTAssertEqual(child.waiting, 1)
      bed.check()
      bed.host.advance(ticks: 5)
      idle { bed.errors.count == 2 }
      XCTAssertEqual(root.waiting, 1)
      XCTAssertEqual(child.waiting, 0)
      bed.check()
      root.free(all, 100)
      XCTAssertEqual(root.size(.allocated), ArenaSize(50))
    }
    XCTAssertEqual(bed.errors, [0: .noSpace, 1: .noSpace])
    XCTAssertEqual(bed.places, [2: 0])
    XCTAssertEqual(child.size(.total), .zero)
    XCTAssertGreaterThan(before, 0)
    bed.close()
    root.free(0, 50)
    child.destroy()
    root.destroy()
    XCTAssertEqual(bed.fixture.tags.figures.free, bed.fixture.tags.figures.total)
  }

  func testEachWaiterIsTriedWithItsOwnConstraints() throws {
    let bed = Bed()
    let arena = bed.fixture.arena()
    try arena.add(0...255)
    let parts = (0..<16).map { _ in arena.alloc(16)! }.sorted()
    func wait(_ size: UInt64, _ constraints: ArenaConstraints) -> () throws -> ArenaAddress {
      { try arena.xalloc(ArenaSize(size), constraints, until: .never) }
    }
    bed.run([
      wait(16, ArenaConstraints(minimum: ArenaAddress(130), maximum: ArenaAddress(191))),
      wait(8, ArenaConstraints(alignment: Alignment(64)!, phase: ArenaSize(40))),
      wait(20, ArenaConstraints(nocross: Alignment(64))),
    ]) {
      arena.free(parts[3], 16)
      arena.free(parts[4], 16)
      // 48 to 79: crosses 64, lies outside the window, and has no place of that phase.
      XCTAssertEqual(arena.waiting, 3)
      bed.check()
      arena.free(parts[2], 16)
      XCTAssertEqual(arena.waiting, 2)
      arena.free(parts[5], 16)
      XCTAssertEqual(arena.waiting, 1)
      bed.check()
      XCTAssertEqual(arena.alloc(16), 48)
      arena.free(parts[8], 16)
      XCTAssertEqual(arena.waiting, 1)
      arena.free(parts[9], 16)
      XCTAssertEqual(arena.waiting, 0)
    }
    XCTAssertEqual(bed.places, [0: 130, 1: 40, 2: 64])
    bed.close()
  }

  func testSpansThatAreAddedServeWaiters() throws {
    let bed = Bed()
    let arena = bed.fixture.arena()
    try arena.add(0...9)
    XCTAssertNotNil(arena.alloc(10))
    bed.run([Self.wait(arena, 8), Self.wait(arena, 10)]) {
      try! arena.add(100...109)
      XCTAssertEqual(arena.waiting, 1)
      XCTAssertNil(arena.alloc(3))
      try! arena.add(200...219)
      XCTAssertEqual(arena.waiting, 0)
    }
    XCTAssertEqual(bed.places, [0: 100, 1: 200])
    bed.close()
  }

  // MARK: Import

  func testWaitersOfASourceAndOfItsImportersAreInOneOrder() throws {
    let bed = Bed()
    let root = bed.fixture.arena("root")
    try root.add(0...127)
    let heap = bed.fixture.arena("heap", source: .arena(root), importUnit: 64)
    let small = bed.fixture.arena("small", quantum: 4, source: .arena(heap))
    let other = bed.fixture.arena("other", source: .arena(root))
    let all = root.alloc(128)!
    bed.run([Self.wait(small, 40), Self.wait(root, 40), Self.wait(other, 48), Self.wait(heap, 16)]) {
      XCTAssertEqual(root.waiting, 4)
      XCTAssertEqual(heap.waiting, 2)
      bed.check()
      root.free(all, 128)
      XCTAssertEqual(root.waiting, 1)
      XCTAssertEqual(root.size(.free), .zero)
      idle { bed.places.count == 3 }
      bed.check()
      other.free(bed.places[2]!, 48)
      XCTAssertEqual(root.waiting, 0)
    }
    XCTAssertEqual(bed.places, [0: 0, 1: 40, 2: 80, 3: 80])
    XCTAssertEqual(small.figures.imports, 1)
    XCTAssertEqual(other.size(.total), .zero)
    bed.close()
    small.free(0, 40)
    XCTAssertEqual(small.size(.total), .zero)
    heap.free(80, 16)
    XCTAssertEqual(heap.size(.total), .zero)
    XCTAssertEqual(root.size(.allocated), ArenaSize(40))
    bed.check()
  }

  /// The span that becomes free is the root's, whose first waiter came before the child's.
  func testAnImportedSpanThatIsFreeServesTheWaitersOfTheSource() throws {
    let bed = Bed()
    let root = bed.fixture.arena("root")
    try root.add(0...63)
    let child = bed.fixture.arena("child", source: .arena(root))
    let place = child.alloc(64)!
    bed.run([Self.wait(root, 40), Self.wait(child, 40), Self.wait(child, 20)]) {
      child.free(place, 64)
      XCTAssertEqual(root.waiting, 1)
      idle { bed.places.count == 2 }
      XCTAssertEqual(bed.places[0], 0)
      bed.check()
      root.free(0, 40)
    }
    XCTAssertEqual(bed.places[1], 0)
    XCTAssertEqual(bed.places[2], 40)
    bed.close()
  }

  /// The root's quantum is so large that it can't express what the first waiter wants, so only the child's own span
  /// serves it. The remainder of that span stays, and serves the second one, which waits in the root too.
  func testAnImportedSpanServesAWaiterThatTheSourceCanNotServe() throws {
    let bed = Bed()
    let root = bed.fixture.arena("root", quantum: 64)
    try root.add(0...63)
    let child = bed.fixture.arena("child", quantum: 16, source: .arena(root))
    let place = child.alloc(64)!
    let window = ArenaConstraints(
      alignment: Alignment(32)!, phase: ArenaSize(16), minimum: ArenaAddress(48), maximum: ArenaAddress(63))
    bed.run([{ try child.xalloc(ArenaSize(16), window, until: .never) }, Self.wait(child, 16)]) {
      XCTAssertEqual(root.waiting, 1)
      child.free(place, 64)
      XCTAssertEqual(child.waiting, 0)
    }
    XCTAssertEqual(bed.places, [0: 48, 1: 0])
    XCTAssertEqual(child.figures.releases, 0)
    bed.close()
    for place in [0, 48] as [UInt64] { child.free(place, 16) }
    XCTAssertEqual(root.size(.allocated), .zero)
    bed.check()
  }

  /// A part of an imported span that is in use serves the child's waiters, which leave the root's list then.
  func testAFreeInTheImporterServesItsWaiterWhichLeavesTheSource() throws {
    let bed = Bed()
    let root = bed.fixture.arena("root")
    try root.add(0...63)
    let child = bed.fixture.arena("child", source: .arena(root), importUnit: 64)
    let first = child.alloc(32)!
    let second = child.alloc(32)!
    bed.run([Self.wait(child, 20), Self.wait(child, 10)]) {
      XCTAssertEqual(root.waiting, 2)
      child.free(first, 32)
      XCTAssertEqual(child.waiting, 0)
      XCTAssertNil(child.alloc(3))
      idle { bed.places.count == 2 }
      XCTAssertEqual(root.waiting, 0)
      child.free(second, 32)
      XCTAssertEqual(root.size(.allocated), ArenaSize(64))
    }
    XCTAssertEqual(bed.places[0].map { $0 / 32 }, first / 32)
    bed.close()
    child.free(bed.places[0]!, 20)
    child.free(bed.places[1]!, 10)
    XCTAssertEqual(root.size(.allocated), .zero)
    bed.check()
  }

  /// A source made of functions that gives a span once it is allowed to.
  private final class Gate {
    let isOpen = Atomic<Bool>(false)
    var source: ArenaSource {
      ArenaSource(
        Unmanaged.passUnretained(self).toOpaque(),
        importSpan: { context, request in
          let gate = Unmanaged<Gate>.fromOpaque(context!).takeUnretainedValue()
          guard gate.isOpen.exchange(false, ordering: .acquiringAndReleasing) else { return false }
          let request = request.assumingMemoryBound(to: ImportRequest.self)
          request.pointee.first = ArenaAddress(1000)
          request.pointee.last = ArenaAddress(1000 + request.pointee.size.rawValue - 1)
          return true
        },
        releaseSpan: { context, _, _ in
          let gate = Unmanaged<Gate>.fromOpaque(context!).takeUnretainedValue()
          gate.isOpen.store(true, ordering: .releasing)
        })
    }
  }

  func testASourceMadeOfFunctionsIsAskedAgainAfterAFree() throws {
    let bed = Bed()
    let gate = Gate()
    let arena = bed.fixture.arena(source: gate.source)
    let elsewhere = bed.fixture.arena("elsewhere")
    try elsewhere.add(0...9)
    let place = elsewhere.alloc(1)!
    bed.run([Self.wait(arena, 10)]) {
      gate.isOpen.store(true, ordering: .releasing)
      elsewhere.free(place, 1)
    }
    XCTAssertEqual(bed.places, [0: 1000])
    bed.close()
    // The span is whole again: the waiter, which is queued nowhere else, gets it before it returns.
    bed.run([Self.wait(arena, 5)]) {
      arena.free(1000, 10)
      XCTAssertEqual(arena.waiting, 0)
    }
    XCTAssertEqual(bed.places, [0: 1000])
    bed.close()
    arena.free(1000, 5)
    XCTAssertEqual(arena.size(.total), .zero)
    bed.close()
  }

  // MARK: Tags, and what is refused

  func testAWaiterWithoutTagsGetsThemBeforeOthers() throws {
    let bed = Bed()
    bed.fixture.pageLimit = 0
    let arena = bed.fixture.arena()
    try arena.add(0...999)
    var places: [UInt64] = []
    while let place = arena.alloc(1) { places.append(place) }
    XCTAssertGreaterThan(arena.size(.free), ArenaSize(100))
    bed.run([Self.wait(arena, 100)]) {
      XCTAssertEqual(arena.waiting, 1)
      bed.check()
      // Three neighbours that join give two tags back, and the waiter has both, whether it has run since or not.
      for place in places.sorted()[10..<13] { arena.free(place, 1) }
      let hasTags = arena.state.core.withLock { $0.waiters.isEmpty || $0.spares.hidden == 2 }
      XCTAssertTrue(hasTags)
      idle { bed.places.count == 1 }
    }
    XCTAssertNotNil(bed.places[0])
    bed.close()
  }

  func testATagThatIsMissedInOneArenaComesFromAnother() throws {
    let bed = Bed()
    bed.fixture.pageLimit = 0
    let arena = bed.fixture.arena()
    let other = bed.fixture.arena("other")
    try arena.add(0...99)
    try other.add(0...999)
    let places = (0..<30).map { _ in other.alloc(1)! }
    while arena.alloc(1) != nil, arena.size(.free) > ArenaSize(50) {}
    while other.alloc(1) != nil {}
    while arena.alloc(1) != nil {}
    bed.run([Self.wait(arena, 1, until: Tick(5)), Self.wait(arena, 1)]) {
      bed.host.advance(ticks: 5)
      idle { bed.errors.count == 1 }
      for place in places { other.free(place, 1) }
    }
    XCTAssertEqual(bed.errors, [0: .noTags])
    XCTAssertNotNil(bed.places[1])
    bed.close()
  }

  func testWhatNoSpanCouldHoldIsRefusedAtOnce() throws {
    let bed = Bed()
    let root = bed.fixture.arena("root", quantum: 16)
    try root.add(0x1000...0x1fff)
    let child = bed.fixture.arena("child", quantum: 16, source: .arena(root))
    let impossible = [
      ArenaConstraints(maximum: ArenaAddress(0xfff)), ArenaConstraints(minimum: ArenaAddress(0x1ff1)),
      ArenaConstraints(alignment: Alignment(0x2000)!),
    ]
    for arena in [root, child] {
      XCTAssertVmem(.noSpace) { () throws(VmemError) in try arena.alloc(ArenaSize(0x1001), until: .never) }
      for constraints in impossible {
        XCTAssertVmem(.noSpace) { () throws(VmemError) in
          try arena.xalloc(ArenaSize(16), constraints, until: .never)
        }
      }
      XCTAssertEqual(arena.figures.waits, 0)
    }
    let all = root.alloc(0x1000)!
    bed.run([Self.wait(child, 0x1000)]) { root.free(all, 0x1000) }
    XCTAssertEqual(bed.places, [0: 0x1000])
    bed.close()
  }
}

extension Arena {
  /// Waiters in the arena's list.
  var waiting: UInt64 { state.core.withLock { $0.waiters.count } }
}
