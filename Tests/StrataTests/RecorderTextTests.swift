import TestSupport
import Workloads
import XCTest

@testable import strata

/// The text of each recorder and version, and what the packer makes of it.
final class RecorderTextTests: XCTestCase {
  private func packer(_ text: String) throws -> TracePacker {
    var packer = TracePacker()
    var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    let rest = lines.removeLast()
    for line in lines { try Array(line.utf8).withUnsafeBufferPointer { try packer.take($0, of: "test") } }
    if !rest.isEmpty {
      try Array(rest.utf8).withUnsafeBufferPointer { try packer.take($0, of: "test", hasLineFeed: false) }
    }
    return packer
  }

  private func packed(_ text: String) throws -> PackedTraceCopy {
    var packer = try packer(text)
    return try PackedTraceCopy(packer.pack(title: "t"))
  }

  private func kinds(_ trace: PackedTraceCopy) -> [TraceKind] { trace.events.map(\.kind) }

  private func complaint(_ text: String) -> String {
    do {
      _ = try packer(text)
      return "none"
    } catch { return "\(error)" }
  }

  /// A line of ftrace with one event.
  private func event(_ what: String, flags: String = "....") -> String {
    "             cli-1934    [001] \(flags)  2796.789510: \(what)\n"
  }

  // MARK: Old kernels

  func testANullPointerMayBePadded() throws {
    for null in ["          (null)", "(null)", "(nil)", "0x0", "0000000000000000", "0x0000000000000000"] {
      let text =
        event("kfree: call_site=ffffffff810bfa60 ptr=\(null)")
        + event("mm_page_alloc: page=\(null) pfn=0 order=9 migratetype=1 gfp_flags=GFP_TRANSHUGE")
        + event("kmalloc: call_site=a ptr=\(null) bytes_req=64 bytes_alloc=64 gfp_flags=GFP_KERNEL")
      let packer = try packer(text)
      XCTAssertEqual(packer.failedRequests, 2, null)
      XCTAssertEqual(packer.nullFrees, 1, null)
      let trace = try packed(text)
      XCTAssertEqual(trace.events.map(\.identity), Array(repeating: TraceEvent.noIdentity, count: 3), null)
      XCTAssertEqual(trace.counts.pages, 0, null)
      XCTAssertEqual(trace.counts.peakPages, 0, null)
    }
  }

  func testAFailedRequestHasNoFrameInRawFieldsEither() throws {
    let trace = try packed(
      event(
        "mm_page_alloc: pfn=0xffffffffffffffff (-1) order=0x9 (9) gfp_flags=0x3d24ca (4007114) migratetype=0x1 (1)"
      )
        + event(
          "mm_page_alloc: pfn=0x176a17 (1534487) order=0x1 (1) gfp_flags=0xcc0 (3264) migratetype=0x0 (0)"))
    XCTAssertEqual(trace.events.map(\.identity), [TraceEvent.noIdentity, 0])
    XCTAssertEqual(trace.operations.map(\.order), [9, 1])
    XCTAssertEqual(trace.counts.peakPages, 2)
  }

  func testFreesHaveTheirOldNames() throws {
    let trace = try packed(
      event("mm_page_alloc: page=ffffea0000f84000 pfn=254208 order=0 migratetype=0 gfp_flags=GFP_KERNEL")
        + event("mm_page_free_direct: page=ffffea0000f84000 pfn=254208 order=0")
        + event("mm_pagevec_free: page=ffffea0000f84000 pfn=254208 order=0 cold=0")
        + event(
          "kmalloc_node: call_site=a ptr=ffff88003e01dd00 bytes_req=9 bytes_alloc=16 gfp_flags=GFP_KERNEL node=-1"
        )
        + event(
          "kmem_cache_alloc_node: call_site=a ptr=ffff88003e01de00 bytes_req=9 bytes_alloc=16 gfp_flags=GFP_KERNEL node=-1"
        ))
    XCTAssertEqual(kinds(trace), [.pageAlloc, .pageFree, .pageFreeBatched, .kmalloc, .cacheAlloc])
    XCTAssertEqual(trace.events.map(\.identity), [0, 0, 0, 0, 1])
  }

