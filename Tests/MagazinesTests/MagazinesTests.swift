import CPlatform
import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Magazines

/// A depot with its slots and magazines in ordinary memory.
final class MagazinesFixture {
  let host: SimulatedMachine
  let magazines: MagazineSet
  private var blocks: [UnsafeMutableRawPointer] = []

  init(
    processors: Int = 1, rounds: Int = 4, capacity: ClosedRange<Int>? = nil, fullLimit: Int = 3,
    given: Int = 0
  ) {
    host = SimulatedMachine(memory: .mebibytes(1), processors: processors)
    let depot = UnsafeMutableRawPointer.allocate(byteCount: Int(MagazineSet.size.rawValue), alignment: 64)
    let slots = UnsafeMutableRawPointer.allocate(
      byteCount: Int(MagazineSet.slotsSize(processors: processors).rawValue), alignment: 64)
    blocks = [depot, slots]
    magazines = MagazineSet.create(
      in: depot, slots: slots, rounds: rounds, capacity: capacity ?? rounds...rounds, fullLimit: fullLimit,
      machine: host.machine)
    for _ in 0..<given { addMagazine() }
  }

  func addMagazine() {
    let block = UnsafeMutableRawPointer.allocate(
      byteCount: Int(MagazineSet.magazineSize(rounds: magazines.rounds).rawValue), alignment: 64)
    blocks.append(block)
    magazines.add(block)
  }

  deinit { for block in blocks { block.deallocate() } }

  func held() -> [UInt] {
    var words: [UInt] = []
    magazines.forEachWord { word, _ in words.append(word) }
    return words.sorted()
  }
}

final class MagazinesTests: XCTestCase {
  func testASlotIsOneCacheLine() {
    XCTAssertEqual(MemoryLayout<MagazineSlot>.stride, 64)
    XCTAssertEqual(MagazineSet.magazineSize(rounds: 63).rawValue, 512)
  }

