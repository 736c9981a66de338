// The output of the console: lines, a screen at a time, colour that only repeats.

import MemoryPrimitives

/// The meanings of colours; the letters carry the same information.
enum Tint: UInt8 { case plain, free, unmovable, wrong }

extension Shell {
  /// Whether no row is left out: a person asks for all of them, a tool always gets them.
  var showsEverything: Bool { showsAll || isJSON }

  /// Prints a line for a person; with `-j` nothing. A line wider than the screen continues below, indented, at the start of a word: a terminal would
  /// break it within a word. After a screenful the pager stops first; after Ctrl-C nothing more is printed.
  @inline(never) func print(_ line: Line) {
    guard !isJSON, !shouldStop else { return }
    endProgress()
    let isWrong = line.count > 1 && line[0] == UInt8(ascii: "!") && line[1] == UInt8(ascii: " ")
    var from = 0
    repeat {
      pageBreak(lines: 1)
      guard !state.pointee.stopped else { return }
      let end = Self.lineEnd(line, from: from, columns: from == 0 ? width : width - 2)
      if isWrong { tint(.wrong) }
      var part = Line()
      if from > 0 { part.append(blanks: 2) }
      for i in from..<end { part.append(byte: line[i]) }
      terminal.write(part)
      if isWrong { tint(.plain) }
      newline()
      from = end
      while from < line.count && line[from] == UInt8(ascii: " ") { from += 1 }
    } while from < line.count
  }

  /// Where to break the rest of a line that has `columns` columns.
  private static func lineEnd(_ line: Line, from start: Int, columns: Int) -> Int {
    guard line.count - start > columns else { return line.count }
    var first = start
    while first < line.count && line[first] == UInt8(ascii: " ") { first += 1 }
    var end = start + columns
    while end > first && line[end] != UInt8(ascii: " ") { end -= 1 }
    while end > first && line[end - 1] == UInt8(ascii: " ") { end -= 1 }
    return end > first ? end : start + columns
  }

  /// Prints a line that a layer has written.
  package func write(_ line: Line) { print(line) }

  /// Ends a line. While a screen is redrawn in place, what stood behind it before is erased.
  func newline() { terminal.write(state.pointee.redraws ? "\u{1b}[K\r\n" : "\r\n") }

  /// Prints text for a person without ending the line; with `-j` nothing.
  func put(_ text: Line, _ color: Tint = .plain) {
    guard !isJSON, !state.pointee.stopped else { return }
    endProgress()
    if color != .plain { tint(color) }
    terminal.write(text)
    if color != .plain { tint(.plain) }
  }

  private var hasColor: Bool {
    state.pointee.isTerminal && state.pointee.wantsColor && state.pointee.isInteractive && !isJSON
  }

  func tint(_ color: Tint) {
    guard hasColor else { return }
    switch color {
    case .plain: terminal.write(Line("\u{1b}[0m"))
    case .free: terminal.write(Line("\u{1b}[32m"))
    case .unmovable: terminal.write(Line("\u{1b}[33m"))
    case .wrong: terminal.write(Line("\u{1b}[31m"))
    }
  }

  // MARK: The pager

  private var pages: Bool { state.pointee.isInteractive && !isJSON }

  func beginPage() { state.pointee.rowsLeft = max(2, state.pointee.height - 1) }

  /// Stops at the pager before `lines` more lines would scroll the first line of this screen away.
  func pageBreak(lines: Int) {
    guard pages else { return }
    if state.pointee.rowsLeft < lines { askForMore() }
    state.pointee.rowsLeft -= lines
  }

  private func askForMore() {
    terminal.write("-- more --")
    while true {
      var isForThePrompt = false
      switch peekKey() {
      case .enter, .down:
        state.pointee.rowsLeft = 1
      case .character(UInt8(ascii: " ")):
        beginPage()
      case .character(UInt8(ascii: "q")):
        // Of a pasted line it is the first letter.
        isForThePrompt = terminal.unread > 0 && terminal.byte(at: 0) >= UInt8(ascii: "a")
        state.pointee.stopped = true
      case .interrupt:
        state.pointee.stopped = true
        state.pointee.interrupted = true
      case .character:
        // A key that begins a command ends the listing.
        isForThePrompt = true
        state.pointee.stopped = true
      default:
        dropKey()
        continue
      }
      if !isForThePrompt { dropKey() }
      // Overwritten rather than erased, because a terminal without escapes can do that too.
      terminal.write("\r          \r")
      return
    }
  }

  // MARK: A long operation

  /// Draws `done` of `total` as a bar that the next one overwrites. Draws nothing where that is not possible.
  func progress(_ what: Line, _ done: UInt64, of total: UInt64, _ tail: Line) {
    guard state.pointee.isTerminal, state.pointee.isInteractive, !isJSON, !state.pointee.stopped else {
      return
    }
    let cells: UInt64 = 20
    let filled = total == 0 ? cells : min(cells, done * cells / total)
    var line = Line()
    line.append("\r")
    line.append(line: what)
    line.append("  [")
    for cell in 0..<cells { line.append(byte: UInt8(ascii: cell < filled ? "#" : ".")) }
    line.append("] ")
    let share = Line("\(total == 0 ? 100 : done * 100 / total)")
    line.append(blanks: 3 - share.count)
    line.append(line: share)
    line.append(" %   ")
    line.append(line: tail)
    if line.count > width { line.truncate(to: width) }
    line.append(blanks: width - line.count)
    terminal.write(line)
    state.pointee.bar.isDrawn = true
  }

  /// Removes the bar from the screen, if it is there.
  func endProgress() {
    guard state.pointee.bar.isDrawn else { return }
    state.pointee.bar.isDrawn = false
    var line = Line("\r")
    line.append(blanks: width - 1)
    line.append("\r")
    terminal.write(line)
  }
}
