import Foundation
import Workloads
import XCTest

@testable import strata

/// Rows of the budgets that are gathered from runs: their output, and the failures.
final class StrataBenchTests: XCTestCase {
  private func rows(_ lines: [String]) throws -> BenchRows {
    try BenchRows(text: lines.joined(separator: "\n") + "\n", name: "rows")
  }

  private func line(_ budget: Budget, _ figure: Double) -> String {
    BenchFigure(budget, figure).json(trace: nil)
  }

  private func verdict(_ rows: BenchRows, _ budget: Budget) -> BenchFigure.Verdict {
    rows.all.first { $0.budget == budget }!.verdict
  }

  func testARowThatWasNotMeasuredIsShownWithoutAFigure() throws {
    let rows = try rows([])
    XCTAssertEqual(rows.all.count, Budget.count)
    XCTAssertEqual(verdict(rows, .vmemQuantum), .notThere)
    XCTAssertEqual(verdict(rows, .kmemPair64), .notMeasured)
    XCTAssertFalse(BenchFigure(.kmemPair64, nil).fails, "it is not due")
    let row = BenchFigure(.vmemQuantum, nil)
    XCTAssertEqual(
      row.json(trace: nil),
      #"{"kind":"bench","name":"vmem-pair-quantum-cache","figure":null,"goal":1.500,"sense":"at most","#
        + #""unit":"x kmem pair","where":"kernel","layer":"Vmem","due":false,"met":null,"trace":null}"#
    )
    XCTAssertFalse(row.fails)
  }

  func testOnlyAGoalThatIsDueFails() throws {
    // The frame record is due; the fault-in of whole blocks belongs to a later change.
    let rows = try rows([line(.frameRecord, 33), line(.faultBlocks, 1), line(.boundaryTag, 32)])
    XCTAssertEqual(verdict(rows, .frameRecord), .missed)
    XCTAssertEqual(verdict(rows, .faultBlocks), .notYet)
    XCTAssertEqual(verdict(rows, .boundaryTag), .met)
    XCTAssertEqual(verdict(rows, .longestHeld), .notMeasured)
    XCTAssertEqual(
      Set(rows.all.filter(\.fails).map(\.row.standing)), [.due])
  }

  func testTheBootsOfTwoMachinesAreCompared() throws {
    let both = try rows([line(.bootSmall, 4_000_000), line(.bootLarge, 5_000_000)])
    XCTAssertEqual(both.all.first { $0.budget == .bootRatio }!.value, 1.25)
    let one = try rows([line(.bootLarge, 5_000_000)])
    XCTAssertEqual(verdict(one, .bootRatio), .notMeasured)
  }

  func testTheRowsThatTheKernelPrintsAreRead() throws {
    let rows = try rows([
      #"{"kind":"bench","name":"fault","figure":1401,"goal":1500,"sense":"at most","unit":"instructions","where":"kernel"}"#,
      #"{"kind":"left_out","name":"contig","why":"it takes a swap device"}"#,
    ])
    XCTAssertEqual(rows.all.first { $0.budget == .fault }!.value, 1401)
    XCTAssertEqual(rows.leftOut.map(\.name), ["contig"])
  }

  func testRowsWithoutABudgetAndGarbageAreRefused() {
    for text in [
      #"{"kind":"bench","name":"fualt","figure":1}"#, "rubbish",
      #"{"kind":"frames","name":"fault","figure":1}"#,
    ] {
      XCTAssertThrowsError(try rows([line(.fault, 1), text]), text) {
        XCTAssertEqual(($0 as? Complaint)?.status, .dataError)
        XCTAssertTrue("\($0)".contains("line 2"), "\($0)")
      }
    }
  }

  func testATraceIsNamedWhereAFigureDependsOnIt() {
    XCTAssertTrue(BenchFigure(.contigGranted, 256).json(trace: "a\"b").hasSuffix(#","trace":"a\"b"}"#))
    XCTAssertTrue(BenchFigure(.fault, 1401).json(trace: "sample").hasSuffix(#","trace":null}"#))
  }

  func testEveryRowIsJSONWithTheKeysThatToolsKnow() throws {
    for budget in Budget.all {
      let row = try XCTUnwrap(
        JSONSerialization.jsonObject(with: Data(BenchFigure(budget, 1).json(trace: "t").utf8))
          as? [String: Any])
      for key in ["kind", "name", "figure", "goal", "sense", "unit", "where", "layer", "due", "met"] {
        XCTAssertNotNil(row[key], "\(budget): \(key)")
      }
    }
  }
}
