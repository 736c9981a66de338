// The search for the cheapest run: it collects starts by the counts of pageblocks, then reads the frames of the best.

import MemoryPrimitives
import PhysicalMemory

/// A start for a run, weighed by counts, and the frames that the run may be shifted in.
struct CandidateStart {
  var start: UInt64 = 0
  var low: UInt64 = 0
  var high: UInt64 = 0
  var price = RunPrice.highest
}

/// The four cheapest starts, cheapest first.
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

/// One search: the request, the prices, and the starts found so far.
struct CandidateSearch<Pricing: RunPricing> {
  let request: RunRequest
  let table: FrameTable
  let pricing: Pricing
  var starts = CandidateStarts()
  var steps: UInt64 = 0

  /// Whether runs with unmovable frames are weighed too.
  enum Obstacles { case allowed, forbidden }

  /// Pageblocks with unmovable frames whose records a first search reads.
  private static var pageblockBudget: Int { 16 }

  init(_ request: RunRequest, _ table: FrameTable, _ pricing: Pricing) {
    (self.request, self.table, self.pricing) = (request, table, pricing)
  }

  /// Frames of a run.
  var count: UInt64 { UInt64(request.count) }
  /// The request's range, as far as there is memory.
  private var range: FrameSpan { FrameSpan(first: request.low, end: min(request.high, table.end)) }

  /// The cheapest start; nil when every run has unmovable frames.
  mutating func candidate(_ excluding: ExcludedRuns) -> PricedStart? {
    for i in 0..<ExcludedRuns.parts {
      guard let part = excluding.part(i, of: range) else { continue }
      if request.isOfPageblocks {
        searchPageblocks(in: part, obstacles: .forbidden)
      } else {
        searchExtents(in: part, pageblockBudget: Self.pageblockBudget)
      }
    }
    if starts.count == 0 && !request.isOfPageblocks {
      for i in 0..<ExcludedRuns.parts {
        if let part = excluding.part(i, of: range) { searchExtents(in: part, pageblockBudget: .max) }
      }
    }
    guard starts.count > 0 else { return nil }
    var best = cheapestStart()
    // The inner pageblocks of long runs were weighed by their counts.
    if request.count >= 3 * Pageblock.frames { best.price = price(best.start) }
    if best.price.obstacles > 0 && pricing.varies(best.price) {
      for i in 0..<ExcludedRuns.parts {
        if let part = excluding.part(i, of: range) { searchFrames(in: part, &best) }
      }
    }
    return best
  }

  /// The start of a run with the fewest obstacles in all memory that is not permanent; nil when no run fits there.
  mutating func leastBlocked(in physical: FrameAllocator, _ excluding: ExcludedRuns) -> UInt64? {
    weighSpans(of: physical, excluding)
    if starts.count == 0 && excluding.next > 0 { weighSpans(of: physical, ExcludedRuns()) }
    return starts.count > 0 ? cheapestStart().start : nil
  }

  /// The price of the run at `start`, frame by frame.
  func price(_ start: UInt64) -> RunPrice {
    pricing.price(table.contents(from: start, to: start + count, by: pricing))
  }

  // MARK: Extents

  private mutating func searchExtents(in range: FrameSpan, pageblockBudget: Int) {
    var extents = ExtentSearch(request, table)
    extents.pageblockBudget = pageblockBudget
    extents.forEachExtent(from: UInt64(range.first), to: UInt64(range.end)) { first, end in
      weighStarts(from: first, to: end, obstacles: .forbidden)
      return count
    }
    steps += extents.steps
  }

  /// Weighs starts in all memory that is not permanent.
  private mutating func weighSpans(of physical: FrameAllocator, _ excluding: ExcludedRuns) {
    for i in stride(from: physical.spanCount - 1, through: 0, by: -1) {
      let whole = physical.span(i)
      let span = FrameSpan(first: max(whole.first, request.low), end: min(whole.end, request.high))
      guard span.first < span.end else { continue }
      for k in 0..<ExcludedRuns.parts {
        guard let part = excluding.part(k, of: span) else { continue }
        if request.isOfPageblocks {
          searchPageblocks(in: part, obstacles: .allowed)
        } else {
          weighStarts(from: UInt64(part.first), to: UInt64(part.end), obstacles: .allowed)
        }
      }
    }
  }

  /// Weighs starts in frames `first` to `end`, about a pageblock apart, by the counts of their pageblocks.
  private mutating func weighStarts(from first: UInt64, to end: UInt64, obstacles: Obstacles) {
    let frames = Pageblock.length
    guard var start = request.highestStart(first, end).map({ UInt64($0) }) else { return }
    // Whole pageblocks from..<to are in the sum; both only fall.
    var to = Pageblock.number(of: start + count)
    var from = to
    var whole = RunContents()
    while true {
      let (wholeFrom, wholeTo) = (Pageblock.number(from: start), Pageblock.number(of: start + count))
      while to > max(wholeTo, wholeFrom) {
        to -= 1
        if to >= from { whole -= table.contents(ofPageblock: to) } else { from = to }
      }
      while from > wholeFrom && from > 0 {
        from -= 1
        whole += table.contents(ofPageblock: from)
        steps += 1
      }
      var inside = whole
      if wholeFrom > wholeTo {
        inside = share(from: start, to: start + count, obstacles)
      } else {
        let (wholeFirst, wholeEnd) = (Pageblock.start(wholeFrom), Pageblock.start(wholeTo))
        if start < wholeFirst { inside += share(from: start, to: wholeFirst, obstacles) }
        if wholeEnd < start + count { inside += share(from: wholeEnd, to: start + count, obstacles) }
      }
      steps += 1
      starts.offer(CandidateStart(start: start, low: first, high: end, price: pricing.price(inside)))
      guard start + count > frames, let next = request.highestStart(first, start + count - frames) else {
        return
      }
      start = UInt64(next)
    }
  }

