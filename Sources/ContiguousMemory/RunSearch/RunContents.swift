// The contents of a run: its frames, counted by the work that emptying them takes.

import MemoryPrimitives
import PhysicalMemory

/// The frames of a run, counted by the work that emptying them takes.
struct RunContents: Equatable {
  /// Free frames and cached pages.
  var free: UInt64 = 0
  /// Pages that are not dirty.
  var clean: UInt64 = 0
  /// Dirty pages in the active queue that are written to swap.
  var activeForSwap: UInt64 = 0
  /// Dirty pages outside of the active queue that are written to swap.
  var inactiveForSwap: UInt64 = 0
  /// Dirty pages in the active queue that are written to a device of their own.
  var activeForDevice: UInt64 = 0
  /// Dirty pages outside of the active queue that are written to a device of their own.
  var inactiveForDevice: UInt64 = 0
  /// Pages of zspages: they can be moved, and nothing else.
  var zspages: UInt64 = 0
  /// Pages that are held or busy at this moment.
  var claimed: UInt64 = 0
  /// Frames that an isolation has captured.
  var captured: UInt64 = 0
  /// Unmovable frames: they can't be emptied.
  var unmovable: UInt64 = 0

  /// No frames.
  init() {}

  /// Dirty pages.
  @inline(always) var dirty: UInt64 {
    activeForSwap &+ inactiveForSwap &+ activeForDevice &+ inactiveForDevice
  }
  /// Pages that could be moved, written or dropped.
  @inline(always) var pages: UInt64 { clean &+ dirty &+ zspages }

  @inline(always) static func += (a: inout Self, b: Self) {
    a.free &+= b.free
    a.clean &+= b.clean
    a.activeForSwap &+= b.activeForSwap
    a.inactiveForSwap &+= b.inactiveForSwap
    a.activeForDevice &+= b.activeForDevice
    a.inactiveForDevice &+= b.inactiveForDevice
    a.zspages &+= b.zspages
    a.claimed &+= b.claimed
    a.captured &+= b.captured
    a.unmovable &+= b.unmovable
  }

  /// The counts may have changed since they were added.
  @inline(always) static func -= (a: inout Self, b: Self) {
    func subtract(_ count: inout UInt64, _ less: UInt64) { count = count > less ? count &- less : 0 }
    subtract(&a.free, b.free)
    subtract(&a.clean, b.clean)
    subtract(&a.activeForSwap, b.activeForSwap)
    subtract(&a.inactiveForSwap, b.inactiveForSwap)
    subtract(&a.activeForDevice, b.activeForDevice)
    subtract(&a.inactiveForDevice, b.inactiveForDevice)
    subtract(&a.zspages, b.zspages)
    subtract(&a.claimed, b.claimed)
    subtract(&a.captured, b.captured)
    subtract(&a.unmovable, b.unmovable)
  }

  @inline(always) mutating func add(_ kind: FrameKind) {
    switch kind {
    case .free: free &+= 1
    case .clean: clean &+= 1
    case .activeForSwap: activeForSwap &+= 1
    case .inactiveForSwap: inactiveForSwap &+= 1
    case .activeForDevice: activeForDevice &+= 1
    case .inactiveForDevice: inactiveForDevice &+= 1
    case .zspage: zspages &+= 1
    case .claimed: claimed &+= 1
    case .captured: captured &+= 1
    case .unmovable: unmovable &+= 1
    }
  }

  /// The frame may be of another kind than when it was added.
  @inline(always) mutating func remove(_ kind: FrameKind) {
    func decrement(_ count: inout UInt64) { if count > 0 { count &-= 1 } }
    switch kind {
    case .free: decrement(&free)
    case .clean: decrement(&clean)
    case .activeForSwap: decrement(&activeForSwap)
    case .inactiveForSwap: decrement(&inactiveForSwap)
    case .activeForDevice: decrement(&activeForDevice)
    case .inactiveForDevice: decrement(&inactiveForDevice)
    case .zspage: decrement(&zspages)
    case .claimed: decrement(&claimed)
    case .captured: decrement(&captured)
    case .unmovable: decrement(&unmovable)
    }
  }

  /// A lower bound of the contents of each run on the way of one with these contents, which gains and loses as many
  /// frames one by one. It loses no more of a kind than there are in `lost`, and no more than it gains of others.
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
    run.zspages = least(zspages, gained.zspages, lost.zspages)
    run.claimed = least(claimed, gained.claimed, lost.claimed)
    run.captured = least(captured, gained.captured, lost.captured)
    run.unmovable = least(unmovable, gained.unmovable, lost.unmovable)
    return run
  }

  /// The share of `part` frames of `whole`, as if all were alike; unmovable frames are rounded up.
  @inline(always) func share(_ part: UInt64, of whole: UInt64) -> Self {
    var share = Self()
    share.clean = clean &* part / whole
    share.activeForSwap = activeForSwap &* part / whole
    share.zspages = zspages &* part / whole
    share.unmovable = (unmovable &* part &+ whole &- 1) / whole
    let used = share.clean &+ share.activeForSwap &+ share.zspages &+ share.unmovable
    share.free = part > used ? part &- used : 0
    return share
  }
}
