import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Vmem

/// Random histories against a model, and each allocation point made to fail.
final class VmemHistoryTests: XCTestCase {
  struct Segment {
    var address: UInt64
    var size: UInt64
    var arena: Int
  }

  static func wish(_ random: inout SeededRandom, quantum: UInt64, spans: [ClosedRange<UInt64>], size: UInt64)
    -> ArenaConstraints
  {
    var wish = ArenaConstraints()
    if random.oneIn(2) { wish.alignment = Alignment(quantum << random.below(8))! }
    if random.oneIn(3) {
      wish.phase = ArenaSize(random.below(wish.alignment.rawValue / quantum + 1) * quantum)
    }
    if random.oneIn(3) { wish.nocross = Alignment(quantum << random.below(9)) }
    if random.oneIn(2), let span = spans.randomElement(using: &random) {
      let length = span.upperBound - span.lowerBound
      let at = { (n: UInt64) in span.lowerBound + (length == .max ? n : n % (length + 1)) }
      // Near an end as often as anywhere.
      let low = random.oneIn(3) ? span.lowerBound : at(random.next())
      wish.minimum = ArenaAddress(low)
      if random.oneIn(2) {
        let width = random.oneIn(2) ? size : size &+ random.below(300)
        let (high, over) = low.addingReportingOverflow(width &- (random.oneIn(4) ? 2 : 1))
        wish.maximum = over ? .highest : ArenaAddress(high)
      }
    }
    return wish
  }

  /// The typed error that vmem(9) asks for, for a request.
  static func isPossible(_ size: UInt64, _ wish: ArenaConstraints, quantum: UInt64) -> Bool {
    let alignment = max(wish.alignment.rawValue, quantum)
    let rounded = (size + quantum - 1) / quantum * quantum
    guard size > 0, wish.phase.rawValue < alignment, wish.phase.rawValue % quantum == 0 else { return false }
    guard wish.minimum <= wish.maximum else { return false }
    guard let nocross = wish.nocross else { return true }
    return nocross.rawValue >= quantum && wish.phase.rawValue % nocross.rawValue + rounded <= nocross.rawValue
  }

  func run(
    _ number: UInt64, steps: Int, quantum: UInt64, spans: [ClosedRange<UInt64>], most: Int, sizes: UInt64,
    policy: FitPolicy, checkEach: Int = 1
  ) throws {
    let bench = VmemFixture()
    let arena = bench.arena(quantum: quantum)
    var model = ArenaModel()
    var random = SeededRandom(seed: number)
    var later = spans
    try arena.add(later.removeFirst())
    model.spans = [spans[0]]
    for step in 0..<steps {
      if !later.isEmpty, random.oneIn(10) {
        try arena.add(later[0])
        model.spans.append(later.removeFirst())
      }
      if model.busy.count < most, random.below(100) < 54 {
        let size = 1 + random.below(sizes)
        let wish =
          random.oneIn(2)
          ? ArenaConstraints() : Self.wish(&random, quantum: quantum, spans: model.spans, size: size)
        let isPossible = Self.isPossible(size, wish, quantum: quantum)
        let expected = isPossible && model.canSatisfy(size, wish, quantum: quantum)
        do throws(VmemError) {
          let place = try arena.xalloc(ArenaSize(size), wish, policy: policy).rawValue
          let rounded = (size + quantum - 1) / quantum * quantum
          let range = place...(place + (rounded - 1))
          XCTAssertTrue(model.free.contains { $0.lowerBound <= place && range.upperBound <= $0.upperBound })
          XCTAssertTrue(isPossible && ArenaModel.satisfies(UInt128(place), UInt128(rounded), wish))
          XCTAssertTrue(expected, "seed \(number) step \(step): the model knows no place for \(size) \(wish)")
          model.insert(range)
        } catch {
          XCTAssertEqual(error, isPossible ? .noSpace : .badConstraint, "seed \(number) step \(step)")
          XCTAssertFalse(expected, "seed \(number) step \(step): there is a place for \(size) \(wish)")
        }
      } else if let index = model.busy.indices.randomElement(using: &random) {
        let range = model.busy.remove(at: index)
        arena.free(range.lowerBound, range.upperBound - range.lowerBound + 1)
      }
      if step % checkEach == 0 {
        func same(_ size: ArenaSize, _ expected: UInt128) -> Bool {
          size == (expected > UInt128(UInt64.max) ? .everything : ArenaSize(UInt64(expected)))
        }
        XCTAssertTrue(same(arena.size(.allocated), model.allocated), "seed \(number) step \(step)")
        XCTAssertTrue(same(arena.size(.free), model.total - model.allocated), "seed \(number) step \(step)")
        XCTAssertTrue(same(arena.size(.total), model.total), "seed \(number) step \(step)")
        XCTAssertTrue(same(arena.size(.largestFree), model.largest), "seed \(number) step \(step)")
        let busy = arena.segments().filter { $0.kind == .busy }
        XCTAssertEqual(
          busy.map(\.first.rawValue).sorted(), model.busy.map(\.lowerBound), "seed \(number) step \(step)")
        if let broken = bench.tags.checkInvariants() { XCTFail("\(broken): seed \(number) step \(step)") }
      }
      if testRun?.failureCount ?? 0 > 0 { return }
    }
    for range in model.busy { arena.free(range.lowerBound, range.upperBound - range.lowerBound + 1) }
    arena.destroy()
    bench.check()
    XCTAssertEqual(bench.tags.figures.free, bench.tags.figures.total)
  }

