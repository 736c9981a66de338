import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory
@testable import PhysicalMemory

final class FailedRequestCacheTests: XCTestCase {
  /// A machine full of wired frames but for the free ones given.
  func full(_ frames: [(UInt64, UInt64)]) throws -> FrameAllocatorFixture {
    let system = try FrameAllocatorFixture(frames: frames)
    while (try? system.memory.allocate(BlockOrder(0), role: .kmem, priority: .interrupt)) != nil {}
    return system
  }

  func free(_ memory: FrameAllocator, _ first: UInt32, _ count: UInt64) {
    memory.free(FrameRun(first: FrameNumber(first), count: PageCount(count)))
  }

  func take(_ memory: FrameAllocator, _ first: UInt32, _ count: UInt64) throws {
    let at = PhysicalAddress(FrameNumber(first))
    _ = try memory.allocate(
      run: PageCount(count), where: RunConstraints(low: at, high: at + PageCount(count).bytes), role: .kmem,
      priority: .interrupt)
  }

  let count = PageCount(UInt64(100))

  func testACachedFailureStaysUntilAFreeCanHelp() throws {
    let system = try full([(0, 8192)])
    let memory = system.memory!
    let range = RunConstraints(low: PhysicalAddress(1024 << 12), high: PhysicalAddress(4096 << 12))
    XCTAssertFalse(memory.hasFailedRecently(count, range))
    memory.cacheFailedRequest(count, range)
    XCTAssertTrue(memory.hasFailedRecently(count, range))
    // Outside of its range, and over its edge by too little.
    free(memory, 5000, 700)
    free(memory, 900, 124 + 99)
    XCTAssertTrue(memory.hasFailedRecently(count, range))
    // Inside, but too short.
    free(memory, 2000, 99)
    XCTAssertTrue(memory.hasFailedRecently(count, range))
    for round in 0..<200 {
      free(memory, 3000 + UInt32(round % 4), 96)
      XCTAssertTrue(memory.hasFailedRecently(count, range))
      try take(memory, 3000 + UInt32(round % 4), 96)
    }
    // Long enough together with what became free long ago.
    free(memory, 2099, 1)
    XCTAssertFalse(memory.hasFailedRecently(count, range))
    try take(memory, 2099, 1)
    // An entry that was dropped must be entered again.
    XCTAssertFalse(memory.hasFailedRecently(count, range))
    memory.cacheFailedRequest(count, range)
    XCTAssertTrue(memory.hasFailedRecently(count, range))
    free(memory, 1123, 1)
    XCTAssertFalse(memory.hasFailedRecently(count, range))
    system.check()
  }

  func testARequestThatCouldSucceedIsNotCached() throws {
    let system = try full([(0, 4096)])
    let memory = system.memory!
    free(memory, 700, 100)
    memory.cacheFailedRequest(count, RunConstraints())
    XCTAssertFalse(memory.hasFailedRecently(count, RunConstraints()))
    memory.cacheFailedRequest(.zero, RunConstraints())
    XCTAssertFalse(memory.hasFailedRecently(.zero, RunConstraints()))
    XCTAssertEqual(memory.domain.quiet.pointee.watchers, 0)
    system.check()
  }

  func testACachedFailureIsRefusedInConstantSteps() throws {
    var costs: [[UInt64]] = []
    for size: UInt64 in [8192, 200_000] {
      let system = try full([(0, size)])
      let memory = system.memory!
      memory.cacheFailedRequest(count, RunConstraints())
      var cost = [steps(memory) { XCTAssertTrue($0.hasFailedRecently(count, RunConstraints())) }]
      // Four places, each too short, with frames free on both sides of them.
      for first: UInt32 in [1000, 2000, 3000, 4000] { free(memory, first, 98) }
      cost.append(steps(memory) { XCTAssertTrue($0.hasFailedRecently(count, RunConstraints())) })
      cost.append(steps(memory) { XCTAssertTrue($0.hasFailedRecently(count, RunConstraints())) })
      costs.append(cost)
    }
    print("steps of a refusal: nothing changed, four places changed, looked at: \(costs)")
    XCTAssertEqual(costs[0], costs[1])
    XCTAssertEqual(costs[0][0], 1)
    XCTAssertEqual(costs[0][2], 1)
    XCTAssertLessThan(costs[0][1], 400)
  }

  func testALogThatOverflowsForgetsTheCachedFailure() throws {
    let system = try full([(0, 8192)])
    let memory = system.memory!
    memory.cacheFailedRequest(count, RunConstraints())
    for first: UInt32 in [1000, 2000, 3000, 4000, 5000] { free(memory, first, 1) }
    XCTAssertFalse(memory.hasFailedRecently(count, RunConstraints()))
    memory.cacheFailedRequest(count, RunConstraints())
    XCTAssertTrue(memory.hasFailedRecently(count, RunConstraints()))
    // Near ones are one.
    for first in stride(from: UInt32(6000), to: 6600, by: 30) { free(memory, first, 1) }
    XCTAssertTrue(memory.hasFailedRecently(count, RunConstraints()))
    system.check()
  }

