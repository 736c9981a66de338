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
  let readByte: @convention(c) (UnsafeMutableRawPointer?, Int) -> UInt8
  let removeBytes: @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> Void
  let writeBytes: @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UInt8>, Int) -> Void
  let waitForBytes: @convention(c) (UnsafeMutableRawPointer?, UInt64, Int) -> Void
  let readClock: @convention(c) (UnsafeMutableRawPointer?) -> UInt64

  /// - `countUnread` answers how many bytes have come and were not removed; it never waits.
  /// - `readByte` answers one of them, by its place after the oldest.
  /// - `removeBytes` drops some of them: the place of the first, and their number.
  /// - `writeBytes` accepts bytes that are to appear in this order, and returns when they are on their way.
  /// - `waitForBytes` returns when about so many milliseconds have passed, or when more bytes than so many may be
  ///   unread.
  /// - `readClock` answers milliseconds, which only rise.
  package init(
    _ context: UnsafeMutableRawPointer?,
    countUnread: @escaping @convention(c) (UnsafeMutableRawPointer?) -> Int,
    readByte: @escaping @convention(c) (UnsafeMutableRawPointer?, Int) -> UInt8,
    removeBytes: @escaping @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> Void,
    writeBytes: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UInt8>, Int) -> Void,
    waitForBytes: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64, Int) -> Void,
    readClock: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
  ) {
    self.context = context
    self.countUnread = countUnread
    self.readByte = readByte
    self.removeBytes = removeBytes
    self.writeBytes = writeBytes
    self.waitForBytes = waitForBytes
    self.readClock = readClock
  }

  /// Bytes that have come and were not removed.
  var unread: Int { countUnread(context) }

  /// The byte `index` places after the oldest; there are `unread` of them.
  func byte(at index: Int) -> UInt8 { readByte(context, index) }

  /// Removes `count` bytes, the first of them `index` places after the oldest.
  func remove(at index: Int, count: Int) { removeBytes(context, index, count) }

  func write(_ bytes: UnsafeBufferPointer<UInt8>) {
    guard let start = bytes.baseAddress, bytes.count > 0 else { return }
    writeBytes(context, start, bytes.count)
  }

  func write(_ text: Line) { text.withBytes { write($0) } }

  /// Rests until more than `unread` bytes may have come that were not removed, or for about so long.
  func rest(milliseconds: UInt64, unread: Int = 0) { waitForBytes(context, milliseconds, unread) }

  var milliseconds: UInt64 { readClock(context) }
}
