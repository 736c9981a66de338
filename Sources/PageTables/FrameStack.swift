// Frames put by, linked through their own first words: tables preallocated before the lock is taken, tables
// to give back after it was dropped, spare tables of splittable leaves.
//
// A link is a frame number shifted to where an address stands in an entry, without "present": a
// processor that still walks through a table just taken out of the tree reads an empty entry.

import MemoryPrimitives
import Synchronization

struct FrameStack {
  let directMap: DirectMap
  private(set) var count = 0
  private var head = FrameNumber.none

  init(_ directMap: DirectMap) { self.directMap = directMap }

  mutating func push(_ frame: FrameNumber) {
    Slot(directMap.pointer(to: frame)).store(PageTableEntry(head.address.rawValue))
    head = frame
    count += 1
  }

  /// The frame on top, its first word zero again. Traps when there is none.
  mutating func pop() -> FrameNumber {
    precondition(count > 0, "no table put by")
    let frame = head
    let slot = Slot(directMap.pointer(to: frame))
    head = slot.entry.tableFrame
    slot.store(.empty)
    count -= 1
    return frame
  }

  mutating func popIfAny() -> FrameNumber? { count == 0 ? nil : pop() }
}

/// The place of one entry in memory. The processor may walk while it is written, so loads and stores
/// are whole, and a store comes after all that stood before it: a table is filled before it is linked.
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
  /// As a processor reads it that holds no lock: what the entry leads to was filled before.
  @inline(__always) var acquired: PageTableEntry {
    PageTableEntry(pointer.pointee.load(ordering: .acquiring))
  }
  // The operations below lose no bit that the processor sets in between; they answer what was there.
  @inline(__always) func exchange(_ entry: PageTableEntry) -> PageTableEntry {
    PageTableEntry(pointer.pointee.exchange(entry.rawValue, ordering: .acquiringAndReleasing))
  }
  @inline(__always) func clear(_ bits: UInt64) -> PageTableEntry {
    PageTableEntry(pointer.pointee.bitwiseAnd(~bits, ordering: .acquiringAndReleasing).oldValue)
  }
  @inline(__always) func set(_ bits: UInt64) {
    pointer.pointee.bitwiseOr(bits, ordering: .acquiringAndReleasing)
  }
  /// False when the place no longer holds `entry`.
  @inline(__always) func replace(_ entry: PageTableEntry, with bits: UInt64) -> Bool {
    pointer.pointee.compareExchange(
      expected: entry.rawValue, desired: bits, ordering: .acquiringAndReleasing
    ).exchanged
  }
  @inline(__always) static func + (slot: Self, index: Int) -> Self { Self(slot.pointer + index) }
}
