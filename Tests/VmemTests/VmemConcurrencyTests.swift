import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Vmem

final class VmemConcurrencyTests: XCTestCase {
  func testTwoThreadsShareAStackOfArenas() throws {
    let bench = VmemFixture()
    let root = bench.arena("root", quantum: 16)
    try root.add(0...0xf_ffff)
    let heap = bench.arena("heap", quantum: 16, source: .arena(root), importUnit: 0x1000)
    let number = historySeed(21)
    let arenas = [root, heap]
    bench.host.onThreads(2) { index in
      var random = SeededRandom(seed: number &+ UInt64(index))
      var live: [(Int, ArenaAddress, ArenaSize)] = []
      for step in 0..<8000 {
        if live.count < 300, !random.oneIn(3) {
          let which = Int(random.below(2))
          let size = ArenaSize(1 + random.below(0x800))
          let wish = ArenaConstraints(
            alignment: Alignment(16 << random.below(6))!,
            maximum: ArenaAddress(random.oneIn(4) ? 0x7_ffff : UInt64.max))
          if let place = try? arenas[which].xalloc(
            size, wish, policy: random.oneIn(4) ? .bestFit : .instantFit)
          {
            live.append((which, place, size))
          }
        } else if !live.isEmpty {
          let (which, place, size) = live.remove(at: Int(random.below(UInt64(live.count))))
          arenas[which].free(place, size)
        }
        if step % 500 == 0 {
          _ = arenas[0].size(.largestFree)
          arenas[1].walk { _ in }
          _ = arenas[0].find(ArenaAddress(random.below(0x10_0000)))
        }
      }
      for (which, place, size) in live { arenas[which].free(place, size) }
    }
    bench.check()
    XCTAssertEqual(heap.size(.total), .zero)
    XCTAssertEqual(root.segments().map(\.kind), [.addedSpan, .free])
  }

  func testAnInterruptAtEveryPointKeepsTheArenaWhole() throws {
    let number = historySeed(31)
    for round in 0..<20 as Range<UInt64> {
      let bench = VmemFixture()
      let root = bench.arena("root", quantum: 16)
      try root.add(0...0xffff)
      let heap = bench.arena("heap", quantum: 16, source: .arena(root), importUnit: 0x400)
      var random = SeededRandom(seed: number &+ round)
      var other = SeededRandom(seed: number &+ round &+ 1000)
      var model = Set<UInt64>()
      func act(
        _ random: inout SeededRandom, _ live: inout [(Arena, UInt64, UInt64)], _ priority: AllocationPriority
      ) {
        if live.count < 40, !random.oneIn(3) {
          let arena = random.oneIn(2) ? root : heap
          let size = 1 + random.below(0x300)
          let wish = ArenaConstraints(
            nocross: random.oneIn(3) ? Alignment(0x400) : nil,
            maximum: ArenaAddress(random.oneIn(3) ? 0x7fff : UInt64.max))
          if let place = try? arena.xalloc(
            ArenaSize(size), wish, policy: random.oneIn(2) ? .bestFit : .instantFit, priority: priority)
          {
            live.append((arena, place.rawValue, size))
            for unit in place.rawValue / 16...(place.rawValue + size - 1) / 16 {
              XCTAssertTrue(model.insert(unit).inserted, "seed \(number)")
            }
          }
        } else if !live.isEmpty {
          let (arena, place, size) = live.remove(at: Int(random.below(UInt64(live.count))))
          for unit in place / 16...(place + size - 1) / 16 { model.remove(unit) }
          arena.free(place, size)
        }
      }
      var mine: [(Arena, UInt64, UInt64)] = []
      var theirs: [(Arena, UInt64, UInt64)] = []
      for _ in 0..<50 {
        bench.host.withInterrupts(
          seed: random.next(), oneIn: 3, handler: { act(&other, &theirs, .interrupt) }
        ) {
          for _ in 0..<10 { act(&random, &mine, .normal) }
        }
        if let broken = bench.tags.checkInvariants() { XCTFail("\(broken): seed \(number)") }
      }
      for (arena, place, size) in mine + theirs { arena.free(place, size) }
      bench.check()
      XCTAssertEqual(root.size(.allocated), .zero)
    }
  }

