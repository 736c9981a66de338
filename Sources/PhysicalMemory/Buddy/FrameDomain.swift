// The state under the domain lock, and the buddy queues in it: blocks of 2^order frames, aligned to their size. A block is
// split when a smaller one is requested, and joined with its buddy as soon as both are free.
//
// The first frame of a free block is marked in one of two places. For orders below 9 the mark is in the record of that
// frame, whose pageblock is valid. For orders from 9 on it is in the entry of the first pageblock, so that a buddy can
// be looked for without reading records that are not initialised. Blocks never cross 16 MiB or 4 GiB, where one list
// ends; only the two blocks of 16 MiB at 0 and at 16 MiB could, and are kept apart.
//
// Blocks are removed from the front of a queue. Remainders go to the front (their queues are mostly empty), freed blocks
// to the back, where they have time to grow.
//
// Every method here needs the lock, which a caller proves by having the value: it lies in a `Locked`.

import MemoryPrimitives
import Synchronization

/// One list of blocks of one order, 16 bytes.
struct FreeQueue {
  var first: UInt32 = .max
  var last: UInt32 = .max
  var count: UInt64 = 0
}

/// All that the domain lock guards, but for records and pageblock counts, which `table` reaches.
struct FrameDomain: ~Copyable {
  let table: FrameTable
  private let queues: UnsafeMutablePointer<FreeQueue>
  let events: UnsafeMutablePointer<FrameEvents>
  /// For each list a bit for each order that has a block.
  var masks: InlineArray<3, UInt32> = .init(repeating: 0)
  /// Isolations and failed requests that a free must look at.
  var watchers: UInt32 = 0
  /// The last number that a failed request was given.
  var lastNumber: UInt32 = 0
  /// Frames that requests of each priority leave free.
  var reserves: InlineArray<3, UInt64> = .init(repeating: 0)
  /// A queue for each priority that waits, first come first, then that of the parked waiters.
  var waiters: InlineArray<3, IntrusiveList<WaiterLink>> = .init(repeating: IntrusiveList())
  /// Frames that all waiters together wait for.
  var waitedFor: UInt64 = 0
  var isolations: InlineArray<4, IsolatedRun> = .init(repeating: IsolatedRun())
  var failedRequests = FailedRequests()

  /// Queues of a domain: one for each order of each list.
  static var queueCount: Int { RangeList.count * orders }
  /// Orders 0 to 18.
  static var orders: Int { 19 }

  /// A domain without free frames. `queues` has `queueCount` elements.
  init(table: FrameTable, queues: UnsafeMutablePointer<FreeQueue>, events: UnsafeMutablePointer<FrameEvents>)
  {
    (self.table, self.queues, self.events) = (table, queues, events)
  }

  @inline(always) func queue(_ list: Int, _ order: Int) -> UnsafeMutablePointer<FreeQueue> {
    queues + (list &* Self.orders &+ order)
  }

  /// How many frames a request of `priority` may have.
  @inline(__always) func available(to priority: AllocationPriority) -> UInt64 {
    let free = table.count(.free)
    let reserve = reserves[Int(priority.rawValue)]
    return free > reserve ? free - reserve : 0
  }

  /// Whether a request of `priority` may have `count` frames.
  @inline(__always) func admits(_ count: UInt64, _ priority: AllocationPriority) -> Bool {
    count <= available(to: priority)
  }

  /// The next number for an isolation or a failed request: one that no recent one has.
  mutating func nextNumber() -> UInt32 {
    lastNumber &+= 1
    if lastNumber == 0 { lastNumber = 1 }
    return lastNumber
  }

  // MARK: Queues

  enum End { case front, back }

