// The check of the invariants at the head of FrameAllocator.swift, when nothing runs.

import MemoryPrimitives
import Synchronization

extension FrameAllocator {
  /// Returns nil when all invariants hold, else a text that begins with the number of the broken one. Reads each frame
  /// whose record is valid and each pageblock once, and each free block a few times: too long for a lock, so it takes
  /// none.
  public func checkInvariants() -> StaticString? {
    var check = FrameCheck(allocator: self)
    return check.checkQueues() ?? check.checkSections() ?? check.checkSums()
  }
}

/// One walk over all memory, and the sums that it has found.
private struct FrameCheck {
  let allocator: FrameAllocator
  let table: FrameTable
  let domain: UnsafeMutablePointer<FrameDomain>
  var roles: InlineArray<32, UInt64> = .init(repeating: 0)
  var cached: UInt64 = 0
  var captured: InlineArray<4, UInt32> = .init(repeating: 0)
  /// Frames below this lie in a free block that the walk has met.
  var blockEnd: UInt64 = 0

  /// The frames of one pageblock, counted.
  struct Tally {
    var free: UInt16 = 0
    var unmovable: UInt16 = 0
    var movable: UInt16 = 0
    var absent: UInt16 = 0
    var dirty: UInt16 = 0
    var zspages: UInt16 = 0
    var orders: UInt16 = 0

    mutating func add(_ count: UInt16, _ role: FrameRole, isUnmovable: Bool = false) {
      switch role {
      case .free: free += count
      case .absent: absent += count
      case .zspage:
        movable += count
        zspages += count
      default: if role.isMovable && !isUnmovable { movable += count } else { unmovable += count }
      }
    }
  }

  init(allocator: FrameAllocator) {
    self.allocator = allocator
    (table, domain) = (allocator.table, allocator.state.pointee.domain.quiet)
  }

  func checkQueues() -> StaticString? {
    var free: UInt64 = 0
    for list in 0..<RangeList.count {
      for order in 0..<FrameDomain.orders {
        let queue = domain.pointee.queue(list, order).pointee
        var count: UInt64 = 0
        var previous = UInt32.max
        var at = queue.first
        while at != .max {
          if let broken = checkBlock(at, order, list, previous) { return broken }
          count += 1
          if count > queue.count { return "PM-1: the count of a queue" }
          previous = at
          at = table.record(at).next.rawValue
        }
        guard count == queue.count, queue.last == previous else {
          return "PM-1: the count or end of a queue"
        }
        guard (domain.pointee.masks[list] >> UInt32(order) & 1 == 1) == (count > 0) else {
          return "PM-1: the mask of a list"
        }
        free += count << UInt64(order)
      }
    }
    return free == allocator.freeCount.rawValue ? nil : "PM-6: the count of free frames"
  }

  /// Checks a block in a queue.
  private func checkBlock(_ frame: UInt32, _ order: Int, _ list: Int, _ previous: UInt32) -> StaticString? {
    guard table.section(of: frame) != nil else { return "PM-1: a free block that is no memory" }
    guard domain.pointee.isHead(frame, order) else {
      return "PM-1: a block in a queue that is not marked as its head"
    }
    let record = table.record(frame)
    guard record.queue == .buddy, Int(record.order.rawValue) == order, record.role == .free else {
      return "PM-1: the record of a free block's head"
    }
    guard frame & (1 << UInt32(order) - 1) == 0 else { return "PM-1: a free block off its alignment" }
    let last = frame + (1 << UInt32(order) - 1)
    guard RangeList.of(frame) == list, RangeList.of(last) == list else {
      return "PM-1: a block in the wrong list"
    }
    guard record.previous.rawValue == previous else { return "PM-1: links of a queue" }
    let buddy = frame ^ (1 << UInt32(order))
    if order < Int(BlockOrder.highest.rawValue), RangeList.of(buddy) == list,
      domain.pointee.isHead(buddy, order)
    {
      return "PM-3: two buddies that should have coalesced"
    }
    return nil
  }

  mutating func checkSections() -> StaticString? {
    for number in 0..<table.sectionCount {
      let section = table.entry(number)
      if section.frames == 0 {
        if blockEnd > UInt64(number) << UInt64(Section.frameShift) { return "PM-2: a free block over a hole" }
        continue
      }
      var free: UInt32 = 0
      for i in 0..<section.frames >> Pageblock.shift {
        let first = section.first + i << Pageblock.shift
        if let broken = checkPageblock(first) { return broken }
        free += UInt32(table.pageblock(first).free)
      }
      guard section.free == free else { return "PM-5: the free count of a section" }
    }
    return nil
  }

  private mutating func checkPageblock(_ first: UInt32) -> StaticString? {
    let pageblock = table.pageblock(first)
    let frames = UInt16(Pageblock.frames)
    var tally = Tally()
    if pageblock.head != 0 {
      if blockEnd > UInt64(first) { return "PM-2: free blocks overlap" }
      let order = Int(pageblock.head) + 8
      guard order < FrameDomain.orders, table.record(first).queue == .buddy else {
        return "PM-1: a head in no queue"
      }
      blockEnd = UInt64(first) + 1 << UInt64(order)
    }
    switch pageblock.state {
    case .lazy:
      guard blockEnd >= UInt64(first) + UInt64(frames) else {
        return "PM-7: a lazy pageblock outside of a free block"
      }
      tally.add(frames, .free)
    case .uniform:
      tally.add(frames, pageblock.role)
      if blockEnd > UInt64(first) { return "PM-2: a free block over frames allocated since boot" }
    case .valid:
      for at in 0..<Pageblock.frames {
        if let broken = checkFrame(first + at, &tally) { return broken }
      }
    }
    if pageblock.state != .valid {
      let role = pageblock.state == .lazy ? FrameRole.free : pageblock.role
      roles[Int(role.rawValue)] += UInt64(frames)
    }
    return checkCounts(pageblock, tally)
  }

