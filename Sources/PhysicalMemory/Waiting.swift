// Waiting for memory: for a number of frames at a level, first come first served.
//
// A waiter is a word or two on the sleeper's stack, linked into its level's line under the lock. While a
// line is not empty, newcomers of that level are refused (or join it), so that nobody starves; other
// levels are not held up. Runs don't stand in line. Whoever frees wakes everybody when there is a line;
// the first of it tries again. Who gets in line raises the alarm, so that somebody gives pages up.

import MemoryPrimitives

/// Somebody in line.
struct Waiter {
  var count: UInt64
  var next: UnsafeMutablePointer<Waiter>?
  var previous: UnsafeMutablePointer<Waiter>?
}

extension PhysicalMemory {
  /// Whether anybody is in line. Lock held.
  @inline(always) var hasWaiters: Bool {
    core.pointee.firstWaiter[0] != nil || core.pointee.firstWaiter[1] != nil
  }

  /// Whether a request of `level` may try: nobody is in line before it. Lock held.
  @inline(always) func isNext(_ waiter: UnsafeMutablePointer<Waiter>?, _ level: Level) -> Bool {
    level == .interrupt || core.pointee.firstWaiter[Int(level.rawValue)] == waiter
  }

  /// Frames that must be free for the first in every line to have their turn: none where nobody is in line. Constant.
  public var awaited: PageCount {
    let interrupts = lock()
    defer { unlock(interrupts) }
    var most: UInt64 = 0
    for line in 0..<2 {
      guard let first = core.pointee.firstWaiter[line] else { continue }
      most = max(most, first.pointee.count + core.pointee.floors[line])
    }
    return PageCount(most)
  }

  @inline(never) func wait(
    for order: Order, _ role: FrameRole, _ level: Level, until deadline: Tick
  ) -> UInt32? {
    let line = Int(level.rawValue)
    var waiter = Waiter(count: order.frames.rawValue)
    return withUnsafeMutablePointer(to: &waiter) { me in
      var interrupts = lock()
      guard me.pointee.count + core.pointee.floors[line] <= total.rawValue else {
        unlock(interrupts)
        return nil
      }
      me.pointee.previous = core.pointee.lastWaiter[line]
      if let last = core.pointee.lastWaiter[line] {
        last.pointee.next = me
      } else {
        core.pointee.firstWaiter[line] = me
      }
      core.pointee.lastWaiter[line] = me
      state.pointee.events.pointee.waits.add()
      var frame: UInt32?
      while true {
        // The ticket is taken under the lock that guards the count, so no wake is lost.
        let ticket = state.pointee.waiting.ticket()
        let mayTry = isNext(me, level) && admits(me.pointee.count, level)
        unlock(interrupts)
        if mayTry {
          frame = take(Int(order.rawValue), role, level, as: me)
          interrupts = lock()
          // Frames enough, but no block: that is not waited for.
          if frame != nil || admits(me.pointee.count, level) { break }
          continue
        }
        raiseAlarm()
        let wasWoken = state.pointee.waiting.sleep(ticket, until: deadline, on: machine)
        interrupts = lock()
        if !wasWoken { break }
      }
      if let previous = me.pointee.previous {
        previous.pointee.next = me.pointee.next
      } else {
        core.pointee.firstWaiter[line] = me.pointee.next
      }
      if let next = me.pointee.next {
        next.pointee.previous = me.pointee.previous
      } else {
        core.pointee.lastWaiter[line] = me.pointee.previous
      }
      let mustWake = hasWaiters
      unlock(interrupts)
      if mustWake { state.pointee.waiting.wake(on: machine) }
      return frame
    }
  }
}
