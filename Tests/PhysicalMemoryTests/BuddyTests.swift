import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class BuddyTests: XCTestCase {
  func testTheAllocatorOpensWithEveryUnoccupiedFrameFree() throws {
    let system = try FrameAllocatorFixture(
      frames: [(0, 159), (256, 65248)],
      occupied: [(256, 342, .image), (700, 870, .bootModule), (50000, 2, .boot)])
    let memory = system.memory!
    system.check()
    XCTAssertEqual(memory.total.rawValue, 65407)
    XCTAssertEqual(memory.count(.image).rawValue, 342)
    XCTAssertEqual(memory.count(.bootModule).rawValue, 870)
    XCTAssertEqual(memory.count(.boot).rawValue, 2)
    XCTAssertEqual(memory.count(.records), memory.recordsRun.count)
    XCTAssertLessThanOrEqual(memory.recordsRun.count.rawValue, 512 + 3)
    XCTAssertEqual(memory.recordsRun.end.rawValue, 65504)
    XCTAssertEqual(memory.whatIs(FrameNumber(256)).role, .image)
    XCTAssertEqual(memory.whatIs(FrameNumber(200)).role, .absent)
    XCTAssertEqual(memory.whatIs(FrameNumber(65503)).role, .records)
  }

  func testFreeCoalescesWithBothNeighbours() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 1024)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    let block = try memory.allocate(BlockOrder(2), role: .wired)
    for i: UInt32 in [1, 3, 0, 2] {
      memory.free(FrameRun(first: FrameNumber(block.rawValue + i), count: .one))
      system.check()
    }
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testAllOrdersSplitAndComeBack() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 3 << 18)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    var given: [(FrameNumber, BlockOrder)] = []
    for order: UInt8 in [0, 9, 18, 3, 10, 17, 1, 12, 8, 0] {
      let frame = try memory.allocate(BlockOrder(order), role: .kmem)
      XCTAssertEqual(frame.rawValue & (1 << UInt32(order) - 1), 0)
      given.append((frame, BlockOrder(order)))
    }
    system.check()
    for (frame, order) in given { memory.free(frame, order) }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testARunIsAllocatedInsideABlockAndAcrossBlocks() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 4096)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    let run = try memory.allocate(
      run: PageCount(UInt64(700)), where: RunConstraints(alignment: Alignment(4096 * 64)!), role: .contiguous)
    XCTAssertEqual(run.first.rawValue % 64, 0)
    system.check()
    memory.free(run)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testAReserveIsLeftToHigherPriorities() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 1024)])
    let memory = system.memory!
    var frames: [FrameNumber] = []
    for priority in [AllocationPriority.normal, .system, .interrupt] {
      while let frame = try? memory.allocate(BlockOrder(0), role: .wired, priority: priority) {
        frames.append(frame)
      }
      XCTAssertEqual(memory.freeCount, memory.reserve(for: priority))
    }
    XCTAssertEqual(memory.freeCount, .zero)
    system.check()
    for frame in frames { memory.free(frame, BlockOrder(0)) }
    system.check()
  }

  /// Pages of this process that came when they were first touched.
  private var pagesTouched: Int {
    var usage = rusage()
    getrusage(Int32(RUSAGE_SELF.rawValue), &usage)
    return usage.ru_minflt
  }

  func testLargeMachinesOpenCheaply() throws {
    try XCTSkipIf(dlsym(nil, "__tsan_init") != nil, "TSan has no space for 16 TiB of addresses")
    try XCTSkipIf(dlsym(nil, "__asan_init") != nil, "ASan touches pages of its own for those of the test")
    for gibibytes: UInt64 in [64, 16384] {
      let frames = min(gibibytes << 18, UInt64(UInt32.max))
      let before = pagesTouched
      let system = try FrameAllocatorFixture(frames: [(0, 159), (256, frames - 256)])
      let memory = system.memory!
      // 16 bytes for 2 MiB, 32 for 128 MiB, and the record at the head of each GiB.
      XCTAssertLessThan(pagesTouched - before, 400 + 3 * Int(gibibytes) * 17 / 16)
      let block = try memory.allocate(.highest, role: .wired)
      let frame = try memory.allocate(BlockOrder(0), role: .wired)
      memory.free(block, .highest)
      memory.free(frame, BlockOrder(0))
      if gibibytes == 64 { system.check() }
      XCTAssertEqual(memory.total.rawValue, frames - 256 + 159)
    }
  }
}
