// One slot for each processor, a cache line apart at least, reached by pointer arithmetic.
//
// A slot is touched by its own processor with interrupts off. Never make it an element of an
// InlineArray: an access to one element counts as one to all.

import CPlatform

/// An array with one `Slot` for each processor, in memory that the caller gives.
@frozen public struct PerProcessor<Slot: ~Copyable> {
  @usableFromInline let base: UnsafeMutableRawPointer
  public let count: Int

  /// Bytes from one slot to the next: the slot's size rounded up to a cache line of 64 bytes.
  @inlinable public static var stride: Int { (MemoryLayout<Slot>.size + 63) & ~63 }

  /// Slots in `memory`, which holds `count * stride` bytes, aligned to 64, with each slot initialised
  /// (or valid as zeroes).
  @inlinable public init(_ memory: UnsafeMutableRawPointer, count: Int) {
    base = memory
    self.count = count
  }

  /// The slot of the processor that runs this, which must have interrupts off to keep it.
  @inline(always) public var mine: UnsafeMutablePointer<Slot> {
    (base + Int(cp_processor_index()) &* Self.stride).assumingMemoryBound(to: Slot.self)
  }

  @inline(always) public subscript(_ processor: ProcessorIndex) -> UnsafeMutablePointer<Slot> {
    precondition(processor.rawValue < count)
    return (base + Int(processor.rawValue) &* Self.stride).assumingMemoryBound(to: Slot.self)
  }
}
