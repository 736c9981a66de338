// Rows of benches that were run before, gathered in a file: the whole table from them, without measuring again.

import Foundation
import Workloads

/// The rows of a file of JSON lines, each printed by a `bench -j`.
struct BenchRows {
  private var figures: [String: Double] = [:]
  /// Benches that were left out, and why.
  private(set) var leftOut: [(name: String, why: String)] = []

  private struct Line: Decodable {
    let kind: String
    let name: String
    let figure: Double?
    let why: String?
  }

  init(text: String, name: String) throws {
    let known = Set(Budget.all.map { "\($0.row.name)" })
    for (number, text) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated()
    where !text.isEmpty {
      guard let line = try? JSONDecoder().decode(Line.self, from: Data(text.utf8)) else {
        throw Complaint("\(name), line \(number + 1): no row of a bench", .dataError)
      }
      switch line.kind {
      case "bench":
        guard known.contains(line.name) else {
          throw Complaint("\(name), line \(number + 1): no row is called \(line.name)", .dataError)
        }
        if let figure = line.figure { figures[line.name] = figure }
      case "left_out": leftOut.append((line.name, line.why ?? ""))
      default: throw Complaint("\(name), line \(number + 1): no row of a bench", .dataError)
      }
    }
  }

  /// Every row of the budgets; the row that compares two machines is computed from theirs.
  var all: [BenchFigure] {
    var figures = figures
    if let small = value(.bootSmall), let large = value(.bootLarge), small > 0 {
      figures["\(Budget.bootRatio.row.name)"] = large / small
    }
    return Budget.all.map { BenchFigure($0, figures["\($0.row.name)"]) }
  }

  private func value(_ budget: Budget) -> Double? { figures["\(budget.row.name)"] }
}

extension Budget {
  static var all: [Budget] { (0..<UInt8(count)).map { Budget(rawValue: $0)! } }
}
