// bench: the budgets that concern this kernel, measured in it, in instructions.
//
// Names, units and goals are those of the list of budgets, and a missed goal fails the command only when its row is
// due. Where the cycle counter counts no instructions the same rows hold cycles, which are compared with no goal.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var bench: CommandDescription {
    CommandDescription(
      name: "bench", usage: "bench [NAME]",
      about: """
        Measures budgets in this kernel, in instructions, and frees all memory
        that it allocates. contig requests 256 runs of 2 MiB on a machine full of
        dirty pages: type replay keep first, so that it is used as a real one.
        Others: contig-one contig-low contig-busy kmem pages pageblocks wired
        vmem fault fault-blocks scan windows switch shootdown longest-off boot. A
        goal that is missed fails the command only when its row is due.
        """,
      example: "bench fault", question: .trial,
      completion: .names(of: .benches))
  }
}

extension KernelBench: NamedCases {}

extension Shell {
  func bench(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.next()
    try arguments.end()
    let only: KernelBench? = try named(word, otherwise: "one of:")
    let sheet = BenchSheet(self)
    do throws(FillFailure) {
      try KernelBenches(memory, access, trace: module, for: sheet).measure(only)
    } catch {
      report(error)
      throw .failed
    }
    if isStopped("Stopped. These figures were measured by then.") {
      printDone { sheet.finish() }
    } else {
      sheet.finish()
    }
    let outcome = state.pointee.bench
    if outcome.missed > 0 || outcome.verdict.broken > 0 { throw .failed }
  }
}

/// The outcome of all benches of a command.
struct BenchOutcome {
  var rows: UInt64 = 0
  /// Goals missed of rows that are due, and of others.
  var missed: UInt64 = 0
  var notYet: UInt64 = 0
  /// The verdict on all pages that were dirtied.
  var verdict = DirtyPages.Verdict()
}

/// The rows of all benches.
struct BenchSheet: BenchHost {
  let console: Shell
  private let table: Table
  private let countsInstructions: Bool
  private let outcome: UnsafeMutablePointer<BenchOutcome>

  init(_ console: Shell) {
    self.console = console
    countsInstructions = CycleCounter.countsInstructions
    outcome = inPlace(&console.state.pointee.bench)
    outcome.pointee = BenchOutcome()
    table = console.table("bench")
    table.column("bench", .text, key: "name")
    table.column("figure", .figure)
    table.column("goal", .figure, for: .people)
    table.column("goal", .figure, for: .tools)
    table.column("sense", .text, for: .tools)
    table.column("", .text, for: .people)
    table.column("unit", .text)
    table.column("where", .text, for: .tools)
    table.column("layer", .text, for: .tools)
    table.column("due", .text, for: .tools)
    table.column("met", .text, for: .tools)
    table.column("trace", .text, for: .tools)
  }

  func measured(_ budget: Budget, _ figure: UInt64, goal: BudgetGoal) {
    var row = budget.row
    row.goal = goal
    let isJudged = row.bound != nil && (!row.isCycles || countsInstructions)
    let isMet = row.isMet(by: figure)
    outcome.pointee.rows += 1
    if isJudged && !isMet {
      if row.standing == .due { outcome.pointee.missed += 1 } else { outcome.pointee.notYet += 1 }
    }
    table.begin()
    table.text(row.name)
    table.decimal(figure, scale: row.scale)
    if let bound = row.bound {
      var goal: Line = "\(row.shortSense) "
      if row.scale == 1 { goal.append(grouped: bound) } else { goal.append(decimal: bound, scale: row.scale) }
      table.text(goal)
      table.decimal(bound, scale: row.scale)
    } else {
      table.none()
      table.none()
    }
    table.text(row.sense)
    table.text(!isJudged ? "" : isMet ? "met" : row.standing == .due ? "MISSED" : "later")
    table.text(row.isCycles && !countsInstructions ? "cycles" : row.unit)
    table.text(row.place.description)
    table.text(row.layer)
    table.truth(row.standing == .due ? .yes : .no)
    if isJudged { table.truth(isMet ? .yes : .no) } else { table.none() }
    table.none()
    table.end()
  }

  func leftOut(_ name: StaticString, _ why: Line) {
    console.row("left_out") { row in
      row.field("name", text: Line(name))
      row.field("why", text: why)
    }
    console.print("\(name) is left out: \(why).")
  }

  func prepared(_ name: StaticString, dirty pages: PageCount) {
    var line: Line = "\(name): \(count: pages.rawValue, "dirty page"), "
    line.append(share: pages.rawValue, of: console.physical.total.rawValue)
    line.append(line: " of memory; \(count: console.physical.freeCount.rawValue, "frame") are free.")
    console.print(line)
  }

  func verified(_ verdict: DirtyPages.Verdict) { outcome.pointee.verdict.add(verdict) }

  func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
    console.pace(Line(what), done, of: total, unit)
  }
  var pace: Pace { console.shouldStop ? .stop : .goOn }
  var seed: UInt64 { console.state.pointee.fills.nextSeed() }

  private var executive: ExecutiveView? { console.state.pointee.host.executive }
  var processors: Int { executive.map { min($0.processorCount, 64) } ?? 0 }
  var interruptCost: UInt64? { executive?.interruptCost }
  func longestHold(of rank: LockRank) -> UInt64? { executive?.waits(for: rank).longest_hold }

  /// Prints the table, and sentences on the whole.
  func finish() {
    let (outcome, verdict) = (outcome.pointee, outcome.pointee.verdict)
    if outcome.rows > 0 { table.finish() }
    // Some pages did not keep their stamp, so the figures mean nothing.
    if verdict.broken > 0 { console.row("broken") { $0.field("pages", verdict.broken) } }
    if !countsInstructions {
      console.print("The counter counts cycles here, not instructions (QEMU: -icount shift=0).")
    }
    if verdict.intact > 0 { console.print("\(count: verdict.intact, "page") verified in between: intact.") }
    if outcome.notYet > 0 { console.print("\(count: outcome.notYet, "goal") to be met later.") }
    if outcome.missed > 0 { console.print("! \(count: outcome.missed, "goal") missed.") }
    if let first = verdict.first {
      console.print("! \(count: verdict.broken, "page") did not keep its stamp, as at \(first).")
    }
  }
}
