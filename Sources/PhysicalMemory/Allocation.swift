// Taking frames: by order, one given frame, many single ones; and giving them back in any parts.

import MemoryPrimitives
import Synchronization

extension FrameAllocator {
  // MARK: Taking

  /// A block of 2^`order` frames, aligned to its size, from as high a list as has one. Each frame
  /// gets `role` and one wire; its contents are unknown. Never waits. Constant, but for the records: a
  /// store or two a frame. Throws `noMemory`; `badConstraint` for an order above 18.
  public func allocate(
    _ order: Order, role: FrameRole, priority: AllocationPriority = .normal
  ) throws(PhysicalMemoryError) -> FrameNumber {
    checkUse(role)
    guard order <= .highest else { throw .badConstraint }
    let frame = take(Int(order.rawValue), role, priority, as: nil)
    guard let frame else {
      noteRefused(.block, order.frames, role, priority)
      throw .noMemory
    }
    return FrameNumber(frame)
  }

  /// The same for a request that may wait until `deadline` for enough frames to be free; requests of a
  /// priority are served in the order in which they came. `interrupt` never waits. Throws `noMemory` when the
  /// deadline passes, when nothing could wake the sleeper, and at once when there is not so much memory, or
  /// frames enough are free but no block is: that is not waited for.
  public func allocate(
    _ order: Order, role: FrameRole, priority: AllocationPriority, waitUntil deadline: Tick
  ) throws(PhysicalMemoryError) -> FrameNumber {
    checkUse(role)
    guard order <= .highest else { throw .badConstraint }
    if let frame = take(Int(order.rawValue), role, priority, as: nil) { return FrameNumber(frame) }
    let frame = priority == .interrupt ? nil : wait(for: order, role, priority, until: deadline)
    guard let frame else {
      noteRefused(.block, order.frames, role, priority)
      throw .noMemory
    }
    return FrameNumber(frame)
  }

  /// Fills `frames` with single frames, or throws and takes none. A few hundred instructions a frame at
  /// most.
  public func allocate(
    into frames: UnsafeMutableBufferPointer<FrameNumber>, role: FrameRole,
    priority: AllocationPriority = .normal
  ) throws(PhysicalMemoryError) {
    checkUse(role)
    for i in 0..<frames.count {
      guard let frame = take(0, role, priority, as: nil) else {
        for k in 0..<i { free(FrameRun(first: frames[k], count: .one)) }
        throw .noMemory
      }
      frames[i] = FrameNumber(frame)
    }
  }

  /// The given frame, if no request of its priority waits. Up to 19 looks and 18 splits. Throws `outsideMemory`,
  /// `notFree` or `noMemory`.
  public func allocate(
    frame: FrameNumber, role: FrameRole, priority: AllocationPriority = .normal
  ) throws(PhysicalMemoryError) {
    checkUse(role)
    let number = frame.rawValue
    if machine.failsHere(.physicalMemory) { throw .noMemory }
    var interrupts = lock()
    let found = block(holding: number)
    guard found != nil, isNext(nil, priority), admits(1, priority) else {
      let isMemory = isPresent(number)
      if found != nil { state.pointee.events.pointee.failures.add() }
      unlock(interrupts)
      noteRefused(
        .frame, .one, role, priority, !isMemory ? "no memory there" : found == nil ? "not free" : nil)
      throw !isMemory ? .outsideMemory : found == nil ? .notFree : .noMemory
    }
    detach(number, number + 1)
    account(number, number + 1, role, &interrupts)
    state.pointee.events.pointee.allocations.add()
    let isShort = isShort(freeCount.rawValue)
    unlock(interrupts)
    stamp(number, number + 1, role)
    notifyLowMemory(if: isShort)
  }

  /// Notes a refusal, if it is this layer's to note: what kmem, arenas, tables, paging or contiguous memory ask
  /// for is noted by those who asked them. No lock held.
  func noteRefused(
    _ kind: RefusedRequest.Kind, _ count: PageCount, _ role: FrameRole, _ priority: AllocationPriority,
    _ reason: StaticString? = nil, _ constraints: RunConstraints = RunConstraints()
  ) {
    switch role {
    case .slab, .kmem, .pageTable, .tags, .stack, .contiguous, .pageable, .loaned: return
    default: break
    }
    func request() -> RefusedRequest {
      let (free, reserved) = (freeCount.rawValue, reserve(for: priority).rawValue)
      // The count is the caller's and may be anything.
      let enough = free >= reserved && free - reserved >= count.rawValue
      var request = RefusedRequest(
        kind, count.bytes, priority: priority, requester: Name(role.description),
        reason: reason ?? (enough ? "fragmentation" : "shortage"), free: freeCount)
      if constraints.alignment > .page { request.alignment = ByteCount(constraints.alignment.rawValue) }
      if let boundary = constraints.boundary { request.boundary = ByteCount(boundary.rawValue) }
      (request.low, request.high) = (constraints.low, constraints.high)
      return request
    }
    machine.note(request())
  }

