import HostMachine
import Kmem
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// The bodies of the benches do what their figures claim, and give everything back; the list of budgets is sound.
final class BenchBodyTests: XCTestCase {
  private func check(_ system: TestSystem, _ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = system.memory.checkInvariants() { XCTFail("\(broken)", file: file, line: line) }
  }

  func testEachBudgetHasAPlaceInTheListAndANameOfItsOwn() {
    let rows = (0..<Budget.count).map { Budget(rawValue: UInt8($0))!.row }
    XCTAssertNil(Budget(rawValue: UInt8(Budget.count)))
    XCTAssertEqual(Set(rows.map { "\($0.name)" }).count, rows.count)
    for row in rows {
      XCTAssertGreaterThan(row.scale, 0, "\(row.name)")
      if row.standing == .due { XCTAssertNotNil(row.bound, "\(row.name) is due and has no goal") }
    }
  }

  func testAGoalIsMetAtItsBound() {
    var row = Budget.fault.row
    row.goal = .atMost(7)
    XCTAssertTrue(row.isMet(by: 7))
    XCTAssertFalse(row.isMet(by: 8))
    row.goal = .atLeast(7)
    XCTAssertTrue(row.isMet(by: 7))
    XCTAssertFalse(row.isMet(by: 6))
    XCTAssertEqual("\(row.sense)", "at least")
    row.goal = .none
    XCTAssertTrue(row.isMet(by: 0))
  }

  /// Counts what passes through it, over kmem.
  private final class Tally {
    var sizes: [UInt64] = []
    var live: [UnsafeMutableRawPointer: UInt64] = [:]
  }
  private struct Counted: BenchAllocator {
    let inner: KmemBenchAllocator
    let tally: Tally

    func allocate(_ size: UInt64) -> UnsafeMutableRawPointer {
      let object = inner.allocate(size)
      XCTAssertNil(tally.live.updateValue(size, forKey: object), "an object was given out twice")
      tally.sizes.append(size)
      return object
    }
    func free(_ object: UnsafeMutableRawPointer, _ size: UInt64) {
      XCTAssertEqual(tally.live.removeValue(forKey: object), size)
      inner.free(object, size)
    }
  }

  private func counted(_ system: TestSystem) -> Counted {
    let kmem = system.memory.kmem
    return Counted(inner: KmemBenchAllocator(kmem, kmem.type(named: ShortName("bench"))), tally: Tally())
  }

