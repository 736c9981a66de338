import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory

/// Searches by a pricing that not every run can be paid for, and sums over all memory, against a look at every frame.
final class RunPricingTests: XCTestCase {
  /// Pays for so many free frames and so many dirty pages.
  private struct Purse: RunPricing {
    var free: UInt64
    var dirty: UInt64
    var distinguishesDirtyPages: Bool { false }
    func isForDevice(_ frame: FrameNumber) -> Bool { false }
    func missing(free: UInt64, dirty: UInt64) -> UInt64 {
      (free > self.free ? free - self.free : 0) + (dirty > self.dirty ? dirty - self.dirty : 0)
    }
    func price(_ contents: RunContents) -> RunPrice {
      let missing = missing(free: contents.free, dirty: contents.dirty)
      return RunPrice(
        obstacles: (contents.unmovable + contents.captured) << 40 | missing << 20 | contents.claimed,
        work: contents.pages + 8 * contents.claimed, dirty: contents.dirty)
    }
    func varies(_ price: RunPrice) -> Bool { true }
  }

  private enum Kind: Int, CaseIterable { case free, clean, dirty, claimed, unmovable }

  /// Memory full of pages, of which some are free, dirty, held and wired: more or fewer in each extent of 200 frames.
  private func fill(_ memory: FrameAllocator, _ random: inout SeededRandom) {
    var (extent, densities) = (UInt32.max, [UInt64](repeating: 0, count: 4))
    for frame in fillWithPages(memory).sorted() {
      if frame.rawValue / 200 != extent {
        extent = frame.rawValue / 200
        densities = [
          [0, 0, 100, 500, 950][Int(random.below(5))], [0, 500, 900, 1000][Int(random.below(4))],
          [0, 0, 0, 5][Int(random.below(4))], [0, 0, 0, 0, 3, 30][Int(random.below(6))],
        ]
      }
      if random.below(1000) < densities[1] {
        memory.record(frame)!.pageFlags.insert(.dirty)
        memory.countDirty(frame)
      }
      if random.below(1000) < densities[3] {
        wirePage(memory, frame.rawValue)
      } else if random.below(1000) < densities[2] {
        memory.record(frame)!.busyWord = BusyWord(rawValue: 1 << 12)
      } else if random.below(1000) < densities[0], !memory.record(frame)!.snapshot.isDirty {
        freePage(memory, frame.rawValue)
      }
    }
  }

  private func kinds(_ memory: FrameAllocator, _ top: UInt32) -> [Kind] {
    (0..<top).map {
      let what = memory.whatIs(FrameNumber($0))
      if what.role == .free { return .free }
      guard what.role == .pageable, what.busyWord.wires == 0 else { return .unmovable }
      if what.busyWord != .none { return .claimed }
      return what.pageFlags.contains(.dirty) ? .dirty : .clean
    }
  }

  /// How many frames of each kind lie below a frame.
  private func sums(_ kinds: [Kind]) -> [[UInt64]] {
    Kind.allCases.map { wanted in
      kinds.reduce(into: [0]) { $0.append($0.last! + ($1 == wanted ? 1 : 0)) }
    }
  }

