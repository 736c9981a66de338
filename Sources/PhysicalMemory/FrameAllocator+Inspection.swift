// Inspection: the state of a frame, blocks by list and order, and walks for pictures. Nothing here allocates or changes
// memory. A walk calls its body without the lock, with the state of a moment before.

import MemoryPrimitives
import Synchronization

/// The state of one frame.
package struct FrameDescription: Sendable {
  /// The frame.
  package var frame: FrameNumber
  /// Its use.
  package var role: FrameRole
  /// The index of the object or cache that has it.
  package var owner: UInt32
  /// The owner that was stated when it was allocated, unless its layer keeps its own words in the record.
  package var statedOwner: FrameOwner?
  /// Wires, holds and busy users.
  package var busyWord: BusyWord
  /// The list that its links belong to.
  package var queue: FrameQueue
  /// Of a page, also a cached one: its index in its object.
  package var index: UInt64 = 0
  /// Of a page: whether it is valid, dirty, referenced or cached.
  package var pageFlags: PageFlags = []
  /// The list that its address belongs to.
  package var list: RangeList
  /// The section of 128 MiB that it lies in.
  package var section: UInt32
  /// For a free frame: the first frame of its block.
  package var block: FrameNumber?
  /// For a free frame: the order of its block.
  package var blockOrder: BlockOrder?
}

/// The 512 frames of a pageblock, counted by use.
package struct PageblockCounts: Equatable, Sendable {
  /// The first frame.
  package var first: FrameNumber
  /// Free frames.
  package var free: PageCount
  /// Allocated frames that can't be moved.
  package var unmovable: PageCount
  /// Pages that could be moved.
  package var other: PageCount
  /// Dirty pages, wired ones too.
  package var dirty: PageCount
  /// Frames that are no memory of the map.
  package var absent: PageCount
}

extension FrameDescription {
  /// The owner by the role alone: for frames that boot took before any caller, and those whose layer keeps its own words in
  /// the record. Nil where only the layer above knows, and for a frame without an owner.
  package var ownerByRole: StaticString? {
    switch role {
    case .image: "the kernel's image"
    case .bootModule: "a file of the loader"
    case .boot: "boot"
    case .records: "PhysicalMemory, frame records and counts"
    case .pageTable: "PageTables, made at boot"
    case .tags: "Vmem, boundary tags"
    case .kmem: "Kmem, its own tables"
    case .statistics: "statistics"
    case .contiguous: busyWord == .captured ? "a request for contiguous memory under way" : nil
    default: nil
    }
  }
}

extension FrameAllocator {
  /// Names another owner of frames that the caller has allocated: one that takes them over. A few instructions a frame.
  package func setOwner(of run: FrameRun, _ owner: FrameOwner) {
    var at = run.first.rawValue
    while at < run.end.rawValue {
      let pageblockEnd = Pageblock.end(at, run.end.rawValue)
      let record = table.record(at)
      for i in 0..<Int(pageblockEnd - at) { record.after(i).setOwner(owner) }
      at = pageblockEnd
    }
  }

  // MARK: Reserves and blocks

  /// Returns the number of frames that requests of `priority` leave free.
  public func reserve(for priority: AllocationPriority) -> PageCount {
    domain.withLock { PageCount($0.reserves[Int(priority.rawValue)]) }
  }

  /// The most frames that a reserve may hold: half of memory.
  var largestReserve: PageCount { PageCount(total.rawValue / 2) }

