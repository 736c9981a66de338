// `strata bench`: the budgets that concern this host, measured.

import ArgumentParser
import Foundation

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Measure what threads of this host make of Strata's allocators, against the budgets.",
    discussion: """
      Two threads, each a processor of one simulated machine, against one: pairs of an allocation and a free of 64 \
      bytes that stay on their processor, and objects that one thread allocates and the other frees. What is compared \
      runs in turns, many times; a figure is the median over the turns. It takes a few seconds. Another load on the \
      host's processors shows in the figures: have two of them to yourself.

      Build with optimisation: swift run -c release strata bench. make bench prints these rows among its own.

      Exit status: 0; 70 when a goal was missed.
      """)

  @Flag(name: .customShort("j"), help: "Print a row of JSON a figure instead of a table.")
  var json = false

  func run() throws {
    try complaining {
      Terminal.standard.beginProgress()
      let rows = try ThreadBench().rows()
      Terminal.standard.clearProgress()
      if json { rows.forEach { print($0.json) } } else { printTable(rows) }
      let missed = rows.filter { !$0.isMet }
      if let first = missed.first {
        throw Complaint("\(first.name): the goal was missed", .software)
      }
    }
  }

  private func printTable(_ rows: [BenchRow]) {
    print("bench".left(24) + "figure".right(8) + "goal".right(15) + "         unit")
    for row in rows {
      let goal = row.goal.map { "\(row.sense.rawValue) \(BenchRow.spelled($0))" } ?? "-"
      let verdict = row.goal == nil ? "" : row.isMet ? "met" : "MISSED"
      print(
        row.name.left(24) + BenchRow.spelled(row.figure).right(8) + goal.right(15) + "  " + verdict.left(7)
          + row.unit)
    }
  }
}

/// A figure and what it is to be.
struct BenchRow {
  enum Sense: String { case atMost = "at most", atLeast = "at least" }

  let name: String
  let figure: Double
  var goal: Double?
  var sense = Sense.atLeast
  let unit: String

  var isMet: Bool {
    guard let goal else { return true }
    return sense == .atMost ? figure <= goal : figure >= goal
  }

  static func spelled(_ value: Double) -> String { String(format: "%.2f", value) }

  var json: String {
    """
    {"kind":"bench","name":"\(name)","figure":\(Self.spelled(figure)),\
    "goal":\(goal.map(Self.spelled) ?? "null"),"sense":"\(sense.rawValue)","unit":"\(unit)","where":"host"}
    """
  }
}
