// Queries about objects, pages and queues. None changes anything.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// The state of one page of an object.
package struct PageDescription: Sendable {
  /// Where the page's content is. A page in memory may have a copy elsewhere.
  package enum Place: UInt8, Sendable { case untouched, resident, cached, swapped, onDevice }
  /// Where the page is.
  package var place: Place
  /// The frame of a resident or cached page.
  package var frame: FrameNumber?
  /// The flags of a resident page.
  package var flags: PageFlags = []
  /// The busy word of a resident page.
  package var busyWord = BusyWord.none
  /// The queue of a resident page, if it is in one.
  package var queue: PageQueue?
}

/// Counts of the pages of one object by place. Each page is in one place.
package struct ObjectFigures: Sendable {
  /// Resident pages.
  package var inMemory = PageCount.zero
  /// Reclaimed pages whose frames still have them.
  package var cached = PageCount.zero
  /// Pages that are only in swap.
  package var inSwap = PageCount.zero
  /// Pages that are only on the device.
  package var onDevice = PageCount.zero
  /// Pages that read as zero.
  package var untouched = PageCount.zero
  /// Resident pages that are wired.
  package var wired = PageCount.zero
  /// Resident pages that are held.
  package var held = PageCount.zero
  /// Resident pages that are being brought in, moved or written out.
  package var busy = PageCount.zero
  /// Resident pages that are dirty.
  package var dirty = PageCount.zero
  /// Pages with a copy in swap, resident or not.
  package var copies = PageCount.zero
  /// Ranges that map the object.
  package var ranges: UInt64 = 0
}

/// The state of one page of an object, and its copy.
package struct PageFacts: Sendable {
  /// The state of the page. A cached page's frame still has it.
  package var description: PageDescription
  /// The slot of swap that has a copy, if any.
  package var copy: SwapSlot?
}

extension PagedMemory {
  /// Counts the pages of `object` by place. Costs ten instructions a page, 300 for one that was cached. The
  /// object's lock is released after each 32.
  package func figures(of object: MemoryObject) -> ObjectFigures {
    var figures = ObjectFigures()
    var index: UInt64 = 0
    while index < object.state.pageCount {
      let held = object.acquire()
      let end = min(index + 32, object.state.pageCount)
      while index < end {
        tally(index, held, &figures)
        index += 1
      }
      held.release()
    }
    let held = object.acquire()
    var entry = held.core.firstEntry
    while let range = entry {
      figures.ranges += 1
      entry = range.nextOfObject
    }
    held.release()
    return figures
  }

  /// Adds one page to the counts.
  private func tally(_ index: UInt64, _ held: borrowing HeldObject, _ figures: inout ObjectFigures) {
    let slot = held.slot(index).value
    if slot == .untouched && held.kind == .anonymous {
      figures.untouched += 1
      return
    }
    if slot.swap != .none { figures.copies += 1 }
    switch findContent(of: slot, index, held) {
    case .untouched: figures.untouched += 1
    case .cached: figures.cached += 1
    case .swapped: figures.inSwap += 1
    case .onDevice: figures.onDevice += 1
    case .resident:
      figures.inMemory += 1
      let record = record(slot.frame)
      let busyWord = record.busyWord
      if busyWord.wires > 0 { figures.wired += 1 }
      if busyWord.holds > 0 { figures.held += 1 }
      if busyWord.isBusy { figures.busy += 1 }
      if record.pageFlags.contains(.dirty) { figures.dirty += 1 }
    }
  }

  /// Finds where a page is; a stale hint of a cached page does not count.
  private func findContent(
    of slot: PageSlot, _ index: UInt64, _ held: borrowing HeldObject
  ) -> PageDescription.Place {
    switch slot.presence {
    case .resident: return .resident
    case .cached:
      let frame = physical.whatIs(slot.frame)
      let isStill =
        frame.pageFlags.contains(.cached) && frame.owner == held.number && frame.index == index
      if isStill { return .cached }
    case .absent: break
    }
    return slot.swap != .none ? .swapped : held.kind == .device ? .onDevice : .untouched
  }

  /// Describes page `index` of `object`, and its copy in swap. Constant.
  package func facts(of object: MemoryObject, page index: UInt64) -> PageFacts {
    guard index < object.state.pageCount else {
      return PageFacts(description: PageDescription(place: .untouched))
    }
    let held = object.acquire()
    let slot = held.slot(index).value
    var page = PageDescription(place: findContent(of: slot, index, held))
    if page.place == .resident || page.place == .cached { page.frame = slot.frame }
    if page.place == .resident {
      let record = record(slot.frame)
      page.flags = record.pageFlags
      page.busyWord = record.busyWord
      page.queue = PageQueue(record.queue)
    }
    held.release()
    return PageFacts(description: page, copy: slot.swap == .none ? nil : slot.swap)
  }

  /// Describes page `index` of `object`. Constant.
  package func describe(_ object: MemoryObject, page index: UInt64) -> PageDescription {
    facts(of: object, page: index).description
  }

  /// Pages of an object in memory. Constant.
  public func residentCount(_ object: MemoryObject) -> PageCount {
    PageCount(object.state.core.withLock { $0.resident })
  }

  /// Pages of an object with a copy in swap. Constant.
  public func swapCount(_ object: MemoryObject) -> PageCount {
    PageCount(object.state.core.withLock { $0.inSwap })
  }

  /// Pages in a queue. Constant.
  package func count(_ queue: PageQueue) -> PageCount { PageCount(withQueues { $0.count(queue) }) }

  /// Pages that are wired, each once. Constant.
  public var wiredCount: PageCount { PageCount(counters.wired.value) }
}
