// Looking: what is known of a frame, blocks by list and order, and visits for pictures. Nothing here
// takes memory or changes anything; visitors run without the lock, on what was true a moment before.

import MemoryPrimitives
import Synchronization

/// What is known of one frame.
public struct FrameDescription: Sendable {
  public var frame: FrameNumber
  public var role: FrameRole
  /// The index of the object or cache that has it.
  public var owner: UInt32
  public var busyWord: BusyWord
  public var queue: FrameQueue
  /// Of a page, also a cached one: its place in its object, and what is said of it.
  public var index: UInt64 = 0
  public var pageFlags: PageFlags = []
  public var list: RangeList
  /// The section of 128 MiB that it lies in.
  public var section: UInt32
  /// For a free frame: the first frame and the order of its block.
  public var block: FrameNumber?
  public var blockOrder: Order?
}

/// How the 512 frames of a pageblock are used.
public struct PageblockCounts: Equatable, Sendable {
  public var first: FrameNumber
  public var free: PageCount
  public var unmovable: PageCount
  /// Pages that could be moved.
  public var other: PageCount
  /// Dirty pages, wired ones too.
  public var dirty: PageCount
  /// No memory of ours.
  public var absent: PageCount
}

extension FrameAllocator {
  /// What a request of `priority` leaves free.
  public func reserve(for priority: AllocationPriority) -> PageCount {
    let interrupts = lock()
    defer { unlock(interrupts) }
    return PageCount(core.pointee.reserves[Int(priority.rawValue)])
  }

