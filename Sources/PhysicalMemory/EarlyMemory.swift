// Whole pages of the map, before the buddy queues exist.
//
// Taken from the top down, so that what stays for good lies together at the end of memory; never below
// 1 MiB, never what the boot record, the image or a module occupies, and only below a ceiling (4 GiB)
// until all of memory can be reached. What is taken or occupied is a short sorted list of runs with a
// role each; `FrameAllocator` reads it when it opens, and from then on nothing is taken here. A run knows whether its
// pages were taken, as only those can be given back: anything else that is given is a bug, reported before a change.
//
// One processor, before anything else runs: no lock. A take costs a pass over the list.

import MemoryPrimitives

/// The supply of pages during boot: a handle.
public struct EarlyMemory {
  struct Taken {
    var first: UInt32
    var end: UInt32
    var role: FrameRole
    /// Whether it was taken from here, or was in use before.
    var origin: Origin
  }
  enum Origin: UInt8 { case taken, occupied }
  struct State {
    var machine: Machine
    var map: MemoryMap
    var ceiling: UInt32
    var isClosed = false
    var count = 0
    /// Ranges of the map above this index have no page left below the ceiling.
    var range: Int
    var pages: UInt64 = 0
  }
  let state: UnsafeMutablePointer<State>
  let taken: UnsafeMutablePointer<Taken>

  /// Runs with a role of their own that can be kept apart.
  static var capacity: Int { 250 }

  /// Bytes of storage that it needs, aligned to 16.
  public static var storage: ByteCount { ByteCount(headSize + capacity * MemoryLayout<Taken>.stride) }
  private static var headSize: Int { 128 }

