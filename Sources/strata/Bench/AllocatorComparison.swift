// One pattern through kmem and through other allocators: processes that take turns, so that a load of the host meets
// all alike.

import Foundation
import Workloads

/// The figures of each allocator for a pattern.
struct AllocatorComparison {
  /// The figures of one allocator.
  struct Figure {
    let name: String
    /// Nanoseconds of processor time for each pair or event, the least over the turns.
    var time = Double.infinity
    /// Bytes held for each byte live; zero where the pattern does not show them.
    var held = 0.0
  }

  /// Those of kmem come first.
  let figures: [Figure]
  private let trace: String

  /// Measures `workload`, of the trace at this path where it is one of a trace. `name` is the trace's in rows of JSON.
  init(_ workload: ObjectWorkload, on rivals: [Rival], trace: String, name: String? = nil) throws {
    let all = [.strata] + rivals
    let workers = try all.map { try Worker($0, workload, trace: trace) }
    var figures = all.map { Figure(name: $0.name) }
    for turn in 0..<workload.turns {
      for (index, worker) in workers.enumerated() {
        let result = try worker.turn()
        figures[index].time = min(figures[index].time, result.time)
        // The first turn measures the held bytes: later turns begin with memory that earlier ones left.
        if turn == 0 { figures[index].held = result.held }
      }
    }
    for worker in workers { try worker.end() }
    self.figures = figures
    self.trace = name ?? URL(fileURLWithPath: trace).lastPathComponent
  }

  /// Measures the objects of the trace at `path`, `-` for standard input, on kmem and on the allocators of `names`.
  static func objects(of path: String, on names: [String]) throws -> AllocatorComparison {
    let rivals = try names.map { try Rival($0) }
    let data = try packedTrace(at: path)
    let name = path == "-" ? "standard input" : path
    do {
      try data.withUnsafeBytes { try PackedTrace($0).validate() }
    } catch let error as TraceError {
      throw Complaint(name + error.describe("").text, .dataError)
    }
    guard path == "-" else { return try AllocatorComparison(.trace, on: rivals, trace: path) }
    // Each process reads the trace for itself.
    let copy = FileManager.default.temporaryDirectory.appendingPathComponent(
      "strata-\(UUID().uuidString).trace")
    defer { try? FileManager.default.removeItem(at: copy) }
    try write([UInt8](data), to: copy.path)
    return try AllocatorComparison(.trace, on: rivals, trace: copy.path, name: name)
  }

  /// The table.
  var text: String {
    let ours = figures[0].time
    var lines = [
      "allocator".left(12) + "ns an event".right(13) + "of strata's".right(13)
        + "held for each live byte".right(26)
    ]
    for figure in figures.sorted(by: { $0.time < $1.time }) {
      lines.append(
        figure.name.left(12) + String(format: "%.2f", figure.time).right(13)
          + String(format: "%.2f", figure.time / ours).right(13)
          + String(format: "%.3f", figure.held).right(26))
    }
    lines.append(
      "Objects of at most 4 KiB, 64 copies of the trace at once; processor time, the least of 5 turns.")
    #if DEBUG
      lines.append("! This build of kmem has assertions: swift run -c release strata replay")
    #endif
    return lines.joined(separator: "\n")
  }

  /// The same as rows of JSON.
  var json: String {
    figures.map { figure in
      var row = JSONRow("against")
      row.add("allocator", figure.name)
      row.add("ns", figure.time, decimals: 3)
      row.add("of_strata", figure.time / figures[0].time, decimals: 3)
      row.add("held", figure.held, decimals: 3)
      row.add("trace", trace)
      return row.text
    }.joined(separator: "\n")
  }
}
