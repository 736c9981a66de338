import Foundation
import MemoryPrimitives
import XCTest

@testable import Console

final class ConversationTests: XCTestCase {
  func testTheTerminalIsAskedItsSizeAndKeysTypedBeforeItsAnswerAreKept() {
    let harness = ConsoleHarness()
    harness.terminal.later = [
      (at: 0, bytes: Array("help ma".utf8)), (at: 20, bytes: Array("\u{1b}[30;100R".utf8)),
      (at: 30, bytes: Array("p\r".utf8)),
    ]
    let log = harness.converse("")
    XCTAssertTrue(log.hasPrefix("\u{1b}7\u{1b}[999;999H\u{1b}[6n\u{1b}8strata> help map\n"), log)
    XCTAssertEqual(harness.console.state.pointee.width, 100)
    XCTAssertEqual(harness.console.state.pointee.height, 30)
    XCTAssertTrue(log.contains("map [ADDRESS+SIZE]"))
    // Once at first, and again behind the command.
    XCTAssertEqual(log.components(separatedBy: "[6n").count - 1, 2)
  }

  func testAResizeIsNoticedAtTheNextPrompt() {
    let harness = ConsoleHarness()
    harness.terminal.later = [
      (at: 5, bytes: Array("\u{1b}[30;100R".utf8)), (at: 10, bytes: Array("help map\r".utf8)),
      (at: 20, bytes: Array("help\u{1b}[50;132R map\r".utf8)),
    ]
    let log = harness.converse("")
    XCTAssertEqual(harness.console.state.pointee.width, 132)
    XCTAssertEqual(harness.console.state.pointee.height, 50)
    XCTAssertEqual(log.components(separatedBy: "map [ADDRESS+SIZE]").count - 1, 2, log)
  }

  func testWatchRedrawsInPlace() {
    let harness = ConsoleHarness()
    harness.terminal.later = [
      (at: 5, bytes: Array("\u{1b}[30;100R".utf8)), (at: 10, bytes: Array("watch 1 help panic\r".utf8)),
      (at: 3500, bytes: Array("q".utf8)),
    ]
    let log = harness.converse("")
    // The screen is cleared once; each round starts at its top, erases each line's rest and what lies below.
    XCTAssertEqual(log.components(separatedBy: "\u{1b}[2J").count - 1, 1, log)
    let rounds = log.components(separatedBy: "\u{1b}[H").count - 1
    XCTAssertGreaterThanOrEqual(rounds, 3, log)
    XCTAssertEqual(log.components(separatedBy: "any key stops.\u{1b}[K\n\u{1b}[J").count - 1, rounds, log)
    // A terminal that does not understand escapes gets none.
    let dumb = ConsoleHarness()
    XCTAssertFalse(dumb.converse("watch 1 help panic\r").dropFirst(24).contains("\u{1b}"))
  }

  func testATerminalThatNeverAnswersIs80By24AndGetsNoEscapes() {
    let harness = ConsoleHarness()
    let log = harness.converse("help\r")
    XCTAssertGreaterThanOrEqual(harness.terminal.milliseconds, 100)
    XCTAssertEqual(harness.console.state.pointee.width, 80)
    XCTAssertFalse(log.dropFirst(24).contains("\u{1b}"))
  }

  func testALateAnswerIsSwallowed() {
    let harness = ConsoleHarness()
    harness.terminal.later = [(at: 400, bytes: Array("hel\u{1b}[30;100Rp\r".utf8))]
    let log = harness.converse("")
    XCTAssertTrue(log.contains("Where did my memory go?"), log)
  }

