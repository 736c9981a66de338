// Plain data that is reached only under its lock: one of the two shapes of shared state.
//
// `mutating` methods belong to the data inside; the closure sees it `inout`, so exclusive access
// lasts as long as the lock and no longer.

import Builtin

/// Storage for one value whose address never changes and which a borrow may write through.
@frozen @usableFromInline @_rawLayout(like: Value) package struct Cell<Value: ~Copyable>: ~Copyable {
  @_alwaysEmitIntoClient @_transparent package init(_ value: consuming Value) {
    address.initialize(to: value)
  }

  /// The address of the value, which never changes.
  @_alwaysEmitIntoClient @_transparent package var address: UnsafeMutablePointer<Value> {
    UnsafeMutablePointer<Value>(Builtin.unprotectedAddressOfBorrow(self))
  }

  deinit { address.deinitialize(count: 1) }
}

extension Cell: @unchecked Sendable where Value: ~Copyable {}

/// A value behind a spin lock, with interrupts off while it is reached.
@usableFromInline package struct Locked<Value: ~Copyable>: ~Copyable {
  @usableFromInline let lock: SpinLock
  @usableFromInline let cell: Cell<Value>

  /// Makes a value behind a lock of a rank.
  @inlinable package init(_ rank: LockRank, _ value: consuming Value) {
    lock = SpinLock(rank)
    cell = Cell(value)
  }

  /// Runs `body` on the value with the lock held: bounded work, no upcall.
  @inline(always)
  package borrowing func withLock<R, E>(_ body: (inout Value) throws(E) -> R) throws(E) -> R {
    let held = acquire()
    let result = try body(&held.address.pointee)
    held.release()
    return result
  }

  /// Acquires the lock until the answer is released or goes out of scope: for a lock that must cross a call. The callee
  /// gets the answer `consuming`.
  @inline(always) package borrowing func acquire() -> Held<Value> {
    Held(lock: lock.acquire(), value: cell.address)
  }

  /// The value without its lock, for a check: sound only while nothing else uses the instance.
  @inlinable package var quiet: UnsafeMutablePointer<Value> { cell.address }
}

/// A value whose lock is held. The lock is released when this is.
@frozen @usableFromInline package struct Held<Value: ~Copyable>: ~Copyable {
  // The address comes first, because the compiler reports to TSan a write to the first word of a borrowed value where it
  // means the value itself: with the lock's pointer there, TSan would take each write for one to the lock.
  @usableFromInline let address: UnsafeMutablePointer<Value>
  @usableFromInline let lock: HeldSpinLock

  @inlinable init(lock: consuming HeldSpinLock, value: UnsafeMutablePointer<Value>) {
    address = value
    self.lock = lock
  }

  @inlinable package var value: Value {
    @inline(__always) _read { yield address.pointee }
    @inline(__always) nonmutating _modify { yield &address.pointee }
  }

  /// Releases the lock.
  @inline(always) package consuming func release() {}
}
