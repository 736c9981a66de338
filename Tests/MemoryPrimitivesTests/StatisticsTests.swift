// The registry of statistics: rows are found by their whole name.

import MemoryPrimitives
import XCTest

final class StatisticsTests: XCTestCase {
  func testRowsWhoseNamesBeginAlikeAreReportedApart() {
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Statistics.size(capacity: 2).rawValue), alignment: 64)
    defer { memory.deallocate() }
    let statistics = Statistics(memory, capacity: 2)
    // Alike in more bytes than a `ShortName` keeps.
    statistics.add(
      Statistic(
        "driver.queue.requests.that.were.sent", .events, .counter, "sent", context: nil, read: { _ in 1 }))
    statistics.add(
      Statistic(
        "driver.queue.requests.that.were.lost", .events, .counter, "lost", context: nil, read: { _ in 2 }))
    XCTAssertEqual(statistics.value(of: "driver.queue.requests.that.were.sent"), 1)
    XCTAssertEqual(statistics.value(of: "driver.queue.requests.that.were.lost"), 2)
    XCTAssertNil(statistics.value(of: "driver.queue.requests.that.were"))
    XCTAssertEqual(statistics.count, 2)
  }
}
