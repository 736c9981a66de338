import TestSupport
import Workloads
import XCTest
import Zsmalloc

final class LZ4DecoderTests: XCTestCase {
  private let checks = LZ4Checks(1 << 16)

  /// A target of the right size, or of another.
  private func capacity(_ count: Int, _ random: inout SeededRandom) -> Int {
    switch random.below(4) {
    case 0: max(0, count - 1 - Int(random.below(40)))
    case 1: Int(random.below(5000))
    case 2: count + Int(random.below(40))
    default: count
    }
  }

  func testDamagedBlocksAreReadAsTheModelReadsThem() {
    var random = SeededRandom(seed: historySeed(1811))
    for _ in 0..<20_000 {
      let bytes = LZ4Inputs.any(Int(random.below(random.oneIn(8) ? 4097 : 300)), &random)
      guard let block = checks.compress(bytes) else { return XCTFail("no block") }
      let damaged = LZ4Inputs.mutate(block, &random)
      let cut = Int(random.below(UInt64(damaged.count + 1)))
      let complaint = checks.checkDecoding(
        damaged, capacity: capacity(bytes.count, &random), cuts: [cut],
        at: random.oneIn(4) ? .start : .end)
      if let complaint { return XCTFail(complaint) }
    }
  }

  func testRandomBytesAreReadAsTheModelReadsThem() {
    var random = SeededRandom(seed: historySeed(1812))
    for _ in 0..<30_000 {
      let count = Int(random.below(60))
      // Low symbols give short sequences, whose distances often lead into the output.
      let low = random.oneIn(2)
      let block = (0..<count).map { _ in UInt8(low ? random.below(4) * 17 : random.below(256)) }
      let cut = Int(random.below(UInt64(count + 1)))
      if let complaint = checks.checkDecoding(block, capacity: Int(random.below(200)), cuts: [cut]) {
        return XCTFail(complaint)
      }
    }
  }

  func testABlockIsReadAcrossEveryCut() {
    var random = SeededRandom(seed: historySeed(1813))
    for kind in LZ4Inputs.Kind.allCases {
      for count in [0, 13, 40, 600, 4096] {
        let bytes = LZ4Inputs.make(kind, count, &random)
        guard let block = checks.compress(bytes) else { return XCTFail("\(kind)") }
        let cuts = Array(0...block.count)
        if let complaint = checks.checkDecoding(block, capacity: count, cuts: cuts) {
          return XCTFail("\(kind), \(count): \(complaint.prefix(2000))")
        }
        XCTAssertEqual(checks.decompress(block, capacity: count), .success(bytes))
      }
    }
  }

  /// Each prefix of a block, and each target that is too small.
  func testABlockThatEndsEarlyIsReadAsTheModelReadsIt() {
    var random = SeededRandom(seed: historySeed(1814))
    for kind in LZ4Inputs.Kind.allCases {
      let bytes = LZ4Inputs.make(kind, 500, &random)
      guard let block = checks.compress(bytes) else { return XCTFail("\(kind)") }
      for count in 0...block.count {
        let complaint = checks.checkDecoding(
          Array(block[..<count]), capacity: 500, cuts: [count / 2, max(0, count - 1)])
        if let complaint { return XCTFail("\(kind): \(complaint)") }
      }
      for capacity in 0..<520 {
        let expected: Result<[UInt8], LZ4Error> =
          capacity < 500 ? .failure(.targetTooSmall) : .success(bytes)
        let answer = checks.decompress(block, capacity: capacity)
        if answer != expected { return XCTFail("\(kind) into \(capacity) bytes: \(answer)") }
      }
    }
  }

  /// Each distance and length, so that the match ends at every place near the target's end.
  func testEachDistanceAndLengthIsRepeatedUpToTheTargetsEnd() {
    let literals = (0..<40).map { UInt8($0 * 6 + 1) }
    for distance in 1...40 {
      for length in 4...60 {
        let field = UInt8(min(length - 4, 15))
        var block: [UInt8] = [0xf0 | field, 25] + literals + [UInt8(distance), 0]
        if field == 15 { block.append(UInt8(length - 19)) }
        block += [0x10, 99]
        for spare in [0, 1, 2, 7, 8, 9, 17, 18, 31, 32, 33, 100] {
          let capacity = 41 + length + spare
          if let complaint = checks.checkDecoding(block, capacity: capacity, cuts: [1, 42, 43, 44]) {
            return XCTFail(complaint)
          }
        }
      }
    }
  }

