// The story of one contiguous request: its candidate, the work of each pass, and the cost.

import CPlatform
import ContiguousMemory
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Workloads

/// Prints the events of a request as they happen, and gathers its passes for a table.
struct ContigStory {
  let console: Shell
  let asked: RunAsked
  let detail: ContigOptions.Detail
  /// Cycles of the allocator only, without those of printing.
  private(set) var cycles: UInt64 = 0
  private(set) var moved = PageCount.zero
  private(set) var written = PageCount.zero
  private(set) var abandoned: UInt64 = 0
  private var mark: UInt64 = 0
  /// Since the last row.
  private var pending: UInt64 = 0
  private var table: Table?
  private var run: FrameRun?
  private var captured = PageCount.zero
  /// Passes that have worked on the run, a bit each.
  private var seen: UInt8 = 0
  private let countsInstructions: Bool

  enum Ending { case granted, refused }

  init(_ console: Shell, _ asked: RunAsked, _ detail: ContigOptions.Detail) {
    self.console = console
    self.asked = asked
    self.detail = detail
    countsInstructions = CycleCounter.countsInstructions
    mark = cp_cycles()
  }

  var unit: StaticString { countsInstructions ? "instruction" : "cycle" }

  mutating func record(_ event: ContiguousEvent) {
    stop()
    report(event)
    mark = cp_cycles()
  }

  private mutating func stop() {
    let taken = cp_cycles() &- mark
    cycles &+= taken
    pending &+= taken
  }

  private mutating func report(_ event: ContiguousEvent) {
    switch event {
    case .foundFree(let run):
      let how: StaticString = table == nil ? "Free as it is" : "Then a run was free"
      if let table { finish(table) }
      console.print(
        "\(how): \(count: run.count.rawValue, "frame") at \(console.physicalAddress(run.first)).")
    case .candidate(let candidate): begin(candidate)
    case .isolated, .fetched: break
    case .pass(let report): add(report)
    case .abandoned(let run, let reason, let frame):
      if let table { finish(table) }
      abandoned += 1
      var line = Line("The run is released: ")
      if reason == .none {
        line.append(
          line: "\(count: (run.count - captured).rawValue, "page") could be neither moved nor written")
      } else {
        line.append(line: console.describe(FrameRun(first: frame, count: .one)))
      }
      line.append(".")
      console.print(line)
    case .laundered(let queue, let outcome): add(queue, outcome)
    }
  }

  // MARK: The run

  private mutating func begin(_ candidate: RunCandidate) {
    let run = candidate.run
    self.run = run
    captured = .zero
    seen = 0
    console.row("candidate") { row in
      row.field("at", text: console.physicalAddress(run.first))
      row.field("first_frame", UInt64(run.first.rawValue))
      row.field("frames", run.count.rawValue)
      row.field("free", candidate.free.rawValue)
      row.field("movable", candidate.movable.rawValue)
      row.field("dirty", candidate.dirty.rawValue)
    }
    var line: Line = "Candidate \(console.physicalAddress(run.first)), frame \(run.first): the "
    if abandoned > 0 {
      line.append("next run.")
    } else if let blocks = console.emptiableBlocks(asked) {
      line.append(line: "cheapest of \(count: blocks, "block").")
    } else {
      line.append("cheapest run.")
    }
    console.print(line)
    line = "\(count: candidate.movable.rawValue) of \(count: run.count.rawValue, "frame")"
    line.append(line: " in the way, \(count: candidate.dirty.rawValue) dirty.")
    if detail == .drawn {
      let each = perCharacter(run)
      let legend: Line =
        each <= 9
        ? "A digit counts them in \(count: each, "frame")."
        : "A digit counts them in \(count: each) frames, in ninths."
      if line.count + 1 + legend.count > console.width {
        console.print(line)
        line = legend
      } else {
        line.append(line: " \(legend)")
      }
    }
    console.print(line)
    draw("before")
    table = openTable()
    if let table {
      table.begin()
      table.text("search")
      for _ in 0..<4 { table.none() }
      endRow(table)
    }
  }

