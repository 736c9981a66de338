// why: a request for contiguous memory without doing it. Yes, and what it would cost; later, and how much is
// missing; not now, and what stands in the way, drawn on the map; or never, and why not.

import ContiguousMemory
import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory

extension Console {
  private static var whyUsage: StaticString { "why SIZE [WHERE] [nowait]" }

  func why(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing("How much? As in: why 2M align=2M. Type: help why", Self.whyUsage)
    }
    var asked = try arguments.run(word)
    if let word = arguments.next() {
      guard word.bytes == "nowait" else {
        throw refuse(word, "not understood here; usage: \(Self.whyUsage)")
      }
      asked.sleeping = .forbidden
    }
    try arguments.end(Self.whyUsage)

    let answer = physical.explain(run: asked.count, where: asked.constraints)
    guard let run = answer.run else {
      never(asked)
      return
    }
    switch answer.verdict {
    case .granted: granted(run)
    case .short: short(answer, run)
    case .never: never(asked)
    case .emptiable, .blocked:
      var request = ContiguousRequest(asked.count, where: asked.constraints)
      request.passes = memory.contiguous.passes
      request.sleeping = asked.sleeping
      let forecast = memory.contiguous.forecast(emptying: run, for: request)
      if isJSON {
        tellRow(forecast, answer)
        return
      }
      switch forecast.outcome {
      case .granted: emptiable(forecast, asked)
      case .notNow: blocked(forecast, answer)
      case .later, .overBudget: later(forecast, asked)
      }
      if memory.contiguous.strategy == .old && forecast.outcome != .notNow {
        print("But vm.contig.strategy is old: contig would launder whole queues, and hope.")
      }
    }
  }

  // MARK: The answers

  private func granted(_ run: FrameRun) {
    if isJSON {
      row("why") { row in
        row.field("answer", text: "yes")
        fields(row, run)
        row.field("free", run.count.rawValue)
      }
      return
    }
    print(
      "Yes: \(count: run.count.rawValue, "free frame") at \(physicalAddress(run.first)). Nothing has been done."
    )
    strip(run)
    let free = physical.freeCount
    tellFree(after: free - min(free, run.count))
  }

  private func tellFree(after free: PageCount) {
    print(
      "After it \(count: free.rawValue, "frame") would be free; the minimum is \(count: physical.reserve(for: .normal).rawValue)."
    )
  }

  private func short(_ answer: RunExplanation, _ run: FrameRun) {
    if isJSON {
      row("why") { row in
        row.field("answer", text: "later")
        fields(row, run)
        row.field("free", answer.free.rawValue)
        row.field("missing", answer.missing.rawValue)
      }
      return
    }
    print(
      "Later: \(count: answer.missing.rawValue, "frame") too few are free; normal requests leave \(count: physical.reserve(for: .normal).rawValue)."
    )
    strip(run)
    print("! It is shortage. Type: frames")
  }

  private func emptiable(_ forecast: ContiguousForecast, _ asked: RunAsked) {
    var line = Line("Yes: by ")
    switch (forecast.moved, forecast.written) {
    case (.zero, .zero): line.append(line: "giving up \(count: forecast.dropped.rawValue, "clean page")")
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
      print("Before it, the page daemon would free \(count: forecast.fetched.rawValue, "frame").")
    }
    tellFree(after: forecast.freeAfter)
  }

  /// How many blocks of 2 MiB could be emptied, where the request is for one of these.
  func emptiableBlocks(_ asked: RunAsked) -> UInt64? {
    let spot = asked.constraints
    guard asked.count.bytes == .mebibytes(2), spot.alignment.rawValue == 2 << 20, spot.low.rawValue == 0,
      spot.high.rawValue == .max
    else { return nil }
    var blocks: UInt64 = 0
    physical.forEachPiece { if $0.unmovable == .zero && $0.absent == .zero { blocks += 1 } }
    return blocks
  }

  /// What is in the run, in a line that adds up.
  private func details(_ forecast: ContiguousForecast) {
    var line: Line =
      "\(count: forecast.run.count.rawValue, "frame"): \(count: forecast.free.rawValue) free, \(count: forecast.moved.rawValue) to move, \(count: forecast.written.rawValue) to write"
    var told = forecast.free + forecast.moved + forecast.written
    func also(_ count: PageCount, _ what: StaticString) {
      told = told + count
      if count > .zero { line.append(line: ", \(count: count.rawValue) \(what)") }
    }
    also(forecast.dropped, "to drop")
    also(forecast.claimed, "held or busy")
    // Whatever the reason, and of all of them when there are too few frames to begin with.
    let known = told + forecast.fixed
    also(forecast.run.count - min(forecast.run.count, known), "left")
    line.append(line: ", \(count: forecast.fixed.rawValue) can't move")
    print(line)
  }

  private func later(_ forecast: ContiguousForecast, _ asked: RunAsked) {
    let missing = forecast.missing.rawValue
    if forecast.outcome == .overBudget {
      var line: Line = "Not without waiting: "
      if asked.sleeping == .allowed {
        line = "With vm.contig.passes=\(UInt64(memory.contiguous.passes.rawValue)), "
      }
      print("\(line)\(count: missing, "page") would be left. Nothing has been done.")
    } else if forecast.moved == .zero && forecast.written == .zero && forecast.dropped == .zero {
      print("Later: \(count: missing, "frame") too few are free to begin with. Nothing has been done.")
    } else {
      print("Later: \(count: missing, "page") of the run have nowhere to go. Nothing has been done.")
    }
    strip(forecast.run)
    details(forecast)
    if forecast.outcome == .overBudget {
      var patient = asked
      patient.sleeping = .allowed
      if asked.sleeping == .forbidden {
        print("! Who waits may have pages written. Type: why \(patient.line)")
      } else {
        print("! It may go further. Type: sysctl vm.contig.passes=4")
      }
    } else if memory.paging.swap.device == nil {
      print("! There is no swap to write to. Type: swap")
    } else {
      print("! Swap has \(count: memory.paging.swap.figures.free.rawValue, "free slot"). Type: swap")
    }
  }

  private func blocked(_ forecast: ContiguousForecast, _ answer: RunExplanation) {
    guard let first = forecast.blocker else { return }
    let fixed = forecast.fixed
    let isPage = physical.whatIs(first).role == .pageable
    if fixed == .zero {
      print(
        "Not now: \(count: forecast.claimed.rawValue, "page") \(are(forecast.claimed)) \(forecast.reason.words) at this moment. Nothing has been done."
      )
    } else if fixed == .one {
      print(
        "Not now: one \(isPage ? "wired page" : "frame" as StaticString) stands in the way. Nothing has been done."
      )
    } else {
      print(
        "Not now: \(count: fixed.rawValue, "frame") that can't move at the best place. Nothing has been done."
      )
    }
    strip(forecast.run, mark: first)
    details(forecast)
    var shown = PageCount.zero
    for i in 0..<min(answer.blockerCount, showsAll ? 8 : 4) {
      guard let blocker = answer.blockers[i] else { continue }
      shown = shown + blocker.run.count
      print("blocker  \(describe(blocker.run))")
    }
    if fixed == .zero {
      print("blocker  \(describe(FrameRun(first: first, count: .one)))")
    } else if shown < fixed {
      print("         and \(count: (fixed - shown).rawValue, "frame") more")
    }
    if let longest = answer.longest {
      print(
        "longest  \(longest.count.bytes), at \(physicalAddress(longest.first)), could be emptied as things are"
      )
    }
    if isShortage(forecast.run.count) {
      print("! It is shortage. Type: frames")
    } else if isPage && fixed > .zero && forecast.written > .zero {
      print(
        "! Unwired, the run still costs \(forecast.written.bytes) of writing. Type: whatis frame \(first)")
    } else {
      print("! Type: whatis frame \(first)")
    }
  }

  private func are(_ count: PageCount) -> StaticString { count == .one ? "is" : "are" }

  /// Whether all that is free or could be emptied, wherever it lies, is less than was asked for.
  private func isShortage(_ count: PageCount) -> Bool {
    let pages = physical.count(.pageable) - min(physical.count(.pageable), memory.paging.wiredCount)
    return physical.freeCount + pages < count + physical.reserve(for: .normal)
  }

  private func never(_ asked: RunAsked) {
    let reason = asked.whyNever(physical)
    if isJSON {
      row("why") { row in
        row.field("answer", text: "never")
        row.field("frames", asked.count.rawValue)
        row.field("reason", text: reason)
      }
      return
    }
    print("Never: \(reason).")
  }

  // MARK: What is in the way

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
    if what.claims.wires == 1 {
      line.append(", wired once")
    } else if what.claims.wires > 1 {
      line.append(line: ", wired \(UInt64(what.claims.wires)) times")
    } else if reason == .held || reason == .busy {
      line.append(line: ", \(reason.words)")
    }
    return line
  }

  /// What a frame is, and whose: `object 3 (dirty) page 71,204`, `slab of kmem-64`, `contig 7`, `kmem pages`.
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
    return Line(what.role.words)
  }

  // MARK: As JSON

  private func fields(_ row: JSONRow, _ run: FrameRun) {
    row.field("at", text: physicalAddress(run.first))
    row.field("first_frame", UInt64(run.first.rawValue))
    row.field("frames", run.count.rawValue)
  }

  private func tellRow(_ forecast: ContiguousForecast, _ answer: RunExplanation) {
    row("why") { row in
      switch forecast.outcome {
      case .granted: row.field("answer", text: "yes")
      case .notNow: row.field("answer", text: "not now")
      case .later: row.field("answer", text: "later")
      case .overBudget: row.field("answer", text: "over budget")
      }
      fields(row, forecast.run)
      row.field("free", forecast.free.rawValue)
      row.field("movable", answer.other.rawValue)
      row.field("dirty", answer.dirty.rawValue)
      row.field("to_move", forecast.moved.rawValue)
      row.field("to_write", forecast.written.rawValue)
      row.field("to_drop", forecast.dropped.rawValue)
      row.field("unmovable", forecast.fixed.rawValue)
      row.field("held_or_busy", forecast.claimed.rawValue)
      row.field("missing", forecast.missing.rawValue)
      row.field("to_fetch", forecast.fetched.rawValue)
      row.field("free_after", forecast.freeAfter.rawValue)
      if let longest = answer.longest {
        row.field("longest_at", text: physicalAddress(longest.first))
        row.field("longest_frames", longest.count.rawValue)
      }
    }
    for i in 0..<answer.blockerCount {
      guard let blocker = answer.blockers[i] else { continue }
      row("blocker") { row in
        row.field("first_frame", UInt64(blocker.run.first.rawValue))
        row.field("frames", blocker.run.count.rawValue)
        row.field("role", text: Line(blocker.role.words))
        row.field("whose", text: whose(blocker.run.first))
        row.field("wires", UInt64(blocker.claims.wires))
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
