// Pages of paging: frames with the role `pageable`.
//
// A page is handed out wired once, like any frame; from then on its claims are paging's, and it need not
// be wired. In its pageblock it counts as movable, unless paging notes that it is wired: then it is *fixed*
// (a mark in the record, under the lock) and counts as unmovable.
//
// A *cached page* is a clean page that its object gave up: a free frame like any other, in the queues and in
// the count of free frames, but its record keeps owner and index and the frame its contents. Any request
// may take it, without a look at the object; the identity is gone with it. Its object keeps the number of
// the frame as a hint and asks for the page by `reactivate`, which compares owner and index under the lock.
// So a hint may be as old as it likes: it is wrong or right, and never somebody else's page.

import MemoryPrimitives
import Synchronization

/// What becomes of a page that is given back.
@frozen public enum PageIdentity: UInt8, Sendable {
  /// Nothing is kept.
  case dropped
  /// The frame keeps owner, index and contents until somebody takes it.
  case cached
}

/// The answer to a request for a cached page.
@frozen public enum Reactivation: UInt8, Sendable {
  /// The page is the caller's: claimed exclusively, valid, in no queue.
  case taken
  /// The frame is no longer that page.
  case gone
  /// It is, but the request's priority may not take a frame now.
  case refused
}

/// Whether a walk over pages goes on.
@frozen public enum PageVisit: UInt8, Sendable { case more, enough }

/// Whether a page can be moved.
@frozen public enum PageMobility: UInt8, Sendable {
  /// It is wired.
  case fixed
  /// Nobody has wired it.
  case movable
}

extension FrameAllocator {
  /// Free frames that are cached pages. Constant; exact when nothing runs.
  public var cachedCount: PageCount { PageCount(state.pointee.cached.load(ordering: .relaxed)) }

  /// Calls `body` with each frame from `first` on, below `end`, that is a page, until it answers `enough`; answers the
  /// frame behind the last one. A few instructions a frame, and no lock: a frame may be no page any more.
  @inline(__always) public func forEachPage(
    from first: FrameNumber, below end: FrameNumber, _ body: (FrameNumber, FrameRecordPointer) -> PageVisit
  ) -> FrameNumber {
    let limit = min(end.rawValue, memoryEnd)
    var at = first.rawValue
    while at < limit {
      let blockEnd = Pageblock.end(at, limit)
      if section(at) != nil, pageblockUnchecked(at).state == .valid {
        // The records of a pageblock follow each other.
        var record = recordUnchecked(at)
        while at < blockEnd {
          let frame = at
          at &+= 1
          if record.hasRole(.pageable), body(FrameNumber(frame), record) == .enough { return FrameNumber(at) }
          record = FrameRecordPointer(record.raw + FrameRecordPointer.size)
        }
      }
      at = blockEnd
    }
    return end
  }

  /// Fills `frames` with single frames for pages, each claimed exclusively, as long as more than `reserve` and the
  /// reserve of `priority` stay free. Answers how many it has filled. Never waits. One hold of the lock and some
  /// 150 instructions a page, so at most 32 at a time.
  public func allocate(
    pages frames: UnsafeMutableBufferPointer<FrameNumber>, leaving reserve: PageCount = .zero,
    priority: AllocationPriority = .normal
  ) -> Int {
    precondition(frames.count <= 32, "more pages than one hold of the lock is for")
    if machine.failsHere(.physicalMemory) { return 0 }
    var count = 0
    let interrupts = lock()
    let free = freeCount.rawValue
    let least = max(reserve.rawValue, core.pointee.reserves[Int(priority.rawValue)])
    let most = isNext(nil, priority) && free > least ? min(frames.count, Int(clamping: free - least)) : 0
    while count < most {
      count += popSingles(UnsafeMutableBufferPointer(rebasing: frames[count..<most]))
      guard count < most, let frame = split(0) else { break }
      accountTaken(frame, 1, .pageable)
      frames[count] = FrameNumber(frame)
      count += 1
    }
    subtract(UInt64(count), from: .free)
    add(UInt64(count), to: .pageable)
    state.pointee.events.pointee.allocations.add(UInt64(count))
    if count < frames.count { state.pointee.events.pointee.failures.add() }
    let isShort = isShort(freeCount.rawValue)
    unlock(interrupts)
    var cached: UInt64 = 0
    for i in 0..<count {
      let record = recordUnchecked(frames[i].rawValue)
      if record.pageFlags.contains(.cached) { cached += 1 }
      record.handOut(.pageable, .xbusy)
    }
    if cached > 0 { state.pointee.cached.subtract(cached, ordering: .relaxed) }
    notifyLowMemory(if: isShort)
    return count
  }

