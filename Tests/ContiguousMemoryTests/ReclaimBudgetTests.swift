import ContiguousMemory
import HostMachine
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Machines of 8 to 256 MiB that are full of pages, with any number of free frames inside of a run and elsewhere, and
/// any amount of swap. A request is refused exactly when no run in its range can be emptied with the free slots and
/// frames. The refusal costs no move and no write, and the forecast says the same beforehand.
final class ReclaimBudgetTests: XCTestCase {
  /// One frame as a request sees it.
  private enum Kind: Int { case unmovable, claimed, free, clean, active, inactive }

  /// How many frames of each kind lie below a frame.
  private struct Sums {
    var list: [[Int]]
    init(_ kinds: [Kind]) {
      list = (0..<6).map { _ in
        var sums = [0]
        sums.reserveCapacity(kinds.count + 1)
        return sums
      }
      for kind in kinds {
        for k in 0..<6 { list[k].append(list[k].last! + (kind.rawValue == k ? 1 : 0)) }
      }
    }
    func count(_ kind: Kind, _ first: Int, _ end: Int) -> Int {
      list[kind.rawValue][end] - list[kind.rawValue][first]
    }
  }

  /// The frames and slots that a request may use.
  private struct Purse {
    var free: Int
    /// Frames that capturing leaves free, and those that moving does.
    var reserve: Int
    var moveReserve: Int
    var slots: Int
    var clean: Int
    var dirty: Int
  }

  private func kinds(_ system: TestSystem) -> [Kind] {
    var top: UInt32 = 0
    system.physical.forEachRole { run, _ in top = max(top, run.end.rawValue) }
    return (0..<top).map {
      let what = system.physical.whatIs(FrameNumber($0))
      if what.role == .free { return .free }
      guard what.role == .pageable, what.busyWord.wires == 0 else { return .unmovable }
      if what.busyWord.rawValue & 0x7fff_ffff != 0 { return .claimed }
      return !what.pageFlags.contains(.dirty) ? .clean : what.queue == .active ? .active : .inactive
    }
  }

  /// Whether a run of so many frames of each kind can be emptied: as many pages are written as may be, the rest is
  /// moved.
  private func pays(
    _ request: ContiguousRequest, free: Int, clean: Int, active: Int, inactive: Int, _ purse: Purse
  ) -> Bool {
    let mayWrite =
      request.waitPolicy == .allowed && request.passes > .relocate && request.budget.written > .zero
    let writable = !mayWrite ? 0 : request.passes == .launderActive ? active + inactive : inactive
    let budget = Int(clamping: request.budget.written.rawValue)
    let written = min(writable, purse.slots, budget)
    let moved = active + inactive - written
    if moved > Int(clamping: request.budget.moved.rawValue) { return false }
    if free + moved == 0 { return true }
    var elsewhere = 0
    if request.waitPolicy == .allowed && request.passes == .launderActive {
      elsewhere =
        (purse.clean - clean)
        + min(purse.dirty - active - inactive, purse.slots - written, budget - written)
    }
    return free + moved + (moved > 0 ? purse.moveReserve : purse.reserve) <= purse.free + elsewhere
  }

  /// Whether any run in range can be emptied, by a look at each.
  private func canBeEmptied(_ request: ContiguousRequest, _ sums: Sums, _ purse: Purse) -> Bool {
    let (count, top) = (Int(request.count.rawValue), sums.list[0].count - 1)
    let alignment = Int(request.constraints.alignment.rawValue >> Page.shift)
    let low = Int((request.constraints.low.rawValue + Page.size - 1) >> Page.shift)
    let high = Int(min(request.constraints.high.rawValue >> Page.shift, UInt64(top)))
    var start = (low + alignment - 1) / alignment * alignment
    while start + count <= high {
      let end = start + count
      if sums.count(.unmovable, start, end) == 0 && sums.count(.claimed, start, end) == 0
        && pays(
          request, free: sums.count(.free, start, end), clean: sums.count(.clean, start, end),
          active: sums.count(.active, start, end), inactive: sums.count(.inactive, start, end), purse)
      {
        return true
      }
      start += alignment
    }
    return false
  }

