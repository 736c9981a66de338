// Contiguous memory: runs of frames for devices and for large pages, on a machine whose memory is full.
//
// Source: contigmalloc(9) of FreeBSD and what its commit log tells of its first fifteen years: launder only the
// run that can satisfy the request (2004), hold what was cleaned, two chances and no more against someone who
// keeps dirtying (2004), move instead of writing where there is room (2015), tell "never" apart from "not now"
// (2016). Linux' alloc_contig_range adds isolation.
//
// HOW A RUN IS HAD
//   pass 1  free and cached   the buddy queues have it, or its free frames are captured
//   pass 2  relocate          its pages are moved to free frames, as long as memory is not short
//   pass 3  launder inactive  pages that nobody used of late are written out
//   pass 4  launder active    all others too, and once more those that were dirtied meanwhile
// The candidate comes from the summary of each 2 MiB (PhysicalMemory/Candidates.swift): the run with the least
// in its way. It is isolated first: every frame that is free in it or becomes free, by whomever, is
// captured and nobody else gets it; so sleeping loses nothing, and no page comes into it again. Nothing outside
// of the run is moved, written or freed for it. After each sleep the claims of each page are looked at anew.
//
// A page that is held or busy when its turn comes is tried again in the next pass. What is left after the
// last one costs the run: captured frames go back, and another run is chosen, four at most. So the work is
// bounded by four times the pages of the run, each moved or written twice at most.
//
// WHEN MEMORY IS GONE. Moving takes a frame a page, and stops where the page daemon would have to work for
// others; writing takes nothing. Capturing counts as taking: the reserve of the request's level stays. Without
// swap there is only moving, down to that reserve.
//
// A request that is hopeless (each run has a frame that can't be emptied) is remembered, and refused in constant
// time until a run for it could have come up.
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

  public var words: StaticString {
    switch self {
    case .free: "free and cached"
    case .relocate: "relocate"
    case .launderInactive: "launder inactive"
    case .launderActive: "launder active"
    }
  }
}

/// Whether a request may sleep. One that may not goes as far as moving pages.
@frozen public enum Sleeping: UInt8, Sendable { case allowed, forbidden }

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
  public var level = Level.normal
  public var sleeping = Sleeping.allowed
  public var passes = ContiguousPass.launderActive
  public var budget = ContiguousBudget.unlimited
  /// For whom, in the log of failures.
  public var who = Name("contiguous")

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
  /// Pages that somebody claimed, or wrote to meanwhile.
  public var refused = PageCount.zero

  public init(_ pass: ContiguousPass) { self.pass = pass }
}

/// What happens on the way, for whoever watches. No lock is held.
public enum ContiguousEvent: Sendable {
  /// The buddy queues had the run.
  case foundFree(FrameRun)
  case candidate(RunCandidate)
  case isolated(FrameRun)
  case pass(PassReport)
  /// The run could not be emptied; its frames went back.
  case givenUp(FrameRun, ContiguousFailure.Reason, FrameNumber)
  /// A queue was laundered, by the old strategy.
  case laundered(PageQueue, LaunderOutcome)
}

