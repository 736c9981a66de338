import HostMachine
import MemoryPrimitives
import TestSupport
import XCTest

@testable import PhysicalMemory

/// The notification that few frames are free, which is raised before a request must be refused.
final class LowMemoryNotificationTests: XCTestCase {
  func testTheNotificationIsRaisedBelowTheMarkUntilItIsAcknowledged() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 256)])
    let physical = system.memory!
    func isRaised() -> Bool { physical.state.pointee.lowMemory.isRaised.load(ordering: .relaxed) }
    _ = try physical.allocate(BlockOrder(2), role: .wired)
    XCTAssertFalse(isRaised(), "no listener")
    let mark = physical.freeCount - PageCount(UInt64(4))
    physical.setLowMemoryMark(below: mark)
    _ = try physical.allocate(BlockOrder(2), role: .wired)
    XCTAssertEqual(physical.freeCount, mark)
    XCTAssertFalse(isRaised())
    let frame = try physical.allocate(BlockOrder(0), role: .wired)
    XCTAssertTrue(isRaised())
    physical.awaitLowMemory(.few)
    XCTAssertFalse(isRaised())
    physical.free(frame, BlockOrder(0))
    XCTAssertFalse(isRaised())
    // The allocation of a page raises it, too, and that of a second one leaves it raised.
    var page = FrameNumber.none
    for _ in 0..<2 {
      XCTAssertEqual(
        withUnsafeMutablePointer(to: &page) {
          physical.allocate(pages: UnsafeMutableBufferPointer(start: $0, count: 1))
        }, 1)
      XCTAssertTrue(isRaised())
    }
    physical.awaitLowMemory(.few)
    physical.setLowMemoryMark(below: .zero)
    _ = try physical.allocate(BlockOrder(0), role: .wired)
    XCTAssertFalse(isRaised())
  }

  func testAThreadThatBeginsToWaitSendsTheUrgentNotification() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 256)])
    while (try? system.memory.allocate(BlockOrder(0), role: .wired)) != nil {}
    XCTAssertThrowsError(
      try system.memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertTrue(system.memory.state.pointee.lowMemory.isUrgent.load(ordering: .relaxed))
    XCTAssertFalse(system.memory.state.pointee.lowMemory.isRaised.load(ordering: .relaxed))
  }

  /// The page daemon could free pages for it for ever.
  func testARequestForMoreThanThereIsDoesNotWait() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 256)])
    XCTAssertThrowsError(
      try system.memory.allocate(BlockOrder(9), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(system.memory.state.pointee.events.pointee.waits.value, 0)
    XCTAssertFalse(system.memory.state.pointee.lowMemory.isUrgent.load(ordering: .relaxed))
  }
}