  private struct Shape {
    var mebibytes: UInt64
    /// Free frames in the run `window`, of a thousand, and elsewhere.
    var inside: UInt64
    var elsewhere: UInt64
    var swap: UInt64
    var isInOrder: Bool
    /// Of a thousand pages, those that are clean, inactive, held and wired.
    var clean: UInt64 = 0
    var inactive: UInt64 = 0
    var held: UInt64 = 0
    var wired: UInt64 = 0
  }

  private final class Full {
    let system: TestSystem
    let area: Area
    let window: FrameRun
    var held: [FrameNumber] = []
    var wired: [UInt64] = []

    init(_ shape: Shape, _ random: inout SeededRandom) throws {
      let frames = shape.mebibytes << 8
      system = try TestSystem(
        runs: [(1, 158), (256, frames - 256)], swap: max(1, shape.swap), attaches: shape.swap > 0)
      let reserve = system.physical.reserve(for: .normal).rawValue
      system.setTarget(0)
      system.set("vm.reserve.normal", 0)
      // Slots and tables first, so that what follows takes frames for pages only.
      let free = system.physical.freeCount.rawValue
      let probe = try system.area(free - 64)
      let used = free - system.physical.freeCount.rawValue
      system.release(probe)
      let size = UInt64(min(512, frames / 8))
      window = FrameRun(first: FrameNumber(UInt32(frames / 2 & ~511)), count: PageCount(size))
      let spare = size * shape.inside / 1000 + shape.elsewhere
      area = try system.area(free - spare - used - 8)
      let all = system.takeAll().sorted { $0.rawValue < $1.rawValue }
      let wanted = UInt64(all.count) - area.count
      let inside = all.filter { window.contains($0) }.prefix(Int(min(wanted, size * shape.inside / 1000)))
      var outside = all.filter { !window.contains($0) }
      // In a row at the end, or one here and there.
      if !shape.isInOrder { outside.shuffle(using: &random) }
      let aside = Array(inside) + outside.suffix(Int(wanted) - inside.count)
      let kept = Set(aside.map(\.rawValue))
      for frame in all where !kept.contains(frame.rawValue) {
        system.give(FrameRun(first: frame, count: .one))
      }
      let order = shape.isInOrder ? Array(0..<area.count) : (0..<area.count).shuffled(using: &random)
      for page in order {
        if random.below(1000) < shape.clean {
          try system.paging.fault(area[page], .read)
        } else {
          try system.write(area, page, 1000 + page)
        }
      }
      system.giveBack(aside)
      for page in order where random.below(1000) < shape.held {
        held.append(try system.paging.hold(area[page], .read))
      }
      for page in order where random.below(1000) < shape.wired {
        try system.paging.wire(area[page], .one, holes: .forbidden)
        wired.append(page)
      }
      if shape.inactive > 0 {
        for page in 0..<area.count { _ = system.memory.pageTables.testAndClearAccessed(area[page]) }
        system.setTarget(system.physical.freeCount.rawValue + 1)
        system.paging.runDaemon()
        system.setTarget(0)
      }
      system.set("vm.reserve.normal", reserve)
    }

    /// Writes to each page that lies in a frame for which `isWanted` holds.
    func dirty(_ isWanted: (UInt32) -> Bool) throws {
      for page in 0..<area.count where isWanted(system.frame(area, page).rawValue) {
        try system.write(area, page, page)
      }
    }

    func close() {
      for frame in held { system.paging.unhold(frame) }
      for page in wired { system.paging.unwire(area[page], .one) }
      system.check()
    }
  }

