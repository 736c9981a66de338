import Foundation
import TestSupport
import XCTest

/// A person's session at the prompt of a machine as `make run` boots it, typed as fast as a paste.
final class BootConversationTests: XCTestCase {
  private func machine(processors: Int = 2) -> Boot {
    var boot = Boot()
    boot.memory = "320M"
    boot.processors = processors
    boot.module = Boot.sample
    boot.line = "swap.ramdisk=67108864 color=0"
    return boot
  }

  /// A session on a terminal of so many rows and columns, past its first prompt.
  private func session(rows: Int? = nil, columns: Int = 80, processors: Int = 2) throws -> Session {
    let session = try Session(machine(processors: processors))
    // The answer to the question that the console asks at its first prompt. It may arrive before, but not before the
    // kernel has set the port up, which drops what was received until then.
    if let rows {
      session.expect("Strata")
      session.type("\u{1b}[\(rows);\(columns)R")
    }
    session.expect("strata> ")
    return session
  }

  private func leave(_ session: Session) {
    session.type("poweroff\r")
    XCTAssertEqual(session.waitForExit(), Boot.Status.success)
    XCTAssertFalse(session.text.contains("FAULT"), session.text)
  }

  func testEachExampleOfHelpIsTyped() throws {
    let rows = try machine().run("help -j").rows("command")
    XCTAssertGreaterThan(rows.count, 30)
    // Long enough that no listing stops for a key.
    let session = try session(rows: 5000)
    for row in rows {
      let name = try XCTUnwrap(row["command"] as? String)
      // These three end the machine.
      if ["fault", "panic", "poweroff"].contains(name) { continue }
      if let after = row["after"] as? String { type(after, in: session) }
      let example = try XCTUnwrap(row["example"] as? String)
      session.type(example + "\r")
      if name == "tour" {
        for _ in 0..<12 {
          session.expect("-- Enter goes on")
          session.type("\r")
        }
      } else if name == "watch" {
        session.expect("any key stops.")
        session.type("q")
      }
      session.expect("strata> ")
      // A wire keeps its pages from being freed.
      if name == "wire" { type("un" + example, in: session) }
      if ["dirty", "unwire", "contig"].contains(name) {
        type("dirty free", in: session)
        type("contig free all", in: session)
      }
    }
    for wrong in ["No command", "not understood", "Usage:", "is missing", " failed.", "! "] {
      XCTAssertFalse(
        session.text.components(separatedBy: "strata> ").contains { $0.contains("\n\(wrong)") }, wrong)
    }
    leave(session)
  }

  private func type(_ line: String, in session: Session) {
    session.type(line + "\r")
    session.expect("strata> ")
  }

  func testEachWrongLineIsAnsweredByARealMachine() throws {
    let session = try session()
    let lines = WrongLines.all
    // All at once: bytes that don't fit the ring wait in the port.
    session.type(lines.map { $0 + "\r" }.joined())
    for line in lines { session.expect("\(line)\r\n") }
    session.expect("strata> ")
    let answers = session.text.components(separatedBy: "strata> ").dropFirst().prefix(lines.count)
    for (line, answer) in zip(lines, answers) {
      let said = answer.dropFirst(line.count + 1)
      XCTAssertFalse(said.isEmpty, "\(line): silence")
      XCTAssertLessThanOrEqual(said.filter { $0 == "\n" }.count, 4, "\(line): \(said)")
    }
    type("selftest invariants", in: session)
    XCTAssertTrue(session.text.contains("1 passed, 0 failed"))
    leave(session)
    // As a script meets it: the status says that a command was refused.
    XCTAssertEqual(try machine().run("frames; whatis zz; frames").status, Boot.Status.failed)
  }

  func testAPasteThatIsLongerThanTheRingIsRunOrRefusedAsAWhole() throws {
    let session = try session()
    // A line of 6,000 bytes: more than the port's ring and the console's line hold.
    session.type("whatis frame 300" + String(repeating: "0", count: 6000) + "\r")
    session.expect("The line is too long: 255 bytes are the most. Nothing was run.")
    // Lines of 7,000 bytes together.
    let lines = (0..<400).map { "help \($0 % 2 == 0 ? "panic" : "poweroff") \r" }
    session.type(lines.joined())
    for number in 0..<400 { session.expect("Example: \(number % 2 == 0 ? "panic" : "poweroff")") }
    session.expect("strata> ")
    leave(session)
  }

