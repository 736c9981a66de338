// Each invariant of FrameAllocator.swift is broken in turn, and the check answers with its number.

import MemoryPrimitives
import Synchronization
import TestSupport
import XCTest

@testable import PhysicalMemory

final class FrameInvariantTests: XCTestCase {
  private var system: FrameAllocatorFixture!
  private var memory: FrameAllocator { system.memory }
  private var table: FrameTable { memory.table }
  private var domain: UnsafeMutablePointer<FrameDomain> { memory.domain.quiet }

  override func setUpWithError() throws { system = try FrameAllocatorFixture(frames: [(0, 8192)]) }

  /// Breaks an invariant, expects its number, and repairs it.
  private func breaks(
    _ number: Int, _ damage: () -> Void, _ repair: () -> Void, line: UInt = #line
  ) {
    XCTAssertNil(memory.checkInvariants(), line: line)
    damage()
    let broken = memory.checkInvariants().map { "\($0)" }
    XCTAssertTrue(broken?.hasPrefix("PM-\(number): ") ?? false, broken ?? "nothing is broken", line: line)
    repair()
    XCTAssertNil(memory.checkInvariants(), line: line)
  }

  /// A frame in the middle of a large free block: its buddy is free afterwards, and a block of two frames follows.
  private func allocatedFrame() throws -> UInt32 {
    while true {
      let frame = try memory.allocate(BlockOrder(0), role: .wired).rawValue
      let pairs = domain.pointee.queue(RangeList.of(frame), 1).pointee.count
      if table.record(frame ^ 1).role == .free && pairs == 1 { return frame }
    }
  }

  func testQueuesLinksCountsAndMasksAgree() throws {
    let frame = try allocatedFrame()
    let list = RangeList.of(frame)
    let queue = domain.pointee.queue(list, 1)
    breaks(1, { queue.pointee.count += 1 }, { queue.pointee.count -= 1 })
    breaks(1, { domain.pointee.masks[list] ^= 2 }, { domain.pointee.masks[list] ^= 2 })
    let head = table.record(queue.pointee.first)
    breaks(1, { head.previous = FrameNumber(frame) }, { head.previous = .none })
    breaks(1, { head.role = .wired }, { head.role = .free })
  }

  func testAFrameIsFreeExactlyInsideAFreeBlock() throws {
    let frame = try allocatedFrame()
    let record = table.record(frame)
    breaks(2, { record.role = .free }, { record.role = .wired })
    // The second frame of a free block of two.
    let list = RangeList.of(try allocatedFrame())
    let other = table.record(domain.pointee.queue(list, 1).pointee.first + 1)
    breaks(2, { other.role = .wired }, { other.role = .free })
  }

  func testTwoFreeBuddiesAreOneBlock() throws {
    let list = RangeList.of(try allocatedFrame())
    let frame = domain.pointee.queue(list, 1).pointee.first
    breaks(
      3,
      {
        domain.pointee.unlink(frame, 1)
        domain.pointee.push(frame, 0, .back)
        domain.pointee.push(frame + 1, 0, .back)
      },
      {
        domain.pointee.unlink(frame, 0)
        domain.pointee.unlink(frame + 1, 0)
        domain.pointee.push(frame, 1, .back)
      })
  }

  func testAPageblockCountsItsFrames() throws {
    let pageblock = table.pageblock(try allocatedFrame())
    breaks(4, { pageblock.movable += 1 }, { pageblock.movable -= 1 })
    breaks(4, { pageblock.unmovable -= 1 }, { pageblock.unmovable += 1 })
    breaks(
      4, { pageblock.dirty.pointee.add(1, ordering: .relaxed) },
      { pageblock.dirty.pointee.subtract(1, ordering: .relaxed) })
    let orders = pageblock.orders
    breaks(4, { pageblock.orders = 0 }, { pageblock.orders = orders })
  }

  func testASectionCountsItsFreeFrames() {
    let section = table.entry(0)
    breaks(5, { section.free += 1 }, { section.free -= 1 })
  }

  func testRolesAddUpToTheMap() {
    breaks(6, { table.add(1, to: .wired) }, { table.subtract(1, from: .wired) })
    breaks(6, { table.add(1, to: .free) }, { table.subtract(1, from: .free) })
  }

  func testFreeFramesAreIdleAndAllocatedOnesWired() throws {
    let frame = try allocatedFrame()
    let record = table.record(frame)
    breaks(7, { record.busyWord = .none }, { record.busyWord = .wiredOnce })
    breaks(7, { record.setMobility(.unmovable) }, { record.setMobility(.movable) })
    let free = table.record(frame ^ 1)
    XCTAssertEqual(free.role, .free)
    breaks(7, { free.busyWord = .wiredOnce }, { free.busyWord = .none })
  }

  func testCachedPagesAreCountedAndOtherFreeFramesHaveNoFlags() throws {
    let free = table.record(try allocatedFrame() ^ 1)
    breaks(8, { free.pageFlags = .dirty }, { free.pageFlags = [] })
    breaks(8, { free.pageFlags = .cached }, { free.pageFlags = [] })
    breaks(
      8, { table.cached.pointee.add(1, ordering: .relaxed) },
      { table.cached.pointee.subtract(1, ordering: .relaxed) })
  }

  func testAnIsolationCountsItsCapturedFrames() throws {
    let record = table.record(try allocatedFrame())
    record.role = .contiguous
    table.subtract(1, from: .wired)
    table.add(1, to: .contiguous)
    breaks(9, { record.busyWord = .captured }, { record.busyWord = .wiredOnce })
    let run = FrameRun(first: FrameNumber(512), count: PageCount(512))
    let isolation = try memory.isolate(run, priority: .normal)
    let slot = isolation.slot
    breaks(
      9, { domain.pointee.isolations[slot].captured += 1 },
      { domain.pointee.isolations[slot].captured -= 1 })
    breaks(9, { domain.pointee.watchers += 1 }, { domain.pointee.watchers -= 1 })
    memory.abandon(isolation)
  }
}
