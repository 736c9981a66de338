// The data of the failed-request cache: requests for which no run could be emptied, and where that may have changed.
//
// The layer that searches for such runs enters a request and looks it up (ContiguousMemory/RunSearch). The entries lie
// here, because frames stop being unmovable under the domain lock, and no upcall is made with a spin lock held.
//
// A run for an entry has a frame that was unmovable when the entry was made and is not any more. So each entry keeps
// where frames in its range have stopped being unmovable since: up to four intervals, joined where they are close. When
// an interval can't be kept (a fifth one, or a very long one), the entry is dropped: the request is searched for again,
// and entered again if that fails.
//
// A free of unmovable frames, and the last unwire of a page, look at the eight entries if there are any: one load, shared
// with the isolations. An entry for whole pageblocks records only a pageblock that has lost its last unmovable frame.

import MemoryPrimitives

/// A request that failed, and where that may have changed.
package struct FailedRequest {
  /// The request.
  package let request: RunRequest
  /// Distinguishes this entry from an earlier one in its slot.
  let number: UInt32
  /// The entry's position in the table.
  package let slot: Int
  /// Rises with each change of the intervals.
  private(set) var changes: UInt32 = 0
  /// Where frames have stopped being unmovable since: the first `count` of them.
  package private(set) var intervals: InlineArray<4, FrameSpan> = .init(
    repeating: FrameSpan(first: 0, end: 0))
  /// Intervals that are kept.
  package private(set) var count = 0

  fileprivate init(_ request: RunRequest, number: UInt32, slot: Int) {
    (self.request, self.number, self.slot) = (request, number, slot)
  }

  fileprivate enum Capacity { case sufficient, exceeded }

  /// Adds frames `first` to `end`, of one pageblock. When the capacity is exceeded the entry must be dropped.
  fileprivate mutating func add(_ first: UInt32, _ end: UInt32) -> Capacity {
    changes &+= 1
    // Near intervals are joined, unless one lookup would have to read very many frames.
    let (near, longest) = (UInt64(64), UInt32(min(UInt64(1) << 31, 4096 + 4 * UInt64(request.count))))
    for i in 0..<count {
      let known = intervals[i]
      guard UInt64(first) <= UInt64(known.end) + near, UInt64(known.first) <= UInt64(end) + near else {
        continue
      }
      intervals[i] = FrameSpan(first: min(first, known.first), end: max(end, known.end))
      return intervals[i].end - intervals[i].first <= longest ? .sufficient : .exceeded
    }
    guard count < intervals.count else { return .exceeded }
    intervals[count] = FrameSpan(first: first, end: end)
    count += 1
    return .sufficient
  }

  fileprivate mutating func discardIntervals() { count = 0 }
}

/// The last eight requests that failed. Guarded by the domain lock.
struct FailedRequests {
  private var entries: InlineArray<8, FailedRequest?> = .init(repeating: nil)
  /// Entries in use.
  private(set) var count: UInt32 = 0

  /// Slots of the table.
  static var capacity: Int { 8 }

  /// Enters a request into the slot of the same request, else into a free slot, else in place of the oldest. `number` is
  /// the latest of all; ages are differences of numbers, which may wrap.
  mutating func enter(_ request: RunRequest, number: UInt32) -> FailedRequest {
    var slot = 0
    var oldest: UInt32 = 0
    for i in entries.indices {
      if let known = entries[i]?.request, known.isSame(as: request) {
        slot = i
        break
      }
      let age = entries[i].map { number &- $0.number } ?? .max
      if age > oldest { (slot, oldest) = (i, age) }
    }
    if entries[slot] == nil { count += 1 }
    let entry = FailedRequest(request, number: number, slot: slot)
    entries[slot] = entry
    return entry
  }

  /// The first entry from `slot` on that answers `request`.
  func entry(answering request: RunRequest, from slot: Int) -> FailedRequest? {
    for i in slot..<entries.count {
      if let entry = entries[i], entry.request.isImplied(by: request) { return entry }
    }
    return nil
  }

