// A typed line taken apart into words.
//
// Blanks part words; single or double quotes keep blanks in one; a backslash takes the next byte as it
// is. A word remembers where on the line it was typed, for the caret under an error.

import MemoryPrimitives

/// The words of one line, in place: a copy of the line without quotes and where each word stands. Valid
/// as zeroes.
struct Words {
  static var capacity: Int { 24 }

  enum Problem: UInt8 { case none, openQuote, tooManyWords, tooLong }

  private(set) var lineCount = 0
  var line: InlineArray<512, UInt8>
  var text: InlineArray<512, UInt8>
  private(set) var count = 0
  private var begins: InlineArray<24, UInt16>
  private var lengths: InlineArray<24, UInt16>
  private var columns: InlineArray<24, UInt16>
  private var widths: InlineArray<24, UInt16>
  /// Words that the command has read, a bit each.
  var taken: UInt32 = 0
  private(set) var problem = Problem.none
  private(set) var problemColumn = 0

  init() {
    line = InlineArray(repeating: 0)
    text = InlineArray(repeating: 0)
    begins = InlineArray(repeating: 0)
    lengths = InlineArray(repeating: 0)
    columns = InlineArray(repeating: 0)
    widths = InlineArray(repeating: 0)
  }

  mutating func split(_ typed: Bytes) {
    count = 0
    taken = 0
    problem = typed.count > 511 ? .tooLong : .none
    problemColumn = 511
    lineCount = min(typed.count, 511)
    for i in 0..<lineCount { line[i] = typed[i] }
    guard problem == .none else { return }
    var i = 0
    var used = 0
    while true {
      while i < lineCount && (line[i] == UInt8(ascii: " ") || line[i] == 9) { i += 1 }
      guard i < lineCount else { return }
      guard count < Self.capacity else {
        problem = .tooManyWords
        problemColumn = i
        return
      }
      let column = i
      let begin = used
      var quote: UInt8 = 0
      var quoteColumn = 0
      while i < lineCount {
        let byte = line[i]
        if quote == 0 && (byte == UInt8(ascii: " ") || byte == 9) { break }
        i += 1
        if byte == UInt8(ascii: "\\") && i < lineCount && quote != UInt8(ascii: "'") {
          text[used] = line[i]
          used += 1
          i += 1
        } else if quote != 0 && byte == quote {
          quote = 0
        } else if quote == 0 && (byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'")) {
          quote = byte
          quoteColumn = i - 1
        } else {
          text[used] = byte
          used += 1
        }
      }
      if quote != 0 {
        problem = .openQuote
        problemColumn = quoteColumn
        return
      }
      begins[count] = UInt16(begin)
      lengths[count] = UInt16(used - begin)
      columns[count] = UInt16(column)
      widths[count] = UInt16(i - column)
      count += 1
    }
  }

  /// The bytes from `first` on, before `end`, of the line as typed.
  func typed(from first: Int = 0, to end: Int = .max) -> Line {
    var part = Line()
    for i in first..<max(first, min(end, lineCount)) { part.append(byte: line[i]) }
    return part
  }

  /// Whether `-j` stands anywhere behind the command, in quotes or not: the line may not be one of words.
  var asksForRows: Bool {
    var i = 0
    while i + 3 <= lineCount {
      let isFlag =
        line[i] == UInt8(ascii: " ") && line[i + 1] == UInt8(ascii: "-") && line[i + 2] == UInt8(ascii: "j")
      if isFlag && (i + 3 == lineCount || line[i + 3] == UInt8(ascii: " ")) { return true }
      i += 1
    }
    return false
  }

  func begin(_ word: Int) -> Int { Int(begins[word]) }
  func length(_ word: Int) -> Int { Int(lengths[word]) }
  /// Where the word stands on the line, quotes included.
  func column(_ word: Int) -> Int { Int(columns[word]) }
  func width(_ word: Int) -> Int { Int(widths[word]) }
}
