// A batch of pages, for the calls that lock, invalidate or write for many pages at once.

import MemoryPrimitives

/// Up to 32 pages, on the stack.
struct PageBatch {
  static var capacity: Int { 32 }
  private(set) var count = 0
  private var frames: InlineArray<32, FrameNumber> = .init(repeating: .none)

  var isFull: Bool { count == Self.capacity }
  subscript(i: Int) -> FrameNumber { frames[i] }
  mutating func add(_ frame: FrameNumber) {
    frames[count] = frame
    count += 1
  }
  mutating func removeAll() { count = 0 }
  mutating func truncate(to length: Int) { count = min(count, length) }
  /// Calls `body` with the pages as an array.
  mutating func withFrames<R: ~Copyable, E>(
    _ body: (UnsafeBufferPointer<FrameNumber>) throws(E) -> R
  ) throws(E) -> R {
    let count = count
    return try withUnsafeMutablePointer(to: &frames) { array throws(E) in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: FrameNumber.self)
      return try body(UnsafeBufferPointer(start: first, count: count))
    }
  }
}
