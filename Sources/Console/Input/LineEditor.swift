// Editing one line, without a single escape sequence: the cursor moves left by a backspace and right by
// writing again what stands there, so it works on any terminal. A line longer than the screen is shown
// through a window that follows the cursor, for a backspace does not cross the edge of a screen.
//
// History: the last 32 lines; one that repeats the line before is kept once. The line being typed is kept while a person walks through them.
//
// Invariants:
// 1. On the screen, behind the prompt, stands `text[first ..< first + drawn]` and nothing else.
// 2. The cursor stands at `cursor - first` behind the prompt, which is within `0...columns`.
// 3. Nothing is written outside the `columns` columns behind the prompt.

import MemoryPrimitives

/// A line as it is being typed, and the lines before it. Large: lives in place, in the console's state.
struct LineEditor {
  static var capacity: Int { 255 }
  static var historyCapacity: Int { 32 }

  typealias Text = InlineArray<256, UInt8>

  enum Event: Equatable { case none, line, complete, interrupt, clear, leave }

  private(set) var count = 0
  private(set) var cursor = 0
  /// A byte was typed that the full line did not take, and the line has not been edited since.
  private(set) var hasOverflowed = false
  private var first = 0
  private var drawn = 0
  private var shown = 0
  private var columns = 71
  private var text: Text
  private var kept = 0
  private var newest = 0
  /// The position in the history; 0 is the line being typed.
  private var back = 0
  private var draftCount = 0
  private var draft: Text
  private var history: InlineArray<32, Text>
  private var historyCounts: InlineArray<32, UInt16>

  init() {
    text = Text(repeating: 0)
    draft = Text(repeating: 0)
    history = InlineArray(repeating: Text(repeating: 0))
    historyCounts = InlineArray(repeating: 0)
  }

  /// Adopts another number of columns behind the prompt: the screen has another width from now on.
  mutating func resize(columns: Int) { self.columns = min(max(8, columns), 240) }

  /// Starts a new line with `columns` columns behind the prompt, the last of them for the cursor.
  mutating func begin(columns: Int) {
    resize(columns: columns)
    hasOverflowed = false
    count = 0
    cursor = 0
    first = 0
    drawn = 0
    shown = 0
    column = 0
    back = 0
  }

  func byte(_ index: Int) -> UInt8 { text[index] }

  /// Where the word that ends at the cursor begins.
  var wordStart: Int {
    var start = cursor
    while start > 0 && text[start - 1] != UInt8(ascii: " ") { start -= 1 }
    return start
  }

  mutating func feed(_ key: Key, _ terminal: Terminal) -> Event {
    switch key {
    case .character(let byte):
      insert(byte)
    case .backspace:
      remove(max(0, cursor - 1), cursor)
    case .delete:
      remove(cursor, min(count, cursor + 1))
    case .left: cursor = max(0, cursor - 1)
    case .right: cursor = min(count, cursor + 1)
    case .wordLeft:
      while cursor > 0 && text[cursor - 1] == UInt8(ascii: " ") { cursor -= 1 }
      cursor = wordStart
    case .wordRight:
      while cursor < count && text[cursor] == UInt8(ascii: " ") { cursor += 1 }
      while cursor < count && text[cursor] != UInt8(ascii: " ") { cursor += 1 }
    case .home: cursor = 0
    case .end: cursor = count
    case .eraseLine: remove(0, cursor)
    case .eraseToEnd: remove(cursor, count)
    case .eraseWord:
      let end = cursor
      while cursor > 0 && text[cursor - 1] == UInt8(ascii: " ") { cursor -= 1 }
      remove(wordStart, end)
    case .up: walk(to: back + 1)
    case .down: walk(to: back - 1)
    case .tab: return .complete
    case .clearScreen: return .clear
    case .interrupt: return .interrupt
    case .endOfInput:
      if count == 0 { return .leave }
      remove(cursor, min(count, cursor + 1))
    case .enter:
      cursor = count
      show(terminal)
      remember()
      return .line
    case .cursor:
      return .none
    }
    show(terminal)
    return .none
  }

  /// Puts `byte` in at the cursor; a full line takes no more.
  mutating func insert(_ byte: UInt8) {
    guard count < Self.capacity else {
      hasOverflowed = true
      return
    }
    var i = count
    while i > cursor {
      text[i] = text[i - 1]
      i -= 1
    }
    text[cursor] = byte
    count += 1
    cursor += 1
    shown = min(shown, cursor - 1)
  }

  private mutating func remove(_ from: Int, _ to: Int) {
    guard from < to else { return }
    hasOverflowed = false
    var i = to
    while i < count {
      text[from + i - to] = text[i]
      i += 1
    }
    count -= to - from
    cursor = from
    shown = min(shown, from)
  }

  // MARK: On the screen

  /// Updates the screen to the text. Up to `shown` the two agree already.
  mutating func show(_ terminal: Terminal) {
    let before = first
    if cursor < first { first = max(0, cursor - columns / 4) }
    if cursor - first > columns - 1 { first = cursor - columns + 1 + columns / 4 }
    if first != before { shown = 0 }
    let visible = min(count - first, columns - 1)
    // Columns at the left that need no change.
    let same = first == before ? max(0, min(min(shown - first, visible), drawn)) : 0
    let target = cursor - first
    if same == visible && drawn == visible {
      move(terminal, from: column, to: target)
    } else {
      move(terminal, from: column, to: same)
      var line = Line()
      for i in same..<max(same, visible) { line.append(byte: text[first + i]) }
      let surplus = max(0, drawn - visible)
      line.append(blanks: surplus)
      terminal.write(line)
      move(terminal, from: visible + surplus, to: target)
    }
    drawn = visible
    column = target
    shown = count
  }

  /// Where the cursor stands behind the prompt.
  private var column = 0

  private func move(_ terminal: Terminal, from: Int, to: Int) {
    var line = Line()
    if to < from {
      for _ in to..<from { line.append(byte: 0x08) }
    } else {
      for i in from..<max(from, to) { line.append(byte: text[first + i]) }
    }
    terminal.write(line)
  }

  /// Redraws the line behind a prompt that was just written.
  mutating func showAgain(_ terminal: Terminal) {
    drawn = 0
    column = 0
    shown = 0
    show(terminal)
  }

  // MARK: History

  private mutating func remember() {
    guard count > 0 else { return }
    if kept > 0 && historyCounts[newest] == UInt16(count) {
      var same = true
      for i in 0..<count where history[newest][i] != text[i] { same = false }
      if same { return }
    }
    newest = (newest + 1) % Self.historyCapacity
    for i in 0..<count { history[newest][i] = text[i] }
    historyCounts[newest] = UInt16(count)
    kept = min(kept + 1, Self.historyCapacity)
  }

  private mutating func walk(to wanted: Int) {
    guard wanted >= 0 && wanted <= kept && wanted != back else { return }
    if back == 0 {
      for i in 0..<count { draft[i] = text[i] }
      draftCount = count
    }
    hasOverflowed = false
    back = wanted
    if back == 0 {
      for i in 0..<draftCount { text[i] = draft[i] }
      count = draftCount
    } else {
      let entry = (newest - (back - 1) + Self.historyCapacity) % Self.historyCapacity
      count = Int(historyCounts[entry])
      for i in 0..<count { text[i] = history[entry][i] }
    }
    cursor = count
    shown = 0
  }
}
