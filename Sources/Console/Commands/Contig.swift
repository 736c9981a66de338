// contig: allocates contiguous memory, and prints the cost: the candidate and the reason for its choice, the work of
// each pass, and what stands in the way of a refused request.

import CPlatform
import ContiguousMemory
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// A run that the console has allocated and not freed.
struct ContigEntry {
  /// Counted from 1.
  var id: UInt64
  var range: ContiguousRange
  var size: ByteCount
  var type: MemoryType
  var attribute: CacheAttribute

  /// The count of its frames that lie in `run`.
  func frames(in run: FrameRun) -> PageCount {
    let (first, end) = (max(range.frames.first, run.first), min(range.frames.end, run.end))
    return first < end ? end - first : .zero
  }
}

/// The runs that the console holds, the oldest first. Valid as zeroes.
struct ContigEntries {
  static var capacity: Int { 320 }
  var count: Int
  var lastID: UInt64
  var entries: InlineArray<320, ContigEntry>
}

/// The options of a request.
private struct ContigOptions {
  var attribute = CacheAttribute.writeBack
  var contents = InitialContents.unknown
  var type = ShortName("console")
  var detail = Detail.brief

  /// Whether the run is drawn as a picture.
  enum Detail { case brief, drawn }
}

extension Shell {
  private static var contigUsage: StaticString { "help contig" }

