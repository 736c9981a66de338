// An isolation that a test keeps in an array, or uses in a closure.

import MemoryPrimitives
import PhysicalMemory

/// Keeps the token of an isolation until the test finishes or abandons it, before its machine goes.
package final class TestIsolation {
  package let run: FrameRun
  package private(set) var token: Isolation?

  fileprivate init(_ token: consuming Isolation) {
    run = token.run
    self.token = consume token
  }

  fileprivate func take() -> Isolation {
    guard let taken = token.take() else { fatalError("the isolation has ended") }
    return taken
  }
}

extension FrameAllocator {
  /// Isolates a run.
  package func isolated(
    _ run: FrameRun, priority: AllocationPriority
  ) throws(PhysicalMemoryError) -> TestIsolation {
    TestIsolation(try isolate(run, priority: priority))
  }

  package func capturedCount(_ isolation: TestIsolation) -> PageCount { capturedCount(isolation.token!) }

  package func captureFree(_ isolation: TestIsolation, priority: AllocationPriority) {
    captureFree(isolation.token!, priority: priority)
  }

  package func isCaptured(_ frame: FrameNumber, _ isolation: TestIsolation) -> Bool {
    isCaptured(frame, isolation.token!)
  }

  /// Finishes the isolation if it is complete, and returns the run; else does nothing.
  package func finish(_ isolation: TestIsolation) -> FrameRun? {
    isComplete(isolation.token!) ? finish(isolation.take()) : nil
  }

  package func abandon(_ isolation: TestIsolation) { abandon(isolation.take()) }
}
