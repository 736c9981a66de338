// Allocation by order, of one given frame, and of many single frames; and the free of any part of them.

import MemoryPrimitives
import Synchronization

/// A request that a public call of the frame allocator refuses.
struct Refusal {
  let kind: RefusedRequest.Kind
  let count: PageCount
  let role: FrameRole
  let owner: FrameOwner
  let priority: AllocationPriority
  /// Nil for want of memory: shortage or fragmentation.
  let reason: StaticString?
  let constraints: RunConstraints

  init(
    _ kind: RefusedRequest.Kind, _ count: PageCount, for role: FrameRole, _ owner: FrameOwner,
    _ priority: AllocationPriority, reason: StaticString? = nil,
    constraints: RunConstraints = RunConstraints()
  ) {
    (self.kind, self.count, self.role) = (kind, count, role)
    (self.owner, self.priority, self.reason) = (owner, priority, reason)
    self.constraints = constraints
  }

  /// Describes a block; one above the highest order can never be had.
  init(_ order: BlockOrder, for role: FrameRole, _ owner: FrameOwner, _ priority: AllocationPriority) {
    let isPossible = order <= .highest
    self.init(
      .block, isPossible ? order.frames : PageCount(UInt64.max >> Page.shift), for: role, owner, priority,
      reason: isPossible ? nil : "never: above the highest order")
  }

  /// The purpose that was stated; the role where none was.
  var requester: ShortName {
    owner.isStated ? owner.requester : ShortName(role.description)
  }
}

extension FrameAllocator {
  // MARK: Allocation

  /// Allocates a block of 2^`order` frames, aligned to its size, from the highest list that has one. Each frame gets
  /// `role` and one wire; its contents are unknown. Never waits. Constant, but for the records: a store or two a frame.
  /// `whatis` names `owner` for each frame. Throws `noMemory`, or `badConstraint` for an order above 18, and logs the
  /// refusal.
  public func allocate(
    _ order: BlockOrder, role: FrameRole, priority: AllocationPriority = .normal,
    for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) -> FrameNumber {
    do throws(PhysicalMemoryError) {
      return try allocateUnlogged(order, role: role, priority: priority, for: owner)
    } catch {
      if error == .noMemory, priority != .interrupt,
        let frame = retryAfterReclaim({ allocateBlock(order, role, priority, for: owner) })
      {
        return FrameNumber(frame)
      }
      logRefusal(Refusal(order, for: role, owner, priority))
      throw error
    }
  }

  /// Does what `allocate` does, and logs no refusal: for a layer that logs its own request, of which this one is a part.
  package func allocateUnlogged(
    _ order: BlockOrder, role: FrameRole, priority: AllocationPriority = .normal,
    for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) -> FrameNumber {
    checkUse(role)
    guard order <= .highest else { throw .badConstraint }
    guard let frame = allocateBlock(order, role, priority, for: owner) else { throw .noMemory }
    return FrameNumber(frame)
  }

  /// Allocates a block, and waits until `deadline` for enough free frames; requests of a priority are served in the
  /// order in which they came. `interrupt` never waits. If frames enough are free, but lie scattered, the layer of
  /// contiguous memory empties a block. Throws `noMemory` when the deadline passes, when nothing could wake the sleeper,
  /// when no block can be emptied, and at once when memory has not so many frames.
  public func allocate(
    _ order: BlockOrder, role: FrameRole, priority: AllocationPriority, waitUntil deadline: Tick,
    for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) -> FrameNumber {
    checkUse(role)
    guard order <= .highest else {
      logRefusal(Refusal(order, for: role, owner, priority))
      throw .badConstraint
    }
    let request = WaitingRequest(order: order, role: role, priority: priority, owner: owner)
    if let frame = allocateWaiting(request, until: deadline, unless: { false }) { return frame }
    logRefusal(Refusal(order, for: role, owner, priority))
    throw .noMemory
  }

