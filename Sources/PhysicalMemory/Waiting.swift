// Waiting for memory: for a number of frames at a priority, first come first served.
//
// A waiter is a few words on the sleeper's stack, linked into its priority's line under the lock. While a line is not
// empty, newcomers of that priority are refused (or join it), so that nobody starves; other priorities are not held up. Runs
// don't stand in line. Whoever frees wakes everybody when there is a line; the first of it tries again. Who gets in
// line raises the alarm, so that somebody gives pages up.
//
// When nothing is left to be given up, the first in line would keep all others from what little is free, and for
// nothing. Whoever gives pages up says so (`parkUnservableWaiters`): then those first in line who can't be served stand aside,
// where nobody waits for them, nor gives pages up for them. They go on sleeping, and have their turn whenever enough is
// free; now and then they get in line again (`unparkWaiters`), as what could not be given up then may be now.

import MemoryPrimitives

/// Somebody in line.
struct Waiter {
  /// The line of those who stand aside; before it there is one for each priority that waits.
  static var parked: Int { 2 }

  let count: UInt64
  let priority: AllocationPriority
  /// Which line it is in.
  var line: Int
  var next: UnsafeMutablePointer<Waiter>?
  var previous: UnsafeMutablePointer<Waiter>?
}

extension FrameAllocator {
  /// Whether anybody is in line. Lock held.
  @inline(always) var hasWaiters: Bool {
    core.pointee.firstWaiter[0] != nil || core.pointee.firstWaiter[1] != nil
      || core.pointee.firstWaiter[Waiter.parked] != nil
  }

  /// Whether a request of `priority` may try: nobody is in line before it. Lock held.
  @inline(always) func isNext(_ waiter: UnsafeMutablePointer<Waiter>?, _ priority: AllocationPriority) -> Bool
  {
    if priority == .interrupt || core.pointee.firstWaiter[Int(priority.rawValue)] == waiter { return true }
    return waiter != nil && waiter.unsafelyUnwrapped.pointee.line == Waiter.parked
  }

  /// Frames that must be free for the first in every line to have their turn: none where nobody is in line. Constant.
  public var awaited: PageCount {
    let interrupts = lock()
    defer { unlock(interrupts) }
    var most: UInt64 = 0
    for line in 0..<Waiter.parked {
      guard let first = core.pointee.firstWaiter[line] else { continue }
      most = max(most, first.pointee.count + core.pointee.reserves[Int(first.pointee.priority.rawValue)])
    }
    return PageCount(most)
  }

  /// Whether anybody stands aside.
  public var hasParkedWaiters: Bool {
    let interrupts = lock()
    defer { unlock(interrupts) }
    return core.pointee.firstWaiter[Waiter.parked] != nil
  }

  /// Nothing is left that could be given up: those first in line who can't be served keep nobody waiting any more. A
  /// step for each of them, 64 at most.
  public func parkUnservableWaiters() {
    var moved = 0
    let interrupts = lock()
    for line in 0..<Waiter.parked {
      while moved < 64, let first = core.pointee.firstWaiter[line],
        !admits(first.pointee.count, first.pointee.priority)
      {
        leave(first)
        join(first, Waiter.parked)
        moved += 1
      }
    }
    unlock(interrupts)
    // Those behind them are first now.
    if moved > 0 { state.pointee.waiting.wake(on: machine) }
  }

  /// Those who stand aside get in line again, behind all others. A step for each of them, 64 at most.
  public func unparkWaiters() {
    var moved = 0
    let interrupts = lock()
    while moved < 64, let first = core.pointee.firstWaiter[Waiter.parked] {
      leave(first)
      join(first, Int(first.pointee.priority.rawValue))
      moved += 1
    }
    unlock(interrupts)
  }

  /// Lock held.
  private func join(_ waiter: UnsafeMutablePointer<Waiter>, _ line: Int) {
    waiter.pointee.line = line
    waiter.pointee.next = nil
    waiter.pointee.previous = core.pointee.lastWaiter[line]
    if let last = core.pointee.lastWaiter[line] {
      last.pointee.next = waiter
    } else {
      core.pointee.firstWaiter[line] = waiter
    }
    core.pointee.lastWaiter[line] = waiter
  }

  /// Lock held.
  private func leave(_ waiter: UnsafeMutablePointer<Waiter>) {
    if let previous = waiter.pointee.previous {
      previous.pointee.next = waiter.pointee.next
    } else {
      core.pointee.firstWaiter[waiter.pointee.line] = waiter.pointee.next
    }
    if let next = waiter.pointee.next {
      next.pointee.previous = waiter.pointee.previous
    } else {
      core.pointee.lastWaiter[waiter.pointee.line] = waiter.pointee.previous
    }
  }

  @inline(never) func wait(
    for order: Order, _ role: FrameRole, _ priority: AllocationPriority, until deadline: Tick
  ) -> UInt32? {
    let line = Int(priority.rawValue)
    var waiter = Waiter(count: order.frames.rawValue, priority: priority, line: line)
    return withUnsafeMutablePointer(to: &waiter) { me in
      var interrupts = lock()
      guard me.pointee.count + core.pointee.reserves[line] <= total.rawValue else {
        unlock(interrupts)
        return nil
      }
      join(me, line)
      state.pointee.events.pointee.waits.add()
      var frame: UInt32?
      while true {
        // The ticket is taken under the lock that guards the count, so no wake is lost.
        let ticket = state.pointee.waiting.ticket()
        let mayTry = isNext(me, priority) && admits(me.pointee.count, priority)
        let isParked = me.pointee.line == Waiter.parked
        unlock(interrupts)
        if mayTry {
          frame = take(Int(order.rawValue), role, priority, as: me)
          interrupts = lock()
          // Frames enough, but no block: that is not waited for.
          if frame != nil || admits(me.pointee.count, priority) { break }
          continue
        }
        if !isParked { notifyLowMemory(.awaited) }
        let wasWoken = state.pointee.waiting.sleep(ticket, until: deadline, on: machine)
        interrupts = lock()
        if !wasWoken { break }
      }
      leave(me)
      let mustWake = hasWaiters
      unlock(interrupts)
      if mustWake { state.pointee.waiting.wake(on: machine) }
      return frame
    }
  }
}
