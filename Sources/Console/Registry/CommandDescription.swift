// The description of a command: all that `help`, Tab and the check of its arguments need to know of it.

import MemoryPrimitives

/// A question that a person has, under which `help` lists the commands that answer it.
enum Question: UInt8 {
  case use, failure, thing, trial, change, tuning

  static var count: Int { Int(Question.tuning.rawValue) + 1 }

  var title: StaticString {
    switch self {
    case .use: "Where did my memory go?"
    case .failure: "Why did it fail?"
    case .thing: "What is this?"
    case .trial: "Try it"
    case .change: "What has changed?"
    case .tuning: "Tune it, leave"
    }
  }
}

/// The description of a command. It stands in the command's own file.
struct CommandDescription {
  /// Whether a command takes words besides `-a` and `-j`.
  enum ArgumentRule: UInt8 { case none, some }

  let name: StaticString
  let usage: StaticString
  let about: StaticString
  /// A line that works on the machine that `make run` boots, once the line `after` was typed.
  let example: StaticString
  /// The line that makes what the example needs; empty when it needs nothing.
  let after: StaticString
  let question: Question
  /// The command as the overview of `help` shows it: its name, or the name and what to type behind it.
  let entry: StaticString
  /// Other words for it, with blanks between them: names that other systems give it.
  let synonyms: StaticString
  let completion: Completion
  let arguments: ArgumentRule

  init(
    name: StaticString, usage: StaticString, about: StaticString, example: StaticString,
    after: StaticString = "", question: Question, entry: StaticString? = nil, synonyms: StaticString = "",
    completion: Completion = .none,
    arguments: ArgumentRule = .some
  ) {
    self.name = name
    self.usage = usage
    self.about = about
    self.example = example
    self.after = after
    self.question = question
    self.entry = entry ?? name
    self.synonyms = synonyms
    self.completion = completion
    self.arguments = arguments
  }

  func hasSynonym(_ word: Bytes) -> Bool {
    var found = false
    forEachWord(of: synonyms) { if $0 == word { found = true } }
    return found
  }
}

/// Calls `body` with each word of `text`; one blank stands between two.
func forEachWord(of text: StaticString, _ body: (Bytes) -> Void) {
  let bytes = Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount)
  var from = 0
  for i in 0...bytes.count where i == bytes.count || bytes[i] == UInt8(ascii: " ") {
    if i > from { body(Bytes(rebasing: bytes[from..<i])) }
    from = i + 1
  }
}

func == (a: Bytes, b: Bytes) -> Bool {
  guard a.count == b.count else { return false }
  for i in 0..<a.count where a[i] != b[i] { return false }
  return true
}
