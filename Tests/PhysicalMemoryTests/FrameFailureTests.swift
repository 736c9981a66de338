import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class FrameFailureTests: XCTestCase {
  func testEachPointFailsWithoutAChange() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2000)])
    let memory = system.memory!
    let operations: [(String, () throws -> Void)] = [
      ("order", { _ = try memory.allocate(BlockOrder(2), role: .wired) }),
      (
        "order, waiting",
        { _ = try memory.allocate(BlockOrder(2), role: .wired, priority: .normal, waitUntil: .never) }
      ),
      ("run", { _ = try memory.allocate(run: PageCount(UInt64(30)), role: .wired) }),
      ("given frame", { try memory.allocate(frame: FrameNumber(700), role: .wired) }),
      (
        "source",
        { if memory.frameSource(role: .pageTable).allocate() == nil { throw PhysicalMemoryError.noMemory } }
      ),
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
      let before = FrameSnapshot(memory)
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
        XCTAssertEqual(FrameSnapshot(memory), before, name)
      }
    }
    print("PhysicalMemory: \(points) allocation points made to fail")
    XCTAssertGreaterThanOrEqual(points, 5)
  }

  func testARefusalOfAnySizeIsCounted() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2000)], opens: false)
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
      try memory.allocate(BlockOrder(11), role: .wired, priority: .interrupt, waitUntil: .never))
    var reasons: [String] = []
    log.forEach { reasons.append($0.reason.description) }
    XCTAssertEqual(reasons, ["shortage", "shortage", "never"])
  }

  func testImpossibleRequestsAreRefused() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2000)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
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
    XCTAssertThrowsError(try memory.allocate(BlockOrder(19), role: .wired)) {
      XCTAssertEqual($0 as? PhysicalMemoryError, .badConstraint)
    }
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  /// The layer that makes a request logs its refusal, whatever the role of the frames is.
  func testARefusalIsLoggedUnlessTheRequesterLogsIt() throws {
    let system = try TestSystem()
    let (physical, log) = (system.physical, system.memory.failures)
    let before = log.count
    let tooMany = physical.total
    for role in [FrameRole.wired, .slab] {
      XCTAssertThrowsError(try physical.allocateUnlogged(BlockOrder(18), role: role))
      XCTAssertThrowsError(try physical.allocateUnlogged(run: tooMany, role: role))
      XCTAssertThrowsError(try physical.allocateUnlogged(run: .zero, role: role))
    }
    XCTAssertEqual(log.count, before)
    XCTAssertThrowsError(try physical.allocate(BlockOrder(18), role: .slab))
    XCTAssertThrowsError(try physical.allocate(run: tooMany, role: .slab))
    XCTAssertThrowsError(try physical.allocate(run: .zero, role: .slab))
    XCTAssertThrowsError(try physical.allocate(frame: FrameNumber(UInt32.max - 1), role: .slab))
    XCTAssertEqual(log.count, before + 4)
  }
}
