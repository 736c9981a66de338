// Candidates: runs that are not free, but could be emptied, and what that would cost.
//
// A frame can be emptied when it is free, or a page that nobody has wired; a page that is busy or held at
// this moment counts as such a page, but an expensive one. All other frames are *fixed*.
//
// Nothing here takes the lock: the counts of pieces and the last eight bytes of valid records are read as they
// are at that moment. A candidate is a hint, which isolation puts to the test; when nothing else runs, it is
// exact: there is one whenever any run that is allowed has no fixed frame.
//
// Two walks, from the top down, so that low memory is spared
//   whole pieces   a run of whole pieces at the start of a piece is judged by the counts of its pieces alone,
//                  a window that slides over them: a step a piece, and no record is looked at
//   stretches      any other run lies in a *stretch*, a maximal row of frames that are not fixed. A piece without
//                  fixed frames is a step. Of a piece with some, the end that touches the stretch in hand is
//                  looked at only if the two together could hold the run, and its inside only if it has as many
//                  frames that are not fixed as the run needs
// What is found is weighed by the counts of pieces, four of the cheapest places are kept, and these are
// looked at frame by frame, a piece's length to either side. So the cost is exact but for
// places that their pieces' counts make look dearer than these four.

import MemoryPrimitives
import Synchronization

/// A run that could be emptied, and what is in it.
public struct RunCandidate: Equatable, Sendable {
  public var run: FrameRun
  /// Nothing to do for these.
  public var free = PageCount.zero
  /// Pages to be moved or written.
  public var movable = PageCount.zero
  /// Those of them that are dirty.
  public var dirty = PageCount.zero
  /// Frames that can't be emptied: none in a candidate that was found.
  public var unmovable = PageCount.zero
}

/// Runs that a search leaves alone, because they were tried: the last four.
public struct ExcludedRuns: Sendable {
  var runs: InlineArray<4, FrameRun> = .init(
    repeating: FrameRun(first: FrameNumber(0), count: .zero))
  var next = 0

  public init() {}

  /// No frame of `run` will be in a candidate. A fifth run takes the place of the first.
  public mutating func add(_ run: FrameRun) {
    runs[next & 3] = run
    next += 1
  }
}

/// The answer of a search for a run to be emptied.
public enum RunSearch: Sendable {
  /// The cheapest run to empty.
  case found(RunCandidate)
  /// Every run has frames that can't be emptied, or was tried: the run with the fewest of them, and which
  /// they are.
  case blocked(RunCandidate, RunBlockers)
  /// No matter what is freed.
  case never
}

/// Frames in the way of a run: the first eight rows of them, lowest frame first.
public struct RunBlockers: Sendable {
  public internal(set) var list: InlineArray<8, RunBlocker?> = .init(repeating: nil)
  public internal(set) var count = 0
}

/// What it takes to empty frames: work first, dirty pages where that is the same.
struct EmptyingCost {
  var work: UInt64 = 0
  var dirty: UInt64 = 0

  /// Of a fixed frame: more than all else.
  static var fixed: UInt64 { 1 << 28 }
  /// Of a page that is busy or held.
  static var busy: UInt64 { 8 }

  @inline(always) static func < (a: Self, b: Self) -> Bool {
    a.work < b.work || (a.work == b.work && a.dirty < b.dirty)
  }
  @inline(always) static func += (a: inout Self, b: Self) {
    a.work &+= b.work
    a.dirty &+= b.dirty
  }
  /// The counts may have changed since they were added.
  @inline(always) static func -= (a: inout Self, b: Self) {
    a.work = a.work > b.work ? a.work &- b.work : 0
    a.dirty = a.dirty > b.dirty ? a.dirty &- b.dirty : 0
  }
}

/// A place for a run, weighed by counts, and the frames that it may be shifted in.
struct Spot {
  var start: UInt64 = 0
  var low: UInt64 = 0
  var high: UInt64 = 0
  var cost = EmptyingCost(work: .max, dirty: .max)
}

/// The four cheapest places, cheapest first.
struct Spots {
  var list: InlineArray<4, Spot> = .init(repeating: Spot())
  var count = 0

