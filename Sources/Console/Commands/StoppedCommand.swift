// A command that Ctrl-C has ended tells what it has done so far. Everything else that it would print is dropped.

import MemoryPrimitives

extension Shell {
  /// Whether Ctrl-C has ended this command; then prints `sentence`. Leaving the pager is no such end: the person
  /// wants no more lines.
  func isStopped(_ sentence: Line) -> Bool {
    guard state.pointee.interrupted, state.pointee.stopped else { return false }
    tellDone {
      row("stopped") { row in row.field("what", text: sentence) }
      print(sentence)
    }
    return true
  }

  /// Prints what `body` prints although the command was stopped.
  func tellDone(_ body: () -> Void) {
    let wasStopped = state.pointee.stopped
    state.pointee.stopped = false
    body()
    state.pointee.stopped = state.pointee.stopped || wasStopped
  }
}
