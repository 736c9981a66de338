// Frames of an operation of the store: no frame is allocated or freed while its lock is held.

import MemoryPrimitives

/// Frames for an operation, allocated before it acquires the lock, and frames that became free in it.
struct ZspageSupply: ~Copyable {
  /// Of zspages.
  var data = SpareFrames()
  /// Of tables, zeroed.
  var tables = SpareFrames()
  /// Frames of pages that became empty. They are freed, and not used again: a request may be capturing them.
  var freed = SpareFrames()
  init() {}
}

/// Frames that an operation has allocated before it acquires a lock; each is used once, and the rest freed.
struct SpareFrames: ~Copyable {
  private var frames: InlineArray<16, FrameNumber> = .init(repeating: .none)
  private(set) var count = 0

  /// No frames.
  init() {}

  static var capacity: Int { 16 }

  mutating func push(_ frame: FrameNumber) {
    frames[count] = frame
    count += 1
  }
  /// Traps when there is none.
  mutating func pop() -> FrameNumber {
    count -= 1
    return frames[count]
  }
}
