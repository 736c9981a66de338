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

  /// The port's interrupt comes to processor 0. The console removes bytes on the other one while the handler stores
  /// them and finds the ring full: the two switch the interrupt off and on at the same time.
  func testALongPasteLosesNothingWhileAnotherProcessorPrints() throws {
    var lines: [String] = []
    for number in 0..<1200 {
      lines.append("whatis frame \(300 + number)")
      // Both processors are at work while the ring fills, so the console changes its processor now and then.
      if number % 300 == 0 { lines.append("selftest smp 1") }
      if number % 20 == 0 { lines.append("threads -j") }
    }
    XCTAssertGreaterThan(lines.map(\.count).reduce(0, +), 2 * 8192, "the port's ring")
    // The scheduler chooses the processor: a session in which it was always the first one proves nothing.
    for _ in 0..<5 {
      let session = try Session(Boot(processors: 2, line: "color=0"))
      session.expect("strata> ")
      session.type(lines.map { $0 + "\r" }.joined())
      session.type("poweroff\r")
      XCTAssertEqual(session.waitForExit(), Boot.Status.success)
      let parts = session.text.components(separatedBy: "strata> ").dropFirst().map { String($0) }
      XCTAssertEqual(parts.count, lines.count + 1)
      // Each line is echoed whole, in its turn, and its answer stands behind it alone.
      for (line, part) in zip(lines, parts) {
        guard part.hasPrefix(line + "\n") else { return XCTFail("\(line): \(part.prefix(300))") }
        let answer = part.dropFirst(line.count + 1)
        if line.hasPrefix("whatis") {
          let frame = line.split(separator: " ").last.map(String.init) ?? ""
          XCTAssertTrue(answer.contains("frame      \(frame) at 0x"), part)
        }
      }
      let threads = Boot.Log(text: session.text, status: Boot.Status.success).rows("thread")
      let places = Set(threads.filter { $0["name"] as? String == "console" }.map { $0["cpu"] as? Int })
      if places.contains(1) { return }
    }
    XCTFail("the console ran on processor 0 in each session")
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
