// Blocks of frames that a bench holds, linked through their first words, so that the free ones form a certain state.

import MemoryPrimitives
import PhysicalMemory

/// Blocks that were allocated and are to be freed together.
struct HeldFrames {
  private struct Link {
    var next: FrameNumber
    var order: BlockOrder
  }

  private let physical: FrameAllocator
  private let machine: Machine
  private var first = FrameNumber.none

  init(_ physical: FrameAllocator, _ machine: Machine) {
    self.physical = physical
    self.machine = machine
  }

  /// Allocates a block and holds it. Returns false when there is none.
  mutating func hold(_ order: BlockOrder) -> Bool {
    guard let block = allocate(order) else { return false }
    add(block, order)
    return true
  }

  /// Allocates a block of the next order and holds one half: the other half is free and has no free buddy.
  mutating func holdHalf(_ order: BlockOrder) -> Bool {
    guard let block = allocate(BlockOrder(order.rawValue + 1)) else { return false }
    physical.free(block + order.frames, order)
    add(block, order)
    return true
  }

  private mutating func add(_ block: FrameNumber, _ order: BlockOrder) {
    machine.directMap.pointer(to: block).storeBytes(of: Link(next: first, order: order), as: Link.self)
    first = block
  }

  private func allocate(_ order: BlockOrder) -> FrameNumber? {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        order, role: .wired, priority: .interrupt, for: FrameOwner("bench, held frames"))
    } catch {
      return nil
    }
  }

  /// Frees all blocks.
  mutating func release() {
    while first != .none {
      let link = machine.directMap.pointer(to: first).load(as: Link.self)
      physical.free(first, link.order)
      first = link.next
    }
  }
}