  /// Puts the block of 2^`order` frames at `frame` into its queue. Its frames are accounted as free; if the order is
  /// below 9 its pageblock is valid.
  @inline(always) mutating func push(_ frame: UInt32, _ order: Int, _ end: End) {
    let record = table.record(frame)
    let pageblock = table.pageblock(frame)
    if order >= Pageblock.order {
      if pageblock.state != .valid { record.initialize(role: .free, busyWord: .none) }
      pageblock.head = PageblockPointer.head(order)
    } else {
      pageblock.orders |= 1 << UInt16(truncatingIfNeeded: order)
    }
    record.order = BlockOrder(UInt8(truncatingIfNeeded: order))
    record.queue = .buddy
    let list = RangeList.of(frame)
    let queue = queue(list, order)
    switch end {
    case .front:
      let next = queue.pointee.first
      record.next = FrameNumber(next)
      record.previous = .none
      queue.pointee.first = frame
      if next == .max {
        queue.pointee.last = frame
        masks[list] |= 1 << UInt32(truncatingIfNeeded: order)
      } else {
        table.record(next).previous = FrameNumber(frame)
      }
    case .back:
      let previous = queue.pointee.last
      record.next = .none
      record.previous = FrameNumber(previous)
      queue.pointee.last = frame
      if previous == .max {
        queue.pointee.first = frame
        masks[list] |= 1 << UInt32(truncatingIfNeeded: order)
      } else {
        table.record(previous).next = FrameNumber(frame)
      }
    }
    queue.pointee.count &+= 1
  }

  /// Removes the block at `frame` from its queue.
  @inline(always) mutating func unlink(_ frame: UInt32, _ order: Int) {
    let record = table.record(frame)
    let list = RangeList.of(frame)
    let queue = queue(list, order)
    let (next, previous) = (record.next, record.previous)
    if previous == .none {
      queue.pointee.first = next.rawValue
    } else {
      table.record(previous.rawValue).next = next
    }
    if next == .none {
      queue.pointee.last = previous.rawValue
    } else {
      table.record(next.rawValue).previous = previous
    }
    queue.pointee.count &-= 1
    if queue.pointee.count == 0 { masks[list] &= ~(1 << UInt32(truncatingIfNeeded: order)) }
    record.queue = .none
    record.order = BlockOrder(0)
    let pageblock = table.pageblock(frame)
    if order >= Pageblock.order { pageblock.head = 0 } else { pageblock.orders |= PageblockPointer.stale }
  }

  /// Whether a free block of exactly 2^`order` frames begins at `frame`. For an order below 9 the pageblock is known to
  /// be valid; from 9 on, the frame need not be memory.
  @inline(always) func isHead(_ frame: UInt32, _ order: Int) -> Bool {
    if order >= Pageblock.order {
      guard let pageblock = table.pageblockIfAny(frame) else { return false }
      return pageblock.head == PageblockPointer.head(order)
    }
    let record = table.record(frame)
    return record.queue == .buddy && Int(record.order.rawValue) == order
  }

  /// Puts a block whose frames have just become free into the queues, joined with its buddies.
  mutating func insert(_ frame: UInt32, _ order: Int) {
    var (frame, order) = (frame, order)
    while order < Int(BlockOrder.highest.rawValue) {
      let buddy = frame ^ (1 << UInt32(truncatingIfNeeded: order))
      guard RangeList.of(frame) == RangeList.of(buddy), isHead(buddy, order) else { break }
      unlink(buddy, order)
      frame = min(frame, buddy)
      order += 1
    }
    push(frame, order, .back)
  }

  /// The order of the largest block that begins at `first` and ends at `end` or before, in one list.
  @inline(always) static func largestOrder(_ first: UInt32, _ end: UInt32) -> Int {
    var order = min(
      first.trailingZeroBitCount, 31 - (end - first).leadingZeroBitCount, Int(BlockOrder.highest.rawValue))
    while RangeList.of(first) != RangeList.of(first + (1 << UInt32(order) - 1)) { order -= 1 }
    return order
  }

  /// Puts frames that have just become free into the queues.
  @inline(always) mutating func enqueue(_ first: UInt32, _ end: UInt32) {
    var at = first
    while at < end {
      let order = Self.largestOrder(at, end)
      insert(at, order)
      at += 1 << UInt32(order)
    }
  }

