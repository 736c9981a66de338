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
      #"{"kind":"error","what":"No command \"xyzzy\". help lists all.","line":"xyzzy -j"}"# + "\n")
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
    for i in 0..<Command.all.count {
      let command = Command.all[i]
      XCTAssertEqual(Int(command.verb.rawValue), i)
      let text = harness.run("help \(command.name)")
      for line in text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
      XCTAssertTrue("\(command.example)".hasPrefix("\(command.name)"))
      XCTAssertTrue("\(command.usage)".hasPrefix("\(command.name)"))
      if command.verb != .help {
        XCTAssertTrue(harness.run("help").contains("\(command.name)"), "help does not name \(command.name)")
      }
    }
    for line in harness.run("help").split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80) }
    XCTAssertEqual(harness.run("help -j").split(separator: "\n").count, Command.all.count)
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
