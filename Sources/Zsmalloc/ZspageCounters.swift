// The counts of a store: written under its lock, read without it.

import MemoryPrimitives

/// Figures that are written under the lock, and read without it.
struct ZspageCounters: ~Copyable {
  let objects = Counter()
  /// Bytes of all objects, without what they cost.
  let bytes = Counter()
  /// Objects of the huge class, and how many there have been.
  let huge = Counter()
  let hugeEver = Counter()
  /// Frames of zspages, and of both tables.
  let dataFrames = Counter()
  let tableFrames = Counter()
  /// The most frames of both kinds so far.
  let peakFrames = Counter()
  /// Frames that compaction has freed, and objects that it has moved; pages moved to another frame.
  let compactedFrames = Counter()
  let movedObjects = Counter()
  let movedPages = Counter()

  init() {}

  /// Frames of zspages and tables.
  var frames: UInt64 { dataFrames.value &+ tableFrames.value }
}

/// The counts of one class.
struct ClassCounts {
  var objects: UInt32 = 0
  var frames: UInt32 = 0
  /// Zspages by `FullnessGroup`.
  var zspages: InlineArray<5, UInt32> = .init(repeating: 0)
}