  private func check(
    _ full: Full, _ request: ContiguousRequest, _ tally: inout (granted: Int, refused: Int, fetched: Int),
    _ note: String
  ) -> FrameRun? {
    let (system, physical) = (full.system, full.system.physical)
    let kinds = kinds(system)
    let sums = Sums(kinds)
    let top = kinds.count
    let purse = Purse(
      free: Int(physical.freeCount.rawValue), reserve: Int(physical.reserve(for: request.priority).rawValue),
      moveReserve: Int(max(physical.reserve(for: request.priority), physical.reserve(for: .normal)).rawValue),
      slots: Int(system.paging.swap.figures.free.rawValue), clean: sums.count(.clean, 0, top),
      dirty: sums.count(.active, 0, top) + sums.count(.inactive, 0, top))
    let isPossible = canBeEmptied(request, sums, purse)
    let forecast = system.contiguous.forecast(request)
    let before = system.paging.figures
    let writes = system.swapDisk.written.count
    let steps = Steps()
    let result = system.ask(request, steps)
    let written = system.paging.figures.written - before.written
    XCTAssertLessThanOrEqual(written, request.budget.written.rawValue, "over budget, \(note)")
    XCTAssertLessThanOrEqual(written, 2 * request.count.rawValue + forecast.fetched.rawValue, note)
    switch result {
    case .success(let run):
      tally.granted += 1
      if isBegunForHeldPages(forecast) && steps.isolated.count > 0 {
        // The pages that it wrote for the first run freed frames, which pay for another one.
        XCTAssertEqual(steps.abandoned, steps.isolated.dropLast(), "\(note) \(steps.names)")
        XCTAssertGreaterThan(steps.written, 0, note)
        system.checkGranted(run, request, note)
        system.check(note)
        return run
      }
      if steps.isolated.count > 0 && forecast.fetched > .zero { tally.fetched += 1 }
      XCTAssertTrue(isPossible, "granted what can't be emptied, \(note)")
      XCTAssertEqual(forecast.outcome, .granted, note)
      XCTAssertEqual(forecast.run, run, note)
      XCTAssertEqual(forecast.moved.rawValue, steps.moved, "moved, \(note) \(steps.names)")
      if forecast.fetched == .zero {
        XCTAssertEqual(forecast.written.rawValue, steps.written, "written, \(note) \(steps.names)")
        XCTAssertEqual(system.swapDisk.written.count - writes, Int(steps.written), "outside, \(note)")
      }
      XCTAssertLessThanOrEqual(steps.moved + steps.written, 2 * request.count.rawValue, note)
      system.checkGranted(run, request, note)
      system.check(note)
      return run
    case .failure(let failure):
      tally.refused += 1
      if isPossible {
        XCTFail(
          "refused: \(failure.description), \(failure.missing) missing, forecast \(forecast.outcome), fetched \(forecast.fetched), \(steps.names), \(note)"
        )
      }
      XCTAssertLessThanOrEqual(steps.moved + steps.written, 2 * request.count.rawValue, note)
      checkRefused(full, failure, forecast, steps, before: before, note: note)
      return nil
    }
  }

  /// Whether a request begins although its best run has pages that are held: they may be released while others are
  /// written.
  private func isBegunForHeldPages(_ forecast: ContiguousForecast) -> Bool {
    forecast.unmovable == .zero && forecast.claimed > .zero && forecast.written > .zero
  }

  /// Checks that a request was refused by its forecast, and before any page was moved or written.
  private func checkRefused(
    _ full: Full, _ failure: ContiguousFailure, _ forecast: ContiguousForecast, _ steps: Steps,
    before: PagingFigures, note: String
  ) {
    let system = full.system
    // Here the held pages are never released, and that is the answer.
    if isBegunForHeldPages(forecast) && steps.isolated.count > 0 {
      XCTAssertEqual(failure.answer, .notNow, note)
      XCTAssertEqual(failure.reason, .held, note)
      XCTAssertTrue(full.held.contains(failure.blocker), note)
      XCTAssertEqual(steps.abandoned, steps.isolated, note)
      XCTAssertLessThanOrEqual(steps.isolated.count, 4, note)
      XCTAssertEqual(system.physical.count(.contiguous), .zero, note)
      system.check(note)
      return
    }
    // Judged by counting: nothing was done.
    XCTAssertEqual(steps.names, [], note)
    XCTAssertEqual(system.paging.figures.moved, before.moved, note)
    XCTAssertEqual(system.paging.figures.written, before.written, note)
    XCTAssertEqual(ContiguousFailure.Answer(forecast.outcome), failure.answer, note)
    if !failure.isRepeated {
      XCTAssertEqual(failure.run, forecast.outcome == .never ? nil : forecast.run, note)
      XCTAssertEqual(failure.missing, forecast.missing, note)
      XCTAssertEqual(failure.blocker, forecast.blocker ?? .none, note)
    }
    if failure.answer == .later || failure.answer == .overBudget {
      XCTAssertGreaterThan(failure.missing, .zero, note)
    }
  }

