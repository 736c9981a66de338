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

extension CommandDescription {
  static var contig: CommandDescription {
    CommandDescription(
      name: "contig", usage: "contig SIZE [WHERE] [HOW] [-v] | contig list | contig free ID | all",
      about: """
        Contiguous memory: what is in the way of one run is moved or written to
        swap, and no other page is.
        WHERE: low=A high=A align=SIZE boundary=SIZE, as why takes them.
        HOW: nowait (moves, never writes), zero, attr=wb|wt|wc|uc, type=NAME.
        -v draws the run before, after each pass, and after.
        Refused, it says never, later, not now, not without waiting, or how
        much would be left with vm.contig.passes as it is.
        """,
      example: "contig -v 2M align=2M", question: .trial,
      completion: .words("low= high= align= boundary= nowait zero attr= type= list free"))
  }
}

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
struct ContigOptions {
  var attribute = CacheAttribute.writeBack
  var contents = InitialContents.unknown
  var type = ShortName("console")
  var detail = Detail.brief

  /// Whether the run is drawn as a picture.
  enum Detail { case brief, drawn }
}

extension Shell {

  func contig(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "How much? As in: contig 2M align=2M. Or contig list, contig free ID.")
    }
    if word.bytes == "list" {
      try arguments.end()
      listContig()
    } else if word.bytes == "free" {
      try freeContig(arguments)
    } else {
      var asked = try arguments.run(word)
      var options = ContigOptions()
      if arguments.takeFlag("-v") { options.detail = .drawn }
      try read(arguments, &asked, &options)
      try allocate(asked, options)
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
        guard asked.waitPolicy.mayWait else { throw refuse(word, "nowait is given twice") }
        asked.waitPolicy = .forbidden
      } else if word.bytes == "zero" {
        guard options.contents == .unknown else { throw refuse(word, "zero is given twice") }
        options.contents = .zero
      } else {
        throw arguments.notUnderstood(word)
      }
    }
    try arguments.end()
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
        "A number is missing: contig list shows them; contig free all frees all of them.")
    }
    if word.bytes == "all" {
      try arguments.end()
      let (runs, frames) = giveBackContig(above: 0)
      printEnd { reportFreed(runs, frames) }
      return
    }
    let id = try arguments.number(word)
    try arguments.end()
    for i in 0..<contigEntries.pointee.count where entries[i].id == id {
      let entry = giveBack(at: i)
      let run = entry.range.frames
      report("contig_freed") { report in
        report.write(
          "Freed contig \(id): \(entry.size), \(frames(run)).\(key: "runs", only: 1)\(key: "frames", only: run.count.rawValue)"
        )
        report.write("\(key: "free", count: physical.freeCount.rawValue, "frame") are free.")
      }
      return
    }
    throw refuse(word, "no such run; contig list shows them")
  }

  private func reportFreed(_ runs: UInt64, _ frames: PageCount) {
    report("contig_freed") { report in
      report.write(
        "Freed \(key: "runs", count: runs, "run"), \(frames.bytes).\(key: "frames", only: frames.rawValue) \(key: "free", count: physical.freeCount.rawValue, "frame") are free."
      )
    }
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
      print("None. As in: contig 2M align=2M")
      return
    }
    let table = table("contig_run")
    table.column("id", .figure)
    table.column("frame", .figure, key: "first_frame")
    table.column("frames", .sum)
    // Frames are whole; the requested size need not be.
    table.column("asked", .sum, key: "bytes")
    table.column("address", .exact)
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

  private func allocate(_ asked: RunAsked, _ options: ContigOptions) throws(CommandError) {
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
      ) { story.record($0) }
    } catch {
      story.end(.refused)
      printEnd("Stopped. The request had been refused by then.") { refused(error, asked, story) }
      throw .failed
    }
    story.end(.granted)
    let entry = keepContig(range, asked.size, type, options.attribute)
    // The request ran to its end, whatever was typed.
    printEnd("Stopped. The request had been granted by then.") { report(entry, asked, story) }
  }

  private func report(_ entry: ContigEntry, _ asked: RunAsked, _ story: ContigStory) {
    let range = entry.range
    row("contig") { row in
      row.field("answer", text: "granted")
      fields(row, asked, story)
      placeFields(row, range.frames.first)
      grantFields(row, entry)
      refusalFields(row, nil, asked, nil)
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
    row.cost(story.cycles, costUnit)
    row.field("free", physical.freeCount.rawValue)
  }

  /// The fields of a granted run; null for one that was refused.
  private func grantFields(_ row: JSONRow, _ entry: ContigEntry?) {
    row.field("id", entry?.id)
    row.field("address", entry?.range.address)
    row.field("cached", text: entry.map { Line($0.attribute.description) })
    row.field("type", text: entry.map { "\($0.type.name)" })
  }

  /// The fields of a refusal; null for a run that was granted.
  private func refusalFields(
    _ row: JSONRow, _ failure: ContiguousFailure?, _ asked: RunAsked,
    _ best: (forecast: ContiguousForecast?, longest: FrameRun?)?
  ) {
    row.field("repeated", truth: failure.map { $0.isRepeated ? .yes : .no })
    row.field("injected", truth: failure.map { $0.isInjected ? .yes : .no })
    row.field("reason", text: failure?.answer == .never ? asked.whyNever(physical) : nil)
    refusalFields(row, best?.forecast, best?.longest)
  }

  private func refused(_ failure: ContiguousFailure, _ asked: RunAsked, _ story: ContigStory) {
    // The failed-request cache does not examine a repeated request; for a person the search is worth its cost.
    var (forecast, longest) = (failure.forecast, failure.longest)
    if failure.isRepeated && failure.answer != .never && !failure.isInjected {
      forecast = forecast ?? memory.contiguous.forecast(request(asked))
      if forecast?.outcome == .notNow || isJSON {
        longest = memory.contiguous.longestEmptiableRun(where: asked.constraints)
      }
    }
    row("contig") { row in
      row.field("answer", text: Line(failure.description))
      fields(row, asked, story)
      placeFields(row, forecast?.run.first)
      grantFields(row, nil)
      refusalFields(row, failure, asked, (forecast, longest))
    }
    if let forecast { printOwners(forecast) }
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
