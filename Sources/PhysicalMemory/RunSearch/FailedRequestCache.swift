// The failed-request cache: a request for a run that failed is refused again without a search, until a run for it could
// have appeared.
//
// Such a run has a frame that was unmovable when the entry was made and is not any more. So each entry keeps where
// frames in its range have stopped being unmovable since: up to four intervals, joined where they are close. A lookup
// searches the extents around them, as far as the run could reach, and drops the intervals that do not help. When an
// interval can't be kept (a fifth one, or a very long one), the entry is dropped: the request is searched for again,
// and entered again if that fails.
//
// An entry also answers harder requests: for more frames, in a smaller range, with a larger alignment, with a smaller
// boundary.
//
// A free of unmovable frames, and the last unwire of a page, look at the eight entries if there are any. An entry for
// whole pageblocks records only a pageblock that has lost its last unmovable frame. The domain lock guards the entries.

import MemoryPrimitives
import Synchronization

/// A request that failed, and where that may have changed.
struct FailedRequest {
  var request: RunRequest?
  /// Distinguishes this entry from an earlier one in its slot.
  var number: UInt32 = 0
  /// Rises with each change of the intervals.
  var changes: UInt32 = 0
  var intervals: InlineArray<4, FrameSpan> = .init(repeating: FrameSpan(first: 0, end: 0))
  var count = 0

  enum Capacity { case sufficient, exceeded }

  /// Adds frames `first` to `end`, of one pageblock. When the capacity is exceeded the entry must be dropped.
  mutating func add(_ first: UInt32, _ end: UInt32, longest: UInt32) -> Capacity {
    changes &+= 1
    for i in 0..<count {
      let near = intervals[i]
      guard UInt64(first) <= UInt64(near.end) + 64, UInt64(near.first) <= UInt64(end) + 64 else { continue }
      intervals[i] = FrameSpan(first: min(first, near.first), end: max(end, near.end))
      return intervals[i].end - intervals[i].first <= longest ? .sufficient : .exceeded
    }
    guard count < intervals.count else { return .exceeded }
    intervals[count] = FrameSpan(first: first, end: end)
    count += 1
    return .sufficient
  }
}

extension RunRequest {
  /// Whether any run for `other` would contain one for this.
  func isImplied(by other: RunRequest) -> Bool {
    count <= other.count && low <= other.low && high >= other.high && alignment <= other.alignment
      && (boundary == 0 || (other.boundary != 0 && other.boundary <= boundary))
  }

  func isSame(as other: RunRequest) -> Bool { isImplied(by: other) && other.isImplied(by: self) }
}

extension FrameDomain {
  /// Enters a request into the slot of the same request, else into a free slot, else in place of the oldest.
  fileprivate mutating func enter(_ request: RunRequest) -> (slot: Int, number: UInt32) {
    let number = nextNumber()
    var slot = 0
    var oldest: UInt32 = 0
    for i in failedRequests.indices {
      if let known = failedRequests[i].request, known.isSame(as: request) {
        slot = i
        break
      }
      let age = failedRequests[i].request == nil ? .max : number &- failedRequests[i].number
      if age > oldest { (slot, oldest) = (i, age) }
    }
    if failedRequests[slot].request == nil { watchers += 1 }
    failedRequests[slot] = FailedRequest()
    failedRequests[slot].request = request
    failedRequests[slot].number = number
    return (slot, number)
  }

  /// The first entry from `slot` on that answers `request`.
  fileprivate func entry(for request: RunRequest, from slot: Int) -> (slot: Int, entry: FailedRequest)? {
    for i in slot..<failedRequests.count {
      if let known = failedRequests[i].request, known.isImplied(by: request) { return (i, failedRequests[i]) }
    }
    return nil
  }

  /// Drops the intervals of an entry that were searched; later ones stay.
  fileprivate mutating func discardIntervals(of entry: FailedRequest, in slot: Int) {
    if failedRequests[slot].number == entry.number && failedRequests[slot].changes == entry.changes {
      failedRequests[slot].count = 0
    }
  }

  /// Drops an entry, if it is still in its slot.
  fileprivate mutating func drop(_ slot: Int, number: UInt32) {
    if failedRequests[slot].number == number { drop(slot) }
  }

  private mutating func drop(_ slot: Int) {
    failedRequests[slot] = FailedRequest()
    watchers -= 1
  }

  /// Records that frames `first` to `end` of one pageblock have stopped being unmovable, after they were counted.
  mutating func recordEmptiable(_ first: UInt32, _ end: UInt32) {
    let hasObstacles = table.pageblock(first).snapshot.hasObstacles
    for i in failedRequests.indices {
      guard let request = failedRequests[i].request else { continue }
      let from = max(first, request.low)
      let to = min(end, request.high)
      guard from < to, !(request.isOfPageblocks && hasObstacles) else { continue }
      let longest = UInt32(min(UInt64(1) << 31, 4096 + 4 * UInt64(request.count)))
      if failedRequests[i].add(from, to, longest: longest) == .exceeded { drop(i) }
    }
  }
}

extension FrameAllocator {
  /// Enters a request for which no run can be emptied; the last eight are kept. Searches again after it has begun to
  /// watch, so that it misses no run that appeared before, and keeps nothing if that finds one.
  public func cacheFailedRequest(_ count: PageCount, _ constraints: RunConstraints) {
    guard let request = RunRequest(count, constraints) else { return }
    let (slot, number) = domain.withLock { $0.enter(request) }
    var search = ExtentSearch(request, table)
    if search.hasRun(from: UInt64(request.low), to: UInt64(request.high)) {
      domain.withLock { $0.drop(slot, number: number) }
    }
    state.pointee.events.pointee.failedCacheSteps.add(search.steps, ordering: .relaxed)
  }

  /// Whether the cache says that no run for this request can be emptied. False as soon as a run could have appeared, and
  /// for a request that was never entered. Independent of the size of memory: reads the frames around each change, as
  /// far as the run could reach. Holds the lock briefly.
  public func hasFailedRecently(_ count: PageCount, _ constraints: RunConstraints) -> Bool {
    guard let request = RunRequest(count, constraints) else { return false }
    var steps: UInt64 = 0
    defer { state.pointee.events.pointee.failedCacheSteps.add(steps, ordering: .relaxed) }
    var next = 0
    while next < 8 {
      let found = domain.withLock { $0.entry(for: request, from: next) }
      steps += 1
      guard let (slot, entry) = found else { return false }
      if stands(entry, in: slot, &steps) {
        state.pointee.events.pointee.failedCacheHits.add(1, ordering: .relaxed)
        return true
      }
      next = slot + 1
    }
    return false
  }

  /// Whether an entry still holds after a search of the intervals that have changed since the last lookup.
  private func stands(_ entry: FailedRequest, in slot: Int, _ steps: inout UInt64) -> Bool {
    if entry.count == 0 { return true }
    let request = entry.request.unsafelyUnwrapped
    let reach = UInt64(request.count) - 1
    var search = ExtentSearch(request, table)
    defer { steps += search.steps }
    for i in 0..<entry.count {
      let interval = entry.intervals[i]
      let low = max(UInt64(request.low) + reach, UInt64(interval.first)) - reach
      let high = min(UInt64(request.high), UInt64(interval.end) + reach)
      if search.hasRun(from: low, to: high) {
        domain.withLock { $0.drop(slot, number: entry.number) }
        return false
      }
    }
    domain.withLock { $0.discardIntervals(of: entry, in: slot) }
    return true
  }
}
