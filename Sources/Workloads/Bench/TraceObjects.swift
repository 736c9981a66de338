// The object events of a trace, many times interleaved: each event happens once for every copy before the next one.
//
// The events are unpacked beforehand, and ownership is decided: a free without an object is left out, and an
// allocation of a live identity frees the old object first. So the timed loop reads an event and calls the allocator.
// Objects above a page are left out: a host process has no memory behind the addresses that kmem gives them.

import CPlatform
import MemoryPrimitives

/// One event: an allocation of `size` bytes, or a free of them.
@frozen @usableFromInline package struct TraceObjectEvent {
  /// The number of the object.
  @usableFromInline package var identity: UInt32
  /// The high bit marks a free.
  @usableFromInline var word: UInt32

  init(_ identity: UInt32, size: UInt32, isFree: Bool) {
    self.identity = identity
    word = size | (isFree ? 1 << 31 : 0)
  }

  /// Bytes of the object.
  @inlinable package var size: UInt32 { word & ~(1 << 31) }
  /// Whether it is a free.
  @inlinable package var isFree: Bool { word >> 31 != 0 }
}

/// The events of a trace, unpacked, in memory of the caller.
@usableFromInline package struct TraceObjects {
  /// The events, of which `count` are valid.
  @usableFromInline package let events: UnsafeMutableBufferPointer<TraceObjectEvent>
  /// Object identities of the trace.
  package let identities: Int
  /// The number of events until the peak of live bytes.
  package private(set) var peakIndex = 0
  /// The peak of live bytes of one copy.
  package private(set) var peakBytes: UInt64 = 0
  /// Objects that were left out as they are larger than a page.
  package private(set) var leftOut = 0
  /// Valid events.
  package private(set) var count = 0

  /// The most events of a trace: each may free an old object and has its own action, and at the end all objects are
  /// freed.
  package static func capacity(_ counts: TraceCounts) -> Int { Int(counts.events) * 2 + Int(counts.objects) }

  /// Unpacks a trace into `events`, of `capacity`. `sizes` is a word for each object identity.
  package init(
    _ trace: PackedTrace, into events: UnsafeMutableBufferPointer<TraceObjectEvent>,
    sizes: UnsafeMutableBufferPointer<UInt32>
  ) throws(TraceError) {
    self.events = events
    identities = Int(trace.counts.objects)
    for i in 0..<identities { sizes[i] = 0 }
    var live: UInt64 = 0
    var cursor = trace.records
    while let event = try cursor.next() {
      guard event.identity != TraceEvent.noIdentity, !event.kind.isAboutPages else { continue }
      let identity = event.identity
      if sizes[Int(identity)] != 0 {
        live -= UInt64(sizes[Int(identity)])
        append(identity, sizes[Int(identity)], isFree: true)
        sizes[Int(identity)] = 0
      }
      guard event.kind.allocates else { continue }
      let size = trace.operation(event.operation).requested
      guard size > 0, UInt64(size) <= Page.size else {
        leftOut += 1
        continue
      }
      sizes[Int(identity)] = size
      append(identity, size, isFree: false)
      live += UInt64(size)
      if live > peakBytes { (peakBytes, peakIndex) = (live, count) }
    }
    for identity in 0..<identities where sizes[identity] != 0 {
      append(UInt32(identity), sizes[identity], isFree: true)
    }
  }

  private mutating func append(_ identity: UInt32, _ size: UInt32, isFree: Bool) {
    events[count] = TraceObjectEvent(identity, size: size, isFree: isFree)
    count += 1
  }

  /// Carries out events `from` to `end` for each of 64 copies in turn. `objects` has 64 places for each identity.
  /// An object's first and last word are written, as its user would.
  @inline(always)
  package func run<A: BenchAllocator>(
    _ allocator: A, _ objects: UnsafeMutablePointer<UnsafeMutableRawPointer?>, from: Int, to end: Int
  ) {
    let events = events.baseAddress.unsafelyUnwrapped
    for i in from..<end {
      let event = events[i]
      let place = objects + Int(event.identity) * 64
      let size = UInt64(event.size)
      if event.isFree {
        for copy in 0..<64 { allocator.free(place[copy].unsafelyUnwrapped, size) }
      } else {
        for copy in 0..<64 {
          let object = cp_opaque(allocator.allocate(size))
          object.storeBytes(of: UInt8(truncatingIfNeeded: i), as: UInt8.self)
          object.storeBytes(of: UInt8(truncatingIfNeeded: i), toByteOffset: Int(size) - 1, as: UInt8.self)
          place[copy] = object
        }
      }
    }
  }
}
