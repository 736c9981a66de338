// The terminal at the other end of the line, as the console sees it: bytes in, bytes out, a clock and a
// way to rest. On bare metal it is the serial port; in a test it is a script and a transcript.

import MemoryPrimitives

/// A byte stream to a person, or to a log.
package struct Terminal {
  let context: UnsafeMutableRawPointer?
  let readByte: @convention(c) (UnsafeMutableRawPointer?) -> Int32
  let writeBytes: @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UInt8>, Int) -> Void
  let restFor: @convention(c) (UnsafeMutableRawPointer?, UInt64) -> Void
  let readClock: @convention(c) (UnsafeMutableRawPointer?) -> UInt64

  /// - `read` answers the next byte, or -1 when none has come; it never waits and loses nothing.
  /// - `write` takes bytes that are to appear in this order, and returns when they are on their way.
  /// - `rest` returns when a byte may have come, or when about so many milliseconds have passed.
  /// - `milliseconds` is a clock that only rises.
  package init(
    _ context: UnsafeMutableRawPointer?,
    read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> Int32,
    write: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UInt8>, Int) -> Void,
    rest: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64) -> Void,
    milliseconds: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
  ) {
    self.context = context
    readByte = read
    writeBytes = write
    restFor = rest
    readClock = milliseconds
  }

  func read() -> UInt8? {
    let byte = readByte(context)
    return byte < 0 ? nil : UInt8(truncatingIfNeeded: byte)
  }

  func write(_ bytes: UnsafeBufferPointer<UInt8>) {
    guard let start = bytes.baseAddress, bytes.count > 0 else { return }
    writeBytes(context, start, bytes.count)
  }

  func write(_ text: Line) { text.withBytes { write($0) } }

  func rest(milliseconds: UInt64) { restFor(context, milliseconds) }

  var milliseconds: UInt64 { readClock(context) }
}
