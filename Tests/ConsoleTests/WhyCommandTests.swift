import ContiguousMemory
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Console

final class WhyCommandTests: XCTestCase {
  func testAnAnswerOfYesSaysWhere() throws {
    let harness = ConsoleHarness()
    let text = harness.run("why 2M align=2M")
    XCTAssertTrue(text.hasPrefix("Yes: 512 free frames at 0x0"), text)
    let row = try XCTUnwrap(rows(harness.run("why 2M align=2M -j")).first)
    let place = try harness.physical.allocate(
      run: PageCount(UInt64(512)), where: RunConstraints(alignment: Alignment(2 << 20)!), role: .wired)
    XCTAssertEqual(row["first_frame"] as? Int, Int(place.first.rawValue))
  }

  func testAnAnswerOfNeverSaysWhyNot() {
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
      "Never: no range of memory satisfies that, whatever is freed.\n")
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

  func testAnAnswerOfNotNowNamesTheBlocker() throws {
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
    harness.physical.free(FrameNumber(3684), BlockOrder(0))
    XCTAssertTrue(harness.run("why 2M align=2M").hasPrefix("Yes"))
  }

  func testAShortageIsCalledAShortage() throws {
    let harness = ConsoleHarness()
    while (try? harness.physical.allocate(BlockOrder(0), role: .wired)) != nil {}
    XCTAssertTrue(harness.run("why 2M").contains("! It is shortage. Type: frames"))
  }

  /// The forecast of `why` equals the outcome of a request, and the frames that it names are in the way.
  func testEveryAnswerAgreesWithTheAllocator() throws {
    let seed = historySeed(11)
    var random = SeededRandom(seed: seed)
    for round in 0..<12 {
      let harness = ConsoleHarness()
      let physical = harness.physical
      let density = [3, 40, 400, 1500][round % 4] as UInt64
      for frame in 0..<UInt32(16384) where random.oneIn(density) {
        try? physical.allocate(frame: FrameNumber(frame), role: random.oneIn(3) ? .pageable : .wired)
      }
      // The roles, read frame by frame.
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
        let cost = Int((answer.pages + answer.unmovable).rawValue)
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
