import ContiguousMemory
import HostMachine
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Small machines with holes and wired frames, full of pages that are wired, held, dirty, clean, zero and cached.
/// Requests with all constraints are compared with a check of every run: one that can be emptied is granted, and
/// only one that can't is refused.
final class ContiguousBruteForceTests: XCTestCase {
  /// The content of all runs for a request.
  private struct Truth {
    /// Starts of runs that are memory and not kept for good.
    var starts = 0
    /// Of these, without a frame that can't be emptied; and of these without one that is claimed.
    var emptiable: Set<UInt32> = []
    var quiet: Set<UInt32> = []
  }

  private enum Frame: UInt8 { case never, unmovable, claimed, page, free }

  private final class Machine {
    let system: TestSystem
    let area: Area
    var stamps: [UInt64]
    var wired: [UInt64] = []
    var held: [FrameNumber] = []
    var loaned: [FrameNumber] = []
    var runs: [FrameRun] = []
    let note: String

    init?(_ random: inout SeededRandom, seed: UInt64, number: Int) {
      note = "STRATA_SEED=\(seed), machine \(number)"
      var segments: [(UInt64, UInt64)] = []
      var at: UInt64 = 256 + random.below(40)
      var left = 256 + random.below(1793)
      while left > 0 {
        let count = min(left, 60 + random.below(900))
        segments.append((at, count))
        left -= count
        at += count + 1 + (random.oneIn(2) ? random.below(20) : random.below(700))
      }
      // Too small for its own records, and nothing to be learnt from it.
      guard let system = try? TestSystem(runs: segments, swap: 8192) else { return nil }
      self.system = system
      system.setTarget(0)
      let free = system.physical.freeCount.rawValue
      guard free > 100, let area = try? system.area(free / 4 + random.below(free / 2)) else { return nil }
      self.area = area
      stamps = [UInt64](repeating: 0, count: Int(area.count))
    }

    func word(_ random: inout SeededRandom) throws {
      // Some frames are allocated for good, most only while memory is filled.
      var aside: [FrameNumber] = []
      for frame in system.takeAll() {
        switch random.below(40) {
        case 0: loaned.append(frame)
        case 1..<20: aside.append(frame)
        default: system.physical.free(FrameRun(first: frame, count: .one))
        }
      }
      let order = (0..<area.count).shuffled(using: &random)
      for page in order {
        if system.physical.freeCount < PageCount(UInt64(40)), let frame = aside.popLast() {
          system.physical.free(FrameRun(first: frame, count: .one))
        }
        do throws(PagingError) {
          if random.oneIn(6) {
            try system.paging.fault(area[page], .read)
          } else {
            stamps[Int(page)] = 1 + random.below(1 << 40)
            try system.write(area, page, stamps[Int(page)])
          }
        } catch {
          stamps[Int(page)] = 0
        }
      }
      system.giveBack(aside)
      for page in order.prefix(Int(area.count) / 8) where system.place(area, page).place == .resident {
        let one = FrameRun(first: system.frame(area, page), count: .one)
        _ = system.paging.launder(outOf: one, .all, atMost: .one)
        if random.oneIn(2) { XCTAssertTrue(try system.holds(area, page, stamps[Int(page)])) }
      }
      for page in order where random.oneIn(40) {
        do throws(PagingError) {
          if random.oneIn(2) {
            try system.paging.wire(area[page], .one, holes: .forbidden)
            wired.append(page)
          } else {
            held.append(try system.paging.hold(area[page], .read))
          }
        } catch {
          XCTAssertEqual(error, .noMemory)
        }
      }
    }

    func look() -> [Frame] {
      var top: UInt32 = 0
      system.physical.forEachRole { run, _ in top = max(top, run.end.rawValue) }
      return (0..<top).map { number in
        let what = system.physical.whatIs(FrameNumber(number))
        if what.role.isPermanent { return .never }
        if what.role == .free { return .free }
        guard what.role == .pageable, what.busyWord.wires == 0 else { return .unmovable }
        return what.busyWord.holds > 0 || what.busyWord.isXbusy || what.busyWord.sbusyCount > 0
          ? .claimed : .page
      }
    }

    func verify() throws {
      for page in 0..<area.count {
        XCTAssertTrue(try system.holds(area, page, stamps[Int(page)]), "page \(page), \(note)")
      }
    }

