// The reader of packed traces: trusts nothing, needs no memory of its own.
//
// Opening checks header and tables, in time that grows with the tables only, as a kernel does it during boot.
// `validate` then checks all records once, before the first is used; the cursor checks each record all the same. An
// error names byte and record.

import MemoryPrimitives

/// A packed trace in memory of the caller. Copyable.
package struct PackedTrace {
  let bytes: UnsafeRawBufferPointer
  /// The version of the format that this code reads and writes.
  package static var version: UInt32 { TraceLayout.version }

  /// The counts of the header.
  package let counts: TraceCounts
  /// The offset of the first record.
  let recordsAt: Int

  /// Reads header and tables of the trace that `bytes` holds from first to last.
  /// Takes some 20 instructions a byte of them.
  package init(_ bytes: UnsafeRawBufferPointer) throws(TraceError) {
    self.bytes = bytes
    guard bytes.count > 0 else { throw TraceError(.empty, at: 0) }
    // A file that ends inside the magic is still distinguished from one of another kind.
    for i in 0..<min(8, bytes.count)
    where bytes[i] != UInt8(truncatingIfNeeded: TraceLayout.magic >> UInt64(8 * i)) {
      throw TraceError(.notATrace, at: i)
    }
    guard bytes.count >= 12 else {
      throw TraceError(.truncated, at: bytes.count, expected: UInt64(TraceLayout.header))
    }
    let version = bytes.u32(at: 8)
    guard version == TraceLayout.version else {
      throw TraceError(.unknownVersion, at: 8, found: UInt64(version), expected: UInt64(TraceLayout.version))
    }
    guard bytes.count >= TraceLayout.header else {
      throw TraceError(.truncated, at: bytes.count, expected: UInt64(TraceLayout.header))
    }
    let counts = TraceCounts(bytes)
    self.counts = counts
    // Sums of at most 2^32 entries of at most 20 bytes: they can't overflow 64 bits.
    let tables =
      UInt64(TraceLayout.header) + UInt64(counts.operations) * UInt64(TraceLayout.operation)
      + UInt64(counts.caches) * UInt64(TraceLayout.cache) + UInt64(counts.strings) * 4
      + UInt64(counts.stringBytes)
    let length = bytes.u64(at: 16)
    let recordsAt = bytes.u32(at: 12)
    self.recordsAt = Int(recordsAt)
    guard UInt64(recordsAt) <= UInt64(bytes.count) else {
      throw TraceError(.truncated, at: bytes.count, expected: length)
    }
    let sum = PackedTrace.headerChecksum(UnsafeRawBufferPointer(rebasing: bytes[..<self.recordsAt]))
    guard recordsAt >= TraceLayout.header, sum == bytes.u32(at: 92) else {
      throw TraceError(
        .headerChecksum, at: self.recordsAt, found: UInt64(sum), expected: UInt64(bytes.u32(at: 92)))
    }
    guard UInt64(recordsAt) == tables else {
      throw TraceError(.counts, at: 12, found: UInt64(recordsAt), expected: tables)
    }
    try checkCounts()
    try checkTables()
    guard length <= UInt64(bytes.count) else { throw truncation(length) }
    guard length == UInt64(bytes.count) else {
      throw TraceError(.trailingBytes, at: Int(length), found: UInt64(bytes.count))
    }
    let shortest = tables + UInt64(counts.events) * TraceLayout.shortestRecord
    guard length >= shortest else {
      throw TraceError(.counts, at: 24, found: UInt64(counts.events), expected: (length - tables) / 3)
    }
  }

  /// Checks all records: their checksum, each by itself, and their totals. About 70 instructions a record. After it, a
  /// replay meets no error in the trace.
  package func validate() throws(TraceError) {
    var sum = CRC32C()
    sum.update(UnsafeRawBufferPointer(rebasing: bytes[recordsAt...]))
    var cursor = records
    // Objects are numbered by their first appearance, so a new one is the next; of frames, whose numbers
    // are ranks, only the highest can be checked without a table.
    var (objects, pages): (UInt32, UInt32) = (0, 0)
    while let event = try cursor.next() {
      guard event.identity != TraceEvent.noIdentity else { continue }
      if event.kind.isAboutPages {
        let order = operation(event.operation).order
        pages = max(pages, event.identity + (1 << UInt32(order)))
      } else {
        guard event.identity <= objects else {
          throw cursor.error(.identity, found: UInt64(event.identity), expected: UInt64(objects))
        }
        if event.identity == objects { objects += 1 }
      }
    }
    // Sound records may still be garbled; the position is then unknown.
    guard sum.value == bytes.u32(at: 88) else {
      throw TraceError(
        .recordChecksum, at: recordsAt, found: UInt64(sum.value), expected: UInt64(bytes.u32(at: 88))
      ).inRecord(0, of: counts.events)
    }
    guard cursor.at == bytes.count else {
      throw TraceError(.trailingBytes, at: cursor.at, found: UInt64(bytes.count))
    }
    guard objects == counts.objects else {
      throw TraceError(.counts, at: 44, found: UInt64(counts.objects), expected: UInt64(objects))
    }
    guard pages == counts.pages else {
      throw TraceError(.counts, at: 48, found: UInt64(counts.pages), expected: UInt64(pages))
    }
  }

  /// The events from the first on.
  package var records: TraceCursor { TraceCursor(trace: self, at: recordsAt) }

  /// Bytes of the whole trace.
  package var size: ByteCount { ByteCount(bytes.count) }

  // MARK: Tables

  /// The operation at `index`, below `counts.operations`.
  package func operation(_ index: UInt32) -> TraceOperation {
    precondition(index < counts.operations, "no such operation")
    return operation(at: TraceLayout.header + Int(index) * TraceLayout.operation)!
  }

  /// The cache at `index`, below `counts.caches`.
  package func cache(_ index: UInt32) -> TraceCache {
    precondition(index < counts.caches, "no such cache")
    let at = cachesAt + Int(index) * TraceLayout.cache
    return TraceCache(name: bytes.u32(at: at), size: bytes.u32(at: at + 4), allocated: bytes.u32(at: at + 8))
  }

  /// The bytes of the string at `index`, below `counts.strings`.
  package func string(_ index: UInt32) -> UnsafeBufferPointer<UInt8> {
    precondition(index < counts.strings, "no such string")
    let start = index == 0 ? 0 : Int(bytes.u32(at: stringsAt + Int(index - 1) * 4))
    let end = Int(bytes.u32(at: stringsAt + Int(index) * 4))
    let text = UnsafeRawBufferPointer(
      rebasing: bytes[stringsAt + Int(counts.strings) * 4 + start..<recordsAt])
    return UnsafeBufferPointer(
      start: text.assumingMemoryBound(to: UInt8.self).baseAddress, count: end - start)
  }

  /// The source of the trace; empty when the packer got none.
  package var title: ShortName {
    ShortName(bytes: counts.title == .max ? UnsafeBufferPointer(start: nil, count: 0) : string(counts.title))
  }

  private var cachesAt: Int { TraceLayout.header + Int(counts.operations) * TraceLayout.operation }
  private var stringsAt: Int { cachesAt + Int(counts.caches) * TraceLayout.cache }

  private func operation(at: Int) -> TraceOperation? {
    guard let kind = TraceKind(rawValue: bytes[at]), let limit = TraceAddressLimit(rawValue: bytes[at + 2])
    else {
      return nil
    }
    var operation = TraceOperation(kind)
    operation.flags = TraceFlags(rawValue: bytes[at + 1])
    operation.limit = limit
    operation.order = bytes[at + 3]
    operation.site = bytes.u32(at: at + 4)
    operation.cache = bytes.u32(at: at + 8)
    operation.requested = bytes.u32(at: at + 12)
    operation.allocated = bytes.u32(at: at + 16)
    return operation
  }

  // MARK: Checks

  private func checkCounts() throws(TraceError) {
    // No identity without an event; a block brings at most 2^18 frames.
    if counts.objects > counts.events {
      throw TraceError(.counts, at: 44, found: UInt64(counts.objects), expected: UInt64(counts.events))
    }
    if UInt64(counts.pages) > UInt64(counts.events) << UInt64(TraceLayout.highestOrder) {
      throw TraceError(.counts, at: 48, found: UInt64(counts.pages), expected: UInt64(counts.events))
    }
    if counts.peakObjects > counts.objects {
      throw TraceError(.counts, at: 52, found: UInt64(counts.peakObjects), expected: UInt64(counts.objects))
    }
    if counts.peakPages > counts.pages {
      throw TraceError(.counts, at: 56, found: UInt64(counts.peakPages), expected: UInt64(counts.pages))
    }
    if counts.processors == 0 { throw TraceError(.counts, at: 60, found: 0, expected: 1) }
    if counts.title != .max && counts.title >= counts.strings {
      throw TraceError(.counts, at: 80, found: UInt64(counts.title), expected: UInt64(counts.strings))
    }
  }

  private func checkTables() throws(TraceError) {
    for index in 0..<Int(counts.operations) {
      let at = TraceLayout.header + index * TraceLayout.operation
      guard let entry = operation(at: at), entry.isSound(counts) else { throw TraceError(.operation, at: at) }
    }
    for index in 0..<counts.caches {
      let entry = cache(index)
      if entry.name >= counts.strings || entry.size == 0 {
        throw TraceError(.cache, at: cachesAt + Int(index) * TraceLayout.cache)
      }
    }
    var last: UInt32 = 0
    for index in 0..<Int(counts.strings) {
      let end = bytes.u32(at: stringsAt + index * 4)
      if end < last || end > counts.stringBytes { throw TraceError(.string, at: stringsAt + index * 4) }
      last = end
    }
  }

  /// The error of a file that should have `length` bytes, with the record in which it ends.
  private func truncation(_ length: UInt64) -> TraceError {
    var cursor = records
    do throws(TraceError) {
      while try cursor.next() != nil {}
    } catch {
      if error.reason != .truncated { return error }
    }
    return TraceError(.truncated, at: bytes.count, expected: length).inRecord(cursor.index, of: counts.events)
  }

  /// The checksum of header and tables, without the bytes of the checksum itself.
  static func headerChecksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
    var sum = CRC32C()
    sum.update(UnsafeRawBufferPointer(rebasing: bytes[..<min(92, bytes.count)]))
    if bytes.count > 96 { sum.update(UnsafeRawBufferPointer(rebasing: bytes[96...])) }
    return sum.value
  }
}

