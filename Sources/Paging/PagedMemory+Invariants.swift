// The check of the invariants at the head of PagedMemory.swift, while nothing else uses the instance.

import MemoryPrimitives
import PageTables
import PhysicalMemory

/// Pages counted over all objects.
private struct PageSums {
  var resident: UInt64 = 0
  var wired: UInt64 = 0
  var inSwap: UInt64 = 0
  var queued: UInt64 = 0
}

extension PagedMemory {
  /// Checks all invariants. Returns nil, or a message that begins with the number of one that is broken. A step for each
  /// page of each object and range, and for each slot of swap.
  package func checkInvariants() -> StaticString? {
    if let broken = swap.checkInvariants() { return broken }
    var sums = PageSums()
    var broken: StaticString?
    var objects: UInt64 = 0
    forEachObject { object in
      objects += 1
      if broken == nil { broken = check(object, &sums) }
    }
    if let broken { return broken }
    if objects != counters.objects.value { return "PG-6: the count of objects" }
    if sums.resident != physical.count(.pageable).rawValue {
      return "PG-1: a page belongs to no object"
    }
    if sums.wired != wiredCount.rawValue { return "PG-6: the count of wired pages" }
    if sums.inSwap != swap.figures.used.rawValue {
      return "PG-4: slots of swap that no page refers to"
    }
    if let broken = checkQueues(sums.queued) { return broken }
    return checkRanges()
  }

  private func check(_ object: MemoryObject, _ sums: inout PageSums) -> StaticString? {
    var (resident, copies): (UInt64, UInt64) = (0, 0)
    for index in 0..<object.state.pageCount {
      let slot = object.quietSlot(index).value
      if slot.swap != .none {
        copies += 1
        if object.kind == .device { return "PG-4: a page of a device has a slot of swap" }
      }
      guard slot.presence == .resident else { continue }
      resident += 1
      if let broken = check(slot, index, object, &sums) { return broken }
    }
    let core = object.state.core.quiet
    if resident != core.pointee.resident || copies != core.pointee.inSwap {
      return "PG-6: the counts of an object"
    }
    sums.resident += resident
    sums.inSwap += copies
    return nil
  }

  /// Checks one resident page.
  private func check(
    _ slot: PageSlot, _ index: UInt64, _ object: MemoryObject, _ sums: inout PageSums
  ) -> StaticString? {
    guard let record = physical.record(slot.frame), record.role == .pageable,
      record.owner == object.number, record.index == index
    else { return "PG-1: a slot and its page's record don't name each other" }
    let busyWord = record.busyWord
    let flags = record.pageFlags
    if !flags.contains(.valid) && !busyWord.isXbusy { return "PG-3: a page is not valid" }
    if flags.contains(.dirty) && slot.swap != .none { return "PG-4: a dirty page has a copy" }
    if busyWord.wires > 0 {
      sums.wired += 1
      if wires(of: index, object) != busyWord.wires {
        return "PG-3: the wires of a page and of its mappings"
      }
    }
    let isQueued = PageQueue(record.queue) != nil
    if isQueued { sums.queued += 1 }
    if busyWord.wires > 0 && isQueued { return "PG-3: a wired page is in a queue" }
    if busyWord.wires == 0 && !busyWord.isBusy && !isQueued { return "PG-3: a page is in no queue" }
    let isZero = !flags.contains(.dirty) && slot.swap == .none && object.kind == .anonymous
    if isZero && !busyWord.isBusy && !holdsZeroes(slot.frame) {
      return "PG-5: a page without a copy is neither dirty nor zero"
    }
    return nil
  }

  /// Counts the wires that were made through all mappings of a page.
  private func wires(of index: UInt64, _ object: MemoryObject) -> UInt32 {
    var sum: UInt32 = 0
    // Without the lock, because a fault report may check while a thread holds it.
    forEachAddress(of: index, from: object.state.core.quiet.pointee.firstEntry) { address, _ in
      sum += tables.mapping(at: address)?.wires ?? 0
    }
    return sum
  }

  private func holdsZeroes(_ frame: FrameNumber) -> Bool {
    let page = machine.directMap.pointer(to: frame)
    for word in 0..<Int(Page.size) / 8 where page.load(fromByteOffset: word * 8, as: UInt64.self) != 0 {
      return false
    }
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
          else { return "PG-3: the links of a queue" }
          count += 1
          if count > queues.count(queue) { return "PG-6: the count of a queue" }
          previous = at
          at = record.next
        }
        if count != queues.count(queue) { return "PG-6: the count of a queue" }
        all += count
      }
      return all == queued ? nil : "PG-3: a page is in a queue and in no object"
    }
  }

  private func checkRanges() -> StaticString? {
    var broken: StaticString?
    var ranges: UInt64 = 0
    forEachRange { range in
      ranges += 1
      guard broken == nil, let object = object(numbered: range.object) else {
        broken = broken ?? "PG-2: a range has no object"
        return
      }
      var wires: UInt64 = 0
      for i in 0..<range.count.rawValue {
        guard let mapping = tables.mapping(at: range.address + PageCount(i)) else { continue }
        let slot = object.quietSlot(range.offset.rawValue + i).value
        guard slot.presence == .resident, slot.frame == mapping.frame else {
          broken = "PG-2: a mapping does not lead to the page"
          return
        }
        if mapping.wires > record(slot.frame).busyWord.wires {
          broken = "PG-3: a mapping is wired and its page is not"
          return
        }
        if mapping.isWritable && !record(slot.frame).pageFlags.contains(.dirty) {
          broken = "PG-2: a page is writable and not dirty"
          return
        }
        wires += UInt64(mapping.wires)
      }
      if wires != range.wires { broken = "PG-3: the wires of a range and of its mappings" }
    }
    if broken == nil && ranges != counters.ranges.value {
      broken = "PG-6: the count of ranges"
    }
    return broken
  }
}
