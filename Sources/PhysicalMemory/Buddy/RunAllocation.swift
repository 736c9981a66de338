// Allocation of runs: any number of consecutive frames, with the constraints of contigmalloc(9). The search finds runs
// inside large free blocks and across neighbouring ones. It refuses a run only if there is none.
//
// There are two ways to find one. If a free block of a list that lies wholly in the range of addresses is large enough
// whatever the alignment, the smallest such block is used: constant. Else the search walks memory from the top of the
// range down and keeps the current free extent. Two facts keep the walk short. First, n consecutive free frames contain
// an aligned free block of order log2((n + 1) / 2), rounded down, because all that can coalesce has. So if no list
// has such a block the answer is no at once. Second, in a pageblock without one only the two ends are read. A section or
// pageblock without a free frame costs one step, a large free block one step.
//
// The walk releases the lock every dozen steps, but only between extents; an extent has at most 40 blocks and one for
// each GiB. A step is some 200 instructions, and making the order bits of a pageblock exact is 5,000. So the longest hold
// of the lock is a dozen steps, one such pageblock and one extent.

import MemoryPrimitives

/// The addresses that a run may have, in the terms of contigmalloc(9).
public struct RunConstraints: Sendable {
  /// No byte below this address.
  public var low: PhysicalAddress
  /// No byte at or above this address.
  public var high: PhysicalAddress
  /// The first byte is at a multiple of this.
  public var alignment: Alignment
  /// The run crosses no multiple of this.
  public var boundary: Alignment?

  /// Constraints of a request; all of memory, and frame alignment, by default.
  public init(
    low: PhysicalAddress = PhysicalAddress(0), high: PhysicalAddress = PhysicalAddress(UInt64.max),
    alignment: Alignment = .page, boundary: Alignment? = nil
  ) {
    self.low = low
    self.high = high
    self.alignment = alignment
    self.boundary = boundary
  }
}

/// A request in frame numbers, known to be possible on some machine.
@frozen @usableFromInline package struct RunRequest {
  @usableFromInline package let count: UInt32
  @usableFromInline package let low: UInt32
  @usableFromInline package let high: UInt32
  /// Powers of two; a boundary of 0 is none. Both fit 33 bits.
  @usableFromInline package let alignment: UInt64
  @usableFromInline package let boundary: UInt64

  /// Nil when no machine could grant it.
  package init?(_ count: PageCount, _ where: RunConstraints) {
    let limit = UInt64(FrameNumber.limit)
    let low = (`where`.low.rawValue >> Page.shift) + (`where`.low.offsetInPage == 0 ? 0 : 1)
    let high = min(`where`.high.rawValue >> Page.shift, limit)
    guard count.rawValue > 0, count.rawValue <= limit, low < high, high - low >= count.rawValue else {
      return nil
    }
    self.count = UInt32(count.rawValue)
    self.low = UInt32(low)
    self.high = UInt32(high)
    alignment = max(1, `where`.alignment.rawValue >> Page.shift)
    boundary = `where`.boundary.map { $0.rawValue >> Page.shift } ?? 0
    // A boundary below a page is crossed by every page.
    if `where`.boundary != nil && boundary < count.rawValue { return nil }
    guard highestStart(low, high) != nil else { return nil }
  }

  /// The highest start for the run in frames `first` to `end`, or nil.
  @inline(always) package func highestStart(_ first: UInt64, _ end: UInt64) -> UInt32? {
    let count = UInt64(count)
    guard end >= count else { return nil }
    var start = (end - count) & ~(alignment - 1)
    if boundary != 0 && start & ~(boundary - 1) != (start + count - 1) & ~(boundary - 1) {
      let cut = (start + count - 1) & ~(boundary - 1)
      guard cut >= count else { return nil }
      start = (cut - count) & ~(alignment - 1)
    }
    return start >= first ? UInt32(start) : nil
  }

  /// Whether a run that begins at `start` keeps to the boundary.
  @inline(always) package func keepsBoundary(_ start: UInt64) -> Bool {
    boundary == 0 || start & ~(boundary - 1) == (start + UInt64(count) - 1) & ~(boundary - 1)
  }

  /// Whether every run for this covers whole pageblocks.
  package var isOfPageblocks: Bool {
    count & (Pageblock.frames - 1) == 0 && alignment >= UInt64(Pageblock.frames)
  }

  /// The order of a block that every run of this length holds when it is free.
  var innerOrder: Int {
    let order = 63 - ((UInt64(count) + 1) / 2).leadingZeroBitCount
    // Blocks never cross 16 MiB, so those at 0 end there.
    return min(order, low < 8192 ? 12 : 18)
  }
}

extension FrameDomain {
  /// The result of a look at the masks alone.
  enum QuickSearch {
    case found(UInt32)
    case none
    /// Only a walk can answer.
    case unknown
  }

