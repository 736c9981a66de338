// watch: repeats a command.

import MemoryPrimitives

extension CommandDescription {
  static var watch: CommandDescription {
    CommandDescription(
      name: "watch", usage: "watch [SECONDS] COMMAND",
      about: "Repeats a command until a key is pressed.",
      example: "watch 2 frames", question: .change,
      completion: .names(of: .commands))
  }
}

extension Shell {
  /// Repeats a command until a key is pressed. Without a terminal the command runs once.
  func watch(_ arguments: Arguments) throws(CommandError) {
    var seconds: UInt64 = 2
    guard let first = arguments.peek() else { throw refuse("A command is missing, as in: watch 2 frames") }
    if let number = try? Figures.number(first.bytes) {
      _ = arguments.nextOfAnyForm()
      seconds = number
      guard seconds >= 1 && seconds <= 3600 else { throw refuse(first, "from 1 to 3600 seconds") }
    }
    guard let rest = arguments.rest() else { throw refuse("A command is missing, as in: watch 2 frames") }
    var line = Line()
    line.append(bytes: rest)
    let interactive = state.pointee.isInteractive
    let json = isJSON
    if json { line.append(" -j") }
    let isRedrawn = state.pointee.isTerminal && interactive && !json
    if isRedrawn { terminal.write("\u{1b}[2J") }
    defer { state.pointee.redraws = false }
    repeat {
      if isRedrawn {
        askForSize()
        terminal.write("\u{1b}[H")
        state.pointee.redraws = true
      }
      if let error = line.withBytes({ run($0) }) { throw error }
      guard interactive, !state.pointee.interrupted else { return }
      if !json {
        newline()
        put("Every \(count: seconds, "second"); any key stops.")
        newline()
        // A longer screen may have left lines below.
        if isRedrawn { terminal.write("\u{1b}[J") }
      }
      state.pointee.redraws = false
      let deadline = terminal.milliseconds + seconds * 1000
      while terminal.milliseconds < deadline {
        if pollKey() != nil { return }
        terminal.rest(milliseconds: deadline - min(deadline, terminal.milliseconds))
      }
    } while true
  }
}
