// Candidates: runs that are not free, but could be emptied, and what that would cost.
//
// A frame can be emptied when it is free, or a page that nobody has wired; a page that is busy or held at
// this moment counts as such a page, but an expensive one. All other frames are *fixed*.
//
// Nothing here takes the lock: the counts of pageblocks and the last eight bytes of valid records are read as they
// are at that moment. A candidate is a hint, which isolation puts to the test; when nothing else runs, it is
// exact: there is one whenever any run that is allowed has no fixed frame.
//
// Two walks, from the top down, so that low memory is spared
//   whole pageblocks   a run of whole pageblocks at the start of a pageblock is judged by the counts of its pageblocks alone,
//                  a window that slides over them: a step a pageblock, and no record is looked at
//   extents      any other run lies in an *extent*, a maximal row of frames that are not fixed. A pageblock without
//                  fixed frames is a step. Of a pageblock with some, the end that touches the extent in hand is
//                  looked at only if the two together could hold the run, and its inside only if it has as many
//                  frames that are not fixed as the run needs
// What is found is weighed by the counts of pageblocks, four of the cheapest places are kept, and these are
// looked at frame by frame, a pageblock's length to either side. So the cost is exact but for
// places that their pageblocks' counts make look dearer than these four.
//
// What a run costs is for the caller to say (`RunPricing`): it may be more than the request can pay. When none of the
// four places can be paid for, a window slides over the frames of the extents, past those runs that a lower bound
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
struct CandidateStart {
  var start: UInt64 = 0
  var low: UInt64 = 0
  var high: UInt64 = 0
  var price = RunPrice.highest
}

/// The four cheapest places, cheapest first.
struct CandidateStarts {
  var list: InlineArray<4, CandidateStart> = .init(repeating: CandidateStart())
  var count = 0

  @inline(always) mutating func offer(_ candidate: CandidateStart) {
    if candidate.price < list[3].price { insert(candidate) }
  }
  private mutating func insert(_ candidate: CandidateStart) {
    var i = 3
    while i > 0 && candidate.price < list[i - 1].price {
      list[i] = list[i - 1]
      i -= 1
    }
    list[i] = candidate
    count = min(4, count + 1)
  }
}

/// The cheapest start that was found, and its price.
struct PricedStart {
  var start: UInt64
  var price = RunPrice.highest
}

extension PageblockPointer {
  /// What the pageblock has in it, as far as its counts tell.
  @inline(always) func contents(_ snapshot: PageblockSnapshot) -> RunContents {
    var contents = RunContents()
    let dirty = UInt64(dirty.pointee.load(ordering: .relaxed))
    contents.free = snapshot.free
    contents.fixed = snapshot.fixed
    contents.activeForSwap = min(dirty, snapshot.movable)
    contents.clean = snapshot.movable &- contents.activeForSwap
    return contents
  }
}

extension RunRequest {
  /// Whether every run for this covers whole pageblocks.
  var isOfPageblocks: Bool { count & (Pageblock.frames - 1) == 0 && alignment >= UInt64(Pageblock.frames) }
  /// Whether a run may begin inside a pageblock.
  var mayBeginInside: Bool { alignment < UInt64(Pageblock.frames) }
}

