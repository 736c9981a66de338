// A lock whose waiters sleep, for work that takes long or sleeps itself. A thread holds it, and may move to another
// processor while it does.
//
// Its word says free, held, or held with waiters. A thread that finds it held marks that and sleeps. The release wakes all
// waiters, if there are any, and they try again in the order in which they came. To acquire a free lock costs one
// compare-and-swap.

import CPlatform
import Synchronization

/// A sleeping lock. Non-copyable; lives in place.
package struct SleepLock: ~Copyable {
  private enum Word {
    static var free: UInt32 { 0 }
    static var held: UInt32 { 1 }
    static var awaited: UInt32 { 2 }
  }
  private let word = Atomic<UInt32>(0)
  private let covered = Atomic<UInt32>(0)
  private let queue = WaitQueue("a lock", .thread)
  private let rank: LockRank

  /// Makes a free lock of a sleeping rank.
  package init(_ rank: LockRank) {
    precondition(rank.kind == .sleeping)
    self.rank = rank
  }

  /// Acquires the lock. No spin lock may be held, and no sleeping lock of this rank or a higher one. Traps if no thread
  /// can release it any more, as on a machine without threads whose only one holds it.
  package borrowing func lock(on machine: Machine) {
    assert(holdsNoSpinLock(), "a sleep with a spin lock held")
    assert(mayAcquire(), "a sleeping lock was acquired against its rank")
    if !word.compareExchange(expected: Word.free, desired: Word.held, ordering: .acquiring).exchanged {
      wait(on: machine)
    }
    assert(recordAcquired())
  }

  /// Releases the lock, and wakes its waiters.
  package borrowing func unlock(on machine: Machine) {
    assert(recordReleased(), "sleeping locks were released out of order")
    if word.exchange(Word.free, ordering: .releasing) == Word.awaited { queue.wake(on: machine) }
  }

  /// Runs `body` with the lock held; it may sleep.
  package borrowing func withLock<R, E>(on machine: Machine, _ body: () throws(E) -> R) throws(E) -> R {
    lock(on: machine)
    defer { unlock(on: machine) }
    return try body()
  }

  @inline(never) private borrowing func wait(on machine: Machine) {
    let start = cp_cycles()
    while true {
      let ticket = queue.ticket()
      // A thread that slept does not know whether others still do, so it marks the lock.
      if word.exchange(Word.awaited, ordering: .acquiring) == Word.free { break }
      precondition(queue.sleep(ticket, on: machine), "a sleeping lock that no thread can release")
    }
    withInterruptsOff { rank.recordWait(cp_cycles() &- start) }
  }

  private borrowing func mayAcquire() -> Bool {
    withInterruptsOff { rank.isAbove(cp_held_sleeping()) }
  }

  private borrowing func recordAcquired() -> Bool {
    withInterruptsOff {
      covered.store(cp_processor().pointee.held_sleeping, ordering: .relaxed)
      cp_processor().pointee.held_sleeping = rank.rawValue
    }
    return true
  }

  private borrowing func recordReleased() -> Bool {
    withInterruptsOff {
      let held = cp_processor().pointee.held_sleeping
      cp_processor().pointee.held_sleeping = covered.load(ordering: .relaxed)
      return held == rank.rawValue
    }
  }
}
