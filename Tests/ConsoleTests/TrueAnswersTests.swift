import Foundation
import KernelMemory
import Kmem
import MemoryPrimitives
import PhysicalMemory
import XCTest

@testable import Console

/// Answers that say what is true, and errors that mark what is wrong.
final class TrueAnswersTests: XCTestCase {
  /// The part of the typed line that the carets stand under.
  private func marked(
    _ harness: ConsoleHarness, _ line: String, file: StaticString = #filePath, at: UInt = #line
  )
    -> String
  {
    let lines = harness.run(line).split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    XCTAssertEqual(lines.first, line, file: file, line: at)
    guard lines.count > 1, let first = lines[1].firstIndex(of: "^") else {
      XCTFail("no caret: \(lines)", file: file, line: at)
      return ""
    }
    let column = lines[1].distance(from: lines[1].startIndex, to: first)
    let width = lines[1][first...].prefix { $0 == "^" }.count
    return String(Array(line + " ")[column..<min(column + width, line.count + 1)])
  }

  func testCaretsMarkExactlyWhatIsWrong() {
    let harness = ConsoleHarness()
    for (line, wrong) in [
      ("contig 2Q", "Q"), ("contig 3.5M", ".5M"), ("contig 18446744073709551616", "18446744073709551616"),
      ("contig 16777216T", "16777216T"), ("map 0x10_00g0+2M", "g0"), ("map 0x10_0000+2Q", "Q"),
      ("map 0x10_0000+0", "0"), ("wire 0x10_0000", " "),
      ("map 0x10+99999999999999999999", "99999999999999999999"),
      ("map 0x1_0000_0000_0000_0000+2M", "0x1_0000_0000_0000_0000"),
      ("contig 2M align=3M", "3M"), ("contig 2M align=\"3M\"", "3M"), ("contig 2M \"align=3Q\"", "Q"),
      ("contig \"2 MiX\"", "MiX"), ("contig 2M low=1M high=\"1 M\"", "1 M"),
      ("sysctl vm.contig.passes=9x", "x"), ("sysctl \"vm.contig.passes=9x\"", "x"), ("dirty 9x%", "x"),
      ("contig 2M fast", "fast"), ("contig 2M align=", " "),
    ] {
      XCTAssertEqual(marked(harness, line), wrong, line)
    }
  }

  func testNoLineOfTheLegendOfMapIsAWarning() {
    let harness = ConsoleHarness()
    let log = harness.run("map")
    XCTAssertFalse(log.contains("\n! "), log)
    XCTAssertTrue(log.contains("busy or held"), log)
    assertFits(log)
  }

  func testMapCoversTheFramesThatARangeTouches() {
    let harness = ConsoleHarness()
    let log = harness.run("map 0x10_0001+5K")
    XCTAssertTrue(log.contains("The range touches 2 frames of memory: 0x0010_0000+8K."), log)
    XCTAssertTrue(log.contains("0x0010_0000 |XX" + String(repeating: " ", count: 62) + "|"), log)
    XCTAssertTrue(log.contains("0 free, 2 can't move"), log)
    XCTAssertFalse(harness.run("map 0x10_0000+8K").contains("touches"))
    XCTAssertTrue(harness.run("map 0x3ff_f000+8K").contains("touches 1 frame of memory: 0x03ff_f000+4K."))
  }

  func testWhatisTakesTheRangesThatWhyPrints() throws {
    let harness = ConsoleHarness()
    let wired = try harness.physical.allocate(run: PageCount(4), role: .wired, for: FrameOwner("a test"))
    let first = wired.first.rawValue
    let log = harness.run("whatis frames \(first) to \(first + 3)")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(log.contains("4 frames, ") && log.contains(" wired  a test"), log)
    let range = harness.run("whatis 0x\(String(wired.first.address.rawValue, radix: 16))+16K -j")
    XCTAssertEqual(rows(range).first?["owner"] as? String, "a test")
    XCTAssertEqual(rows(range).first?["frames"] as? Int, 4)
    let base = harness.memory.machine.directMap.base + wired.first.address.rawValue
    XCTAssertEqual(
      rows(harness.run("whatis 0x\(String(base, radix: 16))+16K -j")).first?["frames"] as? Int, 4)
    // All of memory, whatever it holds: the rows cover each frame once.
    harness.run("dirty 4M")
    let all = rows(harness.run("whatis 0+64M -j"))
    XCTAssertEqual(all.compactMap { $0["frames"] as? Int }.reduce(0, +), 64 << 8)
    // The range that why underlines can be pasted.
    harness.run("contig 2M align=2M")
    let why = harness.run("why 8M align=8M")
    let pasted = why.split(whereSeparator: { $0 == " " || $0 == "\n" || $0 == "," })
      .first { $0.hasPrefix("0x") && $0.contains("+") }
    if let pasted {
      harness.run("whatis \(pasted)")
      XCTAssertNil(harness.outcome, "\(pasted)")
    } else {
      XCTFail("no range: \(why)")
    }
    XCTAssertTrue(harness.run("whatis frames 9 to 3").contains("below the first"))
  }

