// The memory of hopeless requests: a request for a run that was searched for in vain is refused again without
// a search, until a run for it could have come up.
//
// Such a run has a frame that was fixed when the note was taken and is not any more. So each note keeps
// where frames in its range have stopped being fixed since: up to four intervals, joined where they are close.
// Whoever asks whether the note still stands looks at the extents around them, as far as the run
// could reach, and drops the intervals that don't help. What can't be kept (a fifth interval, a very long
// one) drops the note: then the request is searched for again, and noted again if that was in vain.
//
// A note speaks for harder requests too: for more frames, in a smaller range, more aligned, with a closer
// boundary.
//
// A free of fixed frames, and a page that is no longer wired, look at the eight notes if there are any; a note
// for whole pageblocks is only told of a pageblock that has become empty of fixed frames. Under the lock.

import MemoryPrimitives
import Synchronization

/// A request that was in vain, and where that may have changed.
struct FailedRequest {
  var request: RunRequest?
  /// Tells this note from an earlier one in its place.
  var number: UInt32 = 0
  /// Rises with each change of the intervals.
  var changes: UInt32 = 0
  var intervals: InlineArray<4, FrameAllocator.Span> = .init(repeating: FrameAllocator.Span(first: 0, end: 0))
  var count = 0

  enum Room { case kept, none }

  /// Adds frames `first` to `end`, of one pageblock. No room: the note can't stand.
  mutating func add(_ first: UInt32, _ end: UInt32, longest: UInt32) -> Room {
    changes &+= 1
    for i in 0..<count {
      let near = intervals[i]
      guard UInt64(first) <= UInt64(near.end) + 64, UInt64(near.first) <= UInt64(end) + 64 else { continue }
      intervals[i] = FrameAllocator.Span(first: min(first, near.first), end: max(end, near.end))
      return intervals[i].end - intervals[i].first <= longest ? .kept : .none
    }
    guard count < 4 else { return .none }
    intervals[count] = FrameAllocator.Span(first: first, end: end)
    count += 1
    return .kept
  }
}

extension RunRequest {
  /// Whether any run for `other` would have one for this in it.
  func isImplied(by other: RunRequest) -> Bool {
    count <= other.count && low <= other.low && high >= other.high && alignment <= other.alignment
      && (boundary == 0 || (other.boundary != 0 && other.boundary <= boundary))
  }

  func isSame(as other: RunRequest) -> Bool { isImplied(by: other) && other.isImplied(by: self) }
}

extension FrameAllocator {
  /// Notes that no run for this request can be emptied, and keeps the last eight. Looks again after it has
  /// begun to watch, so that nothing that came up meanwhile is missed: costs a search, and notes nothing
  /// if that finds a run.
  public func cacheFailedRequest(_ count: PageCount, _ constraints: RunConstraints) {
    guard let request = RunRequest(count, constraints) else { return }
    let interrupts = lock()
    let number = nextNumber()
    // The place of the same note, else a free one, which is as old as can be, else the oldest.
    var slot = 0
    var oldest: UInt32 = 0
    for i in 0..<8 {
      if let known = core.pointee.failedRequests[i].request, known.isSame(as: request) {
        slot = i
        break
      }
      let isFree = core.pointee.failedRequests[i].request == nil
      let age = isFree ? .max : number &- core.pointee.failedRequests[i].number
      if age > oldest { (slot, oldest) = (i, age) }
    }
    if core.pointee.failedRequests[slot].request == nil { core.pointee.watchers += 1 }
    core.pointee.failedRequests[slot] = FailedRequest()
    core.pointee.failedRequests[slot].request = request
    core.pointee.failedRequests[slot].number = number
    unlock(interrupts)
    var steps: UInt64 = 0
    if canEmpty(request, UInt64(request.low), UInt64(request.high), &steps) { drop(slot, number) }
    state.pointee.events.pointee.failedCacheSteps.add(steps, ordering: .relaxed)
  }

  /// Whether a note says that no run for this request can be emptied. Independent of the size of memory: the
  /// frames around what has changed are looked at, as far as the run could reach. False as soon as a run could
  /// have come up, and for what was never noted. Takes the lock for a moment.
  public func hasFailedRecently(_ count: PageCount, _ constraints: RunConstraints) -> Bool {
    guard let request = RunRequest(count, constraints) else { return false }
    var steps: UInt64 = 0
    defer { state.pointee.events.pointee.failedCacheSteps.add(steps, ordering: .relaxed) }
    var i = 0
    while i < 8 {
      var note = FailedRequest()
      let interrupts = lock()
      while i < 8 {
        note = core.pointee.failedRequests[i]
        if let known = note.request, known.isImplied(by: request) { break }
        i += 1
      }
      unlock(interrupts)
      steps += 1
      if i < 8 && stands(note, i, &steps) {
        state.pointee.events.pointee.failedCacheHits.add(1, ordering: .relaxed)
        return true
      }
      i += 1
    }
    return false
  }

  /// Looks at what has changed since the note was last looked at.
  private func stands(_ note: FailedRequest, _ slot: Int, _ steps: inout UInt64) -> Bool {
    if note.count == 0 { return true }
    let request = note.request.unsafelyUnwrapped
    let reach = UInt64(request.count) - 1
    for i in 0..<note.count {
      let interval = note.intervals[i]
      let low = max(UInt64(request.low) + reach, UInt64(interval.first)) - reach
      let high = min(UInt64(request.high), UInt64(interval.end) + reach)
      if canEmpty(request, low, high, &steps) {
        drop(slot, note.number)
        return false
      }
    }
    let interrupts = lock()
    // What came up meanwhile stays to be looked at.
    if core.pointee.failedRequests[slot].number == note.number
      && core.pointee.failedRequests[slot].changes == note.changes
    {
      core.pointee.failedRequests[slot].count = 0
    }
    unlock(interrupts)
    return true
  }

  private func drop(_ slot: Int, _ number: UInt32) {
    let interrupts = lock()
    if core.pointee.failedRequests[slot].number == number { dropFailedRequest(slot) }
    unlock(interrupts)
  }

  /// Lock held.
  private func dropFailedRequest(_ slot: Int) {
    core.pointee.failedRequests[slot] = FailedRequest()
    core.pointee.watchers -= 1
  }

  /// Frames `first` to `end` of one pageblock have stopped being fixed. Lock held, after they were counted.
  func noteEmptiable(_ first: UInt32, _ end: UInt32) {
    let isPageblockFixed = pageblockUnchecked(first).snapshot.hasFixed
    for i in 0..<8 {
      guard let request = core.pointee.failedRequests[i].request else { continue }
      let from = max(first, request.low)
      let to = min(end, request.high)
      guard from < to, !(request.isOfPageblocks && isPageblockFixed) else { continue }
      let longest = UInt32(min(UInt64(1) << 31, 4096 + 4 * UInt64(request.count)))
      if core.pointee.failedRequests[i].add(from, to, longest: longest) == .none { dropFailedRequest(i) }
    }
  }
}
