// Searches for runs of frames, in steps: the cost of a search on a large machine against a small one.
//
// All memory is allocated in large blocks and then freed again in a pattern that is hard to search. The figure is the
// allocator's count of steps, so it depends on no clock.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// A pattern of free frames, and the request for it.
package enum RunSearchPattern: UInt8, Sendable {
  /// Every second page is taken; two pages in a row are asked for, and refused.
  case everySecond
  /// 99 % are taken, by chance; four pages in a row are asked for, and refused.
  case random
  /// Every second page is taken, but for four in a row, in no block of four, in the last pageblock that a search comes
  /// to: four are asked for.
  case lastBlock
  /// Of each 64 KiB the first two pages are taken: two pages at a multiple of 64 KiB are asked for, and refused.
  case luck
}

/// A machine in such a state.
package struct RunSearchBench {
  private let memory: MemorySystem
  /// Each frame that is taken at first, by its number: a bit each.
  private let taken: UnsafeMutablePointer<UInt64>
  private let frames: UInt32

  /// Bytes that a bench needs for a machine of `memory`, zeroed.
  package static func storage(_ memory: ByteCount) -> ByteCount {
    ByteCount((memory.rawValue >> Page.shift) / 8 + 64)
  }

  private var physical: FrameAllocator { memory.physical }

  /// `storage` is zeroed, and of the size that a machine of `size` takes.
  package init(_ memory: MemorySystem, _ size: ByteCount, _ storage: UnsafeMutableRawPointer) {
    self.memory = memory
    frames = UInt32(size.rawValue >> Page.shift)
    taken = storage.bindMemory(to: UInt64.self, capacity: Int(frames) / 64 + 1)
  }

  /// Steps of the search, and whether it found what it should. Leaves the machine as it is: it is not used again.
  package func run(_ pattern: RunSearchPattern, seed: UInt64) -> (steps: UInt64, isRight: Bool) {
    let lowest = allocateAll()
    var random = SeededRandom(seed: seed)
    for frame in 0..<frames where isTaken(frame) {
      let isFree =
        switch pattern {
        case .everySecond: frame & 1 == 1
        case .random: random.oneIn(100)
        case .lastBlock: frame & 1 == 1 || (frame &- lowest &- 2) < 4
        case .luck: frame & 15 >= 2
        }
      if isFree { physical.free(FrameNumber(frame), BlockOrder(0)) }
    }
    var constraints = RunConstraints()
    if pattern == .luck { constraints.alignment = Alignment(64 << 10).unsafelyUnwrapped }
    let count = PageCount(UInt64(pattern == .everySecond || pattern == .luck ? 2 : 4))
    let before = steps
    let isGranted = isThere(count, constraints)
    return (steps - before, isGranted == (pattern == .lastBlock))
  }

  private func isThere(_ count: PageCount, _ constraints: RunConstraints) -> Bool {
    do throws(PhysicalMemoryError) {
      physical.free(
        try physical.allocate(
          run: count, where: constraints, role: .wired, priority: .interrupt,
          for: FrameOwner("bench, a run")))
      return true
    } catch {
      return false
    }
  }

  private var steps: UInt64 { memory.statistics.value(of: "vm.run_steps") ?? 0 }

  private func isTaken(_ frame: UInt32) -> Bool { taken[Int(frame >> 6)] >> UInt64(frame & 63) & 1 != 0 }

  /// Allocates all memory. Returns the first frame of the lowest whole pageblock that was taken.
  private func allocateAll() -> UInt32 {
    var lowest = UInt32.max
    for order in (0...18 as ClosedRange<UInt8>).reversed() {
      while let first = allocate(order) {
        for frame in first.rawValue..<first.rawValue + (1 << UInt32(order)) {
          taken[Int(frame >> 6)] |= 1 << UInt64(frame & 63)
        }
        if order >= 9 { lowest = min(lowest, first.rawValue) }
      }
    }
    return lowest
  }

  private func allocate(_ order: UInt8) -> FrameNumber? {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        BlockOrder(order), role: .wired, priority: .interrupt, for: FrameOwner("bench, a block"))
    } catch {
      return nil
    }
  }
}
