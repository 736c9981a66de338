// A page window that is open: the right to reach its bytes, on the processor that opened it.

import CPlatform
import MemoryPrimitives
import Synchronization

/// A page window that is open. It closes at the end of its life, which must come before the thread sleeps.
@frozen @usableFromInline package struct OpenWindow: ~Copyable {
  @usableFromInline let windows: PageWindows
  @usableFromInline let entry: PageWindows.Entry
  @usableFromInline let rawAddress: UInt64
  /// Its processor, with the bit of `PageWindows.State.simulated`; all ones when it maps nothing.
  @usableFromInline let processor: UInt32

  @inlinable init(
    _ windows: PageWindows, _ entry: PageWindows.Entry, address: UInt64, processor: UInt32
  ) {
    self.windows = windows
    self.entry = entry
    rawAddress = address
    self.processor = processor
  }

  /// The first address of the window.
  @inline(always) package var address: VirtualAddress { VirtualAddress(rawAddress) }

  /// Closes the window.
  @inline(always) package consuming func close() {}

  @inlinable deinit {
    guard cp_processor_index() == processor else {
      return windows.closeSpecial(entry, rawAddress, of: processor)
    }
    PageWindows.close(entry, rawAddress)
  }

  /// Runs `body` with `count` bytes from `offset` on, of 8192. They are valid until it returns: the frames' own where the
  /// processor loads these tables, else a copy.
  @inline(always)
  package borrowing func withBytes<R, E>(
    at offset: Int, count: Int, _ body: (UnsafeRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    assert(offset >= 0 && count >= 0 && offset + count <= 2 * Int(Page.size), "bytes beyond a page window")
    guard cp_processor_index() == processor else { return try withCopy(at: offset, count: count, body) }
    return try body(UnsafeRawBufferPointer(start: pointer(at: offset), count: count))
  }

  /// The same for bytes that `body` changes, of a window that is open for writing.
  @inline(always)
  package borrowing func withMutableBytes<R, E>(
    at offset: Int, count: Int, _ body: (UnsafeMutableRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    assert(offset >= 0 && count >= 0 && offset + count <= 2 * Int(Page.size), "bytes beyond a page window")
    guard cp_processor_index() == processor else {
      return try withMutableCopy(at: offset, count: count, body)
    }
    return try body(UnsafeMutableRawBufferPointer(start: pointer(at: offset), count: count))
  }

  /// The address as a pointer. The compiler moves no access through it before the entries are stored.
  @inlinable borrowing func pointer(at offset: Int) -> UnsafeMutableRawPointer {
    cp_opaque(UnsafeMutableRawPointer(bitPattern: UInt(rawAddress)).unsafelyUnwrapped) + offset
  }
}
