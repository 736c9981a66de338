import HostMachine
import MemoryPrimitives
import Workloads
import XCTest

@testable import Console

final class KeyDecoderTests: XCTestCase {
  func keys(_ text: String) -> [Key] {
    var decoder = KeyDecoder()
    return text.utf8.compactMap { decoder.feed($0, at: 0) }
  }

  func testArrowsHomeEndAndDeleteAreDecodedInEverySpelling() {
    XCTAssertEqual(keys("\u{1b}[A\u{1b}[B\u{1b}[C\u{1b}[D"), [.up, .down, .right, .left])
    XCTAssertEqual(keys("\u{1b}OA\u{1b}OD\u{1b}OH\u{1b}OF"), [.up, .left, .home, .end])
    XCTAssertEqual(keys("\u{1b}[H\u{1b}[F\u{1b}[1~\u{1b}[4~\u{1b}[3~"), [.home, .end, .home, .end, .delete])
    XCTAssertEqual(
      keys("\u{1b}[1;5C\u{1b}[1;5D\u{1b}b\u{1b}f"), [.wordRight, .wordLeft, .wordLeft, .wordRight])
  }

  func testUnknownSequencesLeaveNothingBehind() {
    XCTAssertEqual(keys("\u{1b}[15~\u{1b}[?1;2c\u{1b}[200~a"), [.character(0x61)])
    XCTAssertEqual(keys("\u{1b}\u{1b}[Aa"), [.up, .character(0x61)])
  }

  func testAControlCharacterEndsASequenceAndCounts() {
    for begun in ["\u{1b}", "\u{1b}[", "\u{1b}[1;", "\u{1b}O"] {
      XCTAssertEqual(keys(begun + "\u{03}f"), [.interrupt, .character(0x66)], begun.debugDescription)
    }
  }

  /// A report of a size has parameters; the arrows behind it have none.
  func testParametersOfOneSequenceAreNotThoseOfTheNext() {
    XCTAssertEqual(
      keys("\u{1b}[24;80R\u{1b}OC\u{1b}OD\u{1b}[1;5C\u{1b}OA"),
      [.cursor(row: 24, column: 80), .right, .left, .wordRight, .up])
    XCTAssertEqual(keys("\u{1b}[24;80R\u{1b}ORa"), [.cursor(row: 24, column: 80), .character(0x61)])
  }

  func testAPastedLineEndsOnce() {
    XCTAssertEqual(
      keys("a\r\nb\nc\r"), [.character(0x61), .enter, .character(0x62), .enter, .character(0x63), .enter])
  }

  func testAnEscapeKeyPressedByHandDoesNotSwallowTheNextKey() {
    var decoder = KeyDecoder()
    XCTAssertNil(decoder.feed(0x1b, at: 0))
    XCTAssertEqual(decoder.feed(UInt8(ascii: "f"), at: 300), .character(UInt8(ascii: "f")))
  }
}