/// Reads the events of a packed trace, one by one.
package struct TraceCursor {
  let trace: PackedTrace
  /// The next byte to read, from the start of the file.
  private(set) var at: Int
  private(set) var start: Int
  private var processor: UInt32 = 0
  /// Events read so far; the record being read while `next` runs.
  package private(set) var index: UInt32 = 0

  init(trace: PackedTrace, at: Int) {
    self.trace = trace
    self.at = at
    start = at
  }

  /// The next event, or nil behind the last. About 40 instructions.
  package mutating func next() throws(TraceError) -> TraceEvent? {
    guard index < trace.counts.events else { return nil }
    start = at
    guard at < trace.bytes.count else { throw cutOff() }
    let head = trace.bytes[at]
    at += 1
    guard let kind = TraceKind(rawValue: head & 7), let context = TraceContext(rawValue: head >> 3 & 3),
      head < 0x40
    else { throw error(.head, found: UInt64(head), expected: 0) }
    if head & 0x20 != 0 {
      processor = try number()
      guard processor < trace.counts.processors else {
        throw error(
          .unknownProcessor, found: UInt64(processor), expected: UInt64(trace.counts.processors) - 1)
      }
    }
    let operation = try number()
    guard operation < trace.counts.operations else {
      throw error(.unknownOperation, found: UInt64(operation), expected: UInt64(trace.counts.operations) - 1)
    }
    let entry = trace.bytes[TraceLayout.header + Int(operation) * TraceLayout.operation]
    guard entry == kind.rawValue else {
      throw error(.wrongKind, found: UInt64(kind.rawValue), expected: UInt64(entry))
    }
    // Zero wraps to `noIdentity`.
    let identity = try number() &- 1
    if identity != TraceEvent.noIdentity { try check(identity, kind, operation) }
    index += 1
    return TraceEvent(kind, context: context, processor: processor, operation: operation, identity: identity)
  }

  private func check(_ identity: UInt32, _ kind: TraceKind, _ operation: UInt32) throws(TraceError) {
    let (last, limit): (UInt64, UInt32)
    if kind.isAboutPages {
      let order = trace.bytes[TraceLayout.header + Int(operation) * TraceLayout.operation + 3]
      (last, limit) = (UInt64(identity) + (1 << UInt64(order)) - 1, trace.counts.pages)
    } else {
      (last, limit) = (UInt64(identity), trace.counts.objects)
    }
    guard last < UInt64(limit) else {
      throw error(.identity, found: last, expected: UInt64(max(1, limit)) - 1)
    }
  }

  private mutating func number() throws(TraceError) -> UInt32 {
    var value: UInt64 = 0
    var shift: UInt64 = 0
    while true {
      guard at < trace.bytes.count else { throw cutOff() }
      let byte = trace.bytes[at]
      at += 1
      value |= UInt64(byte & 0x7f) << shift
      if byte < 0x80 {
        guard value <= UInt64(UInt32.max), byte != 0 || shift == 0 else { break }
        return UInt32(truncatingIfNeeded: value)
      }
      shift += 7
      if shift > 28 { break }
    }
    throw error(.number, found: value, expected: UInt64(UInt32.max))
  }

  private func cutOff() -> TraceError {
    TraceError(.truncated, at: trace.bytes.count, expected: trace.bytes.u64(at: 16))
      .inRecord(index, of: trace.counts.events)
  }

  func error(_ reason: TraceError.Reason, found: UInt64, expected: UInt64) -> TraceError {
    TraceError(reason, at: start, found: found, expected: expected).inRecord(index, of: trace.counts.events)
  }
}

