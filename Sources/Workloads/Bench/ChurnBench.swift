// Churn: the share of free 2 MiB blocks on a machine after long allocating and freeing of pages.
//
// Memory is filled with single pages, and a share of them is freed at random. Then 400 rounds free a tenth of the
// rest, at random, and allocate as many again. The figure is the number of whole free blocks, of those that the free
// frames could form.

import MemoryPrimitives
import PhysicalMemory

/// The experiment of the budget on churn.
package struct ChurnBench {
  private let physical: FrameAllocator
  private let pages: UnsafeMutableBufferPointer<FrameNumber>
  private var random: SeededRandom
  private var live = 0

  /// `pages` has an element for each frame of the machine.
  package init(
    _ physical: FrameAllocator, _ pages: UnsafeMutableBufferPointer<FrameNumber>, seed: UInt64
  ) {
    self.physical = physical
    self.pages = pages
    random = SeededRandom(seed: seed)
  }

  /// Free blocks of 2 MiB in thousandths of a percent of those possible, with `percent` of memory free, after
  /// `rounds`. Frees everything.
  package mutating func run(percent: UInt64, rounds: Int) -> UInt64 {
    fill()
    let kept = live * Int(100 - percent) / 100
    while live > kept { freeOne() }
    for _ in 0..<rounds {
      let turned = live / 10
      for _ in 0..<turned { freeOne() }
      for _ in 0..<turned { allocateOne() }
    }
    let possible = physical.freeCount.rawValue / 512
    let blocks = Self.pageblocks(physical)
    while live > 0 { freeOne() }
    return possible == 0 ? 0 : blocks * 100_000 / possible
  }

  /// Free blocks of 2 MiB, larger ones counted as the blocks that they hold.
  package static func pageblocks(_ physical: FrameAllocator) -> UInt64 {
    var blocks: UInt64 = 0
    for list in 0..<RangeList.count {
      for order in 9...18 as ClosedRange<UInt8> {
        let count = physical.blocks(
          in: RangeList(rawValue: UInt8(list)).unsafelyUnwrapped, of: BlockOrder(order))
        blocks += count << UInt64(order - 9)
      }
    }
    return blocks
  }

  private mutating func fill() {
    while live < pages.count, let frame = allocate() {
      pages[live] = frame
      live += 1
    }
  }

  private mutating func allocateOne() {
    guard let frame = allocate() else { return }
    pages[live] = frame
    live += 1
  }

  private func allocate() -> FrameNumber? {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        BlockOrder(0), role: .wired, priority: .interrupt, for: FrameOwner("bench, churn"))
    } catch {
      return nil
    }
  }

  /// Frees one page of those that are live, by chance.
  private mutating func freeOne() {
    let index = Int(random.below(UInt64(live)))
    let frame = pages[index]
    live -= 1
    pages[index] = pages[live]
    physical.free(frame, BlockOrder(0))
  }
}
