// why: the forecast of a request for contiguous memory. It answers yes with the cost; later with the count of missing
// frames; not now with what stands in the way, drawn on the map; or never with the reason.

import ContiguousMemory
import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory

extension CommandDescription {
  static var why: CommandDescription {
    CommandDescription(
      name: "why", usage: "why SIZE [WHERE] [nowait]",
      about: """
        A request for contiguous memory, without doing it: where it would be
        granted and what that would move and write, or how much is missing, or
        what stands in the way, or why it can never be.
        WHERE: low=A high=A align=SIZE boundary=SIZE. nowait: nothing may be
        written for it.
        """,
      example: "why 2M align=2M", question: .failure, entry: "why SIZE",
      completion: .words("low= high= align= boundary= nowait"))
  }
}

extension Shell {

  func why(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing("How much? As in: why 2M align=2M. Type: help why")
    }
    var asked = try arguments.run(word)
    if let word = arguments.next() {
      guard word.bytes == "nowait" else {
        throw arguments.notUnderstood(word)
      }
      asked.waitPolicy = .forbidden
    }
    try arguments.end()

    let forecast = memory.contiguous.forecast(request(asked))
    if isJSON {
      printRow(forecast, asked)
      return
    }
    switch forecast.outcome {
    case .never: never(asked)
    case .granted: if forecast.isFree { granted(forecast) } else { emptiable(forecast, asked) }
    case .notNow, .later, .overBudget: refused(forecast, asked, .nothing, longestRun(asked))
    }
    if memory.contiguous.strategy == .old && !forecast.isFree
      && forecast.outcome != .notNow && forecast.outcome != .never
    {
      print("But vm.contig.strategy is old: contig would launder whole queues instead.")
    }
  }

  /// The request that contig makes.
  func request(_ asked: RunAsked) -> ContiguousRequest {
    var request = ContiguousRequest(asked.count, where: asked.constraints)
    request.passes = memory.contiguous.passes
    request.waitPolicy = asked.waitPolicy
    return request
  }

  private func longestRun(_ asked: RunAsked) -> FrameRun? {
    memory.contiguous.longestEmptiableRun(where: asked.constraints)
  }

  // MARK: The answers

  private func granted(_ forecast: ContiguousForecast) {
    print(
      "Yes: \(count: forecast.run.count.rawValue, "free frame") at \(physicalAddress(forecast.run.first)). Nothing has been done."
    )
    strip(forecast.run)
    printFree(after: forecast.freeAfter)
  }

  private func printFree(after free: PageCount) {
    print(
      "After it \(count: free.rawValue, "frame") would be free; the minimum is \(count: physical.reserve(for: .normal).rawValue)."
    )
  }

  private func emptiable(_ forecast: ContiguousForecast, _ asked: RunAsked) {
    var line = Line("Yes: by ")
    switch (forecast.moved, forecast.written) {
    case (.zero, .zero) where forecast.dropped == .zero: line.append("allocating free frames")
    case (.zero, .zero): line.append(line: "freeing \(count: forecast.dropped.rawValue, "clean page")")
    case (.zero, let written): line.append(line: "writing \(count: written.rawValue, "page") and moving none")
    case (let moved, .zero): line.append(line: "moving \(count: moved.rawValue, "page") and writing none")
    case (let moved, let written):
      line.append(line: "moving \(count: moved.rawValue, "page") and writing \(count: written.rawValue)")
    }
    line.append(". Nothing has been done.")
    print(line)
    var remark: Line = ", cheapest"
    if let blocks = emptiableBlocks(asked) { remark.append(line: " of \(count: blocks, "block")") }
    strip(forecast.run, remark: remark)
    details(forecast)
    if forecast.fetched > .zero {
      print("For it, the page daemon would free \(count: forecast.fetched.rawValue, "frame") elsewhere.")
    }
    printFree(after: forecast.freeAfter)
  }

  /// How many blocks of 2 MiB could be emptied, where the request is for one of these.
  func emptiableBlocks(_ asked: RunAsked) -> UInt64? {
    let limits = asked.constraints
    guard asked.count.bytes == .mebibytes(2), limits.alignment.rawValue == 2 << 20, limits.low.rawValue == 0,
      limits.high.rawValue == .max
    else { return nil }
    var blocks: UInt64 = 0
    physical.forEachPageblock { if $0.unmovable == .zero && $0.absent == .zero { blocks += 1 } }
    return blocks
  }

  /// Prints the contents of the run, in a line whose counts add up.
  private func details(_ forecast: ContiguousForecast) {
    var line: Line =
      "\(count: forecast.run.count.rawValue, "frame"): \(count: forecast.free.rawValue) free, \(count: forecast.moved.rawValue) to move, \(count: forecast.written.rawValue) to write"
    var counted = forecast.free + forecast.moved + forecast.written
    func also(_ count: PageCount, _ what: StaticString) {
      counted = counted + count
      if count > .zero { line.append(line: ", \(count: count.rawValue) \(what)") }
    }
    also(forecast.dropped, "to drop")
    also(forecast.claimed, "held or busy")
    // Printed for every reason, because the counts must add up.
    let known = counted + forecast.unmovable
    also(forecast.run.count - min(forecast.run.count, known), "left")
    line.append(line: ", \(count: forecast.unmovable.rawValue) can't move")
    print(line)
  }

  /// Whether a request has moved or written pages before it was refused.
  enum Done { case nothing, something }

  /// Prints why a run is refused, for `why` and contig alike.
  /// `longest` is asked for only where it is printed.
  func refused(
    _ forecast: ContiguousForecast, _ asked: RunAsked, _ done: Done, _ longest: @autoclosure () -> FrameRun?
  ) {
    let nothing: StaticString = done == .nothing ? " Nothing has been done." : ""
    switch forecast.outcome {
    case .never, .granted: break
    case .notNow: blocked(forecast, nothing, longest())
    case .later: later(forecast, nothing)
    case .overBudget: overBudget(forecast, asked, nothing)
    }
  }

  private func later(_ forecast: ContiguousForecast, _ nothing: StaticString) {
    let what: StaticString = forecast.missing == .one ? "frame or slot" : "frames or slots"
    print("Later: \(count: forecast.missing.rawValue) \(what) of swap too few.\(nothing)")
    strip(forecast.run)
    details(forecast)
    if memory.paging.swap.device == nil {
      print("! There is no swap to write to. Type: swap")
    } else {
      print("! Swap has \(count: memory.paging.swap.figures.free.rawValue, "free slot"). Type: swap")
    }
  }

  private func overBudget(_ forecast: ContiguousForecast, _ asked: RunAsked, _ nothing: StaticString) {
    var line: Line = "Not without waiting: "
    if asked.waitPolicy.mayWait {
      line = "With vm.contig.passes=\(UInt64(memory.contiguous.passes.rawValue)), "
    }
    print("\(line)\(count: forecast.missing.rawValue, "page") would be left.\(nothing)")
    strip(forecast.run)
    details(forecast)
    if !asked.waitPolicy.mayWait {
      var patient = asked
      patient.waitPolicy = .allowed
      print("! A request that waits may have pages written. Type: why \(patient.line)")
    } else {
      print("! It may go further. Type: sysctl vm.contig.passes=4")
    }
  }

  private func blocked(_ forecast: ContiguousForecast, _ nothing: StaticString, _ longest: FrameRun?) {
    if forecast.isBeingEmptied {
      print("Not now: other requests empty this run, or a part of it, or as many runs as may be.\(nothing)")
      strip(forecast.run)
      return details(forecast)
    }
    guard let first = forecast.blocker else { return print("Not now: every run was tried.\(nothing)") }
    let unmovable = forecast.unmovable
    let isPage = physical.whatIs(first).role == .pageable
    if unmovable == .zero {
      print(
        "Not now: \(count: forecast.claimed.rawValue, "page") \(are(forecast.claimed)) \(forecast.reason.description) at this moment.\(nothing)"
      )
    } else if unmovable == .one {
      print("Not now: one \(isPage ? "wired page" : "frame" as StaticString) stands in the way.\(nothing)")
    } else {
      print("Not now: \(count: unmovable.rawValue, "frame") that can't move at the best place.\(nothing)")
    }
    strip(forecast.run, mark: first)
    details(forecast)
    var shown = PageCount.zero
    for i in 0..<min(forecast.owners.count, showsAll ? 8 : 4) {
      guard let owner = forecast.owners.list[i] else { continue }
      shown = shown + owner.frames
      print("blocker  \(describe(owner, in: forecast.run))")
    }
    if shown < forecast.owners.frames {
      print("         and \(count: (forecast.owners.frames - shown).rawValue, "frame") of others")
    }
    if let longest {
      print(
        "longest  \(longest.count.bytes), at \(physicalAddress(longest.first)), could be emptied as things are"
      )
    }
    if forecast.missing > .zero {
      print("! It is shortage. Type: frames")
    } else if isPage && unmovable > .zero && forecast.written > .zero {
      print(
        "! Unwired, the run still costs \(forecast.written.bytes) of writing. Type: whatis frame \(first)")
    } else {
      print("! Type: whatis frame \(first)")
    }
  }

  private func are(_ count: PageCount) -> StaticString { count == .one ? "is" : "are" }

  private func never(_ asked: RunAsked) {
    print("Never: \(asked.whyNever(physical)).")
  }

  // MARK: The owners in the way

  /// A frame, or several in a row with one role: which, what they are, whose, and who keeps them there.
  func describe(_ run: FrameRun) -> Line {
    var line = Line()
    if run.count == .one {
      line.append(line: "frame \(run.first)")
    } else {
      line.append(line: "frames \(run.first) to \(FrameNumber(run.end.rawValue - 1))")
    }
    line.append(line: ": \(whose(run.first))")
    let what = physical.whatIs(run.first)
    let reason = ContiguousFailure.Reason(what)
    if what.busyWord.wires == 1 {
      line.append(", wired once")
    } else if what.busyWord.wires > 1 {
      line.append(line: ", wired \(UInt64(what.busyWord.wires)) times")
    } else if reason == .held || reason == .busy {
      line.append(line: ", \(reason.description)")
    }
    return line
  }

  /// An owner of what is in the way of `run`, and how much of it that is.
  func describe(_ owner: RunOwner, in run: FrameRun) -> Line {
    guard owner.frames > .one else { return describe(FrameRun(first: owner.first, count: .one)) }
    var line: Line = "\(count: owner.frames.rawValue) frames from frame \(owner.first) on: "
    if owner.role == .pageable, let object = memory.paging.object(numbered: owner.owner) {
      line.append(line: "object \(object.number) (\(object.name))")
    } else {
      line.append(line: whose(owner.first))
    }
    // Frame records of contiguous memory name no owner.
    if let entry = contigEntry(holding: owner.first), entry.frames(in: run) < owner.frames {
      line.append(" and others")
    }
    let reason = ContiguousFailure.Reason(physical.whatIs(owner.first))
    if reason != .unmovable { line.append(line: ", \(reason.description)") }
    return line
  }

  /// Describes a frame and its owner: `object 3 (dirty) page 71,204`, `slab of kmem-64`, `contig 7`, `kmem pages`.
  func whose(_ frame: FrameNumber) -> Line {
    let what = physical.whatIs(frame)
    if what.role == .pageable, let object = memory.paging.object(numbered: what.owner) {
      return "object \(object.number) (\(object.name)) page \(count: what.index)"
    }
    let direct = memory.machine.directMap.virtualAddress(of: frame.address)
    if what.role == .slab, let slab = memory.kmem.whatIs(direct) { return "slab of \(slab.cache)" }
    if what.role == .contiguous, let entry = contigEntry(holding: frame) {
      return "contig \(entry.id) (\(entry.type.name))"
    }
    return Line(what.role.description)
  }

  // MARK: As JSON

  /// Prints the forecast as a row. A person gets those of its figures that matter for the answer, beside a picture; a
  /// tool gets all, and null for what is not known.
  private func printRow(_ forecast: ContiguousForecast, _ asked: RunAsked) {
    row("why") { row in
      if forecast.outcome == .granted {
        row.field("answer", text: "yes")
      } else {
        row.field("answer", text: Line(ContiguousFailure.Answer(forecast.outcome).description))
      }
      let isNever = forecast.outcome == .never
      row.field("frames", asked.count.rawValue)
      row.field("reason", text: isNever ? asked.whyNever(physical) : nil)
      // A run that is free is described as one that needs no work; for one that can never be, nothing is known.
      let known = isNever ? nil : forecast
      placeFields(row, known?.run.first)
      row.field("free", known?.free.rawValue)
      row.field("movable", known?.pages.rawValue)
      row.field("dirty", known?.dirty.rawValue)
      row.field("to_move", known?.moved.rawValue)
      row.field("to_write", known?.written.rawValue)
      row.field("to_drop", known?.dropped.rawValue)
      row.field("to_fetch", known?.fetched.rawValue)
      row.field("free_after", known?.freeAfter.rawValue)
      refusalFields(row, known, known == nil || forecast.isFree ? nil : longestRun(asked))
    }
    if forecast.outcome != .never { printOwners(forecast) }
  }

  /// The fields that say where a run is; null for none.
  func placeFields(_ row: JSONRow, _ first: FrameNumber?) {
    row.field("at", text: first.map { physicalAddress($0) })
    row.field("first_frame", first.map { UInt64($0.rawValue) })
  }

  /// The fields that say why a run is refused: the same for `why` and contig.
  func refusalFields(_ row: JSONRow, _ forecast: ContiguousForecast?, _ longest: FrameRun?) {
    row.field("unmovable", forecast?.unmovable.rawValue)
    row.field("held_or_busy", forecast?.claimed.rawValue)
    row.field("missing", forecast?.missing.rawValue)
    let owner = forecast?.owners.first
    row.field("blocker", owner.map { UInt64($0.first.rawValue) })
    row.field("blocker_frames", owner?.frames.rawValue)
    row.field("blocked_by", text: owner == nil ? nil : forecast.map { Line($0.reason.description) })
    row.field("role", text: owner.map { Line($0.role.description) })
    row.field("owner", text: owner.map { whose($0.first) })
    row.field("longest_at", text: longest.map { physicalAddress($0.first) })
    row.field("longest_frame", longest.map { UInt64($0.first.rawValue) })
    row.field("longest_frames", longest?.count.rawValue)
  }

  /// A row for each owner of what is in the way.
  func printOwners(_ forecast: ContiguousForecast) {
    for i in 0..<forecast.owners.count {
      guard let owner = forecast.owners.list[i] else { continue }
      row("blocker") { row in
        row.field("first_frame", UInt64(owner.first.rawValue))
        row.field("frames", owner.frames.rawValue)
        row.field("role", text: Line(owner.role.description))
        row.field("owner", text: whose(owner.first))
        row.field("wires", UInt64(physical.whatIs(owner.first).busyWord.wires))
      }
    }
  }

  // MARK: The map

  /// The memory around a run in a line, the run underlined or pointed at, and one frame pointed at. All of
  /// memory, unless the run would be less than a character of it.
  private func strip(_ run: FrameRun, mark: FrameNumber? = nil, remark: Line = Line()) {
    let end = UInt64(memory.map.end.rawValue)
    var perCell: UInt64 = 1
    while perCell * 64 < end && perCell * 2 <= run.count.rawValue { perCell *= 2 }
    var (first, last) = (UInt64(run.first.rawValue) / perCell, UInt64(run.end.rawValue - 1) / perCell)
    let start = last >= first & ~63 + 64 ? last - 63 : first & ~63
    let isWhole = perCell * 64 >= end
    let label: Line = isWhole ? "0" : pictureLabel(start * perCell)
    strip(
      label, cells(start * perCell, framesPerCell: perCell),
      isWhole ? "\(PageCount(perCell * 64).bytes)" : Line())
    let left = UInt64(label.count + (fitsBlank(label) ? 2 : 1))
    (first, last) = (left + first - start, left + last - start)
    var legend: Line = "a character is \(PageCount(perCell).bytes)"
    var pointer: (column: Int, text: Line)?
    if first == last && mark == nil {
      pointer = (Int(first), "\(physicalAddress(run.first))\(remark)")
    } else {
      underline(
        Int(first), Int(last), "\(physicalAddress(run.first))+\(RunAsked.spelled(run.count.bytes))\(remark)")
      if let mark { pointer = (Int(left + UInt64(mark.rawValue) / perCell - start), "frame \(mark)") }
    }
    if let pointer { point(&legend, at: pointer.column, pointer.text) }
    print(legend)
  }

  private func underline(_ first: Int, _ last: Int, _ text: Line) {
    var line = Line()
    let (fitsBehind, fitsBefore) = (last + 2 + text.count <= width, text.count < first)
    line.append(blanks: fitsBefore && !fitsBehind ? first - text.count - 1 : first)
    if fitsBefore && !fitsBehind { line.append(line: "\(text) ") }
    for _ in first...last { line.append(byte: UInt8(ascii: "=")) }
    if fitsBehind { line.append(line: " \(text)") }
    print(line)
    if fitsBehind || fitsBefore { return }
    line = Line()
    line.append(blanks: first)
    line.append(line: text)
    print(line)
  }

  /// Adds `^` at `column` and `text` beside it to `line`, or prints that in a line of its own where it does not
  /// fit.
  private func point(_ line: inout Line, at column: Int, _ text: Line) {
    if column >= line.count + 2 && column + 2 + text.count <= width {
      line.append(blanks: column - line.count)
      line.append(line: "^ \(text)")
    } else if column >= line.count + text.count + 3 {
      line.append(blanks: column - line.count - text.count - 1)
      line.append(line: "\(text) ^")
    } else {
      var own = Line()
      own.append(blanks: column)
      own.append(line: "^ \(text)")
      print(own)
    }
  }
}
