// Bugs of callers, requests made to fail, threads and interrupts.

import HostMachine
import MemoryPrimitives
import Workloads
import XCTest

@testable import PhysicalMemory

final class FaultTests: XCTestCase {
  /// Frees `run` and checks that it is reported as `kind` and changes nothing.
  func assertFault(
    _ system: System, _ kind: FaultKind, _ first: UInt32, _ count: UInt64 = 1, line: UInt = #line
  ) {
    let before = Snapshot(system.memory)
    let faults = system.host.faults {
      system.memory.free(FrameRun(first: FrameNumber(first), count: PageCount(count)))
    }
    XCTAssertEqual(faults.map(\.kind), [kind], line: line)
    XCTAssertEqual(Snapshot(system.memory), before, line: line)
    system.check(#filePath, line)
  }

  func testEveryWrongFree() throws {
    let system = try System(
      frames: [(0, 159), (256, 4000)],
      occupied: [(256, 100, .image), (400, 5, .boot), (1024, 512, .image), (2048, 512, .bootModule)])
    let memory = system.memory!
    let frame = try memory.allocate(Order(3), role: .slab).rawValue
    assertFault(system, .wrongSize, frame, 0)
    assertFault(system, .foreignPointer, 200)
    assertFault(system, .foreignPointer, 5000)
    assertFault(system, .foreignPointer, 3 << 20)
    assertFault(system, .foreignPointer, frame, UInt64(UInt32.max))
    assertFault(system, .notAllocated, 256)
    assertFault(system, .notAllocated, 402)
    assertFault(system, .notAllocated, 1030)
    assertFault(system, .notAllocated, memory.recordsRun.first.rawValue)
    assertFault(system, .doubleFree, frame, 9)
    assertFault(system, .doubleFree, 3000)
    memory.record(FrameNumber(frame + 3))!.busyWord = BusyWord(rawValue: 2)
    assertFault(system, .notAllocated, frame, 8)
    memory.record(FrameNumber(frame + 3))!.busyWord = .wiredOnce
    let faults = system.host.faults { memory.free(FrameNumber(frame), Order(19)) }
    XCTAssertEqual(faults.map(\.kind), [.wrongSize])
    memory.free(FrameNumber(frame), Order(3))
    assertFault(system, .doubleFree, frame)
    // A module can be given back, in parts.
    memory.free(FrameRun(first: FrameNumber(2100), count: PageCount(UInt64(60))))
    system.check()
    assertFault(system, .doubleFree, 2048, 512)
    memory.free(FrameRun(first: FrameNumber(2048), count: PageCount(UInt64(52))))
    system.check()
  }

  func testRaceOfTwoFreesIsReportedOnce() throws {
    let system = try System(frames: [(256, 2000)], processors: 2)
    let memory = system.memory!
    let before = memory.freeCount
    let rounds = 2000
    nonisolated(unsafe) let shared = memory
    let faults = system.host.faults {
      for _ in 0..<rounds / 100 {
        let frames = (0..<100).map { _ in try! memory.allocate(Order(0), role: .wired) }
        system.host.onThreads(2) { _ in for frame in frames { shared.free(frame, Order(0)) } }
      }
    }
    XCTAssertEqual(faults.count, rounds)
    XCTAssertTrue(faults.allSatisfy { $0.kind == .doubleFree })
    XCTAssertEqual(memory.freeCount, before)
    system.check()
  }
}

final class FailureTests: XCTestCase {
  func testEachPointFailsWithoutAChange() throws {
    let system = try System(frames: [(256, 2000)])
    let memory = system.memory!
    let operations: [(String, () throws -> Void)] = [
      ("order", { _ = try memory.allocate(Order(2), role: .wired) }),
      (
        "order, waiting",
        { _ = try memory.allocate(Order(2), role: .wired, priority: .normal, waitUntil: .never) }
      ),
      ("run", { _ = try memory.allocate(run: PageCount(UInt64(30)), role: .wired) }),
      ("given frame", { try memory.allocate(frame: FrameNumber(700), role: .wired) }),
      ("source", { if memory.frameSource.take() == nil { throw PhysicalMemoryError.noMemory } }),
      (
        "single frames",
        {
          var frames = [FrameNumber](repeating: .none, count: 10)
          try frames.withUnsafeMutableBufferPointer { try memory.allocate(into: $0, role: .wired) }
        }
      ),
    ]
    var points = 0
    for (name, operation) in operations {
      let before = Snapshot(memory)
      for point in 0..<100 {
        system.host.failures.pointee.countdown = Int64(point)
        system.host.failures.pointee.hasFailed = false
        let failed: Bool
        do {
          try operation()
          failed = false
        } catch {
          XCTAssertEqual(error as? PhysicalMemoryError, .noMemory, name)
          failed = true
        }
        let wasReached = system.host.failures.pointee.hasFailed
        system.host.failures.pointee.countdown = -1
        system.check()
        // A waiting request may try again and be granted.
        if !wasReached || !failed { break }
        points += 1
        XCTAssertEqual(Snapshot(memory), before, name)
      }
    }
    print("PhysicalMemory: \(points) allocation points made to fail")
    XCTAssertGreaterThanOrEqual(points, 5)
  }

