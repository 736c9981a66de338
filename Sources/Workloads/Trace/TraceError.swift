// The error of a packed trace, with its position: enough for one line.

import MemoryPrimitives

/// Why a packed trace can't be read. A fixed-size value.
package struct TraceError: Error, Equatable, Sendable {
  package enum Reason: UInt8, Sendable {
    case empty
    case notATrace
    case unknownVersion
    case truncated
    case trailingBytes
    case headerChecksum
    case recordChecksum
    /// Two figures of the header contradict each other.
    case counts
    case operation
    case cache
    case string
    case head
    case number
    case unknownOperation
    case wrongKind
    case unknownProcessor
    case identity
  }

  package let reason: Reason
  /// The offset in the file, in bytes.
  package let byte: UInt64
  /// The record there, from 0; nil in header and tables.
  package var record: UInt32?
  /// The number of records that there should be; zero when it is unknown.
  package var records: UInt32 = 0
  /// The figure found, where the reason has figures.
  package var found: UInt64 = 0
  /// The figure expected.
  package var expected: UInt64 = 0

  init(_ reason: Reason, at byte: Int, found: UInt64 = 0, expected: UInt64 = 0) {
    self.reason = reason
    self.byte = UInt64(byte)
    self.found = found
    self.expected = expected
  }

  func inRecord(_ record: UInt32, of records: UInt32) -> TraceError {
    var copy = self
    copy.record = record
    copy.records = records
    return copy
  }

  /// One sentence that begins with `subject`: a file's name, or "The boot module".
  package func describe(_ subject: Line) -> Line {
    var line = subject
    switch reason {
    case .empty: line.append(" is empty.")
    case .notATrace: line.append(" is no packed trace: it does not begin with \\x89STRATA.")
    case .unknownVersion:
      line.append(line: " is a packed trace of version \(found); this Strata reads version \(expected).")
    case .truncated:
      line.append(line: " ends at byte \(count: byte)\(place), but should have \(count: expected) bytes.")
    case .trailingBytes:
      line.append(line: " should end at byte \(count: byte), but has \(count: found) bytes.")
    case .headerChecksum:
      line.append(line: " is garbled in its first \(count: byte) bytes: \(sums)")
    case .recordChecksum:
      line.append(line: " is garbled somewhere in its \(count: UInt64(records)) records: \(sums)")
    case .counts:
      line.append(line: " contradicts itself at byte \(byte): \(count: found) where \(count: expected) fits.")
    case .operation: line.append(line: " has a bad entry in its table of operations, at byte \(count: byte).")
    case .cache: line.append(line: " has a bad entry in its table of caches, at byte \(count: byte).")
    case .string: line.append(line: " has a bad entry in its table of strings, at byte \(count: byte).")
    case .head: line.append(line: " is garbled at byte \(count: byte)\(place): no event begins so.")
    case .number: line.append(line: " is garbled at byte \(count: byte)\(place): no number ends there.")
    case .unknownOperation: line.append(line: outOfRange("operation"))
    case .unknownProcessor: line.append(line: outOfRange("processor"))
    case .identity: line.append(line: outOfRange("identity"))
    case .wrongKind:
      line.append(
        line: " is garbled at byte \(count: byte)\(place): kind \(found), its operation says \(expected).")
    }
    return line
  }

  private func outOfRange(_ what: StaticString) -> Line {
    " is garbled at byte \(count: byte)\(place): \(what) \(found), where \(expected) is the last."
  }

  private var sums: Line { "checksum \(hex: found, digits: 8), not \(hex: expected, digits: 8)." }

  private var place: Line {
    guard let record else { return ", before its first record" }
    return ", in the middle of record \(count: UInt64(record) + 1) of \(count: UInt64(records))"
  }
}
