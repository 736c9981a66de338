// bench: the budgets that concern this kernel, measured in it, in instructions.
//
// A bench puts the machine into the state that its goal names, measures, and frees all memory that it has allocated.
// A bench for which the machine is too small is left out, with a sentence that says so. Names, units and goals are
// those of the list of budgets (Budget.swift), and a missed goal fails the command only when its row is due. The
// cycle counter counts instructions under QEMU's -icount shift=0; elsewhere the same rows hold cycles, which are
// compared with no goal.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

extension Shell {
  enum Bench: UInt8 {
    case contig, contigOne, contigLow, contigBusy
    case kmem, pages, pageblocks, wired, vmem
    case fault, blocks, scan, threadSwitch, shootdown, longest, boot

    struct Named {
      let bench: Bench
      let name: StaticString
    }

    static let all: InlineArray<16, Named> = [
      Named(bench: .contig, name: "contig"),
      Named(bench: .contigOne, name: "contig-one"),
      Named(bench: .contigLow, name: "contig-low"),
      Named(bench: .contigBusy, name: "contig-busy"),
      Named(bench: .kmem, name: "kmem"),
      Named(bench: .pages, name: "pages"),
      Named(bench: .pageblocks, name: "pageblocks"),
      Named(bench: .wired, name: "wired"),
      Named(bench: .vmem, name: "vmem"),
      Named(bench: .fault, name: "fault"),
      Named(bench: .blocks, name: "fault-blocks"),
      Named(bench: .scan, name: "scan"),
      Named(bench: .threadSwitch, name: "switch"),
      Named(bench: .shootdown, name: "shootdown"),
      Named(bench: .longest, name: "longest-off"),
      Named(bench: .boot, name: "boot"),
    ]
  }

  func forEachBenchName(_ body: (StaticString) -> Void) {
    for i in 0..<Bench.all.count { body(Bench.all[i].name) }
  }

  func bench(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.next()
    try arguments.end("bench [NAME]")
    if let word {
      var isKnown = false
      forEachBenchName { if word.bytes == $0 { isKnown = true } }
      guard isKnown else {
        var names: Line = "no such bench:"
        forEachBenchName { names.append(line: " \($0)") }
        throw refuse(word, names)
      }
    }
    let sheet = BenchSheet(self)
    for i in 0..<Bench.all.count {
      let named = Bench.all[i]
      if let word, !(word.bytes == named.name) { continue }
      // The cost of the boot can be measured only right after it.
      if word == nil && named.bench == .boot { continue }
      if shouldStop { break }
      try measure(named.bench, sheet)
    }
    try sheet.finish()
  }

  private func measure(_ bench: Bench, _ sheet: BenchSheet) throws(CommandError) {
    switch bench {
    case .kmem: benchKmem(sheet)
    case .pages: benchPages(sheet)
    case .pageblocks: benchPageblocks(sheet)
    case .wired: benchWired(sheet)
    case .vmem: benchVmem(sheet)
    case .contig: try benchContig(sheet)
    case .contigOne: try benchContigOne(sheet)
    case .contigLow: try benchContigLow(sheet)
    case .contigBusy: try benchContigBusy(sheet)
    case .fault: benchFault(sheet)
    case .blocks: benchBlocks(sheet)
    case .scan: try benchScan(sheet)
    case .threadSwitch: benchSwitch(sheet)
    case .shootdown: benchShootdown(sheet)
    case .longest: benchLongest(sheet)
    case .boot: benchBoot(sheet)
    }
  }
}

/// The rows of all benches: one table, or an object each.
struct BenchSheet {
  let console: Shell
  private let table: Table
  private let countsInstructions: Bool
  private let tally: UnsafeMutablePointer<BenchOutcome>

  init(_ console: Shell) {
    self.console = console
    countsInstructions = console.countsInstructions
    tally = inPlace(&console.state.pointee.bench)
    tally.pointee = BenchOutcome()
    table = console.table("bench")
    table.column("bench", .text)
    table.column("figure", .figure)
    table.column("goal", .figure)
    table.column("", .text)
    table.column("unit", .text)
  }