  @inline(always) func checkUse(_ role: FrameRole) {
    precondition(role != .free && role != .absent, "frames are allocated for a use")
  }

  /// Whether `count` frames may be taken at `priority`. Lock held.
  func admits(_ count: UInt64, _ priority: AllocationPriority) -> Bool { count <= admitted(priority) }

  /// How many frames may be taken at `priority`. Lock held.
  @inline(__always) func admitted(_ priority: AllocationPriority) -> UInt64 {
    let free = (state.pointee.counts + 0).pointee.load(ordering: .relaxed)
    let reserve = core.pointee.reserves[Int(priority.rawValue)]
    return free > reserve ? free - reserve : 0
  }

  /// A block, or nil. `waiter` is set when a waiter tries again.
  func take(
    _ order: Int, _ role: FrameRole, _ priority: AllocationPriority, as waiter: UnsafeMutablePointer<Waiter>?
  ) -> UInt32? {
    if machine.failsHere(.physicalMemory) { return nil }
    let count: UInt32 = 1 << UInt32(truncatingIfNeeded: order)
    let interrupts = lock()
    guard isNext(waiter, priority), admits(UInt64(count), priority), let frame = split(order) else {
      state.pointee.events.pointee.failures.add()
      unlock(interrupts)
      return nil
    }
    subtract(UInt64(count), from: .free)
    add(UInt64(count), to: role)
    var at = frame
    var rest = count
    while true {
      let part = min(rest, Pageblock.frames)
      accountTaken(at, part, role)
      rest &-= part
      if rest == 0 { break }
      at &+= part
    }
    state.pointee.events.pointee.allocations.add()
    let isShort = isShort(freeCount.rawValue)
    unlock(interrupts)
    stamp(frame, frame + count, role)
    notifyLowMemory(if: isShort)
    return frame
  }

  /// Takes a block of `order` out of the queues, the smallest that will do in the highest list that has
  /// any. Lock held.
  @inline(always) func split(_ order: Int) -> UInt32? {
    for list in stride(from: 2, through: 0, by: -1) {
      let mask = core.pointee.masks[list] >> UInt32(truncatingIfNeeded: order)
      if mask == 0 { continue }
      var have = order &+ mask.trailingZeroBitCount
      let frame = queue(list, have).pointee.first
      unlink(frame, have)
      if order < 9 { materialize(frame) }
      while have > order {
        have &-= 1
        push(frame &+ (1 << UInt32(truncatingIfNeeded: have)), have, .front)
      }
      return frame
    }
    return nil
  }

  /// Takes frames `first` to `end`, all free, out of the queues; what else their blocks hold goes back.
  /// Lock held; a step for each block.
  func detach(_ first: UInt32, _ end: UInt32) {
    var at = first
    while at < end {
      let (head, order) = block(holding: at).unsafelyUnwrapped
      unlink(head, order)
      let blockEnd = head + (1 << UInt32(order))
      // A pageblock taken in part must have valid records before its other part can go back.
      if head < at {
        if at & (Pageblock.frames - 1) != 0 { materialize(at) }
        putBack(head, at)
      }
      if blockEnd > end {
        if end & (Pageblock.frames - 1) != 0 { materialize(end) }
        putBack(end, blockEnd)
      }
      at = min(blockEnd, end)
    }
  }