  func testAMagazineThatItsOwnerRejectsGoesToTheOwner() throws {
    let bench = MagazinesFixture(given: 6)
    for word in UInt(1)...16 { XCTAssertEqual(bench.magazines.push(word), .pushed) }
    XCTAssertEqual(bench.magazines.stockedCount, 2)
    for _ in 0..<8 { XCTAssertNotNil(bench.magazines.pop()) }
    let held = bench.held()
    var seen: [[UInt]] = []
    let outcome = bench.magazines.popSlow(unlessRejected: {
      seen.append(Array(UnsafeBufferPointer(start: $0, count: $1)))
      return false
    })
    guard case .rejected(let magazine, rounds: 4) = outcome else { return XCTFail("\(outcome)") }
    let rejected = (0..<4).map { magazine[$0] }
    XCTAssertEqual(seen, [rejected])
    bench.magazines.returnEmpty(magazine)
    XCTAssertNil(bench.magazines.checkInvariants())
    XCTAssertEqual(bench.held(), held.filter { !rejected.contains($0) })
    guard case .word(let word) = bench.magazines.popSlow(unlessRejected: { _, _ in true }) else {
      return XCTFail("the other magazine is left")
    }
    XCTAssertFalse(rejected.contains(word))
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testAPartlyFilledMagazineWhoseNumberOfRoundsIsOverwrittenGivesNoWordTwice() {
    for wrong: UInt in [0, 1, 2, 3, 4, .max, 1 << 40] {
      let bench = MagazinesFixture()
      let block = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
      defer { block.deallocate() }
      bench.magazines.add(block)
      for word in UInt(1)...3 { XCTAssertEqual(bench.magazines.push(word), .pushed) }
      let words = block.assumingMemoryBound(to: UInt.self) + 1
      bench.magazines.unload()
      XCTAssertEqual(bench.held(), [1, 2, 3])
      words[3] = wrong
      XCTAssertEqual(bench.held(), [])
      var handed: [UInt] = []
      bench.magazines.drainDepot { handed.append($0) }
      XCTAssertEqual(handed, [UInt(bitPattern: words + 3)], "only what its owner is to report")
      XCTAssertNil(bench.magazines.checkInvariants())
    }
  }

  func testWithoutMagazinesEveryPushIsRefusedAndEveryPopEmpty() {
    let bench = MagazinesFixture()
    XCTAssertNil(bench.magazines.pop())
    XCTAssertEqual(bench.magazines.push(7), .noMagazine)
    XCTAssertEqual(bench.magazines.wordCount, 0)
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testWordsComeBackLastInFirstOut() {
    let bench = MagazinesFixture(given: 3)
    for word in 1...9 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    XCTAssertNil(bench.magazines.checkInvariants())
    XCTAssertEqual(bench.magazines.pop(), 9)
    // The previous one is full, the depot's is the oldest: 5 to 8, then 1 to 4.
    XCTAssertEqual((0..<8).map { _ in bench.magazines.pop()! }, [8, 7, 6, 5, 4, 3, 2, 1])
    XCTAssertNil(bench.magazines.pop())
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testZeroIsAWordLikeAnyOther() {
    let bench = MagazinesFixture(given: 1)
    XCTAssertEqual(bench.magazines.push(0), .pushed)
    XCTAssertEqual(bench.magazines.pop(), 0)
    XCTAssertNil(bench.magazines.pop())
  }

  func testAlternatingAtTheEdgeOfAMagazineDoesNotReachTheDepot() {
    let bench = MagazinesFixture(given: 4)
    for word in 1...6 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    let before = bench.magazines.exchanges
    for _ in 0..<100 {
      for _ in 0..<4 { XCTAssertNotNil(bench.magazines.pop()) }
      for word in 0..<4 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    }
    XCTAssertEqual(bench.magazines.exchanges, before)
  }

  func testADepotThatKeepsEnoughRefusesAndASpillMakesSpace() {
    let bench = MagazinesFixture(rounds: 4, fullLimit: 1, given: 5)
    for word in 0..<12 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    XCTAssertEqual(bench.magazines.push(12), .full)
    var words = [UInt](repeating: 0, count: 4)
    let spilled = words.withUnsafeMutableBufferPointer { bench.magazines.spill(into: $0.baseAddress!) }
    XCTAssertEqual(spilled, 4)
    XCTAssertEqual(words, [4, 5, 6, 7])
    XCTAssertEqual(bench.magazines.push(12), .pushed)
    XCTAssertNil(bench.magazines.checkInvariants())
    XCTAssertEqual(bench.held(), [0, 1, 2, 3, 8, 9, 10, 11, 12])
  }

  func testRefillTakesHalfAMagazineFromTheSupply() {
    let bench = MagazinesFixture(rounds: 7, given: 1)
    var next: UInt = 100
    let outcome = bench.magazines.refill { words, most in
      for i in 0..<most {
        words[i] = next
        next += 1
      }
      return most
    }
    guard case .word(103) = outcome else { return XCTFail("\(outcome)") }
    XCTAssertEqual(bench.held(), [100, 101, 102])
    guard
      case .word(102) = bench.magazines.refill({ _, _ in
        XCTFail("not needed"); return 0
      })
    else {
      return XCTFail()
    }
    XCTAssertEqual(bench.magazines.refills, 1)
  }

  func testARefillWithoutSupplyOrMagazineSaysSo() {
    let bench = MagazinesFixture()
    guard case .noMagazine = bench.magazines.refill({ _, _ in 0 }) else { return XCTFail() }
    bench.addMagazine()
    guard case .empty = bench.magazines.refill({ _, _ in 0 }) else { return XCTFail() }
    bench.magazines.switchOff { _ in XCTFail() }
    guard case .off = bench.magazines.refill({ _, _ in 0 }) else { return XCTFail() }
  }

  private func trim(_ bench: MagazinesFixture) -> (words: [UInt], spare: Int) {
    var words: [UInt] = []
    let spare = bench.magazines.trim { words.append($0) }.spare
    XCTAssertNil(bench.magazines.checkInvariants())
    return (words.sorted(), spare)
  }

  func testATrimRemovesTheMagazinesThatTheDepotNeverNeeded() {
    let bench = MagazinesFixture(rounds: 4, fullLimit: 4, given: 6)
    for word in 0..<16 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    XCTAssertEqual(bench.magazines.stockedCount, 2)
    // Until the first trim it is unknown which magazines are needed.
    var (words, spare) = trim(bench)
    XCTAssertEqual(words, [])
    XCTAssertEqual(spare, 0)
    // One full magazine and none of the empty ones is needed between the two trims.
    for _ in 0..<12 { XCTAssertNotNil(bench.magazines.pop()) }
    for word in 4..<16 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    (words, spare) = trim(bench)
    XCTAssertEqual(words, [4, 5, 6, 7])
    XCTAssertEqual(spare, 3)
    // Nothing at all: the other one goes.
    (words, spare) = trim(bench)
    XCTAssertEqual(words, [0, 1, 2, 3])
    XCTAssertEqual(spare, 4)
    for _ in 0..<4 { XCTAssertNotNil(bench.magazines.removeEmpty()) }
    XCTAssertNil(bench.magazines.removeEmpty())
    (words, spare) = trim(bench)
    XCTAssertEqual(words, [])
    XCTAssertEqual(spare, 0)
    XCTAssertEqual(bench.held(), [8, 9, 10, 11, 12, 13, 14, 15])
  }

  func testATrimRemovesThePartsThatADrainedProcessorLeft() {
    let bench = MagazinesFixture(processors: 2, given: 4)
    bench.host.runAs(processor: 1) {
      for word in 0..<6 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    }
    var drained: [UInt] = []
    bench.magazines.drain { word in
      drained.append(word)
      // The last one stays in part: another processor pushes a word during the drain.
      if drained.count == 1 {
        bench.host.runAs(processor: 1) { XCTAssertEqual(bench.magazines.push(99), .pushed) }
      }
    }
    XCTAssertEqual(bench.held(), [99])
    XCTAssertEqual(trim(bench).words, [])
    XCTAssertEqual(bench.held(), [99])
  }

  func testTheCapacityFollowsTheWorkingSet() {
    let bench = MagazinesFixture(rounds: 31, capacity: 2...20, fullLimit: 4, given: 8)
    for word in 0..<4 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    XCTAssertEqual(bench.magazines.capacity, 2, "two magazines hold four words")
    XCTAssertEqual(bench.magazines.push(4), .pushed)
    XCTAssertEqual(bench.magazines.capacity, 4)
    XCTAssertEqual(bench.magazines.exchanges, 2)
    for _ in 0..<5 { XCTAssertNotNil(bench.magazines.pop()) }
    // A working set of forty words: the capacity rises until two magazines hold it.
    for _ in 0..<20 {
      for word in 0..<40 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
      for _ in 0..<40 { XCTAssertNotNil(bench.magazines.pop()) }
      XCTAssertNil(bench.magazines.checkInvariants())
    }
    XCTAssertEqual(bench.magazines.capacity, 20)
    let exchanges = bench.magazines.exchanges
    for _ in 0..<20 {
      for word in 0..<35 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
      for _ in 0..<35 { XCTAssertNotNil(bench.magazines.pop()) }
    }
    XCTAssertEqual(bench.magazines.exchanges, exchanges, "two magazines are enough")
    // The first trim sees the exchanges before it, each later one sees none.
    var capacities: [Int] = []
    for _ in 0..<6 {
      _ = trim(bench)
      capacities.append(bench.magazines.capacity)
    }
    XCTAssertEqual(capacities, [20, 10, 5, 2, 2, 2])
    // A magazine that has more than that is emptied as before.
    for word in 0..<20 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    for word in (0..<20).reversed() { XCTAssertEqual(bench.magazines.pop(), UInt(word)) }
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testAMagazineThatIsNotFullServesAnotherProcessor() {
    let bench = MagazinesFixture(processors: 2, rounds: 7, capacity: 3...7, given: 4)
    bench.host.runAs(processor: 1) {
      for word in 0..<5 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
      bench.magazines.unload()
    }
    XCTAssertEqual(bench.magazines.stockedCount, 2)
    XCTAssertEqual(Set((0..<5).compactMap { _ in bench.magazines.pop() }), [0, 1, 2, 3, 4])
    XCTAssertNil(bench.magazines.pop())
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testDrainReachesEveryProcessorAndTheDepot() {
    let bench = MagazinesFixture(processors: 3, given: 12)
    for processor in 0..<3 {
      bench.host.runAs(processor: processor) {
        for word in 0..<10 { XCTAssertEqual(bench.magazines.push(UInt(processor * 100 + word)), .pushed) }
      }
    }
    XCTAssertEqual(bench.magazines.wordCount, 30)
    var drained: [UInt] = []
    bench.magazines.drain { drained.append($0) }
    XCTAssertEqual(drained.sorted(), [0, 100, 200].flatMap { base in (0..<10).map { UInt(base + $0) } })
    XCTAssertEqual(bench.magazines.wordCount, 0)
    XCTAssertEqual(bench.magazines.emptyCount, 12)
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testSwitchedOffMagazinesHoldNothingAndComeBack() {
    let bench = MagazinesFixture(given: 3)
    for word in 0..<6 { _ = bench.magazines.push(UInt(word)) }
    var drained = 0
    bench.magazines.switchOff { _ in drained += 1 }
    XCTAssertEqual(drained, 6)
    XCTAssertEqual(bench.magazines.push(1), .off)
    XCTAssertNil(bench.magazines.pop())
    XCTAssertNil(bench.magazines.checkInvariants())
    bench.magazines.switchOn()
    XCTAssertEqual(bench.magazines.push(1), .pushed)
    XCTAssertEqual(bench.magazines.pop(), 1)
  }

  func testNoProcessorGetsAMagazineWhileMagazinesAreSwitchedOff() {
    let bench = MagazinesFixture(rounds: 2, fullLimit: 10, given: 10)
    for word in 1...16 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    var words: [UInt] = []
    // The interrupt comes between one magazine of the depot and the next.
    bench.host.withInterrupts(
      seed: 1, oneIn: 1, handler: { if let word = bench.magazines.pop() { words.append(word) } }
    ) {
      bench.magazines.switchOff { words.append($0) }
    }
    XCTAssertNil(bench.magazines.checkInvariants())
    XCTAssertEqual(words.sorted(), Array(1...16))
  }

  func testASpillOfNothingIsNotCounted() {
    let bench = MagazinesFixture(given: 1)
    var words = [UInt](repeating: 0, count: 4)
    words.withUnsafeMutableBufferPointer { XCTAssertEqual(bench.magazines.spill(into: $0.baseAddress!), 0) }
    XCTAssertEqual(bench.magazines.spills, 0)
  }

  func testEachWordIsFoundWhereItLies() {
    let bench = MagazinesFixture(processors: 2, rounds: 4, fullLimit: 5, given: 8)
    bench.host.runAs(processor: 1) { for word in 1...18 { _ = bench.magazines.push(UInt(word)) } }
    for word: UInt in 1...12 { XCTAssertEqual(bench.magazines.location(of: word), .depot, "\(word)") }
    for word: UInt in 13...18 {
      XCTAssertEqual(bench.magazines.location(of: word), .processor(ProcessorIndex(1)), "\(word)")
    }
    XCTAssertNil(bench.magazines.location(of: 19))
    // While it is drained, the partly filled magazine of the processor lies in the depot, to be emptied last.
    var seen = 0
    bench.magazines.drain { word in
      if word != 18 && seen < 16 { XCTAssertEqual(bench.magazines.location(of: 18), .depot) }
      seen += 1
    }
    XCTAssertEqual(seen, 18)
    XCTAssertNil(bench.magazines.location(of: 18))
  }

  func testAWordIsLookedForWhileMagazinesComeAndGo() {
    let bench = MagazinesFixture(processors: 2, rounds: 4, fullLimit: 5, given: 8)
    nonisolated(unsafe) let magazines = bench.magazines
    bench.host.onThreads(2) { me in
      for turn in 0..<3000 {
        if me == 0 {
          XCTAssertNil(magazines.location(of: 1000))
        } else if turn % 100 == 99 {
          magazines.drain { _ in }
          if let magazine = magazines.removeEmpty() { magazines.add(magazine) }
        } else {
          _ = turn % 50 < 30 ? magazines.push(UInt(turn % 50)) == .pushed : magazines.pop() != nil
        }
      }
    }
    XCTAssertNil(magazines.checkInvariants())
  }

  func testMagazinesAreReturnedToTheirSupplier() {
    let bench = MagazinesFixture(given: 2)
    _ = bench.magazines.push(1)
    XCTAssertNotNil(bench.magazines.removeEmpty())
    XCTAssertNil(bench.magazines.removeEmpty(), "the other one is loaded")
    XCTAssertEqual(bench.magazines.magazineCount, 1)
    bench.magazines.drain { _ in }
    XCTAssertNotNil(bench.magazines.removeEmpty())
    XCTAssertEqual(bench.magazines.magazineCount, 0)
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testAFailedMagazineLeavesEverythingAsItWas() {
    let bench = MagazinesFixture(given: 4)
    for word in 0..<8 { _ = bench.magazines.push(UInt(word)) }
    let before = bench.held()
    bench.host.failures.pointee.countdown = 0
    XCTAssertEqual(bench.magazines.push(8), .noMagazine)
    XCTAssertTrue(bench.host.failures.pointee.hasFailed)
    XCTAssertEqual(bench.held(), before)
    XCTAssertNil(bench.magazines.checkInvariants())
    XCTAssertEqual(bench.magazines.push(8), .pushed)
  }

  /// Every word is in the model or in the magazines, never in both, whatever is done in which order on
  /// which processor.
  func testRandomHistoryLosesAndDoublesNothing() {
    let seed = historySeed(3)
    var random = SeededRandom(seed: seed)
    for round in 0..<60 {
      let rounds = [1, 3, 7][Int(random.below(3))]
      let least = 1 + Int(random.below(UInt64(rounds)))
      let most = least + Int(random.below(UInt64(rounds - least + 1)))
      let bench = MagazinesFixture(
        processors: 3, rounds: rounds, capacity: least...most, fullLimit: Int(random.below(4)),
        given: Int(random.below(12)))
      var outside = Set((0..<200).map { UInt($0) })
      var inside = Set<UInt>()
      func gave(_ word: UInt) {
        XCTAssertNotNil(inside.remove(word), "seed \(seed), round \(round): \(word) was not held")
        outside.insert(word)
      }
      for step in 0..<1000 {
        bench.host.runAs(processor: Int(random.below(3))) {
          switch random.below(41) {
          case 40: _ = bench.magazines.trim { gave($0) }
          case 0: bench.magazines.drain { gave($0) }
          case 1: bench.magazines.drainDepot { gave($0) }
          case 2:
            bench.magazines.switchOff { gave($0) }
            XCTAssertTrue(inside.isEmpty)
          case 3...5: bench.magazines.switchOn()
          case 6:
            var words = [UInt](repeating: 0, count: rounds)
            let count = words.withUnsafeMutableBufferPointer {
              bench.magazines.spill(into: $0.baseAddress!)
            }
            for word in words.prefix(count) { gave(word) }
          case 7...9:
            let supply = outside.sorted()
            let outcome = bench.magazines.refill { words, most in
              let count = min(most, supply.count)
              for i in 0..<count {
                words[i] = supply[i]
                inside.insert(supply[i])
                outside.remove(supply[i])
              }
              return count
            }
            if case .word(let word) = outcome { gave(word) }
          case 10...24:
            if let word = bench.magazines.pop() { gave(word) }
          default:
            guard let word = outside.min() else { break }
            if bench.magazines.push(word) == .pushed {
              outside.remove(word)
              inside.insert(word)
            }
          }
        }
        XCTAssertNil(bench.magazines.checkInvariants(), "seed \(seed), round \(round), step \(step)")
        XCTAssertEqual(Set(bench.held()), inside, "seed \(seed), round \(round), step \(step)")
        XCTAssertEqual(bench.magazines.wordCount, inside.count)
      }
    }
  }

  func testAnInterruptThatTakesAndGivesLosesNothing() {
    let seed = historySeed(11)
    let bench = MagazinesFixture(rounds: 3, fullLimit: 2, given: 6)
    var free = Array((1...40).map { UInt($0) })
    var held: [UInt] = []
    func step(_ give: Bool) {
      if give {
        guard let word = free.popLast() else { return }
        if bench.magazines.push(word) != .pushed { free.append(word) }
      } else if let word = bench.magazines.pop() {
        held.append(word)
      }
    }
    var random = SeededRandom(seed: seed)
    var interrupts = SeededRandom(seed: seed &+ 1)
    bench.host.withInterrupts(seed: seed, oneIn: 2, handler: { step(interrupts.oneIn(2)) }) {
      for _ in 0..<20_000 {
        step(random.oneIn(2))
        while let word = held.popLast() { free.append(word) }
      }
    }
    XCTAssertEqual((free + held + bench.held()).sorted(), Array((1...40).map { UInt($0) }), "seed \(seed)")
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testTwoProcessorsAndADrainLoseNothing() {
    let bench = MagazinesFixture(processors: 2, rounds: 5, fullLimit: 4, given: 12)
    let perThread = 200
    nonisolated(unsafe) var left: [[UInt]] = [[], []]
    nonisolated(unsafe) let magazines = bench.magazines
    let lock = NSLock()
    bench.host.onThreads(2) { me in
      var random = SeededRandom(seed: UInt64(me) + 5)
      var mine = (0..<perThread).map { UInt(me * perThread + $0) }
      for step in 0..<100_000 {
        if random.oneIn(2), let word = mine.popLast() {
          if magazines.push(word) != .pushed { mine.append(word) }
        } else if let word = magazines.pop() {
          mine.append(word)
        }
        if me == 0 && step % 500 == 0 { magazines.drain { mine.append($0) } }
      }
      lock.withLock { left[me] = mine }
    }
    XCTAssertEqual((left[0] + left[1] + bench.held()).sorted(), (0..<UInt(2 * perThread)).map { $0 })
    XCTAssertNil(bench.magazines.checkInvariants())
  }

  func testTheCheckNamesTheInvariantThatIsBroken() {
    let bench = MagazinesFixture(rounds: 4, fullLimit: 4, given: 8)
    for word in 0..<16 { XCTAssertEqual(bench.magazines.push(UInt(word)), .pushed) }
    func breaks(_ number: Int, _ damage: () -> Void, _ repair: () -> Void, line: UInt = #line) {
      XCTAssertNil(bench.magazines.checkInvariants(), line: line)
      damage()
      let broken = bench.magazines.checkInvariants().map { "\($0)" } ?? "none"
      XCTAssertTrue(broken.hasPrefix("MG-\(number): "), broken, line: line)
      repair()
      XCTAssertNil(bench.magazines.checkInvariants(), line: line)
    }
    let slot = bench.magazines.slot(0)
    let lists = bench.magazines.state.pointee.lists.quiet
    breaks(1, { slot.pointee.rounds += 4 }, { slot.pointee.rounds -= 4 })
    breaks(1, { slot.pointee.capacity -= 1 }, { slot.pointee.capacity += 1 })
    breaks(1, { slot.pointee.capacity += 1 }, { slot.pointee.capacity -= 1 })
    breaks(2, { slot.pointee.previousRounds += 1 }, { slot.pointee.previousRounds -= 1 })
    let first = lists.pointee.full.first!
    let link = first[-1]
    XCTAssertNotEqual(link, 0)
    breaks(3, { first[-1] = 0 }, { first[-1] = link })
    breaks(4, { lists.pointee.total += 1 }, { lists.pointee.total -= 1 })
    breaks(5, { lists.pointee.isOn = false }, { lists.pointee.isOn = true })
    let capacity = bench.magazines.state
    breaks(
      6, { capacity.pointee.capacity.store(5, ordering: .relaxed) },
      { capacity.pointee.capacity.store(4, ordering: .relaxed) })
  }
}