  func testHiddenPointersAreCountedAndDropped() throws {
    let packer = try packer(
      event("kfree: call_site=a+0x1/0x2 ptr=(____ptrval____)")
        + event("kfree: call_site=a+0x1/0x2 ptr=        (ptrval)")
        + event("kfree: call_site=a+0x1/0x2 ptr=00000000a1b2c3d4")
        + event("mm_page_alloc: page=(____ptrval____) pfn=16 order=0 migratetype=0 gfp_flags=GFP_KERNEL"))
    XCTAssertEqual(packer.dropped.hiddenPointers, 2)
    XCTAssertEqual(packer.eventsByKind[Int(TraceKind.kfree.rawValue)], 1)
    XCTAssertEqual(packer.eventsByKind[Int(TraceKind.pageAlloc.rawValue)], 1)
  }

  // MARK: Flags

  private func flags(_ text: String) -> (TraceFlags, TraceAddressLimit) {
    Array(text.utf8).withUnsafeBufferPointer {
      let found = AllocationFlags($0[...])
      return (found.flags, found.limit)
    }
  }

  func testFlagsHaveOldNamesAndNewOnes() {
    for name in ["GFP_ZERO", "__GFP_ZERO"] {
      XCTAssertTrue(flags("GFP_KERNEL|\(name)") == (.zero, .none), name)
    }
    XCTAssertTrue(flags("GFP_TEMPORARY") == (.reclaimable, .none))
    XCTAssertTrue(flags("GFP_KERNEL|GFP_RECLAIMABLE") == (.reclaimable, .none))
    XCTAssertTrue(flags("GFP_HIGH|GFP_NOMEMALLOC") == (.atomic, .none))
    XCTAssertTrue(flags("GFP_KERNEL|GFP_HIGHMEM|GFP_MOVABLE") == (.movable, .highmem))
    XCTAssertTrue(flags("GFP_KERNEL|0x4") == (TraceFlags(), .dma32), "a flag that the kernel has no name for")
    XCTAssertTrue(flags("GFP_KERNEL|0x1") == (TraceFlags(), .dma))
    XCTAssertTrue(flags("GFP_KERNEL|0x1000000") == (TraceFlags(), .none))
  }

  func testFlagsAreNumbersOfThreeLayouts() {
    // Linux 3.2, 4.9, 4.14 and 6.1 of each request.
    let requests: [(String, [UInt64], TraceFlags, TraceAddressLimit)] = [
      ("GFP_KERNEL", [0xd0, 0x24000c0, 0x14000c0, 0xcc0], [], .none),
      ("GFP_KERNEL|__GFP_ZERO", [0x80d0, 0x24080c0, 0x14080c0, 0xdc0], .zero, .none),
      ("GFP_ATOMIC", [0x20, 0x2080020, 0x1080020, 0xa20, 0x820], .atomic, .none),
      ("GFP_NOWAIT", [0, 0x2000000, 0x1000000, 0x800], .noWait, .none),
      ("GFP_NOFS|__GFP_NOFAIL", [0x850, 0x2400840, 0x1400840, 0x8c40], [], .none),
      ("GFP_KERNEL|__GFP_RECLAIMABLE", [0x800d0, 0x24000d0, 0x14000d0, 0xcd0], .reclaimable, .none),
      ("GFP_KERNEL_ACCOUNT", [0x25000c0, 0x15000c0, 0x400cc0], [], .none),
      ("GFP_KERNEL|GFP_DMA32", [0xd4, 0x24000c4, 0x14000c4, 0xcc4], [], .dma32),
      ("GFP_HIGHUSER_MOVABLE", [0x200da, 0x24200ca, 0x14200ca, 0x100cca, 0x140cca], .movable, .highmem),
      ("GFP_TRANSHUGE of 3.2", [0x4352da], .movable, .highmem),
    ]
    for (name, numbers, expected, limit) in requests {
      for number in numbers {
        for text in ["\(number)", "0x" + String(number, radix: 16)] {
          XCTAssertTrue(flags(text) == (expected, limit), "\(name) as \(text): \(flags(text))")
        }
      }
    }
  }

  // MARK: cat trace