  /// Counts frames `first` to `end`, just detached, as taken for `role`, letting go of the lock now and
  /// then.
  func account(_ first: UInt32, _ end: UInt32, _ role: FrameRole, _ interrupts: inout UInt64) {
    subtract(UInt64(end - first), from: .free)
    add(UInt64(end - first), to: role)
    var at = first
    var steps = 0
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      accountTaken(at, pageblockEnd - at, role)
      at = pageblockEnd
      steps += 1
      if steps % 512 == 0 {
        unlock(interrupts)
        interrupts = lock()
      }
    }
  }

  /// Writes the records of frames that were just taken: no lock.
  func stamp(_ first: UInt32, _ end: UInt32, _ role: FrameRole, _ busyWord: BusyWord = .wiredOnce) {
    if state.pointee.cached.load(ordering: .relaxed) != 0 { discardCached(first, end) }
    var at = first
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let pageblock = pageblockUnchecked(at)
      let record = recordUnchecked(at)
      let count = Int(pageblockEnd - at)
      if pageblock.state == .valid {
        for i in 0..<count { FrameRecordPointer(record.raw + i &* 32).handOut(role, busyWord) }
      } else {
        // The whole pageblock was taken out of one block, and nobody else looks at it.
        assert(count == 512)
        for i in 0..<count {
          FrameRecordPointer(record.raw + i &* 32).initialize(role: role, busyWord: busyWord)
        }
        pageblock.state = .valid
      }
      at = pageblockEnd
    }
  }

  /// Whether the map gave us this frame.
  func isPresent(_ frame: UInt32) -> Bool {
    guard let pageblock = pageblock(frame) else { return false }
    switch pageblock.state {
    case .lazy: return true
    case .uniform: return pageblock.role != .absent
    case .valid: return recordUnchecked(frame).role != .absent
    }
  }

  // MARK: Giving back

  /// Gives frames back: all or part of what one or several requests got, in any order and parts. A step a
  /// frame, and up to 18 merges for each aligned part. A frame that is free, not memory, boot's for good, or
  /// claimed by more than its one wire is a fault, and then nothing is freed.
  public func free(_ run: FrameRun) {
    let first = run.first.rawValue
    guard run.count.rawValue > 0, run.count.rawValue <= UInt64(FrameNumber.limit - first) else {
      var fault = FaultReport(
        run.count == .zero ? .wrongSize : .foreignPointer,
        run.count == .zero ? "a run of no frames was freed" : "a run beyond the last frame was freed",
        UInt64(first), .frame)
      fault.given = run.count.rawValue
      machine.report(fault)
      return
    }
    let end = first + UInt32(run.count.rawValue)
    var at = first
    while at < end {
      guard let record = record(FrameNumber(at)), record.exchangeBusyWord(.wiredOnce, for: .xbusy) else {
        refuse(at, claimedFrom: first)
        return
      }
      if !record.snapshot.mayBeFreed {
        record.busyWord = .wiredOnce
        refuse(at, claimedFrom: first)
        return
      }
      at += 1
    }
    release(first, end)
  }

  /// Gives 2^`order` frames back.
  public func free(_ first: FrameNumber, _ order: Order) {
    guard order <= .highest else {
      var fault = FaultReport(
        .wrongSize, "a block of an order above 18 was freed", UInt64(first.rawValue), .frame)
      fault.given = UInt64(order.rawValue)
      fault.expected = UInt64(Order.highest.rawValue)
      machine.report(fault)
      return
    }
    free(FrameRun(first: first, count: order.frames))
  }

  /// Undoes the claims of a free that met a frame it must not free, and reports that one.
  @inline(never) private func refuse(_ frame: UInt32, claimedFrom first: UInt32) {
    for claimed in first..<frame { recordUnchecked(claimed).busyWord = .wiredOnce }
    let description = whatIs(FrameNumber(frame))
    let (kind, what): (FaultKind, StaticString)
    switch description.role {
    case .absent: (kind, what) = (.foreignPointer, "a frame that is no memory was freed")
    case .free: (kind, what) = (.doubleFree, "the frame was freed while already free")
    case .boot, .image, .records: (kind, what) = (.notAllocated, "a frame that boot keeps was freed")
    default:
      (kind, what) =
        description.busyWord.isXbusy
        ? (.doubleFree, "the frame was freed while being freed")
        : (.notAllocated, "a frame was freed that others wire, hold or use")
    }
    var fault = FaultReport(kind, what, UInt64(frame), .frame)
    fault.given = UInt64(description.busyWord.rawValue)
    fault.expected = UInt64(BusyWord.wiredOnce.rawValue)
    machine.report(fault)
  }

  /// Frees frames that are claimed, a pageblock and a role at a time.
  func release(_ first: UInt32, _ end: UInt32) {
    var at = first
    var mustWake = false
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let role = recordUnchecked(at).role
      var partEnd = at
      while partEnd < pageblockEnd {
        let record = recordUnchecked(partEnd)
        if record.role != role { break }
        record.role = .free
        record.flags = 0
        record.queue = .none
        record.owner = 0
        record.busyWord = .none
        partEnd += 1
      }
      let interrupts = lock()
      giveBack(at, partEnd, role)
      mustWake = mustWake || hasWaiters
      unlock(interrupts)
      at = partEnd
    }
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }

  /// Counts frames `first` to `end` of one pageblock and role, whose records say free already, as free and puts
  /// them where they belong. Lock held.
  @inline(always) func giveBack(_ first: UInt32, _ end: UInt32, _ role: FrameRole) {
    let count = end &- first
    subtract(UInt64(count), from: role)
    add(UInt64(count), to: .free)
    accountFreed(first, count, role)
    if core.pointee.watchers == 0 { queueUp(first, end) } else { queueUpWatched(first, end, role) }
    state.pointee.events.pointee.frees.add()
  }

  /// Puts frames that have just become free into the queues. Lock held.
  @inline(always) func queueUp(_ first: UInt32, _ end: UInt32) {
    var at = first
    while at < end {
      let order = largestOrder(at, end)
      insert(at, order)
      at += 1 << UInt32(order)
    }
  }
}
