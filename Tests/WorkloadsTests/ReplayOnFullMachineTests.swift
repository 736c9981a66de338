import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import TestSupport
import XCTest

@testable import Workloads

/// The recorded kernel on a machine whose memory is full of dirty pages.
final class ReplayOnFullMachineTests: XCTestCase {
  /// Pages that are in the way are laundered, no object and no single page that may wait is refused, and nothing is damaged.
  func testTheSampleReplaysOnAMachineFullOfDirtyPages() throws {
    let system = try TestSystem(frames: 16_200, swap: 40_000)
    let all = system.physical.freeCount
    let fill = try DirtyPages.fill(
      PageCount(all.rawValue * 102 / 100), seed: 1, on: system.memory, system.processor)
    let written = system.paging.swap.figures.writes
    let summary = try system.replay(WrittenTrace.sample())
    XCTAssertEqual(summary.refusedWaiting, 0, summary.text)
    // Blocks of 512 frames, where each block of memory has a page of the trace.
    XCTAssertLessThanOrEqual(summary.refusedWaitingBlocks, 2, summary.text)
    XCTAssertEqual(summary.damaged, 0, summary.text)
    XCTAssertTrue(summary.succeeded, summary.text)
    XCTAssertGreaterThan(system.paging.swap.figures.writes - written, 5000, "the machine was not full")
    let verdict = fill.verify(system.processor)
    XCTAssertEqual(verdict.intact, fill.filled.rawValue)
    XCTAssertEqual(verdict.broken, 0)
    fill.release(system.memory)
    XCTAssertNil(system.memory.checkInvariants())
  }

  /// Without a slot of swap, the same machine is too small, and says so beforehand.
  func testWithoutSwapTheMachineIsTooSmall() throws {
    let system = try TestSystem(frames: 16_200, swap: 40_000, attaches: false)
    let fill = try DirtyPages.fill(
      PageCount(system.physical.freeCount.rawValue * 8 / 10), seed: 1, on: system.memory, system.processor)
    XCTAssertThrowsError(try system.replay(WrittenTrace.sample())) {
      guard case .machineTooSmall = $0 as? ReplayError else { return XCTFail("\($0)") }
    }
    fill.release(system.memory)
    XCTAssertNil(system.memory.checkInvariants())
  }
}
