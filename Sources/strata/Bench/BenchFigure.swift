// A measured row of the budgets, as JSON and as a line of the table, and the verdict on all of them.

import Foundation
import Workloads

/// A row and its measured figure; none where nothing can be measured yet.
struct BenchFigure {
  enum Verdict: Equatable {
    /// The row has no goal.
    case none
    case met
    /// The goal was missed, and a later change is to meet it.
    case notYet
    case missed
    /// There is nothing to measure yet.
    case notThere
    /// It can be measured, and was not.
    case notMeasured

    var description: String {
      switch self {
      case .none: "-"
      case .met: "met"
      case .notYet: "later"
      case .missed: "MISSED"
      case .notThere: "not there yet"
      case .notMeasured: "not measured"
      }
    }
  }

  let budget: Budget
  let value: Double?

  let row: BudgetRow

  init(_ budget: Budget, _ value: Double?) {
    self.budget = budget
    self.value = value
    row = budget.row
  }

  /// A row of the kernel that was measured on a simulated machine, in parts of its scale. No goal in instructions
  /// holds for the cycles of this host.
  init(_ budget: Budget, simulated figure: UInt64, goal: BudgetGoal) {
    var row = budget.row
    row.place = .host
    row.goal = row.isCycles ? .none : goal
    if row.isCycles { row.unit = "cycles" }
    self.budget = budget
    self.row = row
    value = Double(figure) / Double(row.scale)
  }

  var name: String { "\(row.name)" }

  var verdict: Verdict {
    guard let value else { return budget.canBeMeasured ? .notMeasured : .notThere }
    guard row.bound != nil else { return .none }
    if row.isMet(by: UInt64(max(0, value * Double(row.scale)).rounded())) { return .met }
    return row.standing == .due ? .missed : .notYet
  }

  /// Whether it fails the bench: the row is due, and its goal was missed or nothing was measured.
  var fails: Bool { row.standing == .due && (verdict == .missed || verdict == .notMeasured) }

  private func spelled(_ value: Double) -> String { String(format: row.scale == 1 ? "%.0f" : "%.3f", value) }
  private var spelledGoal: String? { row.bound.map { spelled(Double($0) / Double(row.scale)) } }

  /// The row as the kernel's console prints it. `trace` names the trace that a figure depends on.
  func json(trace: String?) -> String {
    """
    {"kind":"bench","name":"\(name)","figure":\(value.map(spelled) ?? "null"),\
    "goal":\(spelledGoal ?? "null"),"sense":"\(row.sense)","unit":"\(row.unit)","where":"\(row.place.description)",\
    "layer":"\(row.layer)","due":\(row.standing == .due),"met":\(spelledVerdict),"trace":\(named(trace))}
    """
  }

  private var spelledVerdict: String {
    switch verdict {
    case .met: "true"
    case .notYet, .missed: "false"
    case .none, .notThere, .notMeasured: "null"
    }
  }

  private func named(_ trace: String?) -> String {
    guard budget.dependsOnTrace, value != nil, let trace else { return "null" }
    return JSONRow.quoted(trace)
  }

  static let heads = ["name", "figure", "goal", "verdict", "due", "unit", "where", "layer"]

  var cells: [String] {
    [
      name + (budget.dependsOnTrace ? " *" : ""), value.map(spelled) ?? "-",
      spelledGoal.map { "\(row.sense) \($0)" } ?? "-", verdict.description, row.standing == .due ? "due" : "",
      "\(row.unit)", "\(row.place.description)", "\(row.layer)",
    ]
  }

  /// The rows as a table, figures and goals on the right.
  static func table(_ figures: [BenchFigure]) -> String {
    let rows = [heads] + figures.map(\.cells)
    let widths = heads.indices.map { column in rows.map { $0[column].count }.max()! }
    return rows.map { cells in
      let line = cells.indices.map { column in
        (1...2).contains(column) ? cells[column].right(widths[column]) : cells[column].left(widths[column])
      }.joined(separator: "  ")
      return String(line.reversed().drop { $0 == " " }.reversed())
    }.joined(separator: "\n")
  }

  /// One sentence on all of them.
  static func summary(_ figures: [BenchFigure]) -> String {
    func count(_ verdict: Verdict) -> Int { figures.count { $0.verdict == verdict } }
    let due = figures.filter { $0.row.standing == .due }
    return """
      \(figures.count) rows: \(count(.met)) met, \(count(.notYet)) to be met later, \(count(.notThere)) not there yet, \
      \(count(.none)) without a goal. \(due.count) are due, \(due.count(where: \.fails)) of them missed.
      """
  }
}