  let top = UInt64.max

  func testNetBSDsRandomTestPasses() throws {
    let spans: [ClosedRange<UInt64>] = [
      0...49, 100...299, 2000...2000, 40000...105_535, 10000...19999, 500...1499, (top - 49)...top,
    ]
    for policy in [FitPolicy.instantFit, .bestFit] {
      try run(historySeed(1), steps: 1500, quantum: 1, spans: spans, most: 60, sizes: 500, policy: policy)
    }
  }

  func testRandomHistoriesOfSmallArenasAgreeWithAModel() throws {
    for round in 0..<40 {
      let policy: FitPolicy = round % 2 == 0 ? .instantFit : .bestFit
      let quantum = UInt64(1) << UInt64(round % 5)
      let spans = [0...63, 100...399, 512...519, 1000...1999].map { (span: ClosedRange<UInt64>) in
        (span.lowerBound * quantum)...((span.upperBound + 1) * quantum - 1)
      }
      try run(
        historySeed(100) &+ UInt64(round), steps: 300, quantum: quantum, spans: spans, most: 60,
        sizes: 60 * quantum,
        policy: policy)
    }
  }

  func testRandomHistoriesOfTheFullRangeAgreeWithAModel() throws {
    for (round, quantum) in ([1, 4096] as [UInt64]).enumerated() {
      try run(
        historySeed(200) &+ UInt64(round), steps: 1000, quantum: quantum, spans: [0...top], most: 60,
        sizes: top >> 4,
        policy: .instantFit)
      try run(
        historySeed(300) &+ UInt64(round), steps: 1000, quantum: quantum, spans: [0...top], most: 60,
        sizes: 5000,
        policy: .bestFit)
    }
  }

