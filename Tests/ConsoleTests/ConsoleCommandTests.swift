import Foundation
import MemoryPrimitives
import XCTest

@testable import Console

final class ConsoleCommandTests: XCTestCase {
  func testAnUnknownCommandGetsAHint() {
    let harness = ConsoleHarness()
    XCTAssertEqual(harness.run("frame"), "No command \"frame\". Did you mean frames? (help lists all)\n")
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertEqual(
      harness.run("pagetabel"), "No command \"pagetabel\". Did you mean pagetable? (help lists all)\n")
    XCTAssertEqual(harness.run("xyzzy"), "No command \"xyzzy\". help lists all.\n")
    XCTAssertEqual(
      harness.run("xyzzy -j"),
      #"{"kind":"error","what":"No command \"xyzzy\". help lists all.","line":"xyzzy -j","column":null}"#
        + "\n")
  }

  func testASurplusWordIsPointedAt() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("panic now"),
      """
      panic now
            ^^^ not understood here; usage: panic

      """)
    XCTAssertEqual(harness.terminal.panics, 0)
    XCTAssertEqual(
      harness.run("help \"map"),
      """
      help "map
           ^ a quote is opened here and never closed

      """)
  }

  func testEachCommandHasHelpThatFitsTheScreenAndAnExampleOfItself() {
    let harness = ConsoleHarness()
    Command.forEach { command in
      let description = command.description
      let text = harness.run("help \(description.name)")
      XCTAssertTrue(text.contains("  Example"), text)
      XCTAssertTrue(text.contains("\(description.example)"), text)
      XCTAssertTrue("\(description.example)".hasPrefix("\(description.name)"))
      XCTAssertTrue("\(description.usage)".hasPrefix("\(description.name)"))
      XCTAssertTrue("\(description.entry)".hasPrefix("\(description.name)"))
      XCTAssertTrue(
        harness.run("help").contains("\(description.entry)"), "help does not name \(description.name)")
    }
    for line in harness.run("help").split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80) }
    XCTAssertEqual(harness.run("help -j").split(separator: "\n").count, Command.count)
  }

  func testNamesThatOtherSystemsGiveACommandLeadToIt() {
    let harness = ConsoleHarness()
    XCTAssertEqual(harness.run("?"), harness.run("help"))
    XCTAssertEqual(harness.run("free"), harness.run("frames"))
    for word in ["exit", "quit", "halt"] {
      let other = ConsoleHarness()
      other.run(word)
      XCTAssertEqual(other.terminal.left, [0], word)
    }
    for word in ["top", "ps"] { XCTAssertFalse(harness.run(word).contains("No command"), word) }
    // No two commands share a name or a synonym.
    var seen: Set<String> = []
    Command.forEach { command in
      XCTAssertTrue(seen.insert("\(command.description.name)").inserted)
      forEachWord(of: command.description.synonyms) { word in
        XCTAssertTrue(seen.insert(String(decoding: word, as: UTF8.self)).inserted)
      }
    }
  }

  func testARunListEchoesItsCommandsAndLeavesWithTheWorstStatus() {
    let harness = ConsoleHarness()
    bytes("run=\"help map; nonsense; help buddy\"") { harness.console.serve(KernelCommandLine($0)) }
    XCTAssertEqual(harness.terminal.left, [1])
    let log = harness.terminal.taken()
    XCTAssertTrue(log.contains("strata> help map\nmap [ADDRESS+SIZE]"))
    XCTAssertTrue(log.contains("strata> help buddy\n"))
    XCTAssertFalse(log.contains("\u{1b}"))
    let fine = ConsoleHarness()
    bytes("run=\"help; poweroff; nonsense\"") { fine.console.serve(KernelCommandLine($0)) }
    XCTAssertEqual(fine.terminal.left, [0])
  }

  func testTunablesOfTheCommandLineAreSetAndATypoFailsTheRun() {
    let harness = ConsoleHarness()
    bytes("vm.nothing=3 run=help") { harness.console.serve(KernelCommandLine($0)) }
    XCTAssertEqual(harness.terminal.left, [1])
    XCTAssertTrue(harness.terminal.taken().contains("\"vm.nothing\", which is no tunable"))
  }

  func testFaultsAreAskedForByName() {
    let harness = ConsoleHarness()
    harness.run("fault stack-overflow")
    XCTAssertEqual(harness.terminal.triggered, [Shell.Fault.stackOverflow.rawValue])
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(harness.run("fault stakc").contains("^^^^^ no such fault"))
    XCTAssertEqual(harness.outcome, .refused)
  }
}
