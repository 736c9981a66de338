// The search for a free segment. An attempt checks the request, secures tags and tries instant fit. Then come import and
// the pass over all lists that could hold the request, with the lock dropped in between.

import MemoryPrimitives
import Synchronization

/// A checked request with the way in which to satisfy it.
struct AllocationAttempt {
  let request: Request
  let policy: FitPolicy
  let priority: AllocationPriority
  let site: CallSite
  /// Tags that the attempt may need.
  let tagsNeeded: UInt32
  /// The waiter for which the attempt is made, in the arena's list.
  var waiter = ArenaWaiterLink.none
}

/// Work left for the moment when the lock is dropped after a request was granted.
struct Aftermath {
  /// Whether the hash would like a page.
  var wantsPage = false
  /// Whether waiters were served.
  var mustWake = false
}

extension Arena {
  /// Checks a request and derives from it what the search compares. `.badConstraint` if no arena could satisfy it.
  func prepare(_ size: ArenaSize, _ constraints: ArenaConstraints) throws(VmemError) -> Request {
    let quantum = state.quantum
    let alignment = max(constraints.alignment.rawValue, quantum)
    let phase = constraints.phase.rawValue
    let nocross = constraints.nocross?.rawValue ?? 0
    guard size.rawValue != 0, phase < alignment, phase & (quantum - 1) == 0,
      constraints.minimum <= constraints.maximum
    else { throw .badConstraint }
    let extent = (size.rawValue - 1) | (quantum - 1)
    if nocross != 0 {
      // The offset in its window of the only start that can be free of a crossing: see `Request.lowestStart`.
      let offset = phase & (nocross - 1)
      guard nocross >= quantum, extent < nocross - offset else { throw .badConstraint }
    }
    let shift = UInt64(quantum.trailingZeroBitCount)
    let quanta = (extent >> shift) &+ 1
    guard quanta != 0 else { throw .noSpace }
    var request = Request(
      extent: extent, quanta: quanta, alignment: alignment, phase: phase,
      nocross: nocross < alignment ? 0 : nocross, minimum: constraints.minimum.rawValue,
      maximum: constraints.maximum.rawValue, sufficientClass: nil)
    if constraints.minimum == .lowest, constraints.maximum == .highest {
      // A segment of so many quanta holds the request wherever the segment starts.
      var slack = (alignment >> shift) - 1
      if request.nocross != 0 { slack += (nocross >> shift) + (phase >> shift) }
      let enough = quanta.addingReportingOverflow(slack)
      if !enough.overflow { request.sufficientClass = FreeLists.sufficient(quanta: enough.partialValue) }
    }
    return request
  }

  func countFailure(_ failures: FailureRecording) {
    state.core.withLock { _ in
      state.failed.add()
      if failures == .byCaller { state.failedForCaller.add() }
    }
  }

  /// Makes `count` tags the caller's own: hidden among the spares.
  func secure(_ count: UInt32, _ priority: AllocationPriority) throws(VmemError) {
    while true {
      let isDone = state.core.withLock { core in
        guard core.secure(count) else { return false }
        core.spares.hidden += count
        return true
      }
      if isDone { return }
      guard state.tags.grow(priority) else { throw .noTags }
    }
  }

  private enum Outcome {
    case granted(UInt64)
    /// The supply must grow first.
    case needsTags
    /// Instant fit found nothing. The tags are hidden.
    case unclear
  }

