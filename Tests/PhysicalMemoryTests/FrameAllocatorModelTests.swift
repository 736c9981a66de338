// Random histories against a model: one role a frame, and brute force.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class FrameAllocatorModelTests: XCTestCase {
  func testSmallMachinesAgreeWithTheModel() throws {
    for (i, frames) in FrameHistory.smallMachines.enumerated() {
      let system = try FrameAllocatorFixture(frames: frames)
      let isSmall = frames.allSatisfy { $0.0 < 2000 }
      FrameHistory.drive(
        system, seed: historySeed(UInt64(100 + i)), operations: isSmall ? 12_000 : 3000, largestRun: 200,
        checkEvery: 1
      )
    }
  }

  func testAMachineAcrossFourGibibytesAgreesWithTheModel() throws {
    let system = try FrameAllocatorFixture(frames: [((1 << 20) - 256, 512)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    let first = (1 << 20) - UInt32(100)
    let constraints = RunConstraints(
      low: PhysicalAddress(UInt64(first) << 12), high: PhysicalAddress(UInt64(first + 150) << 12))
    let run = try memory.allocate(run: PageCount(UInt64(150)), where: constraints, role: .wired)
    XCTAssertEqual(run.first.rawValue, first)
    system.check()
    memory.free(run)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testExtentsAcrossPageblocksAreFound() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2600)])
    let memory = system.memory!
    for priority in [AllocationPriority.normal, .system] { try memory.setReserve(.zero, for: priority) }
    var frames = 0
    while (try? memory.allocate(BlockOrder(0), role: .slab)) != nil { frames += 1 }
    var model = FrameModel(system)
    let number = historySeed(31)
    var random = SeededRandom(seed: number)
    for round in 0..<100 {
      var islands: [(Int, Int)] = []
      for _ in 0..<1 + random.below(3) {
        let count = 1 + Int(random.below(60))
        let first = 512 * (1 + Int(random.below(4))) - 30 + Int(random.below(60)) - count / 2
        guard model.roles[first..<first + count].allSatisfy({ $0 == .slab }) else { continue }
        memory.free(FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count)))
        model.set(first, count, .free)
        islands.append((first, count))
      }
      let longest = model.longestRun()
      XCTAssertEqual(Int(memory.longestFreeRun()?.count.rawValue ?? 0), longest, "round \(round)")
      for count in 1...longest + 1 {
        let constraints = RunConstraints(alignment: Alignment(4096 << random.below(3))!)
        let run = memory.freeRun(PageCount(count), where: constraints)
        let exists = model.hasRun(count, constraints)
        XCTAssertEqual(run != nil, exists, "\(count) frames, round \(round), STRATA_SEED=\(number)")
      }
      for (first, count) in islands {
        let at = PhysicalAddress(UInt64(first) << 12)
        _ = try memory.allocate(
          run: PageCount(count),
          where: RunConstraints(low: at, high: at + PageCount(count).bytes), role: .slab)
        model.set(first, count, .slab)
      }
    }
    system.check()
    XCTAssertEqual(memory.freeCount, .zero)
  }

  func testBlocksEndWhereAListEnds() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 3 << 18)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    XCTAssertEqual(memory.blocks(in: .below16MiB, of: BlockOrder(12)), 1)
    for high: UInt64 in [16 << 20, 64 << 20] {
      let run = try memory.allocate(
        run: PageCount(UInt64(3)), where: RunConstraints(high: PhysicalAddress(high)), role: .contiguous)
      system.check()
      memory.free(run)
      system.check()
    }
    // A run over the border, of two blocks in two lists.
    let constraints = RunConstraints(low: PhysicalAddress(0), high: PhysicalAddress(64 << 20))
    let run = try memory.allocate(run: PageCount(UInt64(16384)), where: constraints, role: .contiguous)
    XCTAssertEqual(run.first.rawValue, 0)
    system.check()
    memory.free(run)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testARunWhoseInnerBlockIsCutAtTheBorderIsFound() throws {
    // Every run of 16383 frames holds an aligned block of 8192, but at 0 that is two of 4096.
    let system = try FrameAllocatorFixture(frames: [(0, 16383), (16384, 600)])
    let memory = system.memory!
    try memory.setReserve(.zero, for: .normal)
    let run = try memory.allocate(run: PageCount(UInt64(16383)), role: .contiguous)
    XCTAssertEqual(run.first.rawValue, 0)
    system.check()
    memory.free(run)
    system.check()
  }

  func testAMediumMachineAgreesWithTheModel() throws {
    let system = try FrameAllocatorFixture(
      frames: [(0, 159), (256, 8000), (9000, 3000)],
      occupied: [(256, 342, .image), (5000, 2000, .bootModule)])
    FrameHistory.drive(system, seed: historySeed(7), operations: 30_000, largestRun: 3000, checkEvery: 100)
  }

  func testLargeRunsOfManyBlocksAreAllocated() throws {
    let system = try FrameAllocatorFixture(frames: [(256, (9 << 18) - 256)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    var random = SeededRandom(seed: historySeed(11))
    for _ in 0..<4 {
      var runs: [FrameRun] = []
      for _ in 0..<12 {
        let count = PageCount(1 + random.below(3 << 18))
        let constraints = RunConstraints(
          low: PhysicalAddress(random.below(4 << 30)), alignment: Alignment(4096 << random.below(12))!)
        guard
          let run = try? memory.allocate(run: count, where: constraints, role: .contiguous)
        else { continue }
        XCTAssertGreaterThanOrEqual(run.first.address, constraints.low)
        runs.append(run)
      }
      for run in runs {
        let part = random.below(run.count.rawValue)
        if part > 0 { memory.free(FrameRun(first: run.first, count: PageCount(part))) }
        memory.free(
          FrameRun(first: run.first + PageCount(part), count: run.count - PageCount(part)))
      }
      system.check()
    }
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testManyOperationsOnALargeMachineAgreeWithTheModel() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 159), (256, 1 << 18)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    let number = historySeed(3)
    var random = SeededRandom(seed: number)
    var given: [FrameRun] = []
    for i in 0..<1_000_000 {
      if given.count < 3000 || random.oneIn(2) {
        let order = UInt8(min(9, random.next().trailingZeroBitCount))
        if let frame = try? memory.allocate(BlockOrder(order), role: random.oneIn(2) ? .slab : .pageable) {
          given.append(FrameRun(first: frame, count: BlockOrder(order).frames))
        }
      } else {
        let k = Int(random.below(UInt64(given.count)))
        memory.free(given[k])
        given[k] = given[given.count - 1]
        given.removeLast()
      }
      if i % 20_000 == 0, let broken = memory.checkInvariants() {
        return XCTFail("invariant \(broken), operation \(i), STRATA_SEED=\(number)")
      }
    }
    for run in given { memory.free(run) }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }
}
