// The counts of a replay.

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

  /// The key of the count of such events.
  var key: StaticString {
    switch self {
    case .noObject: "skipped_no_object"
    case .noPages: "skipped_no_pages"
    case .skippedBefore: "skipped_before"
    case .failedInTrace: "skipped_failed_in_trace"
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
  /// Allocations among the skipped that were allowed to wait for memory: single frames and objects, and blocks.
  package var refusedWaiting: UInt64 = 0
  package var refusedWaitingBlocks: UInt64 = 0
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

  func sum(_ values: InlineArray<7, UInt64>) -> UInt64 {
    var total: UInt64 = 0
    for i in 0..<TraceKind.count { total += values[i] }
    return total
  }

  /// Whether two replays counted the same. Costs differ from one to the next.
  package static func == (a: ReplaySummary, b: ReplaySummary) -> Bool {
    for i in 0..<TraceKind.count where a.events[i] != b.events[i] || a.done[i] != b.done[i] { return false }
    for i in 0..<ReplaySkip.count where a.skips[i] != b.skips[i] { return false }
    return a.unmatchedObjectFrees == b.unmatchedObjectFrees && a.unmatchedPageFrees == b.unmatchedPageFrees
      && a.reused == b.reused && a.peakObjects == b.peakObjects && a.peakObjectBytes == b.peakObjectBytes
      && a.peakPages == b.peakPages && a.leftObjects == b.leftObjects && a.leftPages == b.leftPages
      && a.damaged == b.damaged && a.lost == b.lost && a.gainedPages == b.gainedPages
  }

  /// Adds the counts of another executor, except the peaks.
  mutating func add(_ other: borrowing ReplaySummary) {
    for i in 0..<TraceKind.count {
      events[i] += other.events[i]
      done[i] += other.done[i]
      cycles[i] += other.cycles[i]
    }
    for i in 0..<ReplaySkip.count { skips[i] += other.skips[i] }
    refusedWaiting += other.refusedWaiting
    refusedWaitingBlocks += other.refusedWaitingBlocks
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

  /// Of `unmatchedObjectFrees` those by kfree.
  var unmatchedKfrees: UInt64 = 0
}
