// Contiguous memory: runs of frames for devices and for large pages, on a machine whose memory is full.
//
// Source: contigmalloc(9) of FreeBSD and what its commit log tells of its first fifteen years: launder only the
// run that can satisfy the request (2004), hold what was cleaned, two chances and no more against someone who
// keeps dirtying (2004), move instead of writing where there is room (2015), tell "never" apart from "not now"
// (2016). Linux' alloc_contig_range adds isolation.
//
// HOW A RUN IS EMPTIED
//   pass 1  free and cached   the buddy queues have it, or its free frames are captured
//   pass 2  relocate          its pages are moved to free frames, as long as memory is not short
//   pass 3  launder inactive  pages that were not used recently are written out
//   pass 4  launder active    all others too, and once more those that were dirtied during that
// Passes 3 and 4 are left out where nothing can be written: there are neither slots nor pages of a device.
// A request is judged first (Forecast), by counting: which run, and whether the free frames, the slots of swap and the
// budget pay for it (Means). A run that can't be paid for costs no move and no write. `forecast` gives the same
// judgement without the deed.
//
// The run comes from the summary of each 2 MiB (PhysicalMemory/Candidates.swift): the one with the least in its way
// of those that can be paid for. It is isolated: every frame that is free in it or becomes free is
// captured for this request; so sleeping loses nothing, and no page comes into it again. After each sleep the claims
// of each page are looked at anew.
//
// A page that is wired, held or busy when its turn comes is tried again in the next pass. What is left after the
// last one costs the run: captured frames go back, and another run is chosen, four at most, as long as all attempts
// together have moved and written no more than twice as many pages as the run has.
//
// WHEN MEMORY IS GONE. Moving takes a frame a page, and stops where the page daemon would have to work for
// others; writing takes nothing. Capturing a free frame counts as taking: the reserve of the request's priority stays.
// What becomes free in an isolated run is captured on the way, and lowers no count. Free frames that the reserve
// does not allow for stay in the queues until the page daemon, which is told how many, has freed as many elsewhere:
// only for them does it free anything outside of the run. Once an attempt it frees as many as the judgement says, and
// what it writes for that counts against the caller's budget. A request that may not sleep, or not write, does without.
//
// A request is refused when no run in its range can be emptied so. If each run has a frame that can't be emptied, that
// is remembered, and the request is refused in constant time until a run for it could have come up.
//
// LOCKS. None of its own. Nothing here holds one while it calls down.
//
// The old strategy, before 2004 (launder the inactive queue, then the active one, and hope), stays selectable for
// contigmalloc at run time, to show the difference; `allocContig` knows nothing of it.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization

/// How contigmalloc goes about it.
@frozen public enum ContiguousStrategy: UInt8, Sendable {
  /// Launders whole queues and hopes.
  case old
  /// Empties one run.
  case new
}

/// How far a request goes. Each pass includes those before it.
@frozen public enum ContiguousPass: UInt8, Sendable {
  case free = 1
  case relocate, launderInactive, launderActive

  public var description: StaticString {
    switch self {
    case .free: "free and cached"
    case .relocate: "relocate"
    case .launderInactive: "launder inactive"
    case .launderActive: "launder active"
    }
  }
}

/// Whether a request may sleep. One that may not goes as far as moving pages.
@frozen public enum WaitPolicy: UInt8, Sendable { case allowed, forbidden }

/// What a request may spend, in pages.
public struct ContiguousBudget: Sendable {
  public var moved: PageCount
  public var written: PageCount
  public init(moved: PageCount, written: PageCount) {
    self.moved = moved
    self.written = written
  }
  public static var unlimited: Self { Self(moved: PageCount(UInt64.max), written: PageCount(UInt64.max)) }
}

/// A request for a run of frames.
public struct ContiguousRequest: Sendable {
  public var count: PageCount
  public var constraints = RunConstraints()
  public var priority = AllocationPriority.normal
  public var waitPolicy = WaitPolicy.allowed
  public var passes = ContiguousPass.launderActive
  public var budget = ContiguousBudget.unlimited
  /// For whom, in the log of failures.
  public var requester = Name("contiguous")

  public init(_ count: PageCount, where constraints: RunConstraints = RunConstraints()) {
    self.count = count
    self.constraints = constraints
  }
}

/// What one pass did.
public struct PassReport: Sendable {
  public var pass: ContiguousPass
  /// Frames of the run captured so far.
  public var captured = PageCount.zero
  public var moved = PageCount.zero
  public var written = PageCount.zero
  /// Pages that another thread claimed, or wrote to during the pass.
  public var refused = PageCount.zero

