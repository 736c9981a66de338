// Typed input: keys for the prompt and the pager, Ctrl-C for a command that runs, and the answers of the
// terminal to where its cursor is.
//
// Bytes stay in the terminal's ring until they are used. A key that is read ahead and turns out to be for another reader
// is kept: the pager leaves the first letter of a command to the prompt.

import MemoryPrimitives

extension Shell {
  // MARK: The size of the terminal

  /// Asks the terminal how large it is and waits 100 ms for the answer. Other input that arrives in that time is
  /// kept. No answer means 80 by 24 and a terminal without escapes.
  func probe() {
    guard !state.pointee.wasProbed else { return }
    state.pointee.wasProbed = true
    terminal.write(Line(Self.sizeQuestion))
    let deadline = terminal.milliseconds + 100
    var passed = 0
    while true {
      let unread = terminal.unread
      // The answer may stand anywhere in the input.
      while passed < unread {
        if let (row, column, length) = cursorAnswer(at: passed, of: unread) {
          remove(at: passed, count: length)
          adoptSize(row: row, column: column)
          return
        }
        if terminal.byte(at: passed) == 0x1b && unread - passed < 10 { break }
        passed += 1
      }
      let now = terminal.milliseconds
      guard now < deadline else { return }
      terminal.rest(milliseconds: deadline - now, unread: unread)
    }
  }

  /// Moves the cursor as far as it goes, asks where it is (ECMA-48, 8.3.35), and moves it back.
  private static var sizeQuestion: StaticString { "\u{1b}7\u{1b}[999;999H\u{1b}[6n\u{1b}8" }

  /// Asks a terminal that has answered once for its size, which may have changed. The answer comes with the input.
  func askForSize() {
    if state.pointee.isTerminal { terminal.write(Line(Self.sizeQuestion)) }
  }

  /// Adopts the size that a terminal has reported.
  private func adoptSize(row: UInt16, column: UInt16) {
    guard row >= 2 && column >= 20 else { return }
    state.pointee.height = Int(row)
    state.pointee.width = min(Int(column), 200)
    state.pointee.isTerminal = true
    state.pointee.editor.resize(columns: width - Self.prompt.utf8CodeUnitCount)
  }

  /// `ESC [ row ; column R` at `index` of the `unread` bytes.
  private func cursorAnswer(
    at index: Int, of unread: Int
  ) -> (row: UInt16, column: UInt16, length: Int)? {
    var decoder = KeyDecoder()
    guard terminal.byte(at: index) == 0x1b else { return nil }
    for i in index..<min(unread, index + 12) {
      if let key = decoder.feed(terminal.byte(at: i), at: 0) {
        if case .cursor(let row, let column) = key { return (row, column, i - index + 1) }
        return nil
      }
    }
    return nil
  }

  // MARK: Keys

  func waitForKey() -> Key {
    let key = peekKey()
    dropKey()
    return key
  }

  /// Waits for a key, and leaves it to the next reader.
  func peekKey() -> Key {
    while true {
      if let key = keyAhead() { return key }
      terminal.rest(milliseconds: 1000)
    }
  }

  /// The next key, if one has been typed; waits for nothing.
  func pollKey() -> Key? {
    let key = keyAhead()
    dropKey()
    return key
  }

  /// Drops the key that was read ahead.
  func dropKey() { state.pointee.keyAhead = nil }

  private func keyAhead() -> Key? {
    while state.pointee.keyAhead == nil, terminal.unread > 0 {
      let byte = terminal.byte(at: 0)
      remove(at: 0, count: 1)
      guard let key = state.pointee.decoder.feed(byte, at: terminal.milliseconds) else { continue }
      if case .cursor(let row, let column) = key {
        // A late answer to the first question is dropped: the terminal counts as one without escapes.
        if state.pointee.isTerminal { adoptSize(row: row, column: column) }
      } else {
        state.pointee.keyAhead = key
      }
    }
    return state.pointee.keyAhead
  }

  private func remove(at index: Int, count: Int) {
    terminal.remove(at: index, count: count)
    let searched = state.pointee.searched
    state.pointee.searched = max(min(searched, index), searched - count)
  }

  // MARK: Ctrl-C

  /// Whether this command should stop, by Ctrl-C or at the pager. Long commands check it now and then.
  var shouldStop: Bool {
    if state.pointee.stopped { return true }
    guard state.pointee.heedsInterrupts, let interrupt = lastInterrupt() else { return false }
    // Input before a Ctrl-C is dropped with it. A line typed behind it is kept.
    remove(at: 0, count: interrupt + 1)
    dropKey()
    // So is a sequence of which only the beginning was read: the next key is no part of it.
    state.pointee.decoder = KeyDecoder()
    state.pointee.stopped = true
    state.pointee.interrupted = true
    state.pointee.bar.isDrawn = false
    newline()
    terminal.write("^C")
    newline()
    return true
  }

  /// The last Ctrl-C among the bytes that came since the search before.
  private func lastInterrupt() -> Int? {
    let unread = terminal.unread
    var last: Int?
    for i in state.pointee.searched..<max(unread, state.pointee.searched)
    where terminal.byte(at: i) == 0x03 { last = i }
    state.pointee.searched = unread
    return last
  }
}
