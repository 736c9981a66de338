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
        "xy.contig.passes", .events, .tunable, "how far a request may go, 1 to 4", context: nil,
        read: { _ in SysctlCommandTests.passes },
        write: {
          guard $1 >= 1 && $1 <= 4 else { return .out_of_range }
          SysctlCommandTests.passes = $1
          return .accepted
        }))
    harness.statistics.add(
      Statistic(
        "xy.contig.strategy", .choice, .tunable, "only the run, or launder and hope", choices: "old|new",
        context: nil, read: { _ in SysctlCommandTests.strategy },
        write: {
          SysctlCommandTests.strategy = $1
          return .accepted
        }))
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
      xy.contig.passes        4  events    =  how far a request may go, 1 to 4
      xy.contig.strategy    new  old|new   =  only the run, or launder and hope
      xy.contig.granted   1,234  requests     since boot
      A name with = is a tunable, as in: sysctl vm.contig.passes=4

      """)
    XCTAssertEqual(
      harness.run("sysctl zs.requests -j"),
      #"{"kind":"sysctl","name":"zs.requests","value":4,"unit":"requests","about":"since boot","settable":false,"choices":null}"#
        + "\n")
  }

  func testSysctlSaysTheNewValueOrWhyItIsRefused() {
    let harness = harness()
    XCTAssertEqual(harness.run("sysctl xy.contig.passes=2"), "xy.contig.passes: 4 -> 2\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.passes=9"),
      "9 is out of range: how far a request may go, 1 to 4. It stays 2.\n")
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
  }
}