/// The allocator of contiguous memory: a handle.
public struct ContiguousMemory {
  struct State: ~Copyable {
    let machine: Machine
    let physical: PhysicalMemory
    let space: KernelSpace
    let kmem: Kmem
    let paging: Paging
    let strategy = Atomic<UInt64>(UInt64(ContiguousStrategy.new.rawValue))
    let passes = Atomic<UInt64>(UInt64(ContiguousPass.launderActive.rawValue))
    let requests = Atomic<UInt64>(0)
    let granted = Atomic<UInt64>(0)
    let refused = Atomic<UInt64>(0)
    let repeated = Atomic<UInt64>(0)
    let moved = Atomic<UInt64>(0)
    let written = Atomic<UInt64>(0)
    let runsGivenUp = Atomic<UInt64>(0)
  }
  let state: UnsafeMutablePointer<State>

  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.size) }

  /// Brings the allocator up in `memory`, which it keeps.
  public static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: PhysicalMemory, space: KernelSpace,
    kmem: Kmem, paging: Paging
  ) -> ContiguousMemory {
    let state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(machine: machine, physical: physical, space: space, kmem: kmem, paging: paging))
    return ContiguousMemory(state: state)
  }

  var machine: Machine { state.pointee.machine }
  var physical: PhysicalMemory { state.pointee.physical }
  var paging: Paging { state.pointee.paging }

  /// Runs that are tried before a request is refused.
  static var attempts: Int { 4 }

  // MARK: Frames without a mapping

  /// `request.count` frames in a row, each with the role `contiguous` and one wire. Moves and writes out what is
  /// in the way of one run, and nothing else. `observe` is told of each step.
  ///
  /// Costs one search; then for each page in the way a copy and about 600 instructions, or a write.
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
  }

  func empty(
    _ request: ContiguousRequest, _ spent: inout Spending, _ observe: (ContiguousEvent) -> Void
  ) throws(ContiguousFailure) -> FrameRun {
    if machine.failsHere(.contiguous) { throw ContiguousFailure(.later) }
    if physical.isHopeless(request.count, request.constraints) {
      var failure = ContiguousFailure(.notNow)
      failure.isRepeated = true
      throw failure
    }
    if let run = try freeRun(request) {
      observe(.foundFree(run))
      return run
    }
    if request.passes == .free { throw self.failure(request, nil) }
    var tried = ExcludedRuns()
    var lastFailure: ContiguousFailure?
    for _ in 0..<Self.attempts {
      guard
        case .found(let candidate) = physical.candidate(
          run: request.count, where: request.constraints, excluding: tried)
      else { break }
      observe(.candidate(candidate))
      do throws(ContiguousFailure) {
        return try empty(candidate, request, &spent, observe)
      } catch {
        // Another run would meet the same want of frames, of swap, of budget.
        if error.answer != .notNow { throw error }
        lastFailure = error
      }
      // What was in the way, and not all of the run: one beside it may do.
      tried.add(lastFailure?.obstacles ?? candidate.run)
    }
    throw failure(request, lastFailure)
  }

  /// A run that is free as it is, cached pages included.
  private func freeRun(_ request: ContiguousRequest) throws(ContiguousFailure) -> FrameRun? {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        run: request.count, where: request.constraints, role: .contiguous, level: request.level)
    } catch {
      if error == .badConstraint { throw ContiguousFailure(.never) }
      return nil
    }
  }

  // MARK: One run

  private func empty(
    _ candidate: RunCandidate, _ request: ContiguousRequest, _ spent: inout Spending,
    _ observe: (ContiguousEvent) -> Void
  ) throws(ContiguousFailure) -> FrameRun {
    let run = candidate.run
    let isolation = try isolate(candidate, request, spent)
    observe(.isolated(run))
    func report(_ pass: ContiguousPass, _ moved: PageCount, _ written: PageCount, _ refused: PageCount) {
      var report = PassReport(pass)
      report.captured = physical.capturedCount(isolation)
      (report.moved, report.written, report.refused) = (moved, written, refused)
      observe(.pass(report))
    }
    var isDone: Bool { physical.capturedCount(isolation) == run.count }
    report(.free, .zero, .zero, .zero)

    // Twice, for pages that were claimed for a moment.
    var outcome = MoveOutcome()
    for turn in 0..<2 where !isDone && (turn == 0 || outcome.claimed > .zero) {
      outcome = move(run, request, spent)
      spent.moved = spent.moved + outcome.moved
      state.pointee.moved.add(outcome.moved.rawValue, ordering: .relaxed)
      report(.relocate, outcome.moved, .zero, outcome.claimed)
    }
    // Inactive ones, then all, then once more what was dirtied meanwhile: two chances.
    var redirtied = PageCount.zero
    for turn in 0..<3 where !isDone && mayLaunder(request, spent) {
      let pass: ContiguousPass = turn == 0 ? .launderInactive : .launderActive
      if pass.rawValue > request.passes.rawValue { break }
      let outcome = paging.launder(
        outOf: run, turn == 0 ? .inactive : .all,
        atMost: request.budget.written - min(request.budget.written, spent.written))
      redirtied = outcome.redirtied
      spent.written = spent.written + outcome.written
      state.pointee.written.add(outcome.written.rawValue, ordering: .relaxed)
      if turn == 2 && outcome.written == .zero && outcome.freed == .zero { break }
      report(pass, .zero, outcome.written, outcome.redirtied + outcome.passedOver + outcome.failed)
    }
    if !isDone && request.passes > .free {
      // Without room in swap there are still the frames above the reserve.
      let outcome = paging.move(
        outOf: run, leaving: physical.reserve(for: request.level), clean: .areDropped,
        atMost: request.budget.moved - min(request.budget.moved, spent.moved))
      if outcome.moved > .zero || outcome.dropped > .zero {
        spent.moved = spent.moved + outcome.moved
        state.pointee.moved.add(outcome.moved.rawValue, ordering: .relaxed)
        report(.relocate, outcome.moved, .zero, outcome.claimed)
      }
    }
    if let full = physical.finish(isolation) { return full }
    var failure = reason(run, isolation, request, spent)
    // It was not room that was missing, but rest: another run may have it.
    if failure.reason == .none && redirtied > .zero { (failure.answer, failure.reason) = (.notNow, .busy) }
    physical.abandon(isolation)
    state.pointee.runsGivenUp.add(1, ordering: .relaxed)
    observe(.givenUp(run, failure.reason, failure.blocker))
    throw failure
  }

  /// Isolates the candidate; gives up pages elsewhere first when its free frames are not to be spared.
  private func isolate(
    _ candidate: RunCandidate, _ request: ContiguousRequest, _ spent: Spending
  ) throws(ContiguousFailure) -> Isolation {
    for turn in 0..<2 {
      do throws(PhysicalMemoryError) {
        return try physical.isolate(candidate.run, level: request.level)
      } catch {
        // A run that others have begun to empty, or a page of it: another may do.
        if error == .notFree {
          var failure = ContiguousFailure(.notNow)
          (failure.run, failure.reason, failure.blocker) = (candidate.run, .busy, candidate.run.first)
          throw failure
        }
        // The daemon writes, which not everybody may.
        if turn == 0 && mayLaunder(request, spent) { paging.runDaemon() }
      }
    }
    var failure = ContiguousFailure(.later)
    failure.run = candidate.run
    let needed = candidate.free + physical.reserve(for: request.level)
    let free = physical.freeCount
    failure.missing = needed > free ? needed - free : .one
    throw failure
  }

  private func move(_ run: FrameRun, _ request: ContiguousRequest, _ spent: Spending) -> MoveOutcome {
    paging.move(
      outOf: run, leaving: floorForMoving(request),
      clean: clean(in: run, for: request, free: physical.freeCount),
      atMost: request.budget.moved - min(request.budget.moved, spent.moved))
  }

  /// Frames that moving leaves free: who may write leaves memory as the page daemon wants it.
  func floorForMoving(_ request: ContiguousRequest) -> PageCount {
    let reserve = physical.reserve(for: request.level)
    return request.passes > .relocate && request.sleeping == .allowed
      ? max(reserve, paging.freeTarget) : reserve
  }

  /// What becomes of clean pages when so many frames are free: where these are short, nothing is spent on them.
  func clean(in run: FrameRun, for request: ContiguousRequest, free: PageCount) -> CleanPages {
    free < floorForMoving(request) + run.count ? .areDropped : .areMoved
  }

  func mayLaunder(_ request: ContiguousRequest, _ spent: Spending) -> Bool {
    request.sleeping == .allowed && request.passes > .relocate && spent.written < request.budget.written
  }

  // MARK: Why not

  /// The first frame of the run that is not captured, and why.
  private func reason(
    _ run: FrameRun, _ isolation: Isolation, _ request: ContiguousRequest, _ spent: Spending
  ) -> ContiguousFailure {
    var failure = ContiguousFailure(.notNow)
    failure.run = run
    var left: UInt64 = 0
    var last = FrameNumber.none
    var at = run.first
    while at < run.end {
      let frame = at
      at = at + .one
      if physical.isCaptured(frame, isolation) { continue }
      left += 1
      let what = physical.whatIs(frame)
      let reason = ContiguousFailure.Reason(what)
      if failure.reason == .none || reason != .none { last = frame }
      if failure.blocker == .none || (failure.reason == .none && reason != .none) {
        (failure.blocker, failure.reason) = (frame, reason)
        (failure.role, failure.owner) = (what.role, what.owner)
      }
    }
    if left > 0 { failure.obstacles = FrameRun(first: failure.blocker, count: last - failure.blocker + .one) }
    if failure.reason == .none {
      // Nobody is in the way: it was room that was missing, or the leave to make it.
      failure.answer =
        isBound(request, moved: spent.moved, written: spent.written) ? .overBudget : .later
      failure.missing = PageCount(left)
    }
    return failure
  }

  /// Whether the request could have gone further with leave to.
  func isBound(_ request: ContiguousRequest, moved: PageCount, written: PageCount) -> Bool {
    moved >= request.budget.moved || written >= request.budget.written
      || request.sleeping == .forbidden || request.passes < .launderActive
  }

  /// The answer when no candidate is left.
  private func failure(
    _ request: ContiguousRequest, _ last: ContiguousFailure?
  ) -> ContiguousFailure {
    let explained = physical.explain(
      run: request.count, where: request.constraints, level: request.level)
    switch explained.verdict {
    case .never: return ContiguousFailure(.never)
    case .granted, .emptiable, .short:
      if var last {
        last.longest = explained.longest
        return last
      }
      var failure = ContiguousFailure(explained.verdict == .short ? .later : .overBudget)
      failure.run = explained.run
      failure.missing = explained.verdict == .short ? explained.missing : explained.other
      failure.longest = explained.longest
      return failure
    case .blocked:
      physical.noteHopeless(request.count, request.constraints)
      var failure = ContiguousFailure(.notNow)
      failure.run = explained.run
      failure.longest = explained.longest
      if let blocker = explained.blockers[0] {
        failure.blocker = blocker.run.first
        failure.role = blocker.role
        failure.owner = blocker.owner
        failure.reason = blocker.role == .pageable ? .wired : .fixed
      }
      return failure
    }
  }

  /// Keeps what did not go well, and what took moving or writing.
  private func note(_ request: ContiguousRequest, _ spent: Spending, _ failure: ContiguousFailure?) {
    if failure == nil && spent.moved == .zero && spent.written == .zero { return }
    func note() -> RefusedRequest {
      var note = RefusedRequest(
        .run, request.count.bytes, level: request.level, who: request.who,
        reason: failure?.words ?? "granted", free: physical.freeCount)
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

extension Claims {
  /// Somebody brings the page in, moves it or writes it out.
  var isTaken: Bool { isExclusive || sharers > 0 }
}

extension ContiguousPass: Comparable {
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}