extension TraceOperation {
  /// Whether the fields fit the kind and point into the tables.
  func isSound(_ counts: TraceCounts) -> Bool {
    guard site == Self.none || site < counts.strings, flags.rawValue & ~TraceFlags.all == 0 else {
      return false
    }
    switch kind {
    case .kmalloc: return cache == Self.none && order == 0
    case .cacheAlloc: return cache < counts.caches && order == 0
    case .kfree: return cache == Self.none && order == 0 && requested == 0
    case .cacheFree: return (cache == Self.none || cache < counts.caches) && order == 0 && requested == 0
    case .pageAlloc, .pageFree, .pageFreeBatched:
      return cache == Self.none && order <= TraceLayout.highestOrder && requested == 0
    }
  }
}

extension TraceCounts {
  init(_ bytes: UnsafeRawBufferPointer) {
    events = bytes.u32(at: 24)
    operations = bytes.u32(at: 28)
    caches = bytes.u32(at: 32)
    strings = bytes.u32(at: 36)
    stringBytes = bytes.u32(at: 40)
    objects = bytes.u32(at: 44)
    pages = bytes.u32(at: 48)
    peakObjects = bytes.u32(at: 52)
    peakPages = bytes.u32(at: 56)
    processors = bytes.u32(at: 60)
    peakBytes = bytes.u64(at: 64)
    peakAllocated = bytes.u64(at: 72)
    title = bytes.u32(at: 80)
    dropped = bytes.u32(at: 84)
  }
}

extension UnsafeRawBufferPointer {
  @inline(always) func u32(at offset: Int) -> UInt32 {
    let low = UInt32(self[offset]) | UInt32(self[offset + 1]) << 8
    return low | UInt32(self[offset + 2]) << 16 | UInt32(self[offset + 3]) << 24
  }
  @inline(always) func u64(at offset: Int) -> UInt64 {
    UInt64(u32(at: offset)) | UInt64(u32(at: offset + 4)) << 32
  }
}
