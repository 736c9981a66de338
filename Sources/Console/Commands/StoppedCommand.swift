// A command that Ctrl-C has ended reports what it has done so far. Everything else that it would print is dropped.

import MemoryPrimitives

extension Shell {
  /// Whether the output of this command is no longer wanted.
  var hasStopped: Bool {
    get { state.pointee.stopped }
    nonmutating set { state.pointee.stopped = newValue }
  }

  /// Whether Ctrl-C has ended this command; then prints `sentence`. Leaving the pager is no such end: the person
  /// wants no more lines.
  func isStopped(_ sentence: Line) -> Bool {
    guard state.pointee.interrupted, hasStopped else { return false }
    printDone {
      row("stopped") { row in row.field("what", text: sentence) }
      print(sentence)
    }
    return true
  }

  /// Prints what `body` prints at the end of work that is not left halfway, whatever was typed.
  func printEnd(_ sentence: Line = "Stopped. The command had ended its work by then.", _ body: () -> Void) {
    if shouldStop, isStopped(sentence) { printDone(body) } else { body() }
  }

  /// Prints what `body` prints although the command was stopped.
  func printDone(_ body: () -> Void) {
    let before = hasStopped
    hasStopped = false
    body()
    hasStopped = hasStopped || before
  }
}