  private func spelled(_ figure: UInt64, _ scale: UInt64) -> Line {
    guard scale > 1 else { return console.isJSON ? "\(figure)" : "\(count: figure)" }
    var line: Line = "\(figure / scale)."
    var place = scale / 10
    while place > 0 {
      line.append(decimal: figure % scale / place % 10)
      place /= 10
    }
    return line
  }

  /// A figure in parts of its row's scale. `atLeast` is the goal on a machine that is smaller than the budget's.
  func add(_ budget: Budget, _ figure: UInt64, atLeast: UInt64? = nil) {
    var row = budget.row
    if let atLeast { row.goal = .atLeast(atLeast) }
    let isJudged = row.bound != nil && (!row.isCycles || countsInstructions)
    let isMet = row.isMet(by: figure)
    let unit = row.isCycles && !countsInstructions ? "cycles" : row.unit
    tally.pointee.rows += 1
    if isJudged && !isMet {
      if row.standing == .due { tally.pointee.missed += 1 } else { tally.pointee.notYet += 1 }
    }
    if console.isJSON {
      console.row("bench") { json in
        json.field("name", text: Line(row.name))
        json.field("figure", figure: spelled(figure, row.scale))
        if let bound = row.bound {
          json.field("goal", figure: spelled(bound, row.scale))
        } else {
          json.none("goal")
        }
        json.field("sense", text: Line(row.sense))
        json.field("unit", text: Line(unit))
        json.field("where", text: Line(row.place.description))
        json.field("layer", text: Line(row.layer))
        json.field("due", truth: row.standing == .due ? .yes : .no)
        if isJudged { json.field("met", truth: isMet ? .yes : .no) } else { json.none("met") }
      }
      return
    }
    table.begin()
    table.text(row.name)
    table.text(spelled(figure, row.scale))
    if let bound = row.bound {
      table.text("\(row.shortSense) \(spelled(bound, row.scale))")
    } else {
      table.none()
    }
    table.text(!isJudged ? "" : isMet ? "met" : row.standing == .due ? "MISSED" : "later")
    table.text(unit)
    table.end()
  }

  func add(_ verdict: DirtyPages.Verdict) {
    tally.pointee.broken += verdict.wrong + verdict.unreadable
    tally.pointee.intact += verdict.intact
    if tally.pointee.first == nil { tally.pointee.first = verdict.first }
  }

  /// Prints the state in which a bench measures.
  func printState(_ name: StaticString, dirty pages: PageCount, of total: PageCount) {
    guard !console.isJSON else { return }
    var line: Line = "\(name): \(count: pages.rawValue, "dirty page"), "
    line.append(share: pages.rawValue, of: total.rawValue)
    line.append(line: " of memory; \(count: console.physical.freeCount.rawValue, "frame") are free.")
    console.print(line)
  }

  func leaveOut(_ name: StaticString, _ why: Line) {
    if console.isJSON {
      console.row("left_out") { row in
        row.field("name", text: Line(name))
        row.field("why", text: why)
      }
    } else {
      console.print("\(name) is left out: \(why).")
    }
  }

  func finish() throws(CommandError) {
    let outcome = tally.pointee
    if console.isJSON {
      // Some pages did not keep their stamp, so the figures mean nothing.
      if outcome.broken > 0 { console.row("broken") { $0.field("pages", outcome.broken) } }
    } else {
      if outcome.rows > 0 { table.finish() }
      if !countsInstructions {
        console.print("The counter counts cycles here, not instructions (QEMU: -icount shift=0).")
      }
      if outcome.intact > 0 { console.print("\(count: outcome.intact, "page") verified in between: intact.") }
      if outcome.notYet > 0 { console.print("\(count: outcome.notYet, "goal") to be met later.") }
      if outcome.missed > 0 { console.print("! \(count: outcome.missed, "goal") missed.") }
      if let first = outcome.first {
        console.print("! \(count: outcome.broken, "page") did not keep its stamp, as at \(first).")
      }
    }
    if outcome.missed > 0 || outcome.broken > 0 { throw .failed }
  }
}

/// The outcome of all benches of a command.
struct BenchOutcome {
  var rows: UInt64 = 0
  /// Goals missed of rows that are due, and of others.
  var missed: UInt64 = 0
  var notYet: UInt64 = 0
  var intact: UInt64 = 0
  var broken: UInt64 = 0
  var first: VirtualAddress?
}
