// The words of a command line, which the command reads one by one. An error points at the word that is wrong.
//
// An error takes at most three lines: the line as typed, a caret under the position with what is wrong, and
// what to do. A word that the command has not read by its end is an error too.

import MemoryPrimitives

/// A word of the line: its text and where it was typed.
struct Word {
  let bytes: Bytes
  let column: Int
  let width: Int

  var line: Line {
    var line = Line()
    line.append(bytes: bytes)
    return line
  }
}

/// The words behind a command: a handle on the words of the console.
struct Arguments {
  let console: Shell

  init(_ console: Shell) throws(CommandError) {
    self.console = console
    switch words.pointee.problem {
    case .none: return
    case .openQuote:
      throw console.refuse(words.pointee.problemColumn, 1, "a quote is opened here and never closed")
    case .tooManyWords:
      throw console.refuse(words.pointee.problemColumn, 1, "too many words: \(Words.capacity) are the most")
    case .tooLong:
      throw console.refuse("The line is too long: 511 bytes are the most.")
    }
  }

  private var words: UnsafeMutablePointer<Words> {
    inPlace(&console.state.pointee.words)
  }

  var count: Int { words.pointee.count }

  subscript(index: Int) -> Word {
    let base = UnsafeRawPointer(inPlace(&words.pointee.text)).assumingMemoryBound(to: UInt8.self)
    return Word(
      bytes: Bytes(
        start: base + words.pointee.begin(index),
        count: words.pointee.length(index)),
      column: words.pointee.column(index), width: words.pointee.width(index))
  }

  private func isTaken(_ index: Int) -> Bool { words.pointee.taken & (1 << UInt32(index)) != 0 }
  private func markUsed(_ index: Int) { words.pointee.taken |= 1 << UInt32(index) }

  private func isFlag(_ word: Word) -> Bool { word.bytes.count > 1 && word.bytes[0] == UInt8(ascii: "-") }

  /// Whether `flag`, as in `-a`, stands anywhere behind the command.
  func takeFlag(_ flag: StaticString) -> Bool {
    var found = false
    for index in 1..<max(1, count) where self[index].bytes == flag {
      markUsed(index)
      found = true
    }
    return found
  }

  /// Reads the next word that has not been read and that is no flag and no NAME=VALUE.
  func next() -> Word? {
    for index in 0..<count where !isTaken(index) {
      let word = self[index]
      if index > 0 && (isFlag(word) || word.bytes.firstIndex(of: UInt8(ascii: "=")) != nil) { continue }
      markUsed(index)
      return word
    }
    return nil
  }

  /// The next word of any form.
  /// Looks at the word that `nextOfAnyForm` would take.
  func peek() -> Word? {
    for index in 0..<count where !isTaken(index) { return self[index] }
    return nil
  }

  func nextOfAnyForm() -> Word? {
    for index in 0..<count where !isTaken(index) {
      markUsed(index)
      return self[index]
    }
    return nil
  }

  /// The value of `name=…`, which stands anywhere behind the command.
  func value(of name: StaticString) -> Word? {
    let length = name.utf8CodeUnitCount
    for index in 1..<max(1, count) where !isTaken(index) {
      let word = self[index]
      guard word.bytes.count > length, word.bytes[length] == UInt8(ascii: "="),
        Bytes(rebasing: word.bytes[0..<length]) == name
      else { continue }
      markUsed(index)
      return part(of: word, from: length + 1)
    }
    return nil
  }

  /// Everything from the next word on, as typed; for commands that run another command.
  func rest() -> Bytes? {
    for index in 0..<count where !isTaken(index) {
      for later in index..<count { markUsed(later) }
      let base = UnsafeRawPointer(inPlace(&words.pointee.line)).assumingMemoryBound(to: UInt8.self)
      let from = words.pointee.column(index)
      return Bytes(
        start: base + from, count: words.pointee.lineCount - from)
    }
    return nil
  }

  /// Throws an error at the first word that the command has not read.
  func end() throws(CommandError) {
    for index in 0..<count where !isTaken(index) {
      let word = self[index]
      if let twice = takenBefore(word) { throw console.refuse(word, "\(twice) is given twice") }
      throw notUnderstood(word)
    }
  }

  /// The error for a word that the command does not take.
  func notUnderstood(_ word: Word) -> CommandError {
    let description = console.state.pointee.command.description
    // A caret and a long usage don't fit one line.
    guard description.usage.utf8CodeUnitCount <= 40 else {
      return console.refuse(word, "not understood here; usage: help \(description.name)")
    }
    return console.refuse(word, "not understood here; usage: \(description.usage)")
  }

  /// The usage of the command that reads these words.
  var usage: StaticString { console.state.pointee.command.description.usage }

  /// The name in a `NAME=VALUE`, when another with that name was read before.
  private func takenBefore(_ word: Word) -> Line? {
    guard let equals = word.bytes.firstIndex(of: UInt8(ascii: "=")) else { return nil }
    for index in 1..<max(1, count) where isTaken(index) {
      let other = self[index].bytes
      guard other.count > equals else { continue }
      var isSame = true
      for i in 0...equals where other[i] != word.bytes[i] { isSame = false }
      guard isSame else { continue }
      var name = Line()
      name.append(bytes: Bytes(rebasing: word.bytes[0..<equals]))
      return name
    }
    return nil
  }

