import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Console

final class LineEditorTests: XCTestCase {
  /// A model of the editor, without a screen.
  struct Model {
    var text: [UInt8] = []
    var cursor = 0
    mutating func feed(_ key: Key) {
      func isBlank(_ i: Int) -> Bool { text[i] == 0x20 }
      switch key {
      case .character(let byte):
        if text.count < LineEditor.capacity {
          text.insert(byte, at: cursor)
          cursor += 1
        }
      case .backspace:
        if cursor > 0 {
          cursor -= 1
          text.remove(at: cursor)
        }
      case .delete: if cursor < text.count { text.remove(at: cursor) }
      case .left: cursor = max(0, cursor - 1)
      case .right: cursor = min(text.count, cursor + 1)
      case .home: cursor = 0
      case .end: cursor = text.count
      case .eraseLine:
        text.removeSubrange(0..<cursor)
        cursor = 0
      case .eraseToEnd: text.removeSubrange(cursor...)
      case .eraseWord, .wordLeft:
        let end = cursor
        while cursor > 0 && isBlank(cursor - 1) { cursor -= 1 }
        while cursor > 0 && !isBlank(cursor - 1) { cursor -= 1 }
        if key == .eraseWord { text.removeSubrange(cursor..<end) }
      case .wordRight:
        while cursor < text.count && isBlank(cursor) { cursor += 1 }
        while cursor < text.count && !isBlank(cursor) { cursor += 1 }
      default: break
      }
    }
  }

  func testRandomKeysLeaveTheScreenAsTheTextIs() {
    let seed = historySeed(7)
    var random = SeededRandom(seed: seed)
    for round in 0..<24 {
      let terminal = ScriptedTerminal()
      var editor = LineEditor()
      var model = Model()
      let columns = round % 3 == 0 ? 12 : 72
      editor.begin(columns: columns)
      for step in 0..<400 {
        let key: Key
        switch random.below(14) {
        case 0...5: key = .character(UInt8(0x61 + random.below(26)))
        case 6: key = .character(0x20)
        case 7: key = [.backspace, .delete][Int(random.below(2))]
        case 8: key = .left
        case 9: key = .right
        case 10: key = [.home, .end][Int(random.below(2))]
        case 11: key = [.wordLeft, .wordRight][Int(random.below(2))]
        case 12: key = random.oneIn(4) ? [.eraseLine, .eraseToEnd, .eraseWord][Int(random.below(3))] : .left
        default: key = .backspace
        }
        _ = editor.feed(key, terminal.terminal)
        model.feed(key)
        let typed = (0..<editor.count).map { editor.byte($0) }
        XCTAssertEqual(typed, model.text, "seed \(seed), step \(step)")
        XCTAssertEqual(editor.cursor, model.cursor)
        let (shown, column) = terminal.lastLine()
        XCTAssertLessThan(shown.utf8.count, columns)
        var end = model.text
        while end.last == 0x20 { end.removeLast() }
        // The screen shows the part of the text under the window.
        let first = model.cursor - column
        XCTAssertGreaterThanOrEqual(first, 0)
        var expected = Array(
          model.text[min(first, model.text.count)..<min(model.text.count, first + columns - 1)])
        while expected.last == 0x20 { expected.removeLast() }
        guard shown == String(decoding: expected, as: UTF8.self) else {
          return XCTFail(
            "seed \(seed) round \(round) step \(step) \(key): screen |\(shown)|, text \(expected)")
        }
      }
    }
  }

  func testHistoryWalksBackAndKeepsTheDraft() {
    let harness = ConsoleHarness()
    let script = "help frames\rhelp map\rhelp map\rhel\u{1b}[A\u{1b}[A\u{1b}[B\u{1b}[B\u{15}"
    _ = harness.converse(script)
    XCTAssertEqual(harness.terminal.left, [0])
    // Two lines stand in history, not three: a line typed twice in a row is kept once.
    let terminal = ScriptedTerminal()
    var editor = LineEditor()
    func type(_ text: String) {
      for byte in text.utf8 { _ = editor.feed(byte == 13 ? .enter : .character(byte), terminal.terminal) }
    }
    func line() -> String { String(decoding: (0..<editor.count).map { editor.byte($0) }, as: UTF8.self) }
    for entry in ["one\r", "two\r", "two\r", "dra"] {
      editor.begin(columns: 70)
      type(entry)
    }
    XCTAssertEqual(line(), "dra")
    _ = editor.feed(.up, terminal.terminal)
    XCTAssertEqual(line(), "two")
    _ = editor.feed(.up, terminal.terminal)
    XCTAssertEqual(line(), "one")
    _ = editor.feed(.up, terminal.terminal)
    XCTAssertEqual(line(), "one")
    _ = editor.feed(.down, terminal.terminal)
    _ = editor.feed(.down, terminal.terminal)
    XCTAssertEqual(line(), "dra")
  }

  func testHistoryForgetsTheOldestOf33Lines() {
    let terminal = ScriptedTerminal()
    var editor = LineEditor()
    for number in 0..<40 {
      editor.begin(columns: 70)
      for byte in "\(number)".utf8 { _ = editor.feed(.character(byte), terminal.terminal) }
      _ = editor.feed(.enter, terminal.terminal)
    }
    editor.begin(columns: 70)
    for _ in 0..<50 { _ = editor.feed(.up, terminal.terminal) }
    XCTAssertEqual(String(decoding: (0..<editor.count).map { editor.byte($0) }, as: UTF8.self), "8")
  }
}