  func testOnlyEmptyPageblocksCountAsWholePageblocks() throws {
    let system = try full([(0, 8192)])
    let memory = system.memory!
    let aligned = RunConstraints(alignment: Alignment(2 << 20)!)
    let size = PageCount(UInt64(1024))
    memory.cacheFailedRequest(size, aligned)
    for pageblock: UInt32 in 1...12 { free(memory, pageblock * 512 + 1, 511) }
    XCTAssertEqual(steps(memory) { XCTAssertTrue($0.hasFailedRecently(size, aligned)) }, 1)
    free(memory, 1024, 1)
    XCTAssertTrue(memory.hasFailedRecently(size, aligned))
    free(memory, 2048, 1)
    XCTAssertTrue(memory.hasFailedRecently(size, aligned))
    free(memory, 1536, 1)
    XCTAssertFalse(memory.hasFailedRecently(size, aligned))
    system.check()
  }

  func testACachedFailureSpeaksForHarderRequests() throws {
    let system = try full([(0, 8192)])
    let memory = system.memory!
    let range = RunConstraints(low: PhysicalAddress(1024 << 12), boundary: Alignment(16 << 20)!)
    memory.cacheFailedRequest(count, range)
    var harder = range
    harder.alignment = Alignment(64 << 10)!
    harder.high = PhysicalAddress(4096 << 12)
    harder.low = PhysicalAddress(1025 << 12)
    harder.boundary = Alignment(4 << 20)!
    XCTAssertTrue(memory.hasFailedRecently(PageCount(UInt64(101)), harder))
    for easier in [
      RunConstraints(low: PhysicalAddress(1023 << 12), boundary: Alignment(16 << 20)!),
      RunConstraints(low: PhysicalAddress(1024 << 12), boundary: Alignment(32 << 20)!),
      RunConstraints(low: PhysicalAddress(1024 << 12)),
    ] { XCTAssertFalse(memory.hasFailedRecently(count, easier)) }
    XCTAssertFalse(memory.hasFailedRecently(PageCount(UInt64(99)), range))
    free(memory, 2000, 100)
    XCTAssertFalse(memory.hasFailedRecently(PageCount(UInt64(101)), harder))
    system.check()
  }

  func testTheLastEightAreKept() throws {
    let system = try full([(0, 4096)])
    let memory = system.memory!
    func request(_ i: UInt64) -> RunConstraints {
      RunConstraints(low: PhysicalAddress(i << 12), high: PhysicalAddress((3000 + i) << 12))
    }
    for i: UInt64 in 1...9 { memory.cacheFailedRequest(count, request(i)) }
    XCTAssertFalse(memory.hasFailedRecently(count, request(1)))
    for i: UInt64 in 2...9 { XCTAssertTrue(memory.hasFailedRecently(count, request(i))) }
    // The same again takes no second place.
    for _ in 0..<9 { memory.cacheFailedRequest(count, request(9)) }
    for i: UInt64 in 2...9 { XCTAssertTrue(memory.hasFailedRecently(count, request(i))) }
    XCTAssertEqual(memory.domain.quiet.pointee.watchers, 8)
    system.check()
  }

  func testEachEventThatMakesAFrameEmptiableForgetsTheCachedFailure() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 4096)])
    let memory = system.memory!
    let frames = fillWithPages(memory).map(\.rawValue).sorted()
    for frame in frames where frame % 50 == 0 { wirePage(memory, frame) }
    memory.cacheFailedRequest(count, RunConstraints())
    // Pages come and go: a run that could be emptied before can be emptied now.
    for frame in 1001..<UInt32(1049) { freePage(memory, frame) }
    XCTAssertEqual(steps(memory) { XCTAssertTrue($0.hasFailedRecently(count, RunConstraints())) }, 1)
    unwirePage(memory, 1000)
    XCTAssertTrue(memory.hasFailedRecently(count, RunConstraints()), "99 frames")
    unwirePage(memory, 1050)
    XCTAssertFalse(memory.hasFailedRecently(count, RunConstraints()), "149 frames")
    // An isolation that is abandoned.
    let isolation = try memory.isolated(
      FrameRun(first: FrameNumber(1001), count: PageCount(UInt64(48))), priority: .interrupt)
    wirePage(memory, 1050)
    memory.cacheFailedRequest(PageCount(UInt64(99)), RunConstraints())
    XCTAssertTrue(memory.hasFailedRecently(PageCount(UInt64(99)), RunConstraints()))
    memory.abandon(isolation)
    XCTAssertFalse(memory.hasFailedRecently(PageCount(UInt64(99)), RunConstraints()))
    system.check()
  }
}
