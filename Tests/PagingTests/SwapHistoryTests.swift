import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapHistoryTests: XCTestCase {
  /// One history, with the content of each slot and the requests under way.
  private final class History {
    let bench: SwapFixture
    var random: SeededRandom
    let before: PageCount
    let frames: [FrameNumber]
    var idle: [FrameNumber]
    /// The stamps of the slots that were written.
    var stamps: [UInt32: UInt64] = [:]
    /// Slots with a read or write under way.
    var busy: Set<UInt32> = []
    var retired = 0
    var writes: [(Kept<SwapWrite>, [FrameNumber], [UInt64])] = []
    var reads: [(Kept<SwapRead>, FrameNumber)] = []
    var nextStamp: UInt64
    var (good, lost, failedPages) = (0, 0, 0)
    let note: String

    init(seed: UInt64, pages: UInt64) throws {
      note = "seed \(seed)"
      bench = try SwapFixture(pages: pages, requests: 6)
      random = SeededRandom(seed: seed)
      before = bench.physical.freeCount
      frames = try bench.frames(80)
      idle = frames
      nextStamp = seed << 20
      try bench.swap.attach(bench.disk.device)
    }

    func faults() -> DeviceFaults {
      var faults = DeviceFaults(seed: random.next())
      func rate(_ limit: UInt64) -> PerMille { random.oneIn(2) ? 0 : PerMille(UInt16(random.below(limit))) }
      faults.failed = rate(200)
      faults.torn = rate(200)
      faults.corrupted = rate(200)
      faults.delayed = rate(1001)
      faults.longestDelay = UInt32(random.below(30))
      faults.reordered = rate(1001)
      faults.bad = rate(50)
      return random.oneIn(4) ? DeviceFaults() : faults
    }

    func beginWrite() {
      guard idle.count > 0, let run = bench.swap.reserve(upTo: PageCount(1 + random.below(32))) else {
        return
      }
      let count = min(idle.count, Int(run.count.rawValue))
      for i in count..<max(count, Int(run.count.rawValue)) { bench.swap.free(run.first + PageCount(i)) }
      let mine = (0..<count).map { _ in idle.remove(at: Int(random.below(UInt64(idle.count)))) }
      let given = mine.map { _ in
        nextStamp += 1
        return nextStamp
      }
      for (frame, stamp) in zip(mine, given) { bench.fill(frame, stamp) }
      let part = SlotRun(first: run.first, count: PageCount(count))
      for i in 0..<UInt32(count) {
        XCTAssertNil(stamps[run.first.rawValue + i], "a used slot was given out, \(note)")
        XCTAssertTrue(busy.insert(run.first.rawValue + i).inserted, "a busy slot was given out, \(note)")
      }
      guard let write = bench.begin(mine, to: part) else {
        XCTAssertEqual(bench.transfers.idleCount, 0)
        for i in 0..<UInt32(count) { busy.remove(run.first.rawValue + i) }
        bench.swap.free(part)
        idle += mine
        return
      }
      writes.append((write, mine, given))
    }

    func finishWrite() {
      guard !writes.isEmpty else { return }
      let (write, mine, given) = writes.remove(at: Int(random.below(UInt64(writes.count))))
      let run = write.value.run
      let written = bench.swap.finishWrite(write.move())
      for i in 0..<mine.count {
        let slot = run.first.rawValue + UInt32(i)
        busy.remove(slot)
        // A failed write loses nothing.
        XCTAssertTrue(bench.holds(mine[i], given[i]))
        if let at = written.slot(i) {
          XCTAssertEqual(at.rawValue, slot)
          stamps[slot] = given[i]
        } else {
          retired += 1
          failedPages += 1
        }
      }
      idle += mine
    }

    func someSlot() -> UInt32? {
      let all = stamps.keys.filter { !busy.contains($0) }.sorted()
      return all.isEmpty ? nil : all[Int(random.below(UInt64(all.count)))]
    }

    func beginRead() {
      guard let slot = someSlot(), let frame = idle.popLast() else { return }
      bench.fill(frame, 0)
      guard let read = bench.swap.beginRead(SwapSlot(slot), into: frame) else {
        idle.append(frame)
        return
      }
      busy.insert(slot)
      reads.append((Kept(read), frame))
    }

    func finishRead() {
      guard !reads.isEmpty else { return }
      let (read, frame) = reads.remove(at: Int(random.below(UInt64(reads.count))))
      let slot = read.value.slot.rawValue
      busy.remove(slot)
      idle.append(frame)
      do throws(PagingError) {
        try bench.swap.finishRead(read.move())
        XCTAssertTrue(bench.holds(frame, stamps[slot]!), "wrong data, \(note)")
        good += 1
      } catch {
        XCTAssertTrue(error == .inputOutput || error == .corrupt)
        lost += 1
        if random.oneIn(2) {
          stamps[slot] = nil
          if random.oneIn(2) {
            bench.swap.retire(SwapSlot(slot))
            retired += 1
          } else {
            bench.swap.free(SwapSlot(slot))
          }
        }
      }
    }

    func step() {
      switch random.below(12) {
      case 0, 1, 2: beginWrite()
      case 3, 4: finishWrite()
      case 5, 6: beginRead()
      case 7, 8: finishRead()
      case 9, 10:
        for _ in 0..<random.below(10) {
          guard let slot = someSlot() else { break }
          stamps[slot] = nil
          bench.swap.free(SwapSlot(slot))
        }
      default: if random.oneIn(5) { bench.disk.faults = faults() } else { bench.disk.poll() }
      }
      let figures = bench.swap.figures
      let writing = writes.reduce(0) { $0 + Int($1.0.value.run.count.rawValue) }
      XCTAssertEqual(figures.used, PageCount(stamps.count + writing), note)
      XCTAssertEqual(figures.bad, PageCount(retired), note)
      XCTAssertEqual(figures.free + figures.used + figures.bad, figures.total, note)
    }

    func end() throws {
      while !writes.isEmpty { finishWrite() }
      while !reads.isEmpty { finishRead() }
      XCTAssertEqual(bench.transfers.idleCount, 6)
      bench.check(note)
      for slot in stamps.keys { bench.swap.free(SwapSlot(slot)) }
      try bench.swap.detach()
      for frame in frames { bench.physical.free(frame, BlockOrder(0)) }
      XCTAssertEqual(bench.physical.freeCount, before, note)
      bench.check(note)
    }
  }

  func testRandomHistoriesWithEveryInjectedFaultLoseNothing() throws {
    let seed = historySeed(111)
    var (good, lost, failed) = (0, 0, 0)
    for round in 0..<40 as Range<UInt64> {
      let history = try History(seed: seed &+ round, pages: round % 3 == 0 ? 100 : 700)
      for _ in 0..<600 { history.step() }
      good += history.good
      lost += history.lost
      failed += history.failedPages
      try history.end()
    }
    print("Swap: \(good) pages came back, \(lost) did not and said so, \(failed) writes failed")
    XCTAssertGreaterThan(good, 1000)
    XCTAssertGreaterThan(lost, 100)
    XCTAssertGreaterThan(failed, 100)
  }

  func testDelayAndDisorderLoseNothing() throws {
    let seed = historySeed(112)
    for round in 0..<10 as Range<UInt64> {
      let history = try History(seed: seed &+ round, pages: 400)
      for _ in 0..<600 {
        var faults = DeviceFaults(seed: history.random.next())
        faults.delayed = 500
        faults.longestDelay = 20
        faults.reordered = 700
        history.bench.disk.faults = faults
        history.step()
      }
      XCTAssertEqual(history.lost + history.failedPages, 0, "seed \(seed &+ round)")
      try history.end()
    }
  }
}