  private func requests(_ full: Full, _ random: inout SeededRandom) -> [(String, ContiguousRequest)] {
    let window = full.window
    let (low, high) = (UInt64(window.first.rawValue), UInt64(window.end.rawValue))
    var list = [
      ("the window", request(window.count.rawValue, low: low, high: high)),
      ("aligned", request(window.count.rawValue, aligned: window.count.rawValue)),
      ("anywhere", request(window.count.rawValue)),
      ("a half", request(window.count.rawValue / 2 + 7, low: low, high: high)),
      ("larger", request(window.count.rawValue * 3 + 11, low: low / 2)),
      ("small", request(1 + random.below(60), low: low, high: high, aligned: 4)),
    ]
    var restless = request(window.count.rawValue, aligned: 16)
    restless.waitPolicy = .forbidden
    list.append(("nowait", restless))
    var moving = request(window.count.rawValue / 2, low: low, high: high)
    moving.passes = .relocate
    list.append(("moving only", moving))
    var sparing = request(window.count.rawValue / 3, low: low / 2)
    sparing.passes = .launderInactive
    list.append(("inactive only", sparing))
    var poor = request(window.count.rawValue, aligned: 8)
    poor.budget = ContiguousBudget(
      moved: PageCount(random.below(poor.count.rawValue)),
      written: PageCount(random.below(poor.count.rawValue)))
    list.append(("budget", poor))
    for (name, priority) in [("system", .system), ("interrupt", .interrupt)] as [(String, AllocationPriority)]
    {
      var urgent = request(window.count.rawValue / 2, low: low / 2)
      urgent.priority = priority
      list.append((name, urgent))
    }
    return list
  }

  private func run(
    _ shape: Shape, _ seed: UInt64, _ tally: inout (granted: Int, refused: Int, fetched: Int),
    requests limit: Int = .max
  ) throws {
    var random = SeededRandom(seed: seed)
    let full = try Full(shape, &random)
    let note = "STRATA_SEED=\(seed), \(shape)"
    full.system.check(note)
    for (name, wanted) in requests(full, &random).shuffled(limit, using: &random) {
      if let run = check(full, wanted, &tally, "\(name), \(note)") {
        full.system.give(run)
      }
    }
    full.close()
  }

  func testARequestIsRefusedExactlyWhenNoRunCanBePaidFor() throws {
    let first = historySeed(500)
    var random = SeededRandom(seed: first)
    var tally = (granted: 0, refused: 0, fetched: 0)
    for number in 0..<40 as Range<UInt64> {
      let mebibytes: UInt64 = [8, 8, 8, 16, 16, 32][Int(random.below(6))]
      let frames = mebibytes << 8
      let reserve = frames / 128
      let shape = Shape(
        mebibytes: mebibytes, inside: [0, 10, 300, 900, 1000, 1000][Int(random.below(6))],
        elsewhere: [0, 4, reserve, reserve + 20, reserve + 200][Int(random.below(5))],
        swap: [0, 0, 3, 100, 400, frames][Int(random.below(6))], isInOrder: random.oneIn(2),
        clean: [0, 0, 50, 500][Int(random.below(4))], inactive: random.below(2),
        held: [0, 0, 0, 3, 30][Int(random.below(5))], wired: [0, 0, 0, 2][Int(random.below(4))])
      try run(shape, first + number, &tally)
    }
    print("\(tally.granted) granted, \(tally.fetched) with frames from elsewhere, \(tally.refused) refused")
    XCTAssertGreaterThan(tally.granted, 60)
    XCTAssertGreaterThan(tally.refused, 60)
    XCTAssertGreaterThan(tally.fetched, 3)
  }

