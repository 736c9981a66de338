// Questions about runs that take nothing: whether memory has a place for one, and which one `allocate` would give.

import MemoryPrimitives

extension FrameAllocator {
  /// Whether any memory that is not kept for good since boot has a place for such a run, whatever is freed. A step for
  /// each extent of it; takes no lock.
  public func hasPlace(
    forRun count: PageCount, where constraints: RunConstraints = RunConstraints()
  ) -> Bool {
    guard let request = RunRequest(count, constraints) else { return false }
    for i in 0..<state.pointee.spanCount {
      let span = state.pointee.spans[i]
      let (first, end) = (max(span.first, request.low), min(span.end, request.high))
      if first < end && request.place(UInt64(first), UInt64(end)) != nil { return true }
    }
    return false
  }

  /// The run that `allocate` would give at `priority`, or nil. Takes nothing; as `allocate` but for the taking.
  public func freeRun(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(),
    priority: AllocationPriority = .normal
  ) -> FrameRun? {
    guard let request = RunRequest(count, constraints) else { return nil }
    var interrupts = lock()
    defer { unlock(interrupts) }
    guard admits(count.rawValue, priority), let found = find(request, &interrupts),
      admits(count.rawValue, priority)
    else { return nil }
    return FrameRun(first: FrameNumber(found), count: count)
  }
}
