import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

/// Memory that a map leaves out because it is in use, or not cached.
final class MemoryMapRulesTests: XCTestCase {
  private let (m, g): (UInt64, UInt64) = (1 << 20, 1 << 30)

  private struct Outcome: Equatable {
    var runs: [[UInt64]]?
    /// First frame, frames, reason.
    var notes: [String] = []
    var caching = MemoryTypeRanges.State.absent
    var notWriteBack = ByteCount.zero
    var tooManyRuns = ByteCount.zero

    static func == (a: Outcome, b: Outcome) -> Bool {
      a.runs == b.runs && a.notes == b.notes && a.caching == b.caching
    }
  }

  private func map(
    _ reported: [(UInt64, UInt64, FirmwareRange.Kind)], _ rules: MapRules = MapRules()
  ) -> Outcome {
    let bytes = Int(MemoryMap.storage(ranges: reported.count).rawValue)
    // No write goes behind the storage.
    let storage = UnsafeMutableRawPointer.allocate(byteCount: bytes + 64, alignment: 16)
    storage.initializeMemory(as: UInt8.self, repeating: 0xa5, count: bytes + 64)
    defer { storage.deallocate() }
    let map = try? MemoryMap(storage, count: reported.count, rules: rules) {
      FirmwareRange(
        base: PhysicalAddress(reported[$0].0), length: ByteCount(reported[$0].1), kind: reported[$0].2)
    }
    XCTAssertTrue(
      (bytes..<bytes + 64).allSatisfy { storage.load(fromByteOffset: $0, as: UInt8.self) == 0xa5 })
    guard let map else { return Outcome() }
    return Outcome(
      runs: (0..<map.count).map { [UInt64(map[$0].first.rawValue), map[$0].count.rawValue] },
      notes: (0..<map.noteCount).map {
        let note = map.note(at: $0)
        return "\(note.base.rawValue >> 12) \(note.length.rawValue >> 12) \(note.reason)"
      }, caching: map.caching, notWriteBack: map.dropped(.notWriteBack),
      tooManyRuns: map.dropped(.tooManyRuns))
  }

  /// The shapes that firmware comes up with.
  func testRangesInUseBelow1MiBAreNotMemory() {
    let low = ["0 1 frameZero", "1 15 first64KiB"]
    // As most are.
    XCTAssertEqual(
      map([(0, 0x9fc00, .usable), (0xf0000, 0x10000, .reserved), (m, 63 * m, .usable)]),
      Outcome(runs: [[16, 143], [256, 16128]], notes: ["159 0 partOfFrame"] + low))
    // A hole in low memory, below and above 64 KiB.
    XCTAssertEqual(
      map([
        (0, 0x5000, .usable), (0x5000, 0x1000, .reserved), (0x6000, 0x52000, .usable),
        (0x58000, 0x1000, .reserved), (0x59000, 0x45000, .usable), (m, 63 * m, .usable),
      ]),
      Outcome(
        runs: [[16, 72], [89, 69], [256, 16128]],
        notes: ["0 1 frameZero", "1 4 first64KiB", "6 10 first64KiB"]))
    // Usable over video memory and ROM.
    XCTAssertEqual(
      map([(0, 0xf0000, .usable), (0xf0000, 0x10000, .reserved), (2 * m, 62 * m, .usable)]),
      Outcome(runs: [[16, 144], [512, 15872]], notes: low + ["160 80 deviceArea"]))
    XCTAssertEqual(
      map([(0, 64 * m, .usable)]),
      Outcome(runs: [[16, 144], [256, 16128]], notes: low + ["160 96 deviceArea"]))
    // Frame 0 is no memory to the firmware either.
    XCTAssertEqual(
      map([(0, 0x1000, .reserved), (0x1000, 0x9f000, .usable), (m, 63 * m, .usable)]),
      Outcome(runs: [[16, 144], [256, 16128]], notes: ["1 15 first64KiB"]))
    // Nothing there.
    XCTAssertEqual(map([(m, 63 * m, .usable)]), Outcome(runs: [[256, 16128]]))
    XCTAssertEqual(map([(0, m, .usable)]).runs, [[16, 144]])
    XCTAssertNil(map([(0, 0x10000, .usable), (0xa0000, 0x60000, .usable)]).runs)
  }

  func testARuleGivesTheFirst64KiBButNotFrame0() {
    let reported: [(UInt64, UInt64, FirmwareRange.Kind)] = [(0, 64 * m, .usable)]
    XCTAssertEqual(
      map(reported, MapRules(lowMemory: .fromFrame1)),
      Outcome(runs: [[1, 159], [256, 16128]], notes: ["0 1 frameZero", "160 96 deviceArea"]))
    XCTAssertEqual(map(reported, MapRules(lowMemory: .all)), Outcome(runs: [[0, 16384]]))
  }