  func testARefusalOfAnySizeIsNoted() throws {
    let system = try System(frames: [(256, 2000)], opens: false)
    let storage = UnsafeMutableRawPointer.allocate(
      byteCount: Int(FailureLog.size.rawValue), alignment: 64)
    defer { storage.deallocate() }
    let log = FailureLog(storage)
    let memory = try FrameAllocator.create(
      machine: system.host.machine.logging(to: log), map: system.map, early: system.early)
    for count in [UInt64.max, 3000] {
      XCTAssertThrowsError(try memory.allocate(run: PageCount(count), role: .wired))
    }
    XCTAssertThrowsError(
      try memory.allocate(Order(11), role: .wired, priority: .interrupt, waitUntil: .never))
    var reasons: [String] = []
    log.forEach { reasons.append($0.reason.description) }
    XCTAssertEqual(reasons, ["shortage", "shortage", "never"])
  }

  func testImpossibleRequests() throws {
    let system = try System(frames: [(256, 2000)])
    let memory = system.memory!
    let before = Snapshot(memory)
    func refuse(_ error: PhysicalMemoryError, _ count: UInt64, _ where: RunConstraints, line: UInt = #line) {
      XCTAssertThrowsError(
        try memory.allocate(run: PageCount(count), where: `where`, role: .wired), line: line
      ) {
        XCTAssertEqual($0 as? PhysicalMemoryError, error, line: line)
      }
    }
    refuse(.badConstraint, 0, RunConstraints())
    refuse(.badConstraint, 17, RunConstraints(boundary: Alignment(65536)!))
    refuse(.badConstraint, 1, RunConstraints(boundary: Alignment(2048)!))
    refuse(.badConstraint, 2, RunConstraints(low: PhysicalAddress(4096), high: PhysicalAddress(8192)))
    refuse(.badConstraint, 1, RunConstraints(low: PhysicalAddress(8192), high: PhysicalAddress(8192)))
    refuse(.badConstraint, 1, RunConstraints(low: PhysicalAddress(4096), alignment: Alignment(1 << 50)!))
    refuse(.badConstraint, UInt64.max, RunConstraints())
    refuse(.noMemory, 1, RunConstraints(high: PhysicalAddress(1 << 20)))
    refuse(.noMemory, 3000, RunConstraints())
    XCTAssertThrowsError(try memory.allocate(Order(19), role: .wired)) {
      XCTAssertEqual($0 as? PhysicalMemoryError, .badConstraint)
    }
    guard case .never = memory.candidate(run: PageCount(UInt64(3000))) else { return XCTFail("found") }
    XCTAssertEqual(Snapshot(memory), before)
  }
}

/// Random requests; each frame is stamped when taken and checked when freed.
func hammer(_ memory: FrameAllocator, _ seed: UInt64, _ operations: Int, _ priority: AllocationPriority) {
  var random = SeededRandom(seed: seed)
  var given: [FrameRun] = []
  let map = memory.machine.directMap
  func drop(_ run: FrameRun) {
    for i in 0..<run.count.rawValue {
      let frame = run.first + PageCount(i)
      let word = map.pointer(to: frame).load(as: UInt64.self)
      if word != UInt64(frame.rawValue) ^ seed { XCTFail("a frame was given to two") }
    }
    memory.free(run)
  }
  for _ in 0..<operations {
    if random.oneIn(2) || given.isEmpty {
      let run: FrameRun?
      if random.oneIn(4) {
        run = try? memory.allocate(
          run: PageCount(1 + random.below(random.oneIn(10) ? 1500 : 20)),
          where: RunConstraints(alignment: Alignment(4096 << random.below(4))!), role: .contiguous,
          priority: priority)
      } else {
        let order = Order(UInt8(random.below(random.oneIn(10) ? 11 : 3)))
        run = (try? memory.allocate(order, role: .slab, priority: priority)).map {
          FrameRun(first: $0, count: order.frames)
        }
      }
      guard let run else { continue }
      for i in 0..<run.count.rawValue {
        let frame = run.first + PageCount(i)
        map.pointer(to: frame).storeBytes(of: UInt64(frame.rawValue) ^ seed, as: UInt64.self)
      }
      given.append(run)
    } else {
      let k = Int(random.below(UInt64(given.count)))
      drop(given[k])
      given[k] = given[given.count - 1]
      given.removeLast()
    }
  }
  for run in given { drop(run) }
}

final class ConcurrencyTests: XCTestCase {
  func testTwoThreads() throws {
    let system = try System(frames: [(256, 12000)], processors: 2)
    let before = Snapshot(system.memory)
    nonisolated(unsafe) let memory = system.memory!
    let number = historySeed(5)
    system.host.onThreads(2) { hammer(memory, number &+ UInt64($0), 20_000, .normal) }
    system.check()
    XCTAssertEqual(Snapshot(memory), before)
  }