  func contig(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "How much? As in: contig 2M align=2M. Or contig list, contig free ID.", Self.contigUsage)
    }
    if word.bytes == "list" {
      try arguments.end(Self.contigUsage)
      listContig()
    } else if word.bytes == "free" {
      try freeContig(arguments)
    } else {
      var asked = try arguments.run(word)
      var options = ContigOptions()
      if arguments.takeFlag("-v") { options.detail = .drawn }
      try read(arguments, &asked, &options)
      try take(asked, options)
    }
  }

  private func read(
    _ arguments: Arguments, _ asked: inout RunAsked, _ options: inout ContigOptions
  ) throws(CommandError) {
    if let word = arguments.value(of: "attr") {
      if word.bytes == "uc" {
        options.attribute = .uncached
      } else if word.bytes == "wc" {
        options.attribute = .writeCombining
      } else if word.bytes == "wt" {
        options.attribute = .writeThrough
      } else if !(word.bytes == "wb") {
        throw refuse(word, "an attribute is uc, wc, wt or wb")
      }
    }
    if let word = arguments.value(of: "type") {
      guard word.bytes.count > 0, word.bytes.count <= ShortName.capacity else {
        throw refuse(word, "a type has a name of 1 to \(ShortName.capacity) bytes")
      }
      options.type = ShortName(bytes: word.bytes)
    }
    while let word = arguments.next() {
      if word.bytes == "nowait" {
        guard asked.waitPolicy == .allowed else { throw refuse(word, "nowait is given twice") }
        asked.waitPolicy = .forbidden
      } else if word.bytes == "zero" {
        guard options.contents == .unknown else { throw refuse(word, "zero is given twice") }
        options.contents = .zero
      } else {
        throw refuse(word, "not understood here; usage: \(Self.contigUsage)")
      }
    }
    try arguments.end(Self.contigUsage)
  }

  // MARK: The contiguous memory that is held

  var contigEntries: UnsafeMutablePointer<ContigEntries> { inPlace(&state.pointee.runs) }

  private var entries: UnsafeMutablePointer<ContigEntry> {
    UnsafeMutableRawPointer(inPlace(&state.pointee.runs.entries))
      .assumingMemoryBound(to: ContigEntry.self)
  }

  /// Adds a run. There must be a free entry.
  func keepContig(
    _ range: ContiguousRange, _ size: ByteCount, _ type: MemoryType, _ attribute: CacheAttribute
  ) -> ContigEntry {
    contigEntries.pointee.lastID += 1
    let entry = ContigEntry(
      id: contigEntries.pointee.lastID, range: range, size: size, type: type, attribute: attribute)
    entries[contigEntries.pointee.count] = entry
    contigEntries.pointee.count += 1
    return entry
  }

  /// Frees the run at an index. Those behind it move up.
  private func giveBack(at place: Int) -> ContigEntry {
    let entry = entries[place]
    contigEntries.pointee.count -= 1
    for i in place..<contigEntries.pointee.count { entries[i] = entries[i + 1] }
    memory.contiguous.contigfree(entry.range.address, size: entry.size, type: entry.type)
    return entry
  }

  /// Frees all runs whose number is above `id`. Answers their count, and the count of their frames.
  @discardableResult func giveBackContig(above id: UInt64) -> (runs: UInt64, frames: PageCount) {
    var (runs, frames) = (UInt64(0), PageCount.zero)
    while contigEntries.pointee.count > 0, entries[contigEntries.pointee.count - 1].id > id {
      runs += 1
      frames = frames + giveBack(at: contigEntries.pointee.count - 1).range.frames.count
    }
    return (runs, frames)
  }

  private func freeContig(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "A number is missing: contig list shows them; contig free all frees all of them.",
        "contig free ID | all")
    }
    if word.bytes == "all" {
      try arguments.end("contig free ID | all")
      let (runs, frames) = giveBackContig(above: 0)
      if isJSON {
        row("contig_freed") { row in
          row.field("runs", runs)
          row.field("frames", frames.rawValue)
          row.field("free", physical.freeCount.rawValue)
        }
      } else {
        print(
          "Freed \(count: runs, "run"), \(frames.bytes). \(count: physical.freeCount.rawValue, "frame") are free."
        )
      }
      return
    }
    let id = try arguments.number(word)
    try arguments.end("contig free ID | all")
    for i in 0..<contigEntries.pointee.count where entries[i].id == id {
      let entry = giveBack(at: i)
      if isJSON {
        row("contig_freed") { row in
          row.field("runs", 1)
          row.field("frames", entry.range.frames.count.rawValue)
          row.field("free", physical.freeCount.rawValue)
        }
      } else {
        print("Freed contig \(id): \(entry.size), \(frames(entry.range.frames)).")
        print("\(count: physical.freeCount.rawValue, "frame") are free.")
      }
      return
    }
    throw refuse(word, "no such run; contig list shows them")
  }

  /// The console's run that holds a frame.
  func contigEntry(holding frame: FrameNumber) -> ContigEntry? {
    for i in 0..<contigEntries.pointee.count where entries[i].range.frames.contains(frame) {
      return entries[i]
    }
    return nil
  }

  private func frames(_ run: FrameRun) -> Line {
    if run.count == .one { return "frame \(run.first)" }
    return "frames \(run.first) to \(FrameNumber(run.end.rawValue - 1))"
  }

  private func listContig() {
    let count = contigEntries.pointee.count
    if count == 0 {
      if !isJSON { print("None. As in: contig 2M align=2M") }
      return
    }
    if isJSON {
      for i in 0..<count where !shouldStop { row("contig_run") { fields($0, entries[i]) } }
      return
    }
    let table = table("contig_run")
    table.column("id", .figure)
    table.column("frame", .figure)
    table.column("frames", .sum)
    // Frames are whole; the requested size need not be.
    table.column("asked", .sum)
    table.column("address", .text)
    table.column("cached", .text)
    table.column("type", .text)
    for i in 0..<count {
      let entry = entries[i]
      table.begin()
      table.plain(entry.id)
      table.plain(UInt64(entry.range.frames.first.rawValue))
      table.count(entry.range.frames.count.rawValue)
      table.size(entry.size)
      table.address(entry.range.address)
      table.text(entry.attribute.description)
      table.text(entry.type.name)
      table.end()
      if shouldStop { return }
    }
    table.finish(total: "all")
  }

  /// The JSON fields of a run, the same in every row.
  func fields(_ row: JSONRow, _ entry: ContigEntry) {
    row.field("id", entry.id)
    row.field("first_frame", UInt64(entry.range.frames.first.rawValue))
    row.field("frames", entry.range.frames.count.rawValue)
    row.field("bytes", entry.size.rawValue)
    row.field("address", entry.range.address)
    row.field("cached", text: Line(entry.attribute.description))
    row.field("type", text: "\(entry.type.name)")
  }

  // MARK: Requests

  private func take(_ asked: RunAsked, _ options: ContigOptions) throws(CommandError) {
    guard contigEntries.pointee.count < ContigEntries.capacity else {
      throw fail("\(ContigEntries.capacity) runs are the most that the console holds. Type: contig list")
    }
    let type = memory.kmem.type(named: options.type)
    var story = ContigStory(self, asked, options.detail)
    let range: ContiguousRange
    do throws(ContiguousFailure) {
      range = try memory.contiguous.contigmalloc(
        asked.size, type: type, where: asked.constraints, attribute: options.attribute,
        contents: options.contents, waitPolicy: asked.waitPolicy
      ) { story.hear($0) }
    } catch {
      story.end(.refused)
      refused(error, asked, story)
      throw .failed
    }
    story.end(.granted)
    let entry = keepContig(range, asked.size, type, options.attribute)
    if isJSON {
      row("contig") { row in
        row.field("answer", text: "granted")
        row.field("id", entry.id)
        fields(row, asked, story)
        row.field("first_frame", UInt64(range.frames.first.rawValue))
        row.field("address", range.address)
        row.field("cached", text: Line(options.attribute.description))
        row.field("type", text: "\(type.name)")
      }
      return
    }
    print("Granted: contig \(entry.id), \(frames(range.frames)), at \(range.address).")
    print(
      "\(count: physical.freeCount.rawValue, "frame") are free. contig free \(entry.id) frees it.")
  }

  private func fields(_ row: JSONRow, _ asked: RunAsked, _ story: ContigStory) {
    row.field("frames", asked.count.rawValue)
    row.field("bytes", asked.size.rawValue)
    row.field("moved", story.moved.rawValue)
    row.field("written", story.written.rawValue)
    row.field("runs_abandoned", story.abandoned)
    row.field(countsInstructions ? "instructions" : "cycles", story.cycles)
    row.field("free", physical.freeCount.rawValue)
  }

  private func refused(_ failure: ContiguousFailure, _ asked: RunAsked, _ story: ContigStory) {
    // The failed-request cache does not examine a repeated request; for a person the search is worth its cost.
    let forecast = failure.forecast ?? (failure.isRepeated ? memory.contiguous.forecast(request(asked)) : nil)
    let longest =
      failure.isRepeated
      ? memory.contiguous.longestEmptiableRun(where: asked.constraints)
      : failure.longest
    if isJSON {
      row("contig") { row in
        row.field("answer", text: Line(failure.description))
        fields(row, asked, story)
        row.field("repeated", truth: failure.isRepeated ? .yes : .no)
        row.field("injected", truth: failure.isInjected ? .yes : .no)
        if failure.answer == .never { row.field("reason", text: asked.whyNever(physical)) }
        if let forecast {
          refusalFields(row, forecast, longest)
          row.field("best_frame", UInt64(forecast.run.first.rawValue))
        }
      }
      if let forecast { printOwners(forecast) }
      return
    }
    if failure.answer == .never {
      print("Never: \(asked.whyNever(physical)).")
    } else if failure.isInjected {
      print("Later: fault injection has refused the request. Nothing has been done.")
    } else if failure.answer == .noAddressSpace {
      print("No addresses or tables to map it: its frames were freed again.")
      print("! Type: vmem kernel_va")
    } else if let forecast, forecast.outcome != .granted {
      let isUntouched = story.moved == .zero && story.written == .zero
      refused(forecast, asked, isUntouched ? .nothing : .something, longest)
      if failure.isRepeated {
        print(
          "Refused from the cache, in \(count: story.cycles, story.unit): no run has become free since."
        )
      }
    } else if memory.contiguous.strategy == .new {
      print("Later: other requests have taken each run that was found. Ask again.")
    } else {
      print("Not now: laundering has freed no run of \(asked.count.bytes).")
      print("! Type: why \(asked.line)")
    }
  }
}

