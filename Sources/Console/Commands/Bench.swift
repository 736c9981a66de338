// bench: the budgets that concern this kernel, measured in it, in instructions.
//
// A bench puts the machine into the state that its goal speaks of, measures, and gives back all that it took. What
// a machine is too small for is left out, and said so. Instructions are what the cycle counter counts under
// QEMU's -icount shift=0; elsewhere the same rows tell cycles, which no goal is held against.

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

extension Console {
  enum Bench: UInt8 {
    case contig, contigOne, contigLow, fault, threadSwitch, shootdown, longestOff

    struct Named {
      let bench: Bench
      let name: StaticString
    }

    static let all: InlineArray<7, Named> = [
      Named(bench: .contig, name: "contig"),
      Named(bench: .contigOne, name: "contig-one"),
      Named(bench: .contigLow, name: "contig-low"),
      Named(bench: .fault, name: "fault"),
      Named(bench: .threadSwitch, name: "switch"),
      Named(bench: .shootdown, name: "shootdown"),
      Named(bench: .longestOff, name: "longest-off"),
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
      if shouldStop { break }
      switch named.bench {
      case .contig: try benchContig(sheet)
      case .contigOne: try benchContigOne(sheet)
      case .contigLow: try benchContigLow(sheet)
      case .fault: benchFault(sheet)
      case .threadSwitch: benchSwitch(sheet)
      case .shootdown: benchShootdown(sheet)
      case .longestOff: benchOff(sheet)
      }
    }
    try sheet.finish()
  }

  // MARK: Contiguous memory

  /// Fills memory up to `percent` with dirty pages, or as far as it goes without writing any, runs `body`, verifies
  /// and gives all back: the pages, and runs that were kept meanwhile.
  private func withDirtyMemory(
    _ percent: UInt64, _ name: StaticString, _ sheet: BenchSheet, _ body: (DirtyPages) -> Void
  ) throws(CommandError) {
    let (wanted, there) = (share(percent), physical.count(.pageable))
    let kept = memory.paging.freeTarget + PageCount(UInt64(256))
    let room = physical.freeCount - min(physical.freeCount, kept)
    guard wanted > there, room + there >= share(percent * 3 / 4) else {
      return sheet.leaveOut(name, "\(percent) % of memory can't be filled: too much of it is in use")
    }
    let lastID = contigEntries.pointee.lastID
    let fill = try fill(min(wanted - there, room))
    if !state.pointee.stopped {
      sheet.tell(name, dirty: physical.count(.pageable), of: physical.total)
      body(fill)
    }
    giveBackContig(above: lastID)
    var verdict = DirtyPages.Verdict()
    if !state.pointee.stopped { verify(fill, &verdict) }
    fill.release(memory)
    sheet.add(verdict)
  }

  /// Asks for a run and keeps it. Nil when it is refused.
  private func takeRun(_ asked: RunAsked, _ tally: inout ContigTally) -> ContiguousFailure? {
    let type = memory.kmem.type(named: Name("console"))
    let before = memory.paging.figures
    // Pages of runs, as the passes report them: what else was moved or written lay outside, but for what the
    // daemon wrote meanwhile.
    var inRuns: UInt64 = 0
    let start = cp_cycles()
    do throws(ContiguousFailure) {
      let range = try memory.contiguous.contigmalloc(asked.size, type: type, where: asked.constraints) {
        if case .pass(let report) = $0 { inRuns += (report.moved + report.written).rawValue }
      }
      tally.cycles &+= cp_cycles() &- start
      tally.granted += 1
      tally.gained += range.frames.count.rawValue
      _ = keepContig(range, asked.size, type, .writeBack)
      tally.count(before, memory.paging.figures, inRuns)
      return nil
    } catch {
      tally.cycles &+= cp_cycles() &- start
      tally.count(before, memory.paging.figures, inRuns)
      return error
    }
  }