  func testSizesMayBeHexadecimalAndCommentsFollowThem() throws {
    let trace = try packed(
      event(
        "kmem_cache_alloc: call_site=0xffffffff92d10d97 (-1831793257) ptr=0xffff9e0e8571e000 (-107689771147264) "
          + "bytes_req=0x1000 (4096) bytes_alloc=0x1010 (4112) gfp_flags=0xdc0 (3520) node=0xffffffff (-1) accounted=(0)"
      )
        + event(
          "kmem_cache_free: call_site=0xffffffff92d112c1 (-1) ptr=0xffff9e0e8571e000 (-2) name=names_cache"))
    XCTAssertEqual(trace.operations[0].requested, 4096)
    XCTAssertEqual(trace.operations[0].allocated, 4112)
    XCTAssertEqual(trace.operations[0].flags, .zero)
    XCTAssertEqual(trace.names, ["names_cache"])
    XCTAssertEqual(trace.counts.objects, 1)
  }

  func testStackTracesAreCounted() throws {
    let packer = try packer(
      event("kfree: call_site=a+0x1/0x2 ptr=00000000a1b2c3d4")
        + "             cli-1934    [001] .....  2796.789515: <stack trace>\n => kfree\n => skb_free_head\n"
        + "             cli-1934    [001] .....  2796.789515: <user stack trace>\n =>  <00007f1234567890>\n"
        + "             cli-1934    [001] 2796.789515: kernel_stack:         <stack trace>\n=> kfree (ffffffff8119)\n"
        + "             cli-1934    [001] .....  2796.789515: mutex_unlock <-rb_simple_write\n")
    XCTAssertEqual(packer.dropped.callChains, 7)
    XCTAssertEqual(packer.dropped.otherLines, ["of the function tracer": 1])
    XCTAssertEqual(packer.eventsByKind.reduce(0, +), 1)
  }

  func testATimeMayHaveNoDot() throws {
    let trace = try packed(
      "            bash-863     [001] ..s1. 1839201938: kmalloc: call_site=a ptr=000000007576a560 bytes_req=124 bytes_alloc=128 gfp_flags=GFP_KERNEL node=-1 accounted=false\n"
        + "            bash-863     [003] 1839203001: kfree: call_site=b ptr=000000007576a560\n")
    XCTAssertEqual(kinds(trace), [.kmalloc, .kfree])
    XCTAssertEqual(trace.events.map(\.context), [.softInterrupt, .thread])
    XCTAssertEqual(trace.events.map(\.processor), [1, 3])
  }

  func testLatencyFormatIsPacked() throws {
    let trace = try packed(
      """
      # tracer: nop
      #
      # nop latency trace v1.1.5 on 6.1.0
      #  cmd     pid     |||||| time  |   caller
          bash-863       1d..1.   12us : kmalloc: call_site=a+0x1a/0x40 ptr=000000007576a560 bytes_req=124 bytes_alloc=128 gfp_flags=GFP_KERNEL node=-1 accounted=false
          a b [7]-863    0..s1.   15us+: kfree: call_site=a+0x1a/0x40 ptr=(null)
          bash-863      12d.h1.   20us!: kfree: call_site=b+0x1a/0x40 ptr=000000007576a560

      """)
    XCTAssertEqual(kinds(trace), [.kmalloc, .kfree, .kfree])
    XCTAssertEqual(trace.events.map(\.processor), [1, 0, 12])
    XCTAssertEqual(trace.events.map(\.context), [.thread, .softInterrupt, .hardInterrupt])
  }

  func testADumpInTheKernelsLogIsPackedAndItsOtherLinesAreCounted() throws {
    let dump = { (prefix: String) in
      """
      \(prefix)[  125.110021] Dumping ftrace buffer:
      \(prefix)[  125.110025] ---------------------------------
      \(prefix)[  125.110027] CPU:1 [LOST 33 EVENTS]
      \(prefix)[  125.110030]     bash-863       1d..1. 120012345us : kmalloc: call_site=a ptr=000000007576a560 bytes_req=124 bytes_alloc=128 gfp_flags=GFP_KERNEL node=-1 accounted=false
      \(prefix)[  125.110040][  T863]     bash-863       1..s1. 120012399us : kfree: call_site=b ptr=000000007576a560
      \(prefix)[  125.110050] ---------------------------------

      """
    }
    for prefix in ["", "<4>", "Nov 29 07:50:01 box kernel: "] {
      let packer = try packer(dump(prefix))
      XCTAssertEqual(packer.dropped.otherLines, ["of a kernel log": 3], prefix)
      XCTAssertEqual(packer.dropped.lost, 33, prefix)
      let trace = try packed(dump(prefix))
      XCTAssertEqual(kinds(trace), [.kmalloc, .kfree], prefix)
      XCTAssertEqual(trace.events.map(\.context), [.thread, .softInterrupt], prefix)
    }
  }