  @inline(always) mutating func offer(_ spot: Spot) {
    if spot.cost < list[3].cost { insert(spot) }
  }
  private mutating func insert(_ spot: Spot) {
    var i = 3
    while i > 0 && spot.cost < list[i - 1].cost {
      list[i] = list[i - 1]
      i -= 1
    }
    list[i] = spot
    count = min(4, count + 1)
  }
}

extension PieceGlance {
  /// What the piece costs to empty.
  @inline(always) var work: UInt64 { movable &+ fixed &* EmptyingCost.fixed }
}

extension RunRequest {
  /// Whether every run for this covers whole pieces.
  var isOfPieces: Bool { count & (Piece.frames - 1) == 0 && alignment >= UInt64(Piece.frames) }
  /// Whether a run may begin inside a piece.
  var mayBeginInside: Bool { alignment < UInt64(Piece.frames) }
}

extension PhysicalMemory {
  /// The cheapest run to empty that satisfies `where` and has no frame of the runs in `excluding`: each page to
  /// be moved or written costs 1, a busy or held one 8; a clean one is preferred to a dirty one where that is
  /// the same. Takes no lock. Cost: see the head of Candidates.swift; for a run of whole pieces a step for each
  /// piece of 2 MiB in the range.
  public func candidate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(),
    excluding: ExcludedRuns = ExcludedRuns()
  ) -> RunSearch {
    guard let request = RunRequest(count, constraints) else { return .never }
    var steps: UInt64 = 0
    defer {
      state.pointee.events.pointee.searches.add(1, ordering: .relaxed)
      state.pointee.events.pointee.searchSteps.add(steps, ordering: .relaxed)
    }
    var spots = Spots()
    for i in 0...4 {
      guard let part = part(i, of: request, excluding) else { continue }
      if request.isOfPieces {
        searchPieces(request, part, .none, &spots, &steps)
      } else {
        searchStretches(request, part, &spots, &steps, limit: 16)
      }
    }
    if spots.count == 0 && !request.isOfPieces {
      for i in 0...4 {
        if let part = part(i, of: request, excluding) {
          searchStretches(request, part, &spots, &steps, limit: .max)
        }
      }
    }
    if spots.count > 0 {
      let start = settle(request, spots, &steps)
      var blockers = RunBlockers()
      let found = describe(start, start + UInt64(request.count), &blockers)
      // What was taken meanwhile is in the way now.
      return found.unmovable == .zero ? .found(found) : .blocked(found, blockers)
    }
    offerSpans(request, excluding, &spots, &steps)
    if spots.count == 0 && excluding.next > 0 { offerSpans(request, ExcludedRuns(), &spots, &steps) }
    guard spots.count > 0 else { return .never }
    let start = settle(request, spots, &steps)
    var blockers = RunBlockers()
    let best = describe(start, start + UInt64(request.count), &blockers)
    return .blocked(best, blockers)
  }

  /// The longest run that could be emptied, free frames included, or nil when every frame is fixed. A step a
  /// piece, and a look at the frames of a piece that could have a longer one. Takes no lock.
  public func longestEmptiableRun(
    low: PhysicalAddress = PhysicalAddress(0), high: PhysicalAddress = PhysicalAddress(UInt64.max)
  ) -> FrameRun? {
    guard let request = RunRequest(.one, RunConstraints(low: low, high: high)) else { return nil }
    var best: FrameRun?
    var steps: UInt64 = 0
    var looks = Int.max
    forEachStretch(request, UInt64(request.low), UInt64(request.high), &steps, &looks) { first, end in
      best = FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first))
      return end - first + 1
    }
    return best
  }

  /// Whether any run for `request` in frames `low` to `high` could be emptied.
  func canEmpty(_ request: RunRequest, _ low: UInt64, _ high: UInt64, _ steps: inout UInt64) -> Bool {
    var found = false
    var looks = Int.max
    forEachStretch(request, low, high, &steps, &looks) { first, end in
      found = request.place(first, end) != nil
      return found ? .max : UInt64(request.count)
    }
    return found
  }

  // MARK: The range less what is excluded

  /// Part `i` of the request's range when the excluded runs are taken out of it, from the top down: parts 0 to 4.
  private func part(_ i: Int, of request: RunRequest, _ excluding: ExcludedRuns) -> Span? {
    part(i, Span(first: request.low, end: min(request.high, memoryEnd)), excluding)
  }

  private func part(_ i: Int, _ range: Span, _ excluding: ExcludedRuns) -> Span? {
    var end = range.end
    if i > 0 && excluding.next == 0 { return nil }
    var rest = i
    while true {
      // The highest excluded run that begins below `end`.
      var cut: Span?
      for k in 0..<4 where excluding.runs[k].count > .zero {
        let run = excluding.runs[k]
        let runEnd = UInt32(min(UInt64(UInt32.max), UInt64(run.first.rawValue) + run.count.rawValue))
        let first = run.first.rawValue
        guard first < end, runEnd > range.first else { continue }
        if cut == nil || min(end, runEnd) > cut.unsafelyUnwrapped.end {
          cut = Span(first: first, end: min(end, runEnd))
        }
      }
      let first = max(range.first, cut?.end ?? range.first)
      if rest == 0 { return first < end ? Span(first: first, end: end) : nil }
      guard let cut, cut.first > range.first else { return nil }
      end = cut.first
      rest -= 1
    }
  }

  // MARK: Whole pieces

  private func searchPieces(
    _ request: RunRequest, _ range: Span, _ fixed: FixedFrames, _ spots: inout Spots, _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    let pieces = count >> 9
    let mask = request.alignment >> 9 - 1
    let first = (UInt64(range.first) + 511) >> 9
    var at = UInt64(range.end) >> 9
    // The pieces in hand, from `at` up, may all be in a run; the cost is that of the lowest `pieces`.
    var inHand: UInt64 = 0
    var cost = EmptyingCost()
    let unwanted = fixed == .none ? PieceGlance.fixedBits : 0
    while at > first {
      let frame = UInt32(at << 9 - 1)
      guard let section = section(frame) else {
        at = max(first, (holeStart(frame) + 511) >> 9)
        inHand = 0
        cost = EmptyingCost()
        steps += 1
        continue
      }
      let bottom = max(first, UInt64(section.first) >> 9)
      var piece = pieceUnchecked(frame)
      steps += at - bottom
      if pieces == 1 {
        searchSinglePieces(request, piece, at, bottom, unwanted, &spots)
        at = bottom
        continue
      }
      while at > bottom {
        at -= 1
        defer { piece = piece.below }
        let glance = piece.glance
        if glance.rawValue & unwanted != 0 {
          inHand = 0
          cost = EmptyingCost()
          continue
        }
        inHand += 1
        cost += EmptyingCost(
          work: glance.work, dirty: UInt64(piece.dirty.pointee.load(ordering: .relaxed)))
        if inHand > pieces { cost -= self.cost(ofPiece: at + pieces) }
        if inHand >= pieces && at & mask == 0 && request.keepsBoundary(at << 9) {
          spots.offer(Spot(start: at << 9, low: at << 9, high: at << 9 + count, cost: cost))
        }
      }
      if spots.list[0].cost.work == 0 { return }
    }
  }

  /// The same for runs of one piece: `piece` is the one below `top`. Most are not worth a second look.
  private func searchSinglePieces(
    _ request: RunRequest, _ piece: PiecePointer, _ top: UInt64, _ bottom: UInt64, _ unwanted: UInt64,
    _ spots: inout Spots
  ) {
    let mask = request.alignment >> 9 - 1
    var worst = spots.list[3].cost
    var piece = piece
    var at = top
    while at > bottom {
      at &-= 1
      let glance = piece.glance
      let dirty = piece.dirty
      piece = piece.below
      if glance.rawValue & unwanted != 0 { continue }
      let work = unwanted == 0 ? glance.work : glance.movable
      if work > worst.work { continue }
      let cost = EmptyingCost(work: work, dirty: UInt64(dirty.pointee.load(ordering: .relaxed)))
      if cost < worst && at & mask == 0 {
        spots.offer(Spot(start: at << 9, low: at << 9, high: at << 9 + 512, cost: cost))
        worst = spots.list[3].cost
        if cost.work == 0 { return }
      }
    }
  }

  /// What one piece costs to empty, by its counts. It has records.
  @inline(always) private func cost(ofPiece number: UInt64) -> EmptyingCost {
    let piece = pieceUnchecked(UInt32(number << 9))
    return EmptyingCost(
      work: piece.glance.work, dirty: UInt64(piece.dirty.pointee.load(ordering: .relaxed)))
  }

  /// The first frame of the hole that `frame` lies in, up to the section that holds it.
  private func holeStart(_ frame: UInt32) -> UInt64 {
    let number = Int(frame >> Section.frameShift)
    guard number < state.pointee.sectionCount else { return UInt64(memoryEnd) }
    let entry = sectionEntry(number)
    return entry.frames != 0 && frame >= entry.first
      ? UInt64(entry.first) + UInt64(entry.frames) : UInt64(number) << UInt64(Section.frameShift)
  }

  // MARK: Stretches

  /// Calls `body` with each maximal stretch of frames in `low` to `high` that are not fixed, from the top down,
  /// if it may hold a run as long as is wanted: at first the request's, then what `body` answered
  /// last, `.max` to end. Stretches in which no run for the request can begin or end are left out or cut.
  /// `looks` counts down pieces that have fixed frames; at zero such pieces are taken for all fixed.
  private func forEachStretch(
    _ request: RunRequest, _ low: UInt64, _ high: UInt64, _ steps: inout UInt64, _ looks: inout Int,
    _ body: (UInt64, UInt64) -> UInt64
  ) {
    var wanted = UInt64(request.count)
    let (isOfPieces, mayBeginInside) = (request.isOfPieces, request.mayBeginInside)
    var at = min(high, UInt64(memoryEnd))
    // The stretch in hand is `at` to `top`. If it ends in a piece with fixed frames, `top` is only the most
    // that it can be until the frames in `unknown` were looked at.
    var top = at
    var unknown: (first: UInt64, end: UInt64)?

    func close(_ first: UInt64) {
      guard top - first >= wanted else { return }
      if let prefix = unknown {
        unknown = nil
        looks -= 1
        top = prefix.first + prefixLength(prefix.first, prefix.end, &steps)
        guard top - first >= wanted else { return }
      }
      wanted = body(first, top)
    }

    while at > low && wanted != .max {
      let frame = UInt32(at - 1)
      guard let section = section(frame) else {
        steps += 1
        close(at)
        at = max(low, holeStart(frame))
        top = at
        unknown = nil
        continue
      }
      let floor = max(low, UInt64(section.first))
      var piece = pieceUnchecked(frame)
      while at > floor && wanted != .max {
        steps += 1
        let bottom = max(low, (at - 1) & ~511)
        let glance = piece.glance
        piece = piece.below
        if !glance.hasFixed {
          at = bottom
          continue
        }
        let most = looks > 0 && !isOfPieces ? min(512 - min(glance.fixed, 512), at - bottom) : 0
        if most == 0 {
          close(at)
          at = bottom
          top = at
          unknown = nil
          continue
        }
        // The frames right below the stretch in hand belong to it.
        var end = at
        var looked = false
        if mayBeginInside && top - at + most >= wanted {
          end = at - suffixLength(bottom, at, &steps)
          looked = true
          if end == bottom {
            // Those of the piece that are fixed lie outside of the range.
            at = bottom
            continue
          }
        }
        close(end)
        if mayBeginInside && most >= wanted && wanted != .max {
          looked = true
          forEachStretchInside(bottom, end, &steps) { first, end in
            if end - first >= wanted { wanted = body(first, end) }
            return wanted == .max ? .enough : .more
          }
        }
        if looked { looks -= 1 }
        at = bottom
        top = bottom + most
        unknown = (bottom, top)
      }
    }
    if wanted != .max { close(at) }
  }

  private enum Progress { case more, enough }

  /// Calls `body` with each stretch in frames `first` to `end` of one piece that ends at a fixed frame on either
  /// side.
  private func forEachStretchInside(
    _ first: UInt64, _ end: UInt64, _ steps: inout UInt64, _ body: (UInt64, UInt64) -> Progress
  ) {
    let records = records(first)
    var at = end
    steps += (end - first) / 8
    while true {
      while at > first && isFixed(records, at - first - 1) { at -= 1 }
      let top = at
      while at > first && !isFixed(records, at - first - 1) { at -= 1 }
      if at == first { return }
      if body(at, top) == .enough { return }
    }
  }

  /// Records from that of `frame` on, in its piece; nil when they hold rubbish.
  @inline(always) private func records(_ frame: UInt64) -> UnsafeMutableRawPointer? {
    let frame = UInt32(frame)
    return pieceUnchecked(frame).state == .valid ? recordUnchecked(frame).raw : nil
  }

  @inline(always) private func isFixed(_ records: UnsafeMutableRawPointer?, _ i: UInt64) -> Bool {
    guard let records else { return true }
    let glance = FrameRecordPointer(records + Int(i) &* 32).glance
    return !glance.isFree && !glance.isMovable
  }

  /// How many frames from `first` on, of one piece, are not fixed.
  private func prefixLength(_ first: UInt64, _ end: UInt64, _ steps: inout UInt64) -> UInt64 {
    let records = records(first)
    var length: UInt64 = 0
    while first + length < end && !isFixed(records, length) { length += 1 }
    steps += 1 + length / 8
    return length
  }

  /// How many frames below `end`, of one piece and not below `first`, are not fixed.
  private func suffixLength(_ first: UInt64, _ end: UInt64, _ steps: inout UInt64) -> UInt64 {
    let records = records(first)
    var length: UInt64 = 0
    while end - length > first && !isFixed(records, end - length - first - 1) { length += 1 }
    steps += 1 + length / 8
    return length
  }

  private func searchStretches(
    _ request: RunRequest, _ range: Span, _ spots: inout Spots, _ steps: inout UInt64, limit: Int
  ) {
    var looks = limit
    var weighing: UInt64 = 0
    forEachStretch(request, UInt64(range.first), UInt64(range.end), &steps, &looks) { first, end in
      offer(request, first, end, .none, &spots, &weighing)
      return UInt64(request.count)
    }
    steps += weighing
  }

  // MARK: Weighing

  /// Weighs places for the run in frames `first` to `end`, about a piece apart, by the counts of their pieces.
  private func offer(
    _ request: RunRequest, _ first: UInt64, _ end: UInt64, _ fixed: FixedFrames, _ spots: inout Spots,
    _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    guard var start = request.place(first, end).map({ UInt64($0) }) else { return }
    // Whole pieces from..<to are in the sum; both only fall.
    var to = (start + count) >> 9
    var from = to
    var whole = EmptyingCost()
    while true {
      let (wholeFrom, wholeTo) = ((start + 511) >> 9, (start + count) >> 9)
      while to > max(wholeTo, wholeFrom) {
        to -= 1
        if to >= from { whole -= cost(ofPiece: to) } else { from = to }
      }
      while from > wholeFrom && from > 0 {
        from -= 1
        whole += cost(ofPiece: from)
        steps += 1
      }
      var cost = whole
      if wholeFrom > wholeTo {
        cost = share(start, start + count, fixed)
      } else {
        if start < wholeFrom << 9 { cost += share(start, wholeFrom << 9, fixed) }
        if wholeTo << 9 < start + count { cost += share(wholeTo << 9, start + count, fixed) }
      }
      steps += 1
      spots.offer(Spot(start: start, low: first, high: end, cost: cost))
      guard start + count > 512, let next = request.place(first, start + count - 512) else { return }
      start = UInt64(next)
    }
  }

  /// Whether the frames that are weighed may have fixed ones among them.
  private enum FixedFrames { case some, none }

  /// What frames `first` to `end` of one piece cost if all of its frames were alike, or all that aren't fixed.
  private func share(_ first: UInt64, _ end: UInt64, _ fixed: FixedFrames) -> EmptyingCost {
    let piece = pieceUnchecked(UInt32(first))
    let glance = piece.glance
    let dirty = UInt64(piece.dirty.pointee.load(ordering: .relaxed))
    let (work, among): (UInt64, UInt64) =
      switch fixed {
      case .some: (glance.work, 512)
      case .none: (glance.movable, max(1, 512 - min(511, glance.fixed)))
      }
    return EmptyingCost(work: work * (end - first) / among, dirty: dirty * (end - first) / among)
  }

  /// Weighs places in all memory that isn't kept for good.
  private func offerSpans(
    _ request: RunRequest, _ excluding: ExcludedRuns, _ spots: inout Spots, _ steps: inout UInt64
  ) {
    for i in stride(from: state.pointee.spanCount - 1, through: 0, by: -1) {
      let span = Span(
        first: max(state.pointee.spans[i].first, request.low),
        end: min(state.pointee.spans[i].end, request.high))
      guard span.first < span.end else { continue }
      for k in 0...4 {
        guard let part = part(k, span, excluding) else { continue }
        if request.isOfPieces {
          searchPieces(request, part, .some, &spots, &steps)
        } else {
          offer(request, UInt64(part.first), UInt64(part.end), .some, &spots, &steps)
        }
      }
    }
  }

  /// Frame by frame: what frames `first` to `end` of one piece cost.
  private func weigh(_ first: UInt64, _ end: UInt64) -> EmptyingCost {
    var cost = EmptyingCost()
    guard let records = records(first) else {
      // All free, all taken a moment ago, or all as at boot.
      let all = self.cost(ofPiece: first >> 9)
      return all.work == 0
        ? cost : EmptyingCost(work: (end - first) * max(1, all.work >> 9), dirty: 0)
    }
    for i in 0..<Int(end - first) { weigh(records + i &* 32, into: &cost) }
    return cost
  }

  @inline(always) private func weigh(_ record: UnsafeMutableRawPointer, into cost: inout EmptyingCost) {
    let glance = FrameRecordPointer(record).glance
    if glance.isIdlePage {
      cost.work &+= 1
      cost.dirty &+= glance.dirty
    } else if !glance.isFree {
      cost.work &+= glance.isMovable ? EmptyingCost.busy : EmptyingCost.fixed
      cost.dirty &+= glance.isMovable ? glance.dirty : 0
    }
  }

  /// The cheapest start, after a look at the frames of each spot that counts say may be it.
  private func settle(_ request: RunRequest, _ spots: Spots, _ steps: inout UInt64) -> UInt64 {
    var best = spots.list[0].start
    var cost = EmptyingCost(work: .max, dirty: .max)
    for i in 0..<spots.count {
      let spot = spots.list[i]
      if request.isOfPieces {
        // Counts know all but who is busy.
        if !(spot.cost < cost) { break }
        let exact = isQuiet(spot.start, request.count) ? spot.cost : weighRun(spot.start, request.count)
        steps += UInt64(request.count / 16)
        if exact < cost { (best, cost) = (spot.start, exact) }
      } else if !isNear(spot, spots, i) {
        refine(request, spot, &best, &cost, &steps)
      }
    }
    return best
  }

  /// Whether one of the first `count` spots was looked at within reach of this one.
  private func isNear(_ spot: Spot, _ spots: Spots, _ count: Int) -> Bool {
    for i in 0..<count {
      let other = spots.list[i]
      let distance = spot.start > other.start ? spot.start - other.start : other.start - spot.start
      if other.low == spot.low && distance <= 512 { return true }
    }
    return false
  }

  /// Whether no frame of a run of whole pieces is claimed, so that the counts say all. Runs of more than 8
  /// pieces are not looked at.
  private func isQuiet(_ start: UInt64, _ count: UInt32) -> Bool {
    guard count <= 8 * Piece.frames else { return true }
    var claims: UInt32 = 0
    for piece in 0..<UInt64(count >> Piece.shift) {
      guard let records = records(start + piece << 9) else { continue }
      var record = records
      let end = records + 512 * 32
      while record < end {
        claims |= FrameRecordPointer(record).claimsWord.pointee.load(ordering: .relaxed)
        record += 32
      }
    }
    return claims & 0x7fff_ffff == 0
  }

  private func weighRun(_ start: UInt64, _ count: UInt32) -> EmptyingCost {
    var cost = EmptyingCost()
    for piece in 0..<UInt64(count >> Piece.shift) {
      let first = start + piece << 9
      cost += weigh(first, first + 512)
    }
    return cost
  }

  /// The cheapest start within a piece's length of the spot's, frame by frame.
  private func refine(
    _ request: RunRequest, _ spot: Spot, _ best: inout UInt64, _ cost: inout EmptyingCost,
    _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    var start = request.mayBeginInside ? min(spot.start + 511, spot.high - count) : spot.start
    let bottom = max(spot.low, spot.start > 511 ? spot.start - 511 : 0)
    // The window at the top: frames that will leave it by themselves, the others by the counts of pieces.
    var sum = EmptyingCost()
    var at = start
    let end = start + count
    while at < end {
      let pieceEnd = min(end, at | 511 + 1)
      sum +=
        pieceEnd - at == 512 && pieceEnd + 1024 <= end ? self.cost(ofPiece: at >> 9) : weigh(at, pieceEnd)
      at = pieceEnd
    }
    steps += count / 512 + (start - bottom) / 4
    if !request.mayBeginInside {
      if sum < cost { (best, cost) = (start, sum) }
      return
    }
    while true {
      if sum < cost && request.place(start, start + count) == UInt32(start) { (best, cost) = (start, sum) }
      if start == bottom { return }
      // As long as the frame that comes in and the one that leaves stay in their pieces.
      var rest = min(start - bottom, (start - 1) & 511 + 1, (start - 1 + count) & 511 + 1)
      guard let first = records(start - 1), let last = records(start - 1 + count) else {
        start -= 1
        sum += weigh(start, start + 1)
        sum -= weigh(start + count, start + count + 1)
        continue
      }
      var (entering, leaving) = (first, last)
      while true {
        start -= 1
        rest -= 1
        weigh(entering, into: &sum)
        var gone = EmptyingCost()
        weigh(leaving, into: &gone)
        sum -= gone
        if rest == 0 { break }
        if sum < cost && request.place(start, start + count) == UInt32(start) { (best, cost) = (start, sum) }
        entering -= 32
        leaving -= 32
      }
    }
  }

  // MARK: Telling

  /// What frames `first` to `end` hold, all of them memory. Whole pieces without fixed frames by their counts.
  private func describe(_ first: UInt64, _ end: UInt64, _ blockers: inout RunBlockers) -> RunCandidate {
    var (free, movable, dirty, unmovable): (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var at = first
    while at < end {
      let pieceEnd = min(end, at | 511 + 1)
      let piece = pieceUnchecked(UInt32(at))
      let glance = piece.glance
      let records = records(at)
      if pieceEnd - at == 512 && (!glance.hasFixed || blockers.count == 8) {
        free += glance.free
        movable += glance.movable
        unmovable += glance.fixed
        dirty += UInt64(piece.dirty.pointee.load(ordering: .relaxed))
      } else if let records {
        for i in 0..<(pieceEnd - at) {
          let frame = FrameRecordPointer(records + Int(i) &* 32).glance
          if frame.isFree {
            free += 1
          } else if frame.isMovable {
            movable += 1
            if frame.isDirty { dirty += 1 }
          } else {
            unmovable += 1
            note(at + i, at + i + 1, FrameRole(rawValue: frame.role) ?? .absent, &blockers)
          }
        }
      } else if glance.hasFixed {
        unmovable += pieceEnd - at
        note(at, pieceEnd, piece.state == .uniform ? piece.role : .wired, &blockers)
      } else if glance.movable > 0 {
        movable += pieceEnd - at
      } else {
        free += pieceEnd - at
      }
      at = pieceEnd
    }
    return RunCandidate(
      run: FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first)), free: PageCount(free),
      movable: PageCount(movable), dirty: PageCount(dirty), unmovable: PageCount(unmovable))
  }

  private func note(_ first: UInt64, _ end: UInt64, _ role: FrameRole, _ blockers: inout RunBlockers) {
    let known = blockers.count
    let run = FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first))
    if known > 0, var last = blockers.list[known - 1], last.role == role, last.run.end == run.first {
      last.run.count = last.run.count + run.count
      blockers.list[known - 1] = last
      return
    }
    guard known < 8 else { return }
    let description = whatIs(run.first)
    blockers.list[known] = RunBlocker(
      run: run, role: role, owner: description.owner, claims: description.claims)
    blockers.count = known + 1
  }
}