  private func checkCounts(_ pageblock: PageblockPointer, _ tally: Tally) -> StaticString? {
    guard pageblock.free == tally.free, pageblock.unmovable == tally.unmovable,
      pageblock.movable == tally.movable, pageblock.absent == tally.absent
    else { return "PM-4: the counts of a pageblock" }
    if pageblock.zspages != tally.zspages { return "PM-4: the pages of zspages of a pageblock" }
    if pageblock.dirty.pointee.load(ordering: .relaxed) != tally.dirty {
      return "PM-4: the dirty pages of a pageblock"
    }
    guard tally.orders & ~pageblock.orders == 0 else { return "PM-4: the order bits of a pageblock" }
    let isExact = pageblock.orders == tally.orders || tally.orders == 0
    if pageblock.orders & PageblockPointer.stale == 0 && !isExact {
      // Bits may be set too many only after a block was removed.
      return "PM-4: the order bits of a pageblock are neither exact nor stale"
    }
    return nil
  }

  /// Checks a frame of a valid pageblock, and counts it.
  private mutating func checkFrame(_ frame: UInt32, _ tally: inout Tally) -> StaticString? {
    let record = table.record(frame)
    let role = record.role
    if record.queue == .buddy && Int(record.order.rawValue) < Pageblock.order {
      if blockEnd > UInt64(frame) { return "PM-2: free blocks overlap" }
      tally.orders |= 1 << UInt16(record.order.rawValue)
      blockEnd = UInt64(frame) + 1 << UInt64(record.order.rawValue)
    }
    if (role == .free) != (UInt64(frame) < blockEnd) {
      return "PM-2: a free frame in no block, or an allocated one in one"
    }
    roles[Int(role.rawValue)] += 1
    tally.add(1, role, isUnmovable: record.isUnmovable)
    switch role {
    case .free: return checkFree(record)
    case .absent: return record.busyWord != .none ? "PM-7: a frame that is no memory and busy" : nil
    case .pageable:
      if record.pageFlags.contains(.dirty) { tally.dirty += 1 }
      return checkPage(record)
    default: break
    }
    if record.busyWord.wires == 0 { return "PM-7: an allocated frame without a wire" }
    if record.isUnmovable { return "PM-7: a frame marked as unmovable that is no page" }
    if record.snapshot.isCaptured {
      guard let slot = isolation(of: frame) else { return "PM-9: a captured frame outside of isolations" }
      captured[slot] += 1
    }
    return nil
  }

  private mutating func checkFree(_ record: FrameRecordPointer) -> StaticString? {
    if record.busyWord != .none { return "PM-7: a free frame that is busy" }
    if record.isUnmovable { return "PM-7: a free frame marked as unmovable" }
    if record.flags == PageFlags.cached.rawValue {
      cached += 1
    } else if record.flags != 0 {
      return "PM-8: the flags of a free frame"
    }
    return nil
  }

  /// Checks a page of an object; one that was just allocated has no object yet.
  private func checkPage(_ record: FrameRecordPointer) -> StaticString? {
    if record.pageFlags.contains(.cached) { return "PM-8: an allocated page that is marked as cached" }
    if record.owner == 0 && record.busyWord == .wiredOnce && !record.isUnmovable { return nil }
    return record.isUnmovable == (record.busyWord.wires > 0)
      ? nil : "PM-7: a page marked as unmovable and not wired, or the reverse"
  }

  /// Compares the sums of the walk with the counts.
  func checkSums() -> StaticString? {
    if cached != allocator.cachedCount.rawValue { return "PM-8: the count of cached pages" }
    var watchers: UInt32 = 0
    for i in captured.indices where domain.pointee.isolations[i].state != .unused {
      watchers += 1
      if domain.pointee.isolations[i].captured != captured[i] { return "PM-9: the count of captured frames" }
    }
    watchers += domain.pointee.failedRequests.count
    if watchers != domain.pointee.watchers { return "PM-9: the count of isolations and failed requests" }
    var total: UInt64 = 0
    for value in 0..<FrameRole.count {
      let role = FrameRole(rawValue: UInt8(value)).unsafelyUnwrapped
      if role == .absent { continue }
      guard roles[value] == table.count(role) else { return "PM-6: the count of a role" }
      total += roles[value]
    }
    return total == allocator.total.rawValue ? nil : "PM-6: the roles do not add up to the map"
  }

  private func isolation(of frame: UInt32) -> Int? {
    for i in captured.indices where domain.pointee.isolations[i].state != .unused {
      if frame >= domain.pointee.isolations[i].first && frame < domain.pointee.isolations[i].end { return i }
    }
    return nil
  }
}