  /// Does what `allocate(waitUntil:)` does, and logs no refusal. Ends, and returns nil, also when a wake finds that the
  /// caller `isServed`: for a layer whose request something else may serve too.
  package func allocateWaiting(
    _ request: WaitingRequest, until deadline: Tick, unless isServed: () -> Bool
  ) -> FrameNumber? {
    func attempt() -> UInt32? {
      allocateBlock(request.order, request.role, request.priority, for: request.owner)
    }
    if let frame = attempt() { return FrameNumber(frame) }
    guard request.priority != .interrupt else { return nil }
    if let frame = retryAfterReclaim(attempt) { return FrameNumber(frame) }
    while true {
      switch wait(for: request, until: deadline, unless: isServed) {
      case .frame(let frame): return frame
      case .ended: return nil
      case .isFragmented(let hasSlept):
        if let frame = emptyBlock(for: request) { return frame }
        // The obstacles may have been freed while other requests were waited for.
        if !hasSlept { return nil }
      }
    }
  }

  /// Fills `frames` with single frames, or throws `noMemory` and allocates none; logs the refusal. A few hundred
  /// instructions a frame at most.
  public func allocate(
    into frames: UnsafeMutableBufferPointer<FrameNumber>, role: FrameRole,
    priority: AllocationPriority = .normal, for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) {
    do throws(PhysicalMemoryError) {
      try allocateUnlogged(into: frames, role: role, priority: priority, for: owner)
    } catch {
      logRefusal(Refusal(.frames, PageCount(UInt64(frames.count)), for: role, owner, priority))
      throw error
    }
  }

  /// Does what `allocate(into:)` does, and logs no refusal.
  package func allocateUnlogged(
    into frames: UnsafeMutableBufferPointer<FrameNumber>, role: FrameRole,
    priority: AllocationPriority = .normal, for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) {
    checkUse(role)
    for i in 0..<frames.count {
      guard let frame = allocateBlock(BlockOrder(0), role, priority, for: owner) else {
        for k in 0..<i { free(FrameRun(first: frames[k], count: .one)) }
        throw .noMemory
      }
      frames[i] = FrameNumber(frame)
    }
  }

  /// Allocates the given frame, if no request of its priority waits. Up to 19 comparisons and 18 splits. Throws
  /// `outsideMemory`, `notFree` or `noMemory`.
  public func allocate(
    frame: FrameNumber, role: FrameRole, priority: AllocationPriority = .normal,
    for owner: FrameOwner = .here
  ) throws(PhysicalMemoryError) {
    checkUse(role)
    let number = frame.rawValue
    if machine.failsHere(.physicalMemory) {
      logRefusal(Refusal(.frame, .one, for: role, owner, priority))
      throw .noMemory
    }
    let refusal: PhysicalMemoryError? = domain.withLock { domain in
      let isFree = domain.block(holding: number) != nil
      guard isFree, domain.isNext(.none, priority), domain.admits(1, priority) else {
        if isFree { domain.events.pointee.failedAttempts.add() }
        return !table.isPresent(number) ? .outsideMemory : isFree ? .noMemory : .notFree
      }
      domain.detach(number, number + 1)
      table.subtract(1, from: .free)
      table.add(1, to: role)
      table.accountAllocated(number, 1, role)
      domain.events.pointee.allocations.add()
      return nil
    }
    if let refusal {
      let reason: StaticString? =
        switch refusal {
        case .outsideMemory: "no memory there"
        case .notFree: "not free"
        default: nil
        }
      logRefusal(Refusal(.frame, .one, for: role, owner, priority, reason: reason))
      throw refusal
    }
    table.stamp(number, number + 1, role, for: owner)
    checkLowMemory()
  }

