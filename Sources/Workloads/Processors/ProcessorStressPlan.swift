// The plan of a stress of several processors, and its outcome.

import MemoryPrimitives

/// The sizes of a stress, and its end: after this number of rounds of each worker, or of ticks, whichever is first.
package struct ProcessorStressPlan: Sendable {
  /// The seed of the workers' turns.
  package var seed: UInt64
  /// Processors that run: a worker is pinned to each as long as there are workers.
  package var processors: Int
  /// Threads that work.
  package var workers: Int
  /// Turns of each worker.
  package var rounds = UInt64.max
  package var ticks = UInt64.max
  /// Pages of the object that all share, some of which should not fit in memory; none where there is no swap.
  package var pages: PageCount
  /// The layers that the workers use.
  package var turns = StressTurns.allLayers

  package init(seed: UInt64, processors: Int, workers: Int, pages: PageCount) {
    self.seed = seed
    self.processors = min(max(1, processors), 64)
    self.workers = min(max(1, workers), 64)
    self.pages = pages
  }
}

/// The layers that a stress uses.
package enum StressTurns: UInt8, Sendable {
  /// Every layer.
  case allLayers
  /// The compressed store, and contiguous requests that move its pages.
  case compressedStore
}

/// An invariant that did not hold.
package struct StressFailure: Sendable {
  package var invariant: StaticString
  /// Its subject: an address, a frame, or a page of the shared object; 0 for a subject without a number.
  package var subject: UInt64 = 0
  package var found: UInt64 = 0
  package var expected: UInt64 = 0
  /// The processor that detected it.
  package var processor: UInt32 = 0

  init(_ invariant: StaticString) { self.invariant = invariant }
}

/// The outcome of a stress.
package struct ProcessorStressOutcome: Sendable {
  package var workers: UInt64 = 0
  /// Transient threads that were started.
  package var visitors: UInt64 = 0
  package var rounds: UInt64 = 0
  package var operations: UInt64 = 0
  /// Resources that were removed from a slot and freed.
  package var exchanged: UInt64 = 0
  /// Remappings of shared addresses, and reads of them.
  package var remapped: UInt64 = 0
  package var reads: UInt64 = 0
  /// Pages of the shared object that were checked or written to.
  package var pages: UInt64 = 0
  /// Requests that were refused because memory was short.
  package var refused: UInt64 = 0
  package var ticks: UInt64 = 0
  /// The first failure; nil when all invariants held.
  package var failure: StressFailure?
}

/// Why a stress did not begin. Nothing was changed.
package enum StressError: UInt8, Error, Sendable {
  case noMemory
  case noThreads

  package var description: StaticString {
    switch self {
    case .noMemory: "there is too little memory"
    case .noThreads: "there are no threads here"
    }
  }
}