  /// Frames that a character stands for.
  private func perCharacter(_ run: FrameRun) -> UInt64 { max(1, (run.count.rawValue + 63) / 64) }

  /// The run as digits: the count of frames behind a character that are neither free nor captured.
  private func picture(_ run: FrameRun) -> Line {
    let each = perCharacter(run)
    var line = Line()
    var at = run.first
    while at < run.end {
      let last = min(UInt64(run.end.rawValue), UInt64(at.rawValue) + each)
      let length = last - UInt64(at.rawValue)
      var inTheWay: UInt64 = 0
      while UInt64(at.rawValue) < last {
        let role = console.physical.whatIs(at).role
        if role != .free && role != .contiguous { inTheWay += 1 }
        at = at + .one
      }
      let digit = each <= 9 ? inTheWay : (inTheWay * 9 + length - 1) / length
      line.append(byte: digit == 0 ? UInt8(ascii: ".") : UInt8(ascii: "0") + UInt8(digit))
    }
    return line
  }

  private func draw(_ label: StaticString) {
    guard detail == .drawn, !console.isJSON, let run else { return }
    console.print("\(left: Line(label), 10)\(picture(run))")
  }

  // MARK: The table

  private func openTable() -> Table {
    let table = console.table("pass")
    table.column("pass", .text)
    table.column("captured", .sum)
    table.column("moved", .sum)
    table.column("written", .sum)
    table.column("busy", .figure)
    table.costColumns(.sum)
    table.column("in the way", .text, for: .tools)
    return table
  }

  private mutating func endRow(_ table: Table) {
    table.cost(pending)
    pending = 0
    // The picture is drawn for a person already.
    if detail == .drawn, console.isJSON, let run { table.text(picture(run)) } else { table.none() }
    table.end()
  }

  private mutating func add(_ report: PassReport) {
    moved = moved + report.moved
    written = written + report.written
    guard let table else { return }
    let bit: UInt8 = 1 << report.pass.rawValue
    let isAgain = seen & bit != 0
    seen |= bit
    table.begin()
    table.text(isAgain ? "\(report.pass.description) again" : Line(report.pass.description))
    table.count((report.captured - min(report.captured, captured)).rawValue)
    captured = report.captured
    if report.pass == .free {
      for _ in 0..<3 { table.none() }
    } else {
      table.count(report.moved.rawValue)
      table.count(report.written.rawValue)
      table.count(report.refused.rawValue)
    }
    endRow(table)
    if report.pass != .free { draw(isAgain ? "again" : Self.label(report.pass)) }
  }

  private static func label(_ pass: ContiguousPass) -> StaticString {
    switch pass {
    case .free: "before"
    case .relocate: "relocate"
    case .launderInactive: "inactive"
    case .launderActive: "active"
    }
  }

  /// The old strategy launders whole queues, wherever the pages lie.
  private mutating func add(_ queue: PageQueue, _ outcome: LaunderOutcome) {
    written = written + outcome.written
    let table = table ?? openTable()
    self.table = table
    table.begin()
    table.text("launder all \(queue.description)")
    table.none()
    table.none()
    table.count(outcome.written.rawValue)
    table.count((outcome.passedOver + outcome.redirtied + outcome.failed).rawValue)
    endRow(table)
  }

  private mutating func finish(_ table: Table) {
    if let run {
      let count = run.count.rawValue
      table.finish(
        total: captured == run.count
          ? "all \(count: count, "frame")" : "\(count: captured.rawValue) of \(count: count, "frame")")
    } else {
      table.finish(total: "all of memory")
    }
    self.table = nil
    run = nil
  }

  /// The costs after the last event: the mapping of what was granted.
  mutating func end(_ ending: Ending) {
    stop()
    guard let table else { return }
    if ending == .granted {
      table.begin()
      table.text("map")
      for _ in 0..<4 { table.none() }
      endRow(table)
    }
    finish(table)
  }
}