  /// Looks for a run without a walk. Constant.
  func quickSearch(_ request: RunRequest) -> QuickSearch {
    var all: UInt32 = 0
    for list in 0..<RangeList.count { all |= masks[list] }
    if all >> UInt32(request.innerOrder) == 0 { return .none }

    let outer = Int(BlockOrder.holding(PageCount(UInt64(request.count))).rawValue)
    let size = UInt64(1) << UInt64(outer)
    if outer < Self.orders && request.alignment <= size && (request.boundary == 0 || request.boundary >= size)
    {
      let top = min(request.high, table.end)
      for list in stride(from: RangeList.count - 1, through: 0, by: -1) {
        let (first, end) = RangeList(rawValue: UInt8(list)).unsafelyUnwrapped.bounds
        guard request.low <= first, min(end, table.end) <= top else { continue }
        let mask = masks[list] >> UInt32(outer)
        if mask != 0 { return .found(queue(list, outer + mask.trailingZeroBitCount).pointee.first) }
      }
    }
    return .unknown
  }

  /// Makes the order bits of a valid pageblock exact. Reads up to 512 records.
  fileprivate func renewOrders(_ pageblockFirst: UInt32) {
    var orders: UInt16 = 0
    var at: UInt32 = 0
    while at < Pageblock.frames {
      let record = table.record(pageblockFirst + at)
      if record.queue == .buddy {
        orders |= 1 << UInt16(record.order.rawValue)
        at += 1 << UInt32(record.order.rawValue)
      } else {
        at += 1
      }
    }
    table.pageblock(pageblockFirst).orders = orders
  }

  /// Goes one step of a walk down.
  fileprivate func step(_ walk: inout ExtentWalk) -> ExtentWalk.Step {
    let frame = walk.at - 1
    guard let section = table.section(of: frame) else {
      let entry = table.entry(Int(frame >> Section.frameShift))
      let sectionFirst = frame & ~(1 << Section.frameShift - 1)
      return walk.skip(
        to: entry.frames != 0 && frame >= entry.first ? entry.first + entry.frames : sectionFirst)
    }
    if section.free == 0 { return walk.skip(to: section.first) }
    let pageblock = table.pageblock(frame)
    let pageblockFirst = Pageblock.first(frame)
    if pageblock.free == 0 { return walk.skip(to: pageblockFirst) }
    if let (head, _) = block(holding: frame) { return walk.extend(to: head) }
    if pageblock.state != .valid || pageblock.free == UInt16(Pageblock.frames) {
      return walk.skip(to: pageblockFirst)
    }
    if pageblock.orders & PageblockPointer.stale != 0 {
      renewOrders(pageblockFirst)
      walk.steps += 20
    }
    if pageblock.orders >> UInt16(min(walk.innerOrder, Pageblock.order)) != 0 { return walk.skip(to: frame) }
    // The pageblock has no such block, so a run can have no more of it than its start.
    var prefix = pageblockFirst
    while prefix < frame, let (head, order) = block(holding: prefix) {
      prefix = head + (1 << UInt32(order))
      walk.steps += 1
    }
    return walk.skip(to: prefix)
  }
}

/// The state of a walk over the free extents of a range, from the top down.
private struct ExtentWalk {
  enum Step { case skipped, extended }

  let low: UInt32
  /// Extents that hold no free block of this order are left out or cut.
  let innerOrder: Int
  /// The current extent is `at` to `end`; frames from `at` on were walked.
  var at: UInt32
  var end: UInt32
  /// Steps since the lock was last released.
  var steps = 0

  init(low: UInt32, high: UInt32, innerOrder: Int) {
    (self.low, self.innerOrder) = (low, innerOrder)
    (at, end) = (high, high)
  }

  @inline(always) mutating func skip(to frame: UInt32) -> Step {
    at = max(low, frame)
    end = at
    return .skipped
  }

  @inline(always) mutating func extend(to frame: UInt32) -> Step {
    at = max(low, frame)
    return .extended
  }
}