  func testEachFaultOfABlockIsNamed() {
    func answer(_ block: [UInt8], _ capacity: Int) -> Result<[UInt8], LZ4Error> {
      checks.decompress(block, capacity: capacity)
    }
    let filler = [UInt8](repeating: 9, count: 40)
    XCTAssertEqual(answer([], 10), .failure(.truncated))
    XCTAssertEqual(answer([0x20, 1], 10), .failure(.truncated))
    XCTAssertEqual(answer([0xf0], 100), .failure(.truncated))
    XCTAssertEqual(answer([0xf0, 255, 255], 1000), .failure(.truncated))
    XCTAssertEqual(answer([0x10, 1, 1], 10), .failure(.truncated))
    // It ends with a match.
    XCTAssertEqual(answer([0x10, 1, 1, 0], 10), .failure(.truncated))
    XCTAssertEqual(answer([0x1f, 1, 1, 0], 100), .failure(.truncated))
    XCTAssertEqual(answer([0x30, 1, 2, 3], 2), .failure(.targetTooSmall))
    XCTAssertEqual(answer([0x10, 1, 1, 0, 0], 4), .failure(.targetTooSmall))
    XCTAssertEqual(answer([0x10, 1, 1, 0, 0], 5), .success([1, 1, 1, 1, 1]))
    for spare in [[], filler] {
      XCTAssertEqual(answer([0x10, 1, 0, 0, 0] + spare, 100), .failure(.wrongDistance))
      XCTAssertEqual(answer([0x10, 1, 2, 0, 0] + spare, 100), .failure(.wrongDistance))
      XCTAssertEqual(answer([0x00, 1, 0, 0] + spare, 100), .failure(.wrongDistance))
      XCTAssertEqual(answer([0x10, 1, 0xff, 0xff, 0] + spare, 100), .failure(.wrongDistance))
    }
  }

  func testLengthsThatContinueForLongDoNotOverflow() {
    let many = [UInt8](repeating: 255, count: 65_000)
    XCTAssertEqual(checks.decompress([0xf0] + many + [0, 1, 2], capacity: 4096), .failure(.targetTooSmall))
    XCTAssertEqual(checks.decompress([0xf0] + many, capacity: 4096), .failure(.truncated))
    XCTAssertEqual(
      checks.decompress([0x1f, 7, 1, 0] + many + [0, 0x50, 1, 2, 3, 4, 5], capacity: 4096),
      .failure(.targetTooSmall))
    XCTAssertEqual(checks.decompress([0x1f, 7, 1, 0] + many, capacity: 4096), .failure(.truncated))
  }

  func testBuffersWithoutAnAddressAreEmptyBuffers() throws {
    let nothing = UnsafeRawBufferPointer(start: nil, count: 0)
    let nowhere = UnsafeMutableRawBufferPointer(start: nil, count: 0)
    var table = [UInt64](repeating: 0, count: LZ4Table.byteCount / 8)
    var byte: [UInt8] = [9]
    table.withUnsafeMutableBytes { table in
      let table = LZ4Table(table.baseAddress!)
      XCTAssertNil(LZ4Block.compress(nothing, into: nowhere, table: table))
      XCTAssertEqual(byte.withUnsafeMutableBytes { LZ4Block.compress(nothing, into: $0, table: table) }, 1)
    }
    XCTAssertEqual(byte, [0])
    XCTAssertThrowsError(try LZ4Block.decompress(nothing, into: nowhere))
    try byte.withUnsafeBytes {
      XCTAssertEqual(try LZ4Block.decompress($0, into: nowhere), 0)
      XCTAssertEqual(try LZ4Block.decompress(nothing, continuedBy: $0, into: nowhere), 0)
      XCTAssertEqual(try LZ4Block.decompress($0, continuedBy: nothing, into: nowhere), 0)
    }
  }
}