  /// Sets the number of frames that requests of `priority` leave free. Throws `badConstraint` for more than half of
  /// memory.
  public func setReserve(_ pages: PageCount, for priority: AllocationPriority) throws(PhysicalMemoryError) {
    guard pages <= largestReserve else { throw .badConstraint }
    let mustWake = domain.withLock { domain in
      domain.reserves[Int(priority.rawValue)] = pages.rawValue
      return domain.hasWaiters
    }
    // A waiter may have enough now.
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Returns the number of blocks of `order` in `list`. Constant.
  package func blocks(in list: RangeList, of order: BlockOrder) -> UInt64 {
    guard order <= .highest else { return 0 }
    return domain.withLock { $0.queue(Int(list.rawValue), Int(order.rawValue)).pointee.count }
  }

  /// Whether any memory that is not permanent since boot has a position for such a run, whatever is freed. A step for each
  /// extent of it; takes no lock.
  package func hasPlace(
    forRun count: PageCount, where constraints: RunConstraints = RunConstraints()
  ) -> Bool {
    guard let request = RunRequest(count, constraints) else { return false }
    for span in spans {
      let (first, end) = (max(span.first, request.low), min(span.end, request.high))
      if first < end && request.highestStart(UInt64(first), UInt64(end)) != nil { return true }
    }
    return false
  }

  // MARK: One frame

  /// Returns the state of `frame`, memory or not.
  package func whatIs(_ frame: FrameNumber) -> FrameDescription {
    domain.withLock { $0.describe(frame.rawValue) }
  }

  /// Returns the first frame of `run` that has another role than `role`, also one that is no memory; nil when all have
  /// it. A few instructions a frame; takes no lock, because the caller has the run.
  package func firstFrame(of run: FrameRun, without role: FrameRole) -> FrameNumber? {
    var at = UInt64(run.first.rawValue)
    let end = at + run.count.rawValue
    while at < end {
      guard at < UInt64(FrameNumber.limit), let record = record(FrameNumber(UInt32(at))) else {
        return FrameNumber(UInt32(min(at, UInt64(UInt32.max))))
      }
      let pageblockEnd = Pageblock.end(at, end)
      for i in 0..<Int(pageblockEnd - at) where record.after(i).role != role {
        return FrameNumber(UInt32(at) + UInt32(i))
      }
      at = pageblockEnd
    }
    return nil
  }

  // MARK: Pageblocks

  /// Returns the counts of the pageblock that holds `frame`, or nil where no frame has a record. Constant.
  package func pageblockCounts(at frame: FrameNumber) -> PageblockCounts? {
    domain.withLock { _ in
      guard let pageblock = table.pageblockIfAny(frame.rawValue) else { return nil }
      return PageblockCounts(
        first: FrameNumber(Pageblock.first(frame.rawValue)), free: PageCount(UInt64(pageblock.free)),
        unmovable: PageCount(UInt64(pageblock.unmovable)), other: PageCount(UInt64(pageblock.movable)),
        dirty: PageCount(pageblock.dirtyCount),
        absent: PageCount(UInt64(pageblock.absent)))
    }
  }

  /// Calls `body` with the counts of each pageblock that has records, in address order.
  package func forEachPageblock<E>(_ body: (PageblockCounts) throws(E) -> Void) throws(E) {
    for number in 0..<table.sectionCount {
      let entry = table.entry(number)
      for i in 0..<entry.frames >> Pageblock.shift {
        if let counts = pageblockCounts(at: FrameNumber(entry.first + i << Pageblock.shift)) {
          try body(counts)
        }
      }
    }
  }

  // MARK: Walks

  /// Calls `body` with each run of frames of one role in frames `low` to `high`, in address order, without holes. A frame
  /// of a hole that shares a pageblock with memory is `absent`.
  package func forEachRole<E>(
    from low: FrameNumber = FrameNumber(0), to high: FrameNumber = .none,
    _ body: (FrameRun, FrameRole) throws(E) -> Void
  ) throws(E) {
    var at = low.rawValue
    let top = min(high.rawValue, table.end)
    var run = FrameRun(first: low, count: .zero)
    var role = FrameRole.absent
    while at < top {
      let (end, here) = domain.withLock { $0.roleRun(at, top) }
      if let here {
        if here == role && run.count > .zero && run.end.rawValue == at {
          run.count += PageCount(UInt64(end - at))
        } else {
          if run.count > .zero { try body(run, role) }
          run = FrameRun(first: FrameNumber(at), count: PageCount(UInt64(end - at)))
          role = here
        }
      }
      at = end
    }
    if run.count > .zero { try body(run, role) }
  }

  /// Returns the last frame of the free block, or of the hole, that holds `frame`, and the role of the two that it is; nil
  /// for any other frame. A hole ends with its section at the latest. Up to 19 comparisons.
  package func lastOfBlockOrHole(at frame: FrameNumber) -> (last: FrameNumber, role: FrameRole)? {
    domain.withLock { domain in
      if table.section(of: frame.rawValue) == nil {
        return (FrameNumber(table.holeEnd(frame.rawValue) - 1), .absent)
      }
      guard let (first, order) = domain.block(holding: frame.rawValue) else { return nil }
      return (FrameNumber(first + (1 << UInt32(order) - 1)), .free)
    }
  }

  /// Calls `body` with each free block, in address order.
  package func forEachFreeBlock<E>(_ body: (FrameNumber, BlockOrder) throws(E) -> Void) throws(E) {
    var at: UInt32 = 0
    while at < table.end {
      if let (head, order) = domain.withLock({ $0.nextBlock(&at) }) {
        try body(FrameNumber(head), BlockOrder(UInt8(order)))
      }
    }
  }
}

extension FrameDomain {
  fileprivate func describe(_ frame: UInt32) -> FrameDescription {
    var answer = FrameDescription(
      frame: FrameNumber(frame), role: .absent, owner: 0, busyWord: .none, queue: .none, index: 0,
      pageFlags: [], list: RangeList(rawValue: UInt8(RangeList.of(frame))).unsafelyUnwrapped,
      section: frame >> Section.frameShift, block: nil, blockOrder: nil)
    guard let pageblock = table.pageblockIfAny(frame) else { return answer }
    if let (head, order) = block(holding: frame) {
      answer.role = .free
      (answer.block, answer.blockOrder) = (FrameNumber(head), BlockOrder(UInt8(order)))
      if pageblock.state == .valid, table.record(frame).pageFlags.contains(.cached) {
        let record = table.record(frame)
        (answer.owner, answer.index, answer.pageFlags) = (record.owner, record.index, .cached)
      }
      return answer
    }
    switch pageblock.state {
    case .lazy:
      // Another processor has allocated it, and has not written its record yet.
      (answer.role, answer.busyWord) = (.wired, .wiredOnce)
    case .uniform:
      answer.role = pageblock.role
      answer.busyWord = pageblock.role == .absent ? .none : .wiredOnce
    case .valid:
      let record = table.record(frame)
      (answer.role, answer.busyWord, answer.owner) = (record.role, record.busyWord, record.owner)
      answer.queue = record.queue
      answer.statedOwner = record.statedOwner
      if record.role == .pageable { (answer.index, answer.pageFlags) = (record.index, record.pageFlags) }
    }
    return answer
  }

