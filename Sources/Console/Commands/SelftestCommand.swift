// selftest: checks the running system. Each test leaves memory unchanged, and checks that it has.

import MemoryPrimitives
import Workloads

extension CommandDescription {
  static var selftest: CommandDescription {
    CommandDescription(
      name: "selftest", usage: "selftest [NAME] [SECONDS]",
      about: """
        Checks the invariants of each layer, and runs the self-tests: among them
        the same seeded history of operations that the tests run on the host.
        smp uses all layers at once on all processors, and zs the compressed store,
        for 10 seconds or SECONDS.
        """,
      example: "selftest history", question: .trial,
      completion: .names(of: .selfTests))
  }
}

extension SelfTest: NamedCases {}

extension Shell {
  func selftest(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.next()
    let seconds = try seconds(word, arguments)
    try arguments.end()
    let only: SelfTest? = try named(word, otherwise: "no such test:")
    let executive = state.pointee.host.executive
    let tests = SelfTests(
      memory, access, processors: executive?.processorCount ?? 0, interrupts: executive?.interrupts,
      seconds: seconds)
    var (failed, passed, leftOut, asked) = (UInt64(0), UInt64(0), UInt64(0), UInt64(0))
    var isCutOff = false
    SelfTest.forEach { test in
      guard only == nil || only == test else { return }
      asked += 1
      if hasStopped || shouldStop { return }
      let outcome = tests.run(test, SelfTestReport(console: self))
      isCutOff = hasStopped
      switch outcome {
      case .passed: passed += 1
      case .broken: failed += 1
      case .notBegun: leftOut += 1
      }
      // The test that Ctrl-C ended has an outcome too.
      printDone { report(test, outcome) }
    }
    var sum = Line()
    if leftOut > 0 { sum.append(line: "\(count: leftOut) left out, ") }
    sum.append(line: "\(count: passed) passed, \(count: failed) failed")
    let done = passed + failed + leftOut
    var stopped: Line = "Stopped. \(count: done) of \(count: asked, "test") ran"
    stopped.append(isCutOff ? ", the last not to its end." : ".")
    if isStopped(stopped) {
      printDone { print(sum) }
    } else {
      print(sum)
    }
    if failed > 0 { throw .failed }
    // Nothing was tested.
    if passed == 0 { throw .unfit }
  }

  /// The duration of the test of processors: as given, 10 seconds when it runs by name, and one second among all
  /// tests.
  private func seconds(_ name: Word?, _ arguments: Arguments) throws(CommandError) -> UInt64 {
    guard let name, name.bytes == "smp" || name.bytes == "zs" else { return 1 }
    guard let word = arguments.next() else { return 10 }
    let seconds = try arguments.number(word)
    guard seconds > 0, seconds <= 86_400 else { throw refuse(word, "from a second to a day") }
    return seconds
  }

  private func report(_ test: SelfTest, _ outcome: SelfTestOutcome) {
    row("selftest") { row in
      row.field("name", text: Line(test.name))
      switch outcome {
      case .passed:
        row.field("passed", truth: .yes)
        row.none("broken")
        row.none("left_out")
      case .broken(let what):
        row.field("passed", truth: .no)
        row.field("broken", text: Line(what))
        row.none("left_out")
      case .notBegun(let why):
        row.none("passed")
        row.none("broken")
        row.field("left_out", text: why)
      }
    }
    let name: Line = "\(left: Line(test.name), 12)"
    switch outcome {
    case .passed: print("\(name)  passed  \(test.about)")
    case .broken(let what):
      print("\(name)  FAILED  \(test.about)")
      print("! \(what)")
    case .notBegun(let why): print("\(name)  left out: \(why); could not begin")
    }
  }
}

/// Prints what self-tests find besides their outcomes.
private struct SelfTestReport: SelfTestObserver {
  let console: Shell

  func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
    console.pace(Line(what), done, of: total, unit)
  }
  var pace: Pace { console.shouldStop ? .stop : .goOn }

  func ran(_ history: StaticString, _ outcome: HistoryOutcome) {
    console.report("history") { report in
      let name: Line = "  \(left: Line(history), 14)"
      report.keep("\(key: "name", only: .words(history))")
      report.write(
        "\(name)\(key: "checksum", hex: outcome.checksum, digits: 16)  \(key: "operations", count: outcome.operations) operations, \(key: "granted", only: outcome.granted)\(key: "refused", count: outcome.refused) refused"
      )
    }
  }

  func ran(_ plan: ProcessorStressPlan, _ outcome: ProcessorStressOutcome) {
    console.report("smp") { report in
      report.write(
        "  \(key: "processors", count: UInt64(plan.processors), "processor"), \(key: "workers", count: outcome.workers) workers and \(key: "visitors", count: outcome.visitors, "visitor"), \(key: "seconds", count: outcome.ticks / 1000) s: \(key: "operations", count: outcome.operations) operations"
      )
      report.write(
        "  \(key: "exchanged", count: outcome.exchanged) exchanged, \(key: "remapped", count: outcome.remapped) remapped and \(key: "reads", count: outcome.reads) read, \(key: "pages", count: outcome.pages) pages used, \(key: "refused", count: outcome.refused) refused"
      )
      report.keep(
        "\(key: "rounds", only: outcome.rounds)\(key: "verdict", only: .words(outcome.failure?.invariant ?? "held"))"
      )
      guard let failure = outcome.failure else {
        return report.keep(
          "\(key: "subject", only: .none)\(key: "found", only: .none)\(key: "expected", only: .none)\(key: "processor", only: .none)\(key: "seed", only: plan.seed)"
        )
      }
      report.write(
        "! at \(key: "subject", hex: failure.subject): found \(key: "found", hex: failure.found), expected \(key: "expected", hex: failure.expected), seen on processor \(key: "processor", plain: UInt64(failure.processor)); seed \(key: "seed", plain: plan.seed)"
      )
    }
  }
}