  /// The same on machines of 64 to 256 MiB, a few requests on each.
  func testLargerMachinesOfEveryShapeGrantEveryPossibleRun() throws {
    let first = historySeed(900)
    var random = SeededRandom(seed: first)
    var tally = (granted: 0, refused: 0, fetched: 0)
    for (number, mebibytes) in [64, 128, 256].enumerated() as EnumeratedSequence<[UInt64]> {
      let frames = mebibytes << 8
      let shape = Shape(
        mebibytes: mebibytes, inside: [300, 1000][Int(random.below(2))],
        elsewhere: [4, frames / 128 + 20][Int(random.below(2))],
        swap: [0, 100, 400, frames][Int(random.below(4))], isInOrder: random.oneIn(2),
        clean: [0, 50][Int(random.below(2))], held: [0, 3][Int(random.below(2))],
        wired: [0, 2][Int(random.below(2))])
      try run(shape, first + UInt64(number), &tally, requests: 4)
    }
    print("\(tally.granted) granted, \(tally.fetched) with frames from elsewhere, \(tally.refused) refused")
  }

  /// Two machines of 128 MiB with four free frames: one has swap for every page, the other none.
  func testALargeMachineGrantsAndRefusesAsItsSwapSays() throws {
    for (swap, isGranted) in [(32_768, true), (0, false)] as [(UInt64, Bool)] {
      var random = SeededRandom(seed: historySeed(910))
      let shape = Shape(mebibytes: 128, inside: 0, elsewhere: 4, swap: swap, isInOrder: true)
      let full = try Full(shape, &random)
      var tally = (granted: 0, refused: 0, fetched: 0)
      let wanted = request(
        512, low: UInt64(full.window.first.rawValue), high: UInt64(full.window.end.rawValue))
      if let run = check(full, wanted, &tally, "\(shape)") { full.system.give(run) }
      XCTAssertEqual(tally.granted, isGranted ? 1 : 0)
      full.close()
    }
  }

  /// Fewer frames are free than the reserve, and nothing can be written: a run of clean pages takes no frame, while
  /// every other run lacks some.
  func testARunThatTakesNoFrameIsFoundBelowTheReserve() throws {
    var random = SeededRandom(seed: historySeed(920))
    let shape = Shape(mebibytes: 16, inside: 0, elsewhere: 0, swap: 0, isInOrder: true, clean: 1000)
    let full = try Full(shape, &random)
    try full.dirty { !(600..<608).contains($0) && !($0 >= 1536 && $0 % 64 == 5) }
    var tally = (granted: 0, refused: 0, fetched: 0)
    if let run = check(full, request(8), &tally, "\(shape)") { full.system.give(run) }
    XCTAssertEqual(tally.granted, 1)
    full.close()
  }

  /// A request of a higher priority captures frames that a move must leave: one run may lack frames and another not.
  func testARunThatTakesNoFrameIsFoundAtAHigherPriority() throws {
    var random = SeededRandom(seed: historySeed(930))
    let shape = Shape(mebibytes: 16, inside: 0, elsewhere: 96, swap: 0, isInOrder: true, clean: 1000)
    let full = try Full(shape, &random)
    try full.dirty { !(600..<608).contains($0) && !($0 >= 1536 && $0 % 512 == 5) }
    var tally = (granted: 0, refused: 0, fetched: 0)
    var wanted = request(8, high: 3500)
    wanted.priority = .system
    if let run = check(full, wanted, &tally, "\(shape)") { full.system.give(run) }
    XCTAssertEqual(tally.granted, 1)
    full.close()
  }