    /// Gives everything back.
    func close() throws {
      for run in runs { system.give(run) }
      for page in wired { system.paging.unwire(area[page], .one) }
      for frame in held { system.paging.unhold(frame) }
      system.giveBack(loaned)
      system.check(note)
      try verify()
      system.release(area)
      system.check(note)
      XCTAssertEqual(system.physical.count(.pageable), .zero)
      XCTAssertEqual(system.physical.count(.contiguous), .zero)
      XCTAssertEqual(system.paging.swap.figures.used, .zero)
    }
  }

  private func truth(_ request: ContiguousRequest, _ frames: [Frame]) -> Truth {
    var truth = Truth()
    let count = Int(clamping: request.count.rawValue)
    guard count > 0, count <= frames.count else { return truth }
    let alignment = Int(request.constraints.alignment.rawValue >> Page.shift)
    let low = Int((request.constraints.low.rawValue + Page.size - 1) >> Page.shift)
    let high = Int(min(request.constraints.high.rawValue >> Page.shift, UInt64(frames.count)))
    // How many of each kind lie below a frame.
    var sums = [[Int]](repeating: [0], count: 3)
    for frame in frames {
      for kind in 0..<3 { sums[kind].append(sums[kind].last! + (Int(frame.rawValue) == kind ? 1 : 0)) }
    }
    var start = (low + alignment - 1) / alignment * alignment
    while start + count <= high {
      defer { start += alignment }
      if let boundary = request.constraints.boundary {
        let pages = Int(boundary.rawValue >> Page.shift)
        if pages == 0 || start / pages != (start + count - 1) / pages { continue }
      }
      func has(_ kind: Frame) -> Bool {
        sums[Int(kind.rawValue)][start + count] > sums[Int(kind.rawValue)][start]
      }
      if has(.never) { continue }
      truth.starts += 1
      if has(.unmovable) { continue }
      truth.emptiable.insert(UInt32(start))
      if !has(.claimed) { truth.quiet.insert(UInt32(start)) }
    }
    return truth
  }

  private func request(_ random: inout SeededRandom, _ top: UInt64) -> ContiguousRequest {
    var constraints = RunConstraints()
    if random.oneIn(2) { constraints.alignment = Alignment(Page.size << random.below(8))! }
    if random.oneIn(3) { constraints.low = PhysicalAddress(random.below(top) << 12 | random.below(4096)) }
    if random.oneIn(3) {
      constraints.high = PhysicalAddress(random.below(top + 100) << 12 | random.below(4096))
    }
    if random.oneIn(4) { constraints.boundary = Alignment(Page.size << random.below(9))! }
    let count = 1 + random.below(1 << random.below(10))
    return ContiguousRequest(PageCount(count), where: constraints)
  }

  func testARequestIsRefusedOnlyWhenNoRunCouldHaveBeenEmptied() throws {
    let seed = historySeed(31)
    var random = SeededRandom(seed: seed)
    var (granted, refused, repeated, never, claimed, later) = (0, 0, 0, 0, 0, 0)
    for number in 0..<60 {
      guard let machine = Machine(&random, seed: seed, number: number) else { continue }
      let system = machine.system
      try machine.word(&random)
      system.check(machine.note)
      for turn in 0..<30 {
        let note = "\(machine.note), request \(turn)"
        let before = machine.look()
        var wanted = request(&random, UInt64(before.count))
        if random.oneIn(8) { wanted.priority = .system }
        let truth = truth(wanted, before)
        let steps = Steps()
        let free = system.physical.freeCount
        switch system.ask(wanted, steps) {
        case .success(let run):
          granted += 1
          system.checkGranted(run, wanted, note)
          XCTAssertTrue(truth.quiet.contains(run.first.rawValue), "granted a run that is not quiet, \(note)")
          if random.oneIn(3) { machine.runs.append(run) } else { system.give(run) }
        case .failure(let failure):
          refused += 1
          if failure.isRepeated { repeated += 1 }
          switch failure.answer {
          case .never:
            never += 1
            XCTAssertEqual(truth.starts, 0, "never, but there is memory for it, \(note)")
          case .notNow:
            XCTAssertGreaterThan(truth.starts, 0, "never is taken for not now, \(note)")
            if failure.isRepeated || failure.reason == .unmovable || failure.reason == .wired {
              XCTAssertTrue(truth.emptiable.isEmpty, "a run could have been emptied, \(note)")
            }
            XCTAssertTrue(truth.quiet.isEmpty, "refused, and \(truth.quiet.count) runs are quiet, \(note)")
            if !truth.emptiable.isEmpty { claimed += 1 }
            if failure.blocker != .none {
              XCTAssertTrue(failure.run!.contains(failure.blocker), note)
              let kind = before[Int(failure.blocker.rawValue)]
              XCTAssertTrue(kind == .unmovable || kind == .claimed || kind == .never, "\(kind), \(note)")
            }
          case .later:
            // Only the reserve may be short: swap suffices, so all pages that are neither wired nor held can be written.
            later += 1
            XCTAssertFalse(truth.quiet.isEmpty, note)
            let idle = PageCount(UInt64(before.count { $0 == .page }))
            XCTAssertLessThan(
              free + idle, system.physical.reserve(for: wanted.priority) + wanted.count, "later, \(note)")
            XCTAssertGreaterThan(failure.missing, .zero, note)
          case .overBudget, .noAddressSpace: XCTFail("\(failure.description), \(note)")
          }
        }
        system.check(note)
        if turn % 10 == 9 { try machine.verify() }
        if machine.runs.count > 3 { system.give(machine.runs.removeFirst()) }
        if random.oneIn(5), let page = machine.wired.popLast() {
          system.paging.unwire(machine.area[page], .one)
        }
        if random.oneIn(5), let frame = machine.held.popLast() { system.paging.unhold(frame) }
        if random.oneIn(5), let frame = machine.loaned.popLast() { system.giveBack([frame]) }
      }
      try machine.close()
    }
    print(
      "granted, refused, repeated, never, later, held:", granted, refused, repeated, never, later, claimed)
    XCTAssertGreaterThan(granted, 300)
    XCTAssertGreaterThan(refused, 200)
    XCTAssertGreaterThan(never, 50)
  }

