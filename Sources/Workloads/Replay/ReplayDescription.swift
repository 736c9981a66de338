// The summary of a replay, described once: a person gets it as a table and sentences, a tool as one row of JSON with the
// same figures. Host and kernel print the same.

import MemoryPrimitives

extension ReplaySummary {
  /// The order of the kinds of events: a person reads the most frequent first.
  private enum Order: UInt8 { case largestFirst, asGiven }

  /// Takes a statement of the summary, and whether there is anything to say to a person.
  private typealias Reader = (_ statement: Statement, _ isSaid: Bool) -> Void

  /// Writes the row as parts of one line, without a line feed. A row of kind `limit` comes before it, where a limit was
  /// met: it ends with `lineEnd`. `cycles` is the unit of `cp_cycles` here.
  package func writeJSON(
    cycles unit: StaticString = CycleCounter.unit, lineEnd: StaticString = "\r\n", _ sink: (Line) -> Void
  ) {
    if let limit = cacheLimit {
      sink("{\"kind\":\"limit\",\"name\":\"caches\"")
      limit.describe { $0.writeFigures(sink) }
      sink("}\(lineEnd)")
    }
    sink("{\"kind\":\"replay\"")
    describeEvents(unit, .asGiven) { statement, _ in statement.writeFigures(sink) }
    describeOutcome { statement, _ in statement.writeFigures(sink) }
    describeVerdict { statement, _ in statement.writeFigures(sink) }
    sink("}")
  }

  /// Prints the table line by line. `cycles` is the unit of `cp_cycles` here: instructions, or cycles.
  package func print(cycles unit: StaticString, _ sink: (Line) -> Void) {
    sink(
      "\(count: allEvents) events: \(count: unmatched) frees without a live counterpart, \(count: skipped) skipped, \(count: lost) lost."
    )
    let heading: Line = "\(unit) each"
    sink("event                   events     done  no owner  \(right: heading, 17)")
    describeEvents(unit, .largestFirst) { statement, isSaid in if isSaid { sink(statement.text) } }
    cacheLimit?.describe { sink($0.text) }
    describeOutcome { statement, isSaid in if isSaid { sink(statement.text) } }
    describeVerdict { statement, isSaid in if isSaid { sink(statement.text) } }
  }

  // MARK: The description

  /// The events by kind, and what they cost.
  private func describeEvents(_ unit: StaticString, _ order: Order, _ read: Reader) {
    forEachKind(order) { kind in describe(kind, read) }
    forEachKind(order) { kind in
      let (key, index) = (kind.description, Int(kind.rawValue))
      read(
        "\(key: key, part: "_done", only: done[index])\(key: key, part: "_cost", only: cycles[index])", false)
    }
    let repeats = events[Int(TraceKind.pageFreeBatched.rawValue)]
    let carriedOut = sum(done) - repeats
    let (name, each): (Line, Line) = (
      "\(left: "all events", 20)  ", carriedOut > 0 ? "\(count: sum(cycles) / carriedOut)" : "-"
    )
    let unmatched: Line = "\(right: "\(count: unmatched)", 8)  \(right: each, 17)"
    read(
      "\(name)\(key: "events", right: allEvents, 8) \(key: "done", right: sum(done), 8)  \(unmatched)", true)
    read(
      "\(key: "unmatched_object_frees", only: unmatchedObjectFrees)\(key: "unmatched_page_frees", only: unmatchedPageFrees)",
      false)
    read("mm_page_free_batched repeats a mm_page_free: counted, nothing to do.", repeats > 0)
    let by: Line = workers > 1 ? " by \(count: UInt64(workers)) processors at once" : ""
    let perEvent = allEvents > 0 ? allCycles / allEvents : 0
    read("All in all \(count: perEvent) \(unit) an event\(by), stamps and checks included.", allEvents > 0)
    read(
      "\(key: "cost", only: sum(cycles))\(key: "overall_cost", only: allCycles)\(key: "unit", only: .words(unit))\(key: "processors", only: UInt64(workers))",
      false)
    read(
      "\(key: "interrupt_events", count: interruptEvents) events were done in \(key: "interrupts", count: interrupts) interrupts.",
      interrupts > 0)
  }

  private func describe(_ kind: TraceKind, _ read: Reader) {
    let index = Int(kind.rawValue)
    let each: Line =
      done[index] > 0 && kind != .pageFreeBatched ? "\(count: cycles[index] / done[index])" : "-"
    let (name, key): (Line, StaticString) = ("\(left: "\(kind.description)", 20)  ", kind.description)
    let rest: Line =
      "\(right: "\(count: done[index])", 8)  \(right: withoutOwner(kind), 8)  \(right: each, 17)"
    read(
      "\(name)\(key: key, right: events[index], 8) \(rest)",
      events[index] > 0)
  }

