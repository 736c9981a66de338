// Finds a thread that enters a section again before it has left it, in builds with assertions.

import CPlatform
import Synchronization

/// The threads inside a section. An interrupt handler is none of them: it may enter whatever the thread below it does.
/// The check knows sixteen threads at a time, and passes those above that number.
package struct ReentryCheck: ~Copyable {
  private let threads: InlineArray<16, Atomic<UInt>> = .init { _ in Atomic(0) }
  private let count = Atomic<UInt32>(0)

  /// The running thread, never 0: before threads run, there is one.
  private static var thread: UInt { cp_thread_identity() | 1 }

  /// A section without threads.
  package init() {}

  /// Whether this thread is inside.
  package var isInside: Bool {
    if count.load(ordering: .relaxed) == 0 || cp_handling() != 0 { return false }
    let thread = Self.thread
    for index in threads.indices where threads[index].load(ordering: .relaxed) == thread { return true }
    return false
  }

  /// Records that this thread is inside from now on. Answers true, so that it can be called in an assertion.
  package func enter() -> Bool {
    if cp_handling() != 0 { return true }
    for index in threads.indices {
      if threads[index].compareExchange(
        expected: 0, desired: Self.thread, ordering: .relaxed
      ).exchanged {
        count.add(1, ordering: .relaxed)
        break
      }
    }
    return true
  }

  /// Records that it has left. Answers true.
  package func leave() -> Bool {
    if cp_handling() != 0 { return true }
    for index in threads.indices where threads[index].load(ordering: .relaxed) == Self.thread {
      threads[index].store(0, ordering: .relaxed)
      count.subtract(1, ordering: .relaxed)
      break
    }
    return true
  }
}
