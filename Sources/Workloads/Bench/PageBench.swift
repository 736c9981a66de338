// Benches of frames: pairs of single pages and of pageblocks, and 512 single pages that are freed in random order.
//
// Each returns cycles of the cycle counter. It creates the state that it needs first, and undoes it afterwards.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// The benches of one system's frames.
package struct PageBench {
  private let memory: MemorySystem
  private var physical: FrameAllocator { memory.physical }

  package init(_ memory: MemorySystem) { self.memory = memory }

  /// `count` times an allocation of a block and its free. False when there was none.
  @discardableResult
  package func pairs(_ order: BlockOrder, _ count: Int) -> Bool {
    do throws(PhysicalMemoryError) {
      for _ in 0..<count {
        let block = try physical.allocate(order, role: .wired, for: FrameOwner("bench"))
        physical.free(block, order)
      }
      return true
    } catch {
      return false
    }
  }

  /// Cycles of a pair; nil when there was no such block.
  package func cyclesOfPair(_ order: BlockOrder, _ count: Int) -> UInt64? {
    guard pairs(order, 1) else { return nil }
    let start = cp_cycles()
    guard pairs(order, count) else { return nil }
    return (cp_cycles() &- start) / UInt64(count)
  }

  /// Cycles for each of 512 single pages, allocated and then freed in random order, `rounds` times over; nil when
  /// there were not so many.
  package func cyclesOfSingles(rounds: Int, seed: UInt64) -> UInt64? {
    var random = SeededRandom(seed: seed)
    var frames = InlineArray<512, FrameNumber>(repeating: .none)
    var order = InlineArray<512, UInt16>(repeating: 0)
    for i in 0..<512 { order[i] = UInt16(i) }
    var cycles: UInt64 = 0
    for _ in 0..<rounds {
      for i in (1..<512).reversed() { order.swapAt(i, Int(random.below(UInt64(i + 1)))) }
      let start = cp_cycles()
      for i in 0..<512 {
        do throws(PhysicalMemoryError) {
          frames[i] = try physical.allocate(BlockOrder(0), role: .wired, for: FrameOwner("bench"))
        } catch {
          for k in 0..<i { physical.free(frames[k], BlockOrder(0)) }
          return nil
        }
      }
      for i in 0..<512 { physical.free(frames[Int(order[i])], BlockOrder(0)) }
      cycles &+= cp_cycles() &- start
    }
    return cycles / UInt64(512 * rounds)
  }

  /// Cycles of a pair of 2 MiB while no block above it is free, and half of memory is free in such blocks.
  package func cyclesOfPageblockPair(_ count: Int) -> UInt64? {
    let order = BlockOrder(9)
    var held = HeldFrames(physical, memory.machine)
    defer { held.release() }
    while held.holdHalf(order) {}
    return cyclesOfPair(order, count)
  }

  /// Cycles of a pair of 2 MiB out of a free block of 1 GiB: nine splits and nine merges. Nil when the machine has no
  /// such block.
  package func cyclesOfSplittingPair(_ count: Int) -> UInt64? {
    // A request goes to the highest list that can serve it: smaller blocks there and above are in the way.
    var lowest = RangeList.count - 1
    while lowest > 0 && blocks(.highest, from: lowest) == 0 { lowest -= 1 }
    guard blocks(.highest, from: lowest) > 0 else { return nil }
    var held = HeldFrames(physical, memory.machine)
    defer { held.release() }
    for order in 9..<18 as Range<UInt8> {
      while blocks(BlockOrder(order), from: lowest) > 0, held.hold(BlockOrder(order)) {}
    }
    guard blocks(.highest, from: lowest) > 0 else { return nil }
    return cyclesOfPair(BlockOrder(9), count)
  }

  /// Free blocks of an order in a list and in those above it.
  private func blocks(_ order: BlockOrder, from lowest: Int) -> UInt64 {
    var count: UInt64 = 0
    for list in lowest..<RangeList.count {
      count += physical.blocks(in: RangeList(rawValue: UInt8(list)).unsafelyUnwrapped, of: order)
    }
    return count
  }
}
