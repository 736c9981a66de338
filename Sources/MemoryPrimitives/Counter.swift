// Statistics that one processor writes and any processor reads.

import Synchronization

/// A counter with one writer at a time and any number of readers. An increment is one plain instruction.
@usableFromInline package struct Counter: ~Copyable {
  @usableFromInline let word: Atomic<UInt64>

  /// Makes a counter.
  @inlinable package init(_ value: UInt64 = 0) { word = Atomic(value) }

  /// Adds to the counter. Only its one writer may call this.
  @inline(always) package borrowing func add(_ amount: UInt64 = 1) {
    word.store(word.load(ordering: .relaxed) &+ amount, ordering: .relaxed)
  }
  /// Subtracts from the counter. Only its one writer may call this.
  @inline(always) package borrowing func subtract(_ amount: UInt64 = 1) {
    word.store(word.load(ordering: .relaxed) &- amount, ordering: .relaxed)
  }
  /// Sets the counter. Only its one writer may call this.
  @inline(always) package borrowing func set(_ value: UInt64) { word.store(value, ordering: .relaxed) }
  @inline(always) package var value: UInt64 { word.load(ordering: .relaxed) }
}