  // MARK: trace-cmd report

  func testHeadersOfTraceCmdAreComments() throws {
    let text = """
      version = 6
      CPU 1 is empty
      cpus=4
       irq/40-widget-2738  [002] 373149.138580: kmalloc:              (request_in+0x7b) call_site=request_in+0x7b ptr=0xffff99e93f007300 bytes_req=155 bytes_alloc=192 gfp_flags=GFP_ATOMIC
                reader-27  [000] d.h1. 373149.138605: (+25) kfree:                (dev_read+0x148) call_site=dev_read+0x148 ptr=0xffff99e93f007300
                reader-27  [000] 373149.138611: kfree:                (dev_read+0x148) call_site=dev_read+0x148 ptr=0x0

      """
    XCTAssertEqual(try packer(text).dropped.comments, 3)
    XCTAssertEqual(try packer(text).dropped.lost, 0)
    let trace = try packed(text)
    XCTAssertEqual(trace.events.map(\.identity), [0, 0, TraceEvent.noIdentity])
    XCTAssertEqual(trace.events.map(\.context), [.thread, .hardInterrupt, .thread])
    XCTAssertEqual(trace.operations.first?.flags, .atomic)
  }

  func testLostEventsAreCountedAsEachRecorderSaysIt() throws {
    for (line, lost, more) in [
      ("CPU:7 [204600 EVENTS DROPPED]", 204_600, false), ("CPU:3 [EVENTS DROPPED]", 1, true),
      ("CPU:0 [LOST 12 EVENTS]", 12, false), ("CPU:0 [LOST EVENTS]", 1, true), ("[LOST 5 EVENTS]", 5, false),
      ("         swapper     0 [000]    12.345678: PERF_RECORD_LOST lost 4", 4, false),
      ("Processed 123 events and lost 4 chunks!", 1, true),
    ] as [(String, UInt64, Bool)] {
      let packer = try packer(line + "\n" + event("kfree: call_site=a ptr=01"))
      XCTAssertEqual(packer.dropped.lost, lost, line)
      XCTAssertEqual(packer.dropped.lostMore, more, line)
      XCTAssertEqual(packer.eventsByKind.reduce(0, +), 1, line)
    }
  }

  func testEventsThatWereOverwrittenAreCounted() throws {
    for (header, count) in [
      ("# entries-in-buffer/entries-written: 140080/250280   #P:2", 110_200),
      ("# entries-in-buffer/entries-written: 9/9   #P:2", 0), ("# entries-in-buffer/entries-written: x/9", 0),
    ] as [(String, UInt64)] {
      let packer = try packer(header + "\n" + event("kfree: call_site=a ptr=01"))
      XCTAssertEqual(packer.dropped.overwritten, count, header)
      XCTAssertEqual(packer.dropped.comments, 1, header)
      XCTAssertEqual(packer.dropped.lost, 0, header)
    }
  }

  func testALossOfAnyNumberDoesNotTrap() throws {
    let most = "CPU:0 [LOST \(UInt64.max) EVENTS]\n"
    XCTAssertEqual(try packer(most + most).dropped.lost, .max)
  }

  // MARK: perf script

  func testNamesMayHaveTheirGroupAndProcessesNoDash() throws {
    let text = """
          jbd2/sda1-8  7666 [000]  4666.621521: kmem:kmalloc: call_site=c0000000003ce108 ptr=0xc000000fcd646360 bytes_req=96 bytes_alloc=96 gfp_flags=GFP_NOFS|GFP_ZERO
                worker  6429/6430 [001]    22.498450:          1 kmem:mm_page_alloc: page=0x176a17 pfn=1534487 order=0 migratetype=0 gfp_flags=GFP_KERNEL
                worker  6429 [001]    22.498460123:              kmem:mm_page_free: page=0x176a17 pfn=1534487 order=0
                worker  6429 [001]    22.498470:   sched:sched_switch: prev_comm=worker
                worker  6429 [001]    22.498470:   other:kmalloc: ptr=1
          jbd2/sda1-8  7666 [000]  4666.621530:   kmem:kfree: call_site=c0000000003ce108 ptr=0xc000000fcd646360

      """
    XCTAssertEqual(try packer(text).dropped.others, ["sched:sched_switch": 1, "other:kmalloc": 1])
    let trace = try packed(text)
    XCTAssertEqual(kinds(trace), [.kmalloc, .pageAlloc, .pageFree, .kfree])
    XCTAssertEqual(trace.events.map(\.identity), [0, 0, 0, 0])
    XCTAssertEqual(trace.operations[0].flags, .zero)
  }

