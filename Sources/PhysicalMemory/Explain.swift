// Why a run would be granted or refused, without doing anything.
//
// Never: no stretch of memory that isn't kept for good since boot has a place for it. Not now: then the
// place with the least in the way is looked for, by the counts of pieces first (a window that slides over
// them, whose cost is 1024 for a frame that can't move and 1 for one that can), then frame by frame
// around the best of those. So the candidate is the best but for what pieces at the window's two ends
// hide: good enough to be told to a person, and to be tried first.

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
    /// Not now: `run` is the candidate with the least in the way, `blockers` what is.
    case blocked
    /// No matter what is freed.
    case never
  }
  public var verdict: Verdict
  public var run: FrameRun?
  /// Of the frames of `run`.
  public var free: PageCount = .zero
  public var unmovable: PageCount = .zero
  public var other: PageCount = .zero
  public var missing: PageCount = .zero
  /// The first of what is in the way, lowest frame first.
  public var blockers: InlineArray<8, RunBlocker?> = .init(repeating: nil)
  public var blockerCount = 0
  /// The longest free run between `low` and `high`.
  public var longest: FrameRun?
}

extension PhysicalMemory {
  /// Whether a run would be granted, from where, or what stands in the way. A walk over the pieces of the
  /// range at worst; the lock is let go all the time.
  public func explain(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(), level: Level = .normal
  ) -> RunExplanation {
    var answer = RunExplanation(verdict: .never, run: nil)
    answer.longest = longestFreeRun(low: constraints.low, high: constraints.high)
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
    guard let best = bestCandidate(request) else { return answer }
    answer.verdict = .blocked
    answer.run = FrameRun(first: FrameNumber(best), count: count)
    describe(best, best + request.count, &answer)
    return answer
  }

  /// What one frame costs to empty. Lock held.
  private func cost(of frame: UInt32) -> UInt64 {
    guard let piece = piece(frame) else { return 1 << 40 }
    if piece.free == 512 { return 0 }
    guard piece.state == .valid else { return piece.role == .absent ? 1 << 40 : 1024 }
    let role = recordUnchecked(frame).role
    return role == .free ? 0 : role == .absent ? 1 << 40 : role.isMovable ? 1 : 1024
  }

  private func cost(ofPiece number: UInt64) -> UInt64 {
    let interrupts = lock()
    defer { unlock(interrupts) }
    guard let piece = piece(UInt32(number << UInt64(Piece.shift))) else { return 1 << 40 }
    return UInt64(piece.unmovable) * 1024 + UInt64(piece.movable)
  }

  private func bestCandidate(_ request: RunRequest) -> UInt32? {
    var best: (start: UInt32, cost: UInt64, span: Span)?
    for i in stride(from: state.pointee.spanCount - 1, through: 0, by: -1) {
      let span = Span(
        first: max(state.pointee.spans[i].first, request.low),
        end: min(state.pointee.spans[i].end, request.high))
      guard span.first < span.end, var start = request.place(UInt64(span.first), UInt64(span.end)) else {
        continue
      }
      // Pieces from..<to are summed; both only fall.
      var to = UInt64(start + request.count - 1) >> 9 + 1
      var from = to
      var sum: UInt64 = 0
      while true {
        let last = UInt64(start + request.count - 1) >> 9
        while to > last + 1 {
          to -= 1
          if to >= from { sum -= min(sum, cost(ofPiece: to)) } else { from = to }
        }
        while from > UInt64(start) >> 9 {
          from -= 1
          sum += cost(ofPiece: from)
        }
        if best == nil || sum < best.unsafelyUnwrapped.cost { best = (start, sum, span) }
        let end = UInt64(start) + UInt64(request.count)
        guard end > 512, let next = request.place(UInt64(span.first), end - 512) else { break }
        start = next
      }
    }
    guard let best else { return nil }
    return refine(request, best.start, best.span)
  }

  /// The cheapest start within a piece's length of `start`, frame by frame.
  private func refine(_ request: RunRequest, _ start: UInt32, _ span: Span) -> UInt32 {
    let count = UInt64(request.count)
    let top = min(UInt64(start) + 511, UInt64(span.end) - count)
    let bottom = max(UInt64(span.first), UInt64(start) > 511 ? UInt64(start) - 511 : 0)
    // The window at `top`: whole pieces by their counts.
    var sum: UInt64 = 0
    var at = UInt32(top)
    let end = UInt32(top + count)
    while at < end {
      let pieceEnd = Piece.end(at, end)
      if pieceEnd - at == 512 {
        sum += cost(ofPiece: UInt64(at >> 9))
      } else {
        let interrupts = lock()
        for frame in at..<pieceEnd { sum += cost(of: frame) }
        unlock(interrupts)
      }
      at = pieceEnd
    }
    var best = (start: start, cost: UInt64.max)
    var position = top
    while true {
      if sum < best.cost && request.place(position, position + count) == UInt32(position) {
        best = (UInt32(position), sum)
      }
      if position == bottom { break }
      position -= 1
      let interrupts = lock()
      sum += cost(of: UInt32(position))
      sum -= min(sum, cost(of: UInt32(position + count)))
      unlock(interrupts)
    }
    return best.start
  }

  /// Counts what is in frames `first` to `end` and names the first blockers.
  private func describe(_ first: UInt32, _ end: UInt32, _ answer: inout RunExplanation) {
    var at = first
    while at < end {
      let pieceEnd = Piece.end(at, end)
      if answer.blockerCount == 8, pieceEnd - at == 512, let counts = pieceCounts(at: FrameNumber(at)) {
        answer.free = answer.free + counts.free
        answer.unmovable = answer.unmovable + counts.unmovable
        answer.other = answer.other + counts.other
        at = pieceEnd
        continue
      }
      let (partEnd, role) = roleRun(at, pieceEnd)
      let count = PageCount(UInt64(partEnd - at))
      if role == .free {
        answer.free = answer.free + count
      } else if let role {
        if role.isMovable {
          answer.other = answer.other + count
        } else {
          answer.unmovable = answer.unmovable + count
        }
        note(FrameRun(first: FrameNumber(at), count: count), role, &answer)
      }
      at = partEnd
    }
  }

  private func note(_ run: FrameRun, _ role: FrameRole, _ answer: inout RunExplanation) {
    let known = answer.blockerCount
    if known > 0, var last = answer.blockers[known - 1], last.role == role, last.run.end == run.first {
      last.run.count = last.run.count + run.count
      answer.blockers[known - 1] = last
      return
    }
    guard known < 8 else { return }
    let description = whatIs(run.first)
    answer.blockers[known] = RunBlocker(
      run: run, role: role, owner: description.owner, claims: description.claims)
    answer.blockerCount = known + 1
  }
}