/// Prints the events of a request as they happen, and gathers its passes for a table.
private struct ContigStory {
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
    countsInstructions = console.countsInstructions
    mark = cp_cycles()
  }

  var unit: StaticString { countsInstructions ? "instruction" : "cycle" }

  mutating func hear(_ event: ContiguousEvent) {
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
      if !console.isJSON {
        console.print(
          "\(how): \(count: run.count.rawValue, "frame") at \(console.physicalAddress(run.first)).")
      }
    case .candidate(let candidate): begin(candidate)
    case .isolated, .fetched: break
    case .pass(let report): add(report)
    case .abandoned(let run, let reason, let frame):
      if let table { finish(table) }
      abandoned += 1
      guard !console.isJSON else { break }
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
    if console.isJSON {
      console.row("candidate") { row in
        row.field("at", text: console.physicalAddress(run.first))
        row.field("first_frame", UInt64(run.first.rawValue))
        row.field("frames", run.count.rawValue)
        row.field("free", candidate.free.rawValue)
        row.field("movable", candidate.movable.rawValue)
        row.field("dirty", candidate.dirty.rawValue)
      }
    } else {
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
    }
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
    table.column(countsInstructions ? "instructions" : "cycles", .sum)
    if console.isJSON && detail == .drawn { table.column("in the way", .text) }
    return table
  }

  private mutating func endRow(_ table: Table) {
    table.count(pending)
    pending = 0
    if console.isJSON && detail == .drawn {
      if let run { table.text(picture(run)) } else { table.none() }
    }
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