  func testTheRangeOfTheLastFillCanBeWired() {
    let harness = ConsoleHarness()
    XCTAssertTrue(harness.run("wire dirty+64K").contains("type: dirty 1M"))
    harness.run("dirty 1M")
    XCTAssertTrue(harness.run("wire dirty+64K").contains("Wired 16 pages"))
    XCTAssertTrue(harness.run("wire dirty+2M").contains("^^ dirty has filled 1 MiB"))
    XCTAssertTrue(harness.run("unwire dirty+64K").contains("Unwired 16 pages"))
    harness.run("dirty free")
    XCTAssertNil(harness.outcome)
  }

  func testASelfTestThatLacksMemorySaysThatItCouldNotBegin() throws {
    let harness = ConsoleHarness()
    var frames: [FrameNumber] = []
    while let frame = try? harness.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      frames.append(frame)
    }
    for name in ["frames", "space", "history"] {
      let log = harness.run("selftest \(name)")
      XCTAssertTrue(log.contains("left out: no ") && log.contains("could not begin"), log)
      XCTAssertFalse(log.contains("FAILED"), log)
      XCTAssertEqual(harness.outcome, .unfit)
      let row = try XCTUnwrap(rows(harness.run("selftest \(name) -j")).first)
      XCTAssertTrue(row["passed"] is NSNull && row["broken"] is NSNull, "\(row)")
      XCTAssertTrue(row["left_out"] is String, "\(row)")
    }
    for frame in frames { harness.physical.free(frame, BlockOrder(0)) }
    let row = try XCTUnwrap(rows(harness.run("selftest frames -j")).first)
    XCTAssertEqual(row["passed"] as? Bool, true)
    XCTAssertTrue(row["broken"] is NSNull && row["left_out"] is NSNull, "\(row)")
  }

  /// Ctrl-C is typed once a command has polled the terminal.
  private func interrupt(_ harness: ConsoleHarness, _ line: String) -> String {
    harness.terminal.input = [0x03]
    defer { harness.terminal.input = [] }
    return harness.run(line)
  }

  func testCtrlCPrintsWhatWasDone() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    harness.run("dirty 16M")
    for (line, words) in [
      ("launder active", "Stopped. 0 of "), ("verify", "Stopped. "),
      ("selftest", "Stopped. 0 of 11 tests ran."),
      ("contig 2M align=2M", "Granted: contig "), ("bench kmem", "Stopped. These figures"),
      (
        "launder daemon",
        "Stopped. The page daemon had ended its run by then.\nThe daemon has nothing to do: "
      ), ("wire dirty+4K", "Wired 1 page, 4 KiB, "),
      ("unwire dirty+4K", "Unwired 1 page, 4 KiB, "), ("contig free all", "Freed 1 run, 2 MiB. "),
      ("map", "Stopped. The picture ends at "), ("whatis 0+64M", "Stopped. The list ends before frame "),
    ] {
      let log = interrupt(harness, line)
      XCTAssertTrue(log.contains("^C"), "\(line): \(log)")
      XCTAssertTrue(log.contains(words), "\(line): \(log)")
    }
    harness.run("snapshot before")
    harness.run("dirty 1M")
    XCTAssertTrue(interrupt(harness, "diff before").contains("Stopped. The list of changes"))
    XCTAssertTrue(interrupt(harness, "dirty free").contains("Freed "))
    // A replay of a part of a trace does not reach its peaks, and is no failure.
    let machine = ConsoleHarness(trace: try Data(contentsOf: SystemCommandsTests.sample))
    let replayed = interrupt(machine, "replay")
    XCTAssertTrue(replayed.contains("Stopped. What was live is freed; 0 pages"), replayed)
    XCTAssertFalse(replayed.contains("! "), replayed)
    XCTAssertNil(machine.outcome)
    // A command that fails at its work says why, whatever was typed.
    let refused = interrupt(harness, "contig 128M")
    XCTAssertTrue(refused.contains("Never: "), refused)
    XCTAssertTrue(harness.run("frames").contains("all roles"), "the next command runs")
  }
}
