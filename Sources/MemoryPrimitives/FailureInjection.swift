// Making each allocation fail in turn: every place in the core that can run out of something asks
// here first, so that a test can fail the n-th for every n and see that nothing was lost.
//
// A machine in production carries no injection: the question is then one load of a nil, in slow halves.

/// A module whose allocation points are counted and made to fail.
@frozen public enum FailurePoint: UInt8, CaseIterable, Sendable {
  case physicalMemory, pageTables, vmem, kernelSpace, magazines, kmem
}

/// Counts allocation points as they are passed, and fails one of them. For one thread.
public struct FailureInjection {
  /// Points still to pass before the one that fails; negative for none.
  public var countdown: Int64 = -1
  /// Points passed in each module, by `FailurePoint.rawValue`.
  public var reached: InlineArray<8, UInt64> = .init(repeating: 0)
  /// Whether a point was made to fail since `countdown` was set.
  public var hasFailed = false

  public init() {}

  @usableFromInline mutating func pass(_ point: FailurePoint) -> Bool {
    reached[Int(point.rawValue)] += 1
    guard countdown >= 0 else { return false }
    countdown -= 1
    guard countdown < 0 else { return false }
    hasFailed = true
    return true
  }
}
