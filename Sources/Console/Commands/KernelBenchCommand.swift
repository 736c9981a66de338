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

extension CommandDescription {
  static var bench: CommandDescription {
    CommandDescription(
      name: "bench", usage: "bench [NAME]",
      about: """
        Measures budgets in this kernel, in instructions, and frees all memory
        that it allocates. contig requests 256 runs of 2 MiB on a machine full of
        dirty pages: type replay keep first, so that it is used as a real one.
        Others: contig-one contig-low contig-busy kmem pages pageblocks wired
        vmem fault fault-blocks scan switch shootdown longest-off boot. A goal
        that is missed fails the command only when its row is due.
        """,
      example: "bench fault", question: .trial,
      completion: .names(of: .benches))
  }
}

extension Shell {
  enum Bench: UInt8, NamedCases {
    case contig, contigOne, contigLow, contigBusy
    case kmem, pages, pageblocks, wired, vmem
    case fault, blocks, scan, threadSwitch, shootdown, longest, boot

    static var last: Self { .boot }

    var name: StaticString {
      switch self {
      case .contig: "contig"
      case .contigOne: "contig-one"
      case .contigLow: "contig-low"
      case .contigBusy: "contig-busy"
      case .kmem: "kmem"
      case .pages: "pages"
      case .pageblocks: "pageblocks"
      case .wired: "wired"
      case .vmem: "vmem"
      case .fault: "fault"
      case .blocks: "fault-blocks"
      case .scan: "scan"
      case .threadSwitch: "switch"
      case .shootdown: "shootdown"
      case .longest: "longest-off"
      case .boot: "boot"
      }
    }
  }

  func bench(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.next()
    try arguments.end()
    var only: Bench?
    if let word {
      only = Bench.named(word.bytes)
      if only == nil {
        var names: Line = "no such bench:"
        Bench.forEach { names.append(line: " \($0.name)") }
        throw refuse(word, names)
      }
    }
    let sheet = BenchSheet(self)
    for value in 0..<Bench.count {
      guard let bench = Bench(rawValue: UInt8(value)), only == nil || only == bench else { continue }
      // The cost of the boot can be measured only right after it.
      if only == nil && bench == .boot { continue }
      if shouldStop { break }
      try measure(bench, sheet)
    }
    guard isStopped("Stopped. These figures were measured by then.") else { return try sheet.finish() }
    tellDone { sheet.printAll() }
    try sheet.judge()
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
      json.none("trace")
    }
    if console.isJSON { return }
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
    console.row("left_out") { row in
      row.field("name", text: Line(name))
      row.field("why", text: why)
    }
    console.print("\(name) is left out: \(why).")
  }

  func finish() throws(CommandError) {
    printAll()
    try judge()
  }

  func judge() throws(CommandError) {
    if tally.pointee.missed > 0 || tally.pointee.broken > 0 { throw .failed }
  }

  func printAll() {
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
