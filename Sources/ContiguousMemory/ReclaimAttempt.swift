// One request, from its first search to its last step.

import MemoryPrimitives
import Paging
import PhysicalMemory
import Zsmalloc
import Synchronization

/// The pages that a request has moved and written so far.
struct Spending {
  var moved = PageCount.zero
  var written = PageCount.zero
  /// Pages that the page daemon has written to free frames elsewhere.
  var writtenElsewhere = PageCount.zero

  /// Pages that may still be moved and written in all: the limit is twice as many as the run has.
  func left(of request: ContiguousRequest) -> PageCount {
    let most = request.count.rawValue.multipliedReportingOverflow(by: 2)
    return PageCount(most.overflow ? .max : most.partialValue).subtractingSaturated(moved + written)
  }
  func leftToMove(for request: ContiguousRequest) -> PageCount {
    min(left(of: request), request.budget.moved.subtractingSaturated(moved))
  }
  func leftToWrite(for request: ContiguousRequest) -> PageCount {
    min(left(of: request), writable(for: request))
  }
  /// Pages that the caller's budget still lets the request write, in the run and elsewhere.
  func writable(for request: ContiguousRequest) -> PageCount {
    request.budget.written.subtractingSaturated(written + writtenElsewhere)
  }
  /// Whether another run may be begun that costs so many pages. Pages written elsewhere count too.
  func admits(_ pages: PageCount, for request: ContiguousRequest) -> Bool {
    pages <= left(of: request).subtractingSaturated(writtenElsewhere)
  }
}

/// A request that is being carried out, and the pages that it has spent so far. The observer of its steps is a
/// parameter of each step: a closure that is stored would have to be allocated.
struct ReclaimAttempt: ~Copyable {
  typealias Observer = (ContiguousEvent) -> Void

  let allocator: ContiguousAllocator
  let request: ContiguousRequest
  var spent = Spending()
  /// Pages of zspages with readers, which the last attempt to move pages passed over.
  private var zspagesBeingRead = PageCount.zero
  /// The steps by which owners of memory, such as kmem, have freed some for the request.
  var owners: ReclaimSteps

  init(_ allocator: ContiguousAllocator, _ request: ContiguousRequest) {
    (self.allocator, self.request) = (allocator, request)
    owners = ReclaimSteps(allocator.physical)
  }

  var physical: FrameAllocator { allocator.physical }
  var paging: PagedMemory { allocator.paging }

  /// Runs that are tried before a request is refused.
  static var runLimit: Int { 4 }

  /// Allocates a run that is free, or empties one.
  mutating func reclaimRun(_ observe: Observer) throws(ContiguousFailure) -> FrameRun {
    if allocator.machine.failsHere(.contiguous) { throw .injected }
    // Before the failed-request cache, to which such a request looks like one that is harder than another.
    guard physical.hasPlace(forRun: request.count, where: request.constraints) else {
      throw ContiguousFailure(.never)
    }
    if allocator.hasFailedRecently(request) {
      var failure = ContiguousFailure(.notNow)
      failure.isRepeated = true
      throw failure
    }
    var tried = ExcludedRuns()
    var lastFailure: ContiguousFailure?
    var runs = 0
    search: while runs < Self.runLimit {
      if let run = try freeRun() {
        observe(.foundFree(run))
        return run
      }
      // Memory that no owner needs costs less than any move.
      if owners.reclaimMore(upTo: .surplus) != nil { continue }
      let means = Means(request, spent, allocator)
      switch allocator.decide(means, spent, excluding: tried) {
      case .free: runs += 1
      case .refuse(let forecast):
        if owners.reclaimMore() != nil { continue }
        if lastFailure == nil {
          if forecast.unmovable > .zero { allocator.cacheFailure(of: request) }
          lastFailure = ContiguousFailure(forecast)
        }
        break search
      case .empty(let forecast):
        observe(.candidate(RunCandidate(forecast)))
        runs += 1
        do throws(ContiguousFailure) {
          return try empty(forecast, means, observe)
        } catch {
          // The obstacles are excluded, and not the whole run: one beside it may do.
          tried.add(error.obstacles ?? forecast.run)
          lastFailure = forecast.outcome == .granted ? error : ContiguousFailure(forecast)
        }
      }
    }
    var failure = lastFailure ?? ContiguousFailure(.later)
    if failure.answer != .never {
      failure.longest = allocator.longestEmptiableRun(where: request.constraints)
    }
    throw failure
  }

  /// Allocates a run that is free as it is, cached pages included.
  func freeRun() throws(ContiguousFailure) -> FrameRun? {
    do throws(PhysicalMemoryError) {
      return try physical.allocateUnlogged(
        run: request.count, where: request.constraints, role: .contiguous, priority: request.priority,
        for: request.owner)
    } catch {
      if error == .badConstraint { throw ContiguousFailure(.never) }
      return nil
    }
  }

  // MARK: One run

