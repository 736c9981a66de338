// Looking at paging: figures, statistics. Nothing here changes anything.

import CPlatform
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// The figures of paging.
public struct PagingFigures: Sendable {
  public var faults: UInt64 = 0
  public var zeroFills: UInt64 = 0
  public var pageIns: UInt64 = 0
  public var reactivations: UInt64 = 0
  public var failedFaults: UInt64 = 0
  public var waits: UInt64 = 0
  public var written: UInt64 = 0
  /// Of those, for runs of the daemon.
  public var writtenForDaemon: UInt64 = 0
  public var failedWrites: UInt64 = 0
  public var redirtied: UInt64 = 0
  public var moved: UInt64 = 0
  public var cached: UInt64 = 0
  public var dropped: UInt64 = 0
  public var daemonRuns: UInt64 = 0
  public var scanned: UInt64 = 0
  public var wired: UInt64 = 0
  public var objects: UInt64 = 0
  public var ranges: UInt64 = 0
}

/// Where the pages of one object are, counted. Each page is in one place.
public struct ObjectFigures: Sendable {
  public var inMemory = PageCount.zero
  /// Given up, but its frame still holds it.
  public var cached = PageCount.zero
  /// Only there.
  public var inSwap = PageCount.zero
  /// Only there.
  public var onDevice = PageCount.zero
  /// Reads as zero.
  public var untouched = PageCount.zero
  /// Of those in memory: pages that somebody wires, holds, or brings in, moves or writes out.
  public var wired = PageCount.zero
  public var held = PageCount.zero
  public var busy = PageCount.zero
  public var dirty = PageCount.zero
  /// Pages with a copy in swap, wherever else they are.
  public var copies = PageCount.zero
  /// Ranges that show the object.
  public var ranges: UInt64 = 0
}

/// What is known of one page of an object.
public struct PageFacts: Sendable {
  /// A cached page's frame still holds it.
  public var description: PageDescription
  /// The slot of swap that has a copy.
  public var copy: SwapSlot?
}

extension LaunderOutcome {
  /// What came of both.
  public static func + (a: Self, b: Self) -> Self {
    var sum = a
    sum.add(b)
    return sum
  }
}

extension PagedMemory {
  /// Counts where the pages of `object` are. Costs ten instructions a page, 300 for one that was cached; the
  /// object's lock is let go after each 32.
  public func figures(of object: MemoryObject) -> ObjectFigures {
    var figures = ObjectFigures()
    var index: UInt64 = 0
    while index < object.state.pointee.pageCount {
      let interrupts = object.lock()
      let end = min(index + 32, object.state.pointee.pageCount)
      while index < end {
        tally(index, object, &figures)
        index += 1
      }
      object.unlock(interrupts)
    }
    let interrupts = object.lock()
    defer { object.unlock(interrupts) }
    var entry = object.core.pointee.firstEntry
    while let range = entry {
      figures.ranges += 1
      entry = range.pointee.nextOfObject
    }
    return figures
  }

  /// Adds one page. Object's lock held.
  private func tally(_ index: UInt64, _ object: MemoryObject, _ figures: inout ObjectFigures) {
    let slot = object.slot(index).value
    if slot == .untouched && object.kind == .anonymous {
      figures.untouched = figures.untouched + .one
      return
    }
    if slot.swap != .none { figures.copies = figures.copies + .one }
    switch place(of: slot, index, object) {
    case .untouched: figures.untouched = figures.untouched + .one
    case .cached: figures.cached = figures.cached + .one
    case .swapped: figures.inSwap = figures.inSwap + .one
    case .onDevice: figures.onDevice = figures.onDevice + .one
    case .resident:
      figures.inMemory = figures.inMemory + .one
      let record = record(slot.frame)
      let busyWord = record.busyWord
      if busyWord.wires > 0 { figures.wired = figures.wired + .one }
      if busyWord.holds > 0 { figures.held = figures.held + .one }
      if busyWord.isBusy { figures.busy = figures.busy + .one }
      if record.pageFlags.contains(.dirty) { figures.dirty = figures.dirty + .one }
    }
  }

  /// Where a page is; a hint that has gone stale is seen through. Object's lock held.
  private func place(
    of slot: PageSlot, _ index: UInt64, _ object: MemoryObject
  ) -> PageDescription.Place {
    switch slot.presence {
    case .resident: return .resident
    case .cached:
      let frame = physical.whatIs(slot.frame)
      let isStill =
        frame.pageFlags.contains(.cached) && frame.owner == object.number && frame.index == index
      if isStill { return .cached }
    case .absent: break
    }
    return slot.swap != .none ? .swapped : object.kind == .device ? .onDevice : .untouched
  }

  /// What is known of page `index` of `object`. Constant.
  public func facts(of object: MemoryObject, page index: UInt64) -> PageFacts {
    guard index < object.state.pointee.pageCount else {
      return PageFacts(description: PageDescription(place: .untouched))
    }
    let interrupts = object.lock()
    defer { object.unlock(interrupts) }
    let slot = object.slot(index).value
    var facts = PageFacts(description: PageDescription(place: place(of: slot, index, object)))
    if slot.swap != .none { facts.copy = slot.swap }
    switch facts.description.place {
    case .resident:
      let record = record(slot.frame)
      facts.description.flags = record.pageFlags
      facts.description.busyWord = record.busyWord
      facts.description.queue = PageQueue(record.queue)
      facts.description.frame = slot.frame
    case .cached: facts.description.frame = slot.frame
    case .untouched, .swapped, .onDevice: break
    }
    return facts
  }

