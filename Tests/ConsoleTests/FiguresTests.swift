import MemoryPrimitives
import XCTest

@testable import Console

final class FiguresTests: XCTestCase {
  func size(_ text: String) throws -> UInt64 { try bytes(text) { try Figures.size($0).rawValue } }

  func testSizesAreReadInEverySpellingThatIsPrinted() throws {
    for (typed, expected) in [
      ("0", 0), ("4096", 4096), ("1_000", 1000), ("1,000,000", 1_000_000), ("0x10_0000", 1 << 20),
      ("2M", 2 << 20), ("2MiB", 2 << 20), ("2 MiB", 2 << 20), ("3k", 3 << 10), ("1g", 1 << 30),
      ("16T", 16 << 40),
      ("12B", 12), ("16777215T", 16_777_215 << 40),
    ] as [(String, UInt64)] {
      XCTAssertEqual(try size(typed), expected, typed)
    }
  }

  func testAnErrorInASizeSaysWhereAndWhy() {
    for (typed, reason, at) in [
      ("", .empty, 0), ("M", .notADigit, 0), ("2X", .unknownUnit, 1), ("2MB", .unknownUnit, 1),
      ("3.5M", .notADigit, 1), ("18446744073709551616", .tooLarge, 19), ("16777216T", .tooLarge, 0),
      ("0x", .empty, 2), ("0xg", .notADigit, 2), ("2Mx", .unknownUnit, 1), ("_1", .notADigit, 0),
    ] as [(String, FigureError.Reason, Int)] {
      XCTAssertThrowsError(try size(typed), typed) {
        XCTAssertEqual($0 as? FigureError, FigureError(reason: reason, at: at), typed)
      }
    }
  }

  func testAddressesAndRangesAreRead() throws {
    XCTAssertEqual(try bytes("0xffff_8000_0fc9_6c40") { try Figures.address($0) }, 0xffff_8000_0fc9_6c40)
    XCTAssertEqual(try bytes("ffff_8000_0fc9_6c40") { try Figures.address($0) }, 0xffff_8000_0fc9_6c40)
    let (start, length) = try bytes("0x0fc0_0000+2M") { try Figures.range($0, length: nil) }
    XCTAssertEqual(start, 0xfc0_0000)
    XCTAssertEqual(length, .mebibytes(2))
    for (typed, reason, at) in [
      ("0x10+", .empty, 5), ("0x10+0", .emptyRange, 5), ("0x10", .noPlus, 4),
      ("0xffff_ffff_ffff_ffff+2", .tooLarge, 22), ("0x10+2Q", .unknownUnit, 6),
    ] as [(String, FigureError.Reason, Int)] {
      XCTAssertThrowsError(try bytes(typed) { try Figures.range($0, length: nil) }, typed) {
        XCTAssertEqual($0 as? FigureError, FigureError(reason: reason, at: at), typed)
      }
    }
  }

  func testSlipsAreCountedAsTheHandMakesThem() {
    func count(_ a: String, _ b: String) -> Int { bytes(a) { a in bytes(b) { slips(a, $0, limit: 9) } } }
    XCTAssertEqual(count("frame", "frames"), 1)
    XCTAssertEqual(count("fraems", "frames"), 1)
    XCTAssertEqual(count("", "map"), 3)
    XCTAssertEqual(count("buddy", "buddy"), 0)
    XCTAssertEqual(count("kmem", "vmem"), 1)
  }
}
