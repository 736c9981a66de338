// The proof of the invariants at the head of FrameAllocator.swift, when nothing runs.

import MemoryPrimitives
import Synchronization

extension FrameAllocator {
  /// Nil when all invariants hold, else which one is broken. Looks at each frame whose record is valid and at
  /// each pageblock once, and at each free block a few times: too long for a lock, so none is taken.
  public func checkInvariants() -> StaticString? {
    if let broken = checkQueues() { return broken }
    return checkFrames()
  }

  private func checkQueues() -> StaticString? {
    var free: UInt64 = 0
    for list in 0..<3 {
      for order in 0...18 {
        let queue = queue(list, order).pointee
        var count: UInt64 = 0
        var previous = UInt32.max
        var at = queue.first
        while at != .max {
          guard section(at) != nil else { return "1: a free block that is no memory" }
          guard isHead(at, order) else { return "1: a block in a queue that is not marked as its head" }
          let record = recordUnchecked(at)
          guard record.queue == .buddy, Int(record.order.rawValue) == order, record.role == .free else {
            return "1: the record of a free block's head"
          }
          guard at & (1 << UInt32(order) - 1) == 0 else { return "1: a free block off its alignment" }
          let last = at + (1 << UInt32(order) - 1)
          guard RangeList.of(at) == list, RangeList.of(last) == list else {
            return "1: a block in the wrong list"
          }
          guard record.previous.rawValue == previous else { return "1: links of a queue" }
          count += 1
          if count > queue.count { return "1: the count of a queue" }
          let buddy = at ^ (1 << UInt32(order))
          if order < 18, RangeList.of(buddy) == list, isHead(buddy, order) {
            return "3: two buddies that should have coalesced"
          }
          previous = at
          at = record.next.rawValue
        }
        guard count == queue.count, queue.last == previous else { return "1: the count or end of a queue" }
        guard (core.pointee.masks[list] >> UInt32(order) & 1 == 1) == (count > 0) else {
          return "1: the mask of a list"
        }
        free += count << UInt64(order)
      }
    }
    return free == freeCount.rawValue ? nil : "6: the count of free frames"
  }

