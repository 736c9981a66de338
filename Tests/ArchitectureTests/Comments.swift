import Foundation

/// A sentence of a comment, and the line where it begins.
struct Sentence {
  var line: Int
  var text: String

  /// The parts between blanks that have a letter.
  var words: [Substring] { text.split(separator: " ").filter { $0.contains(where: \.isLetter) } }
}

extension SourceTree.File {
  /// The sentences of the comments. A list item, a row of a table and a blank line begin a new one.
  func commentSentences() -> [Sentence] {
    var sentences: [Sentence] = []
    var paragraph: [(line: Int, text: String)] = []
    func finish() {
      sentences += Self.sentences(of: paragraph)
      paragraph = []
    }
    for (number, line) in lines.enumerated() {
      guard let text = Self.comment(of: line) else {
        finish()
        continue
      }
      let trimmed = text.trimmingCharacters(in: .whitespaces)
      if trimmed.isEmpty || Self.beginsItem(trimmed) || trimmed.contains("  ") { finish() }
      if !trimmed.isEmpty { paragraph.append((number, trimmed)) }
      // A comment behind code stands alone.
      if !line.trimmingCharacters(in: .whitespaces).hasPrefix("//") { finish() }
    }
    finish()
    return sentences
  }

  /// The text of a comment in a line, without its slashes.
  private static func comment(of line: String) -> String? {
    guard let start = line.range(of: "//") else { return nil }
    let before = line[..<start.lowerBound]
    // Inside of quotes, or part of an address.
    if before.filter({ $0 == "\"" }).count % 2 == 1 || before.hasSuffix(":") { return nil }
    return String(line[start.lowerBound...].drop { $0 == "/" })
  }

  private static func beginsItem(_ text: String) -> Bool {
    let head = text.prefix { $0 != " " }
    if head == "-" || head == "*" || head.hasPrefix("```") { return true }
    if let last = head.last, last == "." || last == ")" {
      return head.dropLast().allSatisfy(\.isNumber) && head.count > 1
    }
    return false
  }

  private static func sentences(of paragraph: [(line: Int, text: String)]) -> [Sentence] {
    var found: [Sentence] = []
    var (text, first) = ("", 0)
    for (number, line) in paragraph {
      for word in line.split(separator: " ") {
        if text.isEmpty { first = number } else { text.append(" ") }
        text.append(contentsOf: word)
        let bare = word.drop { $0 == "(" || $0 == "`" }
        let isShort = ["vol.", "e.g.", "i.e.", "cf.", "No.", "sec."].contains(String(bare))
        guard let last = word.last, ".!?:".contains(last), !isShort else { continue }
        found.append(Sentence(line: first, text: text))
        text = ""
      }
    }
    if !text.isEmpty { found.append(Sentence(line: first, text: text)) }
    return found
  }
}