  func testTheRunWithFewestFramesMissingIsFoundUnderAllConstraints() throws {
    let seed = historySeed(83)
    var random = SeededRandom(seed: seed)
    var tally: [String: Int] = [:]
    let names = ["paid for", "missing", "missing in a boundary", "blocked"]
    // As many rounds as it takes to meet each kind of answer often.
    for round in 0..<200 where round < 12 || names.contains(where: { tally[$0] ?? 0 <= 10 }) {
      let map: [(UInt64, UInt64)] = round % 2 == 0 ? [(256, 4000)] : [(100, 1500), (2000, 2300)]
      let system = try FrameAllocatorFixture(frames: map)
      let memory = system.memory!
      fill(memory, &random)
      let top = UInt32(map.last!.0 + map.last!.1)
      let sums = sums(kinds(memory, top))
      for _ in 0..<25 {
        let count = 1 + Int(random.below([20, 100, 600, 1500][Int(random.below(4))]))
        let alignment = 1 << Int(random.below(random.oneIn(3) ? 11 : 4))
        let boundary = random.oneIn(2) ? 1 << Int(4 + random.below(8)) : 0
        let low = random.oneIn(3) ? Int(random.below(2000)) : 0
        let high = random.oneIn(3) ? 2500 + Int(random.below(1500)) : Int(top)
        let constraints = RunConstraints(
          low: PhysicalAddress(UInt64(low) << 12), high: PhysicalAddress(UInt64(high) << 12),
          alignment: Alignment(UInt64(alignment) << 12)!,
          boundary: boundary == 0 ? nil : Alignment(UInt64(boundary) << 12))
        let purse = Purse(free: random.below(UInt64(count)), dirty: random.below(UInt64(count)))
        func obstacles(_ start: Int) -> UInt64 {
          func number(_ kind: Kind) -> UInt64 {
            sums[kind.rawValue][start + count] - sums[kind.rawValue][start]
          }
          return number(.unmovable) << 40 | purse.missing(free: number(.free), dirty: number(.dirty)) << 20
            | number(.claimed)
        }
        var fewest = UInt64.max
        var start = (low + alignment - 1) / alignment * alignment
        while start + count <= min(high, Int(top)) {
          if boundary == 0 || start / boundary == (start + count - 1) / boundary {
            fewest = min(fewest, obstacles(start))
          }
          start += alignment
        }
        let note = "\(count) at \(alignment) in \(boundary), \(low) to \(high), \(purse), STRATA_SEED=\(seed)"
        switch memory.candidate(
          run: PageCount(count), where: constraints, excluding: ExcludedRuns(), at: purse)
        {
        case .found(let candidate):
          let first = Int(candidate.run.first.rawValue)
          XCTAssertEqual(obstacles(first), fewest, note)
          XCTAssertEqual(first % alignment, 0, note)
          XCTAssertTrue(first >= low && first + count <= high, note)
          if boundary != 0 { XCTAssertEqual(first / boundary, (first + count - 1) / boundary, note) }
          tally[fewest == 0 ? "paid for" : boundary == 0 ? "missing" : "missing in a boundary", default: 0] +=
            1
        case .blocked, .never:
          XCTAssertGreaterThanOrEqual(fewest, 1 << 40, note)
          tally["blocked", default: 0] += 1
        }
      }
    }
    print(tally)
    for name in names {
      XCTAssertGreaterThan(tally[name] ?? 0, 10, "\(name), STRATA_SEED=\(seed)")
    }
  }

  /// Every pageblock has as many free frames as any other, so that counts show nothing: the one run that can be paid
  /// for is found wherever it lies.
  func testTheOnlyRunThatCanBePaidForIsFoundWhereCountsShowNothing() throws {
    for lucky in [2, 9, 17, 25] as [UInt32] {
      let system = try FrameAllocatorFixture(frames: [(512, 16_000)])
      let memory = system.memory!
      for frame in fillWithPages(memory).map(\.rawValue) {
        let (pageblock, offset) = (frame / 512, frame % 512)
        let row = 5 * lucky..<5 * lucky + 256
        if pageblock == lucky ? !row.contains(offset) : offset % 2 == 0 { freePage(memory, frame) }
      }
      for count in [64, 200, 256] as [UInt64] {
        let answer = memory.candidate(
          run: PageCount(count), where: RunConstraints(), excluding: ExcludedRuns(),
          at: Purse(free: 3, dirty: 0))
        guard case .found(let candidate) = answer else { return XCTFail("not found, pageblock \(lucky)") }
        XCTAssertLessThanOrEqual(candidate.free.rawValue, 3, "\(count) frames, pageblock \(lucky)")
        XCTAssertEqual(candidate.run.first.rawValue / 512, lucky)
      }
    }
  }

