import HostMachine
import Kmem
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Replays that are split over real threads, against the same on one processor.
final class ReplayThreadsTests: XCTestCase {
  /// The counts that don't depend on who was how far when.
  private func counts(_ summary: ReplaySummary) -> [String: UInt64] {
    var counts = summary.figures.filter { !$0.key.hasPrefix("peak_") }
    for kind in 0..<TraceKind.count { counts["done \(kind)"] = summary.done[kind] }
    for skip in 0..<ReplaySkip.count { counts["skip \(skip)"] = summary.skips[skip] }
    counts["damaged"] = summary.damaged
    counts["gained"] = summary.gainedPages
    return counts
  }

  /// Replays `bytes` alone and by threads, on one system, and compares.
  @discardableResult private func compare(
    _ bytes: [UInt8], _ memory: ByteCount, by crews: [Int] = [1, 2, 3, 8], _ name: String = "",
    file: StaticString = #filePath, line: UInt = #line
  ) throws -> [ReplaySummary] {
    let system = try TestSystem(memory: memory, threads: 8)
    let alone = try system.replay(bytes)
    XCTAssertEqual(alone.interrupts, 0, file: file, line: line)
    return try crews.map { workers in
      let split = try system.replay(bytes, by: workers, interrupts: system.interrupts)
      XCTAssertEqual(counts(split), counts(alone), "\(workers) workers \(name)", file: file, line: line)
      XCTAssertEqual(split.workers, workers, file: file, line: line)
      if workers == 1 { XCTAssertEqual(split.figures, alone.figures, name, file: file, line: line) }
      if let broken = system.memory.checkInvariants() { XCTFail("\(broken)", file: file, line: line) }
      return split
    }
  }

  func testTheSampleEndsWithTheSameCounts() throws {
    for summary in try compare(WrittenTrace.sample(), .mebibytes(128)) {
      XCTAssertTrue(summary.succeeded, summary.text)
      XCTAssertEqual(summary.interruptEvents, 6945)
      XCTAssertLessThan(summary.interrupts, 6945)
      XCTAssertGreaterThanOrEqual(summary.interrupts * 16, 6945)
      XCTAssertGreaterThan(summary.peakPages, 9771)
    }
  }

  func testThreadsDoEverythingWhereThereIsNoGate() throws {
    let system = try TestSystem(memory: .mebibytes(128), threads: 2)
    let summary = try system.replay(WrittenTrace.sample(), by: 2, interrupts: nil)
    XCTAssertEqual(summary.interruptEvents, 0)
    XCTAssertTrue(summary.succeeded, summary.text)
  }

  func testPartsOfBlocksAndBlocksOfPartsStayTogether() throws {
    var trace = WrittenTrace()
    for block in 0..<32 as Range<UInt32> { trace.pages(.pageAlloc, block * 4, order: 2, .softInterrupt) }
    for block in 0..<32 as Range<UInt32> {
      trace.pages(.pageFree, block * 4 + 1)
      trace.pages(.pageFree, block * 4 + 2, order: 1, .hardInterrupt)
    }
    // Over two blocks, of which two pages are left; and once more, of which nothing is.
    for pair in 0..<8 as Range<UInt32> { trace.pages(.pageFree, pair * 8, order: 3) }
    for pair in 0..<8 as Range<UInt32> { trace.pages(.pageFree, pair * 8, order: 3) }
    for page in 64..<100 as Range<UInt32> { trace.pages(.pageAlloc, page) }
    for summary in try compare(trace.bytes, .mebibytes(32)) {
      XCTAssertEqual(summary.unmatchedPageFrees, 8)
      XCTAssertEqual(summary.reused, 9)
      XCTAssertEqual(summary.leftPages, 16 - 9 + 36)
    }
  }

  func testLostFreesAndFreesWithoutOwnersAreCounted() throws {
    var trace = WrittenTrace()
    let cache = trace.cache("filp", size: 256)
    for object in 0..<50 as Range<UInt32> {
      trace.kfree(object, .softInterrupt)
      trace.kmalloc(object, 64 + object, .hardInterrupt)
      trace.kmalloc(object, 5000, object % 2 == 0 ? .thread : .softInterrupt)
      if object % 3 == 0 { trace.kfree(object) }
      if object % 5 == 0 { trace.kfree(object, .hardInterrupt) }
      if object % 7 == 0 { trace.cacheAlloc(object, from: cache) }
    }
    trace.kmalloc(TraceEvent.noIdentity, 64)
    trace.kfree(TraceEvent.noIdentity)
    for summary in try compare(trace.bytes, .mebibytes(32)) {
      XCTAssertGreaterThanOrEqual(summary.reused, 50)
      XCTAssertGreaterThan(summary.unmatchedObjectFrees, 50)
      XCTAssertEqual(summary.skipped, 1)
      XCTAssertGreaterThan(summary.interruptEvents, 100)
    }
  }