  /// A supply over `map` that stays below `ceiling` until that is lifted. `machine` hears of bugs.
  public init(
    _ storage: UnsafeMutableRawPointer, machine: Machine, map: MemoryMap, ceiling: PhysicalAddress
  ) {
    precondition(MemoryLayout<State>.size <= Self.headSize)
    state = storage.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        machine: machine, map: map,
        ceiling: UInt32(min(UInt64(FrameNumber.limit), ceiling.rawValue >> Page.shift)), range: map.count - 1)
    )
    taken = (storage + Self.headSize).bindMemory(to: Taken.self, capacity: Self.capacity)
  }

  /// Marks every frame that `length` bytes from `base` on touch as occupied by `role`, inside the map
  /// or not. What another role occupies already keeps that role. Throws `noMemory` when the list has no place
  /// for all of it; then nothing is marked.
  public func occupy(
    _ base: PhysicalAddress, _ length: ByteCount, role: FrameRole
  ) throws(PhysicalMemoryError) {
    let limit = UInt64(FrameNumber.limit)
    guard length.rawValue > 0, base.rawValue >> Page.shift < limit else { return }
    let (sum, wraps) = base.rawValue.addingReportingOverflow(length.rawValue - 1)
    let first = UInt32(base.rawValue >> Page.shift)
    let end = UInt32(wraps ? limit : min(limit, sum >> Page.shift + 1))
    var count = state.pointee.count
    var at = first
    while let gap = nextGap(&at, end, role) {
      let joins = joins(position(gap.first), gap)
      count += 1 - (joins.lower ? 1 : 0) - (joins.upper ? 1 : 0)
      guard count <= Self.capacity else { throw .noMemory }
    }
    at = first
    while let gap = nextGap(&at, end, role) { _ = insert(position(gap.first), gap) }
  }

  /// The next frames from `at` up to `end` that nobody has, as a run for `role`; moves `at` behind them.
  private func nextGap(_ at: inout UInt32, _ end: UInt32, _ role: FrameRole) -> Taken? {
    while at < end {
      let i = position(at)
      let next = i < state.pointee.count ? taken[i].first : end
      if next > at {
        defer { at = min(end, next) }
        return Taken(first: at, end: min(end, next), role: role, origin: .occupied)
      }
      at = taken[i].end
    }
    return nil
  }

  /// `count` pages in a row with `role`, from as high as possible below the ceiling, or nil. The
  /// contents are unknown.
  public func take(_ count: PageCount, role: FrameRole = .boot) -> FrameRun? {
    take(count, role, below: state.pointee.ceiling)
  }

  /// Like `take`, but above the ceiling too: for memory that nobody touches before it is lifted.
  public func reserve(_ count: PageCount, role: FrameRole) -> FrameRun? {
    take(count, role, below: FrameNumber.limit)
  }

  /// Gives one page back that was taken. Any other is a bug of the caller: it is reported, and nothing changes.
  public func give(_ frame: FrameNumber) {
    let i = position(frame.rawValue)
    let isListed = i < state.pointee.count && taken[i].first <= frame.rawValue
    if state.pointee.isClosed {
      return report(.notAllocated, "a page was given to early memory, which has ended", frame)
    }
    guard isListed else { return report(.notAllocated, "early memory has not given this page out", frame) }
    guard taken[i].origin == .taken else {
      return report(.foreignPointer, "a page that early memory found occupied was given to it", frame)
    }
    let whole = taken[i]
    if whole.first < frame.rawValue && whole.end > frame.rawValue + 1 {
      // The middle of a run: it stays taken when there is no place for another run in the list.
      taken[i].end = frame.rawValue
      var rest = whole
      rest.first = frame.rawValue + 1
      if !insert(i + 1, rest) {
        taken[i].end = whole.end
        return
      }
    } else if whole.first < frame.rawValue {
      taken[i].end = frame.rawValue
    } else if whole.end > frame.rawValue + 1 {
      taken[i].first = frame.rawValue + 1
    } else {
      state.pointee.count -= 1
      for k in i..<state.pointee.count { taken[k] = taken[k + 1] }
    }
    state.pointee.pages -= 1
    state.pointee.range = state.pointee.map.count - 1
  }

  private func report(_ kind: FaultKind, _ what: StaticString, _ frame: FrameNumber) {
    state.pointee.machine.report(FaultReport(kind, what, UInt64(frame.rawValue), .frame))
  }

  /// From now on pages may lie anywhere: all of the map can be reached by the direct map.
  public func liftCeiling() {
    state.pointee.ceiling = FrameNumber.limit
    state.pointee.range = state.pointee.map.count - 1
  }

  /// Pages taken so far, occupied ranges not counted.
  public var pages: PageCount { PageCount(state.pointee.pages) }

  /// Single frames with the role `pageTable`, for the tables that replace the stub's.
  public var frameSource: FrameSource {
    FrameSource(
      UnsafeMutableRawPointer(state),
      take: { context in
        EarlyMemory(context!).take(.one, role: .pageTable)?.first.rawValue ?? FrameNumber.none.rawValue
      },
      give: { EarlyMemory($0!).give(FrameNumber($1)) })
  }

  // MARK: Inside

  init(_ context: UnsafeMutableRawPointer) {
    state = context.assumingMemoryBound(to: State.self)
    taken = (context + Self.headSize).assumingMemoryBound(to: Taken.self)
  }

  func close() { state.pointee.isClosed = true }

  /// The index of the first run that ends behind `frame`.
  func position(_ frame: UInt32) -> Int {
    var (low, high) = (0, state.pointee.count)
    while low < high {
      let middle = (low + high) / 2
      if taken[middle].end <= frame { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Whether a run that belongs before index `i` makes one with its neighbours there.
  private func joins(_ i: Int, _ run: Taken) -> (lower: Bool, upper: Bool) {
    (
      i > 0 && taken[i - 1].end == run.first && isAlike(taken[i - 1], run),
      i < state.pointee.count && taken[i].first == run.end && isAlike(taken[i], run)
    )
  }
  private func isAlike(_ a: Taken, _ b: Taken) -> Bool { a.role == b.role && a.origin == b.origin }

  /// Puts a run into the list before index `i`, joined with neighbours of its kind if it touches.
  private func insert(_ i: Int, _ run: Taken) -> Bool {
    let count = state.pointee.count
    let joins = joins(i, run)
    if joins.lower && joins.upper {
      taken[i - 1].end = taken[i].end
      state.pointee.count -= 1
      for k in i..<count - 1 { taken[k] = taken[k + 1] }
    } else if joins.lower {
      taken[i - 1].end = run.end
    } else if joins.upper {
      taken[i].first = run.first
    } else {
      guard count < Self.capacity else { return false }
      for k in stride(from: count, to: i, by: -1) { taken[k] = taken[k - 1] }
      taken[i] = run
      state.pointee.count += 1
    }
    return true
  }

  private func take(_ pages: PageCount, _ role: FrameRole, below ceiling: UInt32) -> FrameRun? {
    guard !state.pointee.isClosed, pages.rawValue > 0, pages.rawValue < UInt64(FrameNumber.limit) else {
      return nil
    }
    let count = UInt32(pages.rawValue)
    let map = state.pointee.map
    let isHinted = pages == .one && ceiling == state.pointee.ceiling
    var r = isHinted ? state.pointee.range : map.count - 1
    while r >= 0 {
      let run = map[r]
      let first = max(run.first.rawValue, 256)  // 1 MiB
      var end = min(run.end.rawValue, ceiling)
      while end > first && end - first >= count {
        // The highest taken run that begins below `end`.
        var i = position(end - 1)
        if i == state.pointee.count || taken[i].first >= end { i -= 1 }
        let lowest = i >= 0 ? max(first, taken[i].end) : first
        if end > lowest && end - lowest >= count {
          let start = end - count
          guard insert(position(start), Taken(first: start, end: end, role: role, origin: .taken)) else {
            return nil
          }
          state.pointee.pages += pages.rawValue
          if isHinted { state.pointee.range = r }
          return FrameRun(first: FrameNumber(start), count: pages)
        }
        guard i >= 0, taken[i].first > first else { break }
        end = min(end, taken[i].first)
      }
      r -= 1
    }
    return nil
  }
}
