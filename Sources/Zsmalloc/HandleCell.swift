// The cells: one for each handle, which says where the handle's object is.

import Synchronization

/// A cell: where an object is. Readers read it without the lock.
struct Cell {
  let raw: UnsafeMutableRawPointer

  static var size: Int { 4 }
  /// The lowest value of a cell that has no object; one that never had is 0.
  static var free: UInt32 { 0xff00_0000 }
  /// Bits of a slot's number.
  private static var slotBits: UInt32 { 7 }

  /// The zspage and the slot; nil when the cell has no object.
  @inline(__always) var place: UInt32? {
    let value = word.pointee.load(ordering: .acquiring)
    return value == 0 || value >= Self.free ? nil : value
  }
  @inline(__always) private var word: UnsafeMutablePointer<Atomic<UInt32>> {
    raw.assumingMemoryBound(to: Atomic<UInt32>.self)
  }
  @inline(__always) static func zspage(_ place: UInt32) -> UInt32 { place >> slotBits }
  @inline(__always) static func slot(_ place: UInt32) -> Int { Int(place & (1 << slotBits - 1)) }

  @inline(__always) func set(_ zspage: UInt32, _ slot: Int) {
    word.pointee.store(zspage << Self.slotBits | UInt32(truncatingIfNeeded: slot), ordering: .releasing)
  }
  @inline(__always) func clear() { word.pointee.store(Self.free, ordering: .releasing) }
}
