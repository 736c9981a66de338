// The buddy queues: blocks of 2^order frames, aligned to their size, split when a smaller one is wanted
// and joined with their other half as soon as both are free.
//
// Where a free block begins is said in one of two places: for orders below 9 in the record of its first
// frame (whose pageblock is valid), for 9 and above in the entry of its first pageblock, so that a buddy can be
// looked for without touching records that hold rubbish. Blocks never cross 16 MiB or 4 GiB, where one
// list ends; only the two blocks of 16 MiB at 0 and at 16 MiB could, and are kept apart.
//
// Blocks are taken from the front of a queue; remainders go to the front (their queues are mostly
// empty), freed blocks to the back, where they have time to grow.
//
// Everything here runs with the lock held.

import MemoryPrimitives

extension FrameAllocator {
  enum End { case front, back }

  /// Puts the block of 2^`order` frames at `frame` into its queue. Its frames are accounted as free; if
  /// order is below 9 its pageblock is valid.
  @inline(always) func push(_ frame: UInt32, _ order: Int, _ end: End) {
    let record = recordUnchecked(frame)
    let pageblock = pageblockUnchecked(frame)
    if order >= 9 {
      if pageblock.state != .valid { record.initialize(role: .free, busyWord: .none) }
      pageblock.head = UInt8(truncatingIfNeeded: order &- 8)
    } else {
      pageblock.orders |= 1 << UInt16(truncatingIfNeeded: order)
    }
    record.order = Order(UInt8(truncatingIfNeeded: order))
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
        core.pointee.masks[list] |= 1 << UInt32(truncatingIfNeeded: order)
      } else {
        recordUnchecked(next).previous = FrameNumber(frame)
      }
    case .back:
      let previous = queue.pointee.last
      record.next = .none
      record.previous = FrameNumber(previous)
      queue.pointee.last = frame
      if previous == .max {
        queue.pointee.first = frame
        core.pointee.masks[list] |= 1 << UInt32(truncatingIfNeeded: order)
      } else {
        recordUnchecked(previous).next = FrameNumber(frame)
      }
    }
    queue.pointee.count &+= 1
  }

  /// Takes the block at `frame` out of its queue.
  @inline(always) func unlink(_ frame: UInt32, _ order: Int) {
    let record = recordUnchecked(frame)
    let list = RangeList.of(frame)
    let queue = queue(list, order)
    let (next, previous) = (record.next, record.previous)
    if previous == .none {
      queue.pointee.first = next.rawValue
    } else {
      recordUnchecked(previous.rawValue).next = next
    }
    if next == .none {
      queue.pointee.last = previous.rawValue
    } else {
      recordUnchecked(next.rawValue).previous = previous
    }
    queue.pointee.count &-= 1
    if queue.pointee.count == 0 { core.pointee.masks[list] &= ~(1 << UInt32(truncatingIfNeeded: order)) }
    record.queue = .none
    record.order = Order(0)
    let pageblock = pageblockUnchecked(frame)
    if order >= 9 { pageblock.head = 0 } else { pageblock.orders |= PageblockPointer.stale }
  }

  /// Whether a free block of exactly 2^`order` frames begins at `frame`. For an order below 9 the pageblock
  /// is known to be valid; above, the frame need not be memory.
  @inline(always) func isHead(_ frame: UInt32, _ order: Int) -> Bool {
    if order >= 9 {
      guard let pageblock = pageblock(frame) else { return false }
      return Int(pageblock.head) == order &- 8
    }
    let record = recordUnchecked(frame)
    return record.queue == .buddy && Int(record.order.rawValue) == order
  }

  /// Puts a block whose frames have just become free into the queues, joined with its buddies.
  func insert(_ frame: UInt32, _ order: Int) {
    var (frame, order) = (frame, order)
    while order < 18 {
      let buddy = frame ^ (1 << UInt32(truncatingIfNeeded: order))
      guard RangeList.of(frame) == RangeList.of(buddy), isHead(buddy, order) else { break }
      unlink(buddy, order)
      frame = min(frame, buddy)
      order += 1
    }
    push(frame, order, .back)
  }

  /// The order of the largest block that begins at `first` and ends at `end` or before, in one list.
  @inline(always) func largestOrder(_ first: UInt32, _ end: UInt32) -> Int {
    var order = min(first.trailingZeroBitCount, 31 - (end - first).leadingZeroBitCount, 18)
    while RangeList.of(first) != RangeList.of(first + (1 << UInt32(order) - 1)) { order -= 1 }
    return order
  }

  /// Puts free frames `first` to `end` into the queues, cut into blocks as large as can be: parts of a
  /// block just taken, which can't be joined with anything.
  func putBack(_ first: UInt32, _ end: UInt32) {
    var at = first
    while at < end {
      let order = largestOrder(at, end)
      if order < 9 { materialize(at) }
      push(at, order, .front)
      at += 1 << UInt32(order)
    }
  }

  /// The free block that holds `frame`: its first frame and its order. Up to 19 looks.
  func block(holding frame: UInt32) -> (first: UInt32, order: Int)? {
    guard let pageblock = pageblock(frame), pageblock.free != 0 else { return nil }
    if pageblock.free != 512 {
      // Part of it is free: then its records are valid.
      guard pageblock.state == .valid, recordUnchecked(frame).role == .free else { return nil }
      for order in 0..<9 {
        let head = frame & ~(1 << UInt32(order) - 1)
        if isHead(head, order) { return (head, order) }
      }
      return nil
    }
    for order in 9...18 {
      let head = frame & ~(1 << UInt32(order) - 1)
      if isHead(head, order) { return (head, order) }
    }
    return nil
  }

  /// Counts `count` free frames from `first` on as taken for `role`; the role's own count and that of
  /// free frames are the caller's. They lie in one run.
  @inline(always) func accountTaken(_ first: UInt32, _ count: UInt32, _ role: FrameRole) {
    let pageblock = pageblockUnchecked(first)
    if role.isMovable {
      pageblock.movable &+= UInt16(truncatingIfNeeded: count)
    } else {
      pageblock.unmovable &+= UInt16(truncatingIfNeeded: count)
    }
    sectionEntry(Int(first >> Section.frameShift)).free &-= count
  }

  @inline(always) func accountFreed(_ first: UInt32, _ count: UInt32, _ role: FrameRole) {
    let pageblock = pageblockUnchecked(first)
    if role.isMovable {
      pageblock.movable &-= UInt16(truncatingIfNeeded: count)
    } else {
      pageblock.unmovable &-= UInt16(truncatingIfNeeded: count)
    }
    sectionEntry(Int(first >> Section.frameShift)).free &+= count
  }
}