  private func checkFrames() -> StaticString? {
    var roles: InlineArray<32, UInt64> = .init(repeating: 0)
    var cached: UInt64 = 0
    var captured: InlineArray<4, UInt32> = .init(repeating: 0)
    /// Frames below this lie in a free block that was met.
    var blockEnd: UInt64 = 0
    for number in 0..<state.pointee.sectionCount {
      let section = sectionEntry(number)
      if section.frames == 0 {
        if blockEnd > UInt64(number) << UInt64(Section.frameShift) { return "2: a free block over a hole" }
        continue
      }
      var sectionFree: UInt32 = 0
      for i in 0..<section.frames >> Pageblock.shift {
        let first = section.first + i << Pageblock.shift
        let pageblock = pageblockUnchecked(first)
        var free: UInt16 = 0, unmovable: UInt16 = 0, movable: UInt16 = 0, absent: UInt16 = 0
        var dirty: UInt16 = 0
        var orders: UInt16 = 0
        if pageblock.head != 0 {
          if blockEnd > UInt64(first) { return "2: free blocks overlap" }
          let order = Int(pageblock.head) + 8
          guard order <= 18, recordUnchecked(first).queue == .buddy else { return "1: a head in no queue" }
          blockEnd = UInt64(first) + 1 << UInt64(order)
        }
        switch pageblock.state {
        case .lazy:
          guard blockEnd >= UInt64(first) + 512 else { return "7: a lazy pageblock outside of a free block" }
          free = 512
        case .uniform:
          if pageblock.role == .absent {
            absent = 512
          } else if pageblock.role.isMovable {
            movable = 512
          } else {
            unmovable = 512
          }
          roles[Int(pageblock.role.rawValue)] += 512
          if blockEnd > UInt64(first) { return "2: a free block over frames taken since boot" }
        case .valid:
          for at in 0..<Pageblock.frames {
            let frame = first + at
            let record = recordUnchecked(frame)
            let role = record.role
            if record.queue == .buddy && Int(record.order.rawValue) < 9 {
              if blockEnd > UInt64(frame) { return "2: free blocks overlap" }
              orders |= 1 << UInt16(record.order.rawValue)
              blockEnd = UInt64(frame) + 1 << UInt64(record.order.rawValue)
            }
            if (role == .free) != (UInt64(frame) < blockEnd) {
              return "2: a free frame in no block, or a taken one in one"
            }
            if role == .free || role == .absent {
              if record.busyWord != .none { return "7: a free frame with claims" }
            } else if role == .pageable {
              if let broken = checkPage(record) { return broken }
              if record.pageFlags.contains(.dirty) { dirty += 1 }
            } else if record.busyWord.wires == 0 {
              return "7: an allocated frame without a wire"
            } else if record.isFixed {
              return "7: a frame noted as fixed that is no page"
            }
            if role == .free {
              if record.isFixed { return "7: a free frame noted as fixed" }
              if record.flags == PageFlags.cached.rawValue {
                cached += 1
              } else if record.flags != 0 {
                return "8: the flags of a free frame"
              }
            } else if record.snapshot.isCaptured {
              guard let slot = isolation(of: frame) else {
                return "9: a captured frame outside of isolations"
              }
              captured[slot] += 1
            }
            roles[Int(role.rawValue)] += 1
            if role == .free {
              free += 1
            } else if role == .absent {
              absent += 1
            } else if role.isMovable && !record.isFixed {
              movable += 1
            } else {
              unmovable += 1
            }
          }
          roles[0] -= UInt64(free)
        }
        guard pageblock.free == free, pageblock.unmovable == unmovable, pageblock.movable == movable,
          pageblock.absent == absent
        else { return "4: the counts of a pageblock" }
        if pageblock.dirty.pointee.load(ordering: .relaxed) != dirty {
          return "4: the dirty pages of a pageblock"
        }
        guard orders & ~pageblock.orders == 0 else { return "4: the order bits of a pageblock" }
        if pageblock.orders & PageblockPointer.stale == 0 && pageblock.orders != orders && orders != 0 {
          // Bits may be set too many only after a block was taken.
          return "4: the order bits of a pageblock are neither exact nor stale"
        }
        roles[0] += UInt64(free)
        sectionFree += UInt32(free)
      }
      guard section.free == sectionFree else { return "5: the free count of a section" }
    }
    if cached != state.pointee.cached.load(ordering: .relaxed) { return "8: the count of cached pages" }
    var watchers: UInt32 = 0
    for i in 0..<4 where core.pointee.isolations[i].number != 0 {
      watchers += 1
      if core.pointee.isolations[i].captured != captured[i] { return "9: the count of captured frames" }
    }
    for i in 0..<8 where core.pointee.failedRequests[i].request != nil { watchers += 1 }
    if watchers != core.pointee.watchers { return "9: the count of who watches frees" }
    var total: UInt64 = 0
    for value in 0..<FrameRole.count {
      let role = FrameRole(rawValue: UInt8(value)).unsafelyUnwrapped
      if role == .absent { continue }
      guard roles[value] == count(role).rawValue else { return "6: the count of a role" }
      total += roles[value]
    }
    return total == state.pointee.total ? nil : "6: the roles don't add up to the map"
  }

  /// A page of an object is fixed exactly while it is wired; one as handed out is nobody's yet.
  private func checkPage(_ record: FrameRecordPointer) -> StaticString? {
    if record.pageFlags.contains(.cached) { return "8: a page in use that is marked as cached" }
    if record.owner == 0 && record.busyWord == .wiredOnce && !record.isFixed { return nil }
    return record.isFixed == (record.busyWord.wires > 0)
      ? nil : "7: a page noted as fixed and not wired, or not"
  }

  private func isolation(of frame: UInt32) -> Int? {
    for i in 0..<4 where core.pointee.isolations[i].number != 0 {
      if frame >= core.pointee.isolations[i].first && frame < core.pointee.isolations[i].end { return i }
    }
    return nil
  }
}
