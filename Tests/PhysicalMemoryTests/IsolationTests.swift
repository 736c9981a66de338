import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class IsolationTests: XCTestCase {
  func run(_ first: UInt32, _ count: UInt64) -> FrameRun {
    FrameRun(first: FrameNumber(first), count: PageCount(count))
  }

  func open(_ frames: [(UInt64, UInt64)], occupied: [(UInt64, UInt64, FrameRole)] = []) throws
    -> FrameAllocatorFixture
  {
    let system = try FrameAllocatorFixture(frames: frames, occupied: occupied)
    for priority in [AllocationPriority.normal, .system] {
      try system.memory.setReserve(.zero, for: priority)
    }
    return system
  }

  func testAFrameThatIsFreedInTheRunIsCapturedAndNoOtherRequestGetsIt() throws {
    let system = try open([(0, 4096)])
    let memory = system.memory!
    // All of memory in blocks of four frames.
    var blocks: [FrameNumber] = []
    while let block = try? memory.allocate(BlockOrder(2), role: .kmem) { blocks.append(block) }
    while (try? memory.allocate(BlockOrder(0), role: .stack)) != nil {}
    let before = FrameSnapshot(memory)
    let isolation = try memory.isolated(run(1022, 516), priority: .normal)
    XCTAssertEqual(memory.capturedCount(isolation), .zero)
    XCTAssertNil(memory.finish(isolation))
    // Blocks that lie partly inside and partly outside.
    for first: UInt32 in [1020, 1536] { memory.free(FrameNumber(first), BlockOrder(2)) }
    system.check()
    XCTAssertEqual(memory.freeCount.rawValue, 4)
    XCTAssertEqual(memory.capturedCount(isolation).rawValue, 4)
    XCTAssertFalse(memory.isCaptured(FrameNumber(1021), isolation))
    XCTAssertTrue(memory.isCaptured(FrameNumber(1022), isolation))
    XCTAssertTrue(memory.isCaptured(FrameNumber(1537), isolation))
    XCTAssertFalse(memory.isCaptured(FrameNumber(1538), isolation))
    XCTAssertFalse(memory.isCaptured(FrameNumber(1100), isolation))
    // One free over all the rest of it and more on both sides.
    memory.free(run(1012, 8))
    memory.free(run(1024, 512))
    system.check()
    XCTAssertEqual(memory.capturedCount(isolation).rawValue, 516)
    XCTAssertEqual(memory.freeCount.rawValue, 12)
    // Other requests get free frames, but no captured ones.
    var others: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      others.append(frame)
    }
    XCTAssertEqual(others.count, 12)
    XCTAssertTrue(others.allSatisfy { !isolation.run.contains($0) })
    for frame in others { memory.free(frame, BlockOrder(0)) }
    XCTAssertThrowsError(try memory.allocate(frame: FrameNumber(1100), role: .wired)) {
      XCTAssertEqual($0 as? PhysicalMemoryError, .notFree)
    }
    XCTAssertEqual(memory.finish(isolation), run(1022, 516))
    system.check()
    XCTAssertEqual(memory.record(FrameNumber(1100))!.busyWord, .wiredOnce)
    memory.free(run(1022, 516))
    for first: UInt32 in [1012, 1016, 1020, 1536] + Array(stride(from: 1024, to: 1536, by: 4)) {
      for frame in first..<first + 4 { try memory.allocate(frame: FrameNumber(frame), role: .kmem) }
    }
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testAFreeOfMoreThanTheRunChangesNothing() throws {
    let system = try open([(0, 4096)])
    let memory = system.memory!
    let all = try memory.allocate(run: PageCount(UInt64(2048)), role: .wired)
    let first = all.first.rawValue
    let isolations = [
      try memory.isolated(run(first + 100, 7), priority: .normal),
      try memory.isolated(run(first + 107, 1), priority: .normal),
      try memory.isolated(run(first + 500, 1000), priority: .normal),
    ]
    memory.free(all)
    system.check()
    XCTAssertEqual(isolations.map { memory.capturedCount($0).rawValue }, [7, 1, 1000])
    XCTAssertNotNil(memory.finish(isolations[1]))
    memory.abandon(isolations[2])
    system.check()
    memory.free(run(first + 107, 1))
    memory.abandon(isolations[0])
    system.check()
    XCTAssertEqual(memory.longestFreeRun()?.count, memory.freeCount)
  }

  func testFreeAndCachedFramesAreCapturedAtOnce() throws {
    let model = try PageModel(open([(256, 3000)]))
    let memory = model.memory
    for i in 0..<600 { try model.makePage(PageName(owner: 1, index: UInt64(i))) }
    for i in 0..<300 { model.freePage(PageName(owner: 1, index: UInt64(2 * i)), .cached) }
    let before = FrameSnapshot(memory)
    let first = memory.recordsRun.first.rawValue - 1100
    try model.isolate(Int(first), 1100)
    XCTAssertNil(model.check())
    XCTAssertNil(model.checkFrames())
    XCTAssertLessThan(memory.cachedCount, PageCount(UInt64(300)))
    // The pages left in it come when they are freed, kept or not.
    let frames = model.pages.values.map(\.frame).filter { $0 >= Int(first) && $0 < Int(first) + 1100 }
    XCTAssertGreaterThan(frames.count, 0)
    for frame in frames.sorted() { model.freePage(model.names[frame]!, frame % 2 == 0 ? .cached : .dropped) }
    XCTAssertNil(model.check())
    XCTAssertEqual(model.finish(0)?.count.rawValue, 1100)
    XCTAssertNil(model.check())
    memory.free(run(first, 1100))
    model.give(Int(first), 1100)
    XCTAssertNil(model.check())
    XCTAssertNotEqual(FrameSnapshot(memory), before)
  }

  /// Free blocks of every size among frames in use, cached pages among them, and runs that begin and end inside of
  /// blocks: exactly the free frames of the run are captured.
  func testExactlyTheFreeFramesAreCaptured() throws {
    let seed = historySeed(62)
    var random = SeededRandom(seed: seed)
    let model = try PageModel(open([(256, 3000)]))
    var next: UInt64 = 0
    while (try? model.makePage(PageName(owner: 1, index: next))) != nil { next += 1 }
    let (low, high) = (model.names.keys.min()!, model.names.keys.max()!)
    for turn in 0..<60 {
      // Rows of 1 to 200 pages, anywhere, become free.
      for _ in 0..<random.below(12) {
        let first = low + Int(random.below(UInt64(high - low)))
        for frame in first..<first + Int(1 + random.below(1 << random.below(9))) {
          guard let name = model.names[frame] else { continue }
          model.freePage(name, random.below(3) == 0 ? .cached : .dropped)
        }
      }
      let first = low + Int(random.below(UInt64(high - low - 700)))
      let count = Int(1 + random.below(700))
      try model.isolate(first, count)
      XCTAssertNil(model.check(), "turn \(turn), seed \(seed)")
      model.abandon(0)
      XCTAssertNil(model.check(), "turn \(turn), seed \(seed)")
      while (try? model.makePage(PageName(owner: 1, index: next))) != nil { next += 1 }
    }
    XCTAssertNil(model.checkFrames())
  }

  /// However many blocks there are, the lock is let go after each row of 64 frames.
  func testTheLockIsHeldForARowOfFrames() throws {
    let system = try open([(256, 3000)])
    let memory = system.memory!
    var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    let first = (frames.map(\.rawValue).min()! + 511) & ~511
    for stride in [1, 2, 64] as [UInt32] {
      let free = frames.filter {
        $0.rawValue >= first && $0.rawValue < first + 512 && $0.rawValue % stride == 0
      }
      for frame in free { memory.free(frame, BlockOrder(0)) }
      var moments = 0
      var longest: UInt64 = 0
      var before: UInt64 = 0
      var isolation: TestIsolation?
      system.host.withInterrupts(
        seed: 0, oneIn: 1,
        handler: {
          let captured = memory.count(.contiguous).rawValue
          longest = max(longest, captured - before)
          before = captured
          moments += 1
        }, { isolation = try? memory.isolated(run(first, 512), priority: .normal) })
      // One block of 512 frames is taken as one.
      if stride > 1 {
        XCTAssertGreaterThanOrEqual(moments, 8)
        XCTAssertLessThanOrEqual(longest, 64)
      }
      XCTAssertEqual(memory.capturedCount(isolation!).rawValue, UInt64(free.count))
      system.check()
      memory.abandon(isolation!)
      for frame in free { try memory.allocate(frame: frame, role: .wired) }
      system.check()
    }
  }

  /// Others free and take frames while the lock is let go: no frame is lost, and none is captured twice.
  func testASearchGoesOnThoughFramesChangeBetweenTwoRows() throws {
    let system = try open([(256, 3000)])
    let memory = system.memory!
    var frames: Set<UInt32> = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.insert(frame.rawValue) }
    let first = (frames.min()! + 511) & ~511
    let whole = run(first + 3, 600)
    let odd = (first..<first + 700).filter { ($0 - first) % 3 == 1 }
    for moment in 0..<11 {
      for frame in odd { memory.free(FrameNumber(frame), BlockOrder(0)) }
      var n = 0
      var (given, taken): (Set<UInt32>, Set<UInt32>) = ([], [])
      var isolation: TestIsolation?
      system.host.withInterrupts(
        seed: 0, oneIn: 1,
        handler: {
          if n == moment {
            for frame in stride(from: first, to: first + 700, by: 30) {
              memory.free(FrameNumber(frame), BlockOrder(0))
              given.insert(frame)
            }
            for frame in odd where (try? memory.allocate(frame: FrameNumber(frame), role: .stack)) != nil {
              taken.insert(frame)
            }
          }
          n += 1
        }, { isolation = try? memory.isolated(whole, priority: .normal) })
      XCTAssertGreaterThan(n, moment)
      system.check()
      let inside = Set(odd).union(given).subtracting(taken).filter { whole.contains(FrameNumber($0)) }
      XCTAssertEqual(memory.capturedCount(isolation!).rawValue, UInt64(inside.count), "moment \(moment)")
      for frame in inside { XCTAssertTrue(memory.isCaptured(FrameNumber(frame), isolation!)) }
      memory.abandon(isolation!)
      for frame in taken { memory.free(FrameNumber(frame), BlockOrder(0)) }
      system.check()
      for frame in Set(odd).union(given) { try memory.allocate(frame: FrameNumber(frame), role: .wired) }
    }
  }

  /// Pages given back together: all of them in one isolation, in two, and some outside of any; one that must not
  /// be given back stays, and the others go.
  func testPagesThatAreFreedTogetherAreCaptured() throws {
    let system = try open([(256, 3000)])
    let memory = system.memory!
    var all = (0..<320).map { _ in FrameNumber(0) }
    for part in 0..<10 {
      all.withUnsafeMutableBufferPointer {
        XCTAssertEqual(memory.allocate(pages: .init(rebasing: $0[part * 32..<(part + 1) * 32])), 32)
      }
    }
    all.sort { $0 < $1 }
    // 96 that follow each other.
    let start = (0..<224).first { all[$0 + 95].rawValue - all[$0].rawValue == 95 }!
    let pages = Array(all[start..<start + 96])
    let first = pages[0].rawValue
    let before = memory.freeCount
    let low = try memory.isolated(run(first, 40), priority: .normal)
    let high = try memory.isolated(run(first + 50, 20), priority: .normal)
    func give(_ range: Range<Int>) -> [FaultKind] {
      system.host.faults {
        pages.withUnsafeBufferPointer { memory.free(droppedPages: .init(rebasing: $0[range])) }
      }.map(\.kind)
    }
    func expect(_ inLow: UInt64, _ inHigh: UInt64, _ free: UInt64, line: UInt = #line) {
      XCTAssertEqual(memory.capturedCount(low).rawValue, inLow, line: line)
      XCTAssertEqual(memory.capturedCount(high).rawValue, inHigh, line: line)
      XCTAssertEqual(memory.freeCount.rawValue, before.rawValue + free, line: line)
      system.check(#filePath, line)
    }
    // A page that is wired is not freed.
    memory.record(pages[5])!.busyWord = BusyWord(rawValue: BusyWord.xbusy.rawValue | 1)
    XCTAssertEqual(give(0..<20), [.notAllocated])
    memory.record(pages[5])!.busyWord = .xbusy
    expect(19, 0, 0)
    // In the first, in none, in the second.
    XCTAssertEqual(give(30..<60), [])
    expect(29, 10, 10)
    XCTAssertEqual(give(60..<70), [])
    expect(29, 20, 10)
    XCTAssertEqual(give(70..<96), [])
    expect(29, 20, 36)
    XCTAssertEqual(give(20..<30), [])
    XCTAssertEqual(give(5..<6), [])
    expect(40, 20, 36)
    XCTAssertEqual(give(0..<1), [.wrongType])
    XCTAssertNotNil(memory.finish(low))
    memory.abandon(high)
    memory.free(run(first, 40))
    system.check()
    XCTAssertEqual(memory.freeCount.rawValue, before.rawValue + 96)
  }

  func testRefusedRequestsChangeNothing() throws {
    let system = try open(
      [(0, 159), (256, 2000), (3000, 20)], occupied: [(400, 8, .image), (600, 8, .bootModule)])
    let memory = system.memory!
    let rest = try memory.allocate(run: PageCount(UInt64(1100)), role: .wired)
    let before = FrameSnapshot(memory)
    func refuse(
      _ error: PhysicalMemoryError, _ first: UInt32, _ count: UInt64,
      _ priority: AllocationPriority = .normal,
      line: UInt = #line
    ) {
      let before = FrameSnapshot(memory)
      XCTAssertThrowsError(try memory.isolated(run(first, count), priority: priority), line: line) {
        XCTAssertEqual($0 as? PhysicalMemoryError, error, line: line)
      }
      XCTAssertEqual(FrameSnapshot(memory), before, line: line)
      system.check(#filePath, line)
    }
    // The end of a segment, of the last one too; holes; what stays for good.
    refuse(.outsideMemory, 150, 10)
    refuse(.outsideMemory, 3000, 21)
    refuse(.outsideMemory, 3019, 2)
    refuse(.outsideMemory, 3020, 1)
    refuse(.outsideMemory, .max, 1)
    refuse(.outsideMemory, 3000, .max)
    refuse(.outsideMemory, 150, 200)
    refuse(.outsideMemory, 399, 2)
    refuse(.outsideMemory, 407, 2)
    refuse(.outsideMemory, memory.recordsRun.first.rawValue - 1, 2)
    refuse(.outsideMemory, 500, 0)
    let last = try memory.isolated(run(3000, 20), priority: .normal)
    XCTAssertEqual(memory.capturedCount(last).rawValue, 20)
    // Frames of another owner are captured later.
    let module = try memory.isolated(run(598, 12), priority: .normal)
    XCTAssertEqual(memory.capturedCount(module).rawValue, 4)
    refuse(.notFree, 609, 5)
    refuse(.notFree, 500, 99)
    refuse(.notFree, 590, 40)
    refuse(.notFree, 602, 1)
    try memory.setReserve(memory.freeCount - PageCount(UInt64(9)), for: .normal)
    let third = try memory.isolated(run(700, 10), priority: .normal)
    XCTAssertEqual(memory.capturedCount(third).rawValue, 9)
    let fourth = try memory.isolated(run(720, 600), priority: .interrupt)
    refuse(.noMemory, 500, 1, .interrupt)
    memory.abandon(fourth)
    system.check()
    system.host.failures.pointee.countdown = 0
    refuse(.noMemory, 500, 1, .interrupt)
    for isolation in [last, module, third] { memory.abandon(isolation) }
    XCTAssertEqual(FrameSnapshot(memory), before)
    memory.free(rest)
    system.check()
  }

  /// Others take a frame at any moment, also between the first look and the lock: an isolation never takes a frame of
  /// the reserve, and captures the rest when there is enough.
  func testTheReserveHoldsWhileOthersAllocateDuringTheIsolation() throws {
    var (moment, partial) = (0, 0)
    while true {
      let system = try open([(256, 900)])
      let memory = system.memory!
      // Every second frame of the run is free, so the lock is let go on the way.
      let whole = run(512, 128)
      for frame in stride(from: UInt32(512), to: 640, by: 2) {
        try memory.allocate(frame: FrameNumber(frame), role: .loaned)
      }
      // A reserve is a half of memory at most.
      for frame in 641..<UInt32(1150) where memory.freeCount > PageCount(UInt64(350)) {
        try? memory.allocate(frame: FrameNumber(frame), role: .loaned)
      }
      let (free, reserve) = (memory.freeCount, memory.freeCount - PageCount(UInt64(64)))
      try memory.setReserve(reserve, for: .normal)
      var moments = 0
      var before: PageCount?
      var isolation: TestIsolation?
      system.host.withInterrupts(
        seed: 0, oneIn: 1,
        handler: {
          if moments == moment {
            before = free - memory.freeCount
            try! memory.allocate(frame: FrameNumber(400), role: .loaned, priority: .interrupt)
          }
          moments += 1
        }, { isolation = try? memory.isolated(whole, priority: .normal) })
      system.check()
      guard let before else {
        let whole = try XCTUnwrap(isolation)
        XCTAssertEqual(memory.capturedCount(whole).rawValue, 64)
        memory.abandon(whole)
        break
      }
      // The frame that the other took is one too many for what was not captured yet.
      let isLate = before.rawValue == 64
      let mine = try XCTUnwrap(isolation)
      if !isLate { partial += 1 }
      XCTAssertEqual(memory.capturedCount(mine).rawValue, isLate ? 64 : 63, "moment \(moment)")
      XCTAssertGreaterThanOrEqual(memory.freeCount + (isLate ? .one : .zero), reserve)
      if !isLate {
        // The rest is captured when there is enough.
        memory.captureFree(mine, priority: .normal)
        XCTAssertEqual(memory.capturedCount(mine).rawValue, 63)
        memory.free(FrameNumber(400), BlockOrder(0))
        memory.captureFree(mine, priority: .normal)
        XCTAssertEqual(memory.capturedCount(mine).rawValue, 64)
        XCTAssertEqual(memory.freeCount, reserve)
      }
      memory.abandon(mine)
      system.check()
      moment += 1
    }
    XCTAssertGreaterThan(partial, 1)
  }

  func testOperationsThatOnlyABugCanDoAreReported() throws {
    let system = try open([(256, 2000)])
    let memory = system.memory!
    let block = try memory.allocate(BlockOrder(3), role: .slab)
    let isolation = try memory.isolated(run(block.rawValue, 8), priority: .normal)
    memory.free(block, BlockOrder(3))
    // The caller that handed it over has it no longer.
    XCTAssertEqual(system.host.faults { memory.free(block, BlockOrder(0)) }.map(\.kind), [.doubleFree])
    system.check()
    XCTAssertEqual(memory.capturedCount(isolation).rawValue, 8)
    XCTAssertNotNil(memory.finish(isolation))
    let next = try memory.isolated(run(block.rawValue, 8), priority: .normal)
    // A run of another owner is not captured, although its role is the same.
    XCTAssertEqual(memory.capturedCount(next), .zero)
    memory.abandon(next)
    memory.free(block, BlockOrder(3))
    system.check()
  }

  func testAnIsolationThatGoesOutOfScopeIsAbandoned() throws {
    let system = try open([(256, 2000)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    do {
      let isolation = try memory.isolate(run(600, 700), priority: .normal)
      XCTAssertEqual(memory.capturedCount(isolation).rawValue, 700)
      XCTAssertTrue(memory.isComplete(isolation))
    }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testACaptureWakesNoThread() throws {
    let system = try open([(256, 900)])
    let memory = system.memory!
    var frames: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    let isolation = try memory.isolated(run(frames[0].rawValue, 1), priority: .normal)
    let freed = frames
    nonisolated(unsafe) var rounds = 0
    system.host.runDevices = {
      rounds += 1
      if rounds < 3 { memory.free(freed[rounds - 1], BlockOrder(0)) }
      return rounds < 5
    }
    XCTAssertEqual(
      try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never), frames[1])
    XCTAssertEqual(rounds, 2)
    XCTAssertNotNil(memory.finish(isolation))
    system.check()
  }

  /// Two processors have chosen the same run: the second one, at any moment, gets none of its frames.
  func testASecondIsolationOfTheSameRunGetsNothing() throws {
    let system = try open([(256, 900)])
    let memory = system.memory!
    let whole = run(512, 64)
    var moment = 0
    var moments = 0
    repeat {
      let isolation = try memory.isolated(whole, priority: .normal)
      moments = 0
      var finished: FrameRun?
      system.host.withInterrupts(
        seed: 0, oneIn: 1,
        handler: {
          if moments == moment, let other = try? memory.isolated(whole, priority: .normal) {
            XCTAssertEqual(memory.capturedCount(other), .zero)
            XCTAssertNil(memory.finish(other))
            memory.abandon(other)
          }
          moments += 1
        }, { finished = memory.finish(isolation) })
      XCTAssertEqual(finished, whole)
      XCTAssertEqual(memory.count(.contiguous), whole.count, "moment \(moment)")
      memory.free(whole)
      system.check()
      moment += 1
    } while moment < moments
    XCTAssertGreaterThan(moment, 1)
  }

  func testAnUntouchedGibibyteIsSearched() throws {
    let system = try open([(256, 3 << 18)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    for (first, count): (UInt32, UInt64) in [(1 << 18, 1 << 18), (300_000, 100_001), (1 << 19 - 5, 10)] {
      let isolation = try memory.isolated(run(first, count), priority: .normal)
      XCTAssertEqual(memory.capturedCount(isolation).rawValue, count)
      system.check()
      if count == 10 {
        memory.abandon(isolation)
      } else {
        XCTAssertEqual(memory.finish(isolation), run(first, count))
        memory.free(run(first, count))
      }
      system.check()
    }
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  /// Frames that one processor captures are never seen by the other.
  func testTwoThreadsKeepTheirFrames() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 6000)], processors: 2)
    let before = FrameSnapshot(system.memory)
    let memory = system.memory!
    let seed = historySeed(61)
    nonisolated(unsafe) var (finished, captured) = (0, 0)
    system.host.onThreads(2) { processor in
      if processor == 1 { return hammer(memory, seed &+ 1, 30_000, .normal) }
      var random = SeededRandom(seed: seed)
      let map = memory.machine.directMap
      for _ in 0..<2000 {
        let run = FrameRun(
          first: FrameNumber(256 + UInt32(random.below(5000))), count: PageCount(1 + random.below(700)))
        guard let isolation = try? memory.isolated(run, priority: .normal) else { continue }
        var mine: [FrameNumber] = []
        for i in 0..<run.count.rawValue where memory.isCaptured(run.first + PageCount(i), isolation) {
          mine.append(run.first + PageCount(i))
          map.pointer(to: mine.last!).storeBytes(of: 0x1234, as: UInt64.self)
        }
        captured += mine.count
        for frame in mine where map.pointer(to: frame).load(as: UInt64.self) != 0x1234 {
          XCTFail("a captured frame was given to another")
        }
        if memory.finish(isolation) != nil {
          finished += 1
          memory.free(run)
        } else {
          memory.abandon(isolation)
        }
      }
    }
    print("\(finished) runs finished, \(captured) frames captured")
    XCTAssertGreaterThan(captured, 0)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }
}