  /// Pages in a queue. Constant.
  public func count(_ queue: PageQueue) -> PageCount { PageCount(withQueues { $0.count(queue) }) }

  /// Pages that are wired, each once. Constant.
  public var wiredCount: PageCount { PageCount(counters.pointee.wired.value) }

  public var figures: PagingFigures {
    let c = counters
    return PagingFigures(
      faults: c.pointee.faults.value, zeroFills: c.pointee.zeroFills.value, pageIns: c.pointee.pageIns.value,
      reactivations: c.pointee.reactivations.value, failedFaults: c.pointee.failedFaults.value,
      waits: c.pointee.waits.value, written: c.pointee.written.value,
      writtenForDaemon: c.pointee.writtenForDaemon.value,
      failedWrites: c.pointee.failedWrites.value, redirtied: c.pointee.redirtied.value,
      moved: c.pointee.moved.value, cached: c.pointee.cached.value, dropped: c.pointee.dropped.value,
      daemonRuns: c.pointee.daemonRuns.value, scanned: c.pointee.scanned.value, wired: c.pointee.wired.value,
      objects: c.pointee.objects.value, ranges: c.pointee.ranges.value)
  }

  init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  /// Adds the rows of this layer, and those of swap.
  public func register(in statistics: Statistics) {
    swap.register(in: statistics)
    func add(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64,
      write: (@convention(c) (UnsafeMutableRawPointer?, UInt64) -> cp_setting)? = nil
    ) {
      statistics.add(
        Statistic(name, unit, kind, about, context: UnsafeMutableRawPointer(state), read: read, write: write))
    }
    add("vm.pages.active", .pages, .gauge, "pages used of late") { PagedMemory($0).count(.active).rawValue }
    add("vm.pages.inactive", .pages, .gauge, "pages not used for a while") {
      PagedMemory($0).count(.inactive).rawValue
    }
    add("vm.pages.laundry", .pages, .gauge, "pages to be written out") {
      PagedMemory($0).count(.laundry).rawValue
    }
    add("vm.pages.unswappable", .pages, .gauge, "dirty pages without room in swap") {
      PagedMemory($0).count(.unswappable).rawValue
    }
    add("vm.pages.wired", .pages, .gauge, "pageable pages that are wired, each once") {
      PagedMemory($0).wiredCount.rawValue
    }
    add("vm.objects", .objects, .gauge, "memory objects") { PagedMemory($0).figures.objects }
    add("vm.faults", .events, .counter, "page faults") { PagedMemory($0).figures.faults }
    add("vm.faults.zero", .events, .counter, "that a page of zeroes answered") {
      PagedMemory($0).figures.zeroFills
    }
    add("vm.faults.page_in", .events, .counter, "that read a page") { PagedMemory($0).figures.pageIns }
    add("vm.faults.reactivated", .events, .counter, "that took a cached page back") {
      PagedMemory($0).figures.reactivations
    }
    add("vm.faults.failed", .events, .counter, "that came to nothing") {
      PagedMemory($0).figures.failedFaults
    }
    add("vm.laundry.written", .pages, .counter, "pages written out") { PagedMemory($0).figures.written }
    add("vm.laundry.failed", .pages, .counter, "pages that a device failed to write") {
      PagedMemory($0).figures.failedWrites
    }
    add("vm.laundry.redirtied", .pages, .counter, "pages written to while they were written out") {
      PagedMemory($0).figures.redirtied
    }
    add("vm.pages.moved", .pages, .counter, "pages moved to another frame") { PagedMemory($0).figures.moved }
    add("vm.pages.reclaimed", .pages, .counter, "pages that became cached ones") {
      PagedMemory($0).figures.cached
    }
    add("vm.daemon.runs", .events, .counter, "runs of the page daemon") { PagedMemory($0).figures.daemonRuns }
    add("vm.daemon.written", .pages, .counter, "pages written out for them") {
      PagedMemory($0).figures.writtenForDaemon
    }
    add("vm.daemon.scanned", .pages, .counter, "pages that it and the laundry looked at") {
      PagedMemory($0).figures.scanned
    }
    add(
      "vm.free_target", .pages, .tunable, "frames that a run of the page daemon leaves free",
      { PagedMemory($0).freeTarget.rawValue },
      write: { PagedMemory($0).setTarget($1) ? .accepted : .out_of_range })
    add("vm.free_wake", .pages, .gauge, "frames below which the page daemon runs") {
      PagedMemory($0).wakeMark.rawValue
    }
  }

  private func setTarget(_ pages: UInt64) -> Bool {
    guard pages <= physical.total.rawValue / 2 else { return false }
    state.pointee.marks.pointee.target.store(pages, ordering: .relaxed)
    state.pointee.marks.pointee.wake.store(pages - pages / 10, ordering: .relaxed)
    if isServed { physical.setLowMemoryMark(below: wakeMark) }
    return true
  }
}
