// The progress bar of a long operation: on standard error, redrawn ten times a second, only on a terminal and only
// after the first second. A log never holds a carriage return.

import Foundation

/// Standard error, as a place for progress.
final class Terminal {
  nonisolated(unsafe) static let standard = Terminal(isTerminal: isatty(STDERR_FILENO) == 1)

  let isTerminal: Bool
  private var start = DispatchTime.now()
  private var drawn = DispatchTime.now()
  private var shows = false

  init(isTerminal: Bool) { self.isTerminal = isTerminal }

  /// Starts the clock of a new job.
  func beginProgress() {
    clearProgress()
    start = .now()
    drawn = start
  }

  /// Draws `done` of `total` if it is time to. `note` follows the bar.
  func progress(_ what: String, _ done: UInt64, of total: UInt64, _ note: @autoclosure () -> String = "") {
    guard isTerminal, total > 0 else { return }
    let now = DispatchTime.now()
    guard now.uptimeNanoseconds - start.uptimeNanoseconds > 1_000_000_000,
      now.uptimeNanoseconds - drawn.uptimeNanoseconds > 100_000_000
    else { return }
    drawn = now
    shows = true
    let share = min(1, Double(done) / Double(total))
    let full = Int(share * 20)
    let bar = String(repeating: "#", count: full) + String(repeating: ".", count: 20 - full)
    let text = "\r\(what)  [\(bar)] \(String(format: "%3d", Int(share * 100))) %   \(note())\u{1b}[K"
    printToStandardError(text)
  }

  /// Removes the bar.
  func clearProgress() {
    guard shows else { return }
    shows = false
    printToStandardError("\r\u{1b}[K")
  }
}

/// `1234567` as `1,234,567`.
func grouped(_ value: some BinaryInteger) -> String {
  var digits = Substring(String(value))
  var groups: [Substring] = []
  while digits.count > 3 {
    groups.insert(digits.suffix(3), at: 0)
    digits = digits.dropLast(3)
  }
  return ([digits] + groups).joined(separator: ",")
}

/// `1 event`, `1,234 events`.
func counted(_ value: UInt64, _ noun: String) -> String {
  "\(grouped(value)) \(noun)\(value == 1 ? "" : "s")"
}

extension String {
  /// With blanks in front up to `width`.
  func right(_ width: Int) -> String { String(repeating: " ", count: Swift.max(0, width - count)) + self }
  /// With blanks behind up to `width`.
  func left(_ width: Int) -> String { self + String(repeating: " ", count: Swift.max(0, width - count)) }
}
