// The writer of packed traces. It gets tables and events from the caller and produces bytes. It keeps none of them,
// so it runs twice: once for lengths and checksums, once to write.

import MemoryPrimitives

/// The contents of a packed trace, in memory of the caller.
package struct TraceContents {
  /// The counts that only the caller knows: identities, peaks, processors, title, dropped. Those of tables and events
  /// are the lengths of the buffers.
  package var counts: TraceCounts
  package var operations: UnsafeBufferPointer<TraceOperation>
  package var caches: UnsafeBufferPointer<TraceCache>
  /// For each string the end of its bytes among `text`.
  package var stringEnds: UnsafeBufferPointer<UInt32>
  package var text: UnsafeBufferPointer<UInt8>
  package var events: UnsafeBufferPointer<TraceEvent>

  package init(
    counts: TraceCounts, operations: UnsafeBufferPointer<TraceOperation>,
    caches: UnsafeBufferPointer<TraceCache>,
    stringEnds: UnsafeBufferPointer<UInt32>, text: UnsafeBufferPointer<UInt8>,
    events: UnsafeBufferPointer<TraceEvent>
  ) {
    self.counts = counts
    self.operations = operations
    self.caches = caches
    self.stringEnds = stringEnds
    self.text = text
    self.events = events
    self.counts.events = UInt32(events.count)
    self.counts.operations = UInt32(operations.count)
    self.counts.caches = UInt32(caches.count)
    self.counts.strings = UInt32(stringEnds.count)
    self.counts.stringBytes = UInt32(text.count)
  }

  /// Writes the bytes of the packed trace to `sink`, in order.
  package func write(_ sink: (UInt8) -> Void) {
    var records = CRC32C()
    var length: UInt64 = 0
    forEachRecordByte {
      records.update(byte: $0)
      length += 1
    }
    let tables =
      TraceLayout.header + operations.count * TraceLayout.operation + caches.count * TraceLayout.cache
      + stringEnds.count * 4 + text.count
    var head = CRC32C()
    let header = { (sink: (UInt8) -> Void) in
      u64(TraceLayout.magic, sink)
      u32(TraceLayout.version, sink)
      u32(UInt32(tables), sink)
      u64(UInt64(tables) + length, sink)
      writeCounts(sink)
      u32(records.value, sink)
    }
    header { head.update(byte: $0) }
    forEachTableByte { head.update(byte: $0) }
    header(sink)
    u32(head.value, sink)
    forEachTableByte(sink)
    forEachRecordByte(sink)
  }

  private func writeCounts(_ sink: (UInt8) -> Void) {
    u32(counts.events, sink)
    u32(counts.operations, sink)
    u32(counts.caches, sink)
    u32(counts.strings, sink)
    u32(counts.stringBytes, sink)
    u32(counts.objects, sink)
    u32(counts.pages, sink)
    u32(counts.peakObjects, sink)
    u32(counts.peakPages, sink)
    u32(counts.processors, sink)
    u64(counts.peakBytes, sink)
    u64(counts.peakAllocated, sink)
    u32(counts.title, sink)
    u32(counts.dropped, sink)
  }

  private func forEachTableByte(_ sink: (UInt8) -> Void) {
    for operation in operations {
      sink(operation.kind.rawValue)
      sink(operation.flags.rawValue)
      sink(operation.limit.rawValue)
      sink(operation.order)
      u32(operation.site, sink)
      u32(operation.cache, sink)
      u32(operation.requested, sink)
      u32(operation.allocated, sink)
    }
    for cache in caches {
      u32(cache.name, sink)
      u32(cache.size, sink)
      u32(cache.allocated, sink)
    }
    for end in stringEnds { u32(end, sink) }
    for byte in text { sink(byte) }
  }

  private func forEachRecordByte(_ sink: (UInt8) -> Void) {
    var processor: UInt32 = 0
    for event in events {
      let moved = event.processor != processor
      processor = event.processor
      sink(event.kind.rawValue | event.context.rawValue << 3 | (moved ? 0x20 : 0))
      if moved { number(processor, sink) }
      number(event.operation, sink)
      number(event.identity &+ 1, sink)
    }
  }
}

private func number(_ value: UInt32, _ sink: (UInt8) -> Void) {
  var rest = value
  while rest >= 0x80 {
    sink(UInt8(truncatingIfNeeded: rest) | 0x80)
    rest >>= 7
  }
  sink(UInt8(rest))
}

private func u32(_ value: UInt32, _ sink: (UInt8) -> Void) {
  for shift in stride(from: UInt32(0), to: 32, by: 8) { sink(UInt8(truncatingIfNeeded: value >> shift)) }
}

private func u64(_ value: UInt64, _ sink: (UInt8) -> Void) {
  u32(UInt32(truncatingIfNeeded: value), sink)
  u32(UInt32(truncatingIfNeeded: value >> 32), sink)
}
