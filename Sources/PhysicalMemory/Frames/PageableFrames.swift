// Frames of pageable pages: the role `pageable`.
//
// Such a frame is allocated wired once or xbusy; from then on its busy word belongs to paging, and it need not be wired. In
// its pageblock it counts as movable, unless paging reports that it is wired: then it is *unmovable* (a mark in the
// record, under the domain lock) and counts as such.
//
// A *cached page* is a clean page that its object has freed. It is a free frame like any other, in the queues and in the
// count of free frames, but its record keeps owner and index, and the frame its contents. Any request may be given it,
// without the object's lock; its identity is then lost. The object keeps the frame number as a hint and asks for the
// page by `reactivate`, which compares owner and index under the domain lock. So a hint of any age is either right or
// wrong, and never names the page of another object.

import MemoryPrimitives
import Synchronization

/// Whether a page that is freed keeps its identity.
@frozen @usableFromInline package enum PageIdentity: UInt8, Sendable {
  /// The identity is discarded.
  case dropped
  /// The frame keeps owner, index and contents until it is allocated.
  case cached
}

/// The result of a request for a cached page.
@frozen @usableFromInline package enum Reactivation: UInt8, Sendable {
  /// The page is the caller's: xbusy, valid, in no queue.
  case taken
  /// The frame is no longer that page.
  case gone
  /// It is, but the reserve of the request's priority does not allow it now.
  case refused
}

/// Whether a walk over pages goes on.
@frozen @usableFromInline package enum PageVisit: UInt8, Sendable { case more, enough }

/// Whether a page can be moved.
@frozen @usableFromInline package enum PageMobility: UInt8, Sendable {
  /// It is wired.
  case unmovable
  /// It has no wire.
  case movable
}

extension FrameAllocator {
  /// Free frames that are cached pages. Constant; exact when nothing runs.
  package var cachedCount: PageCount { PageCount(table.cached.pointee.load(ordering: .relaxed)) }

  /// Calls `body` with each frame from `first` on, below `end`, that is a page, until it returns `enough`; returns the
  /// frame behind the last one. A few instructions a frame. Takes no lock, so a frame may no longer be a page.
  @inline(__always) package func forEachPage(
    from first: FrameNumber, below end: FrameNumber, _ body: (FrameNumber, FrameRecordPointer) -> PageVisit
  ) -> FrameNumber {
    let limit = min(end.rawValue, table.end)
    var at = first.rawValue
    while at < limit {
      let blockEnd = Pageblock.end(at, limit)
      if table.section(of: at) != nil, table.pageblock(at).state == .valid {
        // The records of a pageblock follow each other.
        var record = table.record(at)
        while at < blockEnd {
          let frame = at
          at &+= 1
          if record.hasRole(.pageable), body(FrameNumber(frame), record) == .enough { return FrameNumber(at) }
          record = record.after(1)
        }
      }
      at = blockEnd
    }
    return end
  }

  /// The most pages that one call allocates or frees: one hold of the lock.
  private static var batch: Int { 32 }

  /// Fills `frames` with single frames for pages, each xbusy, as long as more than `reserve` and the reserve of `priority`
  /// stay free. Returns how many it has filled. Never waits. One hold of the lock and some 150 instructions a page, so at
  /// most 32 at a time.
  public func allocate(
    pages frames: UnsafeMutableBufferPointer<FrameNumber>, leaving reserve: PageCount = .zero,
    priority: AllocationPriority = .normal
  ) -> Int {
    precondition(frames.count <= Self.batch, "more pages than one hold of the lock is for")
    if machine.failsHere(.physicalMemory) { return 0 }
    let held = domain.acquire()
    let count = held.value.allocate(pages: frames, leaving: reserve.rawValue, priority: priority)
    held.release()
    var cached: UInt64 = 0
    for i in 0..<count {
      let record = table.record(frames[i].rawValue)
      if record.pageFlags.contains(.cached) { cached += 1 }
      record.handOut(.pageable, .xbusy)
    }
    if cached > 0 { table.cached.pointee.subtract(cached, ordering: .relaxed) }
    checkLowMemory()
    return count
  }