  /// Drops the intervals of an entry that were searched; later ones stay.
  mutating func discardIntervals(of entry: FailedRequest) {
    guard let known = entries[entry.slot], known.number == entry.number, known.changes == entry.changes else {
      return
    }
    entries[entry.slot]?.discardIntervals()
  }

  /// Drops an entry, if it is still in its slot.
  mutating func drop(_ entry: FailedRequest) {
    if entries[entry.slot]?.number == entry.number { drop(slot: entry.slot) }
  }

  private mutating func drop(slot: Int) {
    entries[slot] = nil
    count -= 1
  }

  /// Records that frames `first` to `end` of one pageblock have stopped being unmovable. `hasObstacles` says whether the
  /// pageblock has other frames that can't be emptied.
  mutating func recordEmptiable(_ first: UInt32, _ end: UInt32, hasObstacles: Bool) {
    for i in entries.indices {
      guard let request = entries[i]?.request else { continue }
      let (from, to) = (max(first, request.low), min(end, request.high))
      guard from < to, !(request.isOfPageblocks && hasObstacles) else { continue }
      if entries[i]?.add(from, to) == .exceeded { drop(slot: i) }
    }
  }
}

extension RunRequest {
  /// Whether any run for `other` would contain one for this.
  fileprivate func isImplied(by other: RunRequest) -> Bool {
    count <= other.count && low <= other.low && high >= other.high && alignment <= other.alignment
      && (boundary == 0 || (other.boundary != 0 && other.boundary <= boundary))
  }

  fileprivate func isSame(as other: RunRequest) -> Bool { isImplied(by: other) && other.isImplied(by: self) }
}

extension FrameDomain {
  /// Changes the table, and keeps the count of what a free must look at.
  private mutating func changeFailedRequests<R>(_ body: (inout FailedRequests) -> R) -> R {
    let before = failedRequests.count
    let result = body(&failedRequests)
    watchers = watchers &+ failedRequests.count &- before
    return result
  }

  fileprivate mutating func enter(_ request: RunRequest) -> FailedRequest {
    let number = nextNumber()
    return changeFailedRequests { $0.enter(request, number: number) }
  }

  fileprivate mutating func drop(_ entry: FailedRequest) { changeFailedRequests { $0.drop(entry) } }

  /// Records that frames `first` to `end` of one pageblock have stopped being unmovable, after they were counted.
  mutating func recordEmptiable(_ first: UInt32, _ end: UInt32) {
    let hasObstacles = table.pageblock(first).snapshot.hasObstacles
    changeFailedRequests { $0.recordEmptiable(first, end, hasObstacles: hasObstacles) }
  }
}

extension FrameAllocator {
  /// Enters a request for which no run can be emptied; the last eight are kept. From now on the entry records each frame
  /// in its range that stops being unmovable. Constant.
  package func enterFailedRequest(_ request: RunRequest) -> FailedRequest {
    domain.withLock { $0.enter(request) }
  }

  /// Returns the first entry, from slot `slot` on, that answers `request`: one for it, or for an easier one. An entry also
  /// answers requests for more frames, in a smaller range, with a larger alignment, with a smaller boundary. Constant.
  package func failedRequest(answering request: RunRequest, from slot: Int) -> FailedRequest? {
    domain.withLock { $0.failedRequests.entry(answering: request, from: slot) }
  }

  /// Drops an entry, unless another one has its slot. Constant.
  package func dropFailedRequest(_ entry: FailedRequest) { domain.withLock { $0.drop(entry) } }

  /// Drops the intervals of an entry, which the caller has searched, unless the entry has recorded more. Constant.
  package func discardIntervals(of entry: FailedRequest) {
    domain.withLock { $0.failedRequests.discardIntervals(of: entry) }
  }
}
