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
//
// What a run costs is for the caller to say (`RunPricing`): it may be more than the request can pay. When none of the
// four places can be paid for, a window slides over the frames of the stretches, past those runs that a lower bound
// rules out: then there is one whenever any run can be paid for.

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

extension RunCandidate {
  public init(_ run: FrameRun) { self.run = run }
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
  /// Every run has frames that can't be emptied, or was tried: the run with the fewest of them.
  case blocked(RunCandidate)
  /// No matter what is freed.
  case never
}

/// A place for a run, weighed by counts, and the frames that it may be shifted in.
struct Spot {
  var start: UInt64 = 0
  var low: UInt64 = 0
  var high: UInt64 = 0
  var price = RunPrice.highest
}

/// The four cheapest places, cheapest first.
struct Spots {
  var list: InlineArray<4, Spot> = .init(repeating: Spot())
  var count = 0

  @inline(always) mutating func offer(_ spot: Spot) {
    if spot.price < list[3].price { insert(spot) }
  }
  private mutating func insert(_ spot: Spot) {
    var i = 3
    while i > 0 && spot.price < list[i - 1].price {
      list[i] = list[i - 1]
      i -= 1
    }
    list[i] = spot
    count = min(4, count + 1)
  }
}

/// The cheapest start that was found, and its price.
struct PricedStart {
  var start: UInt64
  var price = RunPrice.highest
}

