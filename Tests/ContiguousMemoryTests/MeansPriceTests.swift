// The contract that the search for a run relies on when it asks `Means` for prices (RunPricing).

import MemoryPrimitives
import Paging
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory
@testable import PhysicalMemory

/// Prices of random contents under all combinations of means: a run never costs more than one that has all of its frames
/// and others besides.
final class MeansPriceTests: XCTestCase {
  private static let count: UInt64 = 64
  /// How often each way to pay for a run was met.
  private struct Tally {
    var means = 0
    var pairs = 0
    var paid = 0
    var missing = 0
    var fetched = 0
    var writesFirst = 0
    var comfortable = 0
    var isBehindOthers = 0
    var withoutReserve = 0
  }

  /// Free frames, slots of swap, and the page daemon's target.
  private struct Level {
    var free: UInt64
    var slots: UInt64
    var target: UInt64
    var reserve: UInt64
  }

  private static let levels: [Level] = [0, 10, 64, 512].flatMap { slots in
    [0, 8, 40, 90, 200].flatMap { free in
      [(8, 0), (30, 20), (120, 60)].map { Level(free: free, slots: slots, target: $0.0, reserve: $0.1) }
    }
  }

  /// Frames of each kind, in the order of `RunContents`; the first six are those that can be emptied at once.
  private typealias Frames = InlineArray<9, UInt64>

  private func contents(_ frames: Frames) -> RunContents {
    var contents = RunContents()
    (contents.free, contents.clean) = (frames[0], frames[1])
    (contents.activeForSwap, contents.inactiveForSwap) = (frames[2], frames[3])
    (contents.activeForDevice, contents.inactiveForDevice) = (frames[4], frames[5])
    (contents.claimed, contents.captured, contents.unmovable) = (frames[6], frames[7], frames[8])
    return contents
  }

  /// Random frames of a run: mostly of few kinds, and seldom with some that can't be emptied.
  private func frames(_ random: inout SeededRandom) -> Frames {
    var frames = Frames(repeating: 0)
    var rest = Self.count
    for _ in 0..<1 + random.below(5) {
      let part = random.below(rest + 1)
      frames[Int(random.below(random.oneIn(8) ? 9 : 6))] += part
      rest -= part
    }
    frames[Int(random.below(6))] += rest
    return frames
  }

  /// A part of a run: some frames of each kind, or all of them but one.
  private func part(of run: Frames, _ random: inout SeededRandom) -> Frames {
    var part = run
    if random.oneIn(2) {
      let kind = Int(random.below(9))
      part[kind] -= min(1, part[kind])
    } else {
      for kind in 0..<9 where random.oneIn(2) { part[kind] = random.below(run[kind] + 1) }
    }
    return part
  }

  /// Checks the prices of random runs and their parts. Returns a broken pair, or nil.
  private func mistake(in means: Means, _ random: inout SeededRandom, _ tally: inout Tally) -> String? {
    tally.means += 1
    if means.isBehindOthers { tally.isBehindOthers += 1 }
    if means.free < means.reserve { tally.withoutReserve += 1 }
    for _ in 0..<10 {
      let frames = frames(&random)
      let (run, part) = (contents(frames), contents(part(of: frames, &random)))
      let (price, partPrice) = (means.price(run), means.price(part))
      let note = "\(partPrice) for \(part), part of \(run) for \(price)"
      if partPrice.obstacles > price.obstacles { return "more obstacles: \(note)" }
      if price.obstacles == 0 && price < partPrice { return "a higher price: \(note)" }
      for (price, run) in [(price, run), (partPrice, part)] {
        if price.obstacles == 0 && price.work < run.pages { return "less work than pages: \(note)" }
        if (run.unmovable + run.captured > 0) && price.obstacles >> 40 == 0 { return "no obstacle: \(note)" }
      }
      let plan = means.plan(for: run)
      tally.pairs += 1
      if price.obstacles == 0 { tally.paid += 1 }
      if plan.missing > 0 { tally.missing += 1 }
      if plan.fetched > 0 { tally.fetched += 1 }
      if plan.order == .writesFirst { tally.writesFirst += 1 }
      if plan.clean == .move { tally.comfortable += 1 }
    }
    return nil
  }

  /// Checks all requests and budgets in the present state of a system. Returns the first mistake, or nil.
  private func mistake(in system: TestSystem, _ random: inout SeededRandom, _ tally: inout Tally) -> String? {
    for passes in [ContiguousPass.free, .relocate, .launderInactive, .launderActive] {
      for policy in [WaitPolicy.allowed, .forbidden] {
        for priority in [AllocationPriority.normal, .system, .interrupt] {
          for (moved, written): (UInt64, UInt64) in [
            (.max, .max), (.max, 0), (0, .max), (20, 30), (random.below(70), random.below(70)),
          ] {
            var request = ContiguousRequest(PageCount(Self.count))
            (request.passes, request.waitPolicy, request.priority) = (passes, policy, priority)
            request.budget = ContiguousBudget(moved: PageCount(moved), written: PageCount(written))
            var spent = Spending()
            if random.oneIn(3) {
              spent.moved = PageCount(random.below(70))
              spent.written = PageCount(random.below(70))
              spent.writtenElsewhere = PageCount(random.below(20))
            }
            let known = IdlePages(
              clean: random.below(random.oneIn(2) ? 30 : 200),
              forSwap: random.below(random.oneIn(2) ? 30 : 200),
              forDevice: random.below(random.oneIn(2) ? 3 : 100))
            let means = Means(request, spent, system.contiguous, known: known)
            if let wrong = mistake(in: means, &random, &tally) {
              return "\(wrong); \(request), \(spent), \(known)"
            }
          }
        }
      }
    }
    return nil
  }

  func testMoreFramesNeverMakeARunCheaper() throws {
    let seed = historySeed(97)
    var random = SeededRandom(seed: seed)
    var tally = Tally()
    for (number, level) in Self.levels.enumerated() {
      let system = try TestSystem(frames: 1024, swap: max(level.slots, 1), attaches: level.slots > 0)
      system.setTarget(level.target)
      system.set("vm.reserve.normal", level.reserve)
      let wired = system.takeAll(leaving: level.free)
      var wrong = mistake(in: system, &random, &tally)
      // Once more while a thread waits for frames that are not there.
      var wasAwaited = false
      if wrong == nil && number % 3 == 0 {
        // Whenever interrupts are on again, until the page daemon parks the waiter.
        system.host.withInterrupts(
          seed: 0, oneIn: 1,
          handler: {
            if wasAwaited || system.physical.awaited == .zero { return }
            wasAwaited = true
            wrong = self.mistake(in: system, &random, &tally)
          },
          {
            let frames = try? system.physical.allocate(
              BlockOrder(9), role: .wired, priority: .normal, waitUntil: .never)
            XCTAssertNil(frames)
          })
        XCTAssertTrue(wasAwaited)
      }
      if let wrong { return XCTFail("\(wrong); \(level), STRATA_SEED=\(seed)") }
      system.giveBack(wired)
    }
    print("prices: \(tally)")
    XCTAssertEqual(tally.means % 120, 0)
    XCTAssertGreaterThan(tally.means, 120 * Self.levels.count)
    for (name, count) in [
      ("paid", tally.paid), ("missing", tally.missing), ("fetched", tally.fetched),
      ("writes first", tally.writesFirst), ("comfortable", tally.comfortable),
      ("behind others", tally.isBehindOthers), ("without the reserve", tally.withoutReserve),
    ] { XCTAssertGreaterThan(count, 100, name) }
  }
}
