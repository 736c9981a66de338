// The price of a run. A search adds up contents and asks a *pricing* for their price. The pricing belongs to the
// caller, who knows which pages it may move and write, and which it may wait for; the search knows nothing of that.

import MemoryPrimitives
import PhysicalMemory

/// The work that emptying one frame takes: the counts of `RunContents`.
enum FrameKind {
  case free, clean, activeForSwap, inactiveForSwap, activeForDevice, inactiveForDevice, zspage, claimed
  case captured, unmovable
}

/// The cost of a run. Obstacles to emptying it count first, then work, then dirty pages.
struct RunPrice: Equatable {
  /// Zero for a run that can be emptied.
  var obstacles: UInt64
  /// Pages to be moved or written, weighted.
  var work: UInt64
  /// Dirty pages: they decide between runs of the same work.
  var dirty: UInt64

  /// A price of these parts.
  @inline(always) init(obstacles: UInt64, work: UInt64, dirty: UInt64) {
    (self.obstacles, self.work, self.dirty) = (obstacles, work, dirty)
  }

  /// A price above that of any run.
  @inline(always) static var highest: Self { Self(obstacles: .max, work: .max, dirty: .max) }

  @inline(always) var isNothing: Bool { obstacles == 0 && work == 0 }

  @inline(always) static func < (a: Self, b: Self) -> Bool {
    if a.obstacles != b.obstacles { return a.obstacles < b.obstacles }
    return a.work != b.work ? a.work < b.work : a.dirty < b.dirty
  }
}

/// The way to count dirty pages. Passed down for one call.
protocol DirtyPageKinds {
  /// Whether dirty pages are counted by queue and device; if not, all count as active ones for swap.
  var distinguishesDirtyPages: Bool { get }
  /// Whether a dirty page is written to a device of its own. Called only where `distinguishesDirtyPages`.
  func isForDevice(_ frame: FrameNumber) -> Bool
}

/// The prices of a search. Passed down for one call.
protocol RunPricing: DirtyPageKinds {
  /// Returns the price of a run. Its work is never less than the number of its pages, unless there are obstacles.
  /// With more of any kind of frame, the obstacles are no fewer; and as long as there are none, the price is no lower.
  func price(_ contents: RunContents) -> RunPrice
  /// Whether another run may have fewer obstacles than one of this price, the best that counts have led to. Then the
  /// search reads every frame in its range.
  func varies(_ price: RunPrice) -> Bool
}

/// Each page in the way costs 1, a busy or held one 8; a clean one is preferred to a dirty one where that is the same.
struct PagesInTheWay: RunPricing {
  var distinguishesDirtyPages: Bool { false }
  func isForDevice(_ frame: FrameNumber) -> Bool { false }
  @inline(always) func price(_ contents: RunContents) -> RunPrice {
    RunPrice(
      obstacles: contents.unmovable &+ contents.captured, work: contents.pages &+ 8 &* contents.claimed,
      dirty: contents.dirty)
  }
  func varies(_ price: RunPrice) -> Bool { false }
}