extension PiecePointer {
  /// What the piece has in it, as far as its counts tell.
  @inline(always) func contents(_ glance: PieceGlance) -> RunContents {
    var contents = RunContents()
    let dirty = UInt64(dirty.pointee.load(ordering: .relaxed))
    contents.free = glance.free
    contents.fixed = glance.fixed
    contents.activeForSwap = min(dirty, glance.movable)
    contents.clean = glance.movable &- contents.activeForSwap
    return contents
  }
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
    candidate(run: count, where: constraints, excluding: excluding, at: PagesInTheWay())
  }

  /// The same by the prices of `pricing`: a run without fixed frames is found before any with some, whatever its
  /// price. Where no place that counts have led to can be emptied, and another might, each frame in the range is
  /// looked at, and the answer is exact.
  public func candidate<Pricing: RunPricing>(
    run count: PageCount, where constraints: RunConstraints, excluding: ExcludedRuns, at pricing: Pricing
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
        searchPieces(request, part, .none, pricing, &spots, &steps)
      } else {
        searchStretches(request, part, pricing, &spots, &steps, limit: 16)
      }
    }
    if spots.count == 0 && !request.isOfPieces {
      for i in 0...4 {
        if let part = part(i, of: request, excluding) {
          searchStretches(request, part, pricing, &spots, &steps, limit: .max)
        }
      }
    }
    if spots.count > 0 {
      var best = settle(request, spots, pricing, &steps)
      // Of long runs, inner pieces were weighed by their counts.
      if request.count >= 3 * Piece.frames {
        best.price = pricing.price(contents(best.start, best.start + UInt64(request.count), pricing))
      }
      if best.price.obstacles > 0 && pricing.varies(best.price) {
        for i in 0...4 {
          if let part = part(i, of: request, excluding) {
            searchFrames(request, part, pricing, &best, &steps)
          }
        }
      }
      let found = describe(best.start, best.start + UInt64(request.count))
      // Frames that others have taken since are in the way now.
      return found.unmovable == .zero ? .found(found) : .blocked(found)
    }
    offerSpans(request, excluding, &spots, &steps)
    if spots.count == 0 && excluding.next > 0 { offerSpans(request, ExcludedRuns(), &spots, &steps) }
    guard spots.count > 0 else { return .never }
    let start = settle(request, spots, PagesInTheWay(), &steps).start
    return .blocked(describe(start, start + UInt64(request.count)))
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

  private func searchPieces<Pricing: RunPricing>(
    _ request: RunRequest, _ range: Span, _ fixed: FixedFrames, _ pricing: Pricing, _ spots: inout Spots,
    _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    let pieces = count >> 9
    let mask = request.alignment >> 9 - 1
    let first = (UInt64(range.first) + 511) >> 9
    var at = UInt64(range.end) >> 9
    // The pieces in hand, from `at` up, may all be in a run; the contents are those of the lowest `pieces`.
    var inHand: UInt64 = 0
    var contents = RunContents()
    let unwanted = fixed == .none ? PieceGlance.fixedBits : 0
    while at > first {
      let frame = UInt32(at << 9 - 1)
      guard let section = section(frame) else {
        at = max(first, (holeStart(frame) + 511) >> 9)
        inHand = 0
        contents = RunContents()
        steps += 1
        continue
      }
      let bottom = max(first, UInt64(section.first) >> 9)
      var piece = pieceUnchecked(frame)
      steps += at - bottom
      if pieces == 1 {
        searchSinglePieces(request, piece, at, bottom, unwanted, pricing, &spots)
        at = bottom
        continue
      }
      while at > bottom {
        at -= 1
        defer { piece = piece.below }
        let glance = piece.glance
        if glance.rawValue & unwanted != 0 {
          inHand = 0
          contents = RunContents()
          continue
        }
        inHand += 1
        contents += piece.contents(glance)
        if inHand > pieces { contents -= self.contents(ofPiece: at + pieces) }
        if inHand >= pieces && at & mask == 0 && request.keepsBoundary(at << 9) {
          spots.offer(
            Spot(start: at << 9, low: at << 9, high: at << 9 + count, price: pricing.price(contents)))
        }
      }
      if spots.list[0].price.isNothing { return }
    }
  }

  /// The same for runs of one piece: `piece` is the one below `top`. Most are not worth a second look.
  private func searchSinglePieces<Pricing: RunPricing>(
    _ request: RunRequest, _ piece: PiecePointer, _ top: UInt64, _ bottom: UInt64, _ unwanted: UInt64,
    _ pricing: Pricing, _ spots: inout Spots
  ) {
    let mask = request.alignment >> 9 - 1
    var worst = spots.list[3].price
    var piece = piece
    var at = top
    while at > bottom {
      at &-= 1
      let (glance, here) = (piece.glance, piece)
      piece = piece.below
      if glance.rawValue & unwanted != 0 || at & mask != 0 { continue }
      if worst.obstacles == 0 && glance.movable > worst.work { continue }
      let price = pricing.price(here.contents(glance))
      if price < worst {
        spots.offer(Spot(start: at << 9, low: at << 9, high: at << 9 + 512, price: price))
        worst = spots.list[3].price
        if price.isNothing { return }
      }
    }
  }

  /// What one piece has in it, by its counts. It has records.
  @inline(always) private func contents(ofPiece number: UInt64) -> RunContents {
    let piece = pieceUnchecked(UInt32(number << 9))
    return piece.contents(piece.glance)
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

  private func searchStretches<Pricing: RunPricing>(
    _ request: RunRequest, _ range: Span, _ pricing: Pricing, _ spots: inout Spots, _ steps: inout UInt64,
    limit: Int
  ) {
    var looks = limit
    var weighing: UInt64 = 0
    forEachStretch(request, UInt64(range.first), UInt64(range.end), &steps, &looks) { first, end in
      offer(request, first, end, .none, pricing, &spots, &weighing)
      return UInt64(request.count)
    }
    steps += weighing
  }

  // MARK: Every frame

  /// Frames that are looked at after a run was found that can be emptied, for a cheaper one.
  private static var framesAfterTheFirst: UInt64 { 1 << 16 }

  /// Looks at each run in `range`, but for those that a lower bound rules out.
  private func searchFrames<Pricing: RunPricing>(
    _ request: RunRequest, _ range: Span, _ pricing: Pricing, _ best: inout PricedStart,
    _ steps: inout UInt64
  ) {
    var looks = Int.max
    var looked: UInt64 = 0
    var sliding: UInt64 = 0
    forEachStretch(request, UInt64(range.first), UInt64(range.end), &steps, &looks) { first, end in
      slide(request, first, end, pricing, &best, &sliding)
      looked += end - first
      let isEnough = best.price.obstacles == 0 && looked > Self.framesAfterTheFirst
      return isEnough ? .max : UInt64(request.count)
    }
    steps += sliding
  }

  /// Looks at the runs in frames `first` to `end`, which have no fixed one among them, from the top down. The contents
  /// of the frames that a run loses and gains on its way down bound what any run on that way has; if even that does not
  /// cost less than the best, all of them are passed over.
  private func slide<Pricing: RunPricing>(
    _ request: RunRequest, _ first: UInt64, _ end: UInt64, _ pricing: Pricing, _ best: inout PricedStart,
    _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    guard var start = request.place(first, end).map({ UInt64($0) }) else { return }
    var inside = contents(start, start + count, pricing)
    steps += count / 8
    var reach = count
    while true {
      steps += 1
      let price = pricing.price(inside)
      if price < best.price { best = PricedStart(start: start, price: price) }
      while true {
        let way = min(reach, start - first)
        if way == 0 {
          reach = 1
          break
        }
        // Down to a whole piece, if there is one.
        let lower = way > 512 ? (start - way + 511) & ~511 : start - way
        let gained = contents(lower, start, pricing)
        let lost = contents(lower + count, start + count, pricing)
        steps += 1 + way / 4
        guard
          !mayBeat(best.price, pricing.price(inside.least(gaining: gained, losing: lost, of: start - lower)))
        else {
          reach /= 4
          break
        }
        inside += gained
        inside -= lost
        start = lower
        reach = min(count, reach * 2)
      }
      guard let next = request.place(first, start + count - 1).map({ UInt64($0) }) else { return }
      if next + count <= start {
        inside = contents(next, next + count, pricing)
      } else {
        inside += contents(next, start, pricing)
        inside -= contents(next + count, start + count, pricing)
      }
      steps += min(count, start - next) / 4
      start = next
    }
  }

  /// Whether a run that costs no less than `least` may be the better one. Of runs that can't be paid for, one with the
  /// fewest frames missing is as good as any.
  private func mayBeat(_ best: RunPrice, _ least: RunPrice) -> Bool {
    best.obstacles > 0 ? least.obstacles < best.obstacles : least < best
  }

  /// What frames `first` to `end` have in them. All of them have records.
  private func contents<Pricing: RunPricing>(
    _ first: UInt64, _ end: UInt64, _ pricing: Pricing
  ) -> RunContents {
    var contents = RunContents()
    var at = first
    while at < end {
      let pieceEnd = min(end, at | 511 + 1)
      weigh(at, pieceEnd, pricing, into: &contents)
      at = pieceEnd
    }
    return contents
  }

  /// What the frames of `run` have in them; frames without a record are fixed. A few instructions a frame; takes no
  /// lock.
  public func contents<Pricing: RunPricing>(of run: FrameRun, at pricing: Pricing) -> RunContents {
    var contents = RunContents()
    var at = UInt64(run.first.rawValue)
    let end = at + run.count.rawValue
    while at < end {
      let pieceEnd = min(end, at | 511 + 1)
      if at < UInt64(FrameNumber.limit), section(UInt32(at)) != nil {
        weigh(at, pieceEnd, pricing, into: &contents)
      } else {
        contents.fixed += pieceEnd - at
      }
      at = pieceEnd
    }
    return contents
  }

  // MARK: Weighing

  /// Weighs places for the run in frames `first` to `end`, about a piece apart, by the counts of their pieces.
  private func offer<Pricing: RunPricing>(
    _ request: RunRequest, _ first: UInt64, _ end: UInt64, _ fixed: FixedFrames, _ pricing: Pricing,
    _ spots: inout Spots, _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    guard var start = request.place(first, end).map({ UInt64($0) }) else { return }
    // Whole pieces from..<to are in the sum; both only fall.
    var to = (start + count) >> 9
    var from = to
    var whole = RunContents()
    while true {
      let (wholeFrom, wholeTo) = ((start + 511) >> 9, (start + count) >> 9)
      while to > max(wholeTo, wholeFrom) {
        to -= 1
        if to >= from { whole -= contents(ofPiece: to) } else { from = to }
      }
      while from > wholeFrom && from > 0 {
        from -= 1
        whole += contents(ofPiece: from)
        steps += 1
      }
      var inside = whole
      if wholeFrom > wholeTo {
        inside = share(start, start + count, fixed)
      } else {
        if start < wholeFrom << 9 { inside += share(start, wholeFrom << 9, fixed) }
        if wholeTo << 9 < start + count { inside += share(wholeTo << 9, start + count, fixed) }
      }
      steps += 1
      spots.offer(Spot(start: start, low: first, high: end, price: pricing.price(inside)))
      guard start + count > 512, let next = request.place(first, start + count - 512) else { return }
      start = UInt64(next)
    }
  }

  /// Whether the frames that are weighed may have fixed ones among them.
  private enum FixedFrames { case some, none }

  /// What frames `first` to `end` of one piece have in them if all of its frames were alike, or all that aren't fixed.
  private func share(_ first: UInt64, _ end: UInt64, _ fixed: FixedFrames) -> RunContents {
    var whole = contents(ofPiece: first >> 9)
    guard fixed == .none else { return whole.share(end - first, of: 512) }
    let among = max(1, 512 - min(511, whole.fixed))
    whole.fixed = 0
    return whole.share(end - first, of: among)
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
          searchPieces(request, part, .some, PagesInTheWay(), &spots, &steps)
        } else {
          offer(request, UInt64(part.first), UInt64(part.end), .some, PagesInTheWay(), &spots, &steps)
        }
      }
    }
  }

  /// Adds what frames `first` to `end` of one piece have in them: a whole piece by its counts, where these say it all,
  /// else frame by frame.
  func weigh<Kinds: DirtyPageKinds>(
    _ first: UInt64, _ end: UInt64, _ kinds: Kinds, into contents: inout RunContents
  ) {
    let piece = pieceUnchecked(UInt32(first))
    let glance = piece.glance
    guard let records = records(first) else {
      // All free, all taken a moment ago, or all as at boot.
      if glance.hasFixed {
        contents.fixed &+= end - first
      } else if glance.movable > 0 {
        contents.claimed &+= end - first
      } else {
        contents.free &+= end - first
      }
      return
    }
    // The dirty pages of a piece with fixed frames may be wired ones.
    if end - first == 512 && !glance.hasFixed {
      let counts = piece.contents(glance)
      if (!kinds.tellsDirtyPagesApart || counts.dirty == 0) && isQuiet(records) { return contents += counts }
    }
    for i in 0..<(end - first) {
      contents.add(kind(records + Int(i) &* 32, FrameNumber(UInt32(first + i)), kinds))
    }
  }

  @inline(always) private func kind<Kinds: DirtyPageKinds>(
    _ record: UnsafeMutableRawPointer, _ frame: FrameNumber, _ kinds: Kinds
  ) -> FrameKind {
    let glance = FrameRecordPointer(record).glance
    if glance.isFree { return .free }
    if glance.isIdlePage {
      if glance.dirty == 0 { return .clean }
      if !kinds.tellsDirtyPagesApart { return .activeForSwap }
      switch (glance.isActive, kinds.isForDevice(frame)) {
      case (true, false): return .activeForSwap
      case (false, false): return .inactiveForSwap
      case (true, true): return .activeForDevice
      case (false, true): return .inactiveForDevice
      }
    }
    return glance.isMovable ? .claimed : glance.isCaptured ? .captured : .fixed
  }

  /// The cheapest start, after a look at the frames of each spot that counts say may be it.
  private func settle<Pricing: RunPricing>(
    _ request: RunRequest, _ spots: Spots, _ pricing: Pricing, _ steps: inout UInt64
  ) -> PricedStart {
    var best = PricedStart(start: spots.list[0].start)
    let count = UInt64(request.count)
    for i in 0..<spots.count {
      let spot = spots.list[i]
      if request.isOfPieces {
        // Counts know all but who is busy.
        if !(spot.price < best.price) { break }
        let isKnown = !pricing.tellsDirtyPagesApart && isQuiet(spot.start, request.count)
        let exact =
          isKnown ? spot.price : pricing.price(contents(spot.start, spot.start + count, pricing))
        steps += count / 16
        if exact < best.price { best = PricedStart(start: spot.start, price: exact) }
      } else if !isNear(spot, spots, i) {
        refine(request, spot, pricing, &best, &steps)
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
    for piece in 0..<UInt64(count >> Piece.shift) {
      if let records = records(start + piece << 9), !isQuiet(records) { return false }
    }
    return true
  }

  /// Whether no frame of a piece is claimed, by its records.
  @inline(always) private func isQuiet(_ records: UnsafeMutableRawPointer) -> Bool {
    var claims: UInt32 = 0
    var record = records
    let end = records + 512 * 32
    while record < end {
      claims |= FrameRecordPointer(record).claimsWord.pointee.load(ordering: .relaxed)
      record += 32
    }
    return claims & 0x7fff_ffff == 0
  }

  /// The cheapest start within a piece's length of the spot's, frame by frame.
  private func refine<Pricing: RunPricing>(
    _ request: RunRequest, _ spot: Spot, _ pricing: Pricing, _ best: inout PricedStart, _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    var start = request.mayBeginInside ? min(spot.start + 511, spot.high - count) : spot.start
    let bottom = max(spot.low, spot.start > 511 ? spot.start - 511 : 0)
    // The window at the top: frames that will leave it by themselves, the others by the counts of pieces.
    var inside = RunContents()
    var at = start
    let end = start + count
    while at < end {
      let pieceEnd = min(end, at | 511 + 1)
      if pieceEnd - at == 512 && pieceEnd + 1024 <= end {
        inside += contents(ofPiece: at >> 9)
      } else {
        weigh(at, pieceEnd, pricing, into: &inside)
      }
      at = pieceEnd
    }
    steps += count / 512 + (start - bottom) / 4
    func offer() {
      if best.price.obstacles == 0 && inside.pages > best.price.work { return }
      let price = pricing.price(inside)
      if price < best.price && request.place(start, start + count) == UInt32(start) {
        best = PricedStart(start: start, price: price)
      }
    }
    if !request.mayBeginInside { return offer() }
    while true {
      offer()
      if start == bottom { return }
      // As long as the frame that comes in and the one that leaves stay in their pieces.
      var rest = min(start - bottom, (start - 1) & 511 + 1, (start - 1 + count) & 511 + 1)
      guard let first = records(start - 1), let last = records(start - 1 + count) else {
        start -= 1
        weigh(start, start + 1, pricing, into: &inside)
        var gone = RunContents()
        weigh(start + count, start + count + 1, pricing, into: &gone)
        inside -= gone
        continue
      }
      var (entering, leaving) = (first, last)
      while true {
        start -= 1
        rest -= 1
        inside.add(kind(entering, FrameNumber(UInt32(start)), pricing))
        inside.remove(kind(leaving, FrameNumber(UInt32(start + count)), pricing))
        if rest == 0 { break }
        offer()
        entering -= 32
        leaving -= 32
      }
    }
  }

  // MARK: Describing

  /// What frames `first` to `end` hold, all of them memory. Whole pieces without fixed frames by their counts.
  private func describe(_ first: UInt64, _ end: UInt64) -> RunCandidate {
    var (free, movable, dirty, unmovable): (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var at = first
    while at < end {
      let pieceEnd = min(end, at | 511 + 1)
      let piece = pieceUnchecked(UInt32(at))
      let glance = piece.glance
      if pieceEnd - at == 512 && !glance.hasFixed {
        free += glance.free
        movable += glance.movable
        dirty += UInt64(piece.dirty.pointee.load(ordering: .relaxed))
      } else if let records = records(at) {
        for i in 0..<(pieceEnd - at) {
          let frame = FrameRecordPointer(records + Int(i) &* 32).glance
          if frame.isFree {
            free += 1
          } else if frame.isMovable {
            movable += 1
            if frame.isDirty { dirty += 1 }
          } else {
            unmovable += 1
          }
        }
      } else if glance.hasFixed {
        unmovable += pieceEnd - at
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
}