  /// Nine tenths of memory dirty, runs of 2 MiB asked for one by one: by the old strategy, and by ours.
  private func benchContig(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig"
    var asked = RunAsked(.mebibytes(2))
    asked.constraints.alignment = Alignment(2 << 20).unsafelyUnwrapped
    let goal = min(256, (physical.total.rawValue / 2 + asked.count.rawValue / 2) / asked.count.rawValue)
    guard goal > 0, ContigEntries.capacity - contigEntries.pointee.count >= Int(goal) else {
      return sheet.leaveOut(name, "there is no room for \(goal) runs; contig free all")
    }
    let needed = PageCount(goal * asked.count.rawValue)
    guard memory.paging.swap.figures.free >= needed else {
      return sheet.leaveOut(name, "it takes a swap device with \(needed.bytes) free; boot with SWAP=")
    }
    let inForce = memory.contiguous.strategy
    defer { memory.contiguous.setStrategy(inForce) }
    memory.contiguous.setStrategy(.old)
    try askForRuns(goal, asked, name, sheet)
    if state.pointee.stopped { return }
    memory.contiguous.setStrategy(.new)
    try askForRuns(goal, asked, name, sheet)
  }

  /// The strategy in force; the old one is there to be compared with, and has no goal.
  private func askForRuns(
    _ goal: UInt64, _ asked: RunAsked, _ name: StaticString, _ sheet: BenchSheet
  ) throws(CommandError) {
    let isOld = memory.contiguous.strategy == .old
    try withDirtyMemory(90, name, sheet) { fill in
      var tally = ContigTally()
      // From the first request to the last, by anybody.
      let before = memory.paging.figures
      var bar = Bar(self)
      for i in 0..<goal {
        _ = takeRun(asked, &tally)
        if !bar.goesOn(Line(name), i + 1, of: goal, "runs", every: 1) { break }
      }
      bar.end()
      let after = memory.paging.figures
      let spent = after.moved - before.moved + (after.written - before.written)
      if state.pointee.stopped { return }
      sheet.add(
        isOld ? "contig-old-granted" : "contig-granted", tally.granted, goal: isOld ? nil : goal, .atLeast,
        "runs")
      sheet.add(
        isOld ? "contig-old-cost-per-page" : "contig-cost-per-page",
        tally.gained == 0 ? 0 : spent * 1000 / tally.gained, goal: isOld ? nil : 1000, .atMost, "pages",
        scale: 1000)
      if !isOld { sheet.add("contig-outside", tally.outside, goal: 0, .atMost, "pages") }
      sheet.addInstructions(
        isOld ? "contig-old-instructions-per-run" : "contig-instructions-per-run", tally.cycles / goal,
        goal: nil)
    }
  }

  /// Six tenths of memory dirty, one run of 2 MiB.
  private func benchContigOne(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig-one"
    guard contigEntries.pointee.count < ContigEntries.capacity else {
      return sheet.leaveOut(name, "there is no room for a run; contig free all")
    }
    var asked = RunAsked(.mebibytes(2))
    asked.constraints.alignment = Alignment(2 << 20).unsafelyUnwrapped
    try withDirtyMemory(60, name, sheet) { _ in
      var tally = ContigTally()
      let before = memory.paging.figures
      let failure = takeRun(asked, &tally)
      let after = memory.paging.figures
      sheet.add("contig-one-granted", failure == nil ? 1 : 0, goal: 1, .atLeast, "runs")
      sheet.addInstructions("contig-one-instructions", tally.cycles, goal: 524_288)
      sheet.add("contig-one-moved", after.moved - before.moved, goal: 512, .atMost, "pages")
      sheet.add("contig-one-written", after.written - before.written, goal: 0, .atMost, "pages")
    }
  }