  /// Frees pages as `free(page:_:)` does with `dropped`, all in one hold of the lock: at most 32.
  package func free(droppedPages frames: UnsafeBufferPointer<FrameNumber>) {
    precondition(frames.count <= Self.batch, "more pages than one hold of the lock is for")
    var sound: UInt32 = 0
    for i in 0..<frames.count where prepareToFree(frames[i], .dropped) { sound |= 1 << UInt32(i) }
    guard sound != 0 else { return }
    let held = domain.acquire()
    if held.value.watchers == 0 || !held.value.captureDropped(frames, sound) {
      for i in 0..<frames.count where sound >> UInt32(i) & 1 != 0 {
        held.value.free(frames[i].rawValue, frames[i].rawValue + 1, .pageable)
      }
    }
    let mustWake = held.value.hasWaiters
    held.release()
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Frees a page that the caller has xbusy, that is in no queue and clean, and, if it is to be cached, valid. Constant.
  /// May be called with an object's lock held. Reports anything else as a fault, and frees nothing then.
  package func free(page frame: FrameNumber, _ keeping: PageIdentity) {
    guard prepareToFree(frame, keeping) else { return }
    let held = domain.acquire()
    if keeping == .cached { table.cached.pointee.add(1, ordering: .relaxed) }
    held.value.free(frame.rawValue, frame.rawValue + 1, .pageable)
    let mustWake = held.value.hasWaiters
    held.release()
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Writes the record of a free frame, or reports why the page can't be freed.
  private func prepareToFree(_ frame: FrameNumber, _ keeping: PageIdentity) -> Bool {
    guard let record = record(frame), record.hasRole(.pageable) else {
      reportBadPage(frame, "a frame that is no page was freed as one", .wrongType)
      return false
    }
    let busyWord = record.busyWord
    guard busyWord.isXbusyOnly,
      record.exchangeBusyWord(busyWord, for: .captured)
    else {
      reportBadPage(frame, "a page was freed that the caller has not claimed for itself", .notAllocated)
      return false
    }
    let flags = record.pageFlags
    let isKeepable = keeping == .dropped || flags.contains(.valid)
    guard record.isInNoQueue, !record.isUnmovable, !flags.contains(.dirty), isKeepable else {
      record.busyWord = busyWord
      reportBadPage(
        frame,
        !isKeepable
          ? "a page without contents was to be kept"
          : record.queue != .none
            ? "a page was freed while in a queue"
            : record.isUnmovable
              ? "a page was freed that is marked as unmovable" : "a page was freed while dirty",
        .notAllocated)
      return false
    }
    record.role = .free
    if keeping == .cached {
      record.pageFlags = .cached
    } else {
      record.pageFlags = []
      record.owner = 0
    }
    record.busyWord = .none
    return true
  }

  @inline(never) private func reportBadPage(_ frame: FrameNumber, _ what: StaticString, _ kind: FaultKind) {
    let description = whatIs(frame)
    var fault = FaultReport(
      description.role == .free ? .doubleFree : kind,
      description.role == .free ? "a page was freed while already free" : what, UInt64(frame.rawValue), .frame
    )
    fault.given = UInt64(description.busyWord.rawValue)
    fault.expected = UInt64(BusyWord.xbusy.rawValue)
    machine.report(fault)
  }

  // MARK: Cached pages

  /// Reactivates a cached page if it is still free and is page `index` of `owner`. It then has the role pageable, is
  /// xbusy, valid, clean and in no queue, and its contents are unchanged. `priority` says how much of the reserve this
  /// may use. Never waits. Up to 19 comparisons and 18 splits. May be called with an object's lock held, so it sends no
  /// low-memory notification: see `checkLowMemory`.
  package func reactivate(
    _ frame: FrameNumber, owner: UInt32, index: UInt64, priority: AllocationPriority
  ) -> Reactivation {
    if machine.failsHere(.physicalMemory) { return .refused }
    let held = domain.acquire()
    return held.value.reactivate(frame.rawValue, owner: owner, index: index, priority: priority)
  }

  /// Discards the identity of a cached page, because its object goes or has written the page anew. Does nothing when the
  /// frame is no longer that page. Up to 19 comparisons. May be called with an object's lock held.
  package func discard(cached frame: FrameNumber, owner: UInt32, index: UInt64) {
    domain.withLock { domain in
      guard domain.isCached(frame.rawValue, owner: owner, index: index) else { return }
      let record = table.record(frame.rawValue)
      record.pageFlags = []
      record.owner = 0
      table.cached.pointee.subtract(1, ordering: .relaxed)
    }
  }

  // MARK: Counts of pageblocks

  /// Counts a page as unmovable in its pageblock when it was wired for the first time, or as movable when it was unwired
  /// for the last. Constant. May be called with an object's lock held. The caller keeps the page from being freed.
  /// Reports a fault when the page is counted so already, and for a frame that is no page.
  package func setMobility(of frame: FrameNumber, _ mobility: PageMobility) {
    guard let record = record(frame), record.role == .pageable else {
      return reportBadPage(frame, "a frame that is no page was counted as one", .wrongType)
    }
    let isKnown = domain.withLock { domain in
      if record.isUnmovable == (mobility == .unmovable) { return true }
      record.setMobility(mobility)
      let pageblock = table.pageblock(frame.rawValue)
      switch mobility {
      case .unmovable:
        pageblock.movable &-= 1
        pageblock.unmovable &+= 1
      case .movable:
        pageblock.unmovable &-= 1
        pageblock.movable &+= 1
        if domain.watchers != 0 { domain.recordEmptiable(frame.rawValue, frame.rawValue + 1) }
      }
      return false
    }
    if isKnown { reportBadPage(frame, "a page was counted twice as wired, or as not wired", .notAllocated) }
  }

  /// Counts a page that has become dirty in its pageblock. The caller also sets the flag in the record, under its
  /// object's lock. Constant; takes no lock.
  @inline(__always) package func countDirty(_ frame: FrameNumber) {
    table.pageblock(frame.rawValue).dirty.pointee.add(1, ordering: .relaxed)
  }

  /// Counts a page that has become clean; see `countDirty`.
  @inline(__always) package func countClean(_ frame: FrameNumber) {
    table.pageblock(frame.rawValue).dirty.pointee.subtract(1, ordering: .relaxed)
  }
}

extension FrameDomain {
  /// Fills `frames` with frames that are accounted as pages; returns how many. The caller writes the records.
  @inline(__always)
  fileprivate mutating func allocate(
    pages frames: UnsafeMutableBufferPointer<FrameNumber>, leaving reserve: UInt64,
    priority: AllocationPriority
  ) -> Int {
    var count = 0
    let free = table.count(.free)
    let least = max(reserve, reserves[Int(priority.rawValue)])
    let most = isNext(.none, priority) && free > least ? min(frames.count, Int(clamping: free - least)) : 0
    while count < most {
      count += popSingles(UnsafeMutableBufferPointer(rebasing: frames[count..<most]))
      guard count < most, let frame = split(0) else { break }
      table.accountAllocated(frame, 1, .pageable)
      frames[count] = FrameNumber(frame)
      count += 1
    }
    table.subtract(UInt64(count), from: .free)
    table.add(UInt64(count), to: .pageable)
    events.pointee.allocations.add(UInt64(count))
    if count < frames.count { events.pointee.failedAttempts.add() }
    return count
  }

  /// Pops blocks of one frame off the front of the highest list that has a block, as long as there are any: those that
  /// `split` would pop one by one. Accounts them as pages, but for the counts by role.
  private mutating func popSingles(_ frames: UnsafeMutableBufferPointer<FrameNumber>) -> Int {
    var list = RangeList.count - 1
    while list >= 0 && masks[list] == 0 { list -= 1 }
    guard list >= 0, masks[list] & 1 != 0 else { return 0 }
    let queue = queue(list, 0)
    var frame = queue.pointee.first
    var count = 0
    while count < frames.count && frame != .max {
      let record = table.record(frame)
      frames[count] = FrameNumber(frame)
      count += 1
      record.leaveQueue()
      table.pageblock(frame).orders |= PageblockPointer.stale
      table.accountAllocated(frame, 1, .pageable)
      frame = record.next.rawValue
    }
    queue.pointee.first = frame
    queue.pointee.count &-= UInt64(count)
    if frame == .max {
      queue.pointee.last = .max
      masks[list] &= ~1
    } else {
      table.record(frame).previous = .none
    }
    return count
  }

  /// Whether the frame is a cached page with this identity that is still in the queues.
  fileprivate func isCached(_ frame: UInt32, owner: UInt32, index: UInt64) -> Bool {
    guard table.section(of: frame) != nil, table.pageblock(frame).state == .valid else { return false }
    let record = table.record(frame)
    guard record.role == .free, record.pageFlags.contains(.cached), record.owner == owner,
      record.index == index
    else { return false }
    // A processor that has just allocated the frame may not have written its record yet.
    return block(holding: frame) != nil
  }

  fileprivate mutating func reactivate(
    _ frame: UInt32, owner: UInt32, index: UInt64, priority: AllocationPriority
  ) -> Reactivation {
    guard isCached(frame, owner: owner, index: index) else { return .gone }
    guard isNext(.none, priority), admits(1, priority) else {
      events.pointee.failedAttempts.add()
      return .refused
    }
    detach(frame, frame + 1)
    table.subtract(1, from: .free)
    table.add(1, to: .pageable)
    table.accountAllocated(frame, 1, .pageable)
    table.cached.pointee.subtract(1, ordering: .relaxed)
    let record = table.record(frame)
    record.next = .none
    record.previous = .none
    record.aux = 0
    record.role = .pageable
    record.pageFlags = .valid
    record.busyWord = .xbusy
    events.pointee.reactivations.add()
    return .taken
  }
}
