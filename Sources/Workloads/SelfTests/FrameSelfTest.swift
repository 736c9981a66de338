// selftest frames: a block of each order is allocated and freed; blocks are aligned, don't overlap, and join again.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension SelfTests {
  func testFrames() -> SelfTestOutcome {
    let physical = memory.physical
    let before = physical.freeCount
    let longest = physical.longestFreeRun()
    var blocks = InlineArray<10, FrameNumber>(repeating: .none)
    for order in 0...9 {
      do throws(PhysicalMemoryError) {
        blocks[order] = try physical.allocate(
          BlockOrder(UInt8(order)), role: .wired, for: FrameOwner("self-test, a block"))
      } catch {
        // A refused block is an answer, not a fault.
        continue
      }
    }
    var flaw: StaticString?
    var hasBlock = false
    for a in 0...9 where blocks[a] != .none {
      hasBlock = true
      if blocks[a].rawValue & (1 << UInt32(a) - 1) != 0 { flaw = "a block is not aligned to its size" }
      for b in 0...9 where b != a && blocks[b] != .none {
        let (first, end) = (blocks[a].rawValue, blocks[a].rawValue + 1 << UInt32(a))
        if blocks[b].rawValue >= first && blocks[b].rawValue < end { flaw = "two blocks overlap" }
      }
    }
    for order in stride(from: 9, through: 0, by: -1) where blocks[order] != .none {
      physical.free(blocks[order], BlockOrder(UInt8(order)))
    }
    if !hasBlock { return .notBegun("no block of any size is free") }
    if let flaw { return .broken(flaw) }
    if physical.freeCount != before { return .broken("frames did not come back") }
    if physical.longestFreeRun()?.count != longest?.count { return .broken("blocks did not join again") }
    return SelfTestOutcome(physical.checkInvariants())
  }
}