  func testCallChainsAreCounted() throws {
    let text = """
      jbd2/sda1-8  7666 [000]  4666.621521: kmem:kfree: call_site=c0000000003ce108 ptr=0xc000000fcd646360
                        27f1dc .__kmalloc (/boot/vmlinux)
                             0 [unknown] ([unknown])
              ffffffff811b1a2d kfree+0x2d ([kernel.kallsyms])
                  7f0123456789 std::string::operator=(char const*) (/usr/lib/libstdc++.so.6)

      jbd2/sda1-8  7666 [000]  4666.621530: kmem:kfree: call_site=c0000000003ce108 ptr=0xc000000fcd646360

      """
    XCTAssertEqual(try packer(text).dropped.callChains, 4)
    XCTAssertEqual(kinds(try packed(text)), [.kfree, .kfree])
    // The end of a broken event is no call chain.
    let broken = try packer("c000 ptr=0xc000000fcd646360 (1)\n")
    XCTAssertEqual(broken.dropped.callChains, 0)
    XCTAssertEqual(broken.dropped.malformed[.unreadable]?.first, 1)
  }

  // MARK: Forms that can't be packed

  func testAFunctionGraphIsNamed() {
    for line in [
      " 24)   0.134 us    |      __next_zones_zonelist();",
      " 24)               |  /* mm_page_alloc: page=00000000d2be5665 pfn=970744 order=0 migratetype=0 */",
      "   12.345 |   0)  bash-12 |   0.1 us    |  schedule();",
    ] {
      XCTAssertEqual(
        complaint("# tracer: function_graph\n\(line)\n"),
        "test, line 2: is a function graph, which doesn't mark interrupts: record with echo nop > current_tracer"
      )
    }
  }

  func testBinaryFormsAreNamedByTheirFirstBytes() {
    let forms: [([UInt8], TraceForm)] = [
      ([0x17, 0x08, 0x44] + Array("tracing6\0".utf8), .traceDat), (Array("PERFILE2\u{68}\0".utf8), .perfData),
      ([0x89] + Array("STRATA\n".utf8), .packedTrace), ([0x28, 0xb5, 0x2f, 0xfd, 4], .zstd),
      (Array("BZh91AY&SY".utf8), .bzip2), ([0x04, 0x22, 0x4d, 0x18], .lz4),
      (Array("PK\u{3}\u{4}".utf8), .zip),
      ([0xff, 0xfe, 0x23, 0], .utf16), (Array("text\0".utf8), .binary),
    ]
    for (bytes, form) in forms {
      XCTAssertEqual(TraceForm(bytes), form)
      XCTAssertFalse(form.advice("FILE").contains("\n"))
    }
    XCTAssertNil(TraceForm(Array("# tracer: nop\n".utf8)))
    XCTAssertNil(TraceForm([UInt8]()))
  }

  func testALastLineThatIsCutOffIsNamedWithItsNumber() throws {
    let good = event("kfree: call_site=a+0x1/0x2 ptr=00000000b7d93cc0")
    for cut in [
      "          <idle>-0     [001] ..s..   328.473324: kfree: call_si", "          <idle>-0     [0",
      event("kfree: call_site=a+0x1/0x2 ptr=").dropLast().description,
      event("mm_page_free: page=0000000028e9f02c pfn=0x12986a ord").dropLast().description,
    ] {
      var packer = try packer(good + good + cut)
      XCTAssertEqual(packer.dropped.malformed.values.map(\.first), [3], cut)
      XCTAssertTrue(packer.isCutOff, cut)
      XCTAssertFalse(packer.mayBeCutOff, cut)
      let packed = try packer.pack(title: "")
      XCTAssertEqual(try PackedTraceCopy(packed).counts.events, 2, cut)
      let text = PackSummary(packer, packed, from: "in", to: "out").text
      XCTAssertTrue(text.contains("; the first is line 3, \""), text)
      XCTAssertTrue(
        text.contains("! The recording is cut off in its last line, which is one of these.\n"), text)
    }
    // An event may be whole, and may be not: the summary says so.
    XCTAssertTrue(try packer(good + good.dropLast()).mayBeCutOff)
    XCTAssertFalse(try packer(good + good).mayBeCutOff)
    XCTAssertFalse(try packer(good + "rubbish\n").isCutOff)
    var limited = TracePacker(limit: 1)
    for (line, hasLineFeed) in [(String(good.dropLast()), true), ("  <idle>", false)] {
      try Array(line.utf8).withUnsafeBufferPointer {
        try limited.take($0, of: "test", hasLineFeed: hasLineFeed)
      }
    }
    XCTAssertEqual(limited.dropped.malformed[.unreadable]?.first, 2)
    XCTAssertEqual(limited.dropped.beyondLimit, 0)
  }

