import MemoryPrimitives
import Workloads
import XCTest

@testable import Console

/// bench, on a machine that counts no instructions.
final class BenchCommandTests: XCTestCase {
  func testRowsHaveTheKeysOfTheDesignAndAllComesBack() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    // The count of spare tags varies.
    func free() -> PageCount { harness.physical.freeCount + harness.physical.count(.tags) }
    harness.run("bench")
    let before = free()
    let told = rows(harness.run("bench -j"))
    XCTAssertEqual(free(), before)
    let benches = told.filter { $0["kind"] as? String == "bench" }
    XCTAssertGreaterThan(benches.count, 10)
    for row in benches {
      XCTAssertEqual(
        Set(row.keys),
        ["kind", "name", "figure", "goal", "sense", "unit", "where", "layer", "due", "met", "trace"])
      XCTAssertTrue(row["figure"] is NSNumber, "\(row)")
      XCTAssertTrue(["at most", "at least"].contains(row["sense"] as? String))
      XCTAssertEqual(row["where"] as? String, "kernel")
    }
    func figure(_ name: String) -> Double? {
      (benches.first { $0["name"] as? String == name }?["figure"] as? NSNumber)?.doubleValue
    }
    XCTAssertEqual(figure("contig-granted"), 16)
    XCTAssertLessThan(try XCTUnwrap(figure("contig-cost-per-page")), 1.1)
    XCTAssertEqual(figure("contig-one-granted"), 1)
    XCTAssertEqual(figure("contig-one-written"), 0)
    XCTAssertEqual(figure("contig-low-64K"), 1)
    XCTAssertEqual(figure("contig-low-256K"), 1)
    XCTAssertEqual(figure("contig-low-never"), 1)
    XCTAssertNotNil(figure("fault"))
    XCTAssertEqual(
      told.filter { $0["kind"] as? String == "left_out" }.map { $0["name"] as? String },
      [
        "contig-1G", "contig-busy", "pageblock-pair-splitting", "wired", "vmem-pair-1000000-live",
        "fault-blocks", "scan", "switch", "shootdown", "longest-off",
      ])
    XCTAssertNil(harness.memory.checkInvariants())
    assertFits(harness.run("bench"))
  }

  func testAMachineThatIsTooSmallSaysSo() {
    let harness = ConsoleHarness()
    let text = harness.run("bench contig")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(text.hasPrefix("contig is left out: it takes a swap device with 32 MiB free"), text)
    assertFits(text)
    harness.run("dirty 95%")
    XCTAssertTrue(harness.run("bench fault").hasPrefix("fault is left out: "))
    XCTAssertTrue(harness.run("bench contig-one").contains("contig-one is left out: "))
    XCTAssertTrue(harness.run("bench nothing").contains("one of: contig contig-one"))
    XCTAssertEqual(harness.outcome, .refused)
  }

  func testRowsAreThoseOfTheListAndNameTheirLayer() throws {
    let harness = ConsoleHarness(swap: .mebibytes(128))
    let known = Dictionary(
      uniqueKeysWithValues: (0..<Budget.count).map { index -> (String, BudgetRow) in
        let row = Budget(rawValue: UInt8(index))!.row
        return ("\(row.name)", row)
      })
    var seen: Set<String> = []
    for name in ["kmem", "pages", "pageblocks", "fault", "shootdown", "scan"] {
      let free = harness.physical.freeCount
      for row in rows(harness.run("bench -j \(name)")) where row["kind"] as? String == "bench" {
        let title = try XCTUnwrap(row["name"] as? String)
        let budget = try XCTUnwrap(known[title], title)
        XCTAssertEqual(row["layer"] as? String, "\(budget.layer)", title)
        XCTAssertEqual(row["where"] as? String, "kernel", title)
        XCTAssertEqual(row["due"] as? Bool, budget.standing == .due, title)
        XCTAssertEqual(row["unit"] as? String, budget.isCycles ? "cycles" : "\(budget.unit)", title)
        seen.insert(title)
      }
      XCTAssertNil(harness.outcome, "bench \(name) failed though no figure of it is due")
      // Magazines, slabs and a page of tags may stay.
      XCTAssertLessThan(free.rawValue - min(free.rawValue, harness.physical.freeCount.rawValue), 64, name)
      XCTAssertNil(harness.memory.checkInvariants().map { "\($0)" }, name)
    }
    for title in [
      "kmem-kernel-pair-64", "page-pair", "pages-512-random-order", "pageblock-pair", "fault",
      "daemon-scanned",
    ] { XCTAssertTrue(seen.contains(title), "\(title) was not measured") }
  }

  func testBenchesThatTheMachineIsTooSmallForAreSkippedAndNamed() throws {
    let harness = ConsoleHarness()
    for name in ["contig", "wired", "vmem", "contig-busy", "scan", "boot"] {
      let output = harness.run("bench \(name)")
      XCTAssertTrue(output.contains("left out"), output)
      assertFits(output)
    }
  }
}
