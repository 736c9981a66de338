import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Vmem

/// Seeded histories of several threads that wait for space, against a model.
final class VmemWaitingHistoryTests: XCTestCase {
  private struct Live {
    let arena: Int
    let place: ArenaAddress
    let size: ArenaSize
    var range: ClosedRange<UInt64> { place.rawValue...(place.rawValue + ((size.rawValue - 1) | 15)) }
  }

  /// The segments that the threads hold, and what they have seen that must not be.
  private final class Model: @unchecked Sendable {
    private let lock = NSLock()
    private var units: Set<UInt64> = []
    private var tick: UInt64?
    private(set) var faults: [String] = []

    func insert(_ live: Live) {
      lock.withLock {
        for unit in live.range.lowerBound / 16...live.range.upperBound / 16 where !units.insert(unit).inserted
        {
          faults.append("\(unit * 16) was allocated twice")
        }
      }
    }
    func remove(_ live: Live) {
      lock.withLock {
        for unit in live.range.lowerBound / 16...live.range.upperBound / 16 { units.remove(unit) }
      }
    }
    func fault(_ text: String) { lock.withLock { faults.append(text) } }
    /// The tick that is now; nil in a round in which no time passes, and only frees end a wait.
    var now: UInt64? {
      get { lock.withLock { tick } }
      set { lock.withLock { tick = newValue } }
    }
    var count: Int { lock.withLock { units.count } }
  }

  private final class Players: @unchecked Sendable {
    private let lock = NSLock()
    private var random: [SeededRandom]
    private(set) var live: [[Live]]
    init(_ count: Int, seed: UInt64) {
      random = (0..<count).map { SeededRandom(seed: seed &+ UInt64($0)) }
      live = Array(repeating: [], count: count)
    }
    func keep(_ index: Int, _ random: SeededRandom, _ live: [Live]) {
      lock.withLock { (self.random[index], self.live[index]) = (random, live) }
    }
    func player(_ index: Int) -> (SeededRandom, [Live]) { lock.withLock { (random[index], live[index]) } }
  }

  private static let threads = 4

  private static func step(
    _ arenas: [Arena], _ random: inout SeededRandom, _ live: inout [Live],
    _ model: Model
  ) {
    if !live.isEmpty, live.count >= 12 || random.oneIn(2) {
      let gone = live.remove(at: Int(random.below(UInt64(live.count))))
      model.remove(gone)
      arenas[gone.arena].xfree(gone.place, gone.size)
      return
    }
    let which = Int(random.below(UInt64(arenas.count)))
    let size = ArenaSize(1 + random.below(random.oneIn(8) ? 0x600 : 0xa0))
    var wish = ArenaConstraints()
    if random.oneIn(3) { wish.alignment = Alignment(16 << random.below(5))! }
    if random.oneIn(4) { wish.nocross = Alignment(0x800) }
    if random.oneIn(4) { wish.maximum = ArenaAddress(0x1fff) }
    let soon = model.now.map { Tick($0 + random.below(10)) }
    let deadline: Tick? = random.oneIn(3) ? nil : soon ?? .never
    guard
      let place = try? arenas[which].xalloc(
        size, wish, policy: random.oneIn(2) ? .instantFit : .bestFit, until: deadline)
    else { return }
    let got = Live(arena: which, place: place, size: size)
    if !ArenaModel.satisfies(UInt128(place.rawValue), UInt128(got.range.count), wish) {
      model.fault("\(place.rawValue) does not satisfy the request")
    }
    model.insert(got)
    live.append(got)
  }

  func testHistoriesOfThreadsThatWaitAgreeWithAModel() throws {
    for seed in historySeeds(17, count: 3) {
      let bench = VmemFixture(processors: Self.threads + 1)
      bench.host.hasOtherThreads = true
      bench.host.isClosed = true
      let root = bench.arena("root", quantum: 16)
      try root.add(0x1000...0x2fff)
      let heap = bench.arena("heap", quantum: 16, source: .arena(root), importUnit: 0x400)
      let small = bench.arena("small", quantum: 16, source: .arena(heap))
      let arenas = [root, heap, small]
      let model = Model()
      let players = Players(Self.threads, seed: seed)
      var ticks: UInt64 = 0
      for round in 0..<20 {
        let hasTime = round % 2 == 1
        model.now = hasTime ? ticks : nil
        let ended = Atomic<Int>(0)
        withUnsafePointer(to: ended) { ended in
          nonisolated(unsafe) let ended = ended
          bench.host.onThreads(Self.threads + (hasTime ? 1 : 0)) { [host = bench.host] index in
            if index == Self.threads {
              return idle {
                host.advance()
                model.now = model.now.map { $0 + 1 }
                return ended.pointee.load(ordering: .acquiring) == Self.threads
              }
            }
            var (random, live) = players.player(index)
            for _ in 0..<150 { Self.step(arenas, &random, &live, model) }
            players.keep(index, random, live)
            ended.pointee.add(1, ordering: .releasing)
          }
        }
        ticks = model.now ?? ticks
        bench.check()
        XCTAssertEqual(model.faults, [], "seed \(seed) round \(round)")
        for (index, arena) in arenas.enumerated() {
          XCTAssertEqual(arena.waiting, 0)
          let held = players.live.joined().filter { $0.arena == index }.map(\.range.lowerBound).sorted()
          let above =
            arenas.count > index + 1 ? arenas[index + 1].segments().filter { $0.kind == .importedSpan } : []
          let busy = arena.segments().filter { $0.kind == .busy }.map(\.first.rawValue).sorted()
          XCTAssertEqual(busy, (held + above.map(\.first.rawValue)).sorted(), "seed \(seed) round \(round)")
        }
        if testRun?.failureCount ?? 0 > 0 { return }
      }
      XCTAssertEqual(bench.host.rescues, 0, "threads that were not woken")
      XCTAssertGreaterThan(arenas.map(\.figures.waits).reduce(0, +), 20)
      for live in players.live.joined() {
        model.remove(live)
        arenas[live.arena].xfree(live.place, live.size)
      }
      XCTAssertEqual(model.count, 0)
      XCTAssertEqual(root.segments().map(\.kind), [.addedSpan, .free])
      for arena in arenas.reversed() { arena.destroy() }
      bench.check()
      XCTAssertEqual(bench.tags.figures.free, bench.tags.figures.total)
    }
  }
}
