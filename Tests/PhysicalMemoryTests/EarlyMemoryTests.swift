import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class EarlyMemoryTests: XCTestCase {
  func testEarlyMemoryTakesPagesFromTheTopAndSkipsOccupiedRanges() throws {
    let system = try FrameAllocatorFixture(
      frames: [(0, 512), (600, 400)], opens: false, occupied: [(990, 20, .image), (980, 3, .bootModule)])
    let early = system.early
    XCTAssertEqual(early.allocate(PageCount(UInt64(7)))?.first.rawValue, 983)
    XCTAssertEqual(early.allocate(PageCount(UInt64(1)))?.first.rawValue, 979)
    XCTAssertEqual(early.allocate(PageCount(UInt64(400))), nil)
    XCTAssertEqual(early.allocate(PageCount(UInt64(370)))?.first.rawValue, 609)
    // Never below 1 MiB.
    XCTAssertEqual(early.allocate(PageCount(UInt64(256)))?.first.rawValue, 256)
    for frame in (600..<609).reversed() {
      XCTAssertEqual(early.allocate(.one)?.first.rawValue, UInt32(frame))
    }
    XCTAssertNil(early.allocate(.one))
    early.free(FrameNumber(700))
    early.free(FrameNumber(300))
    XCTAssertEqual(early.allocate(.one)?.first.rawValue, 700)
    XCTAssertEqual(early.allocate(.one)?.first.rawValue, 300)
    XCTAssertNil(early.allocate(.one))
  }

  func testEarlyMemoryStaysBelowTheCeilingUntilItIsLifted() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2000), (1 << 20, 1 << 16)], opens: false)
    XCTAssertEqual(system.early.allocate(.one)?.first.rawValue, 2255)
    let records = try FrameAllocator.reserveRecords(of: system.map, from: system.early)
    XCTAssertEqual(records.end.rawValue, (1 << 20) + (1 << 16))
    system.early.liftCeiling()
    XCTAssertEqual(system.early.allocate(.one)?.first.rawValue, records.first.rawValue - 1)
    let memory = FrameAllocator.open(
      machine: system.host.machine, map: system.map, early: system.early, records: records)
    XCTAssertNil(memory.checkInvariants())
    XCTAssertEqual(memory.count(.boot).rawValue, 2)
    XCTAssertNil(system.early.allocate(.one))
  }

  func testFramesOfEarlyTablesCanBeFreedLater() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2000)], opens: false)
    let frame = system.early.frameSource.allocate()!
    try system.open()
    let before = system.memory.freeCount
    XCTAssertEqual(system.memory.count(.pageTable), .one)
    system.memory.frameSource(role: .pageTable).free(frame)
    XCTAssertEqual(system.memory.freeCount, before + .one)
    system.check()
  }

  func testOnlyAllocatedFramesCanBeFreed() throws {
    let system = try FrameAllocatorFixture(
      frames: [(256, 2000)], opens: false,
      occupied: [(300, 10, .image), (400, 4, .boot), (404, 1, .bootModule)])
    let early = system.early
    func list() -> [[UInt32]] {
      (0..<early.state.pointee.count).map {
        let run = early.list[$0]
        return [run.first, run.end, UInt32(run.role.rawValue), UInt32(run.origin.rawValue)]
      }
    }
    func refuses(_ frame: UInt32, _ kind: FaultKind, line: UInt = #line) {
      let (before, pages) = (list(), early.pages)
      let faults = system.host.faults { early.free(FrameNumber(frame)) }
      XCTAssertEqual(faults.map(\.kind), [kind], line: line)
      XCTAssertEqual(faults.map(\.subject), [UInt64(frame)], line: line)
      XCTAssertEqual(faults.map(\.place), [.frame], line: line)
      XCTAssertEqual(list(), before, line: line)
      XCTAssertEqual(early.pages, pages, line: line)
    }
    // None was taken yet.
    for frame: UInt32 in [300, 305, 309, 400, 404] { refuses(frame, .foreignPointer) }
    for frame: UInt32 in [299, 310, 405, 2255, .max] { refuses(frame, .notAllocated) }
    // Taken right below what is occupied, by the same role: the two stay apart.
    while early.allocate(.one, role: .boot)!.first.rawValue != 399 {}
    for frame: UInt32 in [400, 401, 403, 305] { refuses(frame, .foreignPointer) }
    let pages = early.pages
    early.free(FrameNumber(399))
    XCTAssertEqual(early.pages + .one, pages)
    refuses(399, .notAllocated)
    early.free(FrameNumber(1000))
    refuses(1000, .notAllocated)
    refuses(398, .notAllocated)
    try system.open()
    refuses(1001, .notAllocated)
    XCTAssertEqual(system.memory.count(.image).rawValue, 10)
    system.check()
  }

  func testAFullListOfRangesRefuses() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 8000)], opens: false)
    func occupy(_ first: UInt64, _ count: UInt64, _ role: FrameRole) throws {
      try system.early.occupy(PhysicalAddress(first << 12), ByteCount(count << 12), role: role)
    }
    let kept = EarlyMemory.capacity - 1
    for i in 0..<UInt64(kept) { try occupy(300 + 2 * i, 1, .image) }
    // Refused as a whole: with space for one more run, a range over two gaps marks neither.
    XCTAssertThrowsError(try occupy(304, 4, .bootModule)) {
      XCTAssertEqual($0 as? PhysicalMemoryError, .noMemory)
    }
    XCTAssertEqual(system.early.state.pointee.count, kept)
    try occupy(304, 2, .bootModule)
    XCTAssertThrowsError(try occupy(306, 2, .bootModule))
    // A run that joins another needs no entry.
    try occupy(302, 2, .image)
    try system.open()
    system.check()
  }
}
