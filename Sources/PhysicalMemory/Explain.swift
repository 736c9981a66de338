// Why a run would be granted or refused, without doing anything.
//
// Granted: a free run is there, as `allocate` would find it. Emptiable: `candidate` finds one. Blocked: it
// does not; then the place with the fewest frames that can't be emptied is named, and these frames are. Never:
// no stretch of memory that isn't kept for good since boot has a place for it.

import MemoryPrimitives

/// Something in the way of a run: frames in a row with one role.
public struct RunBlocker: Sendable {
  public var run: FrameRun
  public var role: FrameRole
  /// Of the first frame.
  public var owner: UInt32
  public var claims: Claims
}

/// The answer to a request for a run that was not made.
public struct RunExplanation: Sendable {
  public enum Verdict: UInt8, Sendable {
    /// It would be granted, from `run`.
    case granted
    /// `run` is free, but the level may not take so many frames: `missing` are.
    case short
    /// `run` could be emptied by moving or writing `other` pages.
    case emptiable
    /// Not now: `run` is the candidate with the least in the way, `blockers` what can't be emptied in it.
    case blocked
    /// No matter what is freed.
    case never
  }
  public var verdict: Verdict
  public var run: FrameRun?
  /// Of the frames of `run`.
  public var free: PageCount = .zero
  public var unmovable: PageCount = .zero
  /// Pages that could be moved or written.
  public var other: PageCount = .zero
  /// Those of them that are dirty.
  public var dirty: PageCount = .zero
  public var missing: PageCount = .zero
  /// The first of what can't be emptied, lowest frame first.
  public var blockers: InlineArray<8, RunBlocker?> = .init(repeating: nil)
  public var blockerCount = 0
  /// The longest run between `low` and `high` that could be emptied, free frames included.
  public var longest: FrameRun?
}

extension PhysicalMemory {
  /// Whether any memory that is not kept for good since boot has a place for such a run, whatever is freed. A step for
  /// each stretch of it; takes no lock.
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

  /// The run that `allocate` would give at `level`, or nil. Takes nothing; as `allocate` but for the taking.
  public func freeRun(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(), level: Level = .normal
  ) -> FrameRun? {
    guard let request = RunRequest(count, constraints) else { return nil }
    var interrupts = lock()
    defer { unlock(interrupts) }
    guard admits(count.rawValue, level), let found = find(request, &interrupts), admits(count.rawValue, level)
    else { return nil }
    return FrameRun(first: FrameNumber(found), count: count)
  }

  /// Whether a run would be granted, from where, or what stands in the way. A search for a free run, one for a
  /// run to be emptied and a walk over the pieces of the range at worst; the lock is let go all the time.
  public func explain(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(), level: Level = .normal
  ) -> RunExplanation {
    var answer = RunExplanation(verdict: .never, run: nil)
    answer.longest = longestEmptiableRun(low: constraints.low, high: constraints.high)
    guard let request = RunRequest(count, constraints) else { return answer }
    var interrupts = lock()
    let found = find(request, &interrupts)
    let floor = core.pointee.floors[Int(level.rawValue)]
    unlock(interrupts)
    if let found {
      answer.run = FrameRun(first: FrameNumber(found), count: count)
      answer.free = count
      let needed = count.rawValue + floor
      let free = freeCount.rawValue
      answer.verdict = free >= needed ? .granted : .short
      if free < needed { answer.missing = PageCount(needed - free) }
      return answer
    }
    let best: RunCandidate
    switch candidate(run: count, where: constraints) {
    case .never: return answer
    case .found(let candidate): (answer.verdict, best) = (.emptiable, candidate)
    case .blocked(let candidate, let blockers):
      (answer.verdict, best) = (.blocked, candidate)
      (answer.blockers, answer.blockerCount) = (blockers.list, blockers.count)
    }
    answer.run = best.run
    answer.free = best.free
    answer.unmovable = best.unmovable
    answer.other = best.movable
    answer.dirty = best.dirty
    return answer
  }
}
