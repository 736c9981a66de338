import HostMachine
import MemoryPrimitives
import Workloads
import XCTest

@testable import PhysicalMemory

/// The registers of a processor, by number.
struct RangeRegisters {
  var values: [UInt32: UInt64] = [:]
  var addressBits: UInt32 = 36
  var vendor = MemoryTypeRanges.Vendor.other

  typealias CacheType = MemoryTypeRanges.CacheType

  /// On, with this default type and room for eight variable ranges.
  init(defaultType: UInt64, capability: UInt64 = 0x508) {
    values[0xfe] = capability
    values[0x2ff] = defaultType | 1 << 11
  }

  /// All fixed ranges are of `type`.
  mutating func setFixed(_ type: CacheType) {
    values[0x2ff]! |= 1 << 10
    for number: UInt32 in [0x250, 0x258, 0x259] + Array(0x268...0x26f) {
      values[number] = UInt64(type.rawValue) * 0x0101_0101_0101_0101
    }
  }

  /// A variable range of a power of two.
  mutating func set(_ index: UInt32, _ base: UInt64, _ size: UInt64, _ type: CacheType) {
    set(
      index, base: base | UInt64(type.rawValue), mask: (1 << UInt64(addressBits) - 1) & ~(size - 1) | 1 << 11)
  }
  mutating func set(_ index: UInt32, base: UInt64, mask: UInt64) {
    values[0x200 + 2 * index] = base
    values[0x201 + 2 * index] = mask
  }

  var ranges: MemoryTypeRanges {
    MemoryTypeRanges(addressBits: addressBits, vendor: vendor) { values[$0] ?? 0 }
  }
}

final class MemoryTypeRangesTests: XCTestCase {
  private let (m, g): (UInt64, UInt64) = (1 << 20, 1 << 30)

  private func type(_ ranges: MemoryTypeRanges, _ address: UInt64) -> MemoryTypeRanges.CacheType? {
    ranges.type(at: PhysicalAddress(address)).type
  }

  func testAbsentOrOffSaysNothing() {
    XCTAssertEqual(MemoryTypeRanges().state, .absent)
    var registers = RangeRegisters(defaultType: 0)
    registers.values[0x2ff] = 1 << 10 | 6
    XCTAssertEqual(registers.ranges.state, .off)
    // Nothing else is read: a processor without the registers would fault.
    var read: [UInt32] = []
    _ = MemoryTypeRanges(addressBits: 36, vendor: .amd) {
      read.append($0)
      return 0
    }
    XCTAssertEqual(read, [0x2ff])
  }

  func testOnlyRegistersThatExistAreRead() {
    var read: [UInt32] = []
    _ = MemoryTypeRanges(addressBits: 36, vendor: .other) { number in
      read.append(number)
      return number == 0xfe ? 3 : number == 0x2ff ? 1 << 11 | 1 << 10 : number == 0x203 ? 1 << 11 : 0
    }
    XCTAssertEqual(read.sorted(), [0xfe, 0x201, 0x202, 0x203, 0x205, 0x2ff])
  }

  /// SDM vol. 3A, 12.11.4.1: each pair of types over one address, in either order, and more than two.
  func testRangesThatOverlap() {
    typealias CacheType = MemoryTypeRanges.CacheType
    let all: [CacheType] = [.uncached, .writeCombining, .writeThrough, .writeProtected, .writeBack]
    for a in all {
      for b in all {
        var registers = RangeRegisters(defaultType: 6)
        registers.set(0, 2 * g, 2 * m, a)
        registers.set(5, 2 * g, 4 * m, b)
        let both = Set([a, b])
        let expected: CacheType? =
          both.count == 1
          ? a
          : both.contains(.uncached)
            ? .uncached : both == [.writeThrough, .writeBack] ? .writeThrough : nil
        let ranges = registers.ranges
        XCTAssertEqual(type(ranges, 2 * g + m), expected, "\(a) and \(b)")
        XCTAssertEqual(type(ranges, 2 * g + 3 * m), b)
        XCTAssertEqual(type(ranges, 2 * g + 4 * m), .writeBack)
        XCTAssertEqual(type(ranges, 2 * g - 1), .writeBack)
      }
    }
    var registers = RangeRegisters(defaultType: 6)
    for (index, type) in [CacheType.writeBack, .writeCombining, .writeThrough].enumerated() {
      registers.set(UInt32(index), 2 * g, 2 * m, type)
    }
    XCTAssertNil(type(registers.ranges, 2 * g))
    // Uncached over what is undefined, and a type that the manual reserves.
    registers.set(7, 2 * g, m, .uncached)
    registers.set(6, base: 3 * g | 3, mask: 0xf_c000_0800)
    XCTAssertEqual(type(registers.ranges, 2 * g), .uncached)
    XCTAssertNil(type(registers.ranges, 2 * g + m))
    XCTAssertNil(type(registers.ranges, 3 * g))
    registers.values[0x2ff] = 1 << 11 | 2
    XCTAssertNil(type(registers.ranges, 0))
  }