  /// The events that were skipped, and the memory that was live.
  private func describeOutcome(_ read: Reader) {
    read("\(key: "skipped", only: skipped)", false)
    for i in 0..<ReplaySkip.count {
      let skip = ReplaySkip(rawValue: UInt8(i)).unsafelyUnwrapped
      read("Skipped \(key: skip.key, count: skips[i]): \(skip.description).", skips[i] > 0)
    }
    read(
      "! Refused though they were allowed to wait: \(key: "refused_waiting", count: refusedWaiting) objects or single pages, \(key: "refused_waiting_blocks", count: refusedWaitingBlocks) blocks.",
      refusedWaiting + refusedWaitingBlocks > 0)
    read(
      "Allocated while still live, so the old one was freed first: \(key: "reused", count: reused).",
      reused > 0)
    let size: Line = "(\(PageCount(peakPages).bytes)) were live."
    read(
      "At most \(key: "peak_objects", count: peakObjects) objects (\(key: "peak_object_bytes", count: peakObjectBytes) bytes) and \(key: "peak_pages", count: peakPages) pages \(size)",
      true)
    read("(The highest totals: the processors are not in step.)", workers > 1)
    let since: StaticString = isClosed ? "; they are freed." : " and stay so."
    read(
      "At the end \(key: "left_objects", count: leftObjects) objects and \(key: "left_pages", count: leftPages) pages were live\(since)\(key: "freed", only: truth(isClosed))",
      true)
  }

  private func describeVerdict(_ read: Reader) {
    let first = UInt64(firstDamage) + 1
    read(
      "! \(key: "damaged", count: damaged) objects or pages were damaged, first found by event \(count: first).\(key: "first_damage", only: damaged > 0 ? .number(first) : .none)",
      damaged > 0)
    read("\(key: "peaks_agree", only: truth(peaksAgree))", false)
    read(
      "! The trace says at most \(key: "expected_peak_objects", count: expectedPeakObjects) objects and \(key: "expected_peak_pages", count: expectedPeakPages) pages: pack it again.",
      !peaksAgree)
    read("\(key: "lost", only: lost)", false)
    read(
      "! \(key: "lost_pages", count: lostPages) frames were not freed. Type: frames",
      isClosed && lostPages > 0)
    read(
      "! \(key: "lost_objects", count: lostObjects) objects are still counted as in use. Type: vmstat -m",
      isClosed && lostObjects > 0)
    read(
      "! \(key: "gained_pages", count: gainedPages) frames more are free than at the start. Type: frames",
      isClosed && gainedPages > 0)
    read(
      "Everything is back at its starting counts.\(key: "passed", only: truth(succeeded))",
      isClosed && damaged == 0 && lost == 0 && gainedPages == 0)
  }

  private func truth(_ value: Bool) -> Statement.Value { .truth(value ? .yes : .no) }

  // MARK: Parts of it

  private func forEachKind(_ order: Order, _ body: (TraceKind) -> Void) {
    var kinds: InlineArray<7, Int> = [0, 1, 2, 3, 4, 5, 6]
    if order == .largestFirst {
      for i in 1..<TraceKind.count {
        var at = i
        while at > 0 && events[kinds[at - 1]] < events[kinds[at]] {
          let above = kinds[at - 1]
          kinds[at - 1] = kinds[at]
          kinds[at] = above
          at -= 1
        }
      }
    }
    for i in 0..<TraceKind.count { body(TraceKind(rawValue: UInt8(kinds[i])).unsafelyUnwrapped) }
  }

  private func withoutOwner(_ kind: TraceKind) -> Line {
    switch kind {
    case .pageFree: "\(count: unmatchedPageFrees)"
    case .kfree: "\(count: unmatchedKfrees)"
    case .cacheFree: "\(count: unmatchedObjectFrees - unmatchedKfrees)"
    default: "-"
    }
  }
}

extension CacheLimit {
  fileprivate func describe(_ read: (Statement) -> Void) {
    read(
      "Limit: of \(key: "asked", count: asked) caches the \(key: "own", count: own) busiest have their own;")
    read(
      "\(key: "shared", count: shared), with \(key: "shared_events", count: sharedEvents) events, share the general ones by size."
    )
  }
}