  public init(_ pass: ContiguousPass) { self.pass = pass }
}

/// A step of a request, for its observer. No lock is held.
public enum ContiguousEvent: Sendable {
  /// The buddy queues had the run.
  case foundFree(FrameRun)
  case candidate(RunCandidate)
  case isolated(FrameRun)
  case pass(PassReport)
  /// The page daemon was asked to free pages elsewhere.
  case fetched(DaemonOutcome)
  /// The run could not be emptied; its frames went back.
  case abandoned(FrameRun, ContiguousFailure.Reason, FrameNumber)
  /// A queue was laundered, by the old strategy.
  case laundered(PageQueue, LaunderOutcome)
}

/// The allocator of contiguous memory: a handle.
public struct ContiguousAllocator {
  struct State: ~Copyable {
    let machine: Machine
    let physical: FrameAllocator
    let space: KernelAddressSpace
    let kmem: KmemAllocator
    let paging: PagedMemory
    let strategy = Atomic<UInt64>(UInt64(ContiguousStrategy.new.rawValue))
    let passes = Atomic<UInt64>(UInt64(ContiguousPass.launderActive.rawValue))
    let requests = Atomic<UInt64>(0)
    let granted = Atomic<UInt64>(0)
    let refused = Atomic<UInt64>(0)
    let repeated = Atomic<UInt64>(0)
    let moved = Atomic<UInt64>(0)
    let written = Atomic<UInt64>(0)
    let runsAbandoned = Atomic<UInt64>(0)
  }
  let state: UnsafeMutablePointer<State>

  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.size) }

  /// Brings the allocator up in `memory`, which it keeps.
  public static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, space: KernelAddressSpace,
    kmem: KmemAllocator, paging: PagedMemory
  ) -> ContiguousAllocator {
    let state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(machine: machine, physical: physical, space: space, kmem: kmem, paging: paging))
    return ContiguousAllocator(state: state)
  }

  var machine: Machine { state.pointee.machine }
  var physical: FrameAllocator { state.pointee.physical }
  var paging: PagedMemory { state.pointee.paging }

  /// Runs that are tried before a request is refused.
  static var attempts: Int { 4 }

  // MARK: Frames without a mapping

  /// `request.count` frames in a row, each with the role `contiguous` and one wire. Moves and writes out what is
  /// in the way of one run, and nothing else. `observe` is told of each step.
  ///
  /// Costs one search; then for each page in the way a copy and about 1000 instructions, or a write.
  public func allocContig(
    _ request: ContiguousRequest, observe: (ContiguousEvent) -> Void = { _ in }
  ) throws(ContiguousFailure) -> FrameRun {
    try counted(request) { (spent) throws(ContiguousFailure) in try empty(request, &spent, observe) }
  }

  /// Carries a request out from its first look to its last step, and keeps account of how it ended.
  func counted<R>(
    _ request: ContiguousRequest, _ body: (inout Spending) throws(ContiguousFailure) -> R
  ) throws(ContiguousFailure) -> R {
    state.pointee.requests.add(1, ordering: .relaxed)
    var spent = Spending()
    do throws(ContiguousFailure) {
      let result = try body(&spent)
      state.pointee.granted.add(1, ordering: .relaxed)
      note(request, spent, nil)
      return result
    } catch {
      state.pointee.refused.add(1, ordering: .relaxed)
      if error.isRepeated { state.pointee.repeated.add(1, ordering: .relaxed) }
      note(request, spent, error)
      throw error
    }
  }

  /// Gives frames back that `allocContig` gave: all of them, or any part.
  public func releaseContig(_ run: FrameRun) { physical.free(run) }

  /// What a request has cost so far.
  struct Spending {
    var moved = PageCount.zero
    var written = PageCount.zero
    /// By the page daemon, for frames that it had to free.
    var writtenElsewhere = PageCount.zero

    /// How many pages may still be moved and written, all in all: twice as many as the run has.
    func left(of request: ContiguousRequest) -> PageCount {
      let most = request.count.rawValue.multipliedReportingOverflow(by: 2)
      return subtract(moved + written, from: PageCount(most.overflow ? .max : most.partialValue))
    }
    func leftToMove(for request: ContiguousRequest) -> PageCount {
      min(left(of: request), subtract(moved, from: request.budget.moved))
    }
    func leftToWrite(for request: ContiguousRequest) -> PageCount {
      min(left(of: request), writable(for: request))
    }
    /// What the caller's budget leaves for writing, in the run and elsewhere.
    func writable(for request: ContiguousRequest) -> PageCount {
      subtract(written + writtenElsewhere, from: request.budget.written)
    }
    /// Whether another run may be begun that takes so many pages. What was written elsewhere counts too.
    func admits(_ pages: PageCount, for request: ContiguousRequest) -> Bool {
      pages <= subtract(writtenElsewhere, from: left(of: request))
    }
    private func subtract(_ count: PageCount, from limit: PageCount) -> PageCount {
      limit - min(limit, count)
    }
  }

  func empty(
    _ request: ContiguousRequest, _ spent: inout Spending, _ observe: (ContiguousEvent) -> Void
  ) throws(ContiguousFailure) -> FrameRun {
    if machine.failsHere(.contiguous) { throw .injected }
    // Before the notes, which know such a request as one that is harder than another.
    guard physical.hasPlace(forRun: request.count, where: request.constraints) else {
      throw ContiguousFailure(.never)
    }
    if physical.hasFailedRecently(request.count, request.constraints) {
      var failure = ContiguousFailure(.notNow)
      failure.isRepeated = true
      throw failure
    }
    var tried = ExcludedRuns()
    var lastFailure: ContiguousFailure?
    for _ in 0..<Self.attempts {
      if let run = try freeRun(request) {
        observe(.foundFree(run))
        return run
      }
      let means = Means(request, spent, self)
      let forecast = judge(request, means, tried)
      if forecast.isFree { continue }
      guard isWorthwhile(forecast, request, spent) else {
        if lastFailure == nil {
          if forecast.fixed > .zero { physical.cacheFailedRequest(request.count, request.constraints) }
          lastFailure = refusal(forecast)
        }
        break
      }
      observe(.candidate(RunCandidate(forecast)))
      do throws(ContiguousFailure) {
        return try empty(forecast, means, &spent, observe)
      } catch {
        // What was in the way, and not all of the run: one beside it may do.
        tried.add(error.obstacles ?? forecast.run)
        lastFailure = forecast.outcome == .granted ? error : refusal(forecast)
      }
    }
    var failure = lastFailure ?? ContiguousFailure(.later)
    if failure.answer != .never {
      failure.longest = physical.longestEmptiableRun(
        low: request.constraints.low, high: request.constraints.high)
    }
    throw failure
  }

  /// Whether a run is begun: the counts say that it can be emptied, and the attempts before have left enough of what
  /// all of them together may move and write. Pages that are held or busy may be let go while others are written; a
  /// request that would not sleep does not begin.
  private func isWorthwhile(
    _ forecast: ContiguousForecast, _ request: ContiguousRequest, _ spent: Spending
  ) -> Bool {
    let isClaimedOnly = forecast.fixed == .zero && forecast.claimed > .zero && forecast.missing == .zero
    guard forecast.outcome == .granted || (isClaimedOnly && forecast.written > .zero) else { return false }
    return spent.admits(forecast.moved + forecast.written + forecast.claimed, for: request)
  }

  /// A run that is free as it is, cached pages included.
  private func freeRun(_ request: ContiguousRequest) throws(ContiguousFailure) -> FrameRun? {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        run: request.count, where: request.constraints, role: .contiguous, priority: request.priority)
    } catch {
      if error == .badConstraint { throw ContiguousFailure(.never) }
      return nil
    }
  }

  // MARK: One run

  private func empty(
    _ forecast: ContiguousForecast, _ means: Means, _ spent: inout Spending,
    _ observe: (ContiguousEvent) -> Void
  ) throws(ContiguousFailure) -> FrameRun {
    let (run, request) = (forecast.run, means.request)
    let plan = means.settle(physical.contents(of: run, at: means))
    let isolation = try isolate(forecast, request)
    observe(.isolated(run))
    func report(_ pass: ContiguousPass, _ moved: PageCount, _ written: PageCount, _ refused: PageCount) {
      var report = PassReport(pass)
      report.captured = physical.capturedCount(isolation)
      (report.moved, report.written, report.refused) = (moved, written, refused)
      observe(.pass(report))
    }
    var isDone: Bool { physical.capturedCount(isolation) == run.count }
    report(.free, .zero, .zero, .zero)

    // Twice, for pages that were claimed for a moment. Not at all where free frames are wanted for capturing.
    var outcome = MoveOutcome()
    for turn in 0..<2
    where !isDone && plan.movesFirst && (turn == 0 || outcome.claimed > .zero) {
      outcome = move(isolation, request, leaving: PageCount(means.comfort), plan.clean, &spent)
      report(.relocate, outcome.moved, .zero, outcome.claimed)
    }
    // Inactive ones, then all, then once more what was dirtied during that: two chances.
    var redirtied = PageCount.zero
    // Not at all where there is nothing to write to: pages would lose their mappings for nothing. Pages that should
    // have been moved are written where the frames for it have gone since.
    let launders = means.mayWrite && (plan.written > 0 || plan.movesFirst && means.slots > 0)
    for turn in 0..<3 where !isDone && launders {
      let pass: ContiguousPass = turn == 0 ? .launderInactive : .launderActive
      let limit = spent.leftToWrite(for: request)
      if pass > request.passes || limit == .zero { break }
      let outcome = paging.launder(outOf: run, turn == 0 ? .inactive : .all, atMost: limit)
      redirtied = outcome.redirtied
      spent.written = spent.written + outcome.written
      state.pointee.written.add(outcome.written.rawValue, ordering: .relaxed)
      let wasInVain = outcome.written == .zero && outcome.freed == .zero
      if turn == 2 && wasInVain { break }
      report(pass, .zero, outcome.written, outcome.redirtied + outcome.passedOver + outcome.failed)
      if turn == 1 && wasInVain { break }
    }
    takeFrames(means, plan, isolation, &spent, observe) { report(.relocate, $0, .zero, $1) }
    if let full = physical.finish(isolation) { return full }
    let failure = failure(isolation, means, redirtied)
    // The last page may have become free during that look.
    if let full = physical.finish(isolation) { return full }
    physical.abandon(isolation)
    state.pointee.runsAbandoned.add(1, ordering: .relaxed)
    observe(.abandoned(run, failure.reason, failure.blocker))
    throw failure
  }

  /// The last step: what is left of the run takes free frames, down to the reserve. If there are too few, and the plan
  /// says so, the page daemon frees as many as that takes. What it frees in the run is captured and counts as done.
  private func takeFrames(
    _ means: Means, _ plan: Means.Settlement, _ isolation: Isolation, _ spent: inout Spending,
    _ observe: (ContiguousEvent) -> Void, _ report: (PageCount, PageCount) -> Void
  ) {
    guard means.mayMove else { return }
    let (run, least) = (isolation.run, PageCount(means.leastForMoving))
    // Frames that the daemon frees, in all turns together: another processor may take each at once.
    var allowance = PageCount(plan.fetched)
    for _ in 0..<8 {
      let captured = physical.capturedCount(isolation)
      if captured == run.count { return }
      let left = physical.contents(of: run, at: means)
      let needed = least + PageCount(left.free + left.pages)
      var freed = PageCount.zero
      if allowance > .zero && physical.freeCount < needed {
        let outcome = fetch(
          until: min(needed, physical.freeCount + allowance), atMost: allowance, for: means.request, &spent,
          observe)
        freed = outcome.freed
        // What it freed in the run is captured, and no free frame more.
        let inRun = min(physical.capturedCount(isolation) - captured, freed)
        allowance = allowance - min(allowance, max(freed, outcome.written) - inRun)
      }
      let outcome = move(isolation, means.request, leaving: least, .discard, &spent)
      if outcome.moved > .zero || outcome.dropped > .zero { report(outcome.moved, outcome.claimed) }
      if freed == .zero && physical.capturedCount(isolation) == captured { return }
    }
  }

  /// Has the page daemon free frames, wherever it finds them, and write `limit` pages for it at most.
  func fetch(
    until free: PageCount, atMost limit: PageCount, for request: ContiguousRequest, _ spent: inout Spending,
    _ observe: (ContiguousEvent) -> Void
  ) -> DaemonOutcome {
    let outcome = paging.reclaim(until: free, writing: min(limit, spent.writable(for: request)))
    spent.writtenElsewhere = spent.writtenElsewhere + outcome.written
    observe(.fetched(outcome))
    return outcome
  }

  /// Captures what is free in the run, and moves its pages as far as the request may. As long as the reserve leaves a
  /// free frame of the run in the queues, no page is moved: it could land in that frame.
  private func move(
    _ isolation: Isolation, _ request: ContiguousRequest, leaving least: PageCount, _ clean: CleanPages,
    _ spent: inout Spending
  ) -> MoveOutcome {
    if physical.hasFreeFrames(isolation) { physical.captureFree(isolation, priority: request.priority) }
    let limit = physical.hasFreeFrames(isolation) ? .zero : spent.leftToMove(for: request)
    let outcome = paging.move(outOf: isolation.run, leaving: least, clean: clean, atMost: limit)
    spent.moved = spent.moved + outcome.moved
    state.pointee.moved.add(outcome.moved.rawValue, ordering: .relaxed)
    return outcome
  }

  /// Isolates the run, and captures what is free in it as far as the reserve allows.
  private func isolate(
    _ forecast: ContiguousForecast, _ request: ContiguousRequest
  ) throws(ContiguousFailure) -> Isolation {
    do throws(PhysicalMemoryError) {
      return try physical.isolate(forecast.run, priority: request.priority)
    } catch {
      // Other requests empty it, or a part of it, or as many runs as there may be: another run may do.
      var failure = refusal(forecast.beingEmptied)
      (failure.reason, failure.blocker) = (.busy, forecast.run.first)
      throw failure
    }
  }

  // MARK: Why not

  /// What kept the run from being emptied, by the frames that are not captured.
  private func failure(
    _ isolation: Isolation, _ means: Means, _ redirtied: PageCount
  ) -> ContiguousFailure {
    let run = isolation.run
    var (left, claimed): (UInt64, UInt64) = (0, 0)
    var (first, last) = (FrameNumber.none, FrameNumber.none)
    var at = run.first
    while at < run.end {
      let frame = at
      at = at + .one
      if physical.isCaptured(frame, isolation) { continue }
      left += 1
      let isClaimed = ContiguousFailure.Reason(physical.whatIs(frame)) != .none
      if isClaimed && claimed == 0 { first = .none }
      if isClaimed { claimed += 1 }
      guard isClaimed || claimed == 0 else { continue }
      if first == .none { first = frame }
      last = frame
    }
    let now = Means(means.request, Spending(), self, known: means.elsewhere)
    var forecast = forecast(run, physical.contents(of: run, at: now), now)
    // Captured frames are in no way.
    forecast.fixed = physical.owners(of: run, .fixed).frames
    forecast.missing = PageCount(left - claimed)
    nameOwners(&forecast)
    // It was not frames that were missing, but rest: another run may have it.
    forecast.outcome = claimed > 0 || redirtied > .zero ? .notNow : .later
    var failure = refusal(forecast)
    if forecast.outcome == .notNow && claimed == 0 {
      (failure.blocker, failure.reason) = (first, .busy)
      let what = physical.whatIs(first)
      (failure.role, failure.owner) = (what.role, what.owner)
    }
    if left > 0 { failure.obstacles = FrameRun(first: first, count: last - first + .one) }
    return failure
  }

  /// A forecast as an answer.
  private func refusal(_ forecast: ContiguousForecast) -> ContiguousFailure {
    var failure = ContiguousFailure(ContiguousFailure.Answer(forecast.outcome))
    guard failure.answer != .never else { return failure }
    failure.run = forecast.run
    failure.missing = forecast.missing
    failure.reason = forecast.reason
    failure.forecast = forecast
    if let owner = forecast.owners.first {
      (failure.blocker, failure.blockerFrames) = (owner.first, owner.frames)
      (failure.role, failure.owner) = (owner.role, owner.owner)
    }
    return failure
  }

  /// Keeps what did not go well, and what took moving or writing.
  private func note(_ request: ContiguousRequest, _ spent: Spending, _ failure: ContiguousFailure?) {
    if failure == nil && spent.moved == .zero && spent.written == .zero { return }
    func note() -> RefusedRequest {
      var note = RefusedRequest(
        .run, request.count.bytes, priority: request.priority, requester: request.requester,
        reason: failure?.description ?? "granted", free: physical.freeCount)
      if request.constraints.alignment > .page {
        note.alignment = ByteCount(request.constraints.alignment.rawValue)
      }
      if let boundary = request.constraints.boundary { note.boundary = ByteCount(boundary.rawValue) }
      (note.low, note.high) = (request.constraints.low, request.constraints.high)
      note.wasGranted = failure == nil
      note.blocker = failure?.blocker ?? .none
      note.moved = spent.moved
      note.written = spent.written
      return note
    }
    machine.note(note())
  }
}

extension BusyWord {
  /// Somebody brings the page in, moves it or writes it out.
  var isTaken: Bool { isXbusy || sbusyCount > 0 }
}

extension RunCandidate {
  init(_ forecast: ContiguousForecast) {
    self.init(forecast.run)
    (free, movable, dirty, unmovable) = (forecast.free, forecast.pages, forecast.dirty, forecast.fixed)
  }
}

extension ContiguousPass: Comparable {
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}
