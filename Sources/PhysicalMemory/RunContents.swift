// What lies in a run, counted, and what a search makes of it.
//
// A search adds up contents and asks a *pricing* what they cost. The pricing belongs to the caller, who knows what it
// may move, write and wait for; the search knows nothing of that.

import MemoryPrimitives

/// The frames of a run by what emptying it takes.
public struct RunContents: Equatable, Sendable {
  /// Free frames and cached pages.
  public internal(set) var free: UInt64 = 0
  /// Pages that are not dirty.
  public internal(set) var clean: UInt64 = 0
  /// Dirty pages that are written to swap: those in the active queue, and the others.
  public internal(set) var activeForSwap: UInt64 = 0
  public internal(set) var inactiveForSwap: UInt64 = 0
  /// Dirty pages that are written to a device of their own.
  public internal(set) var activeForDevice: UInt64 = 0
  public internal(set) var inactiveForDevice: UInt64 = 0
  /// Pages that are held or busy at this moment.
  public internal(set) var claimed: UInt64 = 0
  /// Frames that an isolation has captured.
  public internal(set) var captured: UInt64 = 0
  /// Frames that can't be emptied.
  public internal(set) var fixed: UInt64 = 0

  public init() {}

  /// Dirty pages.
  @inline(always) public var dirty: UInt64 {
    activeForSwap &+ inactiveForSwap &+ activeForDevice &+ inactiveForDevice
  }
  /// Pages that could be moved, written or dropped.
  @inline(always) public var pages: UInt64 { clean &+ dirty }

  @inline(always) static func += (a: inout Self, b: Self) {
    a.free &+= b.free
    a.clean &+= b.clean
    a.activeForSwap &+= b.activeForSwap
    a.inactiveForSwap &+= b.inactiveForSwap
    a.activeForDevice &+= b.activeForDevice
    a.inactiveForDevice &+= b.inactiveForDevice
    a.claimed &+= b.claimed
    a.captured &+= b.captured
    a.fixed &+= b.fixed
  }

  /// The counts may have changed since they were added.
  @inline(always) static func -= (a: inout Self, b: Self) {
    func take(_ count: inout UInt64, _ less: UInt64) { count = count > less ? count &- less : 0 }
    take(&a.free, b.free)
    take(&a.clean, b.clean)
    take(&a.activeForSwap, b.activeForSwap)
    take(&a.inactiveForSwap, b.inactiveForSwap)
    take(&a.activeForDevice, b.activeForDevice)
    take(&a.inactiveForDevice, b.inactiveForDevice)
    take(&a.claimed, b.claimed)
    take(&a.captured, b.captured)
    take(&a.fixed, b.fixed)
  }

  @inline(always) mutating func add(_ kind: FrameKind) {
    switch kind {
    case .free: free &+= 1
    case .clean: clean &+= 1
    case .activeForSwap: activeForSwap &+= 1
    case .inactiveForSwap: inactiveForSwap &+= 1
    case .activeForDevice: activeForDevice &+= 1
    case .inactiveForDevice: inactiveForDevice &+= 1
    case .claimed: claimed &+= 1
    case .captured: captured &+= 1
    case .fixed: fixed &+= 1
    }
  }

  /// The frame may be of another kind than when it was added.
  @inline(always) mutating func remove(_ kind: FrameKind) {
    func take(_ count: inout UInt64) { if count > 0 { count &-= 1 } }
    switch kind {
    case .free: take(&free)
    case .clean: take(&clean)
    case .activeForSwap: take(&activeForSwap)
    case .inactiveForSwap: take(&inactiveForSwap)
    case .activeForDevice: take(&activeForDevice)
    case .inactiveForDevice: take(&inactiveForDevice)
    case .claimed: take(&claimed)
    case .captured: take(&captured)
    case .fixed: take(&fixed)
    }
  }