  /// Pops blocks of one frame off the front of the highest list that has a block, as long as there are any: those that
  /// `split` would pop one by one. Counts them as taken for pages, but for the counts by role. Lock held.
  private func popSingles(_ frames: UnsafeMutableBufferPointer<FrameNumber>) -> Int {
    var list = 2
    while list >= 0 && core.pointee.masks[list] == 0 { list -= 1 }
    guard list >= 0, core.pointee.masks[list] & 1 != 0 else { return 0 }
    let queue = queue(list, 0)
    var frame = queue.pointee.first
    var count = 0
    while count < frames.count && frame != .max {
      let record = recordUnchecked(frame)
      frames[count] = FrameNumber(frame)
      count += 1
      record.leaveQueue()
      pageblockUnchecked(frame).orders |= PageblockPointer.stale
      accountTaken(frame, 1, .pageable)
      frame = record.next.rawValue
    }
    queue.pointee.first = frame
    queue.pointee.count &-= UInt64(count)
    if frame == .max {
      queue.pointee.last = .max
      core.pointee.masks[list] &= ~1
    } else {
      recordUnchecked(frame).previous = .none
    }
    return count
  }

  /// Gives pages back as `free(page:_:)` does with `dropped`, all in one hold of the lock: at most 32.
  public func free(droppedPages frames: UnsafeBufferPointer<FrameNumber>) {
    precondition(frames.count <= 32, "more pages than one hold of the lock is for")
    var sound: UInt32 = 0
    for i in 0..<frames.count where prepareToFree(frames[i], .dropped) { sound |= 1 << UInt32(i) }
    guard sound != 0 else { return }
    let interrupts = lock()
    if core.pointee.watchers == 0 || !captureDropped(frames, sound) {
      for i in 0..<frames.count where sound >> UInt32(i) & 1 != 0 {
        giveBack(frames[i].rawValue, frames[i].rawValue + 1, .pageable)
      }
    }
    let mustWake = hasWaiters
    unlock(interrupts)
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Gives a page back that the caller has claimed exclusively, that is in no queue and clean, and, if it is
  /// to be cached, valid. Constant. May be called with an object's lock held. Anything else is a fault,
  /// and then nothing is freed.
  public func free(page frame: FrameNumber, _ keeping: PageIdentity) {
    guard prepareToFree(frame, keeping) else { return }
    let interrupts = lock()
    if keeping == .cached { state.pointee.cached.add(1, ordering: .relaxed) }
    giveBack(frame.rawValue, frame.rawValue + 1, .pageable)
    let mustWake = hasWaiters
    unlock(interrupts)
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Makes the record that of a free frame, or reports why it can't be.
  private func prepareToFree(_ frame: FrameNumber, _ keeping: PageIdentity) -> Bool {
    guard let record = record(frame), record.hasRole(.pageable) else {
      refusePage(frame, "a frame that is no page was freed as one", .wrongType)
      return false
    }
    let busyWord = record.busyWord
    guard busyWord.isXbusyOnly,
      record.exchangeBusyWord(busyWord, for: .captured)
    else {
      refusePage(frame, "a page was freed that the caller has not claimed for itself", .notAllocated)
      return false
    }
    let flags = record.pageFlags
    let isKeepable = keeping == .dropped || flags.contains(.valid)
    guard record.isInNoQueue, !record.isFixed, !flags.contains(.dirty), isKeepable else {
      record.busyWord = busyWord
      refusePage(
        frame,
        !isKeepable
          ? "a page without contents was to be kept"
          : record.queue != .none
            ? "a page was freed while in a queue"
            : record.isFixed ? "a page was freed that is noted as fixed" : "a page was freed while dirty",
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

  @inline(never) private func refusePage(_ frame: FrameNumber, _ what: StaticString, _ kind: FaultKind) {
    let description = whatIs(frame)
    var fault = FaultReport(
      description.role == .free ? .doubleFree : kind,
      description.role == .free ? "a page was freed while already free" : what, UInt64(frame.rawValue), .frame
    )
    fault.given = UInt64(description.busyWord.rawValue)
    fault.expected = UInt64(BusyWord.xbusy.rawValue)
    machine.report(fault)
  }

  /// Whether a record that says free is that of a cached page with this identity, in the queues still.
  /// Lock held.
  private func isCached(_ frame: UInt32, _ owner: UInt32, _ index: UInt64) -> Bool {
    guard section(frame) != nil, pageblockUnchecked(frame).state == .valid else { return false }
    let record = recordUnchecked(frame)
    guard record.role == .free, record.pageFlags.contains(.cached), record.owner == owner,
      record.index == index
    else { return false }
    // Who has just taken the frame may not have written its record yet.
    return block(holding: frame) != nil
  }

  /// Takes a cached page back if it is still free and is page `index` of `owner`: then it has the role
  /// pageable, is claimed exclusively, valid, clean and in no queue, and its contents are what they were.
  /// `priority` says how far down towards the last free frame this may reach. Never waits. Up to 19 looks and
  /// 18 splits. May be called with an object's lock held, so it raises no alarm: see `checkLowMemory`.
  public func reactivate(
    _ frame: FrameNumber, owner: UInt32, index: UInt64, priority: AllocationPriority
  ) -> Reactivation {
    if machine.failsHere(.physicalMemory) { return .refused }
    let number = frame.rawValue
    let interrupts = lock()
    defer { unlock(interrupts) }
    guard isCached(number, owner, index) else { return .gone }
    guard isNext(nil, priority), admits(1, priority) else {
      state.pointee.events.pointee.failures.add()
      return .refused
    }
    detach(number, number + 1)
    subtract(1, from: .free)
    add(1, to: .pageable)
    accountTaken(number, 1, .pageable)
    state.pointee.cached.subtract(1, ordering: .relaxed)
    let record = recordUnchecked(number)
    record.next = .none
    record.previous = .none
    record.aux = 0
    record.role = .pageable
    record.pageFlags = .valid
    record.busyWord = .xbusy
    state.pointee.events.pointee.reactivations.add()
    return .taken
  }

  /// The identity of a cached page is void from now on: its object goes, or writes the page anew. Nothing
  /// happens when the frame is no longer that page. Up to 19 looks. May be called with an object's lock held.
  public func discard(cached frame: FrameNumber, owner: UInt32, index: UInt64) {
    let interrupts = lock()
    defer { unlock(interrupts) }
    guard isCached(frame.rawValue, owner, index) else { return }
    let record = recordUnchecked(frame.rawValue)
    record.pageFlags = []
    record.owner = 0
    state.pointee.cached.subtract(1, ordering: .relaxed)
  }

  /// Drops the identities among frames that were just taken: they are the caller's, no lock.
  @inline(never) func discardCached(_ first: UInt32, _ end: UInt32) {
    var count: UInt64 = 0
    var at = first
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      if pageblockUnchecked(at).state == .valid {
        let record = recordUnchecked(at)
        for i in 0..<Int(pageblockEnd - at)
        where FrameRecordPointer(record.raw + i &* 32).pageFlags.contains(.cached) { count += 1 }
      }
      at = pageblockEnd
    }
    if count > 0 { state.pointee.cached.subtract(count, ordering: .relaxed) }
  }

  // MARK: What pageblocks know of pages

  /// A page was wired for the first time, or unwired for the last: it counts as unmovable or movable in
  /// its pageblock from now on. Constant. May be called with an object's lock held. The caller keeps the page from
  /// being freed meanwhile. Noting what is so already is a fault, as is a frame that is no page.
  public func note(_ frame: FrameNumber, _ mobility: PageMobility) {
    guard let record = record(frame), record.role == .pageable else {
      return refusePage(frame, "a frame that is no page was noted as one", .wrongType)
    }
    let interrupts = lock()
    let isKnown = record.isFixed == (mobility == .fixed)
    if !isKnown {
      record.setFixed(mobility)
      let pageblock = pageblockUnchecked(frame.rawValue)
      switch mobility {
      case .fixed:
        pageblock.movable &-= 1
        pageblock.unmovable &+= 1
      case .movable:
        pageblock.unmovable &-= 1
        pageblock.movable &+= 1
        if core.pointee.watchers != 0 { noteEmptiable(frame.rawValue, frame.rawValue + 1) }
      }
    }
    unlock(interrupts)
    if isKnown { refusePage(frame, "a page was noted twice as wired, or as not wired", .notAllocated) }
  }

  /// The page has become dirty: its pageblock counts it. The caller sets the flag in the record as well, under
  /// its object's lock. Constant, takes no lock.
  @inline(__always) public func noteDirty(_ frame: FrameNumber) {
    pageblockUnchecked(frame.rawValue).dirty.pointee.add(1, ordering: .relaxed)
  }

  /// The page has become clean; see `noteDirty`.
  @inline(__always) public func noteClean(_ frame: FrameNumber) {
    pageblockUnchecked(frame.rawValue).dirty.pointee.subtract(1, ordering: .relaxed)
  }
}