  /// Runs that only few places can hold, and one that is a quarter of memory.
  private func benchContigLow(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig-low"
    guard contigEntries.pointee.count + 4 <= ContigEntries.capacity else {
      return sheet.leaveOut(name, "there is no room for 4 runs; contig free all")
    }
    func low(_ size: ByteCount, boundary: UInt64) -> RunAsked {
      var asked = RunAsked(size)
      asked.constraints.high = PhysicalAddress(16 << 20)
      asked.constraints.boundary = Alignment(boundary)
      return asked
    }
    func isGranted(_ asked: RunAsked) -> UInt64 {
      var tally = ContigTally()
      return takeRun(asked, &tally) == nil ? 1 : 0
    }
    try withDirtyMemory(60, name, sheet) { _ in
      sheet.add(
        "contig-low-64K", isGranted(low(.kibibytes(64), boundary: 64 << 10)), goal: 1, .atLeast,
        "runs")
      sheet.add(
        "contig-low-256K", isGranted(low(.kibibytes(256), boundary: 1 << 20)), goal: 1, .atLeast,
        "runs")
      var tally = ContigTally()
      let failure = takeRun(low(.kibibytes(256), boundary: 64 << 10), &tally)
      sheet.add(
        "contig-low-never", failure?.answer == .never ? 1 : 0, goal: 1, .atLeast, "runs")
      sheet.addInstructions("contig-low-never-cost", tally.cycles, goal: nil)
      // A machine of 4 GiB lacks what its firmware keeps.
      guard physical.total.bytes >= .mebibytes(3968) else {
        return sheet.leaveOut("contig-1G", "it takes a machine of 4 GiB")
      }
      sheet.add("contig-1G", isGranted(RunAsked(.gibibytes(1))), goal: 1, .atLeast, "runs")
    }
  }

  // MARK: Faults

  /// A fault that a page of zeroes answers, less the zeroing.
  private func benchFault(_ sheet: BenchSheet) {
    let name: StaticString = "fault"
    let count = PageCount(UInt64(1024))
    // The page daemon is to have no part in it.
    guard physical.freeCount > memory.paging.freeTarget + count + count else {
      return sheet.leaveOut(name, "it takes \(count.bytes) of free memory above what the page daemon keeps")
    }
    let paging = memory.paging
    let object: MemoryObject
    let address: VirtualAddress
    do throws(PagingError) {
      object = try paging.createObject(Name("bench"), count)
      do throws(PagingError) {
        address = try paging.map(object, count: count)
      } catch {
        paging.destroy(object)
        throw error
      }
    } catch {
      return sheet.leaveOut(name, "there is no object to be had: \(error.words)")
    }
    var failed = false
    func fault(_ page: UInt64) {
      do throws(PagingError) { try access.store(address + PageCount(page), page) } catch { failed = true }
    }
    let start = cp_cycles()
    for page in 0..<count.rawValue { fault(page) }
    let faults = cp_cycles() &- start
    let zeroing = zeroCycles(address, count)
    paging.unmap(address, count)
    paging.destroy(object)
    guard !failed else { return sheet.leaveOut(name, "a page could not be had") }
    let each = (faults &- min(faults, zeroing)) / count.rawValue
    sheet.addInstructions("fault", each, goal: 1500)
    sheet.addInstructions("fault-zeroing", zeroing / count.rawValue, goal: nil)
  }

  /// What zeroing the frames behind these pages takes.
  private func zeroCycles(_ address: VirtualAddress, _ count: PageCount) -> UInt64 {
    var sum: UInt64 = 0
    for page in 0..<count.rawValue {
      guard let place = memory.pageTables.translate(address + PageCount(page)) else { continue }
      let frame = memory.machine.directMap.pointer(to: place.physical)
      let start = cp_cycles()
      zero(frame)
      sum &+= cp_cycles() &- start
    }
    return sum
  }
  @inline(never) private func zero(_ page: UnsafeMutableRawPointer) {
    page.initializeMemory(as: UInt64.self, repeating: 0, count: 512)
  }
}

/// What requests for runs came to, and cost.
private struct ContigTally {
  var granted: UInt64 = 0
  var gained: UInt64 = 0
  var cycles: UInt64 = 0
  /// Pages that were moved or written during the requests, neither for a run nor by the page daemon.
  var outside: UInt64 = 0

