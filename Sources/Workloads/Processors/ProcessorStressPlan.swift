// What a stress of several processors is to do, and what came of it.

import MemoryPrimitives

/// The sizes of a stress, and when it ends: after so many rounds of each worker, or so many ticks, whichever comes
/// first.
public struct ProcessorStressPlan: Sendable {
  public var seed: UInt64
  /// Processors that run: a worker is pinned to each as long as there are workers.
  public var processors: Int
  public var workers: Int
  public var rounds = UInt64.max
  public var ticks = UInt64.max
  /// Pages of the object that all share, some of which should not fit in memory; none where there is no swap.
  public var pages: PageCount

  public init(seed: UInt64, processors: Int, workers: Int, pages: PageCount) {
    self.seed = seed
    self.processors = min(max(1, processors), 64)
    self.workers = min(max(1, workers), 64)
    self.pages = pages
  }
}

/// An invariant that did not hold.
public struct StressTrouble: Sendable {
  public var invariant: StaticString
  /// What it is about: an address, a frame, a page of the shared object; 0 for nothing that has a number.
  public var subject: UInt64 = 0
  public var found: UInt64 = 0
  public var expected: UInt64 = 0
  /// On which processor it was seen.
  public var processor: UInt32 = 0

  init(_ invariant: StaticString) { self.invariant = invariant }
}

/// What came of a stress.
public struct ProcessorStressOutcome: Sendable {
  public var workers: UInt64 = 0
  /// Threads that came and went meanwhile.
  public var visitors: UInt64 = 0
  public var rounds: UInt64 = 0
  public var operations: UInt64 = 0
  /// Things that were made by one worker and given back by whoever took them.
  public var exchanged: UInt64 = 0
  /// Times that an address was given other memory, and reads of such addresses.
  public var remapped: UInt64 = 0
  public var reads: UInt64 = 0
  /// Pages of the shared object that were looked at or written to.
  public var pages: UInt64 = 0
  /// Requests that were refused for want of memory.
  public var refused: UInt64 = 0
  public var ticks: UInt64 = 0
  /// What went wrong first. Nil: all held.
  public var trouble: StressTrouble?
}

/// Why a stress did not begin. Nothing was changed.
public enum StressRefusal: UInt8, Error, Sendable {
  case noMemory
  case noThreads

  public var description: StaticString {
    switch self {
    case .noMemory: "there is too little memory"
    case .noThreads: "there are no threads here"
    }
  }
}
