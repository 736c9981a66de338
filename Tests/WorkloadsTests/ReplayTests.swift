import Kmem
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

final class ReplayTests: XCTestCase {
  private func check(_ system: TestSystem, _ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = system.memory.checkInvariants() { XCTFail("\(broken)", file: file, line: line) }
  }

  func testTheExampleIsReplayed() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let before = system.physical.freeCount
    let summary = try system.replay(WrittenTrace.example.bytes)
    XCTAssertEqual(
      summary.figures,
      [
        "kmalloc": 2, "kfree": 2, "kmem_cache_alloc": 1, "kmem_cache_free": 1, "mm_page_alloc": 2,
        "mm_page_free": 2,
        "mm_page_free_batched": 1, "unmatched_object_frees": 1, "unmatched_page_frees": 0, "reused": 0,
        "skipped": 0,
        "peak_object_bytes": 5356, "peak_objects": 3, "peak_pages": 4, "left_objects": 1, "left_pages": 2,
        "lost": 0,
      ])
    XCTAssertEqual(summary.damaged, 0)
    // The trace that a test wrote does not know its peaks.
    XCTAssertFalse(summary.succeeded)
    XCTAssertGreaterThanOrEqual(system.physical.freeCount.rawValue + 8, before.rawValue)
    check(system)
  }

  func testFreesWithoutOwnersDoNothing() throws {
    var trace = WrittenTrace()
    trace.kfree(0)
    trace.pages(.pageFree, 0, order: 1)
    trace.kmalloc(0, 32)
    trace.kfree(0)
    trace.kfree(0)
    let summary = try TestSystem(memory: .mebibytes(16)).replay(trace.bytes)
    XCTAssertEqual(summary.unmatchedObjectFrees, 2)
    XCTAssertEqual(summary.unmatchedPageFrees, 1)
    XCTAssertEqual(summary.lost, 0)
  }

  func testALostFreeIsRepaired() throws {
    var trace = WrittenTrace()
    trace.kmalloc(0, 32)
    trace.kmalloc(0, 64)
    trace.pages(.pageAlloc, 0, order: 2)
    trace.pages(.pageAlloc, 1)
    trace.pages(.pageFree, 0, order: 2)
    let summary = try TestSystem(memory: .mebibytes(16)).replay(trace.bytes)
    XCTAssertEqual(summary.reused, 2)
    XCTAssertEqual(summary.leftObjects, 1)
    XCTAssertEqual(summary.leftPages, 0)
    XCTAssertEqual(summary.peakPages, 4)
    XCTAssertEqual(summary.damaged, 0)
    XCTAssertEqual(summary.lost, 0)
  }

  func testBlocksAreFreedInPartsAndAcrossBlocks() throws {
    var trace = WrittenTrace()
    for block in 0..<4 as Range<UInt32> { trace.pages(.pageAlloc, block * 4, order: 2) }
    trace.pages(.pageFree, 1)
    trace.pages(.pageFree, 2, order: 1)
    trace.pages(.pageFree, 4, order: 3)
    let system = try TestSystem(memory: .mebibytes(16))
    let summary = try system.replay(trace.bytes)
    XCTAssertEqual(summary.leftPages, 5)
    XCTAssertEqual(summary.damaged, 0)
    XCTAssertEqual(summary.lost, 0)
    check(system)
  }

  func testRequestsForLowMemoryGetLowMemory() throws {
    var trace = WrittenTrace()
    trace.pages(.pageAlloc, 0, order: 3, limit: .dma)
    trace.pages(.pageAlloc, 8, order: 0, limit: .dma32)
    let summary = try TestSystem(memory: .mebibytes(64)).replay(trace.bytes) { replay in
      XCTAssertLessThan(replay.frame(ofPage: 0)!.rawValue, 4096)
      XCTAssertEqual(replay.frame(ofPage: 0)!.rawValue & 7, 0)
    }
    XCTAssertEqual(summary.skipped, 0)
  }

  func testFailuresInTheTracedKernelAreSkipped() throws {
    var trace = WrittenTrace()
    trace.pages(.pageAlloc, TraceEvent.noIdentity, order: 9)
    trace.kmalloc(TraceEvent.noIdentity, 64)
    let summary = try TestSystem(memory: .mebibytes(16)).replay(trace.bytes)
    XCTAssertEqual(summary.skips[Int(ReplaySkip.failedInTrace.rawValue)], 2)
    XCTAssertTrue(summary.succeeded)
  }

  func testARequestWithoutMemoryIsSkippedAndSoIsItsFree() throws {
    var trace = WrittenTrace()
    trace.pages(.pageAlloc, 0, order: 11)  // more in one run than 8 MiB has left
    trace.pages(.pageFree, 0, order: 11)
    trace.kmalloc(0, 16 << 20)
    trace.kfree(0)
    trace.counts.peakPages = 0
    let system = try TestSystem(memory: .mebibytes(8))
    let summary = try system.replay(trace.bytes)
    XCTAssertEqual(summary.skips[Int(ReplaySkip.noPages.rawValue)], 1)
    XCTAssertEqual(summary.skips[Int(ReplaySkip.noObject.rawValue)], 1)
    XCTAssertEqual(summary.skips[Int(ReplaySkip.skippedBefore.rawValue)], 2)
    XCTAssertEqual(summary.unmatched, 0)
    XCTAssertFalse(summary.succeeded)
    XCTAssertEqual(summary.lost, 0)
  }

  func testAMachineThatIsTooSmallSaysSoBeforehand() throws {
    let system = try TestSystem(memory: .mebibytes(4))
    let free = system.physical.freeCount
    var trace = WrittenTrace()
    for page in 0..<2000 as Range<UInt32> { trace.pages(.pageAlloc, page) }
    XCTAssertThrowsError(try system.replay(trace.bytes)) {
      guard case .machineTooSmall(let needed, _)? = $0 as? ReplayError else { return XCTFail("\($0)") }
      XCTAssertGreaterThan(needed.rawValue, 2000)
      XCTAssertTrue(
        ($0 as! ReplayError).describe("The boot module").string.hasPrefix("The boot module needs "),
        ($0 as! ReplayError).describe("The boot module").string)
    }
    XCTAssertEqual(system.physical.freeCount, free)
  }

  func testAHeaderThatClaimsAnyPeakIsAMachineTooSmall() throws {
    var trace = WrittenTrace.example
    trace.counts.peakAllocated = .max
    XCTAssertThrowsError(try TestSystem(memory: .mebibytes(16)).replay(trace.bytes)) {
      guard case .machineTooSmall? = $0 as? ReplayError else { return XCTFail("\($0)") }
    }
  }

  /// `count` caches of which the last `busy` have ten times as many events.
  private func manyCaches(_ count: UInt32, busy: UInt32) -> WrittenTrace {
    var trace = WrittenTrace()
    for i in 0..<count {
      let cache = trace.cache("cache-\(i)", size: 64 + i * 8)
      for _ in 0..<(i >= count - busy ? 10 : 1) {
        trace.cacheAlloc(i, from: cache)
        trace.cacheFree(i, to: cache)
      }
    }
    trace.counts.peakObjects = 1
    return trace
  }

  func testTheBusiestOfTooManyCachesHaveTheirOwnAndTheLimitIsSaid() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    var own: [UInt32] = []
    let summary = try system.replay(manyCaches(200, busy: 30).bytes) { replay in
      own = (0..<200).filter { replay.hasOwnCache($0) }
    }
    XCTAssertGreaterThan(own.count, 60)
    XCTAssertLessThan(own.count, 200)
    XCTAssertEqual(own.suffix(30), Array(170..<200))
    XCTAssertTrue(summary.succeeded, summary.text)
    let shared = UInt64(200 - own.count)
    let limit = try XCTUnwrap(summary.cacheLimit)
    XCTAssertEqual(
      [limit.asked, limit.own, limit.shared, limit.sharedEvents],
      [200, UInt64(own.count), shared, 2 * shared])
    XCTAssertTrue(
      summary.text.contains("Limit: of 200 caches the \(own.count) busiest have their own;"), summary.text)
    var rows = ""
    summary.writeJSON(lineEnd: "\n") { rows += $0.string }
    JSONKinds.check(rows, of: "a replay with a limit")
    let lines = rows.split(separator: "\n")
    XCTAssertEqual(lines.count, 2)
    XCTAssertEqual(
      lines.first.map(String.init),
      #"{"kind":"limit","name":"caches","asked":200,"own":\#(own.count),"shared":\#(200 - own.count),"#
        + #""shared_events":\#(2 * (200 - own.count))}"#)
    XCTAssertTrue(lines.last?.hasPrefix(#"{"kind":"replay","kmalloc":0,"#) == true, rows)
    check(system)
  }

  func testALimitThatIsNotMetIsNotSaid() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let summary = try system.replay(manyCaches(40, busy: 1).bytes) { replay in
      for i in 0..<40 as Range<UInt32> { XCTAssertTrue(replay.hasOwnCache(i)) }
    }
    XCTAssertFalse(summary.text.contains("Limit"))
    var rows = ""
    summary.writeJSON { rows += $0.string }
    XCTAssertTrue(rows.hasPrefix(#"{"kind":"replay","#), rows)
  }

  func testTooManyCachesAmongThoseTooLargeForSlabs() throws {
    var trace = WrittenTrace()
    for i in 0..<300 as Range<UInt32> {
      let cache = trace.cache("cache-\(i)", size: i % 2 == 0 ? 64 : 40 << 10)
      trace.cacheAlloc(i, from: cache)
      trace.cacheFree(i, to: cache)
    }
    trace.counts.peakObjects = 1
    let system = try TestSystem(memory: .mebibytes(64))
    var ownCount: UInt64 = 0
    let summary = try system.replay(trace.bytes) { replay in
      ownCount = UInt64((0..<300).filter { replay.hasOwnCache($0) }.count)
      for i in 0..<300 as Range<UInt32> where i % 2 == 1 { XCTAssertFalse(replay.hasOwnCache(i)) }
    }
    XCTAssertTrue(summary.succeeded, summary.text)
    let limit = try XCTUnwrap(summary.cacheLimit)
    XCTAssertGreaterThan(limit.shared, 0)
    XCTAssertEqual(limit.own, ownCount)
    XCTAssertEqual(limit.own + limit.shared, 150)
  }

  func testDamageIsFoundAndReportedByEvent() throws {
    for (size, offset) in [(1, 0), (25, 24), (128, 127), (4096, 4095), (4096, 64), (9000, 8992)]
      as [(UInt32, Int)]
    {
      var trace = WrittenTrace()
      trace.kmalloc(0, 8)
      trace.kmalloc(1, size)
      trace.pages(.pageAlloc, 0)
      let system = try TestSystem(memory: .mebibytes(16))
      let summary = try system.replay(trace.bytes) { replay in
        let address = replay.address(ofObject: 1)!
        let pointer = system.access.pointer(to: address + ByteCount(offset))!
        pointer.storeBytes(of: ~pointer.load(as: UInt8.self), as: UInt8.self)
      }
      XCTAssertEqual(summary.damaged, 1, "byte \(offset) of \(size)")
      XCTAssertFalse(summary.succeeded)
    }
  }

  func testMemoryThatDoesNotComeBackIsReportedAndFails() throws {
    var trace = WrittenTrace()
    trace.pages(.pageAlloc, 0)
    let system = try TestSystem(memory: .mebibytes(16))
    let summary = try system.replay(trace.bytes) { _ in
      _ = try! system.physical.allocate(BlockOrder(1), role: .wired)
    }
    XCTAssertEqual(summary.lost, 2)
    XCTAssertFalse(summary.succeeded)
    XCTAssertTrue(summary.text.contains("! 2 frames were not freed."), summary.text)
  }

  /// Pages that existed before and are reclaimed during the replay do not belong to it.
  func testPagesReclaimedDuringAReplayAreNotCounted() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let (paging, count) = (system.memory.paging, PageCount(UInt64(1000)))
    let object = try paging.createObject(ShortName("kept"), count)
    let address = try paging.map(object, count: count)
    try paging.touch(address, count, .read)
    let summary = try system.replay(WrittenTrace.sample()) { _ in
      // Clean, and never written to: they are dropped.
      let rows = system.memory.statistics
      for i in 0..<rows.count where "\(rows[i].name)" == "vm.free_target" {
        XCTAssertEqual(rows[i].set(system.physical.total.rawValue / 2), .accepted)
      }
      XCTAssertGreaterThan(paging.runDaemon().freed, .zero)
    }
    XCTAssertLessThan(system.physical.count(.pageable), count)
    XCTAssertTrue(summary.succeeded, summary.text)
    check(system)
  }

  func testTwoReplaysEndAlike() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let bytes = try WrittenTrace.sample()
    let first = try system.replay(bytes)
    let second = try system.replay(bytes)
    XCTAssertEqual(first, second)
    XCTAssertTrue(first.succeeded && second.succeeded, second.text)
    check(system)
  }

  func testTheSampleHasItsKnownChecksum() throws {
    let summary = try TestSystem(memory: .mebibytes(64)).replay(WrittenTrace.sample())
    XCTAssertTrue(summary.succeeded, summary.text)
    XCTAssertEqual(
      summary.figures,
      [
        "kmalloc": 1398, "kfree": 3063, "kmem_cache_alloc": 29510, "kmem_cache_free": 33703,
        "mm_page_alloc": 24238,
        "mm_page_free": 14546, "mm_page_free_batched": 13542, "unmatched_object_frees": 7367,
        "unmatched_page_frees": 31, "reused": 1, "skipped": 0, "peak_object_bytes": 551_966,
        "peak_objects": 1601,
        "peak_pages": 10420, "left_objects": 1508, "left_pages": 9772, "lost": 0,
      ])
  }

  func testTheFullTraceReplaysWhereItIsAvailable() throws {
    guard let path = ProcessInfo.processInfo.environment["STRATA_TRACE"] else {
      throw XCTSkip("STRATA_TRACE=FILE")
    }
    let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    let summary = try TestSystem(memory: .mebibytes(256)).replay(bytes)
    print(summary.text)
    XCTAssertTrue(summary.succeeded, summary.text)
    XCTAssertEqual(summary.unmatchedObjectFrees, 21288)
    XCTAssertEqual(summary.unmatchedPageFrees, 115)
    XCTAssertEqual(summary.reused, 2)
    XCTAssertEqual(summary.leftObjects, 1448)
    XCTAssertEqual(summary.leftPages, 10180)
    XCTAssertEqual(summary.peakPages, 10898)
    XCTAssertEqual(summary.peakObjectBytes, 789_468)
  }

  func testJSONHasTheKeysOfTheDesign() throws {
    var row = ""
    try TestSystem(memory: .mebibytes(16)).replay(WrittenTrace.example.bytes).writeJSON { row += $0.string }
    XCTAssertTrue(row.hasPrefix(#"{"kind":"replay","kmalloc":2,"kfree":2,"#), row)
    let object = try JSONSerialization.jsonObject(with: Data(row.utf8)) as? [String: Any]
    JSONKinds.check(row, of: "a replay")
    XCTAssertEqual(object?.count, JSONKinds.documented["replay"]?.count)
  }

  /// The verdict that a person reads is in the row too.
  func testTheRowOfAReplayHasItsVerdict() throws {
    var trace = WrittenTrace()
    trace.kmalloc(0, 8)
    trace.kmalloc(1, 25)
    trace.pages(.pageAlloc, 0)
    trace.pages(.pageFree, 0)
    (trace.counts.peakObjects, trace.counts.peakPages) = (1, 1)
    let system = try TestSystem(memory: .mebibytes(16))
    let whole = try system.replay(trace.bytes)
    XCTAssertTrue(whole.text.contains("! The trace says at most 1 objects and 1 pages: pack it again."))
    var row = whole.row
    XCTAssertEqual(row["passed"] as? Bool, false)
    XCTAssertEqual(row["peaks_agree"] as? Bool, false)
    XCTAssertEqual(row["expected_peak_objects"] as? Int, 1)
    XCTAssertEqual(row["done"] as? Int, 4)
    XCTAssertEqual(row["kmalloc_done"] as? Int, 2)
    XCTAssertGreaterThan(row["cost"] as? Int ?? 0, 0)
    XCTAssertGreaterThan(row["overall_cost"] as? Int ?? 0, row["cost"] as? Int ?? 0)
    XCTAssertEqual(row["unit"] as? String, "cycles")
    XCTAssertTrue(row["first_damage"] is NSNull)
    let damaged = try system.replay(trace.bytes) { replay in
      let pointer = system.access.pointer(to: replay.address(ofObject: 1)!)!
      pointer.storeBytes(of: ~pointer.load(as: UInt8.self), as: UInt8.self)
    }
    row = damaged.row
    XCTAssertEqual(row["damaged"] as? Int, 1)
    XCTAssertTrue(row["first_damage"] is Int, "\(row)")
    var lossy = ReplaySummary()
    lossy.skips = [1, 2, 3, 4]
    lossy.gainedPages = 7
    XCTAssertEqual(lossy.row["gained_pages"] as? Int, 7)
    XCTAssertEqual(
      ["no_object", "no_pages", "before", "failed_in_trace"].map { lossy.row["skipped_\($0)"] as? Int },
      [1, 2, 3, 4])
    XCTAssertEqual(lossy.row["skipped"] as? Int, 10)
  }

  func testTablesFitTheScreen() throws {
    let text = try TestSystem(memory: .mebibytes(64)).replay(WrittenTrace.sample()).text
    let lines = text.split(separator: "\n")
    XCTAssertLessThanOrEqual(lines.count, 24)
    for line in lines { XCTAssertLessThanOrEqual(line.count, 80, "\(line)") }
  }
}
