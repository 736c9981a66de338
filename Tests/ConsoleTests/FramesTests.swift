import ContiguousMemory
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

@testable import Console

/// Rows that a command printed with `-j`.
func rows(_ log: String) -> [[String: Any]] {
  log.split(separator: "\n").compactMap {
    try? JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any]
  }
}

final class FramesTests: XCTestCase {
  func testMemmapTellsWhatWasTakenOfEachRange() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("memmap"),
      """
      from         to              size  firmware  frames         taken
      0x0000_0000  0x0009_fbff  639 KiB  usable    0 to 158         159
      0x0009_fc00  0x0009_ffff    1 KiB  reserved
      0x000f_0000  0x000f_ffff   64 KiB  reserved
      0x0010_0000  0x03ff_ffff   63 MiB  usable    256 to 16383  16,128
      0xfffc_0000  0xffff_ffff  256 KiB  reserved
      5 ranges                                                   16,287
      63.6 MiB in 16,287 frames of 63.6 MiB usable.
      left out      size  frames  because
      0x0009_f000  3 KiB          no whole frame
      There are no MTRRs: no memory is left out for its caching.

      """)
  }

  /// A PC whose firmware forgets the last 4 MiB, and calls usable what is video memory.
  private func forgetful(_ isOn: UInt64) -> ConsoleHarness {
    var rules = MapRules()
    rules.cacheTypes = MemoryTypeRanges(addressBits: 36, vendor: .other) { number in
      switch number {
      case 0xfe: 1
      case 0x2ff: isOn << 11 | 6
      case 0x200: 0x3c0_0000
      default: 0xf_ffc0_0800
      }
    }
    return ConsoleHarness(
      ranges: [(0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (0xc0000, 0x8000, 1), (0x100000, 63 << 20, 1)],
      rules: rules)
  }

  func testMemmapNotesEachThingThatIsLeftOut() {
    let harness = forgetful(1)
    let text = harness.run("memmap")
    XCTAssertTrue(
      text.hasSuffix(
        """
        left out       size  frames          because
        0x0000_0000   4 KiB  0               frame 0 is never memory
        0x0000_1000  60 KiB  1 to 15         the firmware may write to it
        0x0009_f000   3 KiB                  no whole frame
        0x000c_0000  32 KiB  192 to 199      video memory and ROM lie there
        0x03c0_0000   4 MiB  15360 to 16383  the MTRRs do not make it write-back

        """), text)
    XCTAssertTrue(text.contains("16 to 158 "), text)
    assertFits(text)
    let log = harness.run("memmap -j")
    let taken = rows(log).compactMap { $0["taken"] as? Int }.reduce(0, +)
    XCTAssertEqual(taken, Int(harness.physical.total.rawValue))
    XCTAssertEqual(taken, 143 + 16128 - 1024)
    let leftOut = rows(log).filter { $0["kind"] as? String == "memmap_left_out" }
    XCTAssertEqual(leftOut.map { $0["bytes"] as? Int }, [4096, 61440, 3072, 32768, 4 << 20])
    XCTAssertEqual(leftOut.first?["because"] as? String, "frame 0 is never memory")
    let state = rows(log).first { $0["kind"] as? String == "memmap_rules" }
    XCTAssertEqual(state?["mtrrs"] as? String, "on")
    XCTAssertEqual(state?["left_out"] as? Int, 5)
    XCTAssertTrue(harness.run("sysctl vm.first_64k").contains("off"))
    XCTAssertTrue(harness.run("sysctl vm.first_64k=on").contains("vm.first_64k is read only"))
  }

  func testMTRRsThatAreOffLeaveNothingOutAndMemmapSaysSo() {
    let harness = forgetful(0)
    let text = harness.run("memmap")
    XCTAssertTrue(text.hasSuffix("The MTRRs are off: no memory is left out for its caching.\n"), text)
    XCTAssertFalse(text.contains("do not make it write-back"), text)
    XCTAssertTrue(text.contains("256 to 16383"), text)
    XCTAssertTrue(rows(harness.run("memmap -j")).contains { $0["mtrrs"] as? String == "off" })
  }

  func testMoreIsLeftOutThanIsShown() {
    let ranges = (0..<40 as Range<UInt64>).map { i -> (UInt64, UInt64, UInt32) in
      (i << 20 | 0x100, 1 << 19, 1)
    }
    let harness = ConsoleHarness(ranges: ranges + [(42 << 20, 20 << 20, 1)])
    let text = harness.run("memmap")
    XCTAssertTrue(
      text.hasSuffix(
        """
        56 more places were left out. All places by reason:
        because         places     size
        no whole frame      80  160 KiB
        all reasons         80  160 KiB
        There are no MTRRs: no memory is left out for its caching.

        """), text)
    assertFits(text)
    let sums = rows(harness.run("memmap -j")).filter { $0["kind"] as? String == "memmap_left_out_by_reason" }
    XCTAssertEqual(sums.map { $0["because"] as? String }, ["no whole frame"])
    XCTAssertEqual(sums.first?["places"] as? Int, 80)
    XCTAssertEqual(sums.first?["bytes"] as? Int, 160 << 10)
  }

  func testMemmapAddsUpWhateverTheFirmwareSays() {
    // Unsorted, overlapping, empty, twice the same, half frames that join.
    let harness = ConsoleHarness(ranges: [
      (0x200000, 0x800000, 1), (0x100000, 0x180000, 1), (0x200000, 0x800000, 1), (0x400000, 0x3800, 2),
      (0xa00000, 0x800, 1), (0xa00800, 0x100800, 1), (0x300000, 0, 1), (0x1000000, 0x2000000, 1),
    ])
    let taken = rows(harness.run("memmap -j")).compactMap { $0["taken"] as? Int }.reduce(0, +)
    XCTAssertEqual(taken, Int(harness.physical.total.rawValue))
    let roles = rows(harness.run("frames -j")).compactMap { $0["frames"] as? Int }.reduce(0, +)
    XCTAssertEqual(taken, roles)
  }

  func testFramesAddUpToTheMap() throws {
    let harness = ConsoleHarness()
    for _ in 0..<5 { _ = try harness.physical.allocate(Order(0), role: .slab) }
    let text = harness.run("frames")
    XCTAssertTrue(text.contains("256     1 MiB   1.6 %"), text)
    XCTAssertTrue(text.contains("slab                5    20 KiB"), text)
    XCTAssertTrue(text.hasSuffix("all roles      16,287  63.6 MiB   100 %  as memmap took them\n"), text)
    XCTAssertTrue(
      rows(harness.run("frames -j")).contains {
        $0["role"] as? String == "slab" && $0["bytes"] as? Int == 20480
      })
  }

  func testBuddyCountsBlocksAndTellsFragmentationFromShortage() throws {
    let harness = ConsoleHarness()
    XCTAssertFalse(harness.run("buddy").contains("! "))
    // Every second frame taken: half of memory is free and no block is larger than a frame.
    var taken: [FrameNumber] = []
    while let frame = try? harness.physical.allocate(Order(0), role: .wired, priority: .interrupt) {
      taken.append(frame)
    }
    for frame in taken where frame.rawValue % 2 == 0 { harness.physical.free(frame, Order(0)) }
    let text = harness.run("buddy")
    XCTAssertTrue(text.contains("! No block of 2 MiB: it is fragmentation"), text)
    XCTAssertTrue(text.contains("100"), text)
    for line in text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
    let free = rows(harness.run("buddy -j")).compactMap { $0["frames"] as? Int }.reduce(0, +)
    XCTAssertEqual(free, Int(harness.physical.freeCount.rawValue))
    for frame in taken where frame.rawValue % 2 == 1 && frame.rawValue > 1000 {
      harness.physical.free(frame, Order(0))
    }
  }

  func testAMachineOfManyGibibytesFitsTheScreenToo() throws {
    // Nothing touches memory that nobody uses, so it need not be there.
    let harness = ConsoleHarness(
      ranges: [(1 << 20, 255 << 20, 1), (4 << 30, 16 << 30, 1)], memory: .gibibytes(20))
    XCTAssertTrue(harness.run("map").hasPrefix("0x0_0000_0000 |"), harness.run("map"))
    let detail = harness.run("map 0x4_0000_0000+1M")
    XCTAssertTrue(detail.hasPrefix("0x4_0000_0000 |....."), detail)
    for command in ["map", "map 0x4_0000_0000+1M", "why 2M align=2M", "why 8G", "buddy", "memmap"] {
      assertFits(harness.run(command))
    }
    // Blocks of every order, so that the table is wide.
    for order in 0...17 {
      _ = try harness.physical.allocate(Order(UInt8(order)), role: .wired)
      for _ in 0..<3 { _ = try? harness.physical.allocate(Order(UInt8(min(order, 9))), role: .wired) }
    }
    let text = harness.run("buddy")
    assertFits(text)
    XCTAssertFalse(text.contains(".1000"), text)
    for order in 0...18 {
      XCTAssertTrue(
        text.split(separator: "\n").filter { $0.hasPrefix("order") }.joined(separator: " ").split(
          separator: " "
        )
        .contains("\(order)"), text)
    }
  }

  func testMapShowsWhatCannotMove() throws {
    let harness = ConsoleHarness()
    try harness.physical.allocate(frame: FrameNumber(4096 + 64), role: .wired)
    let text = harness.run("map")
    XCTAssertTrue(text.hasPrefix("0x0000_0000 |"), text)
    XCTAssertTrue(text.contains("XXXX"), text)
    XCTAssertTrue(text.contains("a character is 64 KiB, a line 4 MiB"), text)
    XCTAssertTrue(text.contains("0x0100_0000 |....W"), text)
    let detail = harness.run("map 0x0100_0000+1M")
    XCTAssertEqual(
      detail.split(separator: "\n").first.map(String.init),
      "0x0100_0000 |" + String(repeating: ".", count: 64) + "|")
    XCTAssertTrue(detail.contains("0x0104_0000 |W..."), detail)
    XCTAssertTrue(detail.contains("255 free, 1 can't move"), detail)
    XCTAssertTrue(harness.run("map 0x1_0000_0000+1M").contains("there is no memory: it ends at 0x0400_0000"))
    let frames = rows(harness.run("map -j")).filter { $0["role"] as? String != "no memory" }.compactMap {
      $0["frames"] as? Int
    }
    XCTAssertEqual(frames.reduce(0, +), Int(harness.physical.total.rawValue))
  }
}

