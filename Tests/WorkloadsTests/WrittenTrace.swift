import Workloads

/// A packed trace that a test puts together event by event.
struct WrittenTrace {
  var counts = TraceCounts()
  var operations: [TraceOperation] = []
  var caches: [TraceCache] = []
  var strings: [String] = []
  var events: [TraceEvent] = []

  mutating func string(_ text: String) -> UInt32 {
    strings.append(text)
    return UInt32(strings.count - 1)
  }

  mutating func cache(_ name: String, size: UInt32) -> UInt32 {
    caches.append(TraceCache(name: string(name), size: size, allocated: size))
    return UInt32(caches.count - 1)
  }

  mutating func operation(_ operation: TraceOperation) -> UInt32 {
    if let known = operations.firstIndex(of: operation) { return UInt32(known) }
    operations.append(operation)
    return UInt32(operations.count - 1)
  }

  mutating func kmalloc(
    _ object: UInt32, _ size: UInt32, _ context: TraceContext = .thread, processor: UInt32 = 0
  ) {
    var what = TraceOperation(.kmalloc)
    (what.requested, what.allocated) = (size, size)
    add(what, object, context, processor)
  }

  mutating func kfree(_ object: UInt32, _ context: TraceContext = .thread) {
    add(TraceOperation(.kfree), object, context)
  }

  mutating func cacheAlloc(_ object: UInt32, from cache: UInt32) {
    var what = TraceOperation(.cacheAlloc)
    what.cache = cache
    (what.requested, what.allocated) = (caches[Int(cache)].size, caches[Int(cache)].size)
    add(what, object)
  }

  mutating func cacheFree(_ object: UInt32, to cache: UInt32) {
    var what = TraceOperation(.cacheFree)
    what.cache = cache
    add(what, object)
  }

  mutating func pages(
    _ kind: TraceKind, _ first: UInt32, order: UInt8 = 0, limit: TraceAddressLimit = .none,
    flags: TraceFlags = [], _ context: TraceContext = .thread
  ) {
    var what = TraceOperation(kind)
    what.order = order
    what.limit = limit
    what.flags = flags
    add(what, first, context)
  }

  private mutating func add(
    _ what: TraceOperation, _ identity: UInt32, _ context: TraceContext = .thread, _ processor: UInt32 = 0
  ) {
    events.append(
      TraceEvent(
        what.kind, context: context, processor: processor, operation: operation(what), identity: identity))
    if identity != TraceEvent.noIdentity {
      if what.kind.isAboutPages {
        counts.pages = max(counts.pages, identity + 1 << UInt32(what.order))
      } else {
        counts.objects = max(counts.objects, identity + 1)
      }
    }
    counts.processors = max(counts.processors, processor + 1)
    counts.peakObjects = counts.objects
    counts.peakPages = counts.pages
  }

  /// The bytes, written by the product's own writer.
  var bytes: [UInt8] {
    var text: [UInt8] = []
    var ends: [UInt32] = []
    for string in strings {
      text += Array(string.utf8)
      ends.append(UInt32(text.count))
    }
    var output: [UInt8] = []
    operations.withUnsafeBufferPointer { operations in
      caches.withUnsafeBufferPointer { caches in
        ends.withUnsafeBufferPointer { ends in
          text.withUnsafeBufferPointer { text in
            events.withUnsafeBufferPointer { events in
              TraceContents(
                counts: counts, operations: operations, caches: caches, stringEnds: ends, text: text,
                events: events
              ).write { output.append($0) }
            }
          }
        }
      }
    }
    return output
  }

  /// A small one with something of everything in it.
  static var example: WrittenTrace {
    var trace = WrittenTrace()
    trace.counts.title = trace.string("example")
    let cache = trace.cache("filp", size: 256)
    trace.kmalloc(0, 100)
    trace.cacheAlloc(1, from: cache)
    trace.pages(.pageAlloc, 0, order: 2, limit: .highmem, flags: .movable)
    trace.kmalloc(2, 5000, .softInterrupt, processor: 1)
    trace.pages(.pageFree, 0)
    trace.pages(.pageFreeBatched, 0)
    trace.cacheFree(1, to: cache)
    trace.kfree(0)
    trace.kfree(TraceEvent.noIdentity)
    trace.pages(.pageFree, 2, order: 1)
    trace.pages(.pageAlloc, 300)
    return trace
  }
}

extension [UInt8] {
  /// Makes header and record checksums right again after a test changed something.
  mutating func repairChecksums() {
    let recordsAt = Int(self[12]) | Int(self[13]) << 8
    var records = CRC32C()
    for byte in self[recordsAt...] { records.update(byte: byte) }
    put(records.value, at: 88)
    var header = CRC32C()
    for (index, byte) in self[..<recordsAt].enumerated() where !(92..<96).contains(index) {
      header.update(byte: byte)
    }
    put(header.value, at: 92)
  }

  mutating func put(_ value: UInt32, at offset: Int) {
    for i in 0..<4 { self[offset + i] = UInt8(truncatingIfNeeded: value >> UInt32(8 * i)) }
  }
}
