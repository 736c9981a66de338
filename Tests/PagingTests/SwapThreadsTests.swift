import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapThreadsTests: XCTestCase {
  /// `workers` threads write, read and free slots of their own at once.
  private static func work(
    _ bench: SwapFixture, _ index: Int, seed: UInt64, rounds: Int, frames: [FrameNumber]
  ) {
    var random = SeededRandom(seed: seed &+ UInt64(index))
    var live: [(SwapSlot, UInt64)] = []
    var stamp = UInt64(index) << 40
    let target = frames[8]
    for _ in 0..<rounds {
      if live.count < 60, !random.oneIn(3), let run = bench.swap.reserve(upTo: PageCount(1 + random.below(8)))
      {
        let mine = Array(frames[..<Int(run.count.rawValue)])
        for (i, frame) in mine.enumerated() { bench.fill(frame, stamp + UInt64(i)) }
        guard let write = bench.begin(mine, to: run) else {
          bench.swap.free(run)
          _ = bench.transfers.waitForAny()
          continue
        }
        let written = bench.swap.finishWrite(write.move())
        for i in 0..<mine.count {
          if let slot = written.slot(i) { live.append((slot, stamp + UInt64(i))) }
        }
        stamp += 8
      } else if !live.isEmpty {
        let at = Int(random.below(UInt64(live.count)))
        do throws(PagingError) {
          try bench.swap.read(live[at].0, into: target)
          XCTAssertTrue(bench.holds(target, live[at].1), "wrong data, seed \(seed)")
        } catch {
          XCTAssertTrue(error == .inputOutput || error == .corrupt)
        }
        let (slot, _) = live.remove(at: at)
        if random.oneIn(20) { bench.swap.retire(slot) } else { bench.swap.free(slot) }
      }
      if random.oneIn(50) { _ = bench.swap.figures }
    }
    for (slot, _) in live { bench.swap.free(slot) }
  }

  private func faults(_ seed: UInt64) -> DeviceFaults {
    var faults = DeviceFaults(seed: seed)
    faults.failed = 30
    faults.torn = 30
    faults.corrupted = 30
    faults.delayed = 200
    faults.longestDelay = 10
    faults.reordered = 200
    return faults
  }

  func testTwoThreadsRunTheDiskThemselves() throws {
    let seed = historySeed(121)
    let bench = try SwapFixture(pages: 2000, processors: 2)
    try bench.swap.attach(bench.disk.device)
    bench.disk.faults = faults(seed)
    let frames = try (0..<2).map { _ in try bench.frames(9) }
    bench.host.onThreads(2) { Self.work(bench, $0, seed: seed, rounds: 1500, frames: frames[$0]) }
    XCTAssertEqual(bench.swap.figures.used, .zero)
    XCTAssertEqual(bench.transfers.idleCount, 8)
    bench.check()
    try bench.swap.detach()
  }

  func testThreadsShareTooFewRequestsWithADeviceThatCompletesByItself() throws {
    let seed = historySeed(122)
    let bench = try SwapFixture(pages: 2000, requests: 2, processors: 4)
    bench.host.runDevices = nil
    bench.host.hasOtherThreads = true
    try bench.swap.attach(bench.disk.device)
    bench.disk.faults = faults(seed)
    let frames = try (0..<3).map { _ in try bench.frames(9) }
    let left = Atomic<Int>(3)
    bench.host.onThreads(4) { index in
      if index == 3 {
        while left.load(ordering: .acquiring) > 0 { if !bench.disk.poll() { sched_yield() } }
        return
      }
      Self.work(bench, index, seed: seed, rounds: 600, frames: frames[index])
      left.subtract(1, ordering: .releasing)
    }
    XCTAssertEqual(bench.swap.figures.used, .zero)
    XCTAssertEqual(bench.transfers.idleCount, 2)
    bench.check()
    try bench.swap.detach()
  }
}
