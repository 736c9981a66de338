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

final class FramesCommandTests: XCTestCase {
  func testMemmapShowsHowMuchOfEachRangeIsUsed() {
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

  /// A PC whose firmware leaves out the last 4 MiB, and reports video memory as usable.
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

  func testMemmapNamesEachRangeThatIsLeftOut() {
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
    XCTAssertTrue(harness.run("sysctl vm.first_64k=on").contains("vm.first_64k is a statistic"))
  }

  func testMTRRsThatAreOffLeaveNothingOutAndMemmapSaysSo() {
    let harness = forgetful(0)
    let text = harness.run("memmap")
    XCTAssertTrue(text.hasSuffix("The MTRRs are off: no memory is left out for its caching.\n"), text)
    XCTAssertFalse(text.contains("do not make it write-back"), text)
    XCTAssertTrue(text.contains("256 to 16383"), text)
    XCTAssertTrue(rows(harness.run("memmap -j")).contains { $0["mtrrs"] as? String == "off" })
  }

  func testMemmapCountsTheRangesThatItDoesNotList() {
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

  func testMemmapAddsUpOnEveryFirmwareMap() {
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
    for _ in 0..<5 { _ = try harness.physical.allocate(BlockOrder(0), role: .slab) }
    let text = harness.run("frames")
    XCTAssertTrue(text.contains("256     1 MiB   1.6 %"), text)
    XCTAssertTrue(text.contains("slab                7    28 KiB"), text)
    XCTAssertTrue(text.hasSuffix("all roles      16,287  63.6 MiB   100 %  as memmap took them\n"), text)
    XCTAssertTrue(
      rows(harness.run("frames -j")).contains {
        $0["role"] as? String == "slab" && $0["bytes"] as? Int == 28672
      })
  }

  func testBuddyCountsBlocksAndDistinguishesFragmentationFromShortage() throws {
    let harness = ConsoleHarness()
    XCTAssertFalse(harness.run("buddy").contains("! "))
    // Every second frame taken: half of memory is free and no block is larger than a frame.
    var taken: [FrameNumber] = []
    while let frame = try? harness.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      taken.append(frame)
    }
    for frame in taken where frame.rawValue % 2 == 0 { harness.physical.free(frame, BlockOrder(0)) }
    let text = harness.run("buddy")
    XCTAssertTrue(text.contains("! No block of 2 MiB: it is fragmentation"), text)
    XCTAssertTrue(text.contains("100"), text)
    for line in text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
    let free = rows(harness.run("buddy -j")).compactMap { $0["frames"] as? Int }.reduce(0, +)
    XCTAssertEqual(free, Int(harness.physical.freeCount.rawValue))
    for frame in taken where frame.rawValue % 2 == 1 && frame.rawValue > 1000 {
      harness.physical.free(frame, BlockOrder(0))
    }
  }

  func testAMachineOfManyGibibytesFitsTheScreenToo() throws {
    // No code touches unused memory, so it need not exist.
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
      _ = try harness.physical.allocate(BlockOrder(UInt8(order)), role: .wired)
      for _ in 0..<3 { _ = try? harness.physical.allocate(BlockOrder(UInt8(min(order, 9))), role: .wired) }
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

  func testNoFigureOfAMachineOfATebibyteIsCut() throws {
    let harness = ConsoleHarness(
      ranges: [(1 << 20, 255 << 20, 1), (4 << 30, 1 << 40, 1)], memory: .gibibytes(1028))
    let frames = harness.physical.freeCount.rawValue
    XCTAssertGreaterThan(frames, 200_000_000)
    let grouped = "\(count: frames)" as Line
    // A blank stands before each sum, and the sum is whole.
    let sums = harness.run("buddy").split(separator: "\n").filter { $0.hasPrefix("all blocks") }
    XCTAssertTrue(
      sums.contains { $0.hasSuffix(" \(grouped.withBytes { String(decoding: $0, as: UTF8.self) })") },
      "\(sums)")
    for command in ["memmap", "frames", "buddy", "map", "vmem", "pagetable", "queues", "kmem", "why 4G"] {
      let text = harness.run(command)
      assertFits(text)
      for word in text.split(whereSeparator: { $0 == " " || $0 == "\n" }) where word.hasSuffix("..") {
        XCTAssertFalse(word.contains { $0.isNumber }, "\(command): \(word)")
      }
    }
    let last = (UInt64(4) << 30 + 1 << 40) >> 12
    XCTAssertTrue(harness.run("memmap").contains("1048576 to \(last - 1)"), harness.run("memmap"))
  }

  func testTheMapShowsDensityUnderMovability() throws {
    let harness = ConsoleHarness()
    // 16 MiB: of 16 frames one, eight, fifteen and all.
    for (cell, count) in [(0, 1), (1, 8), (2, 15), (3, 16)] {
      for i in 0..<count {
        try harness.physical.allocate(frame: FrameNumber(UInt32(4096 + cell * 16 + i)), role: .wired)
      }
    }
    let lines = harness.run("map -d").split(separator: "\n").map(String.init)
    let at = try XCTUnwrap(
      lines.firstIndex { $0.hasPrefix("0x0100_0000 |WWWW....") }, lines.joined(separator: "\n"))
    XCTAssertTrue(lines[at + 1].hasPrefix("            |159#...."), lines[at + 1])
    assertFits(harness.run("map -d"))
    XCTAssertFalse(harness.run("map").contains("|159#"))
  }

  func testTheMapShowsThePagesThatCannotMove() throws {
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