  /// The contents of frames `first` to `end` of one pageblock if all of its frames were alike, or all without obstacles.
  private func share(from first: UInt64, to end: UInt64, _ obstacles: Obstacles) -> RunContents {
    let frames = Pageblock.length
    var whole = table.contents(ofPageblock: Pageblock.number(of: first))
    guard obstacles == .forbidden else { return whole.share(end - first, of: frames) }
    let among = max(1, frames - min(frames - 1, whole.unmovable))
    whole.unmovable = 0
    return whole.share(end - first, of: among)
  }

  // MARK: The cheapest start

  /// The cheapest start, after a read of the frames of each start that counts say may be it.
  private mutating func cheapestStart() -> PricedStart {
    var best = PricedStart(start: starts.list[0].start)
    for i in 0..<starts.count {
      let candidate = starts.list[i]
      if request.isOfPageblocks {
        // Counts miss only pages that are busy or held.
        if !(candidate.price < best.price) { break }
        let isKnown =
          !pricing.distinguishesDirtyPages && table.isQuiet(from: candidate.start, count: request.count)
        let exact = isKnown ? candidate.price : price(candidate.start)
        steps += count / 16
        if exact < best.price { best = PricedStart(start: candidate.start, price: exact) }
      } else if !isNear(candidate, i) {
        refine(candidate, &best)
      }
    }
    return best
  }

  /// Whether one of the first `count` starts was refined within reach of this one.
  private func isNear(_ candidate: CandidateStart, _ count: Int) -> Bool {
    for i in 0..<count {
      let other = starts.list[i]
      let distance =
        candidate.start > other.start ? candidate.start - other.start : other.start - candidate.start
      if other.low == candidate.low && distance <= Pageblock.length { return true }
    }
    return false
  }

  /// Offers the run at `start` with these contents as the best.
  @inline(always)
  private func offer(_ start: UInt64, _ inside: RunContents, _ best: inout PricedStart) {
    if best.price.obstacles == 0 && inside.pages > best.price.work { return }
    let price = pricing.price(inside)
    if price < best.price && request.highestStart(start, start + count) == UInt32(start) {
      best = PricedStart(start: start, price: price)
    }
  }

  /// Finds the cheapest start within a pageblock's length of the candidate's, frame by frame.
  private mutating func refine(_ candidate: CandidateStart, _ best: inout PricedStart) {
    let reach = Pageblock.length - 1
    var start =
      request.mayBeginInside ? min(candidate.start + reach, candidate.high - count) : candidate.start
    let bottom = max(candidate.low, candidate.start > reach ? candidate.start - reach : 0)
    var inside = contentsAtTop(start)
    steps += count / Pageblock.length + (start - bottom) / 4
    if !request.mayBeginInside { return offer(start, inside, &best) }
    while true {
      offer(start, inside, &best)
      if start == bottom { return }
      // As long as the frame that comes in and the one that leaves stay in their pageblocks.
      var rest = min(start - bottom, (start - 1) & reach + 1, (start - 1 + count) & reach + 1)
      guard var entering = table.validRecords(start - 1), var leaving = table.validRecords(start - 1 + count)
      else {
        start -= 1
        table.weigh(start, start + 1, pricing, into: &inside)
        var gone = RunContents()
        table.weigh(start + count, start + count + 1, pricing, into: &gone)
        inside -= gone
        continue
      }
      while true {
        start -= 1
        rest -= 1
        inside.add(table.kind(entering, FrameNumber(UInt32(start)), pricing))
        inside.remove(table.kind(leaving, FrameNumber(UInt32(start + count)), pricing))
        if rest == 0 { break }
        offer(start, inside, &best)
        entering = entering.before(1)
        leaving = leaving.before(1)
      }
    }
  }

  /// The contents of the window at its highest start: frames that will leave it by themselves, the others by the counts of
  /// pageblocks.
  private func contentsAtTop(_ start: UInt64) -> RunContents {
    var inside = RunContents()
    var at = start
    let end = start + count
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      if pageblockEnd - at == Pageblock.length && pageblockEnd + 2 * Pageblock.length <= end {
        inside += table.contents(ofPageblock: Pageblock.number(of: at))
      } else {
        table.weigh(at, pageblockEnd, pricing, into: &inside)
      }
      at = pageblockEnd
    }
    return inside
  }
}
