// A lock whose waiters sleep: for what takes long, or sleeps itself. It is held by a thread, which may be moved to
// another processor meanwhile.
//
// One word: free, held, or held with somebody waiting. Who finds it taken marks that and sleeps; who releases it
// wakes all that wait when somebody does, and they try again in the order in which they came. Taking it when it is
// free costs one compare-and-swap.

import CPlatform
import Synchronization

/// A sleeping lock. Non-copyable; lives in place.
public struct SleepLock: ~Copyable {
  private enum Word {
    static var free: UInt32 { 0 }
    static var held: UInt32 { 1 }
    static var awaited: UInt32 { 2 }
  }
  private let word = Atomic<UInt32>(0)
  private let covered = Atomic<UInt32>(0)
  private let queue = WaitQueue("a lock", .thread)
  private let rank: LockRank

  public init(_ rank: LockRank) {
    precondition(rank.kind == .sleeping)
    self.rank = rank
  }

  /// Takes the lock. No spin lock may be held, and no sleeping lock of this rank or a higher one. Where nobody can
  /// release it any more, as on a machine without threads whose only one holds it, that is a bug.
  public borrowing func lock(on machine: Machine) {
    assert(holdsNoSpinLock(), "a sleep with a spin lock held")
    assert(mayTake(), "a sleeping lock was taken against its rank")
    if !word.compareExchange(expected: Word.free, desired: Word.held, ordering: .acquiring).exchanged {
      wait(on: machine)
    }
    assert(noteTaken())
  }

  public borrowing func unlock(on machine: Machine) {
    assert(noteReleased(), "sleeping locks were released out of order")
    if word.exchange(Word.free, ordering: .releasing) == Word.awaited { queue.wake(on: machine) }
  }

  /// Runs `body` with the lock held; it may sleep.
  public borrowing func withLock<R, E>(on machine: Machine, _ body: () throws(E) -> R) throws(E) -> R {
    lock(on: machine)
    defer { unlock(on: machine) }
    return try body()
  }

  @inline(never) private borrowing func wait(on machine: Machine) {
    let start = cp_cycles()
    while true {
      let ticket = queue.ticket()
      // Whoever slept may not know whether others still do.
      if word.exchange(Word.awaited, ordering: .acquiring) == Word.free { break }
      precondition(queue.sleep(ticket, on: machine), "a sleeping lock that nobody can release")
    }
    withInterruptsOff { rank.noteWait(cp_cycles() &- start) }
  }

  private borrowing func mayTake() -> Bool {
    withInterruptsOff { cp_processor().pointee.held_sleeping < rank.rawValue }
  }

  private borrowing func noteTaken() -> Bool {
    withInterruptsOff {
      covered.store(cp_processor().pointee.held_sleeping, ordering: .relaxed)
      cp_processor().pointee.held_sleeping = rank.rawValue
    }
    return true
  }

  private borrowing func noteReleased() -> Bool {
    withInterruptsOff {
      let held = cp_processor().pointee.held_sleeping
      cp_processor().pointee.held_sleeping = covered.load(ordering: .relaxed)
      return held == rank.rawValue
    }
  }
}