  mutating func count(_ before: PagingFigures, _ after: PagingFigures, _ inRuns: UInt64) {
    let all = after.moved - before.moved + (after.written - before.written)
    outside += all - min(all, inRuns + (after.writtenForDaemon - before.writtenForDaemon))
  }
}

/// The rows of all benches: one table, or an object each.
struct BenchSheet {
  enum Sense: UInt8 {
    case atMost, atLeast
    var words: StaticString { self == .atMost ? "at most" : "at least" }
  }

  let console: Console
  private let table: Table
  private let countsInstructions: Bool
  private let tally: UnsafeMutablePointer<BenchOutcome>

  init(_ console: Console) {
    self.console = console
    countsInstructions = console.countsInstructions
    tally = inPlace(&console.state.pointee.bench)
    tally.pointee = BenchOutcome()
    table = console.table("bench")
    table.column("bench", .words)
    table.column("figure", .figure)
    table.column("goal", .figure)
    table.column("", .words)
    table.column("unit", .words)
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

  /// A figure in parts of `scale`, and what it is to be.
  func add(
    _ name: StaticString, _ figure: UInt64, goal: UInt64?, _ sense: Sense, _ unit: StaticString,
    scale: UInt64 = 1, isJudged: Judged = .yes
  ) {
    var isMet = true
    if let goal { isMet = sense == .atMost ? figure <= goal : figure >= goal }
    tally.pointee.rows += 1
    if goal != nil && isJudged == .yes && !isMet { tally.pointee.missed += 1 }
    if console.isJSON {
      console.row("bench") { row in
        row.field("name", text: Line(name))
        row.field("figure", figure: spelled(figure, scale))
        if let goal { row.field("goal", figure: spelled(goal, scale)) } else { row.none("goal") }
        row.field("sense", text: Line(sense.words))
        row.field("unit", text: Line(unit))
        row.field("where", text: "kernel")
      }
      return
    }
    table.begin()
    table.text(name)
    table.text(spelled(figure, scale))
    if let goal { table.text("\(sense.words) \(spelled(goal, scale))") } else { table.none() }
    table.text(goal == nil || isJudged == .no ? "" : isMet ? "met" : "MISSED")
    table.text(unit)
    table.end()
  }

  enum Judged: UInt8 { case yes, no }

  /// A figure of the cycle counter, held against its goal only where that counts instructions.
  func addInstructions(_ name: StaticString, _ figure: UInt64, goal: UInt64?) {
    add(
      name, figure, goal: goal, .atMost, countsInstructions ? "instructions" : "cycles",
      isJudged: countsInstructions ? .yes : .no)
  }

  func add(_ verdict: DirtyPages.Verdict) {
    tally.pointee.broken += verdict.wrong + verdict.unreadable
    tally.pointee.intact += verdict.intact
    if tally.pointee.first == nil { tally.pointee.first = verdict.first }
  }

  /// The state in which it is measured.
  func tell(_ name: StaticString, dirty pages: PageCount, of total: PageCount) {
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
    if !console.isJSON {
      if outcome.rows > 0 { table.finish() }
      if !countsInstructions {
        console.print("The counter counts cycles here, not instructions (QEMU: -icount shift=0).")
      }
      if outcome.intact > 0 { console.print("\(count: outcome.intact, "page") verified in between: intact.") }
      if outcome.missed > 0 { console.print("! \(count: outcome.missed, "goal") missed.") }
      if let first = outcome.first {
        console.print("! \(count: outcome.broken, "page") did not keep its stamp, as at \(first).")
      }
    }
    if outcome.missed > 0 || outcome.broken > 0 { throw .failed }
  }
}

/// What all benches of a command came to.
struct BenchOutcome {
  var rows: UInt64 = 0
  var missed: UInt64 = 0
  var intact: UInt64 = 0
  var broken: UInt64 = 0
  var first: VirtualAddress?
}
