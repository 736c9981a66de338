// `strata selftest`: the self-tests of the kernel's console, on a simulated machine.

import ArgumentParser
import Foundation
import MemoryPrimitives
import Workloads

struct SelfTestCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "selftest",
    abstract: "Check the invariants of every layer and run the self-tests, on a simulated machine.",
    discussion: """
      The same code as the console's `selftest`: the checksums of the seeded histories are those of the kernel. smp \
      needs the kernel's threads, and is left out.

      Examples:
        strata selftest
        strata selftest history -j

      Exit status: 0; 69 when nothing could be tested; 70 when a test failed.
      """)

  @Argument(help: "The only test to run.")
  var name: String?

  @Option(name: .shortAndLong, help: "Memory of the simulated machine.")
  var memory = Size(argument: "256M")!

  @Flag(name: [.customShort("j"), .long], help: "Print rows of JSON instead of lines.")
  var json = false

  private static var all: [SelfTest] { (0...SelfTest.last.rawValue).compactMap { SelfTest(rawValue: $0) } }
  private var tests: [SelfTest] { Self.all.filter { name == nil || "\($0.name)" == name } }

  func validate() throws {
    guard tests.isEmpty else { return }
    let names = Self.all.map { "\($0.name)" }.joined(separator: " ")
    throw ValidationError("no self-test is called \"\(name ?? "")\": \(names)")
  }

  func run() throws {
    try complaining {
      let machine = try PagedMachine(memory: memory.bytes, swap: memory.bytes)
      let all = SelfTests(machine.memory, machine.access, processors: 0)
      var (passed, failed, leftOut) = (0, 0, 0)
      for test in tests {
        let report = SelfTestReport()
        let outcome = all.run(test, report)
        switch outcome {
        case .passed: passed += 1
        case .broken: failed += 1
        case .notBegun: leftOut += 1
        }
        for history in report.histories { try printResult(json ? history.row : history.text) }
        try printResult(json ? row(test, outcome) : text(test, outcome))
      }
      withExtendedLifetime(machine) {}
      if !json {
        let sum = "\(passed) passed, \(failed) failed"
        try printResult(leftOut > 0 ? "\(leftOut) left out, \(sum)" : sum)
      }
      if failed > 0 { throw Complaint("\(counted(UInt64(failed), "self-test")) failed", .software) }
      if passed == 0 { throw Complaint("nothing was tested", .unavailable) }
    }
  }

  private func text(_ test: SelfTest, _ outcome: SelfTestOutcome) -> String {
    let name = "\(test.name)".left(12)
    switch outcome {
    case .passed: return "\(name)  passed  \(test.about)"
    case .broken(let what): return "\(name)  FAILED  \(test.about)\n! \(what)"
    case .notBegun(let why): return "\(name)  left out: \(why.text); could not begin"
    }
  }

  private func row(_ test: SelfTest, _ outcome: SelfTestOutcome) -> String {
    var row = JSONRow("selftest")
    row.add("name", "\(test.name)")
    var (passed, broken, leftOut): (Bool?, String?, String?)
    switch outcome {
    case .passed: passed = true
    case .broken(let what): (passed, broken) = (false, "\(what)")
    case .notBegun(let why): leftOut = why.text
    }
    row.add("passed", passed)
    row.add("broken", broken)
    row.add("left_out", leftOut)
    return row.text
  }
}

/// Gathers the histories of a self-test.
private final class SelfTestReport: SelfTestObserver {
  struct History {
    let name: String
    let outcome: HistoryOutcome

    private var checksum: String { Line("\(hex: outcome.checksum, digits: 16)").text }
    var text: String {
      "  \(name.left(14))\(checksum)  \(counted(outcome.operations, "operation")), \(grouped(outcome.refused)) refused"
    }
    var row: String {
      var row = JSONRow("history")
      row.add("name", name)
      row.add("checksum", checksum)
      row.add("operations", outcome.operations)
      row.add("granted", outcome.granted)
      row.add("refused", outcome.refused)
      return row.text
    }
  }

  private(set) var histories: [History] = []

  func ran(_ history: StaticString, _ outcome: HistoryOutcome) {
    histories.append(History(name: "\(history)", outcome: outcome))
  }
  func ran(_ plan: ProcessorStressPlan, _ outcome: ProcessorStressOutcome) {}
  func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
    .goOn
  }
  var pace: Pace { .goOn }
}