  /// Empties the run of a forecast, or throws and frees the frames that it has captured.
  private mutating func empty(
    _ forecast: ContiguousForecast, _ means: Means, _ observe: Observer
  ) throws(ContiguousFailure) -> FrameRun {
    let plan = means.plan(for: physical.contents(of: forecast.run, at: means))
    let isolation = try isolate(forecast)
    observe(.isolated(forecast.run))
    report(.free, isolation, observe)
    relocate(isolation, means, plan, observe)
    let redirtied = launder(isolation, means, plan, observe)
    captureRest(isolation, means, plan, observe)
    // Objects that owners keep free may lie in the run; their frames are captured.
    while !physical.isComplete(isolation) && owners.reclaimMore() != nil {}
    if physical.isComplete(isolation) { return physical.finish(isolation, for: request.owner) }
    let failure = failure(isolation, means, redirtied)
    // The last page may have become free during that.
    if physical.isComplete(isolation) { return physical.finish(isolation, for: request.owner) }
    physical.abandon(isolation)
    allocator.counters.runsAbandoned.add(1, ordering: .relaxed)
    observe(.abandoned(forecast.run, failure.reason, failure.blocker))
    throw failure
  }

  /// Isolates the run, and captures its free frames as far as the reserve allows.
  private func isolate(_ forecast: ContiguousForecast) throws(ContiguousFailure) -> Isolation {
    do throws(PhysicalMemoryError) {
      return try physical.isolate(forecast.run, priority: request.priority)
    } catch {
      // Other requests empty it, or a part of it, or as many runs as there may be: another run may do.
      var failure = ContiguousFailure(forecast.beingEmptied)
      (failure.reason, failure.blocker) = (.busy, forecast.run.first)
      throw failure
    }
  }

  private func report(
    _ pass: ContiguousPass, _ isolation: borrowing Isolation, moved: PageCount = 0, written: PageCount = 0,
    refused: PageCount = 0, _ observe: Observer
  ) {
    var report = PassReport(pass)
    report.captured = physical.capturedCount(isolation)
    (report.moved, report.written, report.refused) = (moved, written, refused)
    observe(.pass(report))
  }

  /// Moves pages out of the run: twice, for pages that were busy for a moment. Not at all where the free frames are
  /// needed for capturing.
  private mutating func relocate(
    _ isolation: borrowing Isolation, _ means: Means, _ plan: Means.Plan, _ observe: Observer
  ) {
    var outcome = MoveOutcome()
    for turn in 0..<2
    where !physical.isComplete(isolation) && plan.movesFirst && (turn == 0 || outcome.claimed > .zero) {
      outcome = move(isolation, leaving: PageCount(means.comfort), clean: plan.clean)
      report(.relocate, isolation, moved: outcome.moved, refused: outcome.claimed, observe)
    }
  }

  /// Writes pages of the run out: inactive ones, then all, then once more those that were dirtied during that. Returns
  /// how many were dirtied during the last turn.
  private mutating func launder(
    _ isolation: borrowing Isolation, _ means: Means, _ plan: Means.Plan, _ observe: Observer
  ) -> PageCount {
    var redirtied = PageCount.zero
    // Not at all where nothing can be written, because pages would lose their mappings without a result. Pages that
    // should have been moved are written if the frames for that are no longer free.
    let launders = means.mayWrite && (plan.written > 0 || plan.movesFirst && means.slots > 0)
    for turn in 0..<3 where !physical.isComplete(isolation) && launders {
      let pass: ContiguousPass = turn == 0 ? .launderInactive : .launderActive
      let limit = spent.leftToWrite(for: request)
      if pass > request.passes || limit == .zero { break }
      let outcome = paging.launder(
        outOf: isolation.run, turn == 0 ? .inactive : .all, atMost: limit)
      redirtied = outcome.redirtied
      spent.written += outcome.written
      allocator.counters.written.add(outcome.written.rawValue, ordering: .relaxed)
      let wasFruitless = outcome.written == .zero && outcome.freed == .zero
      if turn == 2 && wasFruitless { break }
      report(
        pass, isolation, written: outcome.written,
        refused: outcome.redirtied + outcome.passedOver + outcome.failed, observe)
      if turn == 1 && wasFruitless { break }
    }
    return redirtied
  }

  /// Uses free frames down to the reserve for the rest of the run: frames to capture and to move to. If there are too
  /// few, and the plan says so, the page daemon frees as many as that needs. Frames that it frees in the run are
  /// captured and count as done.
  private mutating func captureRest(
    _ isolation: borrowing Isolation, _ means: Means, _ plan: Means.Plan, _ observe: Observer
  ) {
    guard means.mayMove else { return }
    let (run, least) = (isolation.run, PageCount(means.leastForMoving))
    // Frames that the daemon frees in all turns together, because another processor may allocate each at once.
    var allowance = PageCount(plan.fetched)
    for _ in 0..<8 {
      let captured = physical.capturedCount(isolation)
      if captured == run.count { return }
      let left = physical.contents(of: run, at: means)
      let needed = least + PageCount(left.free + left.pages)
      var freed = PageCount.zero
      if allowance > .zero && physical.freeCount < needed {
        let outcome = fetch(
          until: min(needed, physical.freeCount + allowance), atMost: allowance, observe)
        freed = outcome.freed
        // Frames that it freed in the run are captured, and don't add to the free ones.
        let inRun = min(physical.capturedCount(isolation) - captured, freed)
        allowance = allowance.subtractingSaturated(max(freed, outcome.written) - inRun)
      }
      let outcome = move(isolation, leaving: least, clean: .discard)
      if outcome.moved > .zero || outcome.dropped > .zero {
        report(.relocate, isolation, moved: outcome.moved, refused: outcome.claimed, observe)
      }
      if freed == .zero && physical.capturedCount(isolation) == captured { return }
    }
  }

