// Devices that nobody's interrupt serves: functions that do a little of a device's work each time they are
// called, which is whenever a thread has nothing to do but wait.
//
// They run with interrupts on and no lock held, in `Executive.sleep` and `Executive.rest`, never in an
// interrupt handler, and never one inside another: a poller neither sleeps nor touches pageable memory.

import CPlatform

enum Pollers {
  /// Does what is due and says whether to call again soon.
  typealias Work = @convention(c) (UnsafeMutableRawPointer?) -> cp_polled

  private static var limit: Int { Int(CP_POLLERS) }
  private static var pollers: UnsafeMutablePointer<cp_poller> { cp_pollers(Image.storage) }
  nonisolated(unsafe) private static var count = 0
  nonisolated(unsafe) private static var areRunning = false

  /// Adds one, for good. At boot, before anything else runs.
  static func add(_ context: UnsafeMutableRawPointer?, _ work: @escaping Work) {
    precondition(count < limit, "more pollers than there is room for")
    pollers[count] = cp_poller(work: work, context: context)
    count += 1
  }

  /// Calls each once. `busy` if any did something or has something left to do.
  static func run() -> cp_polled {
    precondition(!areRunning, "a poller that waits")
    areRunning = true
    defer { areRunning = false }
    var answer = cp_polled.idle
    for i in 0..<count {
      if let work = pollers[i].work, work(pollers[i].context) == .busy { answer = .busy }
    }
    return answer
  }
}