  func testALongListingStopsAtEachScreenAndQEndsIt() {
    let harness = ConsoleHarness()
    for _ in 0..<60 {
      harness.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    var log = harness.converse("sysctl a\r\r q")
    XCTAssertEqual(log.components(separatedBy: "-- more --").count - 1, 3)
    // 23 lines, one more for Enter, 23 for Space, then q.
    XCTAssertEqual(log.components(separatedBy: "events").count - 1, 22 + 1 + 23)
    let again = ConsoleHarness()
    for _ in 0..<60 {
      again.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    log = again.converse("sysctl a\rhelp map\r")
    XCTAssertTrue(log.contains("map [ADDRESS+SIZE]"), "what was typed at -- more -- is the next command")
    XCTAssertEqual(again.run("sysctl a -j").split(separator: "\n").count, 60)
    let pasted = ConsoleHarness()
    for _ in 0..<60 {
      pasted.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    log = pasted.converse("sysctl a\rqueues\r")
    XCTAssertTrue(log.contains("strata> queues"), "a command that begins with q ends the listing and is run")
    XCTAssertFalse(log.contains("No command"), log)
  }

  func testTabDoesNotOverfillALine() {
    let harness = ConsoleHarness()
    let line = String(repeating: " ", count: 249) + "memma"
    let log = harness.converse(line + "\t\r")
    XCTAssertFalse(log.contains("The line is too long"), log)
  }

  /// However much was typed before it; the line behind it is still to be run.
  func testCtrlCIsSeenBehindALongPasteAndKeepsTheLineBehindIt() {
    let harness = ConsoleHarness()
    harness.terminal.type(String(repeating: "x", count: 2000) + "\u{03}\u{03}help map\r")
    let log = harness.run("map")
    XCTAssertTrue(log.contains("^C"), log)
    XCTAssertEqual(harness.terminal.input, Array("help map\r".utf8))
    // It is no Ctrl-C for the next command.
    XCTAssertFalse(harness.run("map").contains("^C"))
    XCTAssertEqual(harness.terminal.input, Array("help map\r".utf8))
  }

  func testEveryLineOfALongPasteIsRun() {
    let harness = ConsoleHarness()
    let log = harness.converse(
      String(repeating: "help map\r", count: 300), answering: (columns: 100, rows: 40))
    XCTAssertEqual(log.components(separatedBy: "map [ADDRESS+SIZE]").count - 1, 300)
    XCTAssertEqual(harness.console.state.pointee.width, 100, "the answer was found among the lines")
  }

  /// The escape is read between two rounds of `watch`, and Ctrl-C ends the second.
  func testASequenceThatCtrlCCutsShortSwallowsNoKey() {
    let harness = ConsoleHarness()
    harness.terminal.later = [
      (at: 5, bytes: Array("\u{1b}[30;100R".utf8)), (at: 10, bytes: Array("watch 1 help panic\r".utf8)),
      (at: 1005, bytes: Array("\u{1b}[".utf8)), (at: 1010, bytes: Array("\u{03}help map\r".utf8)),
    ]
    let log = harness.converse("")
    XCTAssertTrue(log.contains("^C"), log)
    XCTAssertTrue(log.contains("strata> help map\n"), log)
    XCTAssertTrue(log.contains("map [ADDRESS+SIZE]"), log)
  }

  func testCtrlCEndsALineAndALongCommand() {
    let harness = ConsoleHarness()
    let log = harness.converse("frames\u{03}help map\r")
    XCTAssertTrue(log.contains("^C\nstrata> help map"))
    let other = ConsoleHarness()
    for _ in 0..<60 {
      other.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    XCTAssertTrue(other.converse("watch 1 help map\r").contains("any key stops"))
  }

  func testTabCompletesCommandsAndTunables() {
    let harness = ConsoleHarness()
    harness.statistics.add(
      Statistic("xy.contig.passes", .events, .tunable, "x", context: nil, read: { _ in 4 }))
    harness.statistics.add(
      Statistic("xy.contig.strategy", .events, .tunable, "x", context: nil, read: { _ in 4 }))
    let log = harness.converse("pag\t\u{15}sysctl xy.c\t\tp\t\u{15}sna\tx\r")
    XCTAssertTrue(log.contains("pagetable "))
    XCTAssertTrue(log.contains("xy.contig.passes  xy.contig.strategy\n"), log)
    XCTAssertTrue(log.contains(" counters as \"x\". Type: diff x"), log)
  }

  func testCtrlDSaysHowToLeave() {
    let harness = ConsoleHarness()
    XCTAssertTrue(harness.converse("\u{04}").contains("Type poweroff to leave"))
  }
}
