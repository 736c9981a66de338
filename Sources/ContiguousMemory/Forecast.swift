// What emptying a run would come to, without doing it: the rules of `empty`, applied to the pages as they are.
//
// A forecast is as good as the moment it is made in. It knows nothing of pages that somebody dirties meanwhile,
// nor of writes that fail.

import MemoryPrimitives
import Paging
import PhysicalMemory

/// What a request would do to one run, and how that would end.
public struct ContiguousForecast: Sendable {
  public enum Outcome: UInt8, Sendable {
    /// Every page of the run has somewhere to go.
    case granted
    /// Somebody keeps a page: `blocker`.
    case notNow
    /// `missing` pages have nowhere to go.
    case later
    /// `missing` pages are left when the request has done what it may.
    case overBudget
  }
  public var run: FrameRun
  public var outcome = Outcome.granted
  public var free = PageCount.zero
  /// Pages that would be copied to other frames.
  public var moved = PageCount.zero
  /// Pages that would be written out.
  public var written = PageCount.zero
  /// Clean pages that would be given up: a fault brings them back.
  public var dropped = PageCount.zero
  /// Frames that the page daemon would have to free before, wherever it finds them.
  public var fetched = PageCount.zero
  /// Frames that can't be emptied.
  public var fixed = PageCount.zero
  /// Pages that are held or busy at this moment.
  public var claimed = PageCount.zero
  public var missing = PageCount.zero
  /// The first frame that is fixed; if none is, the first that is claimed.
  public var blocker: FrameNumber?
  public var reason = ContiguousFailure.Reason.none
  /// Frames free afterwards.
  public var freeAfter = PageCount.zero

  public init(run: FrameRun) { self.run = run }
}

extension ContiguousMemory {
  /// What `allocContig` would do to empty `run` for `request`; frames that can't be emptied are passed over, as
  /// if they were free. A look at each frame of the run.
  public func forecast(emptying run: FrameRun, for request: ContiguousRequest) -> ContiguousForecast {
    var forecast = ContiguousForecast(run: run)
    let pages = look(at: run, &forecast)
    // Isolating takes the free frames of the run from everybody else.
    var free = physical.freeCount
    let reserve = physical.reserve(for: request.level)
    let needed = forecast.free + reserve
    if free < needed && mayLaunder(request, Spending()) && free < paging.freeTarget {
      forecast.fetched = paging.freeTarget - free
      free = paging.freeTarget
    }
    guard free >= needed else {
      forecast.outcome = forecast.fixed > .zero ? .notNow : .later
      forecast.missing = needed - free
      forecast.freeAfter = free
      return forecast
    }
    free = free - forecast.free
    var left = pages.clean + pages.dirty
    if request.passes > .free {
      let floor = floorForMoving(request)
      if clean(in: run, for: request, free: free) == .areDropped {
        forecast.dropped = pages.clean
        left = pages.dirty
      }
      move(&left, &free, above: floor, request.budget.moved, &forecast)
      if mayLaunder(request, Spending()) {
        let mayBeWritten = request.passes == .launderActive ? left : min(left, pages.inactive)
        forecast.written = min(mayBeWritten, min(paging.swap.figures.free, request.budget.written))
        left = left - forecast.written
      }
      move(&left, &free, above: reserve, request.budget.moved, &forecast)
    }
    forecast.freeAfter = free
    forecast.missing = left
    if forecast.blocker != nil {
      forecast.outcome = .notNow
    } else if left > .zero {
      forecast.outcome =
        isBound(request, moved: forecast.moved, written: forecast.written) ? .overBudget : .later
    }
    return forecast
  }

  private func move(
    _ left: inout PageCount, _ free: inout PageCount, above floor: PageCount, _ limit: PageCount,
    _ forecast: inout ContiguousForecast
  ) {
    let room = free > floor ? free - floor : .zero
    let moved = min(left, min(room, limit - min(limit, forecast.moved)))
    forecast.moved = forecast.moved + moved
    left = left - moved
    free = free - moved
  }

  private struct Pages {
    var clean = PageCount.zero
    var dirty = PageCount.zero
    /// Dirty ones that are in no active use.
    var inactive = PageCount.zero
  }

  /// Counts what is in a run.
  private func look(at run: FrameRun, _ forecast: inout ContiguousForecast) -> Pages {
    var pages = Pages()
    var at = run.first
    while at < run.end {
      let frame = at
      at = at + .one
      let what = physical.whatIs(frame)
      let reason = ContiguousFailure.Reason(what)
      switch reason {
      case .wired, .fixed: forecast.fixed = forecast.fixed + .one
      case .held, .busy: forecast.claimed = forecast.claimed + .one
      case .none:
        if what.role == .free {
          forecast.free = forecast.free + .one
        } else if what.pageFlags.contains(.dirty) {
          pages.dirty = pages.dirty + .one
          if what.queue != .active { pages.inactive = pages.inactive + .one }
        } else {
          pages.clean = pages.clean + .one
        }
        continue
      }
      let isFixed = reason == .wired || reason == .fixed
      let isFirst = forecast.blocker == nil
      if isFirst || (isFixed && forecast.reason != .wired && forecast.reason != .fixed) {
        (forecast.blocker, forecast.reason) = (frame, reason)
      }
    }
    return pages
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
      let claims = what.claims
      self = claims.wires > 0 ? .wired : claims.holds > 0 ? .held : claims.isTaken ? .busy : .none
    }
  }
}
