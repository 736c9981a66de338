// Waiting: a request that may wait sleeps until a free gives it a segment. ArenaWaiters.swift has the rule.
//
// All waiters of a supply sleep on one queue. A thread that is served, or that is to try again, sees so when it is
// woken. No lock is held while it sleeps, or while another thread wakes it.

import MemoryPrimitives
import Synchronization

extension Arena {
  /// Waits until the request is granted or the deadline has passed. `.noSpace` at once when no span could ever hold it.
  func attempt(
    _ request: Request, _ priority: AllocationPriority, until deadline: Tick, at site: CallSite
  ) throws(VmemError) -> ArenaAddress {
    assert(holdsNoSpinLock(), "a request that may wait was made with a spin lock held")
    // Instant fit, because a pass for the best fit may miss other segments while the arena changes.
    let attempt = AllocationAttempt(
      request: request, policy: .instantFit, priority: priority, site: site, tagsNeeded: tagsNeeded)
    guard canEverHold(attempt) else { throw .noSpace }
    let shared = state.tags
    shared.state.waiters.add(1, ordering: .sequentiallyConsistent)
    defer { shared.state.waiters.subtract(1, ordering: .releasing) }
    state.core.withLock { _ in state.waits.add() }
    return ArenaAddress(try wait(attempt, until: deadline, below: .none))
  }

  /// The arena that this one imports from; nil when it imports from functions, or from an arena of another supply, the
  /// frees of which wake no waiter of this one.
  private var parent: Arena? {
    guard let parent = state.source?.parent, parent.state.tags.storage == state.tags.storage else {
      return nil
    }
    return parent
  }

  /// Whether a span of this arena or of its sources could hold the request if it were free.
  private func canEverHold(_ attempt: AllocationAttempt) -> Bool {
    var walker = ArenaCore.Walker()
    let isHeld = withUnsafeMutablePointer(to: &walker) { walker in
      state.core.withLock { core in
        walker.span = core.firstSpan
        core.register(walker)
      }
      defer { state.core.withLock { $0.unregister(walker) } }
      while true {
        if let answer = state.core.withLock({ $0.holds(attempt.request, walker) }) { return answer }
      }
    }
    if isHeld { return true }
    guard let parent else { return state.source != nil }
    guard let above = parent.attempt(toExportFor: attempt) else { return false }
    return parent.canEverHold(above)
  }

  /// The amount that this arena, as a source, allocates for the import that another arena needs for its request; nil when
  /// it never can.
  private func attempt(toExportFor attempt: AllocationAttempt) -> AllocationAttempt? {
    let request = attempt.request
    guard request.extent != UInt64.max,
      let (size, constraints) = exported(
        ImportRequest(request, extent: request.extent, priority: attempt.priority, site: attempt.site)),
      let own = try? prepare(size, constraints)
    else { return nil }
    return AllocationAttempt(
      request: own, policy: .instantFit, priority: attempt.priority, site: attempt.site,
      tagsNeeded: tagsNeeded)
  }

  /// Waits in this arena's list, and in that of its source. Answers the first value of the segment. `below` is the same
  /// thread's waiter in the arena that imports the segment.
  private func wait(
    _ attempt: AllocationAttempt, until deadline: Tick, below: ArenaWaiterLink
  ) throws(VmemError) -> UInt64 {
    var waiter = ArenaWaiter(self, attempt, below: below)
    let (start, error) = withUnsafeMutablePointer(to: &waiter) { pointer -> (UInt64?, VmemError) in
      let me = ArenaWaiterLink(pointer: pointer)
      var attempt = attempt
      attempt.waiter = me
      let error = awaitService(attempt, until: deadline)
      return (state.core.withLock { $0.leave(me) }, error)
    }
    returnSurplusTags()
    guard let start else { throw error }
    growHash(attempt.priority)
    return start
  }

