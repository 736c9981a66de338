import ContiguousMemory
import HostMachine
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// One request, step by step: passes, budgets, who may be in the way and for how long.
final class ContigmallocTests: XCTestCase {
  // MARK: Passes

  func testAFreeRunTakesNoPass() throws {
    let system = try TestSystem()
    let steps = Steps()
    let wanted = request(64, aligned: 64)
    let run = try system.ask(wanted, steps).get()
    XCTAssertEqual(steps.names, ["free"])
    system.checkGranted(run, wanted)
    system.give(run)
    system.check()
    // In parts as well.
    let other = try system.ask(wanted).get()
    system.give(FrameRun(first: other.first, count: PageCount(10)))
    system.give(FrameRun(first: other.first + PageCount(10), count: PageCount(54)))
    system.check()
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
  }

  func testCachedPagesAreAsGoodAsFree() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 100)
    system.launderAll()
    XCTAssertEqual(system.physical.cachedCount, PageCount(area.count))
    let steps = Steps()
    system.swapDisk.discardHistory()
    let run = try system.ask(request(512, aligned: 256), steps).get()
    XCTAssertEqual(steps.names, ["free"])
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    system.check()
    system.give(run)
    try system.verify(area)
  }

  func testEachPassGoesAsFarAsItMay() throws {
    // Memory full of dirty pages, some of them inactive.
    func make(spare: UInt64) throws -> (TestSystem, Area) {
      let system = try TestSystem()
      let area = try system.fillMemory(spare: spare)
      return (system, area)
    }
    var wanted = request(64, aligned: 64)
    // Free and cached only: nothing is touched.
    do {
      let (system, area) = try make(spare: 150)
      let before = system.picture(pages: true)
      let steps = Steps()
      wanted.passes = .free
      let failure = try XCTUnwrap(refusal(system.ask(wanted, steps)))
      XCTAssertEqual(failure.answer, .overBudget)
      XCTAssertEqual(steps.names, [])
      XCTAssertEqual(failure.missing, PageCount(UInt64(system.pages(of: area, in: failure.run!).count)))
      XCTAssertSame(system.picture(pages: true), before)
    }
    // With space to move to, moving does it, and nothing is written.
    for passes in [ContiguousPass.relocate, .launderInactive, .launderActive] {
      let (system, area) = try make(spare: 200)
      let steps = Steps()
      wanted.passes = passes
      let run = try system.ask(wanted, steps).get()
      system.checkGranted(run, wanted)
      XCTAssertEqual(steps.names, ["candidate", "isolated", "free and cached", "relocate"])
      XCTAssertEqual(system.swapDisk.requests.count, 0)
      XCTAssertGreaterThan(steps.moved, 0)
      XCTAssertEqual(system.contiguous.movedCount.rawValue, steps.moved)
      XCTAssertEqual(steps.passes.last?.captured, PageCount(64))
      system.check()
      try system.verify(area)
    }
    // Without space, moving alone does not.
    do {
      let (system, area) = try make(spare: 50)
      let taken = system.takeAll(leaving: system.physical.reserve(for: .normal).rawValue + 10)
      wanted.passes = .relocate
      let steps = Steps()
      let failure = try XCTUnwrap(refusal(system.ask(wanted, steps)))
      XCTAssertEqual(failure.answer, .overBudget)
      XCTAssertEqual(system.swapDisk.requests.count, 0)
      XCTAssertEqual(system.physical.count(.contiguous), .zero)
      XCTAssertEqual(steps.names, [])
      system.check()
      // The inactive ones only: these are none.
      wanted.passes = .launderInactive
      let more = Steps()
      let second = try XCTUnwrap(refusal(system.ask(wanted, more)))
      XCTAssertEqual(second.answer, .overBudget)
      XCTAssertEqual(more.written, 0)
      system.check()
      wanted.passes = .launderActive
      let all = Steps()
      let run = try system.ask(wanted, all).get()
      system.checkGranted(run, wanted)
      XCTAssertGreaterThan(all.written, 0)
      XCTAssertEqual(
        all.names.filter { $0 == "launder inactive" || $0 == "launder active" },
        ["launder inactive", "launder active"])
      system.check()
      system.give(run)
      system.giveBack(taken)
      try system.verify(area)
    }
  }

  /// Inactive pages are written out in the third pass, and no active one with them.
  func testTheThirdPassWritesInactivePagesOnly() throws {
    let system = try TestSystem(runs: [(256, 512)])
    let area = try system.fillMemory(spare: 90)
    // All are clean of bits; a run of the daemon makes some inactive. Then memory is short.
    for page in 0..<area.count { _ = system.memory.pageTables.testAndClearAccessed(area[page]) }
    system.setTarget(system.physical.freeCount.rawValue + 1)
    system.paging.runDaemon()
    XCTAssertGreaterThan(system.paging.count(.inactive) + system.paging.count(.laundry), PageCount(20))
    let taken = system.takeAll(leaving: 12)
    var inactive: Set<UInt32> = []
    for page in 0..<area.count {
      let what = system.place(area, page)
      if what.queue == .inactive || what.queue == .laundry { inactive.insert(what.frame!.rawValue) }
    }
    XCTAssertGreaterThan(inactive.count, 20)
    system.swapDisk.discardHistory()
    var wanted = request(32, aligned: 32)
    wanted.passes = .launderInactive
    let steps = Steps()
    let result = system.ask(wanted, steps)
    for frame in system.swapDisk.written { XCTAssertTrue(inactive.contains(frame.rawValue)) }
    XCTAssertFalse(steps.names.contains("launder active"))
    if case .success(let run) = result { system.give(run) }
    system.check()
    system.giveBack(taken)
    try system.verify(area)
  }

  // MARK: Requests that may not sleep

  /// Without devices a sleep is the end of the test.
  func testARequestThatMustNotSleepDoesNotWaitForADevice() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 130)
    system.host.runDevices = nil
    system.swapDisk.discardHistory()
    var wanted = request(64, aligned: 64)
    wanted.waitPolicy = .forbidden
    let steps = Steps()
    let run = try system.ask(wanted, steps).get()
    system.checkGranted(run, wanted)
    XCTAssertGreaterThan(steps.moved, 0)
    XCTAssertEqual(steps.written, 0)
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    system.check()
    system.give(run)
    // With memory short it is refused, and has asked no device.
    let taken = system.takeAll(leaving: 30)
    let failure = try XCTUnwrap(refusal(system.ask(wanted)))
    XCTAssertTrue(failure.answer == .overBudget || failure.answer == .later, "\(failure.description)")
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    system.check()
    system.giveBack(taken)
    try system.verify(area)
    // contigmalloc by either strategy.
    for strategy in [ContiguousStrategy.new, .old] {
      system.contiguous.setStrategy(strategy)
      let type = system.kmem.type(named: ShortName("test"))
      do throws(ContiguousFailure) {
        let range = try system.contiguous.contigmalloc(
          .kibibytes(256), type: type, where: wanted.constraints, waitPolicy: .forbidden)
        system.contiguous.contigfree(range.address, size: .kibibytes(256), type: type)
      } catch {
        XCTAssertEqual(strategy, .old)
      }
      XCTAssertEqual(system.swapDisk.requests.count, 0)
      system.check()
    }
  }

  // MARK: Budgets

  func testBudgetsAreHonouredToThePage() throws {
    for (moves, short) in [(true, UInt64(300)), (false, 0)] {
      let system = try TestSystem()
      let area = try system.fillMemory(spare: short + 60)
      let taken = moves ? [] : system.takeAll(leaving: 20)
      var wanted = request(64, aligned: 64)
      // The cost without a budget.
      let steps = Steps()
      let run = try system.ask(wanted, steps).get()
      system.give(run)
      let cost = moves ? steps.moved : steps.written
      XCTAssertGreaterThan(cost, 10)
      // Put the pages back: the run is filled again.
      let again = try system.area(64)
      try system.fill(again, from: 9000)
      if !moves { _ = system.takeAll(leaving: 20) }
      for budget in [0, 1, cost / 2] {
        wanted.budget = ContiguousBudget(
          moved: moves ? PageCount(budget) : .zero, written: moves ? .zero : PageCount(budget))
        let spent = Steps()
        let result = system.ask(wanted, spent)
        XCTAssertLessThanOrEqual(spent.moved, wanted.budget.moved.rawValue)
        XCTAssertLessThanOrEqual(spent.written, wanted.budget.written.rawValue)
        switch result {
        case .success(let run):
          XCTAssertTrue(spent.foundFree || spent.moved + spent.written <= budget)
          system.give(run)
        case .failure(let failure):
          XCTAssertTrue(failure.answer == .overBudget || failure.answer == .later)
          XCTAssertGreaterThan(failure.missing, .zero)
        }
        XCTAssertEqual(system.physical.count(.contiguous), .zero)
        system.check("budget \(budget)")
      }
      system.giveBack(taken)
      try system.verify(area)
      try system.verify(again, from: 9000)
    }
  }

  // MARK: Strategies

  func testStrategyAndPassesOfTheTunablesDoNotTouchAllocContig() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 200)
    system.set("vm.contig.strategy", 0)
    system.set("vm.contig.passes", 1)
    XCTAssertEqual(system.contiguous.strategy, .old)
    XCTAssertEqual(system.contiguous.passes, .free)
    let steps = Steps()
    let run = try system.ask(request(64, aligned: 64), steps).get()
    XCTAssertEqual(steps.names, ["candidate", "isolated", "free and cached", "relocate"])
    system.give(run)
    let range = try system.contiguous.kmemAllocContig(request(64, aligned: 64))
    system.contiguous.kmemFreeContig(range)
    try system.verify(area)
    for i in 0..<system.memory.statistics.count {
      let row = system.memory.statistics[i]
      if "\(row.name)" == "vm.contig.passes" {
        XCTAssertEqual(row.set(0), .out_of_range)
        XCTAssertEqual(row.set(5), .out_of_range)
      }
      if "\(row.name)" == "vm.contig.strategy" { XCTAssertEqual(row.set(2), .out_of_range) }
    }
    // contigmalloc does as it is told.
    let type = system.kmem.type(named: ShortName("test"))
    let wanted = request(64, aligned: 64)
    system.set("vm.contig.strategy", 1)
    let dirtied = try system.fillMemory(spare: 100)
    XCTAssertThrowsError(
      try system.contiguous.contigmalloc(.kibibytes(256), type: type, where: wanted.constraints)
    ) { XCTAssertEqual(($0 as? ContiguousFailure)?.answer, .overBudget) }
    system.set("vm.contig.passes", 4)
    let all = try system.contiguous.contigmalloc(
      .kibibytes(256), type: type, where: wanted.constraints)
    system.checkGranted(all.frames, wanted)
    system.contiguous.contigfree(all.address, size: .kibibytes(256), type: type)
    try system.verify(area)
    try system.verify(dirtied)
    system.check()
  }

  // MARK: In the way for a while

  /// A page that is held when its turn comes, and let go while the request sleeps.
  func testAPageThatIsReleasedDuringASleepIsWrittenInTheNextPass() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: system.physical.reserve(for: .normal).rawValue + 10)
    let low = UInt64(system.frame(area, area.count / 2).rawValue) & ~63
    let wanted = request(64, low: low, high: low + 64)
    let inRun = system.pages(of: area, in: frames(low, low + 64))
    XCTAssertGreaterThan(inRun.count, 10)
    let held = try system.paging.hold(area[inRun[5]], .read)
    var isHeld = true
    system.atPoll = {
      guard isHeld else { return }
      isHeld = false
      system.paging.unhold(held)
    }
    let steps = Steps()
    let run = try system.ask(wanted, steps).get()
    system.atPoll = nil
    XCTAssertFalse(isHeld)
    system.checkGranted(run, wanted)
    // Two passes wrote: all but the page, then the page.
    XCTAssertEqual(steps.passes.filter { $0.written > .zero }.map(\.written.rawValue).last, 1)
    system.check()
    system.give(run)
    try system.verify(area)
  }

  /// A page that is busy is passed over; who has it is not waited for.
  func testTwoRequestsThatChooseTheSameRunBothGetOne() throws {
    for moment in 0..<2 {
      let system = try TestSystem()
      let area = try system.fillMemory(spare: 150)
      var inner: Result<FrameRun, ContiguousFailure>?
      let run = try system.contiguous.allocContig(request(64)) { event in
        switch (event, moment) {
        case (.candidate, 0), (.isolated, 1): inner = inner ?? system.ask(request(64))
        default: break
        }
      }
      let other = try XCTUnwrap(inner, "moment \(moment)").get()
      XCTAssertFalse(run.contains(other.first) || other.contains(run.first))
      system.give(run)
      system.give(other)
      system.check()
      try system.verify(area)
    }
  }

  func testABusyPageCostsTheRun() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 100)
    // A page whose sixteen frames could all be a run: those at the start of memory are the boot's.
    let low = try XCTUnwrap(
      (0..<area.count).lazy.map { UInt64(system.frame(area, $0).rawValue) & ~15 }.first {
        system.physical.hasPlace(
          forRun: PageCount(16), where: request(16, low: $0, high: $0 + 16).constraints)
      })
    let wanted = request(16, low: low, high: low + 16)
    let page = try XCTUnwrap(system.pages(of: area, in: frames(low, low + 16)).first)
    var failure: ContiguousFailure?
    system.atPoll = {
      guard failure == nil, system.place(area, page).busyWord.sbusyCount > 0 else { return }
      failure = refusal(system.ask(wanted))
    }
    let one = FrameRun(first: system.frame(area, page), count: .one)
    XCTAssertEqual(system.paging.launder(outOf: one, .all, atMost: .one).written, .one)
    system.atPoll = nil
    XCTAssertEqual(failure?.answer, .notNow)
    XCTAssertEqual(failure?.reason, .busy)
    XCTAssertEqual(failure?.blocker, one.first)
    XCTAssertEqual(failure?.owner, area.object.number)
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    system.check()
    system.give(try system.ask(wanted).get())
    try system.verify(area)
  }

  /// A thread dirties a page of the run whenever it is written out: the request tries twice, then takes another run.
  func testAPageThatIsDirtiedAgainHasTwoChances() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 150)
    // The first candidate: its pages are dirtied, whichever they are.
    var first: FrameRun?
    var stamp: UInt64 = 50_000
    var stamps: [UInt64: UInt64] = [:]
    system.atPoll = {
      guard let run = first else { return }
      for page in system.pages(of: area, in: run).prefix(3) {
        let what = system.place(area, page)
        guard what.busyWord.sbusyCount > 0, !what.flags.contains(.dirty) else { continue }
        stamp += 1
        try! system.write(area, page, stamp)
        stamps[page] = stamp
      }
    }
    let wanted = request(32, aligned: 32)
    let steps = Steps()
    let result: Result<FrameRun, ContiguousFailure>
    do throws(ContiguousFailure) {
      let run = try system.contiguous.allocContig(wanted) {
        steps.note($0)
        if case .isolated(let run) = $0, first == nil {
          first = run
          // Not one frame to move to.
          system.set("vm.reserve.normal", system.physical.freeCount.rawValue)
        }
      }
      result = .success(run)
    } catch {
      result = .failure(error)
    }
    system.atPoll = nil
    XCTAssertFalse(stamps.isEmpty)
    XCTAssertEqual(steps.abandoned.first, first, "\(steps.names)")
    XCTAssertEqual(steps.isolated.count, 2, "\(steps.names)")
    let run = try result.get()
    XCTAssertNotEqual(run, first)
    system.checkGranted(run, wanted)
    // Each page of the first run was written twice at most.
    var writes: [UInt32: Int] = [:]
    for frame in system.swapDisk.written where first!.contains(frame) {
      writes[frame.rawValue, default: 0] += 1
    }
    XCTAssertEqual(writes.values.max(), 2)
    XCTAssertLessThanOrEqual(steps.moved + steps.written, 2 * 32)
    system.check()
    system.give(run)
    for page in 0..<area.count {
      XCTAssertTrue(try system.holds(area, page, stamps[page] ?? 1000 + page))
    }
  }

  func testAttemptsAreBounded() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 130)
    // A held page in every run of 16.
    var held: [FrameNumber] = []
    var covered: Set<UInt32> = []
    for page in 0..<area.count where covered.insert(system.frame(area, page).rawValue >> 3).inserted {
      held.append(try system.paging.hold(area[page], .read))
    }
    let before = system.contiguous.movedCount + system.contiguous.writtenCount
    let steps = Steps()
    let wanted = request(16, aligned: 16)
    let result = system.ask(wanted, steps)
    switch result {
    case .success(let run): system.give(run)
    case .failure(let failure):
      XCTAssertEqual(failure.answer, .notNow)
      XCTAssertEqual(failure.reason, .held)
      XCTAssertTrue(held.contains(failure.blocker))
      XCTAssertEqual(failure.owner, area.object.number)
      XCTAssertNotNil(failure.longest)
    }
    XCTAssertLessThanOrEqual(steps.isolated.count, 4)
    XCTAssertEqual(
      system.contiguous.movedCount + system.contiguous.writtenCount, before, "\(steps.names)")
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    system.check()
    for frame in held { system.paging.unhold(frame) }
    let run = try system.ask(wanted).get()
    system.give(run)
    try system.verify(area)
  }

  /// A page of each run is held, wired or dirtied while the run is emptied: however that ends, no more than twice as
  /// many pages as the run has were moved and written in all attempts together.
  func testAllAttemptsTogetherMoveAndWriteTwiceTheRunAtMost() throws {
    enum Disturbance: CaseIterable { case hold, wire, dirty }
    for disturbance in Disturbance.allCases {
      for isShort in [false, true] {
        let system = try TestSystem()
        let area = try system.fillMemory(spare: 180)
        if isShort { system.setTarget(500) }
        var held: [FrameNumber] = []
        var wired: [UInt64] = []
        var current: FrameRun?
        var stamps: [UInt64: UInt64] = [:]
        system.atPoll = {
          guard disturbance == .dirty, let run = current else { return }
          for page in system.pages(of: area, in: run)
          where system.place(area, page).busyWord.sbusyCount > 0
            && !system.place(area, page).flags.contains(.dirty)
          {
            stamps[page] = 70_000 + page
            try! system.write(area, page, 70_000 + page)
          }
        }
        let steps = Steps()
        let wanted = request(64, aligned: 64)
        var answer: ContiguousFailure.Answer?
        do throws(ContiguousFailure) {
          let run = try system.contiguous.allocContig(wanted) { event in
            steps.note(event)
            guard case .isolated(let run) = event else { return }
            current = run
            guard let page = system.pages(of: area, in: run).last else { return }
            switch disturbance {
            case .hold: held.append(try! system.paging.hold(area[page], .read))
            case .wire:
              try! system.paging.wire(area[page], .one, holes: .forbidden)
              wired.append(page)
            case .dirty: break
            }
          }
          system.give(run)
        } catch {
          answer = error.answer
        }
        system.atPoll = nil
        let note = "\(disturbance), short \(isShort), \(steps.names)"
        // Pages that are moved are not written, and nothing dirties them on the way.
        XCTAssertEqual(answer, disturbance == .dirty && !isShort ? nil : .notNow, note)
        XCTAssertGreaterThan(steps.abandoned.count, answer == nil ? -1 : disturbance == .dirty ? 0 : 1, note)
        XCTAssertLessThanOrEqual(steps.abandoned.count, 4, note)
        XCTAssertLessThanOrEqual(steps.moved + steps.written, 2 * 64, note)
        XCTAssertEqual(
          steps.moved + steps.written,
          (system.contiguous.movedCount + system.contiguous.writtenCount).rawValue)
        for frame in held { system.paging.unhold(frame) }
        for page in wired { system.paging.unwire(area[page], .one) }
        system.check(note)
        for page in 0..<area.count {
          XCTAssertTrue(try system.holds(area, page, stamps[page] ?? 1000 + page), note)
        }
      }
    }
  }

  /// The reserve lets a part of the run's free frames stay in the queues, and frames come free before its pages are
  /// moved: no page is moved to a free frame of the run.
  func testNoPageIsMovedIntoItsOwnRun() throws {
    let system = try TestSystem(runs: [(256, 6000)])
    system.setTarget(0)
    let area = try system.fillMemory(spare: 300)
    system.setTarget(0)
    let (low, high): (UInt32, UInt32) = (4608, 5120)
    let window = frames(UInt64(low), UInt64(high))
    XCTAssertFalse(system.pages(of: area, in: window).isEmpty)
    let wanted = request(512, low: UInt64(low), high: UInt64(high), aligned: 512)
    let forecast = system.contiguous.forecast(wanted)
    XCTAssertEqual(forecast.outcome, .granted)
    var taken: [FrameNumber] = []
    var back: [FrameNumber] = []
    let steps = Steps()
    var left: [UInt32] = []
    var (passes, landed) = (0, 0)
    do throws(ContiguousFailure) {
      let run = try system.contiguous.allocContig(wanted) { event in
        steps.note(event)
        switch event {
        case .candidate:
          // All frames outside of the run, and the reserve is what is free in it but for a few.
          for frame in 256..<UInt32(6256) where !window.contains(FrameNumber(frame)) {
            do throws(PhysicalMemoryError) {
              try system.physical.allocate(frame: FrameNumber(frame), role: .loaned, priority: .interrupt)
              taken.append(FrameNumber(frame))
            } catch {}
          }
          system.set("vm.reserve.normal", max(1, system.physical.freeCount.rawValue - 4))
        case .isolated:
          left = (low..<high).filter { system.physical.whatIs(FrameNumber($0)).role == .free }
          // Low frames, which are allocated last.
          back = taken.filter { $0.rawValue < 4096 }
          taken.removeAll { $0.rawValue < 4096 }
          system.giveBack(back)
        case .pass(let report) where report.pass == .relocate:
          passes += 1
          landed += left.count { system.physical.whatIs(FrameNumber($0)).role == .pageable }
        default: break
        }
      }
      system.give(run)
    } catch {
      XCTFail("\(error)")
    }
    XCTAssertGreaterThan(back.count, 4)
    XCTAssertGreaterThan(left.count, 4)
    XCTAssertGreaterThan(passes, 0)
    XCTAssertEqual(landed, 0, "\(steps.names)")
    system.giveBack(taken)
    system.check()
    try system.verify(area)
  }

  /// The obstacles of a run are not tried again, though they are gone: all of them, and not only the first frame.
  func testPagesThatBlockTheRunAreLeftAlone() throws {
    let system = try TestSystem(runs: [(256, 512)])
    let area = try system.fillMemory(spare: 150)
    // Sixty frames without unmovable ones: the twenty in the middle are free but for two pages, which makes them the
    // cheapest run, and those around it the next ones.
    var start: UInt64 = 256
    var low: UInt64?
    for frame in 256..<768 as Range<UInt64> where low == nil {
      let what = system.physical.whatIs(FrameNumber(UInt32(frame)))
      if what.role != .pageable && what.role != .free { start = frame + 1 }
      if frame - start == 59 { low = start }
    }
    let first = try XCTUnwrap(low)
    let middle = frames(first + 20, first + 40)
    let places = system.pages(of: area, in: middle).map { system.frame(area, $0) }.sorted()
    let chosen = [places[1], places[places.count - 2]]
    for frame in places where !chosen.contains(frame) {
      _ = system.paging.launder(outOf: FrameRun(first: frame, count: .one), .all, atMost: .one)
    }
    let obstacles = FrameRun(first: chosen[0], count: chosen[1] - chosen[0] + .one)
    XCTAssertGreaterThan(obstacles.count, PageCount(8))
    let inTheWay = system.pages(of: area, in: middle)
    var held: [FrameNumber] = []
    let steps = Steps()
    do throws(ContiguousFailure) {
      let run = try system.contiguous.allocContig(request(20, low: first, high: first + 60)) { event in
        steps.note(event)
        switch event {
        case .isolated where steps.isolated.count == 1:
          for page in inTheWay { held.append(try! system.paging.hold(area[page], .read)) }
        case .abandoned:
          for frame in held { system.paging.unhold(frame) }
          held = []
        default: break
        }
      }
      system.give(run)
    } catch {
      XCTFail("\(error.description), \(steps.names)")
    }
    XCTAssertEqual(steps.isolated.count, 2, "\(steps.names)")
    XCTAssertTrue(try XCTUnwrap(steps.isolated.first).contains(obstacles.first))
    for run in steps.isolated.dropFirst() {
      XCTAssertTrue(run.end <= obstacles.first || obstacles.end <= run.first, "\(run) after \(obstacles)")
    }
    system.check()
    try system.verify(area)
  }

  /// The next run excludes the obstacles of the one before, and no more than these.
  func testARunBesideAHeldPageIsFound() throws {
    let system = try TestSystem(runs: [(256, 512)])
    let area = try system.fillMemory(spare: 110)
    // A range of 60 frames without unmovable ones, in which only runs on one side of the held page are long enough.
    var row: (UInt64, UInt64)?
    var start: UInt64 = 256
    for frame in 256..<768 as Range<UInt64> {
      let what = system.physical.whatIs(FrameNumber(UInt32(frame)))
      if what.role != .pageable && what.role != .free {
        start = frame + 1
      } else if frame - start == 59 && row == nil {
        row = (start, frame + 1)
      }
    }
    let (low, high) = try XCTUnwrap(row)
    let pages = system.pages(of: area, in: frames(low, high))
    XCTAssertGreaterThan(pages.count, 40)
    for place in [3, 25, 35, 58] as [UInt64] {
      guard let page = pages.first(where: { system.frame(area, $0).rawValue == UInt32(low + place) })
      else { continue }
      let held = try system.paging.hold(area[page], .read)
      let steps = Steps()
      let longest = max(place, 59 - place)
      let wanted = request(longest, low: low, high: high)
      let run = try system.ask(wanted, steps).get()
      system.checkGranted(run, wanted)
      system.check()
      // And none of what was moved out of the way comes back in for the next turn.
      system.give(run)
      system.paging.unhold(held)
      let fresh = try system.area(longest)
      try system.fill(fresh)
      if system.pages(of: fresh, in: run).count != Int(longest) { break }
    }
  }

  // MARK: Requests that failed before

  func testARequestThatFailedBeforeIsRefusedWithoutASearch() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 150)
    // Wired pages, one in each 32 frames of the upper half.
    var wired: [UInt64] = []
    var covered: Set<UInt32> = []
    for page in 0..<area.count where covered.insert(system.frame(area, page).rawValue >> 5).inserted {
      try system.paging.wire(area[page], .one, holes: .forbidden)
      wired.append(page)
    }
    let wanted = request(64, low: 512)
    let first = try XCTUnwrap(refusal(system.ask(wanted)))
    XCTAssertEqual(first.answer, .notNow)
    XCTAssertEqual(first.reason, .wired)
    XCTAssertFalse(first.isRepeated)
    XCTAssertEqual(first.owner, area.object.number)
    XCTAssertLessThan(try XCTUnwrap(first.longest).count, PageCount(64))
    let searches = (system.statistic("vm.searches"), system.statistic("vm.run_steps"))
    let moved = system.contiguous.movedCount
    for _ in 0..<10 {
      let steps = Steps()
      let again = try XCTUnwrap(refusal(system.ask(wanted, steps)))
      XCTAssertEqual(again.answer, .notNow)
      XCTAssertTrue(again.isRepeated)
      XCTAssertEqual(steps.names, [])
    }
    // Larger and narrower ones too.
    XCTAssertTrue(try XCTUnwrap(refusal(system.ask(request(100, low: 600, aligned: 2)))).isRepeated)
    XCTAssertEqual(system.statistic("vm.searches"), searches.0)
    XCTAssertEqual(system.statistic("vm.run_steps"), searches.1)
    XCTAssertEqual(system.contiguous.movedCount, moved)
    // Changes that don't help it leave it refused: a page reclaimed, another wired, a single one unwired elsewhere.
    system.paging.launder(.active, upTo: PageCount(20), referenced: .launder)
    XCTAssertTrue(try XCTUnwrap(refusal(system.ask(wanted))).isRepeated)
    // Smaller ones are searched for, and granted.
    let small = try system.ask(request(8)).get()
    system.give(small)
    // As soon as a run for it may come up, it is searched for again.
    var granted: FrameRun?
    for page in wired {
      system.paging.unwire(area[page], .one)
      if case .success(let run) = system.ask(wanted) {
        granted = run
        break
      }
    }
    let run = try XCTUnwrap(granted)
    system.checkGranted(run, wanted)
    system.check()
    system.give(run)
    try system.verify(area)
  }

  // MARK: Answers

  func testAnImpossibleRequestIsDistinguishedFromOneThatMaySucceedLater() throws {
    let system = try TestSystem(runs: [(256, 512), (1024, 256)])
    for wanted in [
      request(513), request(0), request(1, low: 768, high: 1024), request(1, low: 5000),
      request(8, boundary: 4), request(300, low: 1000), request(1, low: 0, high: 256),
      request(UInt64.max >> 12),
    ] {
      let steps = Steps()
      let failure = try XCTUnwrap(refusal(system.ask(wanted, steps)))
      XCTAssertEqual(failure.answer, .never, "\(wanted)")
      XCTAssertEqual(steps.names, [])
    }
    // The obstacle of this one is a frame that its owner may free.
    let whole = request(512, low: 256, high: 768)
    system.give(try system.ask(whole).get())
    try system.physical.allocate(frame: FrameNumber(400), role: .loaned)
    let failure = try XCTUnwrap(refusal(system.ask(whole)))
    XCTAssertEqual(failure.answer, .notNow)
    XCTAssertEqual(failure.reason, .unmovable)
    XCTAssertEqual(failure.role, .loaned)
    XCTAssertEqual(failure.blocker, FrameNumber(400))
    XCTAssertEqual(failure.longest, frames(401, 768))
    system.giveBack([FrameNumber(400)])
    system.give(try system.ask(whole).get())
    system.check()
  }

  func testARequestDuringAShortageIsAnsweredLater() throws {
    // No swap: there is only moving, down to the reserve.
    let system = try TestSystem(attaches: false)
    let area = try system.fillMemory(spare: 150)
    let reserve = system.physical.reserve(for: .normal).rawValue
    let taken = system.takeAll(leaving: reserve + 5)
    let wanted = request(64, aligned: 64)
    let steps = Steps()
    let failure = try XCTUnwrap(refusal(system.ask(wanted, steps)))
    XCTAssertEqual(failure.answer, .later, "\(steps.names)")
    XCTAssertGreaterThan(failure.missing, .zero)
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    XCTAssertGreaterThanOrEqual(system.physical.freeCount.rawValue, reserve)
    system.check()
    system.giveBack(taken)
    // As many frames as were missing, and it is granted.
    let run = try system.ask(wanted).get()
    system.give(run)
    try system.verify(area)
    // A run that is free, with the reserve below it.
    let rest = system.takeAll(leaving: 0)
    let some = try XCTUnwrap(rest.first)
    system.giveBack([some])
    let second = try XCTUnwrap(refusal(system.ask(request(1))))
    XCTAssertEqual(second.answer, .later)
    XCTAssertTrue((reserve - 1...reserve).contains(second.missing.rawValue))
    system.giveBack(rest.filter { $0 != some })
    system.check()
  }

  /// Without swap everything can be moved, as long as there are frames above the reserve.
  func testARunIsEmptiedByMovingWhenThereIsNoSwap() throws {
    let system = try TestSystem(attaches: false)
    let area = try system.fillMemory(spare: 110)
    var granted = 0
    for _ in 0..<4 {
      let steps = Steps()
      if case .success(let run) = system.ask(request(32, aligned: 32), steps) {
        granted += 1
        system.checkGranted(run, request(32, aligned: 32))
        system.give(run)
        let again = try system.area(32)
        try system.fill(again)
        system.release(again)
      }
    }
    XCTAssertEqual(granted, 4)
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    try system.verify(area)
    system.check()
  }

  // MARK: Attributes

  func testAttributesGoForTheMappingAndTheAliasAndComeBack() throws {
    let system = try TestSystem(frames: 2048)
    let area = try system.fillMemory(spare: 300)
    let tables = system.memory.pageTables
    let type = system.kmem.type(named: ShortName("test"))
    for attribute in [CacheAttribute.uncached, .writeCombining, .writeBack, .writeThrough] {
      for named in [false, true] {
        let wanted = request(70, aligned: 4)
        let range =
          named
          ? try system.contiguous.contigmalloc(
            ByteCount(UInt64(70 * 4096 - 5)), type: type, where: wanted.constraints, attribute: attribute)
          : try system.contiguous.kmemAllocContig(wanted, attribute: attribute)
        system.checkGranted(range.frames, wanted)
        for page in 0..<70 as Range<UInt64> {
          let place = try XCTUnwrap(tables.translate(range.address + PageCount(page)))
          XCTAssertEqual(place.attribute, attribute)
          XCTAssertEqual(place.physical.frame, range.frames.first + PageCount(page))
          let frame = range.frames.first + PageCount(page)
          let alias = try XCTUnwrap(
            tables.translate(system.host.machine.directMap.virtualAddress(of: frame.address)))
          XCTAssertEqual(alias.attribute, attribute)
        }
        system.check()
        if named {
          XCTAssertEqual(system.kmem.describe(type).bytes, PageCount(70).bytes)
          system.contiguous.contigfree(
            range.address, size: ByteCount(UInt64(70 * 4096 - 5)), type: type)
          XCTAssertEqual(system.kmem.describe(type).bytes, .zero)
        } else {
          system.contiguous.kmemFreeContig(range)
        }
        for page in 0..<70 as Range<UInt64> {
          let frame = range.frames.first + PageCount(page)
          XCTAssertEqual(system.physical.whatIs(frame).role, .free)
          XCTAssertEqual(
            tables.translate(system.host.machine.directMap.virtualAddress(of: frame.address))?.attribute,
            .writeBack)
        }
        XCTAssertNil(tables.translate(range.address))
        system.check()
      }
    }
    try system.verify(area)
  }

  // MARK: Bugs of callers

  func testFreeingWhatIsNotContiguousMemoryIsReported() throws {
    let system = try TestSystem()
    let (type, other) = (
      system.kmem.type(named: ShortName("test")), system.kmem.type(named: ShortName("other"))
    )
    let size = ByteCount(UInt64(20 * 4096))
    let range = try system.contiguous.contigmalloc(size, type: type)
    let contiguous = system.contiguous
    system.expectFault(.wrongType) { contiguous.contigfree(range.address, size: size, type: other) }
    system.expectFault(.wrongSize) {
      contiguous.contigfree(range.address, size: ByteCount(UInt64(19 * 4096)), type: type)
    }
    system.expectFault(.wrongType) {
      contiguous.contigfree(range.address, size: ByteCount(UInt64(21 * 4096)), type: type)
    }
    system.expectFault(.foreignPointer) {
      contiguous.contigfree(range.address + .one, size: ByteCount(UInt64(19 * 4096)), type: type)
    }
    system.expectFault(.wrongType) { contiguous.contigfree(range.address, size: .zero, type: other) }
    XCTAssertEqual(system.kmem.describe(type).inUse, 1)
    contiguous.contigfree(range.address, size: size, type: type)
    XCTAssertEqual(system.kmem.describe(type).inUse, 0)
    system.expectFault(.wrongType) { contiguous.contigfree(range.address, size: size, type: type) }
    let second = try contiguous.contigmalloc(size, type: type)
    let pages = try contiguous.kmemAllocContig(request(20))
    // Under another one's type there is some, but not there.
    contiguous.contigfree(second.address, size: size, type: type)
    let third = try contiguous.contigmalloc(size, type: type)
    XCTAssertEqual(
      system.host.faults { contiguous.contigfree(second.address + PageCount(900), size: size, type: type) }
        .count, 1)
    contiguous.contigfree(third.address, size: size, type: type)
    contiguous.kmemFreeContig(pages)
    system.check()
  }
}
