// Fault injection for allocations: every allocation point of the core first calls `pass`. So a test can fail the n-th
// point for every n, and check that nothing was lost.
//
// A machine in production has no injection: the check is then one load of a nil, on slow paths only.

import Synchronization

/// A module whose allocation points are counted and made to fail.
@frozen public enum FailurePoint: UInt8, CaseIterable, Sendable {
  /// Frames.
  case physicalMemory
  /// Page table pages.
  case pageTables
  /// Boundary tags, and imports of arenas.
  case vmem
  /// Ranges of kernel addresses.
  case kernelSpace
  /// Magazines of the per-processor caches.
  case magazines
  /// Objects and slabs.
  case kmem
  /// Memory objects, map entries, swap.
  case paging
  /// Runs of frames.
  case contiguous
  /// Objects of a compressed store.
  case zsmalloc
}

/// Counts allocation points as they are passed, and fails one of them. Processors may pass points at
/// once; set it up when none does.
public struct FailureInjection: ~Copyable {
  let remaining = Atomic<Int64>(-1)
  let failed = Atomic<Bool>(false)
  let all = Atomic<Bool>(false)
  let counts: InlineArray<9, Counter> = .init { _ in Counter() }

  /// Makes an injection that fails no point.
  package init() {}

  /// Points still to pass before the one that fails; negative for none.
  public var countdown: Int64 {
    get { remaining.load(ordering: .relaxed) }
    nonmutating set { remaining.store(newValue, ordering: .relaxed) }
  }

  /// Whether every point fails.
  public var failsAll: Bool {
    get { all.load(ordering: .relaxed) }
    nonmutating set { all.store(newValue, ordering: .relaxed) }
  }

  /// Whether a point was made to fail since this was last set to false.
  public var hasFailed: Bool {
    get { failed.load(ordering: .relaxed) }
    nonmutating set { failed.store(newValue, ordering: .relaxed) }
  }

  /// Points passed in each module, by `FailurePoint.rawValue`. Exact when one thread passed them.
  public var reached: InlineArray<9, UInt64> { .init { counts[$0].value } }

  @usableFromInline borrowing func pass(_ point: FailurePoint) -> Bool {
    counts[Int(point.rawValue)].add()
    if failsAll {
      hasFailed = true
      return true
    }
    guard remaining.load(ordering: .relaxed) >= 0 else { return false }
    guard remaining.subtract(1, ordering: .relaxed).oldValue == 0 else { return false }
    hasFailed = true
    return true
  }
}
