// help: the commands, sorted by the question that a person has.

import KernelMemory
import MemoryPrimitives

extension CommandDescription {
  static var help: CommandDescription {
    CommandDescription(
      name: "help", usage: "help [COMMAND]",
      about: "This.",
      example: "help why", question: .tuning,
      synonyms: "?",
      completion: .names(of: .commands))
  }
}

extension Shell {
  func help(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else {
      Command.forEach { row(for: $0.description) }
      printOverview()
      return
    }
    try arguments.end()
    let description = try command(named: word).description
    row(for: description)
    printUsage(description.usage)
    forEachLine(of: description.about) { text in
      var line = Line("  ")
      line.append(bytes: text)
      print(line)
    }
    if description.after.utf8CodeUnitCount > 0 {
      print("  Example: \(description.example) (type before it: \(description.after))")
    } else {
      print("  Example: \(description.example)")
    }
    if description.synonyms.utf8CodeUnitCount > 0 { print("  Also: \(description.synonyms)") }
  }

  /// All commands, each under the question that it answers.
  private func printOverview() {
    for value in 0..<Question.count {
      guard let question = Question(rawValue: UInt8(value)) else { continue }
      var line = Line(question.title)
      var isFirst = true
      line.append(blanks: Self.overviewIndent - line.count)
      Command.forEach { command in
        let description = command.description
        guard description.question == question else { return }
        if line.count + 1 + description.entry.utf8CodeUnitCount > min(width, 80) {
          print(line)
          line = Line()
          line.append(blanks: Self.overviewIndent)
          isFirst = true
        }
        if !isFirst { line.append(" ") }
        line.append(description.entry)
        isFirst = false
      }
      print(line)
    }
    print("help COMMAND explains one and gives an example. Tab completes. -j is for tools.")
  }

  /// The column at which the overview lists commands, right of the longest question.
  private static var overviewIndent: Int { 25 }

  /// Prints the usage, broken at blanks where it is longer than the screen is wide.
  private func printUsage(_ usage: StaticString) {
    let bytes = Bytes(start: usage.utf8Start, count: usage.utf8CodeUnitCount)
    var from = 0
    while from < bytes.count {
      var line = Line()
      if from > 0 { line.append(blanks: 2) }
      var end = min(bytes.count, from + width - line.count)
      while end < bytes.count && bytes[end] != UInt8(ascii: " ") && end > from + 1 { end -= 1 }
      line.append(bytes: Bytes(rebasing: bytes[from..<end]))
      print(line)
      from = end + 1
    }
  }

  private func row(for command: CommandDescription) {
    row("command") { row in
      row.field("command", text: Line(command.name))
      row.field("usage", text: Line(command.usage))
      row.field("example", text: Line(command.example))
      if command.after.utf8CodeUnitCount > 0 {
        row.field("after", text: Line(command.after))
      } else {
        row.none("after")
      }
    }
  }

  /// Calls `body` with each line of `text`.
  func forEachLine(of text: StaticString, _ body: (Bytes) -> Void) {
    let bytes = Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount)
    var from = 0
    for i in 0...bytes.count where i == bytes.count || bytes[i] == 0x0a {
      body(Bytes(rebasing: bytes[from..<i]))
      from = i + 1
    }
  }
}
