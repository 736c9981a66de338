// The counts of a replay, as figures, as a table for a person and as one row of JSON for a tool. Host and kernel print
// the same.

import MemoryPrimitives

/// Why an event of the trace was not carried out, other than a free without an owner.
package enum ReplaySkip: UInt8, Sendable {
  /// Kmem had no memory for an object.
  case noObject
  /// There was no block of frames of the order in the permitted memory.
  case noPages
  /// Its allocation was skipped.
  case skippedBefore
  /// The request had already failed in the traced kernel.
  case failedInTrace

  package static var count: Int { 4 }

  package var description: StaticString {
    switch self {
    case .noObject: "no memory for an object"
    case .noPages: "no block of frames"
    case .skippedBefore: "free of a skipped allocation"
    case .failedInTrace: "failed in the traced kernel"
    }
  }
}

/// More caches in a trace than kmem takes.
package struct CacheLimit: Equatable, Sendable {
  /// Caches of the trace.
  package let asked: UInt64
  /// The busiest of them, which have a cache of their own. Objects too large for a slab have none.
  package let own: UInt64
  /// Those whose objects come from the general caches, by their sizes.
  package let shared: UInt64
  /// The events of these.
  package let sharedEvents: UInt64
}

/// The outcome of a replay. Plain figures, valid on either machine.
package struct ReplaySummary: Equatable, Sendable {
  /// Events read, by `TraceKind.rawValue`.
  package var events: InlineArray<7, UInt64> = .init(repeating: 0)
  /// Events that were carried out, by kind.
  package var done: InlineArray<7, UInt64> = .init(repeating: 0)
  /// The time that the allocators took for them, as `cp_cycles` counts it.
  package var cycles: InlineArray<7, UInt64> = .init(repeating: 0)
  /// Frees of objects that were not live.
  package var unmatchedObjectFrees: UInt64 = 0
  /// Frees of pages of which none was live.
  package var unmatchedPageFrees: UInt64 = 0
  /// Allocations of identities that were still live: the free was lost, and the old one was freed first.
  package var reused: UInt64 = 0
  /// By `ReplaySkip.rawValue`.
  package var skips: InlineArray<4, UInt64> = .init(repeating: 0)
  package var liveObjects: UInt64 = 0
  package var liveBytes: UInt64 = 0
  package var livePages: UInt64 = 0
  /// The most objects that were live at once. Several processors are not in step: their highest total may be more or
  /// less than that of the trace.
  package var peakObjects: UInt64 = 0
  /// As requested.
  package var peakObjectBytes: UInt64 = 0
  package var peakPages: UInt64 = 0
  /// Objects that are live at the trace's end.
  package var leftObjects: UInt64 = 0
  package var leftPages: UInt64 = 0
  /// Stamps that were not intact, memory that was not zero as requested, frames of another role.
  package var damaged: UInt64 = 0
  /// The first event that found damage, from 0; all ones for none.
  package var firstDamage: UInt32 = .max
  /// Frames that were not freed at the end.
  package var lostPages: UInt64 = 0
  /// Objects that kmem still counts as in use at the end.
  package var lostObjects: UInt64 = 0
  /// Free frames at the end beyond those at the start.
  package var gainedPages: UInt64 = 0
  /// The trace's own peaks, for comparison.
  package var expectedEvents: UInt64 = 0
  package var expectedPeakObjects: UInt64 = 0
  package var expectedPeakPages: UInt64 = 0
  /// Whether everything has been freed and the counts compared.
  package var isClosed = false
  /// `cp_cycles` from the first event to the last, checking of stamps included.
  package var allCycles: UInt64 = 0
  /// Processors that it was split over.
  package var workers = 1
  /// Events that interrupt handlers carried out.
  package var interruptEvents: UInt64 = 0
  /// Interrupts for them.
  package var interrupts: UInt64 = 0
  /// The limit that was met, where the trace has more caches than kmem takes.
  package var cacheLimit: CacheLimit?

  package init() {}

  /// Takes over the counts of the trace that a replay of all of it reaches.
  mutating func expect(_ counts: TraceCounts) {
    expectedEvents = UInt64(counts.events)
    expectedPeakObjects = UInt64(counts.peakObjects)
    expectedPeakPages = UInt64(counts.peakPages)
  }

  package var allEvents: UInt64 { sum(events) }
  package var unmatched: UInt64 { unmatchedObjectFrees + unmatchedPageFrees }
  package var skipped: UInt64 { skips[0] + skips[1] + skips[2] + skips[3] }
  package var lost: UInt64 { lostPages + lostObjects }

  /// Whether all stamps held, everything was freed, and at most one in a thousand of the events that have a live
  /// counterpart was skipped.
  package var succeeded: Bool {
    damaged == 0 && lost == 0 && gainedPages == 0 && peaksAgree
      && (skipped - skips[Int(ReplaySkip.failedInTrace.rawValue)]) * 1000 <= allEvents - unmatched
  }

  /// Whether the peaks are those of the trace. Where no event was skipped, one processor that replays all of it must
  /// reach them exactly.
  var peaksAgree: Bool {
    skipped > 0 || workers > 1 || allEvents < expectedEvents
      || (peakObjects == expectedPeakObjects && peakPages == expectedPeakPages)
  }

  private func sum(_ values: InlineArray<7, UInt64>) -> UInt64 {
    var total: UInt64 = 0
    for i in 0..<TraceKind.count { total += values[i] }
    return total
  }

  package static func == (a: ReplaySummary, b: ReplaySummary) -> Bool {
    var isEqual = a.allEvents == b.allEvents && a.damaged == b.damaged
    a.forEachFigure { name, value in
      b.forEachFigure { other, otherValue in
        if name.utf8Start == other.utf8Start && value != otherValue { isEqual = false }
      }
    }
    return isEqual
  }

  /// Adds the counts of another executor, except the peaks.
  mutating func add(_ other: borrowing ReplaySummary) {
    for i in 0..<TraceKind.count {
      events[i] += other.events[i]
      done[i] += other.done[i]
      cycles[i] += other.cycles[i]
    }
    for i in 0..<ReplaySkip.count { skips[i] += other.skips[i] }
    unmatchedObjectFrees += other.unmatchedObjectFrees
    unmatchedKfrees += other.unmatchedKfrees
    unmatchedPageFrees += other.unmatchedPageFrees
    reused += other.reused
    liveObjects += other.liveObjects
    liveBytes += other.liveBytes
    livePages += other.livePages
    damaged += other.damaged
    firstDamage = min(firstDamage, other.firstDamage)
    interruptEvents += other.interruptEvents
    interrupts += other.interrupts
  }

  // MARK: Printing

  /// The figures of the row `{"kind":"replay",…}`, in their order.
  package func forEachFigure(_ body: (StaticString, UInt64) -> Void) {
    for i in 0..<TraceKind.count {
      body(TraceKind(rawValue: UInt8(i)).unsafelyUnwrapped.description, events[i])
    }
    body("unmatched_object_frees", unmatchedObjectFrees)
    body("unmatched_page_frees", unmatchedPageFrees)
    body("reused", reused)
    body("skipped", skipped)
    body("peak_object_bytes", peakObjectBytes)
    body("peak_objects", peakObjects)
    body("peak_pages", peakPages)
    body("left_objects", leftObjects)
    body("left_pages", leftPages)
    body("lost", lost)
  }

  /// Writes the row as parts of one line, without a line feed. A row of kind `limit` comes before it, where a limit was
  /// met: it ends with `lineEnd`.
  package func writeJSON(lineEnd: StaticString = "\r\n", _ sink: (Line) -> Void) {
    if let limit = cacheLimit {
      sink("{\"kind\":\"limit\",\"name\":\"caches\",\"asked\":\(limit.asked),\"own\":\(limit.own)")
      sink(",\"shared\":\(limit.shared),\"shared_events\":\(limit.sharedEvents)}\(lineEnd)")
    }
    sink("{\"kind\":\"replay\"")
    forEachFigure { name, value in sink(",\"\(name)\":\(value)") }
    sink("}")
  }

  /// Prints the table line by line. `cycles` is the unit of `cp_cycles` here: instructions, or cycles.
  package func print(cycles unit: StaticString, _ sink: (Line) -> Void) {
    sink(
      "\(count: allEvents) events: \(count: unmatched) frees without a live counterpart, \(count: skipped) skipped, \(count: lost) lost."
    )
    let heading: Line = "\(unit) each"
    sink("event                   events     done  no owner  \(right: heading, 17)")
    var order: InlineArray<7, Int> = [0, 1, 2, 3, 4, 5, 6]
    for i in 1..<TraceKind.count {
      var at = i
      while at > 0 && events[order[at - 1]] < events[order[at]] {
        let above = order[at - 1]
        order[at - 1] = order[at]
        order[at] = above
        at -= 1
      }
    }
    for i in 0..<TraceKind.count where events[order[i]] > 0 {
      let kind = TraceKind(rawValue: UInt8(order[i])).unsafelyUnwrapped
      let each =
        done[order[i]] > 0 && kind != .pageFreeBatched ? grouped(cycles[order[i]] / done[order[i]]) : "-"
      row(
        "\(kind.description)", events: events[order[i]], done: done[order[i]], unmatched: withoutOwner(kind),
        each: each, sink)
    }
    let repeats = events[Int(TraceKind.pageFreeBatched.rawValue)]
    let carriedOut = sum(done) - repeats
    let each = carriedOut > 0 ? grouped(sum(cycles) / carriedOut) : "-"
    row(
      "all events", events: allEvents, done: sum(done), unmatched: grouped(unmatched), each: each, sink)
    if repeats > 0 { sink("mm_page_free_batched repeats a mm_page_free: counted, nothing to do.") }
    if allEvents > 0 {
      let by: Line = workers > 1 ? " by \(count: UInt64(workers)) processors at once" : ""
      sink("All in all \(count: allCycles / allEvents) \(unit) an event\(by), stamps and checks included.")
    }
    if interrupts > 0 {
      sink("\(count: interruptEvents) events were done in \(count: interrupts) interrupts.")
    }
    if let limit = cacheLimit {
      sink("Limit: of \(count: limit.asked) caches the \(count: limit.own) busiest have their own;")
      sink(
        "\(count: limit.shared), with \(count: limit.sharedEvents) events, share the general ones by size.")
    }
    for i in 0..<ReplaySkip.count where skips[i] > 0 {
      sink("Skipped \(count: skips[i]): \(ReplaySkip(rawValue: UInt8(i)).unsafelyUnwrapped.description).")
    }
    if reused > 0 { sink("Allocated while still live, so the old one was freed first: \(count: reused).") }
    sink(
      "At most \(count: peakObjects) objects (\(count: peakObjectBytes) bytes) and \(count: peakPages) pages (\(PageCount(peakPages).bytes)) were live."
    )
    if workers > 1 { sink("(The highest totals: the processors are not in step.)") }
    let since: StaticString = isClosed ? "; they are freed." : " and stay so."
    sink("At the end \(count: leftObjects) objects and \(count: leftPages) pages were live\(since)")
    printVerdict(sink)
  }

  private func printVerdict(_ sink: (Line) -> Void) {
    if damaged > 0 {
      sink(
        "! \(count: damaged) objects or pages were damaged, first found by event \(count: UInt64(firstDamage) + 1)."
      )
    }
    if !peaksAgree {
      sink(
        "! The trace says at most \(count: expectedPeakObjects) objects and \(count: expectedPeakPages) pages: pack it again."
      )
    }
    guard isClosed else { return }
    if lostPages > 0 { sink("! \(count: lostPages) frames were not freed. Type: frames") }
    if lostObjects > 0 {
      sink("! \(count: lostObjects) objects are still counted as in use. Type: vmstat -m")
    }
    if gainedPages > 0 {
      sink("! \(count: gainedPages) frames more are free than at the start. Type: frames")
    }
    if damaged == 0 && lost == 0 && gainedPages == 0 { sink("Everything is back at its starting counts.") }
  }

  private func withoutOwner(_ kind: TraceKind) -> Line {
    switch kind {
    case .pageFree: grouped(unmatchedPageFrees)
    case .kfree: grouped(unmatchedKfrees)
    case .cacheFree: grouped(unmatchedObjectFrees - unmatchedKfrees)
    default: "-"
    }
  }

  /// Of `unmatchedObjectFrees` those by kfree.
  var unmatchedKfrees: UInt64 = 0

  private func grouped(_ value: UInt64) -> Line { "\(count: value)" }

  private func row(
    _ name: Line, events: UInt64, done: UInt64, unmatched: Line, each: Line, _ sink: (Line) -> Void
  ) {
    let (events, done) = (grouped(events), grouped(done))
    sink(
      "\(left: name, 20)  \(right: events, 8) \(right: done, 8)  \(right: unmatched, 8)  \(right: each, 17)")
  }
}
