// Runs: any number of frames in a row, with the constraints of contigmalloc(9), looked for inside large
// free blocks and across neighbouring ones. A run is refused only if there is none.
//
// Two ways to find one. If a free block of a list that lies wholly in the range of addresses holds it
// whatever the alignment, the smallest such block is taken: constant. Else memory is walked from the top
// of the range down, keeping the free extent in hand. What makes the walk short: n frames in a row hold an
// aligned free block of order k = log2((n + 1) / 2), rounded down, and what can coalesce has; so if no list has
// such a block the answer is no at once, and in a pageblock without one only its two ends are
// looked at. Whole sections and pageblocks without a free frame cost a step, large free blocks one each.
//
// The walk lets the lock go every dozen steps, but only where no extent is in hand; an extent in hand has
// at most 40 blocks and one for each GiB. A step is some 200 instructions, and a pageblock whose order bits are to be
// made exact 5,000: what is longest without the lock being let go is a dozen, one such pageblock and one extent.

import MemoryPrimitives

/// Where a run may lie, as contigmalloc(9) says it.
public struct RunConstraints: Sendable {
  /// No byte below this address.
  public var low: PhysicalAddress
  /// No byte at or above this address.
  public var high: PhysicalAddress
  /// The first byte is at a multiple of this.
  public var alignment: Alignment
  /// The run crosses no multiple of this.
  public var boundary: Alignment?

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

/// A request in frame numbers, known to be possible.
struct RunRequest {
  var count: UInt32
  var low: UInt32
  var high: UInt32
  /// Powers of two; a boundary of 0 is none. Both fit 33 bits.
  var alignment: UInt64
  var boundary: UInt64

  /// Nil when no machine could grant it.
  init?(_ count: PageCount, _ where: RunConstraints) {
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
    boundary = 0
    if let given = `where`.boundary {
      // A boundary below a page is crossed by every page.
      guard given.rawValue >> Page.shift >= count.rawValue else { return nil }
      boundary = given.rawValue >> Page.shift
    }
    guard place(low, high) != nil else { return nil }
  }

  /// The highest place for the run in frames `first` to `end`, or nil.
  @inline(always) func place(_ first: UInt64, _ end: UInt64) -> UInt32? {
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
  @inline(always) func keepsBoundary(_ start: UInt64) -> Bool {
    boundary == 0 || start & ~(boundary - 1) == (start + UInt64(count) - 1) & ~(boundary - 1)
  }

  /// The order of a block that every run of this length holds when it is free.
  var innerOrder: Int {
    let order = 63 - ((UInt64(count) + 1) / 2).leadingZeroBitCount
    // Blocks don't cross 16 MiB, so those at 0 end there.
    return min(order, low < 8192 ? 12 : 18)
  }
}

extension FrameAllocator {
  /// `run` frames in a row that satisfy `where`, each with `role` and one wire. Never waits. Cost: see the
  /// head of Runs.swift. Throws `noMemory` when there is no such run or not above the reserve of `priority`;
  /// `badConstraint` when no machine could have it.
  public func allocate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(), role: FrameRole,
    priority: AllocationPriority = .normal
  ) throws(PhysicalMemoryError) -> FrameRun {
    checkUse(role)
    guard let request = RunRequest(count, constraints) else {
      noteRefused(.run, count, role, priority, "never", constraints)
      throw .badConstraint
    }
    if machine.failsHere(.physicalMemory) { throw .noMemory }
    var interrupts = lock()
    guard admits(count.rawValue, priority), let first = find(request, &interrupts),
      admits(count.rawValue, priority)
    else {
      state.pointee.events.pointee.runFailures.add()
      unlock(interrupts)
      noteRefused(.run, count, role, priority, nil, constraints)
      throw .noMemory
    }
    let end = first + request.count
    detach(first, end)
    account(first, end, role, &interrupts)
    state.pointee.events.pointee.runs.add()
    let isShort = isShort(freeCount.rawValue)
    unlock(interrupts)
    stamp(first, end, role)
    notifyLowMemory(if: isShort)
    return FrameRun(first: FrameNumber(first), count: count)
  }

