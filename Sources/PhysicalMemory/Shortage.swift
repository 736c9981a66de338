// The alarm: whoever gives pages up is woken when frames become few, before requests must be refused.
//
// A mark says how few. A request that leaves fewer frames than that free raises the alarm, and so does one that gets
// in line; raised once it stays raised until it is taken note of, so a hot path pays a comparison, and below the
// mark a load. Nothing listens at a mark of zero.

import MemoryPrimitives
import Synchronization

/// Below how many free frames somebody is to be woken.
struct ShortageAlarm: ~Copyable {
  let mark = Atomic<UInt64>(0)
  let isRaised = Atomic<Bool>(false)
  let listeners = WaitQueue("few free frames")

  init() {}
}

extension PhysicalMemory {
  /// Lets a request that leaves fewer than `mark` frames free raise the alarm; `.zero` switches that off. Constant.
  public func setAlarm(below mark: PageCount) {
    state.pointee.alarm.mark.store(mark.rawValue, ordering: .relaxed)
  }

  /// Raises the alarm, and wakes who listens. No spin lock may be held.
  public func raiseAlarm() {
    if state.pointee.alarm.isRaised.exchange(true, ordering: .sequentiallyConsistent) { return }
    state.pointee.alarm.listeners.wake(on: machine)
  }

  /// Sleeps until the alarm is raised, or until `deadline`; takes note of it, so that it can be raised again. Answers
  /// at once when it is raised already.
  public func awaitAlarm(until deadline: Tick = .never) {
    while true {
      let ticket = state.pointee.alarm.listeners.ticket()
      if state.pointee.alarm.isRaised.exchange(false, ordering: .sequentiallyConsistent) { return }
      guard state.pointee.alarm.listeners.sleep(ticket, until: deadline, on: machine) else { return }
    }
  }

  /// Whether so many free frames are few. Lock held or not.
  @inline(always) func isShort(_ free: UInt64) -> Bool {
    free < state.pointee.alarm.mark.load(ordering: .relaxed)
  }

  @inline(always) func raiseAlarm(if isShort: Bool) {
    if isShort && !state.pointee.alarm.isRaised.load(ordering: .relaxed) { raiseAlarm() }
  }
}
