// A spin lock that switches interrupts off on its processor while it is held, and knows its rank.
//
// While a processor holds one, it does bounded work, without a fault, an upcall or a sleep. The rank of the innermost lock
// held is a word of the processor. Each lock stores the rank that it covered, so its release restores that without a
// list. This requires that locks are released in the opposite order, which `assert` checks.

import Builtin
import CPlatform
import Synchronization

/// A spin lock with interrupts off. Non-copyable; lives in place.
@usableFromInline package struct SpinLock: ~Copyable {
  @usableFromInline let word = Atomic<UInt32>(0)
  @usableFromInline let covered = Atomic<UInt32>(0)
  @usableFromInline let rank: LockRank

  /// Makes a free lock of a spin rank.
  @inlinable package init(_ rank: LockRank) { self.rank = rank }

  /// Acquires the lock. Returns the interrupt state that `unlock` restores.
  @inline(always) package borrowing func lock() -> UInt64 {
    let interrupts = cp_interrupts_disable()
    // Checked before the wait, which has no end when this processor holds the lock itself.
    assert(mayAcquire(), "a spin lock was acquired against its rank")
    if !word.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged { spin() }
    assert(recordAcquired())
    return interrupts
  }

  /// Releases the lock and restores the interrupt state that `lock` returned.
  @inline(always) package borrowing func unlock(_ interrupts: UInt64) {
    assert(recordReleased(), "spin locks were released out of order")
    word.store(0, ordering: .releasing)
    cp_interrupts_restore(interrupts)
  }

  @usableFromInline @inline(never) borrowing func spin() {
    let start = cp_cycles()
    var spins: UInt32 = 0
    repeat {
      while word.load(ordering: .relaxed) != 0 {
        cp_pause(spins)
        spins &+= 1
      }
    } while !word.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged
    rank.recordWait(cp_cycles() &- start)
  }

  /// Records the interval from the outermost lock to its release, if it is the longest.
  @usableFromInline @inline(never) borrowing func recordHold(_ mine: UnsafeMutablePointer<cp_processor>) {
    let cycles = cp_cycles() &- mine.pointee.held_since
    mine.pointee.held_since = 0
    if cycles > mine.pointee.longest_off { mine.pointee.longest_off = cycles }
    guard let waits = mine.pointee.waits else { return }
    let holds = cp_longest_holds(waits)
    guard cycles > holds[Int(rank.rawValue)] else { return }
    holds[Int(rank.rawValue)] = cycles
    cp_hold_sites(waits)[Int(rank.rawValue)] = cp_return_address()
  }

  @usableFromInline borrowing func mayAcquire() -> Bool { rank.isAbove(cp_held_rank()) }

  /// Always answers true: inside an assertion it costs nothing in builds without them.
  @usableFromInline borrowing func recordAcquired() -> Bool {
    let mine = cp_processor()
    covered.store(mine.pointee.held_rank, ordering: .relaxed)
    if mine.pointee.measuring != 0 && mine.pointee.held_rank == 0 { mine.pointee.held_since = cp_cycles() }
    mine.pointee.held_rank = rank.rawValue
    return true
  }

  @usableFromInline borrowing func recordReleased() -> Bool {
    let mine = cp_processor()
    let held = mine.pointee.held_rank
    mine.pointee.held_rank = covered.load(ordering: .relaxed)
    if mine.pointee.held_since != 0 && mine.pointee.held_rank == 0 { recordHold(mine) }
    return held == rank.rawValue
  }
}

extension SpinLock {
  /// Runs `body` with the lock held: bounded work, no upcall.
  @inline(always) package borrowing func withLock<R, E>(_ body: () throws(E) -> R) throws(E) -> R {
    let held = acquire()
    let result = try body()
    held.release()
    return result
  }

  /// Acquires the lock until the answer goes out of scope: for a lock that is held across a context switch.
  @inline(always) package borrowing func acquire() -> HeldSpinLock {
    HeldSpinLock(self, interrupts: lock())
  }

  /// The lock as held by the caller, a thread that runs for the first time: the outgoing thread has acquired it. Its
  /// release switches interrupts on.
  @inline(always) package borrowing func adopt() -> HeldSpinLock {
    HeldSpinLock(self, interrupts: 1 << 9)
  }
}

/// A spin lock that is held, with the interrupt state of the thread that acquired it. Its deinit releases the lock.
@frozen @usableFromInline package struct HeldSpinLock: ~Copyable {
  @usableFromInline let lock: UnsafePointer<SpinLock>
  @usableFromInline let interrupts: UInt64

  /// The lock never moves, so its address may be kept.
  @inlinable init(_ lock: borrowing SpinLock, interrupts: UInt64) {
    self.lock = UnsafePointer(Builtin.unprotectedAddressOfBorrow(lock))
    self.interrupts = interrupts
  }

  /// Releases the lock.
  @inline(always) package consuming func release() {}

  @inlinable deinit { lock.pointee.unlock(interrupts) }
}

/// Whether this processor holds no spin lock, so that it may make an upcall or sleep.
@inlinable package func holdsNoSpinLock() -> Bool { cp_held_rank() == 0 }
/// Whether this processor holds a spin lock of that rank or a higher one.
package func holdsSpinLock(from rank: LockRank) -> Bool { cp_held_rank() >= rank.rawValue }
/// Whether this processor may wait for an answer of others: it holds no spin lock, and its interrupts are on.
package func mayAskProcessors() -> Bool { holdsNoSpinLock() && cp_interrupts_enabled() }

/// Runs `body` with interrupts off on this processor: a few dozen instructions, for per-processor state.
@inline(always) package func withInterruptsOff<R, E>(_ body: () throws(E) -> R) throws(E) -> R {
  let interrupts = cp_interrupts_disable()
  defer { cp_interrupts_restore(interrupts) }
  return try body()
}