  func testInterrupts() throws {
    let system = try System(frames: [(256, 4000)])
    let memory = system.memory!
    let before = Snapshot(memory)
    var held: [FrameNumber] = []
    system.host.withInterrupts(seed: historySeed(9), oneIn: 5) {
      if held.count > 40 {
        memory.free(held.removeLast(), Order(0))
        memory.free(held.removeFirst(), Order(0))
      } else if let frame = try? memory.allocate(Order(0), role: .wired, priority: .interrupt) {
        held.append(frame)
      }
    } _: {
      hammer(memory, 17, 20_000, .normal)
    }
    for frame in held { memory.free(frame, Order(0)) }
    system.check()
    XCTAssertEqual(Snapshot(memory), before)
  }

  func testWaitersAreServedByAnotherThread() throws {
    let system = try System(frames: [(256, 600)], processors: 2)
    system.host.hasOtherThreads = true
    nonisolated(unsafe) let memory = system.memory!
    var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(Order(0), role: .wired) { frames.append(frame) }
    nonisolated(unsafe) var taken = frames
    nonisolated(unsafe) var granted: [FrameNumber] = []
    system.host.onThreads(2) { index in
      if index == 0 {
        for _ in 0..<50 {
          granted.append(
            try! memory.allocate(Order(0), role: .kmem, priority: .normal, waitUntil: .never))
        }
      } else {
        for _ in 0..<50 {
          memory.free(taken.removeLast(), Order(0))
          usleep(50)
        }
      }
    }
    XCTAssertEqual(granted.count, 50)
    system.check()
    for frame in granted + taken { memory.free(frame, Order(0)) }
    system.check()
    XCTAssertNil(memory.core.pointee.firstWaiter[0])
  }