  func testARecordingOfTooManyFramesIsRefused() throws {
    let text = (0..<4097).map {
      event("mm_page_free: page=01 pfn=0x\(String($0 << 20 + 16, radix: 16)) order=18")
    }.joined()
    var packer = try packer(text)
    XCTAssertThrowsError(try packer.pack(title: "")) {
      XCTAssertEqual(($0 as? Complaint)?.status, .dataError)
    }
  }

  // MARK: The summary

  func testTheSummaryNamesAllThatWasDropped() throws {
    var packer = try packer(
      "version = 6\n[  1.5] Dumping\n => kfree\nCPU:3 [EVENTS DROPPED]\n" + event("rss_stat: mm_id=1")
        + event("kfree: call_site=a ptr=(____ptrval____)") + event("kfree: call_site=a ptr=(null)")
        + event("mm_page_alloc: page=(null) pfn=0 order=9 migratetype=1 gfp_flags=0xcc0")
        + event("kfree: call_site=a ptr=01").dropLast())
    let packed = try packer.pack(title: "")
    let summary = PackSummary(packer, packed, from: "in", to: "out")
    for part in [
      "Of them 1 failed request and 1 free of a null pointer.", "1 comment,", "1 line of call chains",
      "1 line of a kernel log", "1 event with a hidden pointer", "1 rss_stat (no allocation)",
      "! The recorder lost at least 1 event:", "! The last line has no line feed",
    ] {
      XCTAssertTrue(summary.text.contains(part), part + "\n" + summary.text)
    }
    XCTAssertFalse(summary.text.contains("malformed"), summary.text)
    let row = try JSONSerialization.jsonObject(with: Data(summary.json.utf8)) as? [String: Any]
    XCTAssertEqual(row?["kind"] as? String, "pack")
    XCTAssertEqual(row?["failed"] as? Int, 1)
    XCTAssertEqual(row?["call_chains"] as? Int, 1)
    XCTAssertEqual(row?["malformed_lines"] as? Int, 0)
  }

  func testTheSummaryNamesTheFirstMalformedLineOfEachReason() throws {
    let good = event("kfree: call_site=a ptr=01")
    var packer = try packer(
      good + event("kfree: call_site=a") + "rubbish\n" + good + "more \u{7} rubbish\n" + good)
    let packed = try packer.pack(title: "")
    let summary = PackSummary(packer, packed, from: "in", to: "out")
    let lines = summary.text.split(separator: "\n").filter { $0.contains("malformed") }
    XCTAssertEqual(
      lines,
      [
        "! 1 line is malformed and was dropped: an allocation event without ptr; the first is line 2, "
          + "\"cli-1934    [001] ....  2796.789510: kfree: call_site=a\".",
        "! 2 lines are malformed and were dropped: no line of a recorder's text; the first is line 3, "
          + "\"rubbish\".",
      ])
    let rows = try summary.json.split(separator: "\n").map {
      try XCTUnwrap(JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
    }
    XCTAssertEqual(rows.map { $0["kind"] as? String }, ["pack", "malformed", "malformed"])
    XCTAssertEqual(rows[0]["malformed_lines"] as? Int, 3)
    XCTAssertEqual(rows[2]["lines"] as? Int, 2)
    XCTAssertEqual(rows[2]["first_line"] as? Int, 3)
    JSONKinds.check(summary.json, of: "strata trace pack -j")
  }
}
