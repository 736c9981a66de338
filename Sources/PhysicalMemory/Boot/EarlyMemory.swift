// Whole pages of the map, before the buddy queues exist.
//
// Pages are allocated from the top down, so that permanent pages lie together at the end of memory. They never lie
// below 1 MiB or in the boot record, the image or a module, and lie below a ceiling (4 GiB) until all of memory can be
// reached. A short sorted list of runs, with a role each, has all pages that are allocated or occupied.
// `FrameAllocator` reads it when it opens, and after that nothing is allocated here. A run knows whether its pages
// were allocated, because only those can be freed: any other free is a bug and reported before a change.
//
// One processor uses it, before anything else runs, so there is no lock. An allocation costs a pass over the list.

import MemoryPrimitives

/// The supply of pages during boot: a handle.
package struct EarlyMemory {
  struct ListedRun {
    var first: UInt32
    var end: UInt32
    var role: FrameRole
    /// Whether it was allocated here, or was in use before.
    var origin: Origin
    /// The owner that was stated; none where the role says it.
    var owner = FrameOwner.none
  }
  enum Origin: UInt8 { case allocated, occupied }
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
  let list: UnsafeMutablePointer<ListedRun>

  /// Runs with a role of their own that the list can hold.
  static var capacity: Int { 250 }

  /// Bytes of storage that it needs, aligned to 16.
  package static var storage: ByteCount { ByteCount(headSize + capacity * MemoryLayout<ListedRun>.stride) }
  private static var headSize: Int { 128 }
  /// The first frame that may be allocated: 1 MiB.
  private static var lowest: UInt32 { 256 }

  /// Supplies pages of `map` below `ceiling` until that is lifted. Reports bugs to `machine`.
  package init(
    _ storage: UnsafeMutableRawPointer, machine: Machine, map: MemoryMap, ceiling: PhysicalAddress
  ) {
    precondition(MemoryLayout<State>.size <= Self.headSize)
    state = storage.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        machine: machine, map: map,
        ceiling: UInt32(min(UInt64(FrameNumber.limit), ceiling.rawValue >> Page.shift)), range: map.count - 1)
    )
    list = (storage + Self.headSize).bindMemory(to: ListedRun.self, capacity: Self.capacity)
  }

  /// Marks every frame that `length` bytes from `base` on touch as occupied by `role`, inside the map or not. Frames
  /// that another role occupies already keep that role. Throws `noMemory` when the list can't hold all of it, and
  /// marks nothing then.
  package func occupy(
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

  /// The next frames from `at` up to `end` that are in no run, as a run for `role`; moves `at` behind them.
  private func nextGap(_ at: inout UInt32, _ end: UInt32, _ role: FrameRole) -> ListedRun? {
    while at < end {
      let i = position(at)
      let next = i < state.pointee.count ? list[i].first : end
      if next > at {
        defer { at = min(end, next) }
        return ListedRun(first: at, end: min(end, next), role: role, origin: .occupied)
      }
      at = list[i].end
    }
    return nil
  }

  /// Allocates `count` consecutive pages with `role` at the highest possible address below the ceiling, or returns nil.
  /// The contents are unknown. Without an `owner`, the role says it.
  package func allocate(
    _ count: PageCount, role: FrameRole = .boot, for owner: FrameOwner = .none
  ) -> FrameRun? {
    allocate(count, role, owner, below: state.pointee.ceiling)
  }

  /// Allocates like `allocate`, but above the ceiling too: for memory that is not accessed before it is lifted.
  package func reserve(_ count: PageCount, role: FrameRole) -> FrameRun? {
    allocate(count, role, .none, below: FrameNumber.limit)
  }

  /// Frees one page that was allocated. Any other is a bug of the caller: reports it, and changes nothing.
  package func free(_ frame: FrameNumber) {
    let i = position(frame.rawValue)
    let isListed = i < state.pointee.count && list[i].first <= frame.rawValue
    if state.pointee.isClosed {
      return report(.notAllocated, "a page was freed to early memory, which has ended", frame)
    }
    guard isListed else { return report(.notAllocated, "early memory has not allocated this page", frame) }
    guard list[i].origin == .allocated else {
      return report(.foreignPointer, "a page that boot occupied was freed to early memory", frame)
    }
    let whole = list[i]
    if whole.first < frame.rawValue && whole.end > frame.rawValue + 1 {
      // The middle of a run: it stays allocated when the list can't hold another run.
      list[i].end = frame.rawValue
      var rest = whole
      rest.first = frame.rawValue + 1
      if !insert(i + 1, rest) {
        list[i].end = whole.end
        return
      }
    } else if whole.first < frame.rawValue {
      list[i].end = frame.rawValue
    } else if whole.end > frame.rawValue + 1 {
      list[i].first = frame.rawValue + 1
    } else {
      state.pointee.count -= 1
      for k in i..<state.pointee.count { list[k] = list[k + 1] }
    }
    state.pointee.pages -= 1
    state.pointee.range = state.pointee.map.count - 1
  }

  private func report(_ kind: FaultKind, _ what: StaticString, _ frame: FrameNumber) {
    state.pointee.machine.report(FaultReport(kind, what, UInt64(frame.rawValue), .frame))
  }

  /// Lifts the ceiling, because the direct map reaches all of memory: from now on pages may lie anywhere.
  package func liftCeiling() {
    state.pointee.ceiling = FrameNumber.limit
    state.pointee.range = state.pointee.map.count - 1
  }

  /// Pages allocated so far, without occupied ranges.
  package var pages: PageCount { PageCount(state.pointee.pages) }

  /// Single frames with the role `pageTable`, for the tables that replace the stub's.
  package var frameSource: FrameSource {
    FrameSource(
      UnsafeMutableRawPointer(state),
      allocateFrame: { context in
        EarlyMemory(context!).allocate(.one, role: .pageTable)?.first.rawValue ?? FrameNumber.none.rawValue
      },
      freeFrame: { EarlyMemory($0!).free(FrameNumber($1)) })
  }

  /// The same for the tables of page windows.
  package var windowFrameSource: FrameSource {
    frameSource.allocating { context in
      let run = EarlyMemory(context!).allocate(.one, role: .pageTable, for: FrameOwner("page windows"))
      return run?.first.rawValue ?? FrameNumber.none.rawValue
    }
  }

  // MARK: Inside

  init(_ context: UnsafeMutableRawPointer) {
    state = context.assumingMemoryBound(to: State.self)
    list = (context + Self.headSize).assumingMemoryBound(to: ListedRun.self)
  }

  func close() { state.pointee.isClosed = true }

  /// The index of the first run that ends behind `frame`.
  func position(_ frame: UInt32) -> Int {
    var (low, high) = (0, state.pointee.count)
    while low < high {
      let middle = (low + high) / 2
      if list[middle].end <= frame { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Whether a run that belongs before index `i` makes one with its neighbours there.
  private func joins(_ i: Int, _ run: ListedRun) -> (lower: Bool, upper: Bool) {
    (
      i > 0 && list[i - 1].end == run.first && isAlike(list[i - 1], run),
      i < state.pointee.count && list[i].first == run.end && isAlike(list[i], run)
    )
  }
  private func isAlike(_ a: ListedRun, _ b: ListedRun) -> Bool {
    a.role == b.role && a.origin == b.origin && a.owner == b.owner
  }

  /// Puts a run into the list before index `i`, joined with neighbours of its kind if it touches.
  private func insert(_ i: Int, _ run: ListedRun) -> Bool {
    let count = state.pointee.count
    let joins = joins(i, run)
    if joins.lower && joins.upper {
      list[i - 1].end = list[i].end
      state.pointee.count -= 1
      for k in i..<count - 1 { list[k] = list[k + 1] }
    } else if joins.lower {
      list[i - 1].end = run.end
    } else if joins.upper {
      list[i].first = run.first
    } else {
      guard count < Self.capacity else { return false }
      for k in stride(from: count, to: i, by: -1) { list[k] = list[k - 1] }
      list[i] = run
      state.pointee.count += 1
    }
    return true
  }

  private func allocate(
    _ pages: PageCount, _ role: FrameRole, _ owner: FrameOwner, below ceiling: UInt32
  ) -> FrameRun? {
    guard !state.pointee.isClosed, pages.rawValue > 0, pages.rawValue < UInt64(FrameNumber.limit) else {
      return nil
    }
    let count = UInt32(pages.rawValue)
    let map = state.pointee.map
    let isHinted = pages == .one && ceiling == state.pointee.ceiling
    var r = isHinted ? state.pointee.range : map.count - 1
    while r >= 0 {
      let run = map[r]
      let first = max(run.first.rawValue, Self.lowest)
      var end = min(run.end.rawValue, ceiling)
      while end > first && end - first >= count {
        // The highest run of the list that begins below `end`.
        var i = position(end - 1)
        if i == state.pointee.count || list[i].first >= end { i -= 1 }
        let lowest = i >= 0 ? max(first, list[i].end) : first
        if end > lowest && end - lowest >= count {
          let start = end - count
          let run = ListedRun(first: start, end: end, role: role, origin: .allocated, owner: owner)
          guard insert(position(start), run) else { return nil }
          state.pointee.pages += pages.rawValue
          if isHinted { state.pointee.range = r }
          return FrameRun(first: FrameNumber(start), count: pages)
        }
        guard i >= 0, list[i].first > first else { break }
        end = min(end, list[i].first)
      }
      r -= 1
    }
    return nil
  }
}