  /// Counts and logs a refusal by a public call. No lock is held.
  @inline(never) func logRefusal(_ refusal: Refusal) {
    domain.withLock { domain in
      let events = domain.events
      if refusal.kind == .run { events.pointee.runFailures.add() } else { events.pointee.failures.add() }
    }
    func request() -> RefusedRequest {
      let (free, reserved) = (freeCount, reserve(for: refusal.priority))
      // The count is the caller's and may be anything.
      let isEnough = free >= reserved && free - reserved >= refusal.count
      var request = RefusedRequest(
        refusal.kind, refusal.count.bytes, priority: refusal.priority, requester: refusal.requester,
        reason: refusal.reason ?? (isEnough ? "fragmentation" : "shortage"))
      let constraints = refusal.constraints
      if constraints.alignment > .page { request.alignment = ByteCount(constraints.alignment.rawValue) }
      if let boundary = constraints.boundary { request.boundary = ByteCount(boundary.rawValue) }
      (request.low, request.high) = (constraints.low, constraints.high)
      request.site = refusal.owner.site
      return request
    }
    machine.record(request())
  }

  @inline(always) func checkUse(_ role: FrameRole) {
    precondition(role != .free && role != .absent, "frames are allocated for a use")
  }

  /// Allocates a block, or returns nil. `waiter` is that of a thread that tries again.
  func allocateBlock(
    _ order: BlockOrder, _ role: FrameRole, _ priority: AllocationPriority, for owner: FrameOwner,
    waiter: WaiterLink = .none
  ) -> UInt32? {
    assert(mayAllocate, "an owner of memory allocates while it frees memory")
    if machine.failsHere(.physicalMemory) { return nil }
    let order = Int(order.rawValue)
    let held = domain.acquire()
    let found = held.value.allocate(order, role: role, priority: priority, waiter: waiter)
    held.release()
    guard let frame = found else { return nil }
    table.stamp(frame, frame + (1 << UInt32(truncatingIfNeeded: order)), role, for: owner)
    checkLowMemory()
    return frame
  }

  // MARK: Free

  /// Frees frames: all or part of the frames of one or several requests, in any order and parts. A step a frame, and up
  /// to 18 merges for each aligned part. Reports a fault, and frees nothing, if a frame is free, not memory,
  /// permanent, or used by more than its one wire.
  public func free(_ run: FrameRun) {
    let first = run.first.rawValue
    guard run.count > .zero, run.count.rawValue <= UInt64(FrameNumber.limit - first) else {
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
        reportBadFree(at, claimedFrom: first)
        return
      }
      if !record.snapshot.mayBeFreed {
        record.busyWord = .wiredOnce
        reportBadFree(at, claimedFrom: first)
        return
      }
      at += 1
    }
    release(first, end)
  }

  /// Frees 2^`order` frames.
  public func free(_ first: FrameNumber, _ order: BlockOrder) {
    guard order <= .highest else {
      var fault = FaultReport(
        .wrongSize, "a block of an order above 18 was freed", UInt64(first.rawValue), .frame)
      fault.given = UInt64(order.rawValue)
      fault.expected = UInt64(BlockOrder.highest.rawValue)
      machine.report(fault)
      return
    }
    free(FrameRun(first: first, count: order.frames))
  }

  /// Undoes the claims of a free that met a frame that it must not free, and reports that frame.
  @inline(never) private func reportBadFree(_ frame: UInt32, claimedFrom first: UInt32) {
    for claimed in first..<frame { table.record(claimed).busyWord = .wiredOnce }
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

  /// Frees frames that the caller has claimed, a pageblock and a role at a time.
  func release(_ first: UInt32, _ end: UInt32) {
    var at = first
    var mustWake = false
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let role = table.record(at).role
      var partEnd = at
      while partEnd < pageblockEnd {
        let record = table.record(partEnd)
        if record.role != role { break }
        record.role = .free
        record.flags = 0
        record.queue = .none
        record.owner = 0
        record.busyWord = .none
        partEnd += 1
      }
      let held = domain.acquire()
      held.value.free(at, partEnd, role)
      mustWake = mustWake || held.value.hasWaiters
      held.release()
      at = partEnd
    }
    if mustWake { state.pointee.waiting.wake(on: machine) }
  }
}
