// One entry of a table in memory, read and written as the processor may at the same time.

import MemoryPrimitives
import Synchronization

/// The address of one entry. A processor may walk while the entry is written, so loads and stores are whole. A store
/// becomes visible after all stores before it, so a table is filled before it is linked.
struct Slot {
  let pointer: UnsafeMutablePointer<Atomic<UInt64>>

  @inline(__always) init(_ raw: UnsafeMutableRawPointer) {
    pointer = raw.assumingMemoryBound(to: Atomic<UInt64>.self)
  }
  @inline(__always) private init(_ pointer: UnsafeMutablePointer<Atomic<UInt64>>) { self.pointer = pointer }

  @inline(__always) var entry: PageTableEntry { PageTableEntry(pointer.pointee.load(ordering: .relaxed)) }
  @inline(__always) func store(_ entry: PageTableEntry) {
    pointer.pointee.store(entry.rawValue, ordering: .releasing)
  }
  /// The entry as a walk without the lock reads it: the table that it leads to was filled before.
  @inline(__always) var acquired: PageTableEntry {
    PageTableEntry(pointer.pointee.load(ordering: .acquiring))
  }
  // The operations below lose no bit that a processor sets in between. They return the entry before.
  @inline(__always) func exchange(_ entry: PageTableEntry) -> PageTableEntry {
    PageTableEntry(pointer.pointee.exchange(entry.rawValue, ordering: .acquiringAndReleasing))
  }
  @inline(__always) func clear(_ bits: UInt64) -> PageTableEntry {
    PageTableEntry(pointer.pointee.bitwiseAnd(~bits, ordering: .acquiringAndReleasing).oldValue)
  }
  @inline(__always) func set(_ bits: UInt64) {
    pointer.pointee.bitwiseOr(bits, ordering: .acquiringAndReleasing)
  }
  /// Stores `bits` if the slot still holds `entry`. Returns whether it did.
  @inline(__always) func replace(_ entry: PageTableEntry, with bits: UInt64) -> Bool {
    pointer.pointee.compareExchange(
      expected: entry.rawValue, desired: bits, ordering: .acquiringAndReleasing
    ).exchanged
  }
  @inline(__always) static func + (slot: Self, index: Int) -> Self { Self(slot.pointer + index) }
}
