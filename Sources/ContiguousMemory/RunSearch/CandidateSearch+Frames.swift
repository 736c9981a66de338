// The search that reads every frame, for requests that few runs are affordable for.

import MemoryPrimitives
import PhysicalMemory

extension CandidateSearch {
  /// Frames that are read after an affordable run was found, for a cheaper one.
  private static var framesAfterTheFirst: UInt64 { 1 << 16 }

  /// Weighs each run in `range`, but for those that a lower bound rules out.
  mutating func searchFrames(in range: FrameSpan, _ best: inout PricedStart) {
    var read: UInt64 = 0
    var extents = ExtentSearch(request, table)
    extents.forEachExtent(from: UInt64(range.first), to: UInt64(range.end)) { first, end in
      slide(from: first, to: end, &best)
      read += end - first
      let isEnough = best.price.obstacles == 0 && read > Self.framesAfterTheFirst
      return isEnough ? .max : count
    }
    steps += extents.steps
  }

  /// Weighs the runs in frames `first` to `end`, which have no unmovable one among them, from the top down. The contents
  /// of the frames that a run loses and gains on its way down bound the contents of any run on that way. If even the bound
  /// does not cost less than the best, all of them are passed over.
  private mutating func slide(from first: UInt64, to end: UInt64, _ best: inout PricedStart) {
    guard var start = request.highestStart(first, end).map({ UInt64($0) }) else { return }
    var inside = contents(start, start + count)
    steps += count / 8
    var reach = count
    while true {
      steps += 1
      let price = pricing.price(inside)
      if price < best.price { best = PricedStart(start: start, price: price) }
      passOver(&start, down: first, &inside, &reach, best: best.price)
      guard let next = request.highestStart(first, start + count - 1).map({ UInt64($0) }) else { return }
      if next + count <= start {
        inside = contents(next, next + count)
      } else {
        inside += contents(next, start)
        inside -= contents(next + count, start + count)
      }
      steps += min(count, start - next) / 4
      start = next
    }
  }

  /// Moves the window down past runs that can't beat the best, `reach` frames at a time.
  private mutating func passOver(
    _ start: inout UInt64, down first: UInt64, _ inside: inout RunContents, _ reach: inout UInt64,
    best: RunPrice
  ) {
    while true {
      let way = min(reach, start - first)
      if way == 0 {
        reach = 1
        return
      }
      // Down to a whole pageblock, if there is one.
      let lower =
        way > Pageblock.length ? Pageblock.start(Pageblock.number(from: start - way)) : start - way
      let gained = contents(lower, start)
      let lost = contents(lower + count, start + count)
      steps += 1 + way / 4
      let least = pricing.price(inside.least(gaining: gained, losing: lost, of: start - lower))
      if mayBeat(best, least) {
        reach /= 4
        return
      }
      inside += gained
      inside -= lost
      start = lower
      reach = min(count, reach * 2)
    }
  }

  /// Whether a run that costs no less than `least` may be the better one. Of runs that are not affordable, one with the
  /// fewest frames missing is as good as any.
  private func mayBeat(_ best: RunPrice, _ least: RunPrice) -> Bool {
    best.obstacles > 0 ? least.obstacles < best.obstacles : least < best
  }

  private func contents(_ first: UInt64, _ end: UInt64) -> RunContents {
    table.contents(from: first, to: end, by: pricing)
  }
}
