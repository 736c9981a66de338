import Foundation
import MemoryPrimitives
import XCTest

@testable import Console

final class SysctlCommandTests: XCTestCase {
  nonisolated(unsafe) static var passes: UInt64 = 4
  nonisolated(unsafe) static var strategy: UInt64 = 1

  func harness() -> ConsoleHarness {
    Self.passes = 4
    Self.strategy = 1
    let harness = ConsoleHarness()
    harness.statistics.add(
      Statistic(
        "xy.contig.passes", .events, .tunable, "how far a request may go", range: 1...4, context: nil,
        read: { _ in SysctlCommandTests.passes }, write: { SysctlCommandTests.passes = $1 }))
    harness.statistics.add(
      Statistic(
        "xy.contig.strategy", .choice, .tunable, "only the run, or launder and hope", choices: "old|new",
        context: nil, read: { _ in SysctlCommandTests.strategy },
        write: { SysctlCommandTests.strategy = $1 }))
    harness.statistics.add(
      Statistic("xy.contig.granted", .requests, .counter, "since boot", context: nil, read: { _ in 1234 }))
    harness.statistics.add(
      Statistic(
        "zs.requests", .requests, .counter, "since boot", context: nil,
        read: { _ in SysctlCommandTests.passes }))
    return harness
  }

  func testATreeIsShownByItsBeginning() {
    let harness = harness()
    XCTAssertEqual(
      harness.run("sysctl xy.contig"),
      """
      name                value  unit      =  what it does
      xy.contig.passes        4  events    =  how far a request may go
      xy.contig.strategy    new  old|new   =  only the run, or launder and hope
      xy.contig.granted   1,234  requests     since boot
      A name with = is a tunable: sysctl vm.contig.passes=4. -v shows what it takes.

      """)
    XCTAssertEqual(
      harness.run("sysctl zs.requests -j"),
      #"{"kind":"sysctl","name":"zs.requests","value":4,"unit":"requests","about":"since boot","settable":false,"choices":null,"minimum":null,"maximum":null}"#
        + "\n")
  }

  /// The table with -v and the rows for tools say what a tunable takes, from the declaration that `set` follows.
  func testEachTunableSaysWhatItTakes() throws {
    let harness = harness()
    XCTAssertEqual(
      harness.run("sysctl -v xy.contig"),
      """
      name                value  unit      = takes  what it does
      xy.contig.passes        4  events    1 to 4   how far a request may go
      xy.contig.strategy    new  old|new   old|new  only the run, or launder and hope
      xy.contig.granted   1,234  requests           since boot
      What has a value below "takes" is a tunable, as in: sysctl vm.contig.passes=4

      """)
    XCTAssertTrue(
      harness.run("sysctl xy.contig.passes -j").hasSuffix(#""choices":null,"minimum":1,"maximum":4}"# + "\n"))
    XCTAssertTrue(
      harness.run("sysctl xy.contig.strategy -j").hasSuffix(
        #""choices":"old|new","minimum":null,"maximum":null}"# + "\n"))
    XCTAssertTrue(harness.run("sysctl -v vm.free_target").contains("0 to 8,143"))
    for i in 0..<harness.statistics.count where harness.statistics[i].kind == .tunable {
      let row = harness.statistics[i]
      // Each real tunable has bounds, takes both, and nothing beyond.
      XCTAssertLessThan(row.range.upperBound, .max, "\(row.name)")
      let before = row.value
      for value in [row.range.lowerBound, row.range.upperBound] {
        XCTAssertEqual(row.set(value), .accepted, "\(row.name)=\(value)")
        XCTAssertEqual(row.value, value, "\(row.name)")
      }
      XCTAssertEqual(row.set(row.range.upperBound + 1), .out_of_range, "\(row.name)")
      if row.range.lowerBound > 0 {
        XCTAssertEqual(row.set(row.range.lowerBound - 1), .out_of_range, "\(row.name)")
      }
      XCTAssertEqual(row.value, row.range.upperBound)
      XCTAssertEqual(row.set(before), .accepted)
    }
  }

  func testSysctlSaysTheNewValueOrWhyItIsRefused() {
    let harness = harness()
    XCTAssertEqual(harness.run("sysctl xy.contig.passes=2"), "xy.contig.passes: 4 -> 2\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.passes=9"),
      "9 is out of range: xy.contig.passes takes 1 to 4 events. It stays 2.\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.strategy=odl"),
      "No value \"odl\" for xy.contig.strategy: old|new. It stays new.\n")
    XCTAssertEqual(harness.run("sysctl xy.contig.strategy=old"), "xy.contig.strategy: new -> old\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.granted=1"),
      "xy.contig.granted is a statistic, which is read only.\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.pases"),
      "No tunable \"xy.contig.pases\". Did you mean xy.contig.passes?\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.passes=2x"),
      """
      sysctl xy.contig.passes=2x
                               ^ no number: digits, with _ or , between them, or 0x and hex digits

      """.replacingOccurrences(of: " no number", with: "\nno number"))
  }

  func testDiffShowsTheCountersThatChanged() {
    let harness = harness()
    XCTAssertEqual(harness.run("diff"), "There is no snapshot. Type: snapshot\n")
    harness.run("snapshot before")
    XCTAssertEqual(
      harness.run("diff"), "All \(harness.statistics.count) counters are unchanged.\n")
    Self.passes = 2000
    XCTAssertEqual(
      harness.run("diff before"),
      """
      counter           before    now  change
      xy.contig.passes       4  2,000  +1,996
      zs.requests            4  2,000  +1,996
      \(harness.statistics.count - 2) others are unchanged.

      """)
    Self.passes = 1
    XCTAssertTrue(harness.run("diff before -j").contains(#""change":-3"#))
    for name in ["a", "b", "c"] { harness.run("snapshot \(name)") }
    XCTAssertTrue(harness.run("snapshot d").contains("\"before\" was dropped"))
    XCTAssertTrue(harness.run("diff before").hasPrefix("No snapshot \"before\". The latest is \"d\"."))
    // One that is kept anew is not the oldest.
    harness.run("snapshot a")
    XCTAssertTrue(harness.run("snapshot e").contains("\"b\" was dropped"))
  }

  /// A flag may stand before the seconds.
  func testWatchTakesItsSecondsBehindAFlag() {
    let harness = ConsoleHarness()
    let rows = harness.run("watch -j 2 frames")
    XCTAssertTrue(rows.contains("\"kind\":\"frames\""), rows)
    XCTAssertFalse(rows.contains("No command"), rows)
  }
}