  /// The forecast of a request is its outcome, as long as no other thread runs and no clean pages are in
  /// the run: these may be moved or reclaimed, as their turn comes.
  func testTheForecastIsTheOutcome() throws {
    let seed = historySeed(32)
    var random = SeededRandom(seed: seed)
    var (right, granted) = (0, 0)
    for number in 0..<40 {
      guard let machine = Machine(&random, seed: seed, number: number) else { continue }
      let system = machine.system
      try machine.word(&random)
      if random.oneIn(2) { system.setTarget(system.physical.total.rawValue / 16) }
      for turn in 0..<15 {
        let note = "\(machine.note), request \(turn)"
        var wanted = request(&random, UInt64(machine.look().count))
        if random.oneIn(3) { wanted.passes = ContiguousPass(rawValue: UInt8(2 + random.below(3)))! }
        if random.oneIn(4) { wanted.waitPolicy = .forbidden }
        if random.oneIn(4) {
          wanted.budget = ContiguousBudget(
            moved: PageCount(random.below(40)), written: PageCount(random.below(40)))
        }
        let steps = Steps()
        var forecast: ContiguousForecast?
        let before = (system.contiguous.movedCount, system.contiguous.writtenCount)
        let result: Result<FrameRun, ContiguousFailure>
        do throws(ContiguousFailure) {
          result = .success(
            try system.contiguous.allocContig(wanted) {
              steps.note($0)
              if case .candidate(let candidate) = $0, forecast == nil,
                candidate.dirty == candidate.movable
              {
                forecast = system.contiguous.forecast(emptying: candidate.run, for: wanted)
              }
            })
        } catch {
          result = .failure(error)
        }
        if case .success(let run) = result { system.give(run) }
        system.check(note)
        guard let forecast, steps.isolated.count == 1 else { continue }
        let moved = system.contiguous.movedCount - before.0
        let written = system.contiguous.writtenCount - before.1
        switch result {
        case .success:
          granted += 1
          XCTAssertEqual(forecast.outcome, .granted, note)
        case .failure(let failure):
          switch failure.answer {
          case .later: XCTAssertEqual(forecast.outcome, .later, note)
          case .overBudget: XCTAssertEqual(forecast.outcome, .overBudget, note)
          case .notNow: XCTAssertEqual(forecast.outcome, .notNow, note)
          case .never, .noAddressSpace: XCTFail("\(failure.description), \(note)")
          }
        }
        XCTAssertEqual(forecast.moved, moved, "moved, \(note)")
        XCTAssertEqual(forecast.written, written, "written, \(note)")
        right += 1
      }
      try machine.close()
    }
    XCTAssertGreaterThan(right, 5)
    XCTAssertGreaterThan(granted, 2)
  }
}
