// The low-memory notification: it wakes the page daemon when few frames are free, before requests must be refused.
//
// A mark says how few. A request that leaves fewer free frames than that sends the notification. It stays raised until
// the listener acknowledges it, so an allocation pays a comparison, and below the mark a load. A mark of zero switches it
// off. A request that joins a queue of waiters, or that waits for the page daemon in another way, sends it urgently. A
// listener that pauses, because it could free nothing, wakes only for that.
//
// An allocation with a lock held sends no notification: the caller calls `checkLowMemory` after it has released its lock.
// Capturing frames for a run sends none either, so that nothing is written for a run but its own pages; the next request
// does.

import MemoryPrimitives
import Synchronization

/// The reason of a low-memory notification.
package enum Shortage: Sendable {
  /// Fewer frames are free than the mark says.
  case few
  /// A thread waits for frames.
  case awaited
}

/// The mark, and whether the notification is raised.
struct LowMemoryNotification: ~Copyable {
  let mark = Atomic<UInt64>(0)
  let isRaised = Atomic<Bool>(false)
  let isUrgent = Atomic<Bool>(false)
  let listeners = WaitQueue("few free frames", .thread)

  init() {}
}

extension FrameAllocator {
  /// Sets the mark: a request that leaves fewer than `mark` frames free sends the notification. `.zero` switches that off.
  /// Constant.
  package func setLowMemoryMark(below mark: PageCount) {
    state.pointee.lowMemory.mark.store(mark.rawValue, ordering: .relaxed)
    checkLowMemory()
  }

  /// Raises the notification, and wakes the listener. No spin lock may be held.
  package func notifyLowMemory(_ shortage: Shortage) {
    let wasRaised =
      switch shortage {
      case .few: state.pointee.lowMemory.isRaised.exchange(true, ordering: .sequentiallyConsistent)
      case .awaited: state.pointee.lowMemory.isUrgent.exchange(true, ordering: .sequentiallyConsistent)
      }
    if !wasRaised { state.pointee.lowMemory.listeners.wake(on: machine) }
  }

  /// Raises the notification if few frames are free: for a caller that allocated with a lock held. No spin lock may be
  /// held. Constant.
  @inline(__always) package func checkLowMemory() {
    let isShort = table.count(.free) < state.pointee.lowMemory.mark.load(ordering: .relaxed)
    if isShort && !state.pointee.lowMemory.isRaised.load(ordering: .relaxed) { notifyLowMemory(.few) }
  }

  /// Sleeps until the notification is raised for `shortage` or a more urgent reason, and acknowledges it, so that it can
  /// be raised again. Returns at once when it is raised already; false when `deadline` has passed.
  @discardableResult package func awaitLowMemory(_ shortage: Shortage, until deadline: Tick = .never) -> Bool
  {
    while true {
      let ticket = state.pointee.lowMemory.listeners.ticket()
      var isRaised = state.pointee.lowMemory.isUrgent.exchange(false, ordering: .sequentiallyConsistent)
      if shortage == .few {
        isRaised =
          state.pointee.lowMemory.isRaised.exchange(false, ordering: .sequentiallyConsistent) || isRaised
      }
      if isRaised { return true }
      // From here until it sleeps, only the ticket shows that the notification was raised.
      reportClaim(UnsafeRawPointer(state))
      guard state.pointee.lowMemory.listeners.sleep(ticket, until: deadline, on: machine) else {
        return false
      }
    }
  }
}
