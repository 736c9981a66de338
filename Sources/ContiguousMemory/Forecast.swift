// The judgement of a request, by counting: one decision for `allocContig`, which carries it out, and for a caller that
// only asks.
//
// A forecast holds for the moment at which it is made. It does not know of pages that another thread dirties, wires or
// holds afterwards, nor of writes that fail.

import MemoryPrimitives
import Paging
import PhysicalMemory

/// The pages that a request would move, write and reclaim in one run, and how that would end.
package struct ContiguousForecast: Sendable {
  /// How the request would end.
  package enum Outcome: UInt8, Sendable {
    /// Every page of the run can be moved, written or reclaimed.
    case granted
    /// `owners` keep frames: unmovable ones, or pages that are held or busy at this moment.
    case notNow
    /// `missing` frames or slots of swap are too few.
    case later
    /// `missing` pages are left when the request has spent its budget.
    case overBudget
    /// No run of memory satisfies the request.
    case never
  }
  /// The run.
  package var run: FrameRun
  /// How the request would end.
  package var outcome = Outcome.granted
  /// Free frames of the run.
  package var free = PageCount.zero
  /// Pages in the run.
  package var pages = PageCount.zero
  /// Pages of those that are dirty.
  package var dirty = PageCount.zero
  /// Pages that would be copied to other frames.
  package var moved = PageCount.zero
  /// Pages that would be written out.
  package var written = PageCount.zero
  /// Clean pages that would be reclaimed: a fault brings them back.
  package var dropped = PageCount.zero
  /// Frames that the page daemon would have to free, wherever it finds them.
  package var fetched = PageCount.zero
  /// Unmovable frames.
  package var unmovable = PageCount.zero
  /// Pages that are held or busy at this moment.
  package var claimed = PageCount.zero
  /// Frames or slots of swap that are missing, or pages beyond the budget.
  package var missing = PageCount.zero
  /// The owners of the unmovable frames; if there are none, of the claimed ones.
  package var owners = RunOwners()
  /// The reason why the first frame of the first owner can't be emptied.
  package var reason = ContiguousFailure.Reason.none
  /// Another request empties the run or a part of it, or the most requests are under way.
  package internal(set) var isBeingEmptied = false
  /// Frames free afterwards.
  package var freeAfter = PageCount.zero

  /// The forecast of a run that costs nothing.
  package init(run: FrameRun) { self.run = run }

  /// The lowest obstacle of the owner with the most.
  package var blocker: FrameNumber? { owners.first?.first }
  /// The run is free as it is.
  package var isFree: Bool { outcome == .granted && free == run.count && fetched == .zero }

  /// The same run while another request empties it, or a part of it.
  var beingEmptied: Self {
    var forecast = self
    (forecast.outcome, forecast.reason) = (.notNow, .busy)
    forecast.isBeingEmptied = true
    return forecast
  }
}

/// The next step of an attempt.
enum Decision {
  /// Allocates this run, which is free.
  case free(ContiguousForecast)
  /// Empties this run.
  case empty(ContiguousForecast)
  /// Refuses the request: no run can be emptied, as shown by the best one.
  case refuse(ContiguousForecast)
}

extension ContiguousAllocator {
  /// Forecasts `allocContig` for `request`. Searches and counts; changes nothing.
  package func forecast(_ request: ContiguousRequest) -> ContiguousForecast {
    let means = Means(request, Spending(), self)
    var tried = ExcludedRuns()
    var refused: ContiguousForecast?
    for _ in 0..<ReclaimAttempt.runLimit {
      switch decide(means, Spending(), excluding: tried) {
      case .free(let forecast): return forecast
      case .refuse(let forecast): return refused ?? forecast
      case .empty(let forecast):
        guard forecast.outcome == .granted else { return refused ?? forecast }
        guard physical.isBusy(isolating: forecast.run) else { return forecast }
        refused = forecast.beingEmptied
        tried.add(forecast.run)
      }
    }
    return refused.unsafelyUnwrapped
  }

  /// Chooses the next run of an attempt that has spent `spent`, and decides whether to empty it: the counts must say
  /// that it can be emptied, and the runs tried before must have left enough of the limit for all of them together.
  /// Pages that are held or busy may become unused while others are written; a request that would not sleep does not
  /// begin.
  func decide(_ means: Means, _ spent: Spending, excluding tried: ExcludedRuns) -> Decision {
    let forecast = judge(means.request, means, tried)
    if forecast.isFree { return .free(forecast) }
    let isClaimedOnly = forecast.unmovable == .zero && forecast.claimed > .zero && forecast.missing == .zero
    guard forecast.outcome == .granted || (isClaimedOnly && forecast.written > .zero),
      spent.admits(forecast.moved + forecast.written + forecast.claimed, for: means.request)
    else { return .refuse(forecast) }
    return .empty(forecast)
  }

