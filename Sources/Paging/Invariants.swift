// The proof of the invariants at the head of PagedMemory.swift, when nothing runs.

import MemoryPrimitives
import PageTables
import PhysicalMemory

extension PagedMemory {
  /// Nil when all invariants hold, else which one is broken. Looks at each page of each object and range once.
  public func checkInvariants() -> StaticString? {
    if swap.checkInvariants() != nil { return "paging: an invariant of swap" }
    var (resident, wired, inSwap, queued): (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var broken: StaticString?
    var objects: UInt64 = 0
    forEachObject { object in
      objects += 1
      if broken == nil { broken = check(object, &resident, &wired, &inSwap, &queued) }
    }
    if let broken { return broken }
    if objects != counters.pointee.objects.value { return "paging: invariant 6, the count of objects" }
    if resident != physical.count(.pageable).rawValue {
      return "paging: invariant 1, a page belongs to no object"
    }
    if wired != wiredCount.rawValue { return "paging: invariant 6, the count of wired pages" }
    if inSwap != swap.figures.used.rawValue {
      return "paging: invariant 4, slots of swap that no page refers to"
    }
    if let broken = checkQueues(queued) { return broken }
    return checkRanges()
  }

  private func check(
    _ object: MemoryObject, _ resident: inout UInt64, _ wired: inout UInt64, _ inSwap: inout UInt64,
    _ queued: inout UInt64
  ) -> StaticString? {
    var (here, copies): (UInt64, UInt64) = (0, 0)
    for index in 0..<object.state.pointee.pageCount {
      let slot = object.slot(index).value
      if slot.swap != .none {
        copies += 1
        if object.kind == .device { return "paging: invariant 4, a page of a device has a slot of swap" }
      }
      guard slot.presence == .resident else { continue }
      here += 1
      guard let record = physical.record(slot.frame), record.role == .pageable,
        record.owner == object.number, record.index == index
      else { return "paging: invariant 1, a slot and its page's record don't name each other" }
      let busyWord = record.busyWord
      let flags = record.pageFlags
      if !flags.contains(.valid) && !busyWord.isXbusy { return "paging: invariant 3, a page is not valid" }
      if flags.contains(.dirty) && slot.swap != .none {
        return "paging: invariant 4, a dirty page has a copy"
      }
      if busyWord.wires > 0 {
        wired += 1
        if wires(of: index, object) != busyWord.wires {
          return "paging: invariant 3, the wires of a page and of its mappings"
        }
      }
      let isQueued = PageQueue(record.queue) != nil
      if isQueued { queued += 1 }
      if busyWord.wires > 0 && isQueued { return "paging: invariant 3, a wired page is in a queue" }
      if busyWord.wires == 0 && !busyWord.isBusy && !isQueued {
        return "paging: invariant 3, a page is in no queue"
      }
      let isZero = !flags.contains(.dirty) && slot.swap == .none && object.kind == .anonymous
      if isZero && !busyWord.isBusy && !holdsZeroes(slot.frame) {
        return "paging: invariant 5, a page without a copy is neither dirty nor zero"
      }
    }
    if here != object.core.pointee.resident || copies != object.core.pointee.inSwap {
      return "paging: invariant 6, the counts of an object"
    }
    resident += here
    inSwap += copies
    return nil
  }

  /// Wires that were made through all mappings of a page.
  private func wires(of index: UInt64, _ object: MemoryObject) -> UInt32 {
    var sum: UInt32 = 0
    forEachAddress(of: index, object) { address, _ in sum += tables.mapping(at: address)?.wires ?? 0 }
    return sum
  }

  private func holdsZeroes(_ frame: FrameNumber) -> Bool {
    let page = machine.directMap.pointer(to: frame)
    for word in 0..<512 where page.load(fromByteOffset: word * 8, as: UInt64.self) != 0 { return false }
    return true
  }

  private func checkQueues(_ queued: UInt64) -> StaticString? {
    withQueues { queues -> StaticString? in
      var all: UInt64 = 0
      for number in 0..<PageQueue.count {
        guard let queue = PageQueue(rawValue: UInt8(number)) else { continue }
        var count: UInt64 = 0
        var previous = FrameNumber.none
        var at = queues.first(queue)
        while at != .none {
          guard let record = physical.record(at), record.role == .pageable, record.queue == queue.mark,
            record.previous == previous
          else { return "paging: invariant 3, the links of a queue" }
          count += 1
          if count > queues.count(queue) { return "paging: invariant 6, the count of a queue" }
          previous = at
          at = record.next
        }
        if count != queues.count(queue) { return "paging: invariant 6, the count of a queue" }
        all += count
      }
      return all == queued ? nil : "paging: invariant 3, a page is in a queue and no object's"
    }
  }

  private func checkRanges() -> StaticString? {
    var broken: StaticString?
    var ranges: UInt64 = 0
    forEachRange { range in
      ranges += 1
      guard broken == nil, let object = object(numbered: range.object) else {
        broken = broken ?? "paging: invariant 2, a range shows no object"
        return
      }
      var wires: UInt64 = 0
      for i in 0..<range.count.rawValue {
        guard let mapping = tables.mapping(at: range.address + PageCount(i)) else { continue }
        let slot = object.slot(range.offset.rawValue + i).value
        guard slot.presence == .resident, slot.frame == mapping.frame else {
          broken = "paging: invariant 2, a mapping does not lead to the page"
          return
        }
        if mapping.wires > record(slot.frame).busyWord.wires {
          broken = "paging: invariant 3, a mapping is wired and its page is not"
          return
        }
        if mapping.isWritable && !record(slot.frame).pageFlags.contains(.dirty) {
          broken = "paging: invariant 2, a page is writable and not dirty"
          return
        }
        wires += UInt64(mapping.wires)
      }
      if wires != range.wires { broken = "paging: invariant 3, the wires of a range and of its mappings" }
    }
    if broken == nil && ranges != counters.pointee.ranges.value {
      broken = "paging: invariant 6, the count of ranges"
    }
    return broken
  }
}