  /// Where the run would be taken from. Lock held; it is let go and taken again on the way, but what is
  /// found is free when this returns.
  func find(_ request: RunRequest, _ interrupts: inout UInt64) -> UInt32? {
    let count = UInt64(request.count)
    let inner = request.innerOrder
    var masks: UInt32 = 0
    for list in 0..<3 { masks |= core.pointee.masks[list] }
    if masks >> UInt32(inner) == 0 { return nil }

    let outer = Int(Order.holding(PageCount(count)).rawValue)
    let size = UInt64(1) << UInt64(outer)
    if outer <= 18 && request.alignment <= size && (request.boundary == 0 || request.boundary >= size) {
      let top = min(request.high, memoryEnd)
      for list in stride(from: 2, through: 0, by: -1) {
        let (first, end) = RangeList(rawValue: UInt8(list)).unsafelyUnwrapped.bounds
        guard request.low <= first, min(end, memoryEnd) <= top else { continue }
        let mask = core.pointee.masks[list] >> UInt32(outer)
        if mask != 0 { return queue(list, outer + mask.trailingZeroBitCount).pointee.first }
      }
    }

    var found: UInt32?
    scan(request.low, request.high, inner, &interrupts) { first, end in
      found = request.place(UInt64(first), UInt64(end))
      return found != nil
    }
    return found
  }

  /// The frame behind the last one that has a record.
  var memoryEnd: UInt32 {
    UInt32(min(UInt64(UInt32.max), UInt64(state.pointee.sectionCount) << UInt64(Section.frameShift)))
  }

  /// Walks frames `low` to `high` from the top down and calls `body` with the free extent in hand each
  /// time that it has grown; extents that hold no free block of order `inner` are left out or cut. True
  /// from `body` ends the walk, with the lock held since that extent was seen.
  func scan(
    _ low: UInt32, _ high: UInt32, _ inner: Int, _ interrupts: inout UInt64,
    _ body: (UInt32, UInt32) -> Bool
  ) {
    var at = min(high, memoryEnd)
    var end = at
    var steps = 0
    var counted = 0
    defer { state.pointee.events.pointee.runSteps.add(UInt64(counted)) }
    while at > low {
      steps += 1
      counted += 1
      if steps > 12 && at == end {
        unlock(interrupts)
        interrupts = lock()
        steps = 0
      }
      let frame = at - 1
      guard let section = section(frame) else {
        let entry = sectionEntry(Int(frame >> Section.frameShift))
        let sectionFirst = frame & ~(1 << Section.frameShift - 1)
        at = max(low, entry.frames != 0 && frame >= entry.first ? entry.first + entry.frames : sectionFirst)
        end = at
        continue
      }
      if section.free == 0 {
        at = max(low, section.first)
        end = at
        continue
      }
      let pageblock = pageblockUnchecked(frame)
      let pageblockFirst = frame & ~(Pageblock.frames - 1)
      if pageblock.free == 0 {
        at = max(low, pageblockFirst)
        end = at
        continue
      }
      if let (head, _) = block(holding: frame) {
        at = max(low, head)
        if body(at, end) { return }
        continue
      }
      if pageblock.state != .valid || pageblock.free == 512 {
        at = max(low, pageblockFirst)
        end = at
        continue
      }
      if pageblock.orders & PageblockPointer.stale != 0 {
        renewOrders(pageblockFirst)
        steps += 20
      }
      if pageblock.orders >> UInt16(min(inner, 9)) == 0 {
        // No such block in here: a run can have no more of this pageblock than its start.
        var prefix = pageblockFirst
        while prefix < frame, let (head, order) = block(holding: prefix) {
          prefix = head + (1 << UInt32(order))
          steps += 1
        }
        at = max(low, prefix)
      } else {
        at = frame
      }
      end = at
    }
  }

  /// Makes the order bits of a valid pageblock exact. Up to 512 looks; lock held.
  private func renewOrders(_ pageblockFirst: UInt32) {
    var orders: UInt16 = 0
    var at: UInt32 = 0
    while at < Pageblock.frames {
      let record = recordUnchecked(pageblockFirst + at)
      if record.queue == .buddy {
        orders |= 1 << UInt16(record.order.rawValue)
        at += 1 << UInt32(record.order.rawValue)
      } else {
        at += 1
      }
    }
    pageblockUnchecked(pageblockFirst).orders = orders
  }

  /// The longest run of free frames, or nil when none is free. A walk over all of memory at worst.
  public func longestFreeRun(
    low: PhysicalAddress = PhysicalAddress(0), high: PhysicalAddress = PhysicalAddress(UInt64.max)
  ) -> FrameRun? {
    guard let request = RunRequest(.one, RunConstraints(low: low, high: high)) else { return nil }
    var best: FrameRun?
    var interrupts = lock()
    scan(request.low, request.high, 0, &interrupts) { first, end in
      if best == nil || UInt64(end - first) > best.unsafelyUnwrapped.count.rawValue {
        best = FrameRun(first: FrameNumber(first), count: PageCount(UInt64(end - first)))
      }
      return false
    }
    unlock(interrupts)
    return best
  }
}
