import XCTest

/// A session with input at the prompt.
final class BootSessionTests: XCTestCase {
  func testThePromptTakesTypingEditingHistoryAndPoweroff() throws {
    let session = try Session(Boot())
    session.expect("strata> ")
    session.type("framez\u{7f}s\r")
    session.expect("all roles")
    session.expect("strata> ")
    session.type("\u{1b}[A\r")
    session.expect("all roles")
    session.expect("strata> ")
    session.type("help\r")
    session.expect("Where did my memory go?")
    session.expect("strata> ")
    session.type("poweroff\r")
    XCTAssertEqual(session.waitForExit(), Boot.Status.success)
  }

  func testTheScreenOfAPCSaysWhereTheConsoleIs() throws {
    for loader in [Boot.Loader.pvh, .grub] {
      let session = try Session(Boot(loader: loader, line: "color=0", hasMonitor: true))
      session.expect("strata> ")
      // A character has a code and an attribute.
      let cells = session.memoryByMonitor(at: 0xb8000, count: 160)
      XCTAssertEqual(cells.count, 160)
      let line = String(decoding: stride(from: 0, to: cells.count, by: 2).map { cells[$0] }, as: UTF8.self)
      XCTAssertTrue(
        line.hasPrefix("Strata runs. Its console is on the serial port COM1: 115200 baud, 8N1. "),
        "\(loader): \(line)")
    }
  }

  func testKeysThatAreTypedWhileACommandRunsAreKept() throws {
    let session = try Session(Boot(line: "color=0"))
    session.expect("strata> ")
    let many = (0..<40).map { "whatis frame \(300 + $0)\r" }.joined()
    session.type(many)
    for number in 0..<40 { session.expect("frame \(300 + number)") }
    session.type("poweroff\r")
    XCTAssertEqual(session.waitForExit(), Boot.Status.success)
  }

  /// More than the port's ring holds: the port holds the sender back, and nothing is lost.
  func testALongPasteWhileACommandRunsLosesNothing() throws {
    let session = try Session(Boot(line: "color=0"))
    session.expect("strata> ")
    session.type((0..<700).map { "whatis frame \(300 + $0)\r" }.joined())
    for number in 0..<700 { session.expect("frame \(300 + number)") }
    session.type("poweroff\r")
    XCTAssertEqual(session.waitForExit(), Boot.Status.success)
  }

  func testControlCEndsAReplayAndGivesEverythingBack() throws {
    let session = try Session(Boot(line: "color=0", module: Boot.sample))
    session.expect("strata> ")
    session.type("replay\r\u{3}")
    session.expect("0 pages or objects are lost")
    session.expect("strata> ")
    session.type("poweroff\r")
    XCTAssertEqual(session.waitForExit(), Boot.Status.success)
  }
}
