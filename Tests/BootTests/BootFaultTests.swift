import XCTest

/// Each kind of fault stops the machine with a report of its own.
final class BootFaultTests: XCTestCase {
  func report(of kind: String, contains words: [String], file: StaticString = #filePath, line: UInt = #line)
    throws
  {
    let log = try Boot().run("fault \(kind)")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text, file: file, line: line)
    for text in log.text.split(separator: "\n") { XCTAssertLessThanOrEqual(text.count, 80, String(text)) }
    for word in ["FAULT", "by way of", "exit status 37"] + words {
      XCTAssertTrue(log.text.contains(word), "no \"\(word)\" in\n\(log.text)", file: file, line: line)
    }
  }

  func testANullPointerIsReported() throws { try report(of: "null", contains: ["null page", "walk"]) }
  func testAnAccessToAGuardPageIsReported() throws { try report(of: "guard", contains: ["guard", "walk"]) }
  func testAWriteToTheTextIsReported() throws { try report(of: "write-text", contains: ["write", "walk"]) }
  func testAnExecutionOfDataIsReported() throws {
    try report(of: "execute-data", contains: ["execut", "walk"])
  }
  func testAStackOverflowIsReported() throws {
    try report(of: "stack-overflow", contains: ["guard page", "stack"])
  }
  func testADivisionByZeroIsReported() throws { try report(of: "divide", contains: ["divide error"]) }
  func testAnArithmeticOverflowIsReported() throws {
    try report(of: "overflow", contains: ["arithmetic overflow", ".swift:"])
  }
  func testADoubleFreeIsReported() throws {
    try report(of: "double-free", contains: ["double free", "owner"])
  }
  func testAFreeOfTheWrongSizeIsReported() throws {
    try report(of: "wrong-size", contains: ["wrong size", "owner", "  called    "])
  }
  func testAFreeOfAForeignPointerIsReported() throws {
    let log = try Boot().run("fault foreign-pointer").text
    XCTAssertTrue(log.contains("FAULT  foreign pointer") && log.contains("  called    "), log)
    XCTAssertFalse(log.contains("and again"), log)
  }
  func testALockAgainstItsRankIsReportedWithBothNames() throws {
    try report(
      of: "lock-order", contains: ["holds registry (rank 70)", "acquires physical domain (rank 60)"])
  }

  func testAPanicIsReported() throws {
    let log = try Boot().run("panic")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
  }

  func testAnUnknownKindOfFaultIsAnErrorAndNoFault() throws {
    let log = try Boot().run("fault nothing")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }
}
