import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapSlotsTests: XCTestCase {
  /// A device of `total` slots, random takes and releases, against a list of what is free.
  private func run(_ bench: SwapFixture, _ total: Int, seed: UInt64, steps: Int) throws {
    let words = try FrameArray<UInt64>(
      count: SwapSlots.wordCount(total), initial: 0, physical: bench.physical, machine: bench.host.machine)
    defer { words.free() }
    var slots = SwapSlots(words, total: total)
    XCTAssertTrue(slots.hasExactCounts && slots.hasExactSummary)
    XCTAssertEqual(slots.status(of: SwapSlot(UInt32(total))), .beyond)
    XCTAssertEqual(slots.status(of: .none), .beyond)
    var random = SeededRandom(seed: seed)
    var free = [Bool](repeating: true, count: total)
    var bad = 0
    var used: [Int] = []
    var cursor = 0
    func length(_ at: Int, _ wanted: Int) -> Int {
      var end = at
      while end < total && end - at < wanted && free[end] { end += 1 }
      return end - at
    }
    for step in 0..<steps {
      let isFilling = step / 50 % 2 == 0
      if random.below(100) < (isFilling ? 70 : 30) {
        let wanted = 1 + Int(random.below(32))
        // Next fit: the first long enough from the cursor on, round the end; else the longest.
        var longest = 0
        for at in 0..<total where free[at] { longest = max(longest, length(at, wanted)) }
        let run = slots.reserve(upTo: wanted)
        guard let run else {
          XCTAssertEqual(longest, 0, "slots are free, but none was given")
          continue
        }
        let (first, count) = (Int(run.first.rawValue), Int(run.count.rawValue))
        XCTAssertEqual(length(first, 32) >= count, true)
        XCTAssertEqual(count, longest, "\(total) step \(step) seed \(seed)")
        if count == wanted {
          let expected =
            (cursor..<total).first { free[$0] && length($0, wanted) == wanted }
            ?? (0..<total).first { free[$0] && length($0, wanted) == wanted }
          XCTAssertEqual(first, expected, "\(total) step \(step) seed \(seed)")
        }
        for slot in first..<first + count {
          free[slot] = false
          used.append(slot)
          XCTAssertEqual(slots.status(of: SwapSlot(UInt32(slot))), .used)
        }
        cursor = (first + count) % total
      } else if !used.isEmpty {
        for _ in 0..<1 + random.below(20) where !used.isEmpty {
          let slot = used.remove(at: Int(random.below(UInt64(used.count))))
          if random.oneIn(50) {
            XCTAssertEqual(slots.retire(SwapSlot(UInt32(slot))), .used)
            XCTAssertEqual(slots.retire(SwapSlot(UInt32(slot))), .bad)
            XCTAssertEqual(slots.status(of: SwapSlot(UInt32(slot))), .bad)
            bad += 1
          } else {
            XCTAssertEqual(slots.release(SwapSlot(UInt32(slot))), .used)
            XCTAssertEqual(slots.release(SwapSlot(UInt32(slot))), .free)
            XCTAssertEqual(slots.status(of: SwapSlot(UInt32(slot))), .free)
            free[slot] = true
          }
        }
      }
      XCTAssertEqual([slots.used, slots.bad, slots.free], [used.count, bad, total - used.count - bad])
      if step % 10 == 0 {
        XCTAssertTrue(slots.hasExactCounts && slots.hasExactSummary, "\(total) step \(step) seed \(seed)")
      }
    }
  }

  func testRandomHistoriesAgreeWithAModel() throws {
    let seed = historySeed(92)
    let bench = try SwapFixture(pages: 1)
    // Up to 47 words: one search looks at all of them, at the cursor's twice.
    for (i, total) in [1, 2, 31, 63, 64, 65, 127, 128, 129, 1000, 3007, 3008].enumerated() {
      try run(bench, total, seed: seed &+ UInt64(i), steps: total > 500 ? 800 : 400)
    }
  }

  func testALargeFragmentedDeviceIsSearchedInBoundedSteps() throws {
    // Five levels would take 16 million words; four are enough to see that all of them work.
    let bench = try SwapFixture(pages: 1, frames: 8192)
    for total in [64 * 64, 64 * 64 + 1, 64 * 64 * 64 + 3, 1 << 22 + 5] {
      let words = try FrameArray<UInt64>(
        count: SwapSlots.wordCount(total), initial: 0, physical: bench.physical, machine: bench.host.machine)
      defer { words.free() }
      var slots = SwapSlots(words, total: total)
      // Take everything: in order, in the longest runs.
      var next = 0
      while let run = slots.reserve(upTo: 32) {
        XCTAssertEqual(Int(run.first.rawValue), next)
        XCTAssertEqual(Int(run.count.rawValue), min(32, total - next))
        next += Int(run.count.rawValue)
      }
      XCTAssertEqual(next, total)
      XCTAssertEqual(slots.free, 0)
      XCTAssertTrue(slots.hasExactCounts && slots.hasExactSummary)
      // One free slot anywhere is found at once; then every other one is free and no run is longer than 1.
      for slot in [0, total / 2, total - 1, 63, 64] {
        XCTAssertEqual(slots.release(SwapSlot(UInt32(slot))), .used)
        XCTAssertEqual(slots.reserve(upTo: 32), SlotRun(first: SwapSlot(UInt32(slot)), count: .one))
      }
      for slot in stride(from: 0, to: min(total, 100_000), by: 2) {
        _ = slots.release(SwapSlot(UInt32(slot)))
      }
      for _ in 0..<1000 { XCTAssertEqual(slots.reserve(upTo: 32)?.count, .one) }
      XCTAssertTrue(slots.hasExactCounts && slots.hasExactSummary)
    }
  }
}
