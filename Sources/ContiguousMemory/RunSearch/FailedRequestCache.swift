// The failed-request cache: a request for a run that failed is refused again without a search, until a run for it could
// have appeared.
//
// The entries lie below, because the free path informs them under the domain lock (PhysicalMemory, FailedRequests.swift).
// Each keeps the intervals in which frames have stopped being unmovable since it was made. A lookup here searches the
// extents around them, as far as the run could reach, and discards the intervals that do not help.

import MemoryPrimitives
import PhysicalMemory

extension RunSearch {
  /// Enters a request for which no run can be emptied. Searches again after the entry has begun to record, so that it
  /// misses no run that appeared before, and keeps nothing if that finds one.
  mutating func cacheFailedRequest(_ count: PageCount, _ constraints: RunConstraints) {
    guard let request = RunRequest(count, constraints) else { return }
    let entry = physical.enterFailedRequest(request)
    if hasRun(for: request, from: UInt64(request.low), to: UInt64(request.high)) {
      physical.dropFailedRequest(entry)
    }
  }

  /// Whether the cache says that no run for this request can be emptied. False as soon as a run could have appeared, and
  /// for a request that was never entered. Independent of the size of memory: reads the frames around each change, as
  /// far as the run could reach. Holds the domain lock briefly.
  mutating func hasFailedRecently(_ count: PageCount, _ constraints: RunConstraints) -> Bool {
    guard let request = RunRequest(count, constraints) else { return false }
    var next = 0
    while true {
      steps += 1
      guard let entry = physical.failedRequest(answering: request, from: next) else { return false }
      if stands(entry) { return true }
      next = entry.slot + 1
    }
  }

  /// Whether an entry still holds after a search of the intervals that have changed since the last lookup.
  private mutating func stands(_ entry: FailedRequest) -> Bool {
    if entry.count == 0 { return true }
    let request = entry.request
    let reach = UInt64(request.count) - 1
    for i in 0..<entry.count {
      let interval = entry.intervals[i]
      let low = max(UInt64(request.low) + reach, UInt64(interval.first)) - reach
      let high = min(UInt64(request.high), UInt64(interval.end) + reach)
      if hasRun(for: request, from: low, to: high) {
        physical.dropFailedRequest(entry)
        return false
      }
    }
    physical.discardIntervals(of: entry)
    return true
  }

  private mutating func hasRun(for request: RunRequest, from low: UInt64, to high: UInt64) -> Bool {
    var extents = ExtentSearch(request, table)
    defer { steps += extents.steps }
    return extents.hasRun(from: low, to: high)
  }
}