  /// Tries once, without sleeping.
  func attempt(
    _ request: Request, _ policy: FitPolicy, _ priority: AllocationPriority, _ site: CallSite
  ) throws(VmemError) -> ArenaAddress {
    if state.machine.failsHere(.vmem) { throw .noTags }
    let attempt = AllocationAttempt(
      request: request, policy: policy, priority: priority, site: site, tagsNeeded: tagsNeeded)
    var aftermath = Aftermath()
    while true {
      let outcome = state.core.withLock { core -> Outcome in
        if core.waiters.unsettled != 0 { count(core.serve(from: nil), &aftermath) }
        guard core.secure(attempt.tagsNeeded) else { return .needsTags }
        if policy == .instantFit, let found = core.findInstantly(request) {
          grant(&core, found, attempt, &aftermath)
          return .granted(found.start)
        }
        core.spares.hidden += attempt.tagsNeeded
        return .unclear
      }
      switch outcome {
      case .granted(let start):
        finish(aftermath, priority)
        return ArenaAddress(start)
      case .needsTags:
        if state.tags.grow(priority) { continue }
        finish(aftermath, priority)
        throw .noTags
      case .unclear:
        break
      }
      var start: UInt64?
      if policy == .bestFit || state.source == nil { start = search(attempt, &aftermath) }
      if start == nil, let source = state.source {
        start = importSpan(source, attempt, &aftermath) ?? search(attempt, &aftermath)
      }
      if start == nil { state.core.withLock { $0.spares.hidden -= attempt.tagsNeeded } }
      returnSurplusTags()
      finish(aftermath, priority)
      guard let start else { throw .noSpace }
      return ArenaAddress(start)
    }
  }

  /// Tags that one request may need.
  var tagsNeeded: UInt32 { state.source == nil ? 2 : 4 }

  /// Cuts the found segment to the request and counts it. The lock is held.
  func grant(
    _ core: inout ArenaCore, _ found: ArenaCore.Found, _ attempt: AllocationAttempt,
    _ aftermath: inout Aftermath
  ) {
    if core.waiters.unsettled == 0 {
      core.allocate(found, attempt.request, attempt.site)
    } else {
      count(core.allocateBesideWaiters(found, attempt.request, attempt.site), &aftermath)
    }
    state.allocations.add()
    state.segments.set(core.lists.count + core.hash.count)
    aftermath.wantsPage = core.hash.wantsPage
  }

  /// Counts the segments that waiters got. The lock is held.
  func count(_ serving: Serving, _ aftermath: inout Aftermath) {
    state.allocations.add(serving.segments)
    aftermath.mustWake = aftermath.mustWake || serving.mustWake
  }

  /// Does what is left to do with the lock dropped.
  @inline(always) func finish(_ aftermath: Aftermath, _ priority: AllocationPriority) {
    if aftermath.mustWake { state.tags.wakeWaiters() }
    if aftermath.wantsPage { growHash(priority) }
  }

  /// Passes over all lists that could hold the request. The attempt's tags are hidden; a search that finds a segment
  /// ends that. A waiter that is served during the pass has its segment.
  func search(_ attempt: AllocationAttempt, _ aftermath: inout Aftermath) -> UInt64? {
    var cursor = FreeLists.Cursor(list: FreeLists.index(quanta: attempt.request.quanta) - 1)
    return withUnsafeMutablePointer(to: &cursor) { cursor in
      let start = cursor.list
      var seen: UInt64?
      var rounds: UInt32 = 0
      var isRegistered = false
      while true {
        enum Turn {
          case found(UInt64)
          case nothing
          case more
        }
        let turn = state.core.withLock { core -> Turn in
          if let start = attempt.waiter.pointer?.pointee.start {
            if isRegistered { core.lists.unregister(cursor) }
            return .found(start)
          }
          if seen == nil { seen = core.lists.insertions }
          var step = core.step(cursor, attempt.request, attempt.policy)
          if case .exhausted = step, rounds < ArenaCore.searchRounds,
            seen != core.lists.insertions || cursor.isDisturbed
          {
            rounds += 1
            seen = core.lists.insertions
            cursor.list = start
            cursor.next = .none
            cursor.isDisturbed = false
            step = .more
          }
          if case .more = step {
            if !isRegistered { core.lists.register(cursor) }
            isRegistered = true
            return .more
          }
          if isRegistered { core.lists.unregister(cursor) }
          guard case .found(let found) = step else { return .nothing }
          core.conclude(attempt, at: found.start)
          grant(&core, found, attempt, &aftermath)
          return .found(found.start)
        }
        switch turn {
        case .found(let start): return start
        case .nothing: return nil
        case .more: continue
        }
      }
    }
  }
}