  func testRandomHistoriesOfALargeArenaAgreeWithAModel() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    try arena.add(0...(1 << 40))
    var random = SeededRandom(seed: historySeed(5))
    var live: [Segment] = []
    for step in 0..<200_000 {
      if live.isEmpty || (live.count < 10_000 ? !random.oneIn(3) : random.oneIn(3)) {
        let size = 1 + random.below(random.oneIn(10) ? 10_000 : 100)
        live.append(Segment(address: arena.alloc(size)!, size: size, arena: 0))
      } else {
        live.swapAt(Int(random.below(UInt64(live.count))), live.count - 1)
        let segment = live.removeLast()
        arena.free(segment.address, segment.size)
      }
      if step % 1000 == 0 { bench.check() }
    }
    for segment in live { arena.free(segment.address, segment.size) }
    bench.check()
  }

  /// A stack as the kernel has it, with everything that can be seen compared with a model of the whole.
  func testRandomHistoriesOfAStackOfImportsAgreeWithAModel() throws {
    let bench = VmemFixture()
    let root = bench.arena("root", quantum: 16)
    try root.add(0x1000...0x8fff)
    let heap = bench.arena("heap", quantum: 16, source: .arena(root), importUnit: 0x400)
    let small = bench.arena("small", quantum: 16, source: .arena(heap))
    let other = bench.arena("other", quantum: 16, source: .arena(root), importUnit: 0x100)
    let arenas = [root, heap, small, other]
    let number = historySeed(7)
    var random = SeededRandom(seed: number)
    var live: [Segment] = []
    for step in 0..<6000 {
      if live.count < 50, !random.oneIn(2) {
        let which = Int(random.below(4))
        let size = 1 + random.below(0x600)
        let wish = Self.wish(&random, quantum: 16, spans: [0x1000...0x8fff], size: size)
        let policy: FitPolicy = random.oneIn(2) ? .instantFit : .bestFit
        let rounded = (size + 15) / 16 * 16
        // Free in the arena, or in any below it.
        var chain = [which]
        if which == 2 { chain += [1, 0] } else if which != 0 { chain += [0] }
        let isPossible = Self.isPossible(size, wish, quantum: 16)
        var adjusted = wish
        if adjusted.alignment.rawValue < 16 { adjusted.alignment = Alignment(16)! }
        let expected =
          isPossible
          && chain.contains { index in
            arenas[index].segments().contains {
              $0.kind == .free
                && ArenaModel.fits($0.first.rawValue...$0.last.rawValue, UInt128(rounded), adjusted)
            }
          }
        do throws(VmemError) {
          let place = try arenas[which].xalloc(ArenaSize(size), wish, policy: policy).rawValue
          XCTAssertTrue(expected, "seed \(number) step \(step)")
          XCTAssertTrue(ArenaModel.satisfies(UInt128(place), UInt128(rounded), wish))
          for segment in live {
            XCTAssertTrue(
              segment.address + (segment.size + 15) / 16 * 16 <= place || place + rounded <= segment.address)
          }
          live.append(Segment(address: place, size: size, arena: which))
        } catch {
          XCTAssertFalse(expected, "seed \(number) step \(step): \(size) \(wish)")
        }
      } else if let index = live.indices.randomElement(using: &random) {
        let segment = live.remove(at: index)
        arenas[segment.arena].free(segment.address, segment.size)
      }
      bench.check()
      if testRun?.failureCount ?? 0 > 0 { return }
    }
    for segment in live { arenas[segment.arena].free(segment.address, segment.size) }
    bench.check()
    XCTAssertEqual(root.size(.allocated), .zero)
    for arena in arenas.reversed() { arena.destroy() }
    bench.check()
  }

  func testEachAllocationPointFailsInTurn() throws {
    let bench = VmemFixture()
    let root = bench.arena("root")
    try root.add(0...99_999)
    let heap = bench.arena("heap", source: .arena(root), importUnit: 64)
    let failures = bench.host.failures
    let before = failures.pointee.reached[Int(FailurePoint.vmem.rawValue)]
    var live: [(Arena, UInt64, UInt64)] = []
    var failed = 0
    func drive(_ arena: Arena, _ body: () throws(VmemError) -> (UInt64, UInt64)?) {
      for point in Int64(0)..<40 {
        let state = bench.snapshot()
        failures.pointee.hasFailed = false
        failures.pointee.countdown = point
        do throws(VmemError) {
          let segment = try body()
          failures.pointee.countdown = -1
          if let segment {
            live.append((arena, segment.0, segment.1))
          }
          bench.check()
          // Passed without the failure: all points were tried. With it: it was a harmless one.
          if !failures.pointee.hasFailed { return }
        } catch {
          failures.pointee.countdown = -1
          XCTAssertTrue(failures.pointee.hasFailed)
          XCTAssertTrue(error == .noTags || error == .noSpace)
          XCTAssertEqual(bench.snapshot(), state)
          bench.check()
          failed += 1
        }
      }
      XCTFail("an operation with more than 40 allocation points")
    }
    var start: UInt64 = 1_000_000
    for round in 0..<300 {
      // The state stays small, and tags come and go.
      if round % 20 == 19 {
        while live.count > 10 {
          let (arena, address, size) = live.removeFirst()
          arena.free(address, size)
        }
      }
      drive(root) { () throws(VmemError) in
        (try root.alloc(ArenaSize(3), policy: round % 2 == 0 ? .instantFit : .bestFit).rawValue, 3)
      }
      drive(heap) { () throws(VmemError) in (try heap.alloc(ArenaSize(50)).rawValue, 50) }
      drive(heap) { () throws(VmemError) in
        let wish = ArenaConstraints(alignment: Alignment(32)!, nocross: Alignment(64)!)
        return (try heap.xalloc(ArenaSize(20), wish, policy: .bestFit).rawValue, 20)
      }
      drive(root) { () throws(VmemError) in
        try root.add(ArenaAddress(start), ArenaSize(1))
        start += 10
        return nil
      }
    }
    XCTAssertGreaterThan(failed, 1000)
    failures.pointee.countdown = 0
    for (arena, address, size) in live { arena.free(address, size) }
    failures.pointee.countdown = -1
    bench.check()
    XCTAssertEqual(heap.size(.total), .zero)
    let reached = failures.pointee.reached[Int(FailurePoint.vmem.rawValue)] - before
    print("vmem: \(reached) allocation points reached, \(failed) operations failed")
  }

  func testAMillionSegmentsCostNoMoreThanAHundred() throws {
    var random = SeededRandom(seed: historySeed(9))
    func visits(_ segments: Int, rounds: Int) throws -> Double {
      var sum: UInt64 = 0
      for _ in 0..<rounds {
        let bench = VmemFixture()
        let arena = bench.arena(quantum: 4096)
        try arena.add((random.below(1 << 40) * 4096)...UInt64.max)
        var live = (0..<segments).map { _ in arena.alloc(4096)! }
        func pairs(_ count: Int) {
          for _ in 0..<count {
            let index = Int(random.below(UInt64(segments)))
            arena.free(live[index], 4096)
            live[index] = arena.alloc(4096)!
          }
        }
        pairs(1000)
        bench.check()
        let before = arena.figures.visited
        pairs(20_000 / rounds)
        sum += arena.figures.visited - before
      }
      return Double(sum) / Double(20_000 / rounds * rounds)
    }
    let (few, many) = (try visits(100, rounds: 20), try visits(1_000_000, rounds: 1))
    print("vmem: \(few) lists and tags visited a pair with 100 segments, \(many) with 1,000,000")
    XCTAssertLessThan(many, few * 1.1)
  }
}
