import MemoryPrimitives
import XCTest

@testable import Console

final class CommandWordsTests: XCTestCase {
  func split(_ line: String) -> [String] {
    var words = Words()
    bytes(line) { words.split($0) }
    XCTAssertEqual(words.problem, .none)
    return (0..<words.count).map { word in
      String(decoding: (0..<words.length(word)).map { words.text[words.begin(word) + $0] }, as: UTF8.self)
    }
  }

  func testBlanksSeparateWordsAndQuotesKeepThem() {
    XCTAssertEqual(split("  why  2M   align=2M "), ["why", "2M", "align=2M"])
    XCTAssertEqual(split("a \"b c\" 'd \"e' f\\ g"), ["a", "b c", "d \"e", "f g"])
    XCTAssertEqual(split("x=\"1 2\" \"\""), ["x=1 2", ""])
    XCTAssertEqual(split(""), [])
  }

  func testAnErrorInQuotingSaysWhereItIs() {
    var words = Words()
    bytes("whatis \"0x10") { words.split($0) }
    XCTAssertEqual(words.problem, .openQuote)
    XCTAssertEqual(words.problemColumn, 7)
    bytes(String(repeating: "a ", count: 30)) { words.split($0) }
    XCTAssertEqual(words.problem, .tooManyWords)
    bytes(String(repeating: "a", count: 600)) { words.split($0) }
    XCTAssertEqual(words.problem, .tooLong)
  }
}