final class WhyTests: XCTestCase {
  func testYesSaysWhere() throws {
    let harness = ConsoleHarness()
    let text = harness.run("why 2M align=2M")
    XCTAssertTrue(text.hasPrefix("Yes: 512 free frames at 0x0"), text)
    let row = try XCTUnwrap(rows(harness.run("why 2M align=2M -j")).first)
    let place = try harness.physical.allocate(
      run: PageCount(UInt64(512)), where: RunConstraints(alignment: Alignment(2 << 20)!), role: .wired)
    XCTAssertEqual(row["first_frame"] as? Int, Int(place.first.rawValue))
  }

  func testNeverSaysWhyNot() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("why 256K boundary=64K"),
      "Never: a run of 256 KiB crosses a multiple of 64 KiB wherever it lies.\n")
    XCTAssertEqual(harness.run("why 1G"), "Never: all memory of this machine is 63.6 MiB.\n")
    XCTAssertEqual(
      harness.run("why 2M low=0x10_0000 high=2M"),
      "Never: from low to high there is less than 2 MiB.\n")
    XCTAssertEqual(
      harness.run("why 63M align=32M"),
      "Never: no range of memory satisfies that, whoever gives what back.\n")
    XCTAssertNil(harness.outcome)
    for line in ["why 256K boundary=64K", "why 63M align=32M"] { assertFits(harness.run(line)) }
  }

  func testABadConstraintIsPointedAt() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("why 2M align=3M"),
      """
      why 2M align=3M
                   ^^ an alignment is a power of two: try 2M or 4M

      """)
    XCTAssertTrue(harness.run("why").hasPrefix("How much?"))
    XCTAssertTrue(harness.run("why 2M aling=2M").contains("^^^^^^^^ not understood here"))
    for (line, words) in [
      ("why -1", "    ^^ not understood here; usage: why SIZE"),
      ("why 2M low=2M high=1M", "                  ^^ low is above high"),
      ("why 2M low=2M high=2M", "low is as high"), ("why 2M high=0", "            ^ nothing lies below that"),
      ("why 2M align=2M align=4M", "                ^^^^^^^^ align is given twice"),
      ("why 2M later", "       ^^^^^ not understood here; usage: why SIZE [WHERE] [nowait]"),
    ] {
      let text = harness.run(line)
      XCTAssertTrue(text.contains(words), text)
      XCTAssertEqual(harness.outcome, .refused, line)
      assertFits(text)
    }
  }

  func testNotNowNamesTheBlocker() throws {
    let harness = ConsoleHarness()
    // One frame in the middle of each 2 MiB, but the first of which has two.
    for pageblock in 1..<32 as Range<UInt32> {
      let first = pageblock * 512
      for frame in first + 100..<first + (pageblock == 7 ? 101 : 103)
      where harness.physical.whatIs(FrameNumber(frame)).role == .free {
        try harness.physical.allocate(frame: FrameNumber(frame), role: .wired)
      }
    }
    let text = harness.run("why 2M align=2M")
    XCTAssertTrue(text.hasPrefix("Not now: one frame stands in the way."), text)
    XCTAssertTrue(text.contains("blocker  frame 3684: wired, wired once"), text)
    XCTAssertTrue(text.contains("! Type: whatis frame 3684"), text)
    for line in text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
    let kinds = rows(harness.run("why 2M align=2M -j")).map { $0["kind"] as? String }
    XCTAssertEqual(kinds, ["why", "blocker"])
    harness.physical.free(FrameNumber(3684), Order(0))
    XCTAssertTrue(harness.run("why 2M align=2M").hasPrefix("Yes"))
  }

  func testShortageIsCalledShortage() throws {
    let harness = ConsoleHarness()
    while (try? harness.physical.allocate(Order(0), role: .wired)) != nil {}
    XCTAssertTrue(harness.run("why 2M").contains("! It is shortage. Type: frames"))
  }

  /// What `why` answers is what a request would get, and what it says is in the way is there.
  func testTheAnswerIsTheTruth() throws {
    let seed = historySeed(11)
    var random = SeededRandom(seed: seed)
    for round in 0..<12 {
      let harness = ConsoleHarness()
      let physical = harness.physical
      let density = [3, 40, 400, 1500][round % 4] as UInt64
      for frame in 0..<UInt32(16384) where random.oneIn(density) {
        try? physical.allocate(frame: FrameNumber(frame), role: random.oneIn(3) ? .pageable : .wired)
      }
      // Who has what, read frame by frame.
      let isFree = (0..<UInt32(16384)).map { physical.whatIs(FrameNumber($0)).role == .free }
      var used = [0]
      var absent = [0]
      for frame in 0..<16384 {
        used.append(used[frame] + (isFree[frame] ? 0 : 1))
        absent.append(
          absent[frame] + (physical.whatIs(FrameNumber(UInt32(frame))).role == .absent ? 1 : 0))
      }
      for _ in 0..<12 {
        let count = [1, 2, 7, 64, 300, 511, 512, 700, 1024, 3000][Int(random.below(10))]
        let alignment = [1, 1, 8, 64, 512, 1024][Int(random.below(6))]
        let boundary = random.oneIn(3) ? [512, 1024, 4096][Int(random.below(3))] : 0
        let low = random.oneIn(3) ? Int(random.below(8000)) : 0
        let high = random.oneIn(3) ? 9000 + Int(random.below(7000)) : 16384
        let constraints = RunConstraints(
          low: PhysicalAddress(UInt64(low) << 12), high: PhysicalAddress(UInt64(high) << 12),
          alignment: Alignment(UInt64(alignment) << 12)!,
          boundary: boundary == 0 ? nil : Alignment(UInt64(boundary) << 12))
        var cheapest = Int.max
        var start = (low + alignment - 1) / alignment * alignment
        while start + count <= high {
          defer { start += alignment }
          if boundary != 0 && start / boundary != (start + count - 1) / boundary { continue }
          guard absent[start + count] == absent[start] else { continue }
          cheapest = min(cheapest, used[start + count] - used[start])
        }
        let what = "seed \(seed) round \(round): \(count) at \(alignment) in \(boundary), \(low) to \(high)"
        let answer = harness.memory.contiguous.forecast(
          ContiguousRequest(PageCount(UInt64(count)), where: constraints))
        XCTAssertEqual(answer.free.rawValue == UInt64(count), cheapest == 0, what)
        XCTAssertEqual(answer.outcome == .never, cheapest == Int.max, what)
        guard answer.outcome != .never else { continue }
        let run = answer.run
        let cost = Int((answer.pages + answer.fixed).rawValue)
        XCTAssertGreaterThanOrEqual(cost, cheapest, what)
        let first = Int(run.first.rawValue)
        XCTAssertEqual(used[first + count] - used[first], cost, what)
        XCTAssertEqual(first % alignment, 0)
        XCTAssertTrue(first >= low && first + count <= high)
        if boundary != 0 { XCTAssertEqual(first / boundary, (first + count - 1) / boundary) }
      }
    }
  }
}