  /// The end of the frames from `at` on with one role, up to the end of a pageblock or a free block, and the role; no role
  /// in a hole.
  fileprivate func roleRun(_ at: UInt32, _ top: UInt32) -> (UInt32, FrameRole?) {
    guard let pageblock = table.pageblockIfAny(at) else { return (min(top, table.holeEnd(at)), nil) }
    if let (head, order) = block(holding: at) {
      return (min(top, head + (1 << UInt32(order))), .free)
    }
    let pageblockEnd = Pageblock.end(at, top)
    switch pageblock.state {
    case .lazy: return (pageblockEnd, .wired)
    case .uniform: return (pageblockEnd, pageblock.role)
    case .valid:
      let role = table.record(at).role
      var end = at + 1
      while end < pageblockEnd && role != .free && table.record(end).hasRole(role) { end += 1 }
      return (end, role)
    }
  }

  /// The next free block from `at` on, and moves `at` behind it; nil after 60 steps without one.
  fileprivate func nextBlock(_ at: inout UInt32) -> (UInt32, Int)? {
    let top = table.end
    var steps = 0
    while at < top && steps < 60 {
      steps += 1
      guard let section = table.section(of: at) else {
        at = min(top, table.holeEnd(at))
        continue
      }
      if section.free == 0 {
        at = min(top - 1, section.first + (section.frames - 1)) + 1
        continue
      }
      if table.pageblock(at).free == 0 {
        at = Pageblock.end(at, top)
        continue
      }
      if let (head, order) = block(holding: at) {
        let isNew = head >= at
        at = head + (1 << UInt32(order))
        return isNew ? (head, order) : nil
      }
      at += 1
    }
    return nil
  }
}