  /// Joins, and returns when the waiter, or one below it, was served, or can't wait any longer: then with the reason.
  private func awaitService(_ attempt: AllocationAttempt, until deadline: Tick) -> VmemError {
    let me = attempt.waiter
    let shared = state.tags
    shared.state.retrying.add(1, ordering: .sequentiallyConsistent)
    state.core.withLock { core in
      core.waiters.join(me)
      _ = core.secure(for: me)
    }
    let below = me.waiter.pointee.below
    if let pointer = below.pointer {
      pointer.pointee.arena.state.core.withLock { _ in pointer.pointee.isQueuedAbove = true }
    }
    _ = sleep(me, until: deadline, unless: { secureTags(attempt) })
    let hasTags = state.core.withLock { _ in me.waiter.pointee.tags != 0 }
    let asksAgain = hasTags && state.source != nil && parent == nil
    if hasTags {
      var aftermath = Aftermath()
      _ = search(attempt, &aftermath)
      state.core.withLock { $0.waiters.settle(me) }
      finish(aftermath, attempt.priority)
    }
    if !asksAgain { shared.state.retrying.subtract(1, ordering: .releasing) }
    defer { if asksAgain { shared.state.retrying.subtract(1, ordering: .releasing) } }
    guard hasTags else { return .noTags }
    if let parent, let above = parent.attempt(toExportFor: attempt), parent.canEverHold(above) {
      return importSpan(parent, above, for: attempt, until: deadline)
    }
    _ = sleep(
      me, until: deadline,
      unless: {
        guard asksAgain, let source = state.source else { return false }
        var aftermath = Aftermath()
        let start = importSpan(source, attempt, &aftermath)
        finish(aftermath, attempt.priority)
        return start != nil
      })
    return .noSpace
  }

  /// Waits for a span of `parent`, and for a segment of this arena that is freed before.
  private func importSpan(
    _ parent: Arena, _ above: AllocationAttempt, for attempt: AllocationAttempt, until deadline: Tick
  ) -> VmemError {
    guard let source = state.source else { return .noSpace }
    do throws(VmemError) {
      let start = try parent.wait(above, until: deadline, below: attempt.waiter)
      var aftermath = Aftermath()
      let last = start + above.request.extent
      if let segment = attempt.request.lowestStart(in: start, last) {
        _ = accept(ImportedSpan(start: start, last: last, segment: segment), source, attempt, &aftermath)
      } else {
        source.release(start, last)
      }
      finish(aftermath, attempt.priority)
      return .noSpace
    } catch {
      return error
    }
  }

  /// Sleeps until the waiter, or one below it, was served, or `isDone`, which is asked before each sleep. Answers false
  /// when the deadline has passed, or when no thread can wake this one.
  private func sleep(_ me: ArenaWaiterLink, until deadline: Tick, unless isDone: () -> Bool) -> Bool {
    let queue = state.tags.storage
    while true {
      // The ticket is drawn before the locks that guard the waiters are acquired, so no wake is lost.
      let ticket = queue.pointee.queue.ticket()
      var link = me
      while let pointer = link.pointer {
        if pointer.pointee.arena.state.core.withLock({ _ in pointer.pointee.start != nil }) { return true }
        link = pointer.pointee.below
      }
      if isDone() { return true }
      guard queue.pointee.queue.sleep(ticket, until: deadline, on: state.machine) else { return false }
    }
  }

  /// Hides tags for a waiter that has none; makes more if the supply can. Answers whether it has them.
  private func secureTags(_ attempt: AllocationAttempt) -> Bool {
    while true {
      let hasTags = state.core.withLock { core in
        attempt.waiter.waiter.pointee.start != nil || core.secure(for: attempt.waiter)
      }
      if hasTags { return true }
      guard state.tags.grow(attempt.priority) else { return false }
    }
  }
}

extension ArenaCore {
  /// Continues to look for a span that could hold a request if it were free. Nil while there are more to look at.
  fileprivate func holds(_ request: Request, _ walker: UnsafeMutablePointer<Walker>) -> Bool? {
    var left = Self.searchBudget
    while walker.span != .none {
      guard left > 0 else { return nil }
      left -= 1
      let span = links[walker.span]
      if request.lowestStart(in: span.start, span.last) != nil { return true }
      walker.span = span.next
    }
    return false
  }
}
