// The search for runs of whole pageblocks, by the counts of pageblocks alone.

import MemoryPrimitives
import PhysicalMemory

extension CandidateSearch {
  /// Slides a window of pageblocks over `range`, from the top down, and offers each run by its counts.
  mutating func searchPageblocks(in range: FrameSpan, obstacles: Obstacles) {
    let pageblocks = Pageblock.number(of: count)
    let mask = Pageblock.number(of: request.alignment) - 1
    let first = Pageblock.number(from: UInt64(range.first))
    var at = Pageblock.number(of: UInt64(range.end))
    // Pageblocks from `at` up that may all be in a run; the contents are those of the lowest `pageblocks` of them.
    var usable: UInt64 = 0
    var contents = RunContents()
    let unwanted = obstacles == .forbidden ? PageblockSnapshot.obstacleBits : 0
    while at > first {
      let frame = UInt32(Pageblock.start(at) - 1)
      guard let section = table.section(of: frame) else {
        at = max(first, Pageblock.number(from: table.holeStart(frame)))
        usable = 0
        contents = RunContents()
        steps += 1
        continue
      }
      let bottom = max(first, Pageblock.number(of: UInt64(section.first)))
      var pageblock = table.pageblock(frame)
      steps += at - bottom
      if pageblocks == 1 {
        searchSinglePageblocks(pageblock, from: at, to: bottom, unwanted: unwanted)
        at = bottom
        continue
      }
      while at > bottom {
        at -= 1
        defer { pageblock = pageblock.below }
        let snapshot = pageblock.snapshot
        if snapshot.rawValue & unwanted != 0 {
          usable = 0
          contents = RunContents()
          continue
        }
        usable += 1
        contents += pageblock.contents(snapshot)
        if usable > pageblocks { contents -= table.contents(ofPageblock: at + pageblocks) }
        let start = Pageblock.start(at)
        if usable >= pageblocks && at & mask == 0 && request.keepsBoundary(start) {
          starts.offer(
            CandidateStart(start: start, low: start, high: start + count, price: pricing.price(contents)))
        }
      }
      if starts.list[0].price.isNothing { return }
    }
  }

  /// Offers runs of one pageblock: `pageblock` is the one below `top`. Most are rejected by their count of pages.
  private mutating func searchSinglePageblocks(
    _ pageblock: PageblockPointer, from top: UInt64, to bottom: UInt64, unwanted: UInt64
  ) {
    let mask = Pageblock.number(of: request.alignment) - 1
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
        let start = Pageblock.start(at)
        starts.offer(
          CandidateStart(start: start, low: start, high: start + Pageblock.length, price: price))
        worst = starts.list[3].price
        if price.isNothing { return }
      }
    }
  }
}
