// A progress bar for a command that takes long, redrawn ten times a second. The next line that is printed replaces it.

import MemoryPrimitives
import Workloads

/// The bar on the screen. Valid as zeroes.
struct Bar {
  /// The time of the last drawing, in milliseconds.
  var shown: UInt64
  /// Whether it is the last thing on the screen.
  var isDrawn: Bool
}

extension Shell {
  /// Shows how much of `total` is done. Stops after Ctrl-C.
  func pace(_ what: Line, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
    if shouldStop { return .stop }
    if drawsBar(done, of: total) {
      progress(what, done, of: total, "\(count: done) of \(count: total) \(unit)")
    }
    return .goOn
  }

  /// Whether the bar is to be drawn again. When all is done, it is removed.
  func drawsBar(_ done: UInt64, of total: UInt64) -> Bool {
    let now = terminal.milliseconds
    if done >= total {
      endProgress()
      return false
    }
    guard now >= state.pointee.bar.shown + 100 else { return false }
    state.pointee.bar.shown = now
    return true
  }
}
