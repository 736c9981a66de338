import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class FrameFaultReportTests: XCTestCase {
  /// Frees `run` and checks that it is reported as `kind` and changes nothing.
  func assertFault(
    _ system: FrameAllocatorFixture, _ kind: FaultKind, _ first: UInt32, _ count: UInt64 = 1,
    line: UInt = #line
  ) {
    let before = FrameSnapshot(system.memory)
    let faults = system.host.faults {
      system.memory.free(FrameRun(first: FrameNumber(first), count: PageCount(count)))
    }
    XCTAssertEqual(faults.map(\.kind), [kind], line: line)
    XCTAssertEqual(FrameSnapshot(system.memory), before, line: line)
    system.check(#filePath, line)
  }

  func testEveryWrongFreeIsReported() throws {
    let system = try FrameAllocatorFixture(
      frames: [(0, 159), (256, 4000)],
      occupied: [(256, 100, .image), (400, 5, .boot), (1024, 512, .image), (2048, 512, .bootModule)])
    let memory = system.memory!
    let frame = try memory.allocate(BlockOrder(3), role: .slab).rawValue
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
    let faults = system.host.faults { memory.free(FrameNumber(frame), BlockOrder(19)) }
    XCTAssertEqual(faults.map(\.kind), [.wrongSize])
    memory.free(FrameNumber(frame), BlockOrder(3))
    assertFault(system, .doubleFree, frame)
    // A module can be given back, in parts.
    memory.free(FrameRun(first: FrameNumber(2100), count: PageCount(UInt64(60))))
    system.check()
    assertFault(system, .doubleFree, 2048, 512)
    memory.free(FrameRun(first: FrameNumber(2048), count: PageCount(UInt64(52))))
    system.check()
  }

  func testTheRaceOfTwoFreesIsReportedOnce() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2000)], processors: 2)
    let memory = system.memory!
    let before = memory.freeCount
    let rounds = 2000
    let shared = memory
    let faults = system.host.faults {
      for _ in 0..<rounds / 100 {
        let frames = (0..<100).map { _ in try! memory.allocate(BlockOrder(0), role: .wired) }
        system.host.onThreads(2) { _ in for frame in frames { shared.free(frame, BlockOrder(0)) } }
      }
    }
    XCTAssertEqual(faults.count, rounds)
    XCTAssertTrue(faults.allSatisfy { $0.kind == .doubleFree })
    XCTAssertEqual(memory.freeCount, before)
    system.check()
  }
}