  /// Forecasts how `allocContig` would empty `run` for `request`; unmovable frames are skipped, as
  /// if they were free. A step for each frame of the run.
  package func forecast(emptying run: FrameRun, for request: ContiguousRequest) -> ContiguousForecast {
    let means = Means(request, Spending(), self)
    return forecast(run, physical.contents(of: run, at: means), means)
  }

  /// Finds the best run for a request, and forecasts it.
  private func judge(
    _ request: ContiguousRequest, _ means: Means, _ excluding: ExcludedRuns
  ) -> ContiguousForecast {
    if let run = physical.freeRun(request.count, where: request.constraints, priority: request.priority) {
      var forecast = ContiguousForecast(run: run)
      forecast.free = run.count
      let free = physical.freeCount
      forecast.freeAfter = free.subtractingSaturated(run.count)
      return forecast
    }
    switch candidate(request, means, excluding: excluding) {
    case .never:
      var forecast = ContiguousForecast(run: FrameRun(first: FrameNumber(0), count: .zero))
      forecast.outcome = .never
      return forecast
    case .found(let candidate):
      return forecast(candidate.run, physical.contents(of: candidate.run, at: means), means)
    case .blocked(let candidate):
      var forecast = forecast(candidate.run, physical.contents(of: candidate.run, at: means), means)
      // All runs that could be emptied have been tried.
      forecast.outcome = .notNow
      return forecast
    }
  }

  /// Forecasts the emptying of a run with these contents.
  func forecast(_ run: FrameRun, _ contents: RunContents, _ means: Means) -> ContiguousForecast {
    let answer = means.plan(for: contents)
    var forecast = ContiguousForecast(run: run)
    forecast.free = PageCount(contents.free)
    forecast.pages = PageCount(contents.pages + contents.claimed)
    forecast.dirty = PageCount(contents.dirty)
    forecast.moved = PageCount(answer.moved)
    forecast.written = PageCount(answer.written)
    forecast.dropped = PageCount(answer.dropped)
    forecast.fetched = PageCount(answer.fetched)
    forecast.unmovable = PageCount(contents.unmovable + contents.captured)
    forecast.claimed = PageCount(contents.claimed)
    forecast.missing = PageCount(answer.missing)
    let taken = contents.free + answer.moved
    let free = means.free + answer.fetched
    forecast.freeAfter = PageCount(free > taken ? free - taken : 0)
    if forecast.unmovable > .zero || forecast.claimed > .zero {
      forecast.outcome = .notNow
      nameOwners(&forecast)
      if forecast.unmovable > .zero { forecast.missing = max(forecast.missing, shortage(run.count, means)) }
    } else if answer.missing > 0 {
      var missing = answer.missing
      if means.isBound {
        // Counted anew, because without bounds pages of a device may have to be distinguished from those of swap.
        let unbounded = means.unbounded()
        missing = unbounded.plan(for: physical.contents(of: run, at: unbounded)).missing
      }
      forecast.outcome = missing == 0 ? .overBudget : .later
    }
    return forecast
  }

  /// Fills in the owners of the obstacles, and the reason of the first.
  func nameOwners(_ forecast: inout ContiguousForecast) {
    forecast.owners = physical.owners(of: forecast.run, forecast.unmovable > .zero ? .unmovable : .claimed)
    guard let first = forecast.owners.first else { return }
    forecast.reason = ContiguousFailure.Reason(physical.whatIs(first.first))
  }

  /// Counts the frames that memory lacks for a run above the reserve: neither free nor in pages that are not wired.
  private func shortage(_ count: PageCount, _ means: Means) -> PageCount {
    let pages = physical.count(.pageable)
    let usable = physical.freeCount + pages.subtractingSaturated(paging.wiredCount)
    return (count + PageCount(means.reserve)).subtractingSaturated(usable)
  }
}

extension ContiguousFailure.Reason {
  /// The reason why a frame can't be emptied as it is now.
  package init(_ what: FrameDescription) {
    if what.role == .free {
      self = .none
    } else if what.role == .zspage {
      self = what.busyWord == .wiredOnce ? .none : .busy
    } else if what.role != .pageable {
      self = .unmovable
    } else {
      let busyWord = what.busyWord
      self =
        busyWord.wires > 0
        ? .wired : busyWord.holds > 0 ? .held : busyWord.isXbusy || busyWord.sbusyCount > 0 ? .busy : .none
    }
  }
}