  /// Firmware that maps all but the last 20 MiB of memory below 4 GiB, and less than there is above it.
  func testMemoryThatIsNotWriteBackIsLeftOut() {
    var registers = RangeRegisters(defaultType: 0)
    registers.setFixed(.writeBack)
    registers.values[0x259] = 0
    registers.set(0, 0, 2 * g, .writeBack)
    registers.set(1, 2 * g, g, .writeBack)
    registers.set(2, 3 * g - 16 * m, 16 * m, .uncached)
    registers.set(3, 3 * g - 20 * m, 4 * m, .writeThrough)
    registers.set(4, 4 * g, g, .writeBack)
    var rules = MapRules()
    rules.cacheTypes = registers.ranges
    let reported: [(UInt64, UInt64, FirmwareRange.Kind)] = [
      (0, 0xa0000, .usable), (m, 3 * g - m, .usable), (4 * g, g + 64 * m, .usable),
    ]
    let low = ["0 1 frameZero", "1 15 first64KiB"]
    let expected = Outcome(
      runs: [[16, 144], [256, (3 * g - 21 * m) >> 12], [1 << 20, g >> 12]],
      notes: low + [
        "\((3 * g - 20 * m) >> 12) \(20 * m >> 12) notWriteBack",
        "\(5 * g >> 12) \(64 * m >> 12) notWriteBack",
      ], caching: .on)
    XCTAssertEqual(map(reported, rules), expected)
    // Off: nothing is left out for it, and the map says so.
    registers.values[0x2ff]! &= ~(1 << 11)
    rules.cacheTypes = registers.ranges
    XCTAssertEqual(
      map(reported, rules),
      Outcome(
        runs: [[16, 144], [256, (3 * g - m) >> 12], [1 << 20, (g + 64 * m) >> 12]], notes: low, caching: .off)
    )
    XCTAssertEqual(map(reported).caching, .absent)
  }

  func testAMachineWhoseMemoryIsAllUncachedIsTooSmall() {
    var rules = MapRules()
    rules.cacheTypes = RangeRegisters(defaultType: 0).ranges
    XCTAssertNil(map([(0, 64 * m, .usable)], rules).runs)
  }

  /// Uncached in every second 64 KiB, by a mask with a hole: more runs than fit.
  func testMoreRunsThanFitAreLeftOut() {
    var registers = RangeRegisters(defaultType: 6)
    registers.set(0, base: 0x10000, mask: 0xf_fff1_0000 & 0xf_ff01_0000 | 1 << 11)
    registers.set(1, base: 8 * m | 0x10000, mask: 0xf_ff81_0000 | 1 << 11)
    var rules = MapRules(lowMemory: .all)
    rules.cacheTypes = registers.ranges
    let outcome = map([(0, 64 * m, .usable)], rules)
    let runs = outcome.runs!
    XCTAssertEqual(runs.count, 1 + MemoryMap.spare)
    for (i, run) in runs.enumerated() { XCTAssertEqual(run, [UInt64(i) * 32, 16]) }
    // The write-back frames behind the last run are not called anything else.
    XCTAssertEqual(outcome.notWriteBack, PageCount(UInt64(65 * 16)).bytes)
    XCTAssertEqual(outcome.tooManyRuns, ByteCount(64 * m) - PageCount(UInt64(65 * 32)).bytes)
  }

  /// Random maps under random rules, frame by frame.
  func testRandomMapsAgreeWithBruteForce() {
    let seed = historySeed(42)
    var random = SeededRandom(seed: seed)
    let pages: UInt64 = 1 << 11
    for round in 0..<300 {
      var registers = RangeRegisters(defaultType: random.oneIn(3) ? 0 : 6)
      registers.addressBits = 23
      for index in 0..<UInt32(random.below(6)) {
        let size: UInt64 = 16 << random.below(7)
        let base: UInt64 = random.below(pages / size) * size
        let types: [RangeRegisters.CacheType] = [.uncached, .writeBack, .writeThrough]
        registers.set(index, base << 12, size << 12, types[Int(random.below(3))])
      }
      var rules = MapRules(lowMemory: [.all, .from64KiB, .fromFrame1][Int(random.below(3))])
      if !random.oneIn(4) { rules.cacheTypes = registers.ranges }
      var reported: [(UInt64, UInt64, FirmwareRange.Kind)] = []
      for _ in 0..<1 + random.below(8) {
        reported.append(
          (random.below(pages) << 12, random.below(600) << 12, random.oneIn(4) ? .reserved : .usable))
      }
      var expected: [UInt64] = []
      for page in 0..<pages + 600 {
        let holds = { (range: (UInt64, UInt64, FirmwareRange.Kind)) in
          range.0 >> 12 <= page && page < (range.0 + range.1) >> 12
        }
        guard reported.contains(where: { $0.2 == .usable && holds($0) }),
          !reported.contains(where: { $0.2 == .reserved && holds($0) })
        else { continue }
        if rules.lowMemory != .all {
          guard page != 0, !(160..<256).contains(page), page >= 16 || rules.lowMemory == .fromFrame1 else {
            continue
          }
        }
        if rules.cacheTypes.state == .on,
          rules.cacheTypes.type(at: PhysicalAddress(page << 12)).type != .writeBack
        {
          continue
        }
        expected.append(page)
      }
      let outcome = map(reported, rules)
      let found = (outcome.runs ?? []).flatMap { Array($0[0]..<$0[0] + $0[1]) }
      if expected.count > 16 { XCTAssertEqual(found, expected, "round \(round), STRATA_SEED=\(seed)") }
      for (a, b) in zip(outcome.runs ?? [], (outcome.runs ?? []).dropFirst()) {
        XCTAssertLessThan(a[0] + a[1], b[0])
      }
    }
  }
}
