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
      request: request, policy: policy, priority: priority, site: site,
      tagsNeeded: state.source == nil ? 2 : 4)
    var wantsPage = false
    while true {
      let outcome = state.core.withLock { core -> Outcome in
        guard core.secure(attempt.tagsNeeded) else { return .needsTags }
        if policy == .instantFit, let found = core.findInstantly(request) {
          grant(&core, found, attempt, &wantsPage)
          return .granted(found.start)
        }
        core.spares.hidden += attempt.tagsNeeded
        return .unclear
      }
      switch outcome {
      case .granted(let start):
        if wantsPage { growHash(priority) }
        return ArenaAddress(start)
      case .needsTags:
        guard state.tags.grow(priority) else { throw .noTags }
        continue
      case .unclear:
        break
      }
      var start: UInt64?
      if policy == .bestFit || state.source == nil { start = search(attempt, &wantsPage) }
      if start == nil, let source = state.source {
        start = importSpan(source, attempt, &wantsPage) ?? search(attempt, &wantsPage)
      }
      if start == nil { state.core.withLock { $0.spares.hidden -= attempt.tagsNeeded } }
      returnSurplusTags()
      guard let start else { throw .noSpace }
      if wantsPage { growHash(priority) }
      return ArenaAddress(start)
    }
  }

  /// Sleeps and tries again until the request is granted or the deadline has passed.
  func attempt(
    _ request: Request, _ policy: FitPolicy, _ priority: AllocationPriority, until deadline: Tick,
    at site: CallSite
  ) throws(VmemError) -> ArenaAddress {
    let shared = state.tags
    shared.state.waiters.add(1, ordering: .sequentiallyConsistent)
    defer { shared.state.waiters.subtract(1, ordering: .releasing) }
    state.core.withLock { _ in state.waits.add() }
    while true {
      let ticket = shared.state.queue.ticket()
      do throws(VmemError) {
        return try attempt(request, policy, priority, site)
      } catch {
        guard shared.state.queue.sleep(ticket, until: deadline, on: state.machine) else { throw error }
      }
    }
  }

  /// Cuts the found segment to the request and counts it. The lock is held.
  func grant(
    _ core: inout ArenaCore, _ found: ArenaCore.Found, _ attempt: AllocationAttempt, _ wantsPage: inout Bool
  ) {
    core.allocate(found, attempt.request, attempt.site)
    state.allocations.add()
    state.segments.set(core.lists.count + core.hash.count)
    wantsPage = core.hash.wantsPage
  }

  /// Passes over all lists that could hold the request. The attempt's tags are hidden; a search that finds a segment
  /// ends that.
  func search(_ attempt: AllocationAttempt, _ wantsPage: inout Bool) -> UInt64? {
    var page = false
    defer { wantsPage = wantsPage || page }
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
          core.spares.hidden -= attempt.tagsNeeded
          grant(&core, found, attempt, &page)
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
