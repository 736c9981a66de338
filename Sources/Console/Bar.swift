// A progress bar for a command that takes long.

import MemoryPrimitives

/// A progress bar, redrawn ten times a second.
struct Bar {
  private let console: Shell
  private var shown: UInt64 = 0

  init(_ console: Shell) { self.console = console }

  /// Redraws the bar. False after Ctrl-C. Polling the terminal costs as much as a few pages, so it is polled only
  /// once in a while.
  mutating func goesOn(
    _ what: Line, _ done: UInt64, of total: UInt64, _ unit: StaticString, every: UInt64 = 64
  ) -> Bool {
    guard done % every == 0 || done == total else { return true }
    if console.shouldStop { return false }
    let now = console.terminal.milliseconds
    guard now >= shown + 100 || done == total else { return true }
    shown = now
    console.progress(what, done, of: total, "\(count: done) of \(count: total) \(unit)")
    return true
  }

  func end() { console.endProgress() }
}