extension FrameAllocator {
  /// Allocates a run of frames that satisfies `where`, each with `role` and one wire. Never waits. Cost: see the head of
  /// RunAllocation.swift. Throws `noMemory` when there is no such run, or not above the reserve of `priority`;
  /// `badConstraint` when no machine could have it. Logs the refusal.
  public func allocate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(), role: FrameRole,
    priority: AllocationPriority = .normal, for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) -> FrameRun {
    do throws(PhysicalMemoryError) {
      return try allocateUnlogged(
        run: count, where: constraints, role: role, priority: priority, for: owner)
    } catch {
      let reason: StaticString? = error == .badConstraint ? "never" : nil
      logRefusal(
        Refusal(.run, count, for: role, owner, priority, reason: reason, constraints: constraints))
      throw error
    }
  }

  /// Does what `allocate` does, and logs no refusal: for a layer that logs its own request, of which this one is a part.
  package func allocateUnlogged(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(), role: FrameRole,
    priority: AllocationPriority = .normal, for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) -> FrameRun {
    checkUse(role)
    guard let request = RunRequest(count, constraints) else { throw .badConstraint }
    if machine.failsHere(.physicalMemory) { throw .noMemory }
    var held = domain.acquire()
    guard let first = find(request, priority, &held) else {
      events.pointee.failedAttempts.add()
      held.release()
      throw .noMemory
    }
    let end = first + request.count
    held.value.detach(first, end)
    account(first, end, role, &held)
    events.pointee.runs.add()
    held.release()
    table.stamp(first, end, role, for: owner)
    checkLowMemory()
    return FrameRun(first: FrameNumber(first), count: count)
  }

  /// Returns the run that `allocate` would choose at `priority`, or nil. Allocates nothing; costs the same search.
  package func freeRun(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(),
    priority: AllocationPriority = .normal
  ) -> FrameRun? {
    guard let request = RunRequest(count, constraints) else { return nil }
    var held = domain.acquire()
    guard let found = find(request, priority, &held) else { return nil }
    return FrameRun(first: FrameNumber(found), count: count)
  }

  /// Returns the longest run of free frames, or nil when none is free. A walk over all of memory at worst.
  public func longestFreeRun(
    low: PhysicalAddress = PhysicalAddress(0), high: PhysicalAddress = PhysicalAddress(UInt64.max)
  ) -> FrameRun? {
    guard let request = RunRequest(.one, RunConstraints(low: low, high: high)) else { return nil }
    var best: FrameRun?
    var held = domain.acquire()
    forEachFreeExtent(request, innerOrder: 0, &held) { first, end in
      let count = PageCount(UInt64(end - first))
      if best == nil || count > best.unsafelyUnwrapped.count {
        best = FrameRun(first: FrameNumber(first), count: count)
      }
      return .more
    }
    return best
  }

  /// The start of the run that a request gets, if its reserve allows it. The lock is released and acquired again on the
  /// way, but the run that is found is free when this returns.
  private func find(
    _ request: RunRequest, _ priority: AllocationPriority, _ held: inout Held<FrameDomain>
  ) -> UInt32? {
    guard held.value.admits(UInt64(request.count), priority) else { return nil }
    switch held.value.quickSearch(request) {
    case .found(let first): return first
    case .none: return nil
    case .unknown: break
    }
    var found: UInt32?
    forEachFreeExtent(request, innerOrder: request.innerOrder, &held) { first, end in
      found = request.highestStart(UInt64(first), UInt64(end))
      return found != nil ? .enough : .more
    }
    // Frames may have been allocated while the lock was released.
    return held.value.admits(UInt64(request.count), priority) ? found : nil
  }

  private enum Progress { case more, enough }

  /// Steps of a walk in one hold of the lock.
  private static var stepsAHold: Int { 12 }

  /// Calls `body` with each free extent of the request's range, from the top down, each time that it has grown, until it
  /// returns `enough`. The lock is then held since that extent was seen. Extents that hold no free block of order
  /// `innerOrder` are left out or cut.
  private func forEachFreeExtent(
    _ request: RunRequest, innerOrder: Int, _ held: inout Held<FrameDomain>,
    _ body: (UInt32, UInt32) -> Progress
  ) {
    var walk = ExtentWalk(low: request.low, high: min(request.high, table.end), innerOrder: innerOrder)
    var counted: UInt64 = 0
    while walk.at > walk.low {
      walk.steps += 1
      counted += 1
      if walk.steps > Self.stepsAHold && walk.at == walk.end {
        held.release()
        held = domain.acquire()
        walk.steps = 0
      }
      if held.value.step(&walk) == .extended && body(walk.at, walk.end) == .enough { break }
    }
    events.pointee.runSteps.add(counted)
  }

  /// Pageblocks that are counted in one hold of the lock: 12 instructions each.
  private static var pageblocksAHold: Int { 512 }

  /// Counts frames `first` to `end`, just detached, as allocated for `role`. Releases the lock and acquires it again every
  /// `pageblocksAHold`.
  private func account(_ first: UInt32, _ end: UInt32, _ role: FrameRole, _ held: inout Held<FrameDomain>) {
    table.subtract(UInt64(end - first), from: .free)
    table.add(UInt64(end - first), to: role)
    var at = first
    var steps = 0
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      table.accountAllocated(at, pageblockEnd - at, role)
      at = pageblockEnd
      steps += 1
      if steps % Self.pageblocksAHold == 0 {
        held.release()
        held = domain.acquire()
      }
    }
  }
}