  /// Puts free frames `first` to `end` into the queues, cut into blocks as large as possible. They are parts of a block
  /// that was just removed, so there is nothing to join them with.
  mutating func putBack(_ first: UInt32, _ end: UInt32) {
    var at = first
    while at < end {
      let order = Self.largestOrder(at, end)
      if order < Pageblock.order { table.materialize(at) }
      push(at, order, .front)
      at += 1 << UInt32(order)
    }
  }

  /// The free block that holds `frame`: its first frame and its order. Up to 19 comparisons.
  func block(holding frame: UInt32) -> (first: UInt32, order: Int)? {
    guard let pageblock = table.pageblockIfAny(frame), pageblock.free != 0 else { return nil }
    if pageblock.free != UInt16(Pageblock.frames) {
      // Part of it is free: then its records are valid.
      guard pageblock.state == .valid, table.record(frame).role == .free else { return nil }
      for order in 0..<Pageblock.order {
        let head = frame & ~(1 << UInt32(order) - 1)
        if isHead(head, order) { return (head, order) }
      }
      return nil
    }
    for order in Pageblock.order...Int(BlockOrder.highest.rawValue) {
      let head = frame & ~(1 << UInt32(order) - 1)
      if isHead(head, order) { return (head, order) }
    }
    return nil
  }

  // MARK: Allocation

  /// Removes a block of `order` from the queues: the smallest that is large enough, in the highest list that has any.
  @inline(always) mutating func split(_ order: Int) -> UInt32? {
    for list in stride(from: RangeList.count - 1, through: 0, by: -1) {
      let mask = masks[list] >> UInt32(truncatingIfNeeded: order)
      if mask == 0 { continue }
      var have = order &+ mask.trailingZeroBitCount
      let frame = queue(list, have).pointee.first
      unlink(frame, have)
      if order < Pageblock.order { table.materialize(frame) }
      while have > order {
        have &-= 1
        push(frame &+ (1 << UInt32(truncatingIfNeeded: have)), have, .front)
      }
      return frame
    }
    return nil
  }

  /// Allocates a block for a request that no other precedes and that its reserve allows; nil, and counts an attempt,
  /// when one of these or the block is missing. The caller writes the records.
  @inline(__always)
  mutating func allocate(
    _ order: Int, role: FrameRole, priority: AllocationPriority, waiter: WaiterLink
  ) -> UInt32? {
    let count: UInt32 = 1 << UInt32(truncatingIfNeeded: order)
    guard isNext(waiter, priority), admits(UInt64(count), priority), let frame = split(order) else {
      events.pointee.failedAttempts.add()
      return nil
    }
    table.subtract(UInt64(count), from: .free)
    table.add(UInt64(count), to: role)
    var at = frame
    var rest = count
    while true {
      let part = min(rest, Pageblock.frames)
      table.accountAllocated(at, part, role)
      rest &-= part
      if rest == 0 { break }
      at &+= part
    }
    events.pointee.allocations.add()
    return frame
  }

  /// Removes frames `first` to `end`, all free, from the queues; the rest of their blocks goes back. A step for each
  /// block.
  mutating func detach(_ first: UInt32, _ end: UInt32) {
    var at = first
    while at < end {
      let (head, order) = block(holding: at).unsafelyUnwrapped
      unlink(head, order)
      let blockEnd = head + (1 << UInt32(order))
      // A pageblock that is removed in part must have valid records before its other part can go back.
      if head < at {
        if Pageblock.first(at) != at { table.materialize(at) }
        putBack(head, at)
      }
      if blockEnd > end {
        if Pageblock.first(end) != end { table.materialize(end) }
        putBack(end, blockEnd)
      }
      at = min(blockEnd, end)
    }
  }

  // MARK: Free

  /// Counts frames `first` to `end` of one pageblock and role as free, and puts them into the queues or into the isolation
  /// that captures them. Their records have the role free already.
  @inline(always) mutating func free(_ first: UInt32, _ end: UInt32, _ role: FrameRole) {
    let count = end &- first
    table.subtract(UInt64(count), from: role)
    table.add(UInt64(count), to: .free)
    table.accountFreed(first, count, role)
    if watchers == 0 { enqueue(first, end) } else { enqueueWatched(first, end, role) }
    events.pointee.frees.add()
  }
}