  func testPatternsOfObjectsFreeWhatTheyAllocate() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let allocator = counted(system)
    ObjectBench.pairs(allocator, 128, 10)
    ObjectBench.variablePairs(allocator, 24, 10)
    XCTAssertEqual(
      allocator.tally.sizes, [UInt64](repeating: 128, count: 10) + [UInt64](repeating: 24, count: 10))
    let objects = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(capacity: 64)
    defer { objects.deallocate() }
    allocator.tally.sizes = []
    ObjectBench.batches(allocator, objects, 3)
    XCTAssertEqual(allocator.tally.sizes.count, 3 * 64)
    XCTAssertTrue(allocator.tally.live.isEmpty)
  }

  func testReplacementsDependOnTheSeedOnlyAndKeepToTheirSizes() throws {
    let limits: [(ObjectSizes, ClosedRange<UInt64>)] = [
      (.one, 64...64), (.small, 8...256), (.mixed, 16...4096),
    ]
    for (sizes, limit) in limits {
      let runs = try (0..<2).map { _ -> [UInt64] in
        let system = try TestSystem(memory: .mebibytes(16))
        let allocator = counted(system)
        let slots = UnsafeMutableBufferPointer<ObjectSlot>.allocate(capacity: 100)
        let steps = UnsafeMutableBufferPointer<ObjectReplacement>.allocate(capacity: 500)
        defer {
          slots.deallocate()
          steps.deallocate()
        }
        ObjectBench.fill(allocator, slots, steps, sizes, seed: 7)
        XCTAssertEqual(allocator.tally.live.count, 100)
        ObjectBench.replace(allocator, slots, steps, rounds: 2)
        XCTAssertEqual(allocator.tally.live.count, 100)
        ObjectBench.empty(allocator, slots)
        XCTAssertTrue(allocator.tally.live.isEmpty)
        check(system)
        return allocator.tally.sizes
      }
      XCTAssertEqual(runs[0], runs[1])
      XCTAssertEqual(runs[0].count, 100 + 2 * 500)
      XCTAssertTrue(runs[0].allSatisfy(limit.contains), "\(sizes)")
    }
  }

  func testATraceUnpacksWithItsOwnershipSettled() throws {
    var trace = WrittenTrace()
    trace.kfree(0)
    trace.kmalloc(0, 100)
    trace.kmalloc(1, 50)
    // Lost its free: the old one goes first.
    trace.kmalloc(0, 200)
    trace.kfree(1)
    trace.kfree(1)
    // Above a page: not for a host process.
    trace.kmalloc(2, 8192)
    trace.kfree(2)
    trace.pages(.pageAlloc, 0)
    let bytes = trace.bytes
    try bytes.withUnsafeBytes { raw in
      let packed = try PackedTrace(raw)
      let events = UnsafeMutableBufferPointer<TraceObjectEvent>.allocate(
        capacity: TraceObjects.capacity(packed.counts))
      let sizes = UnsafeMutableBufferPointer<UInt32>.allocate(capacity: Int(packed.counts.objects))
      defer {
        events.deallocate()
        sizes.deallocate()
      }
      let objects = try TraceObjects(packed, into: events, sizes: sizes)
      let found = (0..<objects.count).map {
        "\(events[$0].isFree ? "-" : "+")\(events[$0].identity):\(events[$0].size)"
      }
      XCTAssertEqual(found, ["+0:100", "+1:50", "-0:100", "+0:200", "-1:50", "-0:200"])
      XCTAssertEqual(objects.peakBytes, 250)
      XCTAssertEqual(objects.peakIndex, 4)
      XCTAssertEqual(objects.leftOut, 1)

      let system = try TestSystem(memory: .mebibytes(16))
      let allocator = counted(system)
      let places = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(capacity: objects.identities * 64)
      defer { places.deallocate() }
      objects.run(allocator, places, from: 0, to: objects.peakIndex)
      XCTAssertEqual(allocator.tally.live.count, 2 * 64)
      objects.run(allocator, places, from: objects.peakIndex, to: objects.count)
      XCTAssertTrue(allocator.tally.live.isEmpty)
      check(system)
    }
  }

  func testBenchesOfFramesFreeEverything() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let free = system.physical.freeCount
    let bench = PageBench(system.memory)
    XCTAssertNotNil(bench.cyclesOfPair(BlockOrder(0), 10))
    XCTAssertNotNil(bench.cyclesOfSingles(rounds: 2, seed: 1))
    XCTAssertEqual(system.physical.freeCount, free)
    XCTAssertNotNil(bench.cyclesOfPageblockPair(10))
    XCTAssertEqual(system.physical.freeCount, free)
    XCTAssertNil(bench.cyclesOfSplittingPair(10), "64 MiB hold no block of 1 GiB")
    XCTAssertEqual(system.physical.freeCount, free)
    check(system)
  }

  func testChurnCountsBlocksAndFreesEverything() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let free = system.physical.freeCount
    let blocks = ChurnBench.pageblocks(system.physical)
    XCTAssertGreaterThan(blocks, 28)
    let pages = UnsafeMutableBufferPointer<FrameNumber>.allocate(capacity: 1 << 14)
    defer { pages.deallocate() }
    var churn = ChurnBench(system.physical, pages, seed: 1)
    XCTAssertEqual(churn.run(percent: 100, rounds: 3), blocks * 100_000 / (free.rawValue / 512))
    XCTAssertLessThanOrEqual(churn.run(percent: 50, rounds: 3), 100_000)
    XCTAssertEqual(system.physical.freeCount, free)
    XCTAssertEqual(ChurnBench.pageblocks(system.physical), blocks)
    check(system)
  }

  func testEachPatternOfSearchesHasTheAnswerThatItShouldHave() throws {
    for pattern in [RunSearchPattern.everySecond, .random, .lastBlock, .luck] {
      let size = ByteCount.mebibytes(64)
      let system = try TestSystem(memory: size)
      let storage = UnsafeMutableRawPointer.allocate(
        byteCount: Int(RunSearchBench.storage(size).rawValue), alignment: 64)
      defer { storage.deallocate() }
      storage.initializeMemory(
        as: UInt8.self, repeating: 0, count: Int(RunSearchBench.storage(size).rawValue))
      let result = RunSearchBench(system.memory, size, storage).run(pattern, seed: 1)
      XCTAssertTrue(result.isRight, "\(pattern)")
      check(system)
    }
  }

  func testBenchesOfArenasFreeEverything() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let (free, tags) = (system.physical.freeCount, system.memory.space.tags.figures)
    for kind in [VmemBench.Kind.plain, .aligned, .windowed] {
      var bench = try XCTUnwrap(VmemBench(system.memory, live: 1000, seed: 1))
      XCTAssertNotNil(bench.cyclesOfPair(kind, 200), "\(kind)")
      check(system)
      bench.release()
    }
    XCTAssertEqual(
      system.memory.space.tags.figures.total - system.memory.space.tags.figures.free, tags.total - tags.free)
    // The supply keeps one free page of tags.
    XCTAssertLessThanOrEqual(free.rawValue - system.physical.freeCount.rawValue, 1)
    check(system)
    XCTAssertNil(VmemBench(system.memory, live: 10_000_000, seed: 1))
  }
}