  func testRandomTracesEndWithTheSameCounts() throws {
    var random = SeededRandom(seed: historySeed(0x5eed))
    for turn in 0..<8 {
      var trace = WrittenTrace()
      // Objects are numbered by their first appearance.
      var objects: UInt32 = 0
      for _ in 0..<3000 {
        let context = TraceContext(rawValue: UInt8(random.below(3)))!
        let order = UInt8(random.below(4))
        let first = UInt32(random.below(512)) & ~(1 << UInt32(order) - 1)
        let object = UInt32(random.below(UInt64(objects) + 1))
        if object == objects { objects += 1 }
        switch random.below(4) {
        case 0: trace.kmalloc(object, UInt32(1 + random.below(6000)), context)
        case 1: trace.kfree(object, context)
        case 2:
          trace.kfree(object, context)
          trace.pages(.pageAlloc, first, order: order, context)
        default:
          trace.kfree(object, context)
          trace.pages(.pageFree, first, order: order, context)
        }
      }
      try compare(trace.bytes, .mebibytes(64), by: [2, 3, 8], "turn \(turn)")
    }
  }

  func testARequestForMoreThanTheMachineHasIsRefusedAndAllocatesNothing() throws {
    let system = try TestSystem(memory: .mebibytes(16), threads: 2)
    let free = system.physical.freeCount
    for workers in [3, 63, 64, 0] {
      XCTAssertThrowsError(
        try system.replay(WrittenTrace.example.bytes, by: workers, interrupts: system.interrupts)
      ) {
        XCTAssertEqual($0 as? ReplayError, .tooFewProcessors(asked: workers, there: 2))
      }
    }
    XCTAssertEqual(system.physical.freeCount, free)
    let words = ReplayError.tooFewProcessors(asked: 3, there: 2).describe("The boot module").string
    XCTAssertEqual(words, "The boot module can't be split over 3 processors: 2 are there.")
  }

  func testAMachineWithoutThreadsSaysSoAndKeepsNothing() throws {
    let system = try TestSystem(memory: .mebibytes(16), threads: 2)
    _ = try system.replay(WrittenTrace.example.bytes)
    let free = system.physical.freeCount
    system.host.hasOtherThreads = false
    XCTAssertThrowsError(
      try system.replay(WrittenTrace.example.bytes, by: 2, interrupts: system.interrupts)
    ) {
      XCTAssertEqual($0 as? ReplayError, .noThread(ProcessorIndex(1)))
    }
    XCTAssertEqual(system.physical.freeCount, free)
  }

  func testAStopLosesNothing() throws {
    let system = try TestSystem(memory: .mebibytes(128), threads: 3)
    var reported: UInt64 = 0
    let summary = try system.replay(WrittenTrace.sample(), by: 3, interrupts: system.interrupts) {
      reported = $0.events
      return $0.events > 20_000 ? .stop : .goOn
    }
    XCTAssertGreaterThan(reported, 20_000)
    XCTAssertLessThan(summary.allEvents, 120_000)
    XCTAssertEqual(summary.lost, 0)
    XCTAssertEqual(summary.gainedPages, 0)
    XCTAssertEqual(summary.damaged, 0)
  }

  /// Before the first event: the workers have not come to read their orders yet.
  func testAStopAtOnceEndsTheReplay() throws {
    for _ in 0..<20 {
      let system = try TestSystem(memory: .mebibytes(128), threads: 3)
      let watchdog = DispatchWorkItem { fatalError("a replay that was stopped goes on for ever") }
      DispatchQueue.global().asyncAfter(deadline: .now() + 1800, execute: watchdog)
      let summary = try system.replay(WrittenTrace.sample(), by: 3, interrupts: system.interrupts) { _ in
        .stop
      }
      watchdog.cancel()
      XCTAssertLessThan(summary.allEvents, 120_000)
      XCTAssertEqual(summary.lost, 0)
      XCTAssertEqual(summary.gainedPages, 0)
    }
  }
}
