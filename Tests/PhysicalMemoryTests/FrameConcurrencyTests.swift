// Bugs of callers, requests made to fail, threads and interrupts.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class FrameConcurrencyTests: XCTestCase {
  func testTwoThreadsKeepTheirFrames() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 12000)], processors: 2)
    let before = FrameSnapshot(system.memory)
    let memory = system.memory!
    let number = historySeed(5)
    system.host.onThreads(2) { hammer(memory, number &+ UInt64($0), 20_000, .normal) }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testInterruptsAllocateAndFree() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 4000)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    var held: [FrameNumber] = []
    system.host.withInterrupts(seed: historySeed(9), oneIn: 5) {
      if held.count > 40 {
        memory.free(held.removeLast(), BlockOrder(0))
        memory.free(held.removeFirst(), BlockOrder(0))
      } else if let frame = try? memory.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
        held.append(frame)
      }
    } _: {
      hammer(memory, 17, 20_000, .normal)
    }
    for frame in held { memory.free(frame, BlockOrder(0)) }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testWaitersAreServedByAnotherThread() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)], processors: 2)
    system.host.hasOtherThreads = true
    let memory = system.memory!
    var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    nonisolated(unsafe) var taken = frames
    nonisolated(unsafe) var granted: [FrameNumber] = []
    system.host.onThreads(2) { index in
      if index == 0 {
        for _ in 0..<50 {
          granted.append(
            try! memory.allocate(BlockOrder(0), role: .kmem, priority: .normal, waitUntil: .never))
        }
      } else {
        for _ in 0..<50 {
          memory.free(taken.removeLast(), BlockOrder(0))
          usleep(50)
        }
      }
    }
    XCTAssertEqual(granted.count, 50)
    system.check()
    for frame in granted + taken { memory.free(frame, BlockOrder(0)) }
    system.check()
    XCTAssertTrue(memory.domain.quiet.pointee.waiters[0].isEmpty)
  }

  func testAWaitEndsAtTheDeadlineOrWhenNoThreadCouldWakeIt() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    while (try? memory.allocate(BlockOrder(0), role: .wired)) != nil {}
    let before = FrameSnapshot(memory)
    XCTAssertThrowsError(
      try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(FrameSnapshot(memory), before)
    while (try? memory.allocate(BlockOrder(0), role: .wired, priority: .interrupt)) != nil {}
    XCTAssertThrowsError(
      try memory.allocate(BlockOrder(0), role: .wired, priority: .interrupt, waitUntil: .never))
    XCTAssertEqual(memory.freeCount, .zero)
    // Devices that free something wake the sleeper.
    nonisolated(unsafe) var rounds = 0
    let shared = memory
    system.host.runDevices = {
      rounds += 1
      if rounds == 3 {
        for frame in 256..<400 where shared.whatIs(FrameNumber(UInt32(frame))).role == .wired {
          shared.free(FrameNumber(UInt32(frame)), BlockOrder(0))
        }
      }
      return rounds < 5
    }
    XCTAssertNoThrow(try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(rounds, 3)
    system.check()
  }

  func testALoweredReserveServesAThreadThatWaits() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    while (try? memory.allocate(BlockOrder(0), role: .wired)) != nil {}
    nonisolated(unsafe) var rounds = 0
    system.host.runDevices = {
      rounds += 1
      if rounds == 1 { try! memory.setReserve(.zero, for: .normal) }
      return rounds < 5
    }
    XCTAssertNoThrow(try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(rounds, 1)
    system.check()
  }

  func testADeadlinePassesWhileDevicesRun() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    while (try? memory.allocate(BlockOrder(0), role: .wired)) != nil {}
    let before = FrameSnapshot(memory)
    let host = system.host
    nonisolated(unsafe) var rounds = 0
    host.runDevices = {
      rounds += 1
      host.advance()
      return rounds < 100
    }
    XCTAssertThrowsError(
      try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: Tick(10)))
    XCTAssertEqual(rounds, 10)
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testNewRequestsDoNotOvertakeAThreadThatWaits() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    let shared = memory
    nonisolated(unsafe) var rest = frames
    nonisolated(unsafe) var refused = 0
    system.host.runDevices = {
      shared.free(rest.removeLast(), BlockOrder(0))
      // A thread waits for four: no other normal request is served, a system one is.
      if (try? shared.allocate(BlockOrder(0), role: .slab)) == nil { refused += 1 }
      return true
    }
    _ = try memory.allocate(BlockOrder(2), role: .wired, priority: .normal, waitUntil: .never)
    XCTAssertEqual(refused, 4)
    XCTAssertNotNil(try? memory.allocate(BlockOrder(0), role: .slab, priority: .system))
    system.check()
  }

  func testAWaiterThatCannotBeServedIsParkedForAWhile() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    nonisolated(unsafe) var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    for _ in 0..<10 { memory.free(frames.removeLast(), BlockOrder(0)) }
    nonisolated(unsafe) var pages: [FrameNumber] = []
    @Sendable func isServed() -> Bool {
      var page = FrameNumber.none
      let count = withUnsafeMutablePointer(to: &page) {
        memory.allocate(pages: UnsafeMutableBufferPointer(start: $0, count: 1))
      }
      if count == 1 { pages.append(page) }
      return count == 1
    }
    let order = BlockOrder(6)
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
        for frame in frames { memory.free(frame, BlockOrder(0)) }
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

  /// A parked waiter need not be served: its deadline passes.
  func testAParkedWaiterLeavesAtItsDeadline() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    while (try? memory.allocate(BlockOrder(0), role: .wired)) != nil {}
    let host = system.host
    system.host.runDevices = {
      memory.parkUnservableWaiters()
      XCTAssertTrue(memory.hasParkedWaiters)
      host.advance()
      return true
    }
    XCTAssertThrowsError(
      try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: Tick(10)))
    XCTAssertFalse(memory.hasParkedWaiters)
    XCTAssertEqual(memory.awaited, .zero)
    system.check()
  }
}