  func testATerminalThatIsResizedIsFollowed() throws {
    let session = try session(rows: 100, columns: 100)
    for columns in [60, 132, 40] {
      // The console asks again behind each command, and the answer comes with the input.
      session.type("\u{1b}[100;\(columns)Rhelp sysctl\r")
      session.expect("Example: sysctl vm")
      session.expect("strata> ")
      session.type("memmap\r")
      session.expect("memmap\r\n")
      session.expect("strata> ")
      let printed = session.text.components(separatedBy: "strata> memmap\n").last ?? ""
      let widest = printed.split(separator: "\n").filter { !$0.contains("\u{1b}") }.map(\.count).max() ?? 0
      // Figures are never cut, so a table is at least as wide as they are.
      XCTAssertLessThanOrEqual(widest, max(columns, 70), printed)
    }
    // Nonsense for a size is not believed.
    session.type("\u{1b}[0;0Rhelp panic\r")
    session.expect("Example: panic")
    session.expect("strata> ")
    leave(session)
  }

  /// Commands that take long, and what they say when Ctrl-C ends them.
  private static let interrupted = [
    ("replay", "Stopped. What was live is freed; 0 pages or objects are lost."),
    ("dirty 90%", "Stopped; the pages filled so far stay."), ("verify", "Stopped. "),
    ("launder active", "Stopped. "),
    ("launder daemon", "Stopped. The page daemon had ended its run by then."),
    ("why 2M", "^C"), ("contig 2M align=2M", "Stopped. The request had been "), ("selftest", "Stopped. "),
    ("selftest smp 60", "Stopped. "), ("bench kmem", "Stopped. These figures were measured by then."),
    ("map", "Stopped. The picture ends at "), ("whatis 0+320M", "Stopped. The list ends before frame "),
    ("watch 60 frames", "^C"), ("tour", "^C"),
    ("dirty free", "Stopped. The command had ended its work by then."),
  ]

  func testCtrlCEndsEachLongCommandAndTheNextOneRuns() throws {
    let session = try session()
    for (number, (line, words)) in Self.interrupted.enumerated() {
      XCTAssertTrue(interrupt(line, words, in: session, number), "\(line): \(words)")
    }
    // In the middle of the work, too.
    for (number, line) in ["selftest smp 60", "selftest history", "replay"].enumerated() {
      XCTAssertTrue(interrupt(line, "Stopped. ", in: session, 100 + number, after: 0.3), line)
    }
    type("selftest invariants", in: session)
    leave(session)
  }

  /// Types a line and a Ctrl-C, then the next command. Answers whether the line said `words`: it has more tries, for it
  /// may have ended before the Ctrl-C came. Each try waits half as long as the one before: a fast machine replays its
  /// trace in less than `seconds`.
  private func interrupt(
    _ line: String, _ words: String, in session: Session, _ number: Int, after seconds: TimeInterval = 0
  ) -> Bool {
    var wait = seconds
    for _ in 0..<8 {
      let before = session.text.count
      if wait == 0 {
        session.type("\(line)\r\u{3}")
      } else {
        session.type("\(line)\r")
        Thread.sleep(forTimeInterval: wait)
        session.type("\u{3}")
        wait /= 2
      }
      // By the command, or by the prompt behind it.
      session.expect("^C")
      session.type("whatis frame \(300 + number)\r")
      session.expect("frame      \(300 + number) at ")
      session.expect("strata> ")
      if session.text.dropFirst(before).contains(words) { return true }
    }
    return false
  }

  /// The README shows figures of one machine; its columns are those that are printed.
  func testTheTablesOfTheReadmeHaveTheColumnsThatArePrinted() throws {
    let file = DocumentLines.root.appendingPathComponent("README.md")
    let shown = Set(try String(contentsOf: file, encoding: .utf8).split(separator: "\n").map(collapsed))
    var boot = machine(processors: 1)
    boot.countsInstructions = true
    let log = try boot.run("replay; frames; cpus; threads; dirty 60%; contig 2M align=2M").text
    let heading = try Regex("^[a-z]+(?: +[a-z]+){3,}$")
    let headings = log.split(separator: "\n").filter { $0.wholeMatch(of: heading) != nil }.map(collapsed)
    XCTAssertEqual(headings.count, 5, "\(headings)")
    for heading in headings { XCTAssertTrue(shown.contains(heading), heading) }
  }

  private func collapsed(_ line: Substring) -> String { line.split(separator: " ").joined(separator: " ") }

  /// The kinds of rows that the host's console can't print have the keys of the document too.
  func testTheRowsThatOnlyARealMachinePrintsAreDocumented() throws {
    let log = try machine().run(
      "cpus -j; threads -j; locks -j; watchdog on -j; watchdog off; whatis 0x1300_0000 -j; selftest -j smp 1")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    for kind in ["cpu", "thread", "lock", "watchdog", "ram_disk", "smp"] {
      XCTAssertTrue(JSONKinds.seen.contains(kind), "\(kind): \(log.text)")
    }
  }
}