  /// The least that each run has on the way of one with these contents, which gains and loses as many frames one by
  /// one. It loses no more of a kind than there are in `lost`, and no more than it gains of others.
  func least(gaining gained: Self, losing lost: Self, of frames: UInt64) -> Self {
    func least(_ count: UInt64, _ gained: UInt64, _ lost: UInt64) -> UInt64 {
      let less = min(lost, frames > gained ? frames &- gained : 0)
      return count > less ? count &- less : 0
    }
    var run = Self()
    run.free = least(free, gained.free, lost.free)
    run.clean = least(clean, gained.clean, lost.clean)
    run.activeForSwap = least(activeForSwap, gained.activeForSwap, lost.activeForSwap)
    run.inactiveForSwap = least(inactiveForSwap, gained.inactiveForSwap, lost.inactiveForSwap)
    run.activeForDevice = least(activeForDevice, gained.activeForDevice, lost.activeForDevice)
    run.inactiveForDevice = least(inactiveForDevice, gained.inactiveForDevice, lost.inactiveForDevice)
    run.claimed = least(claimed, gained.claimed, lost.claimed)
    run.captured = least(captured, gained.captured, lost.captured)
    run.fixed = least(fixed, gained.fixed, lost.fixed)
    return run
  }

  /// The share of `part` frames of `whole`, as if all were alike; fixed frames are rounded up.
  @inline(always) func share(_ part: UInt64, of whole: UInt64) -> Self {
    var share = Self()
    share.clean = clean &* part / whole
    share.activeForSwap = activeForSwap &* part / whole
    share.fixed = (fixed &* part &+ whole &- 1) / whole
    let used = share.clean &+ share.activeForSwap &+ share.fixed
    share.free = part > used ? part &- used : 0
    return share
  }
}

/// What emptying one frame takes: the counts of `RunContents`.
enum FrameKind {
  case free, clean, activeForSwap, inactiveForSwap, activeForDevice, inactiveForDevice, claimed, captured
  case fixed
}

/// What a run costs. What keeps it from being emptied counts first, then work, then dirty pages.
public struct RunPrice: Equatable, Sendable {
  /// Zero for a run that can be emptied.
  public var obstacles: UInt64
  public var work: UInt64
  public var dirty: UInt64

  @inline(always) public init(obstacles: UInt64, work: UInt64, dirty: UInt64) {
    (self.obstacles, self.work, self.dirty) = (obstacles, work, dirty)
  }

  /// More than any run costs.
  @inline(always) static var highest: Self { Self(obstacles: .max, work: .max, dirty: .max) }

  @inline(always) var isNothing: Bool { obstacles == 0 && work == 0 }

  @inline(always) static func < (a: Self, b: Self) -> Bool {
    if a.obstacles != b.obstacles { return a.obstacles < b.obstacles }
    return a.work != b.work ? a.work < b.work : a.dirty < b.dirty
  }
}

/// How dirty pages are counted. Passed down for one call.
public protocol DirtyPageKinds {
  /// Whether dirty pages are told apart by queue and device; if not, all count as active ones for swap.
  var tellsDirtyPagesApart: Bool { get }
  /// Whether a dirty page is written to a device of its own. Asked only where dirty pages are told apart.
  func isForDevice(_ frame: FrameNumber) -> Bool
}

/// How a search values runs. Passed down for one call.
public protocol RunPricing: DirtyPageKinds {
  /// Never less work than there are pages in the way, unless there are obstacles. With more of any kind of frame, the
  /// obstacles are no fewer; and as long as there are none, the price is no lower.
  func price(_ contents: RunContents) -> RunPrice
  /// Whether another run may have fewer obstacles than one of this price, the best that counts have led to. Then the
  /// search looks at every frame in its range.
  func varies(_ price: RunPrice) -> Bool
}

/// Each page in the way costs 1, a busy or held one 8; a clean one is preferred to a dirty one where that is the same.
struct PagesInTheWay: RunPricing {
  var tellsDirtyPagesApart: Bool { false }
  func isForDevice(_ frame: FrameNumber) -> Bool { false }
  @inline(always) func price(_ contents: RunContents) -> RunPrice {
    RunPrice(
      obstacles: contents.fixed &+ contents.captured, work: contents.pages &+ 8 &* contents.claimed,
      dirty: contents.dirty)
  }
  func varies(_ price: RunPrice) -> Bool { false }
}