  /// A long run that only moving empties takes as many pages elsewhere as it has.
  func testAsManyPagesElsewhereAreCountedAsARunTakes() throws {
    var random = SeededRandom(seed: historySeed(950))
    let shape = Shape(mebibytes: 32, inside: 0, elsewhere: 4, swap: 0, isInOrder: true, clean: 1000)
    let full = try Full(shape, &random)
    let wanted = request(2048, low: 4096, high: 6144)
    try full.dirty { (4096..<6144).contains($0) }
    XCTAssertGreaterThan(full.system.contiguous.forecast(wanted).fetched.rawValue, 2000)
    var tally = (granted: 0, refused: 0, fetched: 0)
    if let run = check(full, wanted, &tally, "\(shape)") { full.system.give(run) }
    XCTAssertEqual(tally.fetched, 1)
    full.close()
  }

  /// Another processor allocates each frame as soon as the page daemon has freed it: the writes stay bounded.
  func testFramesThatAnotherProcessorTakesAreFetchedOnce() throws {
    var random = SeededRandom(seed: historySeed(700))
    let shape = Shape(mebibytes: 8, inside: 1000, elsewhere: 4, swap: 4096, isInOrder: true)
    let full = try Full(shape, &random)
    let system = full.system
    let wanted = request(
      full.window.count.rawValue, low: UInt64(full.window.first.rawValue),
      high: UInt64(full.window.end.rawValue))
    let forecast = system.contiguous.forecast(wanted)
    XCTAssertGreaterThan(forecast.fetched, .zero)
    // Capturing uses free frames too: the lowest number of free frames is left.
    var lowest = system.physical.freeCount.rawValue
    var taken: [FrameNumber] = []
    let before = system.paging.figures.written
    system.host.withInterrupts(
      seed: 0, oneIn: 1,
      handler: {
        lowest = min(lowest, system.physical.freeCount.rawValue)
        taken += system.takeAll(leaving: lowest)
      }, { _ = refusal(system.ask(wanted)) })
    let written = system.paging.figures.written - before
    XCTAssertGreaterThan(written, 0)
    XCTAssertLessThanOrEqual(written, 2 * wanted.count.rawValue + forecast.fetched.rawValue)
    system.giveBack(taken)
    full.close()
  }

  /// Clean pages elsewhere pay for the reserve without a write, for a caller that allows none as well.
  func testCleanPagesElsewherePayForTheReserve() throws {
    var random = SeededRandom(seed: historySeed(800))
    let shape = Shape(mebibytes: 8, inside: 1000, elsewhere: 0, swap: 4096, isInOrder: true, clean: 900)
    let full = try Full(shape, &random)
    for limit in [0, 1, UInt64.max] {
      var wanted = request(
        8, low: UInt64(full.window.first.rawValue), high: UInt64(full.window.end.rawValue))
      wanted.budget.written = PageCount(limit)
      let before = full.system.paging.figures.written
      switch full.system.ask(wanted) {
      case .success(let run): full.system.give(run)
      case .failure(let failure):
        XCTFail("\(failure.description), \(failure.missing) missing, limit \(limit)")
      }
      XCTAssertLessThanOrEqual(full.system.paging.figures.written - before, limit)
    }
    full.close()
  }

  /// The machines of the reports: one object filled in order, swap as large as memory.
  func testLargerMachinesFilledInOrderGrantWhatTheyHave() throws {
    let seed = historySeed(600)
    var tally = (granted: 0, refused: 0, fetched: 0)
    for (mebibytes, inside) in [(8, 1000), (20, 700), (64, 1000), (256, 300)] as [(UInt64, UInt64)] {
      var random = SeededRandom(seed: seed)
      let shape = Shape(
        mebibytes: mebibytes, inside: inside, elsewhere: 3, swap: mebibytes << 8, isInOrder: true)
      let full = try Full(shape, &random)
      for turn in 0..<2 {
        let wanted = request(full.window.count.rawValue, aligned: full.window.count.rawValue)
        let note = "\(mebibytes) MiB, turn \(turn)"
        let run = try XCTUnwrap(check(full, wanted, &tally, note), note)
        if turn == 1 { full.system.give(run) }
      }
      full.close()
    }
  }
}

extension Array {
  /// All in their order, or `limit` of them in any.
  fileprivate func shuffled(_ limit: Int, using random: inout SeededRandom) -> Self {
    limit >= count ? self : Self(shuffled(using: &random).prefix(limit))
  }
}
