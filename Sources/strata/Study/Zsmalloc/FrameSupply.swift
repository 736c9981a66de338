// The frames of a layout: real ones, of a simulated machine's frame allocator.

import MemoryPrimitives
import PhysicalMemory

/// Counts the frames that are held. A request may use the last free frame, and reclaims nothing.
final class FrameSupply {
  private let physical: FrameAllocator
  private(set) var held: UInt64 = 0

  init(_ physical: FrameAllocator) { self.physical = physical }

  /// A block of 2^`order` frames; nil when there is none.
  func allocate(order: UInt8 = 0) -> FrameNumber? {
    let frame = try? physical.allocateUnlogged(
      BlockOrder(order), role: .wired, priority: .interrupt, for: FrameOwner("study"))
    if frame != nil { held += 1 << order }
    return frame
  }

  func free(_ first: FrameNumber, order: UInt8 = 0) {
    physical.free(first, BlockOrder(order))
    held -= 1 << order
  }
}
