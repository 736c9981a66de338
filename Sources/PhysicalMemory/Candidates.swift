// Asking without taking: where a run would come from, and, when there is none, the place where the fewest
// frames stand in its way.
//
// The cheapest place is looked for in one pass. A run of 2 MiB or more is tried at each piece of 2 MiB (a
// step a piece, by the counts that are kept for each); a shorter one at each aligned frame, by sums over
// two pieces at a time. Nothing is locked over the pass: the answer is about a moment ago, as any answer is.

import MemoryPrimitives

/// A place where a run could lie, and what lies there now.
public struct RunCandidate: Equatable, Sendable {
  public var run: FrameRun
  public var free: PageCount
  /// Frames whose contents could be moved elsewhere.
  public var movable: PageCount
  public var unmovable: PageCount
  /// Of the unmovable ones, those that are never given back.
  public var permanent: PageCount
  /// Places that were compared.
  public var considered: UInt64
}

extension PhysicalMemory {
  /// Where `allocate(run:where:role:level:)` would take its frames from, with the same errors; nothing
  /// is taken. Cost: as that.
  public func place(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(), level: Level = .normal
  ) throws(PhysicalMemoryError) -> FrameRun {
    guard let request = RunRequest(count, constraints) else { throw .badConstraint }
    var interrupts = lock()
    let first = admits(count.rawValue, level) ? find(request, &interrupts) : nil
    unlock(interrupts)
    guard let first else { throw .noMemory }
    return FrameRun(first: FrameNumber(first), count: count)
  }

  /// The place for a run with the fewest frames in use, which may be none; nil when memory has no such
  /// stretch at all, whoever gives what back. A pass over the pieces of the range.
  public func cheapestCandidate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints()
  ) -> RunCandidate? {
    guard let request = RunRequest(count, constraints) else { return nil }
    var search = CandidateSearch(request: request, end: min(request.high, memoryEnd))
    if request.count >= Piece.frames {
      searchByPieces(&search)
    } else {
      searchByFrames(&search)
    }
    guard let first = search.best else { return nil }
    return describe(FrameRun(first: FrameNumber(first), count: count), considered: search.considered)
  }

  /// What lies in `run`; nil when part of it is no memory.
  private func describe(_ run: FrameRun, considered: UInt64) -> RunCandidate? {
    var answer = RunCandidate(
      run: run, free: .zero, movable: .zero, unmovable: .zero, permanent: .zero, considered: considered)
    var seen = PageCount.zero
    forEachRole(from: run.first, to: run.end) { part, role in
      if role == .absent { return }
      seen = seen + part.count
      if role == .free {
        answer.free = answer.free + part.count
      } else if role.isMovable {
        answer.movable = answer.movable + part.count
      } else {
        answer.unmovable = answer.unmovable + part.count
        if role.isPermanent { answer.permanent = answer.permanent + part.count }
      }
    }
    return seen == run.count ? answer : nil
  }

  struct CandidateSearch {
    let request: RunRequest
    let end: UInt32
    var best: UInt32?
    var bestCost = UInt64.max
    var considered: UInt64 = 0

    init(request: RunRequest, end: UInt32) {
      self.request = request
      self.end = end
    }

    /// The first place at or above `from` that the constraints allow.
    func place(from: UInt64) -> UInt64? {
      let count = UInt64(request.count)
      var start = (from + request.alignment - 1) & ~(request.alignment - 1)
      if request.boundary != 0
        && start & ~(request.boundary - 1) != (start + count - 1) & ~(request.boundary - 1)
      {
        let cut = (start + count - 1) & ~(request.boundary - 1)
        start = (cut + request.alignment - 1) & ~(request.alignment - 1)
      }
      return start + count <= UInt64(end) ? start : nil
    }

    mutating func offer(_ start: UInt64, cost: UInt64) {
      considered += 1
      if cost < bestCost {
        bestCost = cost
        best = UInt32(start)
      }
    }
  }

  private func searchByPieces(_ search: inout CandidateSearch) {
    let count = UInt64(search.request.count)
    let frames = UInt64(Piece.frames)
    // The cost of the window is kept while it moves on by a piece: what comes in, less what goes out.
    var windowFirst: UInt64 = 0
    var windowEnd: UInt64 = 0
    var used: UInt64 = 0
    var absent: UInt64 = 0
    func add(_ piece: UInt64, _ sign: Int64) {
      let counts = pieceCounts(at: FrameNumber(UInt32(piece)))
      let (busy, gone) =
        counts.map {
          ($0.unmovable.rawValue + $0.other.rawValue, $0.absent.rawValue)
        } ?? (0, frames)
      used = sign > 0 ? used + busy : used - busy
      absent = sign > 0 ? absent + gone : absent - gone
    }
    var from = UInt64(search.request.low)
    while let start = search.place(from: from) {
      let (first, end) = (start & ~(frames - 1), (start + count + frames - 1) & ~(frames - 1))
      if first >= windowEnd {
        (windowFirst, windowEnd, used, absent) = (first, first, 0, 0)
      }
      while windowEnd < end {
        add(windowEnd, 1)
        windowEnd += frames
      }
      while windowFirst < first {
        add(windowFirst, -1)
        windowFirst += frames
      }
      // At its two ends the window may hold frames that are not of the run: then they are counted one by one.
      if absent == 0 && start == first && (start + count) == end {
        search.offer(start, cost: used)
      } else if absent < frames * 2, search.best == nil || used < search.bestCost + frames * 2,
        let exact = describe(
          FrameRun(first: FrameNumber(UInt32(start)), count: PageCount(count)), considered: 0)
      {
        search.offer(start, cost: exact.movable.rawValue + exact.unmovable.rawValue)
      }
      from = max(start + 1, first + frames)
    }
  }

  private func searchByFrames(_ search: inout CandidateSearch) {
    let count = Int(search.request.count)
    let frames = Int(Piece.frames)
    var from = UInt64(search.request.low)
    while let start = search.place(from: from) {
      // Frames in use and frames of no memory, summed up over this piece and the next.
      let base = start & ~UInt64(frames - 1)
      from = base + UInt64(frames)
      guard pieceCounts(at: FrameNumber(UInt32(base))) != nil else { continue }
      var used = InlineArray<1025, UInt16>(repeating: 0)
      var absent = InlineArray<1025, UInt16>(repeating: 0)
      var at = 0
      func fill(to end: Int, _ use: UInt16, _ gone: UInt16) {
        while at < end {
          used[at + 1] = used[at] + use
          absent[at + 1] = absent[at] + gone
          at += 1
        }
      }
      let top = FrameNumber(UInt32(min(base + 1024, UInt64(FrameNumber.limit))))
      forEachRole(from: FrameNumber(UInt32(base)), to: top) { part, role in
        let first = Int(UInt64(part.first.rawValue) - base)
        fill(to: first, 0, 1)
        fill(to: first + Int(part.count.rawValue), role == .free ? 0 : 1, role == .absent ? 1 : 0)
      }
      fill(to: 1024, 0, 1)
      var candidate = start
      while candidate < from {
        let first = Int(candidate - base)
        if absent[first + count] == absent[first] {
          search.offer(candidate, cost: UInt64(used[first + count] - used[first]))
        }
        guard let next = search.place(from: candidate + 1) else { return }
        candidate = next
      }
    }
  }
}
