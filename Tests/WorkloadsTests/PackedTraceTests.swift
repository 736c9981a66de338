import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

final class PackedTraceTests: XCTestCase {
  func testTheChecksumIsCRC32C() {
    var sum = CRC32C()
    Array("123456789".utf8).withUnsafeBytes { sum.update($0) }
    XCTAssertEqual(sum.value, 0xe306_9283)
  }

  func testAWrittenTraceIsReadBack() throws {
    let written = WrittenTrace.example
    try written.bytes.withUnsafeBytes { bytes in
      let trace = try PackedTrace(bytes)
      try trace.validate()
      XCTAssertEqual(trace.title, ShortName("example"))
      XCTAssertEqual(trace.counts.events, UInt32(written.events.count))
      XCTAssertEqual(trace.counts.objects, 3)
      XCTAssertEqual(trace.counts.pages, 301)
      XCTAssertEqual((0..<trace.counts.operations).map { trace.operation($0) }, written.operations)
      XCTAssertEqual((0..<trace.counts.caches).map { trace.cache($0) }, written.caches)
      XCTAssertEqual(
        (0..<trace.counts.strings).map { String(decoding: trace.string($0), as: UTF8.self) }, written.strings)
      var cursor = trace.records
      var events: [TraceEvent] = []
      while let event = try cursor.next() { events.append(event) }
      XCTAssertEqual(events, written.events)
    }
  }

  func testATraceIsReadAtAnyAddress() throws {
    let bytes = WrittenTrace.example.bytes
    for shift in 0..<8 {
      try ([UInt8](repeating: 0, count: shift) + bytes).withUnsafeBytes {
        try PackedTrace(UnsafeRawBufferPointer(rebasing: $0[shift...])).validate()
      }
    }
  }

  func testNumbersOfAllLengthsAreReadBack() throws {
    // Identities are dense, so only frames can be large without as many events.
    for first in [0, 126, 127, 16_382, 16_383, 2_097_150, 2_097_151, 268_435_454, 268_435_455] as [UInt32] {
      var trace = WrittenTrace()
      let events = first >> 18 + 1
      for _ in 0..<events { trace.pages(.pageAlloc, first) }
      try trace.bytes.withUnsafeBytes {
        let read = try PackedTrace($0)
        try read.validate()
        var cursor = read.records
        XCTAssertEqual(try cursor.next()?.identity, first)
      }
    }
  }

  // MARK: Bad input

