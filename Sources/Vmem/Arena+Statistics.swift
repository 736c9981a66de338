// Sizes and counts of one arena.

import MemoryPrimitives

/// Which values of an arena `size` counts.
@frozen public enum ArenaSizeKind: UInt8, Sendable {
  /// Those that are allocated.
  case allocated
  /// Those that are free.
  case free
  /// All of its spans.
  case total
  /// Those of the largest free segment.
  case largestFree
}

/// Counts of an arena at one moment.
package struct ArenaFigures: Equatable, Sendable {
  /// Requests that were granted.
  package var allocations: UInt64
  /// Segments that were freed.
  package var frees: UInt64
  /// Requests that were refused, for want of space or of tags.
  package var failed: UInt64
  /// Requests that slept.
  package var waits: UInt64
  /// Spans that the source gave.
  package var imports: UInt64
  /// Spans that the source got back.
  package var releases: UInt64
  /// Lists and tags that operations examined: their cost, independent of the machine's speed.
  package var visited: UInt64
  /// Spans, added and imported.
  package var spans: UInt64
  /// Allocated segments.
  package var busySegments: UInt64
  /// Free segments.
  package var freeSegments: UInt64
  /// Tags kept for later operations.
  package var spareTags: UInt64
  /// Pages of the hash of busy segments.
  package var hashPages: UInt64
}

extension Arena {
  /// Counts the values of a kind, exactly. Constant time, but for `.largestFree`, which costs a pass over one list when
  /// the largest was allocated since the last call. 2^64 reads as `ArenaSize.everything`.
  public func size(_ kind: ArenaSizeKind) -> ArenaSize {
    if kind == .largestFree { return largestFree() }
    return state.core.withLock { core in
      switch kind {
      case .allocated: Self.saturated(core.allocated, isNothing: core.hash.count == 0)
      case .free: Self.saturated(core.total &- core.allocated, isNothing: core.lists.count == 0)
      default: Self.saturated(core.total, isNothing: core.spans == 0)
      }
    }
  }

  /// Counters are modulo 2^64, so a zero that isn't nothing is everything.
  private static func saturated(_ size: UInt64, isNothing: Bool) -> ArenaSize {
    size == 0 && !isNothing ? .everything : ArenaSize(size)
  }

  private func largestFree() -> ArenaSize {
    var cursor = FreeLists.Cursor(list: 0)
    cursor.wantsLargest = true
    return withUnsafeMutablePointer(to: &cursor) { cursor in
      var isRegistered = false
      while true {
        let answer = state.core.withLock { core -> ArenaSize? in
          let extent = core.stepLargest(cursor)
          let isDone = extent != nil || core.lists.count == 0
          if isDone, isRegistered { core.lists.unregister(cursor) }
          if !isDone, !isRegistered { core.lists.register(cursor) }
          isRegistered = !isDone
          guard isDone else { return nil }
          guard let extent, core.lists.count != 0 else { return .zero }
          return Self.saturated(extent &+ 1, isNothing: false)
        }
        if let answer { return answer }
      }
    }
  }

  /// Reads all counts under one hold of the lock.
  package var figures: ArenaFigures {
    state.core.withLock { core in
      ArenaFigures(
        allocations: state.allocations.value, frees: state.frees.value,
        failed: state.failed.value, waits: state.waits.value,
        imports: state.imports.value, releases: state.releases.value,
        visited: core.visited &+ core.hash.visited, spans: core.spans, busySegments: core.hash.count,
        freeSegments: core.lists.count, spareTags: UInt64(core.spares.count), hashPages: core.hash.pages)
    }
  }
}
