import Workloads
import XCTest

@testable import strata

final class TracePackerTests: XCTestCase {
  private func packer(_ text: String, limit: Int = .max) throws -> TracePacker {
    var packer = TracePacker(limit: limit)
    for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
      try Array(line.utf8).withUnsafeBufferPointer { try packer.take($0, of: "test") }
    }
    return packer
  }

  private func event(_ what: String, cpu: Int = 0, flags: String = ".....", task: String = "sh-175") -> String
  {
    "              \(task)     [\(String(format: "%03d", cpu))] \(flags)     8.989361: \(what)\n"
  }

  private func alloc(_ pointer: String, _ site: String, _ size: Int, _ rounded: Int? = nil, cpu: Int = 0)
    -> String
  {
    event(
      "kmem_cache_alloc: call_site=\(site)+0x1/0x2 ptr=\(pointer) bytes_req=\(size) bytes_alloc=\(rounded ?? size) "
        + "gfp_flags=GFP_KERNEL node=-1 accounted=true", cpu: cpu)
  }

  private func free(_ pointer: String, _ name: String) -> String {
    event("kmem_cache_free: call_site=f+0x1/0x2 ptr=\(pointer) name=\(name)")
  }

  /// The events of `text`, packed and read back, with the cache's name.
  private func packed(_ text: String) throws -> (PackedTraceCopy) {
    var packer = try packer(text)
    return try PackedTraceCopy(packer.pack(title: "t"))
  }

  func testThePackerReadsTasksOfAnyName() throws {
    let trace = try packed(
      event("kfree: call_site=a+0x1/0x2 ptr=0000000000000001", task: "kworker/0:1-21")
        + event("kfree: call_site=a+0x1/0x2 ptr=0000000000000002", task: "a b [7] c:-21")
        + event("kfree: call_site=a+0x1/0x2 ptr=0000000000000003", cpu: 1, task: "<...>-99"))
    XCTAssertEqual(trace.events.map(\.identity), [0, 1, 2])
    XCTAssertEqual(trace.events.map(\.processor), [0, 0, 1])
    XCTAssertEqual(trace.counts.processors, 2)
  }

  func testThePackerKeepsContextsApart() throws {
    let flags = [".....", "..s1.", "d.h1.", "dNH2.", ".N.1."]
    let trace = try packed(
      flags.map { event("kfree: call_site=a+0x1/0x2 ptr=0000000000000001", flags: $0) }.joined())
    XCTAssertEqual(
      trace.events.map(\.context), [.thread, .softInterrupt, .hardInterrupt, .hardInterrupt, .thread])
  }

  func testThePackerKeepsTheFlagsThatMatter() throws {
    let requests = [
      "GFP_KERNEL|__GFP_ZERO", "GFP_ATOMIC", "GFP_NOWAIT|__GFP_NOWARN", "GFP_KERNEL|GFP_DMA",
      "GFP_KERNEL|GFP_DMA32",
    ]
    let trace = try packed(
      requests.enumerated().map {
        event(
          "kmalloc: call_site=a+0x1/0x2 ptr=000000000000000\($0 + 1) bytes_req=\(8 + $0) bytes_alloc=16 "
            + "gfp_flags=\($1) node=-1 accounted=false")
      }.joined()
        + event(
          "mm_page_alloc: page=0000000000000001 pfn=0x10 order=0 migratetype=1 gfp_flags=GFP_HIGHUSER_MOVABLE"
        ))
    XCTAssertEqual(trace.operations.map(\.flags), [.zero, .atomic, .noWait, [], [], .movable])
    XCTAssertEqual(trace.operations.map(\.limit), [.none, .none, .none, .dma, .dma32, .highmem])
  }

  func testThePackerNumbersFramesWithTheirBlocksWhole() throws {
    let trace = try packed(
      event("mm_page_alloc: page=0000000000000001 pfn=0x900 order=0 migratetype=0 gfp_flags=GFP_KERNEL")
        + event("mm_page_alloc: page=0000000000000002 pfn=0x100 order=2 migratetype=0 gfp_flags=GFP_KERNEL")
        + event("mm_page_free: page=0000000000000003 pfn=0x102 order=0")
        + event("mm_page_free_batched: page=0000000000000003 pfn=0x102 order=0"))
    XCTAssertEqual(trace.events.map(\.identity), [4, 0, 2, 2])
    XCTAssertEqual(trace.counts.pages, 5)
    XCTAssertEqual(trace.counts.peakPages, 5)
  }

  func testFailedRequestsAndFreesOfNilHaveNoOwner() throws {
    let trace = try packed(
      event("mm_page_alloc: page=0000000000000000 pfn=0x0 order=3 migratetype=0 gfp_flags=GFP_KERNEL")
        + event("kfree: call_site=a+0x1/0x2 ptr=0000000000000000")
        + event("kfree: call_site=a+0x1/0x2 ptr=(null)"))
    XCTAssertEqual(
      trace.events.map(\.identity), [TraceEvent.noIdentity, TraceEvent.noIdentity, TraceEvent.noIdentity])
    XCTAssertEqual(trace.counts.pages, 0)
  }

  func testThePackerLearnsCaches() throws {
    let trace = try packed(
      alloc("0000000000000001", "mempool_alloc", 192, 256) + free("0000000000000001", "bio-192")
        + alloc("0000000000000002", "mempool_alloc", 1024) + free("0000000000000002", "biovec-64")
        + alloc("0000000000000003", "mempool_alloc", 192, 256)  // by its call site and sizes
        + alloc("0000000000000004", "mempool_alloc", 1024)
        + alloc("0000000000000005", "elsewhere", 192, 256)  // by its sizes
        + alloc("0000000000000006", "ext4_alloc_inode", 1184, 1192))  // not at all
    XCTAssertEqual(
      trace.events.filter { $0.kind == .cacheAlloc }.map { trace.cacheName($0) },
      ["bio-192", "biovec-64", "bio-192", "biovec-64", "bio-192", "ext4_alloc_inode()"])
    XCTAssertEqual(trace.counts.caches, 3)
  }

  func testAPointerThatIsUsedAgainNamesItsCacheEachTime() throws {
    let trace = try packed(
      alloc("0000000000000001", "a", 64) + free("0000000000000001", "anon_vma_chain")
        + alloc("0000000000000001", "b", 64) + free("0000000000000001", "vmap_area"))
    XCTAssertEqual(
      trace.events.filter { $0.kind == .cacheAlloc }.map { trace.cacheName($0) },
      ["anon_vma_chain", "vmap_area"])
  }

  func testThePackerDropsOtherEventsAndSaysWhy() throws {
    var packer = try packer(
      "# tracer: nop\n\nCPU:0 [LOST 12 EVENTS]\n" + event("rss_stat: mm_id=1 curr=1 member=0 size=4096B")
        + event("kfree: call_site=a+0x1/0x2 ptr=0000000000000001")
        + event("kfree: call_site=a+0x1/0x2 ptr=0000000000000002"), limit: 1)
    XCTAssertEqual(packer.dropped.lost, 12)
    XCTAssertEqual(packer.dropped.others, ["rss_stat": 1])
    XCTAssertEqual(packer.dropped.beyondLimit, 1)
    XCTAssertEqual(try PackedTraceCopy(packer.pack(title: "")).counts.events, 1)
  }

  /// One broken line does not cost the recording: it is dropped, counted and named.
  func testAMalformedLineIsCountedAndNamedByItsNumber() throws {
    let good = event("kfree: call_site=a+0x1/0x2 ptr=0000000000000001")
    for (line, reason) in [
      ("rubbish\n", .unreadable), (event("kfree: call_site=a+0x1/0x2"), .noPointer),
      (event("kfree: call_site=a+0x1/0x2 ptr=xyz"), .noPointer),
      (
        event("kmalloc: call_site=a+0x1/0x2 ptr=01 gfp_flags=GFP_KERNEL"), .noSizes
      ),
      (event("mm_page_free: page=01 order=0"), .noFrame),
      (event("mm_page_free: page=01 pfn=0x10 order=40"), .impossibleFrame),
      (event("kmalloc: call_site=a+0x1/0x2 ptr=01 bytes_req=99999999999 bytes_alloc=1"), .impossibleSize),
      // A function graph has such lines, but no event before them.
      (" 24)   0.134 us    |  schedule();\n", .unreadable),
    ] as [(String, Malformation)] {
      var packer = try packer(good + line + line + good)
      let found = try XCTUnwrap(packer.dropped.malformed[reason], line)
      XCTAssertEqual(packer.dropped.malformed.count, 1, line)
      XCTAssertEqual(found.count, 2, line)
      XCTAssertEqual(found.first, 2, line)
      XCTAssertEqual(found.text.dropFirst().prefix(6), line.drop { $0 == " " }.prefix(6))
      XCTAssertEqual(packer.eventsByKind[Int(TraceKind.kfree.rawValue)], 2, line)
      let trace = try PackedTraceCopy(packer.pack(title: ""))
      XCTAssertEqual(trace.events.map(\.identity), [0, 0], line)
      // Beside the empty text behind the last line feed.
      XCTAssertEqual(trace.counts.dropped, 3, line)
    }
  }

  func testTheTitleIsTheNameWithoutEndings() {
    XCTAssertEqual(Trace.Pack.title(of: "traces/linux-6.1-build.ftrace.xz"), "linux-6.1-build")
    XCTAssertEqual(Trace.Pack.title(of: "-"), "")
  }
}

/// A packed trace read back into arrays.
struct PackedTraceCopy {
  var counts: TraceCounts
  var operations: [TraceOperation]
  var names: [String]
  var events: [TraceEvent] = []

  init(_ bytes: [UInt8]) throws {
    let (counts, operations, names, events) = try bytes.withUnsafeBytes {
      let trace = try PackedTrace($0)
      try trace.validate()
      var cursor = trace.records
      var events: [TraceEvent] = []
      while let event = try cursor.next() { events.append(event) }
      return (
        trace.counts, (0..<trace.counts.operations).map { trace.operation($0) },
        (0..<trace.counts.caches).map { String(decoding: trace.string(trace.cache($0).name), as: UTF8.self) },
        events
      )
    }
    (self.counts, self.operations, self.names, self.events) = (counts, operations, names, events)
  }

  func cacheName(_ event: TraceEvent) -> String { names[Int(operations[Int(event.operation)].cache)] }
}