  private func failure(_ bytes: [UInt8]) -> TraceError? {
    // At the very end of a mapping a read behind the end would be caught by the sanitizer.
    let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 1)
    defer { copy.deallocate() }
    copy.copyBytes(from: bytes)
    do throws(TraceError) {
      try PackedTrace(UnsafeRawBufferPointer(copy)).validate()
      return nil
    } catch {
      return error
    }
  }

  private func refusal(_ bytes: [UInt8]) -> String {
    failure(bytes)?.describe("The boot module").withBytes { String(decoding: $0, as: UTF8.self) } ?? "nothing"
  }

  func testEveryTruncationIsReportedByByteAndRecord() throws {
    let bytes = WrittenTrace.example.bytes
    let recordsAt = Int(bytes[12]) | Int(bytes[13]) << 8
    for length in 0..<bytes.count {
      let error = try XCTUnwrap(failure(Array(bytes[..<length])), "cut at \(length)")
      XCTAssertEqual(error.reason, length == 0 ? .empty : .truncated, "cut at \(length)")
      XCTAssertEqual(error.byte, UInt64(length))
      if length >= recordsAt { XCTAssertEqual(error.records, 11) }
    }
    XCTAssertEqual(refusal([]), "The boot module is empty.")
    XCTAssertEqual(
      refusal(Array(bytes[..<(bytes.count - 1)])),
      "The boot module ends at byte \(bytes.count - 1), in the middle of record 11 of 11, "
        + "but should have \(bytes.count) bytes.")
    XCTAssertEqual(
      refusal(Array(bytes[..<50])),
      "The boot module ends at byte 50, before its first record, but should have 96 bytes.")
  }

  func testEveryFlippedBitIsFound() throws {
    let bytes = WrittenTrace.example.bytes
    for index in bytes.indices {
      for bit in 0..<8 {
        var garbled = bytes
        garbled[index] ^= 1 << UInt8(bit)
        XCTAssertNotNil(failure(garbled), "bit \(bit) of byte \(index)")
      }
    }
  }

  /// With the checksums put right again: a liar instead of a bad cable. Nothing may trap, and what is
  /// accepted must still be safe to walk.
  func testNoFlippedByteTrapsTheReaderThatTrustsTheChecksums() throws {
    let bytes = WrittenTrace.example.bytes
    var random = SeededRandom(seed: testSeed)
    for index in bytes.indices {
      for _ in 0..<16 {
        var garbled = bytes
        garbled[index] = UInt8(truncatingIfNeeded: random.next())
        if (12..<16).contains(index) { continue }
        garbled.repairChecksums()
        _ = failure(garbled)
      }
    }
  }

  func testOversizedAndForeignFilesAreRefused() {
    let bytes = WrittenTrace.example.bytes
    XCTAssertEqual(failure(bytes + [0])?.reason, .trailingBytes)
    XCTAssertEqual(
      refusal(bytes + [0, 0]),
      "The boot module should end at byte \(bytes.count), but has \(bytes.count + 2) bytes.")
    XCTAssertEqual(
      refusal(Array("MZ\u{0}".utf8)),
      "The boot module is no packed trace: it does not begin with \\x89STRATA.")
    XCTAssertEqual(failure([UInt8](repeating: 0, count: 5000))?.reason, .notATrace)
    var newer = bytes
    newer[8] = 9
    XCTAssertEqual(
      refusal(newer), "The boot module is a packed trace of version 9; this Strata reads version 1.")
  }

  func testWrongCountsAreReportedByTheirOffset() {
    let bytes = WrittenTrace.example.bytes
    func lie(_ value: UInt32, at offset: Int) -> TraceError? {
      var lying = bytes
      lying.put(value, at: offset)
      lying.repairChecksums()
      return failure(lying)
    }
    XCTAssertEqual(lie(12, at: 24)?.reason, .truncated)
    XCTAssertEqual(lie(10, at: 24)?.reason, .trailingBytes)
    XCTAssertEqual(lie(1 << 30, at: 24)?.reason, .counts)
    for (offset, value) in [(28, 1 << 31), (32, 77), (36, 3), (40, 1), (44, 4), (44, 2), (48, 302), (60, 0)]
      as [(Int, UInt32)]
    {
      XCTAssertNotNil(lie(value, at: offset), "\(value) at \(offset)")
    }
    XCTAssertEqual(lie(.max, at: 44)?.byte, 44)
    XCTAssertEqual(lie(.max, at: 48)?.reason, .counts)
    XCTAssertEqual(lie(99, at: 80)?.byte, 80)
  }

  func testBadRecordsAreReportedByRecord() {
    var trace = WrittenTrace.example
    trace.events[4].operation = 99
    XCTAssertTrue(
      refusal(trace.bytes).contains("in the middle of record 5 of 11: operation 99, where 9 is the last."),
      refusal(trace.bytes))
    trace = .example
    trace.events[3].processor = 7
    XCTAssertTrue(
      refusal(trace.bytes).contains("record 4 of 11: processor 7, where 1 is the last."), refusal(trace.bytes)
    )
    trace = .example
    trace.events[3].identity = 9
    XCTAssertEqual(failure(trace.bytes)?.reason, .identity)
    XCTAssertEqual(failure(trace.bytes)?.record, 3)
    trace = .example
    trace.events[7].kind = .pageFree
    XCTAssertEqual(failure(trace.bytes)?.reason, .wrongKind)
  }

  func testObjectsAreNumberedByTheirFirstAppearance() {
    var trace = WrittenTrace()
    trace.kmalloc(1, 8)
    trace.kmalloc(0, 8)
    XCTAssertEqual(failure(trace.bytes)?.reason, .identity)
  }
}

/// The seed of this run: `STRATA_SEED` repeats one.
let testSeed = historySeed(.random(in: 0 ... .max), "WorkloadsTests")