  /// A pass over thousands of tags drops the lock; interrupts take and give what it stands on.
  func testALongPassGoesOnThoughTheArenaChanges() throws {
    for round in 0..<10 as Range<UInt64> {
      let bench = VmemFixture()
      let arena = bench.arena()
      try arena.add(0...199_999)
      // Holes of 32 with segments of 1 between: all on one list, which holds 32 to 35.
      var segments: [UInt64] = []
      for index in 0..<6000 as Range<UInt64> {
        let size: UInt64 = index == 17 ? 34 : 32
        segments.append(arena.alloc(size)!)
        _ = arena.alloc(1)!
      }
      let rest = arena.size(.largestFree).rawValue
      XCTAssertNotNil(arena.alloc(rest))
      for (index, segment) in segments.enumerated() { arena.free(segment, index == 17 ? 34 : 32) }
      XCTAssertEqual(arena.size(.largestFree), ArenaSize(34))
      var random = SeededRandom(seed: historySeed(41) &+ round)
      var taken: [UInt64] = []
      var passes = 0
      bench.host.withInterrupts(
        seed: round, oneIn: 2,
        handler: {
          passes += 1
          if taken.count > 20 {
            arena.free(taken.remove(at: Int(random.below(UInt64(taken.count)))), 32)
          } else if let place = arena.alloc(32, random.oneIn(2) ? .instantFit : .bestFit) {
            taken.append(place)
          }
        }
      ) {
        for _ in 0..<20 {
          // The only hole of 34, unless the interrupt cut it up.
          if let place = arena.alloc(33, .bestFit) { arena.free(place, 33) }
          let wish = ArenaConstraints(minimum: ArenaAddress(150_000), maximum: ArenaAddress(190_000))
          if let place = try? arena.xalloc(ArenaSize(30), wish) {
            XCTAssertGreaterThanOrEqual(place.rawValue, 150_000)
            arena.xfree(place, ArenaSize(30))
          } else {
            XCTFail("there were thousands of places")
          }
          _ = arena.size(.largestFree)
          var walked = 0
          arena.walk { _ in walked += 1 }
          XCTAssertGreaterThan(walked, 11_000)
        }
      }
      XCTAssertGreaterThan(passes, 100)
      bench.check()
    }
  }

  func testASleeperGetsTheSegmentThatIsFreed() throws {
    let bench = VmemFixture()
    bench.host.hasOtherThreads = true
    let root = bench.arena("root")
    try root.add(0...99)
    let child = bench.arena("child", source: .arena(root))
    let parent = root
    let all = root.alloc(100)!
    let supply = bench.tags
    nonisolated(unsafe) var got: UInt64?
    bench.host.onThreads(2) { index in
      if index == 0 {
        got = try? child.alloc(ArenaSize(10), until: .never).rawValue
      } else {
        while supply.state.waiters.load(ordering: .acquiring) == 0 { sched_yield() }
        parent.free(all, 100)
      }
    }
    XCTAssertEqual(got, 0)
    XCTAssertEqual(child.figures.waits, 1)
    child.free(0, 10)
    bench.check()
  }

  func testASleepEndsAtTheDeadline() throws {
    let bench = VmemFixture()
    bench.host.hasOtherThreads = true
    let arena = bench.arena()
    try arena.add(0...10)
    XCTAssertNotNil(arena.alloc(1))
    let host = bench.host
    let supply = bench.tags
    bench.host.onThreads(2) { index in
      if index == 0 {
        XCTAssertVmem(.noSpace) { () throws(VmemError) in try arena.alloc(ArenaSize(11), until: Tick(5)) }
      } else {
        while supply.state.waiters.load(ordering: .acquiring) == 0 { sched_yield() }
        host.advance(ticks: 5)
      }
    }
    // No thread could wake it; an interrupt never waits.
    bench.host.hasOtherThreads = false
    XCTAssertVmem(.noSpace) { () throws(VmemError) in try arena.alloc(ArenaSize(11), until: .never) }
    XCTAssertVmem(.noSpace) { () throws(VmemError) in
      try arena.alloc(ArenaSize(11), priority: .interrupt, until: .never)
    }
    XCTAssertEqual(arena.figures.failed, 3)
    XCTAssertEqual(arena.figures.waits, 2)
    bench.check()
  }
}