  /// Runs that a lower bound rules out are passed over: a small part of the frames is looked at.
  func testRunsThatCanNotBeatTheBestArePassedOver() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 16_000)])
    let memory = system.memory!
    for frame in fillWithPages(memory) {
      memory.record(frame)!.pageFlags.insert(.dirty)
      memory.countDirty(frame)
    }
    var search = RunSearch(memory)
    let answer = search.candidate(
      run: PageCount(UInt64(4096)), where: RunConstraints(), excluding: ExcludedRuns(),
      at: Purse(free: 0, dirty: 100))
    guard case .found(let candidate) = answer else { return XCTFail("not found") }
    XCTAssertEqual(candidate.dirty.rawValue, 4096)
    XCTAssertLessThan(search.steps, 16_000 / 2)
  }

  /// The dirty pages of a pageblock may all be wired, and its clean ones count all the same.
  func testCleanPagesBesideWiredDirtyPagesAreReclaimable() throws {
    struct Alike: DirtyPageKinds {
      var distinguishesDirtyPages: Bool { false }
      func isForDevice(_ frame: FrameNumber) -> Bool { false }
    }
    let system = try FrameAllocatorFixture(frames: [(512, 2048)])
    let memory = system.memory!
    var clean: UInt64 = 0
    for frame in fillWithPages(memory) {
      if frame.rawValue % 100 == 0 {
        clean += 1
        continue
      }
      memory.record(frame)!.pageFlags.insert(.dirty)
      memory.countDirty(frame)
      wirePage(memory, frame.rawValue)
    }
    let most = IdlePages(clean: .max)
    XCTAssertEqual(memory.idlePages(enough: most, by: Alike()), IdlePages(clean: clean))
  }

  /// Each count is exact, or as much as is enough; pages that are wired or held are in none.
  func testIdlePagesAreCountedAsFarAsNeeded() throws {
    struct Even: DirtyPageKinds {
      var distinguishesDirtyPages: Bool
      func isForDevice(_ frame: FrameNumber) -> Bool { frame.rawValue % 2 == 0 }
    }
    let seed = historySeed(84)
    var random = SeededRandom(seed: seed)
    for round in 0..<8 {
      let system = try FrameAllocatorFixture(frames: [(100, 1500), (2000, 2300)])
      let memory = system.memory!
      fill(memory, &random)
      let kinds = kinds(memory, 4300)
      for kind in [Even(distinguishesDirtyPages: true), Even(distinguishesDirtyPages: false)] {
        let clean = UInt64(kinds.count { $0 == .clean })
        let dirty = UInt64(kinds.count { $0 == .dirty })
        let forDevice =
          kind.distinguishesDirtyPages
          ? UInt64(kinds.indices.count { kinds[$0] == .dirty && $0 % 2 == 0 }) : 0
        let whole = IdlePages(clean: clean, forSwap: dirty - forDevice, forDevice: forDevice)
        let note = "round \(round), STRATA_SEED=\(seed)"
        let most = IdlePages(clean: .max, forSwap: .max, forDevice: .max)
        XCTAssertEqual(memory.idlePages(enough: most, by: kind), whole, note)
        for _ in 0..<20 {
          func some(_ count: UInt64) -> UInt64 { random.oneIn(4) ? 0 : random.below(count + 10) }
          let enough = IdlePages(
            clean: some(clean), forSwap: some(whole.forSwap), forDevice: some(forDevice))
          let counted = memory.idlePages(enough: enough, by: kind)
          for (count, (wanted, all)) in [
            (counted.clean, (enough.clean, whole.clean)), (counted.forSwap, (enough.forSwap, whole.forSwap)),
            (counted.forDevice, (enough.forDevice, whole.forDevice)),
          ] {
            XCTAssertLessThanOrEqual(count, all, note)
            XCTAssertGreaterThanOrEqual(count, min(wanted, all), note)
          }
          let limit = 1 + random.below(clean + dirty + 1)
          let inAll = memory.idlePages(enough: most, enoughInAll: limit, by: kind)
          XCTAssertGreaterThanOrEqual(
            inAll.clean + inAll.forSwap + inAll.forDevice, min(limit, clean + dirty), note)
        }
      }
      // A walk that has enough ends.
      var search = RunSearch(memory)
      _ = search.idlePages(
        enough: IdlePages(clean: .max, forSwap: .max), enoughInAll: 1,
        by: Even(distinguishesDirtyPages: false))
      XCTAssertLessThan(search.steps, 4 * 66)
    }
  }
}
