// The terminal at the other end of the line, as the console sees it: bytes in, bytes out, a clock and a
// way to rest. On bare metal it is the serial port; in a test it is a script and a transcript.
//
// Input stays with the terminal until the console removes it, so there is one ring of it, the driver's. The console looks
// at bytes there, for a Ctrl-C while a command runs, and for an answer of the terminal among what was typed.

import MemoryPrimitives

/// A byte stream to a person, or to a log.
package struct Terminal {
  let context: UnsafeMutableRawPointer?
  let countUnread: @convention(c) (UnsafeMutableRawPointer?) -> Int
  let byteAt: @convention(c) (UnsafeMutableRawPointer?, Int) -> UInt8
  let removeBytes: @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> Void
  let writeBytes: @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UInt8>, Int) -> Void
  let restFor: @convention(c) (UnsafeMutableRawPointer?, UInt64, Int) -> Void
  let readClock: @convention(c) (UnsafeMutableRawPointer?) -> UInt64

  /// - `countUnread` answers how many bytes have come and were not removed; it never waits.
  /// - `byteAt` answers one of them, by its place after the oldest.
  /// - `remove` drops some of them: the place of the first, and their number.
  /// - `write` takes bytes that are to appear in this order, and returns when they are on their way.
  /// - `rest` returns when about so many milliseconds have passed, or when more bytes than so many may be unread.
  /// - `milliseconds` is a clock that only rises.
  package init(
    _ context: UnsafeMutableRawPointer?,
    countUnread: @escaping @convention(c) (UnsafeMutableRawPointer?) -> Int,
    byteAt: @escaping @convention(c) (UnsafeMutableRawPointer?, Int) -> UInt8,
    remove: @escaping @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> Void,
    write: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UInt8>, Int) -> Void,
    rest: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64, Int) -> Void,
    milliseconds: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
  ) {
    self.context = context
    self.countUnread = countUnread
    self.byteAt = byteAt
    removeBytes = remove
    writeBytes = write
    restFor = rest
    readClock = milliseconds
  }

  /// Bytes that have come and were not removed.
  var unread: Int { countUnread(context) }

  /// The byte `index` places after the oldest; there are `unread` of them.
  func byte(at index: Int) -> UInt8 { byteAt(context, index) }

  /// Removes `count` bytes, the first of them `index` places after the oldest.
  func remove(at index: Int, count: Int) { removeBytes(context, index, count) }

  func write(_ bytes: UnsafeBufferPointer<UInt8>) {
    guard let start = bytes.baseAddress, bytes.count > 0 else { return }
    writeBytes(context, start, bytes.count)
  }

  func write(_ text: Line) { text.withBytes { write($0) } }

  /// Rests until more than `unread` bytes may have come that were not removed, or for about so long.
  func rest(milliseconds: UInt64, unread: Int = 0) { restFor(context, milliseconds, unread) }

  var milliseconds: UInt64 { readClock(context) }
}
