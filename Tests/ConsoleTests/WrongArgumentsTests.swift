import Foundation
import MemoryPrimitives
import TestSupport
import XCTest

@testable import Console

/// Each command with arguments that it does not take answers with one clear error: no fault, no trap, no silence.
final class WrongArgumentsTests: XCTestCase {
  func testEachWrongLineHasOneClearErrorAndChangesNothing() throws {
    let harness = ConsoleHarness(swap: .mebibytes(8))
    let free = harness.physical.freeCount
    for line in WrongLines.all {
      let said = harness.run(line)
      // The host has no processors to watch.
      XCTAssertEqual(
        harness.outcome, line.hasPrefix("watchdog") && !line.hasSuffix("\"") ? .unfit : .refused, line)
      XCTAssertTrue(said.hasSuffix("\n"), "\(line): \(said)")
      XCTAssertTrue((1...4).contains(said.filter { $0 == "\n" }.count), "\(line): \(said)")
      XCTAssertFalse(said.contains("FAULT"), said)
      if !line.contains("-j ") { assertFits(said) }
    }
    XCTAssertEqual(harness.physical.freeCount, free)
    XCTAssertEqual(harness.terminal.left + harness.terminal.triggered, [])
    XCTAssertEqual(harness.terminal.panics, 0)
    XCTAssertTrue(harness.run("selftest invariants").contains("1 passed, 0 failed"))
  }

  func testEachWrongLineHasOneRowForTools() throws {
    let harness = ConsoleHarness(swap: .mebibytes(8))
    for line in WrongLines.all.filter({ !$0.contains("-j") }) {
      let said = harness.run(line + " -j")
      XCTAssertEqual(said.filter { $0 == "\n" }.count, 1, said)
      XCTAssertTrue(said.hasPrefix(#"{"kind":"error","what":""#), "\(line): \(said)")
    }
  }

  func testALineThatIsTooLongIsRefusedAsAWhole() {
    let harness = ConsoleHarness()
    // A full line would end within a word that means something else.
    let long = "whatis frame 300" + String(repeating: "0", count: LineEditor.capacity - 16)
    XCTAssertTrue(harness.converse(long + "0\r").contains("The line is too long: 255 bytes are the most."))
    let fits = ConsoleHarness()
    let log = fits.converse(long + "\rhelp panic\r")
    XCTAssertFalse(log.contains("too long: 255"), log)
    // Once it was edited, the line is what stands there.
    let edited = ConsoleHarness().converse(long + "00\u{15}help panic\r")
    XCTAssertTrue(edited.contains("Example: panic"), edited)
    let run = ConsoleHarness()
    XCTAssertEqual(
      run.run("whatis " + String(repeating: "1", count: 600)),
      "The line is too long: 511 bytes are the most.\n")
    XCTAssertEqual(run.outcome, .refused)
    XCTAssertTrue(run.run(String(repeating: "a ", count: 30)).contains("too many words: 24 are the most"))
  }

  func testAnErrorOnALineWiderThanTheScreenNamesTheWord() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("why 2M " + String(repeating: " ", count: 80) + "zz"),
      "\"zz\": not understood here; usage: why SIZE [WHERE] [nowait]\n")
    let said = harness.run("map " + String(repeating: "z", count: 90))
    XCTAssertTrue(said.hasPrefix("\"" + String(repeating: "z", count: 40) + "...\": no number"), said)
    assertFits(said)
  }

  /// Each line that a document shows behind a prompt is one that the console understands.
  func testTheLinesOfTheDocumentsNameCommands() throws {
    let prompt = "strata> "
    let lines = try DocumentLines.all().filter { $0.line.hasPrefix(prompt) }
    XCTAssertGreaterThan(lines.count, 8)
    for (line, document) in lines {
      let word = line.dropFirst(prompt.count).prefix { $0 != " " }
      XCTAssertNotNil(bytes(String(word)) { Command.named($0) }, "\(document): \(line)")
    }
  }

  func testASnapshotHasANameThatFits() {
    let harness = ConsoleHarness()
    XCTAssertTrue(harness.run("snapshot " + String(repeating: "n", count: 31)).hasPrefix("Kept"))
    let said = harness.run("snapshot " + String(repeating: "n", count: 32))
    XCTAssertTrue(said.contains("a name has 1 to 31 bytes"), said)
    XCTAssertEqual(harness.outcome, .refused)
  }
}