  func testFixedRangesDecideBelow1MiB() {
    var registers = RangeRegisters(defaultType: 0)
    registers.set(0, 0, 2 * g, .writeBack)
    registers.setFixed(.writeBack)
    registers.values[0x259] = 0  // 0xa0000 to 0xbffff
    registers.values[0x250] = 0x0606_0606_0606_0406
    registers.values[0x26f] = 0x0506_0606_0606_0606
    let ranges = registers.ranges
    XCTAssertEqual(type(ranges, 0), .writeBack)
    XCTAssertEqual(type(ranges, 0x1_0000), .writeThrough)
    XCTAssertEqual(ranges.type(at: PhysicalAddress(0x1_0000)).last.rawValue, 0x1_ffff)
    XCTAssertEqual(type(ranges, 0x2_0000), .writeBack)
    XCTAssertEqual(type(ranges, 0x9_ffff), .writeBack)
    XCTAssertEqual(type(ranges, 0xa_0000), .uncached)
    XCTAssertEqual(type(ranges, 0xb_ffff), .uncached)
    XCTAssertEqual(type(ranges, 0xf_efff), .writeBack)
    XCTAssertEqual(type(ranges, 0xf_f000), .writeProtected)
    XCTAssertEqual(type(ranges, 0x10_0000), .writeBack)
    // Disabled, or not there, they say nothing.
    registers.values[0x2ff]! &= ~(1 << 10)
    XCTAssertEqual(type(registers.ranges, 0xa_0000), .writeBack)
    registers.values[0x2ff]! |= 1 << 10
    registers.values[0xfe] = 8
    XCTAssertEqual(type(registers.ranges, 0xa_0000), .writeBack)
  }

  func testAMDMakesMemoryAbove4GiBWriteBack() {
    var registers = RangeRegisters(defaultType: 0)
    registers.addressBits = 40
    registers.set(0, 0, 2 * g, .writeBack)
    registers.set(1, 5 * g, g, .uncached)
    registers.values[0xc001_0010] = 3 << 21
    registers.values[0xc001_001d] = 8 * g
    XCTAssertEqual(type(registers.ranges, 4 * g), .uncached, "another's processor has no such register")
    registers.vendor = .amd
    let ranges = registers.ranges
    XCTAssertEqual(type(ranges, 3 * g), .uncached)
    XCTAssertEqual(ranges.type(at: PhysicalAddress(3 * g)).last.rawValue, 4 * g - 1)
    XCTAssertEqual(type(ranges, 4 * g), .writeBack)
    XCTAssertEqual(type(ranges, 5 * g), .uncached)
    XCTAssertEqual(type(ranges, 8 * g - 1), .writeBack)
    XCTAssertEqual(type(ranges, 8 * g), .uncached)
    registers.values[0xc001_0010] = 1 << 21
    XCTAssertEqual(type(registers.ranges, 4 * g), .uncached)
  }

  func testAnAddressThatTheProcessorCannotHaveMatchesNothing() {
    var registers = RangeRegisters(defaultType: 6)
    registers.set(0, 0, g, .uncached)
    XCTAssertEqual(type(registers.ranges, 1 << 36), .writeBack)
    // A mask of fewer bits than addresses have repeats its range, as the processor does.
    registers.addressBits = 40
    XCTAssertEqual(type(registers.ranges, 1 << 36), .uncached)
  }

  /// Any registers, masks with holes among them, page by page against the manual's own words.
  func testRandomRegistersAgainstBruteForce() {
    let seed = historySeed(41)
    var random = SeededRandom(seed: seed)
    let pages: UInt64 = 1 << 11
    for round in 0..<300 {
      var registers = RangeRegisters(defaultType: [0, 1, 4, 5, 6, 6, 6, 6][Int(random.below(8))])
      registers.addressBits = 23
      if random.oneIn(2) {
        registers.setFixed(.writeBack)
        for number: UInt32 in [0x250, 0x258, 0x259] + Array(0x268...0x26f) where random.oneIn(3) {
          registers.values[number] = 0x0606_0006_0406_0506
        }
      }
      for index in 0..<UInt32(random.below(7)) {
        let type = [0, 1, 4, 5, 6, 6, 6, 2][Int(random.below(8))]
        // One in two is contiguous.
        var mask = (pages - 1) & ~(1 << random.below(11) - 1)
        if random.oneIn(2) { mask &= random.next() }
        let base = (random.below(pages) & mask) << 12
        let isValid: UInt64 = random.oneIn(8) ? 0 : 1 << 11
        registers.set(index, base: base | UInt64(type), mask: mask << 12 | isValid)
      }
      let ranges = registers.ranges
      var at: UInt64 = 0
      var looks = 0
      while at < pages << 12 {
        let (type, last) = ranges.type(at: PhysicalAddress(at))
        XCTAssertGreaterThanOrEqual(last.rawValue, at)
        for page in at >> 12...min(pages - 1, last.rawValue >> 12)
        where type != expected(registers, page << 12) {
          XCTFail("round \(round), page \(page), STRATA_SEED=\(seed)")
        }
        guard last.rawValue < pages << 12 else { break }
        at = last.rawValue + 1
        looks += 1
      }
      XCTAssertLessThanOrEqual(looks, Int(pages))
    }
  }