  /// The error for a missing word: the question, unless a word was typed that looks like a flag, as a negative number
  /// does. Then the error points at that word.
  func missing(_ question: Line) -> CommandError {
    for index in 0..<count where !isTaken(index) && isFlag(self[index]) { return notUnderstood(self[index]) }
    return console.refuse(question)
  }

  // MARK: Figures

  func size(_ word: Word) throws(CommandError) -> ByteCount {
    do throws(FigureError) { return try Figures.size(word.bytes) } catch { throw refuse(word, error) }
  }
  func number(_ word: Word) throws(CommandError) -> UInt64 {
    do throws(FigureError) { return try Figures.number(word.bytes) } catch { throw refuse(word, error) }
  }
  func address(_ word: Word) throws(CommandError) -> UInt64 {
    do throws(FigureError) { return try Figures.address(word.bytes) } catch { throw refuse(word, error) }
  }
  func range(_ word: Word, length: ByteCount?) throws(CommandError) -> (start: UInt64, length: ByteCount) {
    do throws(FigureError) { return try Figures.range(word.bytes, length: length) } catch {
      throw refuse(word, error)
    }
  }

  private func refuse(_ word: Word, _ error: FigureError) -> CommandError {
    // Of a range, only the address or only the size is wrong.
    let count = word.bytes.count
    let plus = word.bytes.firstIndex(of: UInt8(ascii: "+")) ?? count
    var (first, end) = error.at < plus ? (error.at, plus) : (error.at, count)
    // A figure is too large as a whole.
    if error.reason == .tooLarge { first = error.at < plus ? 0 : plus + 1 }
    while first < end && word.bytes[first] == UInt8(ascii: " ") { first += 1 }
    first = min(first, end)
    end = max(first, end)
    let wrong = part(of: word, from: first, to: end)
    return console.refuse(wrong.column, max(1, wrong.width), Line(error.description))
  }

  /// The bytes `from` to `end` of a word, and where they stand on the line: the word may have been typed with quotes
  /// and backslashes, which its bytes no longer have.
  func part(of word: Word, from: Int, to end: Int? = nil) -> Word {
    let end = end ?? word.bytes.count
    let first = column(of: word, from)
    let last = end > from ? column(of: word, end - 1) + 1 : first
    return Word(bytes: Bytes(rebasing: word.bytes[from..<end]), column: first, width: last - first)
  }

  /// The column at which byte `index` of a word stands on the line; behind the word for its end.
  private func column(of word: Word, _ index: Int) -> Int {
    guard word.width != word.bytes.count else { return word.column + index }
    let end = word.column + word.width
    var column = word.column
    var left = index
    var quote: UInt8 = 0
    while column < end {
      let byte = words.pointee.line[column]
      if quote == 0 ? byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") : byte == quote {
        // Where a word begins with a quote, its first byte stands behind that.
        quote = quote == 0 ? byte : 0
      } else {
        if byte == UInt8(ascii: "\\") && quote != UInt8(ascii: "'") && column + 1 < end { column += 1 }
        if left == 0 { return column }
        left -= 1
      }
      column += 1
    }
    return column
  }
}

extension Shell {
  func refuse(_ word: Word, _ what: Line) -> CommandError { refuse(word.column, word.width, what) }

  /// Prints the line as typed, and a caret under the position with the error behind it.
  func refuse(_ column: Int, _ width: Int, _ what: Line) -> CommandError {
    if isJSON || wantsJSON {
      errorRow(what, column: column)
      return .refused
    }
    let typed = state.pointee.words.typed()
    // A caret can't stand below a line that the screen breaks.
    guard typed.count <= self.width else {
      var wrong = state.pointee.words.typed(from: column, to: column + min(width, 40))
      if width > 40 { wrong.append("...") }
      print("\"\(wrong)\": \(what)")
      return .refused
    }
    print(typed)
    var caret = Line()
    caret.append(blanks: column)
    for _ in 0..<max(1, min(width, 40)) { caret.append(byte: UInt8(ascii: "^")) }
    if caret.count + 1 + what.count <= self.width {
      caret.append(" ")
      caret.append(line: what)
      print(caret)
    } else {
      print(caret)
      print(what)
    }
    return .refused
  }

  /// Prints an error without a position on the line.
  func refuse(_ sentence: Line) -> CommandError {
    if isJSON || wantsJSON { errorRow(sentence, column: nil) } else { print(sentence) }
    return .refused
  }

  /// As `refuse`, for a command that was understood, tried, and failed.
  func fail(_ sentence: Line) -> CommandError {
    // The reason is printed even when Ctrl-C was typed while the command was at work.
    _ = shouldStop
    printDone { _ = refuse(sentence) }
    return .failed
  }

  /// An error may come before the line has been searched for `-j`.
  private var wantsJSON: Bool { state.pointee.words.asksForRows }

  private func errorRow(_ what: Line, column: Int?) {
    let before = state.pointee.json
    state.pointee.json = true
    row("error") { row in
      row.field("what", text: what)
      row.field("line", text: state.pointee.words.typed())
      row.field("column", column.map { UInt64($0) })
    }
    state.pointee.json = before
  }
}