  /// Sets what requests of `priority` leave free; at most a half of memory.
  public func setReserve(_ pages: PageCount, for priority: AllocationPriority) throws(PhysicalMemoryError) {
    guard pages.rawValue <= state.pointee.total / 2 else { throw .badConstraint }
    let interrupts = lock()
    core.pointee.reserves[Int(priority.rawValue)] = pages.rawValue
    let mustWake = hasWaiters
    unlock(interrupts)
    // Whoever waits may have enough now.
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Blocks of `order` in `list`. Constant.
  public func blocks(in list: RangeList, of order: Order) -> UInt64 {
    guard order <= .highest else { return 0 }
    let interrupts = lock()
    defer { unlock(interrupts) }
    return queue(Int(list.rawValue), Int(order.rawValue)).pointee.count
  }

  /// What is known of `frame`, memory or not.
  public func whatIs(_ frame: FrameNumber) -> FrameDescription {
    let number = frame.rawValue
    var answer = FrameDescription(
      frame: frame, role: .absent, owner: 0, busyWord: .none, queue: .none, index: 0, pageFlags: [],
      list: RangeList(rawValue: UInt8(RangeList.of(number))).unsafelyUnwrapped,
      section: number >> Section.frameShift, block: nil, blockOrder: nil)
    let interrupts = lock()
    defer { unlock(interrupts) }
    guard let pageblock = pageblock(number) else { return answer }
    if let (head, order) = block(holding: number) {
      answer.role = .free
      (answer.block, answer.blockOrder) = (FrameNumber(head), Order(UInt8(order)))
      if pageblock.state == .valid, recordUnchecked(number).pageFlags.contains(.cached) {
        let record = recordUnchecked(number)
        (answer.owner, answer.index, answer.pageFlags) = (record.owner, record.index, .cached)
      }
      return answer
    }
    switch pageblock.state {
    case .lazy:
      // On its way to whoever took it.
      (answer.role, answer.busyWord) = (.wired, .wiredOnce)
    case .uniform:
      answer.role = pageblock.role
      answer.busyWord = pageblock.role == .absent ? .none : .wiredOnce
    case .valid:
      let record = recordUnchecked(number)
      (answer.role, answer.busyWord, answer.owner) = (record.role, record.busyWord, record.owner)
      answer.queue = record.queue
      if record.role == .pageable { (answer.index, answer.pageFlags) = (record.index, record.pageFlags) }
    }
    return answer
  }

  /// The first frame of `run` that has another role than `role`, no memory counted; nil when all have it. A few
  /// instructions a frame; takes no lock, for whoever has the run.
  public func firstFrame(of run: FrameRun, without role: FrameRole) -> FrameNumber? {
    var at = UInt64(run.first.rawValue)
    let end = at + run.count.rawValue
    while at < end {
      guard at < UInt64(FrameNumber.limit), let record = record(FrameNumber(UInt32(at))) else {
        return FrameNumber(UInt32(min(at, UInt64(UInt32.max))))
      }
      let pageblockEnd = min(end, (at | 511) + 1)
      for i in 0..<Int(pageblockEnd - at) where FrameRecordPointer(record.raw + i &* 32).role != role {
        return FrameNumber(UInt32(at) + UInt32(i))
      }
      at = pageblockEnd
    }
    return nil
  }

  /// The counts of the pageblock that holds `frame`, or nil where no frame has a record. Constant.
  public func pageblockCounts(at frame: FrameNumber) -> PageblockCounts? {
    let interrupts = lock()
    defer { unlock(interrupts) }
    guard let pageblock = pageblock(frame.rawValue) else { return nil }
    return PageblockCounts(
      first: FrameNumber(frame.rawValue & ~(Pageblock.frames - 1)), free: PageCount(UInt64(pageblock.free)),
      unmovable: PageCount(UInt64(pageblock.unmovable)), other: PageCount(UInt64(pageblock.movable)),
      dirty: PageCount(UInt64(pageblock.dirty.pointee.load(ordering: .relaxed))),
      absent: PageCount(UInt64(pageblock.absent)))
  }

  /// Calls `body` with the counts of each pageblock that has records, in address order.
  public func forEachPageblock<E>(_ body: (PageblockCounts) throws(E) -> Void) throws(E) {
    for number in 0..<state.pointee.sectionCount {
      let entry = sectionEntry(number)
      for i in 0..<entry.frames >> Pageblock.shift {
        if let counts = pageblockCounts(at: FrameNumber(entry.first + i << Pageblock.shift)) {
          try body(counts)
        }
      }
    }
  }

  /// Calls `body` with each run of frames of one role in frames `low` to `high`, in address order, holes
  /// left out (a frame of a hole that shares a pageblock with memory is `absent`).
  public func forEachRole<E>(
    from low: FrameNumber = FrameNumber(0), to high: FrameNumber = .none,
    _ body: (FrameRun, FrameRole) throws(E) -> Void
  ) throws(E) {
    var at = low.rawValue
    let top = min(high.rawValue, memoryEnd)
    var run = FrameRun(first: low, count: .zero)
    var role = FrameRole.absent
    while at < top {
      let (end, here) = roleRun(at, top)
      if let here {
        if here == role && run.count.rawValue > 0 && run.end.rawValue == at {
          run.count = run.count + PageCount(UInt64(end - at))
        } else {
          if run.count.rawValue > 0 { try body(run, role) }
          run = FrameRun(first: FrameNumber(at), count: PageCount(UInt64(end - at)))
          role = here
        }
      }
      at = end
    }
    if run.count.rawValue > 0 { try body(run, role) }
  }

  /// Frames from `at` on with one role, up to the end of a pageblock or a free block; no role in a hole.
  func roleRun(_ at: UInt32, _ top: UInt32) -> (UInt32, FrameRole?) {
    let interrupts = lock()
    defer { unlock(interrupts) }
    guard let pageblock = pageblock(at) else { return (min(top, holeEnd(at)), nil) }
    if let (head, order) = block(holding: at) {
      return (min(top, head + (1 << UInt32(order))), .free)
    }
    let pageblockEnd = Pageblock.end(at, top)
    switch pageblock.state {
    case .lazy: return (pageblockEnd, .wired)
    case .uniform: return (pageblockEnd, pageblock.role)
    case .valid:
      let role = recordUnchecked(at).role
      var end = at + 1
      while end < pageblockEnd && role != .free && recordUnchecked(end).hasRole(role) { end += 1 }
      return (end, role)
    }
  }

  /// The last frame of the free block, or of the hole, that holds `frame`, and which of the two that is; nil for
  /// any other frame. A hole ends with its section at the latest. Up to 19 looks.
  public func lastOfBlockOrHole(at frame: FrameNumber) -> (last: FrameNumber, role: FrameRole)? {
    let interrupts = lock()
    defer { unlock(interrupts) }
    if section(frame.rawValue) == nil {
      return (FrameNumber(holeEnd(frame.rawValue) - 1), .absent)
    }
    return block(holding: frame.rawValue).map { (FrameNumber($0.first + (1 << UInt32($0.order) - 1)), .free) }
  }

  /// The frame behind the hole that `frame` lies in, as far as its section goes.
  private func holeEnd(_ frame: UInt32) -> UInt32 {
    let number = Int(frame >> Section.frameShift)
    if number < state.pointee.sectionCount {
      let entry = sectionEntry(number)
      if entry.frames != 0 && frame < entry.first { return entry.first }
    }
    return UInt32(min(UInt64(UInt32.max), UInt64(number + 1) << UInt64(Section.frameShift)))
  }

  /// Calls `body` with each free block, in address order.
  public func forEachFreeBlock<E>(_ body: (FrameNumber, Order) throws(E) -> Void) throws(E) {
    var at: UInt32 = 0
    let top = memoryEnd
    while at < top {
      var found: (UInt32, Int)?
      let interrupts = lock()
      var steps = 0
      while at < top && steps < 60 {
        steps += 1
        guard let section = section(at) else {
          at = min(top, holeEnd(at))
          continue
        }
        if section.free == 0 {
          at = min(top - 1, section.first + (section.frames - 1)) + 1
          continue
        }
        if pageblockUnchecked(at).free == 0 {
          at = Pageblock.end(at, top)
          continue
        }
        if let (head, order) = block(holding: at) {
          if head >= at { found = (head, order) }
          at = head + (1 << UInt32(order))
          break
        }
        at += 1
      }
      unlock(interrupts)
      if let (head, order) = found { try body(FrameNumber(head), Order(UInt8(order))) }
    }
  }

  // MARK: Statistics

  /// Adds this layer's rows.
  public func register(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(state)
    func gauge(
      _ name: StaticString, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, .pages, .gauge, about, context: context, read: read))
    }
    func counter(
      _ name: StaticString, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, .requests, .counter, about, context: context, read: read))
    }
    gauge("vm.frames.total", "frames that the memory map gave") { Self($0).total.rawValue }
    for value in 0..<FrameRole.count {
      let role = FrameRole(rawValue: UInt8(value)).unsafelyUnwrapped
      if role == .absent { continue }
      statistics.add(
        Statistic(
          role.statisticName, .pages, .gauge, "frames with this role",
          context: UnsafeMutableRawPointer(state.pointee.counts + Int(role.rawValue)),
          read: { $0!.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed) }))
    }
    gauge("vm.frames.cached", "free frames that are cached pages") { Self($0).cachedCount.rawValue }
    statistics.add(
      Statistic(
        "vm.reserve.normal", .pages, .tunable, "frames that normal requests leave free", context: context,
        read: { Self($0).reserve(for: .normal).rawValue },
        write: { Self($0).setReserve($1, .normal) ? .accepted : .out_of_range }))
    statistics.add(
      Statistic(
        "vm.reserve.system", .pages, .tunable, "frames that system requests leave free", context: context,
        read: { Self($0).reserve(for: .system).rawValue },
        write: { Self($0).setReserve($1, .system) ? .accepted : .out_of_range }))
    counter("vm.allocations", "blocks and single frames given out") {
      Self($0).state.pointee.events.pointee.allocations.value
    }
    counter("vm.frees", "pageblocks of one role given back") {
      Self($0).state.pointee.events.pointee.frees.value
    }
    counter("vm.failures", "requests refused, runs not counted") {
      Self($0).state.pointee.events.pointee.failures.value
    }
    counter("vm.runs", "runs given out") { Self($0).state.pointee.events.pointee.runs.value }
    counter("vm.run_failures", "runs refused") { Self($0).state.pointee.events.pointee.runFailures.value }
    counter("vm.run_steps", "steps of searches for runs") {
      Self($0).state.pointee.events.pointee.runSteps.value
    }
    counter("vm.waits", "requests that waited for memory") {
      Self($0).state.pointee.events.pointee.waits.value
    }
    counter("vm.reactivations", "cached pages taken back") {
      Self($0).state.pointee.events.pointee.reactivations.value
    }
    counter("vm.isolations", "runs isolated to be emptied") {
      Self($0).state.pointee.events.pointee.isolations.value
    }
    counter("vm.isolated", "frames captured in isolated runs") {
      Self($0).state.pointee.events.pointee.captures.value
    }
    counter("vm.searches", "searches for runs to be emptied") {
      Self($0).state.pointee.events.pointee.searches.load(ordering: .relaxed)
    }
    counter("vm.search_steps", "steps of searches for runs to be emptied") {
      Self($0).state.pointee.events.pointee.searchSteps.load(ordering: .relaxed)
    }
    counter("vm.failed_cache.hits", "requests that a note called hopeless") {
      Self($0).state.pointee.events.pointee.failedCacheHits.load(ordering: .relaxed)
    }
    counter("vm.failed_cache.steps", "steps of looks at such notes") {
      Self($0).state.pointee.events.pointee.failedCacheSteps.load(ordering: .relaxed)
    }
  }

  init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  func setReserve(_ pages: UInt64, _ priority: AllocationPriority) -> Bool {
    do throws(PhysicalMemoryError) {
      try setReserve(PageCount(pages), for: priority)
      return true
    } catch {
      return false
    }
  }
}
