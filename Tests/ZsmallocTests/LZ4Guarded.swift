// Memory with an end that can't be passed: buffers for the codec beside a page that no access reaches.

import Glibc

/// A mapping between two pages that can't be accessed.
final class LZ4Guarded {
  /// Which end of a buffer the inaccessible page is at. A few bytes before the other end are watched for changes.
  enum Edge { case start, end }

  private static let page = 4096
  private static let watched = 64
  private static let mark: UInt8 = 0xa5

  private let mapping: UnsafeMutableRawPointer
  private let size: Int

  /// Prepares memory for buffers of up to `count` bytes.
  init(_ count: Int) {
    size = (count + Self.watched + Self.page - 1) / Self.page * Self.page
    let whole = size + 2 * Self.page
    mapping = mmap(nil, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
    precondition(mapping != MAP_FAILED && mprotect(mapping + Self.page, size, PROT_READ | PROT_WRITE) == 0)
  }

  deinit { munmap(mapping, size + 2 * Self.page) }

  /// A buffer of `count` bytes at the edge, filled with a mark, and the bytes at its other end, also marked.
  private func place(_ count: Int, _ edge: Edge) -> (
    UnsafeMutableRawBufferPointer, UnsafeMutableRawBufferPointer
  ) {
    let first = mapping + Self.page
    let last = first + size
    let start = edge == .start ? first : last - count
    let beside = edge == .start ? start + count : start - Self.watched
    return (
      UnsafeMutableRawBufferPointer(start: start, count: count),
      UnsafeMutableRawBufferPointer(start: beside, count: Self.watched)
    )
  }

  /// Hands out a copy of `bytes` that ends, or starts, beside the inaccessible page.
  func with<Result, Failure: Error>(
    _ bytes: [UInt8], at edge: Edge, _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let (buffer, _) = place(bytes.count, edge)
    buffer.copyBytes(from: bytes)
    return try body(UnsafeRawBufferPointer(buffer))
  }

  /// Hands out a buffer, and checks that nothing is written beside it. Returns the result and the buffer's bytes.
  func with<Result>(
    capacity: Int, at edge: Edge, _ body: (UnsafeMutableRawBufferPointer) -> Result
  ) -> (Result, [UInt8]) {
    let (buffer, beside) = place(capacity, edge)
    buffer.initializeMemory(as: UInt8.self, repeating: Self.mark)
    beside.initializeMemory(as: UInt8.self, repeating: Self.mark)
    let result = body(buffer)
    precondition(beside.allSatisfy { $0 == Self.mark }, "a byte beside the buffer was written")
    return (result, Array(buffer))
  }
}
