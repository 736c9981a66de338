// The alarm: whoever gives pages up is woken when frames become few, before requests must be refused.
//
// A mark says how few. A request that leaves fewer frames than that free raises the alarm; raised, it stays raised
// until it is taken note of, so a hot path pays a comparison, and below the mark a load. Nothing listens at a mark of
// zero. Who gets in line, or waits for pages to be given up in any other way, raises it urgently: a listener that
// pauses, as it could give nothing up, hears only that.
//
// What is taken with a lock held raises no alarm: who took a page back looks when it has let go (`checkLowMemory`). Frames
// captured for a run raise none either, so that nothing is written for a run but what lies in it; the next request does.

import MemoryPrimitives
import Synchronization

/// What the alarm is raised for.
public enum Shortage: Sendable {
  /// Fewer frames are free than the mark says.
  case few
  /// Somebody waits for frames.
  case awaited
}

/// Below how many free frames somebody is to be woken.
struct LowMemoryNotification: ~Copyable {
  let mark = Atomic<UInt64>(0)
  let isRaised = Atomic<Bool>(false)
  let isUrgent = Atomic<Bool>(false)
  let listeners = WaitQueue("few free frames", .thread)

  init() {}
}

extension FrameAllocator {
  /// Lets a request that leaves fewer than `mark` frames free raise the alarm; `.zero` switches that off. Constant.
  public func setLowMemoryMark(below mark: PageCount) {
    state.pointee.lowMemory.mark.store(mark.rawValue, ordering: .relaxed)
    checkLowMemory()
  }

  /// Raises the alarm, and wakes who listens. No spin lock may be held.
  public func notifyLowMemory(_ shortage: Shortage) {
    let wasRaised =
      switch shortage {
      case .few: state.pointee.lowMemory.isRaised.exchange(true, ordering: .sequentiallyConsistent)
      case .awaited: state.pointee.lowMemory.isUrgent.exchange(true, ordering: .sequentiallyConsistent)
      }
    if !wasRaised { state.pointee.lowMemory.listeners.wake(on: machine) }
  }

  /// Raises the alarm if frames are few: for who took some with a lock held. No spin lock may be held. Constant.
  public func checkLowMemory() { notifyLowMemory(if: isShort(freeCount.rawValue)) }

  /// Sleeps until the alarm is raised, for what `shortage` says or for something more pressing; takes note of that, so
  /// that it can be raised again. Answers at once when it is raised already; false when `deadline` has passed.
  @discardableResult public func awaitLowMemory(_ shortage: Shortage, until deadline: Tick = .never) -> Bool {
    while true {
      let ticket = state.pointee.lowMemory.listeners.ticket()
      var isRaised = state.pointee.lowMemory.isUrgent.exchange(false, ordering: .sequentiallyConsistent)
      if shortage == .few {
        isRaised =
          state.pointee.lowMemory.isRaised.exchange(false, ordering: .sequentiallyConsistent) || isRaised
      }
      if isRaised { return true }
      // From the look on until it sleeps, only the ticket tells that the alarm was raised.
      noteClaim(UnsafeRawPointer(state))
      guard state.pointee.lowMemory.listeners.sleep(ticket, until: deadline, on: machine) else {
        return false
      }
    }
  }

  /// Whether so many free frames are few. Lock held or not.
  @inline(always) func isShort(_ free: UInt64) -> Bool {
    free < state.pointee.lowMemory.mark.load(ordering: .relaxed)
  }

  @inline(always) func notifyLowMemory(if isShort: Bool) {
    if isShort && !state.pointee.lowMemory.isRaised.load(ordering: .relaxed) { notifyLowMemory(.few) }
  }
}
