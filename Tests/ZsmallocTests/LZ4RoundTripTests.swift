import TestSupport
import Workloads
import XCTest
import Zsmalloc

final class LZ4RoundTripTests: XCTestCase {
  private let checks = LZ4Checks(1 << 16)

  func testEverySizeUpToAPageComesBack() {
    var random = SeededRandom(seed: historySeed(1801))
    for count in 0...4096 {
      for edge in [LZ4Guarded.Edge.end, .start] {
        if let complaint = checks.checkRoundTrip(LZ4Inputs.any(count, &random), at: edge) {
          return XCTFail(complaint)
        }
      }
    }
  }

  func testPagesOfEachKindComeBack() {
    var random = SeededRandom(seed: historySeed(1802))
    for kind in LZ4Inputs.Kind.allCases {
      for _ in 0..<100 {
        if let complaint = checks.checkRoundTrip(LZ4Inputs.make(kind, 4096, &random)) {
          return XCTFail("\(kind): \(complaint)")
        }
      }
    }
  }

  func testLargeSourcesComeBack() {
    var random = SeededRandom(seed: historySeed(1803))
    for kind in LZ4Inputs.Kind.allCases {
      for count in [65536, 65535, 65534, 65523, 4097 + Int(random.below(61_000))] {
        if let complaint = checks.checkRoundTrip(LZ4Inputs.make(kind, count, &random)) {
          return XCTFail("\(kind): \(complaint.prefix(2000))")
        }
      }
    }
  }

  func testALargerSourceThanTheTableCanAddressIsRefused() {
    let bytes = [UInt8](repeating: 7, count: 65537)
    XCTAssertNil(LZ4Checks(1 << 17).compress(bytes))
    XCTAssertNotNil(checks.compress(Array(bytes.dropLast())))
  }

  /// Literals and matches of every length around the ones at which a token's field continues in another byte.
  func testEachLengthOfLiteralsAndMatchesComesBack() {
    var random = SeededRandom(seed: 3)
    let noise = LZ4Inputs.make(.random, 1200, &random)
    let lengths = Array(0...40) + Array(260...290) + Array(515...545)
    for literals in lengths {
      for length in lengths {
        let repeated = noise[..<length]
        let bytes = Array(noise[..<600]) + Array(noise[600..<600 + literals]) + repeated + noise[1180...]
        if let complaint = checks.checkRoundTrip(bytes) {
          return XCTFail("\(literals) literals, a match of \(length): \(complaint.prefix(3000))")
        }
      }
    }
  }

  /// The farthest distance that the format has is 65535. The repeated bytes follow so many random ones.
  func testTheFarthestMatchIsFoundAndNoFartherOne() {
    var random = SeededRandom(seed: 4)
    let begin = [UInt8](repeating: 1, count: 3) + LZ4Inputs.make(.random, 20, &random)
    for gap in 65480..<65513 {
      let bytes = begin + LZ4Inputs.make(.random, gap - begin.count, &random) + begin
      XCTAssertNil(checks.checkRoundTrip(bytes))
    }
  }

  func testEveryTargetThatIsTooSmallIsRefusedAndNotLeft() {
    var random = SeededRandom(seed: historySeed(1804))
    for kind in LZ4Inputs.Kind.allCases {
      for count in [0, 1, 5, 12, 13, 14, 20, 100, 333, 4096] {
        let bytes = LZ4Inputs.make(kind, count, &random)
        guard let block = checks.compress(bytes) else { return XCTFail("\(kind), \(count)") }
        for capacity in 0..<block.count + 20 {
          let answer = checks.compress(bytes, capacity: capacity)
          if answer != (capacity < block.count ? nil : block) {
            return XCTFail("\(kind), \(count) bytes into \(capacity), of \(block.count)")
          }
        }
      }
    }
  }

  func testEqualSourcesGiveEqualBlocksWhateverTheTableHeld() {
    var random = SeededRandom(seed: historySeed(1805))
    for seed in 0..<200 as Range<UInt64> {
      let bytes = LZ4Inputs.any(Int(random.below(4097)), &random)
      checks.fillTable(seed)
      let first = checks.compress(bytes)
      checks.fillTable(~seed)
      XCTAssertEqual(checks.compress(bytes, at: .start), first)
    }
  }

  /// Sizes of blocks that a person can check: so a change that loses compression fails.
  func testRepetitiveBytesBecomeSmall() throws {
    XCTAssertEqual(checks.compress([]), [0])
    XCTAssertEqual(checks.compress([1, 2, 3]), [0x30, 1, 2, 3])
    // A literal, a match of 4090 bytes (19 and 15 times 255 and 246) at a distance of 1, five literals.
    let zeroes = [UInt8](repeating: 0, count: 4096)
    let continued = [UInt8](repeating: 255, count: 15) + [246]
    XCTAssertEqual(checks.compress(zeroes), [0x1f, 0, 1, 0] + continued + [0x50, 0, 0, 0, 0, 0])
    // A counter in every fourth word: each is found again with its neighbours' upper bytes.
    let words = (0..<512 as Range<UInt64>).map { $0 % 4 == 0 ? $0 << 40 : 0xffff_8000_1234_5678 }
    let counters = words.withUnsafeBytes { Array($0) }
    XCTAssertLessThan(try XCTUnwrap(checks.compress(counters)).count, 1000)
    // A match of four bytes at the first position, and a longer one at the second.
    let hindsight = Array("-abcdeF bcdefghijklm abcdefghijklm 0123456".utf8)
    for before in [[], [UInt8(0)]] {
      let block = try XCTUnwrap(checks.compress(before + hindsight))
      let model = try XCTUnwrap(LZ4Model(decoding: block, capacity: 100))
      XCTAssertEqual(model.matches.map(\.length), [13])
    }
  }

  func testBytesThatCanNotBeCompressedGrowByLittle() throws {
    var random = SeededRandom(seed: historySeed(1806))
    for count in [0, 14, 15, 269, 270, 271, 4096, 65536] {
      let block = try XCTUnwrap(checks.compress(LZ4Inputs.make(.random, count, &random)))
      XCTAssertLessThanOrEqual(block.count, count + count / 255 + 16)
    }
  }
}
