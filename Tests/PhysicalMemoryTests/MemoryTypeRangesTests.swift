import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

/// The registers of a processor, by number.
struct RangeRegisters {
  var values: [UInt32: UInt64] = [:]
  var addressBits: UInt32 = 36
  var vendor = MemoryTypeRanges.Vendor.other

  typealias CacheType = MemoryTypeRanges.CacheType

  /// On, with this default type and space for eight variable ranges.
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

  func testRegistersThatAreAbsentOrOffChangeNothing() {
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
  func testOverlappingRangesAreMerged() {
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
  func testRandomRegistersAgreeWithBruteForce() {
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