  /// Lets the page daemon free frames anywhere, and write `limit` pages for that at most.
  mutating func fetch(
    until free: PageCount, atMost limit: PageCount, _ observe: Observer
  ) -> DaemonOutcome {
    let outcome = paging.reclaim(until: free, writing: min(limit, spent.writable(for: request)))
    spent.writtenElsewhere += outcome.written
    observe(.fetched(outcome))
    return outcome
  }

  /// Captures the free frames of the run, and moves its pages as far as the request may. As long as the reserve
  /// leaves a free frame of the run in the queues, no page is moved: it could land in that frame.
  private mutating func move(
    _ isolation: borrowing Isolation, leaving least: PageCount, clean: CleanPages
  ) -> MoveOutcome {
    if physical.hasFreeFrames(isolation) { physical.captureFree(isolation, priority: request.priority) }
    let limit = physical.hasFreeFrames(isolation) ? .zero : spent.leftToMove(for: request)
    // First what has no other way.
    let zspages = allocator.zspages.move(outOf: isolation.run, leaving: least, atMost: limit)
    var outcome = paging.move(
      outOf: isolation.run, leaving: least, clean: clean, atMost: limit - zspages.moved)
    zspagesBeingRead = zspages.claimed
    outcome.moved += zspages.moved
    outcome.claimed += zspages.claimed
    outcome.lackingFrames += zspages.lackingFrames
    spent.moved += outcome.moved
    allocator.counters.moved.add(outcome.moved.rawValue, ordering: .relaxed)
    return outcome
  }

  // MARK: Failure

  /// Describes why the run could not be emptied, by the frames that are not captured.
  private func failure(
    _ isolation: borrowing Isolation, _ means: Means, _ redirtied: PageCount
  ) -> ContiguousFailure {
    let run = isolation.run
    var (left, claimed): (UInt64, UInt64) = (0, 0)
    var (first, last) = (FrameNumber.none, FrameNumber.none)
    var at = run.first
    while at < run.end {
      let frame = at
      at += 1
      if physical.isCaptured(frame, isolation) { continue }
      left += 1
      let isClaimed = ContiguousFailure.Reason(physical.whatIs(frame)) != .none
      if isClaimed && claimed == 0 { first = .none }
      if isClaimed { claimed += 1 }
      guard isClaimed || claimed == 0 else { continue }
      if first == .none { first = frame }
      last = frame
    }
    let now = Means(request, Spending(), allocator, known: means.elsewhere)
    var forecast = allocator.forecast(run, physical.contents(of: run, at: now), now)
    // Captured frames are no obstacles.
    forecast.unmovable = physical.owners(of: run, .unmovable).frames
    forecast.missing = PageCount(left - claimed)
    allocator.nameOwners(&forecast)
    // Not frames were missing, but pages that stay unused for a while: another run may have them.
    forecast.outcome = claimed > 0 || redirtied > .zero || zspagesBeingRead > .zero ? .notNow : .later
    var failure = ContiguousFailure(forecast)
    if forecast.outcome == .notNow && claimed == 0 {
      (failure.blocker, failure.reason) = (first, .busy)
      let description = physical.whatIs(first)
      (failure.role, failure.owner) = (description.role, description.owner)
    }
    if left > 0 { failure.obstacles = FrameRun(first: first, count: last - first + .one) }
    return failure
  }

  /// Logs a request that failed, or that moved or wrote pages.
  func log(_ failure: ContiguousFailure?) {
    if failure == nil && spent.moved == .zero && spent.written == .zero { return }
    var entry = RefusedRequest(
      .run, request.count.bytes, priority: request.priority, requester: request.requester,
      reason: failure?.description ?? "granted")
    entry.site = request.owner.site
    if request.constraints.alignment > .page {
      entry.alignment = ByteCount(request.constraints.alignment.rawValue)
    }
    if let boundary = request.constraints.boundary { entry.boundary = ByteCount(boundary.rawValue) }
    (entry.low, entry.high) = (request.constraints.low, request.constraints.high)
    entry.wasGranted = failure == nil
    entry.blocker = failure?.blocker ?? .none
    entry.moved = spent.moved
    entry.written = spent.written
    allocator.machine.record(entry)
  }
}

extension RunCandidate {
  init(_ forecast: ContiguousForecast) {
    self.init(forecast.run)
    (free, movable, dirty, unmovable) = (forecast.free, forecast.pages, forecast.dirty, forecast.unmovable)
  }
}
