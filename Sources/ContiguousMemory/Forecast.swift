// What a request would come to, without doing it: one judgement, by counting, for `allocContig` and for a caller that
// asks beforehand.
//
// A forecast is as good as the moment it is made in. It knows nothing of pages that another thread dirties, wires or
// holds afterwards, nor of writes that fail.

import MemoryPrimitives
import Paging
import PhysicalMemory

/// What a request would do to one run, and how that would end.
public struct ContiguousForecast: Sendable {
  public enum Outcome: UInt8, Sendable {
    /// Every page of the run has somewhere to go.
    case granted
    /// `owners` keep frames: for good as things are, or held and busy at this moment.
    case notNow
    /// `missing` frames or slots of swap too few are there.
    case later
    /// `missing` pages are left when the request has done what it may.
    case overBudget
    /// No run of memory satisfies the request.
    case never
  }
  public var run: FrameRun
  public var outcome = Outcome.granted
  public var free = PageCount.zero
  /// Pages in the way, and how many of them are dirty.
  public var pages = PageCount.zero
  public var dirty = PageCount.zero
  /// Pages that would be copied to other frames.
  public var moved = PageCount.zero
  /// Pages that would be written out.
  public var written = PageCount.zero
  /// Clean pages that would be reclaimed: a fault brings them back.
  public var dropped = PageCount.zero
  /// Frames that the page daemon would have to free, wherever it finds them.
  public var fetched = PageCount.zero
  /// Frames that can't be emptied.
  public var fixed = PageCount.zero
  /// Pages that are held or busy at this moment.
  public var claimed = PageCount.zero
  public var missing = PageCount.zero
  /// Whose the fixed frames are; if there are none, whose the claimed ones.
  public var owners = RunOwners()
  /// Why the first frame of the first owner can't be emptied.
  public var reason = ContiguousFailure.Reason.none
  /// Another request empties the run or a part of it, or as many are under way as there may be.
  public internal(set) var isBeingEmptied = false
  /// Frames free afterwards.
  public var freeAfter = PageCount.zero

  public init(run: FrameRun) { self.run = run }

  /// The lowest frame of the owner of most that is in the way.
  public var blocker: FrameNumber? { owners.first?.first }
  /// The run is free as it is.
  public var isFree: Bool { outcome == .granted && free == run.count && fetched == .zero }

  /// The same run while another request empties it, or a part of it.
  var beingEmptied: Self {
    var forecast = self
    (forecast.outcome, forecast.reason) = (.notNow, .busy)
    forecast.isBeingEmptied = true
    return forecast
  }
}

extension ContiguousAllocator {
  /// What `allocContig` would do for `request`. Searches, and counts; changes nothing.
  public func forecast(_ request: ContiguousRequest) -> ContiguousForecast {
    let means = Means(request, Spending(), self)
    var tried = ExcludedRuns()
    var refused: ContiguousForecast?
    for _ in 0..<Self.attempts {
      let forecast = judge(request, means, tried)
      guard forecast.outcome == .granted else { return refused ?? forecast }
      guard !forecast.isFree, physical.isBusy(isolating: forecast.run) else { return forecast }
      refused = forecast.beingEmptied
      tried.add(forecast.run)
    }
    return refused.unsafelyUnwrapped
  }

  /// What `allocContig` would do to empty `run` for `request`; frames that can't be emptied are passed over, as
  /// if they were free. A look at each frame of the run.
  public func forecast(emptying run: FrameRun, for request: ContiguousRequest) -> ContiguousForecast {
    let means = Means(request, Spending(), self)
    return forecast(run, physical.contents(of: run, at: means), means)
  }

  /// The run that a request would have now, and what would become of it; else why none, shown on the best one.
  func judge(
    _ request: ContiguousRequest, _ means: Means, _ excluding: ExcludedRuns
  ) -> ContiguousForecast {
    if let run = physical.freeRun(request.count, where: request.constraints, priority: request.priority) {
      var forecast = ContiguousForecast(run: run)
      forecast.free = run.count
      let free = physical.freeCount
      forecast.freeAfter = free - min(free, run.count)
      return forecast
    }
    switch physical.candidate(
      run: request.count, where: request.constraints, excluding: excluding, at: means)
    {
    case .never:
      var forecast = ContiguousForecast(run: FrameRun(first: FrameNumber(0), count: .zero))
      forecast.outcome = .never
      return forecast
    case .found(let candidate):
      return forecast(candidate.run, physical.contents(of: candidate.run, at: means), means)
    case .blocked(let candidate):
      var forecast = forecast(candidate.run, physical.contents(of: candidate.run, at: means), means)
      // Whatever it costs, it was tried.
      forecast.outcome = .notNow
      return forecast
    }
  }

  func forecast(_ run: FrameRun, _ contents: RunContents, _ means: Means) -> ContiguousForecast {
    let answer = means.settle(contents)
    var forecast = ContiguousForecast(run: run)
    forecast.free = PageCount(contents.free)
    forecast.pages = PageCount(contents.pages + contents.claimed)
    forecast.dirty = PageCount(contents.dirty)
    forecast.moved = PageCount(answer.moved)
    forecast.written = PageCount(answer.written)
    forecast.dropped = PageCount(answer.dropped)
    forecast.fetched = PageCount(answer.fetched)
    forecast.fixed = PageCount(contents.fixed + contents.captured)
    forecast.claimed = PageCount(contents.claimed)
    forecast.missing = PageCount(answer.missing)
    let taken = contents.free + answer.moved
    let free = means.free + answer.fetched
    forecast.freeAfter = PageCount(free > taken ? free - taken : 0)
    if forecast.fixed > .zero || forecast.claimed > .zero {
      forecast.outcome = .notNow
      nameOwners(&forecast)
      if forecast.fixed > .zero { forecast.missing = max(forecast.missing, shortage(run.count, means)) }
    } else if answer.missing > 0 {
      var missing = answer.missing
      if means.isBound {
        // Counted anew: without bounds, pages of a device may have to be told from those of swap.
        let unbounded = means.unbounded()
        missing = unbounded.settle(physical.contents(of: run, at: unbounded)).missing
      }
      forecast.outcome = missing == 0 ? .overBudget : .later
    }
    return forecast
  }

  func nameOwners(_ forecast: inout ContiguousForecast) {
    forecast.owners = physical.owners(of: forecast.run, forecast.fixed > .zero ? .fixed : .claimed)
    guard let first = forecast.owners.first else { return }
    forecast.reason = ContiguousFailure.Reason(physical.whatIs(first.first))
  }

  /// How many frames too few are free or in pages that are not wired, wherever they lie, for a run above the reserve.
  private func shortage(_ count: PageCount, _ means: Means) -> PageCount {
    let pages = physical.count(.pageable)
    let there = physical.freeCount + pages - min(pages, paging.wiredCount)
    let needed = count + PageCount(means.reserve)
    return needed > there ? needed - there : .zero
  }
}

extension ContiguousFailure.Reason {
  /// Why a frame could not be emptied as it is now.
  public init(_ what: FrameDescription) {
    if what.role == .free {
      self = .none
    } else if what.role != .pageable {
      self = .fixed
    } else {
      let busyWord = what.busyWord
      self = busyWord.wires > 0 ? .wired : busyWord.holds > 0 ? .held : busyWord.isTaken ? .busy : .none
    }
  }
}