  func testWaitingEndsAtTheDeadlineOrWhenNobodyCouldWake() throws {
    let system = try System(frames: [(256, 600)])
    let memory = system.memory!
    while (try? memory.allocate(Order(0), role: .wired)) != nil {}
    let before = Snapshot(memory)
    XCTAssertThrowsError(
      try memory.allocate(Order(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(Snapshot(memory), before)
    while (try? memory.allocate(Order(0), role: .wired, priority: .interrupt)) != nil {}
    XCTAssertThrowsError(
      try memory.allocate(Order(0), role: .wired, priority: .interrupt, waitUntil: .never))
    XCTAssertEqual(memory.freeCount, .zero)
    // Devices that free something wake the sleeper.
    nonisolated(unsafe) var rounds = 0
    nonisolated(unsafe) let shared = memory
    system.host.runDevices = {
      rounds += 1
      if rounds == 3 {
        for frame in 256..<400 where shared.whatIs(FrameNumber(UInt32(frame))).role == .wired {
          shared.free(FrameNumber(UInt32(frame)), Order(0))
        }
      }
      return rounds < 5
    }
    XCTAssertNoThrow(try memory.allocate(Order(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(rounds, 3)
    system.check()
  }

  func testALoweredReserveServesWhoWaits() throws {
    let system = try System(frames: [(256, 600)])
    nonisolated(unsafe) let memory = system.memory!
    while (try? memory.allocate(Order(0), role: .wired)) != nil {}
    nonisolated(unsafe) var rounds = 0
    system.host.runDevices = {
      rounds += 1
      if rounds == 1 { try! memory.setReserve(.zero, for: .normal) }
      return rounds < 5
    }
    XCTAssertNoThrow(try memory.allocate(Order(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(rounds, 1)
    system.check()
  }

  func testADeadlinePassesWhileDevicesRun() throws {
    let system = try System(frames: [(256, 600)])
    let memory = system.memory!
    while (try? memory.allocate(Order(0), role: .wired)) != nil {}
    let before = Snapshot(memory)
    let host = system.host
    nonisolated(unsafe) var rounds = 0
    host.runDevices = {
      rounds += 1
      host.advance()
      return rounds < 100
    }
    XCTAssertThrowsError(
      try memory.allocate(Order(0), role: .wired, priority: .normal, waitUntil: Tick(10)))
    XCTAssertEqual(rounds, 10)
    XCTAssertEqual(Snapshot(memory), before)
  }

  func testNewcomersDoNotOvertakeWhoWaits() throws {
    let system = try System(frames: [(256, 600)])
    let memory = system.memory!
    var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(Order(0), role: .wired) { frames.append(frame) }
    nonisolated(unsafe) let shared = memory
    nonisolated(unsafe) var rest = frames
    nonisolated(unsafe) var refused = 0
    system.host.runDevices = {
      shared.free(rest.removeLast(), Order(0))
      // Somebody waits for four: no other normal request is served, a system one is.
      if (try? shared.allocate(Order(0), role: .slab)) == nil { refused += 1 }
      return true
    }
    _ = try memory.allocate(Order(2), role: .wired, priority: .normal, waitUntil: .never)
    XCTAssertEqual(refused, 4)
    XCTAssertNotNil(try? memory.allocate(Order(0), role: .slab, priority: .system))
    system.check()
  }

  func testWhoCantBeServedStandsAsideForAWhile() throws {
    let system = try System(frames: [(256, 600)])
    nonisolated(unsafe) let memory = system.memory!
    nonisolated(unsafe) var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(Order(0), role: .wired) { frames.append(frame) }
    for _ in 0..<10 { memory.free(frames.removeLast(), Order(0)) }
    nonisolated(unsafe) var pages: [FrameNumber] = []
    @Sendable func isServed() -> Bool {
      var page = FrameNumber.none
      let count = withUnsafeMutablePointer(to: &page) {
        memory.allocate(pages: UnsafeMutableBufferPointer(start: $0, count: 1))
      }
      if count == 1 { pages.append(page) }
      return count == 1
    }
    let order = Order(6)
    nonisolated(unsafe) var rounds = 0
    system.host.runDevices = {
      rounds += 1
      switch rounds {
      case 1:
        XCTAssertFalse(isServed())
        XCTAssertEqual(memory.awaited, order.frames + memory.reserve(for: .normal))
        memory.parkUnservableWaiters()
        XCTAssertTrue(isServed())
        XCTAssertEqual(memory.awaited, .zero)
        XCTAssertTrue(memory.hasParkedWaiters)
      case 2:
        memory.unparkWaiters()
        XCTAssertFalse(isServed())
        XCTAssertFalse(memory.hasParkedWaiters)
        XCTAssertGreaterThan(memory.awaited, order.frames)
        memory.parkUnservableWaiters()
        XCTAssertTrue(isServed())
      case 3:
        for frame in frames { memory.free(frame, Order(0)) }
      default: return false
      }
      return true
    }
    XCTAssertNoThrow(try memory.allocate(order, role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(rounds, 3)
    XCTAssertFalse(memory.hasParkedWaiters)
    for page in pages { memory.free(page: page, .dropped) }
    system.check()
  }

  /// Who stands aside need not be served: its deadline passes.
  func testWhoStandsAsideLeavesWhenItsTimeIsUp() throws {
    let system = try System(frames: [(256, 600)])
    nonisolated(unsafe) let memory = system.memory!
    while (try? memory.allocate(Order(0), role: .wired)) != nil {}
    let host = system.host
    system.host.runDevices = {
      memory.parkUnservableWaiters()
      XCTAssertTrue(memory.hasParkedWaiters)
      host.advance()
      return true
    }
    XCTAssertThrowsError(
      try memory.allocate(Order(0), role: .wired, priority: .normal, waitUntil: Tick(10)))
    XCTAssertFalse(memory.hasParkedWaiters)
    XCTAssertEqual(memory.awaited, .zero)
    system.check()
  }
}