  private func expected(_ registers: RangeRegisters, _ address: UInt64) -> MemoryTypeRanges.CacheType? {
    let settings = registers.values[0x2ff]!
    if address < 1 << 20 && settings & 1 << 10 != 0 {
      let (number, byte): (UInt32, UInt64) =
        address < 0x8_0000
        ? (0x250, address >> 16)
        : address < 0xc_0000
          ? (0x258 + UInt32((address - 0x8_0000) >> 17), address >> 14 & 7)
          : (0x268 + UInt32((address - 0xc_0000) >> 15), address >> 12 & 7)
      return .init(rawValue: UInt8(registers.values[number]! >> (8 * byte) & 0xff))
    }
    var types = Set<UInt64>()
    for index in 0..<UInt32(8) {
      guard let base = registers.values[0x200 + 2 * index], let mask = registers.values[0x201 + 2 * index],
        mask & 1 << 11 != 0, address & mask & ~0xfff == base & mask & ~0xfff
      else { continue }
      types.insert(base & 0xff)
    }
    if types.isEmpty { return .init(rawValue: UInt8(settings & 0xff)) }
    if types.contains(0) { return .uncached }
    if types == [4, 6] { return .writeThrough }
    return types.count == 1 ? .init(rawValue: UInt8(types.first!)) : nil
  }
}

/// What a map leaves out because it is in use, or not cached.
final class MapRulesTests: XCTestCase {
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
    _ told: [(UInt64, UInt64, FirmwareRange.Kind)], _ rules: MapRules = MapRules()
  ) -> Outcome {
    let bytes = Int(MemoryMap.storage(ranges: told.count).rawValue)
    // What lies behind the storage is nobody's to write to.
    let storage = UnsafeMutableRawPointer.allocate(byteCount: bytes + 64, alignment: 16)
    storage.initializeMemory(as: UInt8.self, repeating: 0xa5, count: bytes + 64)
    defer { storage.deallocate() }
    let map = try? MemoryMap(storage, count: told.count, rules: rules) {
      FirmwareRange(base: PhysicalAddress(told[$0].0), length: ByteCount(told[$0].1), kind: told[$0].2)
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
  func testWhatIsInUseBelow1MiBIsNeverMemory() {
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
    let told: [(UInt64, UInt64, FirmwareRange.Kind)] = [(0, 64 * m, .usable)]
    XCTAssertEqual(
      map(told, MapRules(lowMemory: .fromFrame1)),
      Outcome(runs: [[1, 159], [256, 16128]], notes: ["0 1 frameZero", "160 96 deviceArea"]))
    XCTAssertEqual(map(told, MapRules(lowMemory: .all)), Outcome(runs: [[0, 16384]]))
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
    let told: [(UInt64, UInt64, FirmwareRange.Kind)] = [
      (0, 0xa0000, .usable), (m, 3 * g - m, .usable), (4 * g, g + 64 * m, .usable),
    ]
    let low = ["0 1 frameZero", "1 15 first64KiB"]
    let expected = Outcome(
      runs: [[16, 144], [256, (3 * g - 21 * m) >> 12], [1 << 20, g >> 12]],
      notes: low + [
        "\((3 * g - 20 * m) >> 12) \(20 * m >> 12) notWriteBack",
        "\(5 * g >> 12) \(64 * m >> 12) notWriteBack",
      ], caching: .on)
    XCTAssertEqual(map(told, rules), expected)
    // Off: nothing is left out for it, and the map says so.
    registers.values[0x2ff]! &= ~(1 << 11)
    rules.cacheTypes = registers.ranges
    XCTAssertEqual(
      map(told, rules),
      Outcome(
        runs: [[16, 144], [256, (3 * g - m) >> 12], [1 << 20, (g + 64 * m) >> 12]], notes: low, caching: .off)
    )
    XCTAssertEqual(map(told).caching, .absent)
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
  func testRandomMapsAgainstBruteForce() {
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
      var told: [(UInt64, UInt64, FirmwareRange.Kind)] = []
      for _ in 0..<1 + random.below(8) {
        told.append(
          (random.below(pages) << 12, random.below(600) << 12, random.oneIn(4) ? .reserved : .usable))
      }
      var expected: [UInt64] = []
      for page in 0..<pages + 600 {
        let holds = { (range: (UInt64, UInt64, FirmwareRange.Kind)) in
          range.0 >> 12 <= page && page < (range.0 + range.1) >> 12
        }
        guard told.contains(where: { $0.2 == .usable && holds($0) }),
          !told.contains(where: { $0.2 == .reserved && holds($0) })
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
      let outcome = map(told, rules)
      let found = (outcome.runs ?? []).flatMap { Array($0[0]..<$0[0] + $0[1]) }
      if expected.count > 16 { XCTAssertEqual(found, expected, "round \(round), STRATA_SEED=\(seed)") }
      for (a, b) in zip(outcome.runs ?? [], (outcome.runs ?? []).dropFirst()) {
        XCTAssertLessThan(a[0] + a[1], b[0])
      }
    }
  }
}