extension FrameAllocator {
  /// The cheapest run to empty that satisfies `where` and has no frame of the runs in `excluding`: each page to
  /// be moved or written costs 1, a busy or held one 8; a clean one is preferred to a dirty one where that is
  /// the same. Takes no lock. Cost: see the head of Candidates.swift; for a run of whole pageblocks a step for each
  /// pageblock in the range.
  public func candidate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(),
    excluding: ExcludedRuns = ExcludedRuns()
  ) -> RunSearch {
    candidate(run: count, where: constraints, excluding: excluding, at: PagesInTheWay())
  }

  /// The same by the prices of `pricing`: a run without fixed frames is found before any with some, whatever its
  /// price. Where no candidate that counts have led to can be emptied, and another might, all runs in the range are
  /// compared, except those that the prices rule out: whether one can be emptied is exact.
  public func candidate<Pricing: RunPricing>(
    run count: PageCount, where constraints: RunConstraints, excluding: ExcludedRuns, at pricing: Pricing
  ) -> RunSearch {
    guard let request = RunRequest(count, constraints) else { return .never }
    var steps: UInt64 = 0
    defer {
      state.pointee.events.pointee.searches.add(1, ordering: .relaxed)
      state.pointee.events.pointee.searchSteps.add(steps, ordering: .relaxed)
    }
    var starts = CandidateStarts()
    for i in 0...4 {
      guard let part = part(i, of: request, excluding) else { continue }
      if request.isOfPageblocks {
        searchPageblocks(request, part, .none, pricing, &starts, &steps)
      } else {
        searchExtents(request, part, pricing, &starts, &steps, limit: 16)
      }
    }
    if starts.count == 0 && !request.isOfPageblocks {
      for i in 0...4 {
        if let part = part(i, of: request, excluding) {
          searchExtents(request, part, pricing, &starts, &steps, limit: .max)
        }
      }
    }
    if starts.count > 0 {
      var best = settle(request, starts, pricing, &steps)
      // Of long runs, inner pageblocks were weighed by their counts.
      if request.count >= 3 * Pageblock.frames {
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
    offerSpans(request, excluding, &starts, &steps)
    if starts.count == 0 && excluding.next > 0 { offerSpans(request, ExcludedRuns(), &starts, &steps) }
    guard starts.count > 0 else { return .never }
    let start = settle(request, starts, PagesInTheWay(), &steps).start
    return .blocked(describe(start, start + UInt64(request.count)))
  }

  /// The longest run that could be emptied, free frames included, or nil when every frame is fixed. A step a
  /// pageblock, and a look at the frames of a pageblock that could have a longer one. Takes no lock.
  public func longestEmptiableRun(
    low: PhysicalAddress = PhysicalAddress(0), high: PhysicalAddress = PhysicalAddress(UInt64.max)
  ) -> FrameRun? {
    guard let request = RunRequest(.one, RunConstraints(low: low, high: high)) else { return nil }
    var best: FrameRun?
    var steps: UInt64 = 0
    var looks = Int.max
    forEachExtent(request, UInt64(request.low), UInt64(request.high), &steps, &looks) { first, end in
      best = FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first))
      return end - first + 1
    }
    return best
  }

  /// Whether any run for `request` in frames `low` to `high` could be emptied.
  func canEmpty(_ request: RunRequest, _ low: UInt64, _ high: UInt64, _ steps: inout UInt64) -> Bool {
    var found = false
    var looks = Int.max
    forEachExtent(request, low, high, &steps, &looks) { first, end in
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

  // MARK: Whole pageblocks

  private func searchPageblocks<Pricing: RunPricing>(
    _ request: RunRequest, _ range: Span, _ fixed: FixedFrames, _ pricing: Pricing,
    _ starts: inout CandidateStarts,
    _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    let pageblocks = count >> 9
    let mask = request.alignment >> 9 - 1
    let first = (UInt64(range.first) + 511) >> 9
    var at = UInt64(range.end) >> 9
    // The pageblocks in hand, from `at` up, may all be in a run; the contents are those of the lowest `pageblocks`.
    var inHand: UInt64 = 0
    var contents = RunContents()
    let unwanted = fixed == .none ? PageblockSnapshot.fixedBits : 0
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
      var pageblock = pageblockUnchecked(frame)
      steps += at - bottom
      if pageblocks == 1 {
        searchSinglePageblocks(request, pageblock, at, bottom, unwanted, pricing, &starts)
        at = bottom
        continue
      }
      while at > bottom {
        at -= 1
        defer { pageblock = pageblock.below }
        let snapshot = pageblock.snapshot
        if snapshot.rawValue & unwanted != 0 {
          inHand = 0
          contents = RunContents()
          continue
        }
        inHand += 1
        contents += pageblock.contents(snapshot)
        if inHand > pageblocks { contents -= self.contents(ofPageblock: at + pageblocks) }
        if inHand >= pageblocks && at & mask == 0 && request.keepsBoundary(at << 9) {
          starts.offer(
            CandidateStart(
              start: at << 9, low: at << 9, high: at << 9 + count, price: pricing.price(contents)))
        }
      }
      if starts.list[0].price.isNothing { return }
    }
  }

  /// The same for runs of one pageblock: `pageblock` is the one below `top`. Most are not worth a second look.
  private func searchSinglePageblocks<Pricing: RunPricing>(
    _ request: RunRequest, _ pageblock: PageblockPointer, _ top: UInt64, _ bottom: UInt64, _ unwanted: UInt64,
    _ pricing: Pricing, _ starts: inout CandidateStarts
  ) {
    let mask = request.alignment >> 9 - 1
    var worst = starts.list[3].price
    var pageblock = pageblock
    var at = top
    while at > bottom {
      at &-= 1
      let (snapshot, here) = (pageblock.snapshot, pageblock)
      pageblock = pageblock.below
      if snapshot.rawValue & unwanted != 0 || at & mask != 0 { continue }
      if worst.obstacles == 0 && snapshot.movable > worst.work { continue }
      let price = pricing.price(here.contents(snapshot))
      if price < worst {
        starts.offer(CandidateStart(start: at << 9, low: at << 9, high: at << 9 + 512, price: price))
        worst = starts.list[3].price
        if price.isNothing { return }
      }
    }
  }

  /// What one pageblock has in it, by its counts. It has records.
  @inline(always) private func contents(ofPageblock number: UInt64) -> RunContents {
    let pageblock = pageblockUnchecked(UInt32(number << 9))
    return pageblock.contents(pageblock.snapshot)
  }

  /// The first frame of the hole that `frame` lies in, up to the section that holds it.
  private func holeStart(_ frame: UInt32) -> UInt64 {
    let number = Int(frame >> Section.frameShift)
    guard number < state.pointee.sectionCount else { return UInt64(memoryEnd) }
    let entry = sectionEntry(number)
    return entry.frames != 0 && frame >= entry.first
      ? UInt64(entry.first) + UInt64(entry.frames) : UInt64(number) << UInt64(Section.frameShift)
  }

  // MARK: Extents

  /// Calls `body` with each maximal extent of frames in `low` to `high` that are not fixed, from the top down,
  /// if it may hold a run as long as is wanted: at first the request's, then what `body` answered
  /// last, `.max` to end. Extents in which no run for the request can begin or end are left out or cut.
  /// `looks` counts down pageblocks that have fixed frames; at zero such pageblocks are taken for all fixed.
  private func forEachExtent(
    _ request: RunRequest, _ low: UInt64, _ high: UInt64, _ steps: inout UInt64, _ looks: inout Int,
    _ body: (UInt64, UInt64) -> UInt64
  ) {
    var wanted = UInt64(request.count)
    let (isOfPageblocks, mayBeginInside) = (request.isOfPageblocks, request.mayBeginInside)
    var at = min(high, UInt64(memoryEnd))
    // The extent in hand is `at` to `top`. If it ends in a pageblock with fixed frames, `top` is only the most
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
      let lowest = max(low, UInt64(section.first))
      var pageblock = pageblockUnchecked(frame)
      while at > lowest && wanted != .max {
        steps += 1
        let bottom = max(low, (at - 1) & ~511)
        let snapshot = pageblock.snapshot
        pageblock = pageblock.below
        if !snapshot.hasFixed {
          at = bottom
          continue
        }
        let most = looks > 0 && !isOfPageblocks ? min(512 - min(snapshot.fixed, 512), at - bottom) : 0
        if most == 0 {
          close(at)
          at = bottom
          top = at
          unknown = nil
          continue
        }
        // The frames right below the extent in hand belong to it.
        var end = at
        var looked = false
        if mayBeginInside && top - at + most >= wanted {
          end = at - suffixLength(bottom, at, &steps)
          looked = true
          if end == bottom {
            // Those of the pageblock that are fixed lie outside of the range.
            at = bottom
            continue
          }
        }
        close(end)
        if mayBeginInside && most >= wanted && wanted != .max {
          looked = true
          forEachExtentInside(bottom, end, &steps) { first, end in
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

  /// Calls `body` with each extent in frames `first` to `end` of one pageblock that ends at a fixed frame on either
  /// side.
  private func forEachExtentInside(
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

  /// Records from that of `frame` on, in its pageblock; nil when they hold rubbish.
  @inline(always) private func records(_ frame: UInt64) -> UnsafeMutableRawPointer? {
    let frame = UInt32(frame)
    return pageblockUnchecked(frame).state == .valid ? recordUnchecked(frame).raw : nil
  }

  @inline(always) private func isFixed(_ records: UnsafeMutableRawPointer?, _ i: UInt64) -> Bool {
    guard let records else { return true }
    let snapshot = FrameRecordPointer(records + Int(i) &* 32).snapshot
    return !snapshot.isFree && !snapshot.isMovable
  }

  /// How many frames from `first` on, of one pageblock, are not fixed.
  private func prefixLength(_ first: UInt64, _ end: UInt64, _ steps: inout UInt64) -> UInt64 {
    let records = records(first)
    var length: UInt64 = 0
    while first + length < end && !isFixed(records, length) { length += 1 }
    steps += 1 + length / 8
    return length
  }

  /// How many frames below `end`, of one pageblock and not below `first`, are not fixed.
  private func suffixLength(_ first: UInt64, _ end: UInt64, _ steps: inout UInt64) -> UInt64 {
    let records = records(first)
    var length: UInt64 = 0
    while end - length > first && !isFixed(records, end - length - first - 1) { length += 1 }
    steps += 1 + length / 8
    return length
  }

  private func searchExtents<Pricing: RunPricing>(
    _ request: RunRequest, _ range: Span, _ pricing: Pricing, _ starts: inout CandidateStarts,
    _ steps: inout UInt64,
    limit: Int
  ) {
    var looks = limit
    var weighing: UInt64 = 0
    forEachExtent(request, UInt64(range.first), UInt64(range.end), &steps, &looks) { first, end in
      offer(request, first, end, .none, pricing, &starts, &weighing)
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
    forEachExtent(request, UInt64(range.first), UInt64(range.end), &steps, &looks) { first, end in
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
        // Down to a whole pageblock, if there is one.
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
      let pageblockEnd = min(end, at | 511 + 1)
      weigh(at, pageblockEnd, pricing, into: &contents)
      at = pageblockEnd
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
      let pageblockEnd = min(end, at | 511 + 1)
      if at < UInt64(FrameNumber.limit), section(UInt32(at)) != nil {
        weigh(at, pageblockEnd, pricing, into: &contents)
      } else {
        contents.fixed += pageblockEnd - at
      }
      at = pageblockEnd
    }
    return contents
  }

  // MARK: Weighing

  /// Weighs places for the run in frames `first` to `end`, about a pageblock apart, by the counts of their pageblocks.
  private func offer<Pricing: RunPricing>(
    _ request: RunRequest, _ first: UInt64, _ end: UInt64, _ fixed: FixedFrames, _ pricing: Pricing,
    _ starts: inout CandidateStarts, _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    guard var start = request.place(first, end).map({ UInt64($0) }) else { return }
    // Whole pageblocks from..<to are in the sum; both only fall.
    var to = (start + count) >> 9
    var from = to
    var whole = RunContents()
    while true {
      let (wholeFrom, wholeTo) = ((start + 511) >> 9, (start + count) >> 9)
      while to > max(wholeTo, wholeFrom) {
        to -= 1
        if to >= from { whole -= contents(ofPageblock: to) } else { from = to }
      }
      while from > wholeFrom && from > 0 {
        from -= 1
        whole += contents(ofPageblock: from)
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
      starts.offer(CandidateStart(start: start, low: first, high: end, price: pricing.price(inside)))
      guard start + count > 512, let next = request.place(first, start + count - 512) else { return }
      start = UInt64(next)
    }
  }

  /// Whether the frames that are weighed may have fixed ones among them.
  private enum FixedFrames { case some, none }

  /// What frames `first` to `end` of one pageblock have in them if all of its frames were alike, or all that aren't fixed.
  private func share(_ first: UInt64, _ end: UInt64, _ fixed: FixedFrames) -> RunContents {
    var whole = contents(ofPageblock: first >> 9)
    guard fixed == .none else { return whole.share(end - first, of: 512) }
    let among = max(1, 512 - min(511, whole.fixed))
    whole.fixed = 0
    return whole.share(end - first, of: among)
  }

  /// Weighs places in all memory that isn't kept for good.
  private func offerSpans(
    _ request: RunRequest, _ excluding: ExcludedRuns, _ starts: inout CandidateStarts, _ steps: inout UInt64
  ) {
    for i in stride(from: state.pointee.spanCount - 1, through: 0, by: -1) {
      let span = Span(
        first: max(state.pointee.spans[i].first, request.low),
        end: min(state.pointee.spans[i].end, request.high))
      guard span.first < span.end else { continue }
      for k in 0...4 {
        guard let part = part(k, span, excluding) else { continue }
        if request.isOfPageblocks {
          searchPageblocks(request, part, .some, PagesInTheWay(), &starts, &steps)
        } else {
          offer(request, UInt64(part.first), UInt64(part.end), .some, PagesInTheWay(), &starts, &steps)
        }
      }
    }
  }

  /// Adds what frames `first` to `end` of one pageblock have in them: a whole pageblock by its counts, where these say it all,
  /// else frame by frame.
  func weigh<Kinds: DirtyPageKinds>(
    _ first: UInt64, _ end: UInt64, _ kinds: Kinds, into contents: inout RunContents
  ) {
    let pageblock = pageblockUnchecked(UInt32(first))
    let snapshot = pageblock.snapshot
    guard let records = records(first) else {
      // All free, all taken a moment ago, or all as at boot.
      if snapshot.hasFixed {
        contents.fixed &+= end - first
      } else if snapshot.movable > 0 {
        contents.claimed &+= end - first
      } else {
        contents.free &+= end - first
      }
      return
    }
    // The dirty pages of a pageblock with fixed frames may be wired ones.
    if end - first == 512 && !snapshot.hasFixed {
      let counts = pageblock.contents(snapshot)
      if (!kinds.tellsDirtyPagesApart || counts.dirty == 0) && isQuiet(records) { return contents += counts }
    }
    for i in 0..<(end - first) {
      contents.add(kind(records + Int(i) &* 32, FrameNumber(UInt32(first + i)), kinds))
    }
  }

  @inline(always) private func kind<Kinds: DirtyPageKinds>(
    _ record: UnsafeMutableRawPointer, _ frame: FrameNumber, _ kinds: Kinds
  ) -> FrameKind {
    let snapshot = FrameRecordPointer(record).snapshot
    if snapshot.isFree { return .free }
    if snapshot.isIdlePage {
      if snapshot.dirty == 0 { return .clean }
      if !kinds.tellsDirtyPagesApart { return .activeForSwap }
      switch (snapshot.isActive, kinds.isForDevice(frame)) {
      case (true, false): return .activeForSwap
      case (false, false): return .inactiveForSwap
      case (true, true): return .activeForDevice
      case (false, true): return .inactiveForDevice
      }
    }
    return snapshot.isMovable ? .claimed : snapshot.isCaptured ? .captured : .fixed
  }

  /// The cheapest start, after a look at the frames of each start that counts say may be it.
  private func settle<Pricing: RunPricing>(
    _ request: RunRequest, _ starts: CandidateStarts, _ pricing: Pricing, _ steps: inout UInt64
  ) -> PricedStart {
    var best = PricedStart(start: starts.list[0].start)
    let count = UInt64(request.count)
    for i in 0..<starts.count {
      let candidate = starts.list[i]
      if request.isOfPageblocks {
        // Counts know all but who is busy.
        if !(candidate.price < best.price) { break }
        let isKnown = !pricing.tellsDirtyPagesApart && isQuiet(candidate.start, request.count)
        let exact =
          isKnown
          ? candidate.price : pricing.price(contents(candidate.start, candidate.start + count, pricing))
        steps += count / 16
        if exact < best.price { best = PricedStart(start: candidate.start, price: exact) }
      } else if !isNear(candidate, starts, i) {
        refine(request, candidate, pricing, &best, &steps)
      }
    }
    return best
  }

  /// Whether one of the first `count` starts was looked at within reach of this one.
  private func isNear(_ candidate: CandidateStart, _ starts: CandidateStarts, _ count: Int) -> Bool {
    for i in 0..<count {
      let other = starts.list[i]
      let distance =
        candidate.start > other.start ? candidate.start - other.start : other.start - candidate.start
      if other.low == candidate.low && distance <= 512 { return true }
    }
    return false
  }

  /// Whether no frame of a run of whole pageblocks is claimed, so that the counts say all. Runs of more than 8
  /// pageblocks are not looked at.
  private func isQuiet(_ start: UInt64, _ count: UInt32) -> Bool {
    guard count <= 8 * Pageblock.frames else { return true }
    for pageblock in 0..<UInt64(count >> Pageblock.shift) {
      if let records = records(start + pageblock << 9), !isQuiet(records) { return false }
    }
    return true
  }

  /// Whether no frame of a pageblock is claimed, by its records.
  @inline(always) private func isQuiet(_ records: UnsafeMutableRawPointer) -> Bool {
    var busyWord: UInt32 = 0
    var record = records
    let end = records + 512 * 32
    while record < end {
      busyWord |= FrameRecordPointer(record).busyAtomic.pointee.load(ordering: .relaxed)
      record += 32
    }
    return busyWord & 0x7fff_ffff == 0
  }

  /// The cheapest start within a pageblock's length of the start's, frame by frame.
  private func refine<Pricing: RunPricing>(
    _ request: RunRequest, _ candidate: CandidateStart, _ pricing: Pricing, _ best: inout PricedStart,
    _ steps: inout UInt64
  ) {
    let count = UInt64(request.count)
    var start = request.mayBeginInside ? min(candidate.start + 511, candidate.high - count) : candidate.start
    let bottom = max(candidate.low, candidate.start > 511 ? candidate.start - 511 : 0)
    // The window at the top: frames that will leave it by themselves, the others by the counts of pageblocks.
    var inside = RunContents()
    var at = start
    let end = start + count
    while at < end {
      let pageblockEnd = min(end, at | 511 + 1)
      if pageblockEnd - at == 512 && pageblockEnd + 1024 <= end {
        inside += contents(ofPageblock: at >> 9)
      } else {
        weigh(at, pageblockEnd, pricing, into: &inside)
      }
      at = pageblockEnd
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
      // As long as the frame that comes in and the one that leaves stay in their pageblocks.
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

  /// What frames `first` to `end` hold, all of them memory. Whole pageblocks without fixed frames by their counts.
  private func describe(_ first: UInt64, _ end: UInt64) -> RunCandidate {
    var (free, movable, dirty, unmovable): (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var at = first
    while at < end {
      let pageblockEnd = min(end, at | 511 + 1)
      let pageblock = pageblockUnchecked(UInt32(at))
      let snapshot = pageblock.snapshot
      if pageblockEnd - at == 512 && !snapshot.hasFixed {
        free += snapshot.free
        movable += snapshot.movable
        dirty += UInt64(pageblock.dirty.pointee.load(ordering: .relaxed))
      } else if let records = records(at) {
        for i in 0..<(pageblockEnd - at) {
          let frame = FrameRecordPointer(records + Int(i) &* 32).snapshot
          if frame.isFree {
            free += 1
          } else if frame.isMovable {
            movable += 1
            if frame.isDirty { dirty += 1 }
          } else {
            unmovable += 1
          }
        }
      } else if snapshot.hasFixed {
        unmovable += pageblockEnd - at
      } else if snapshot.movable > 0 {
        movable += pageblockEnd - at
      } else {
        free += pageblockEnd - at
      }
      at = pageblockEnd
    }
    return RunCandidate(
      run: FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first)), free: PageCount(free),
      movable: PageCount(movable), dirty: PageCount(dirty), unmovable: PageCount(unmovable))
  }
}
