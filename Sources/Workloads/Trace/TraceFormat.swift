// The packed trace: the allocation events of a kernel in a form that another kernel can replay without
// an allocator, without hashing and without trusting it.
//
// Everything about an event except its identity recurs. So the file has it once, in a table of operations: kind, call
// site, cache, sizes or order, flags. An event is then a head byte, an operation and an identity. Identities are
// dense. An object pointer is numbered by its first appearance, a frame by its rank among all frame numbers that
// appear. Blocks are expanded, so successive frames have successive numbers. A replay needs two flat tables whose
// lengths the header states. The packer decides nothing: frees without an owner, lost frees and repeated frees are
// all in the trace. 335,138 events of Linux 6.1 take 1.3 MB, against 52.6 MB of text.
//
// All integers are little-endian and are read byte by byte: nothing is aligned.
//
//   header, 96 bytes
//     0  magic         8 bytes: 89 "STRATA" 0a (the high bit and the line feed show a transfer as text)
//     8  version       u32, 1
//    12  records at    u32, bytes of header and tables
//    16  length        u64, bytes of the whole file
//    24  events        u32   28 operations u32   32 caches u32   36 strings u32   40 string bytes u32
//    44  objects       u32, object identities    48 pages u32, frame identities
//    52  peak objects  u32   56 peak pages u32: live at once, by ownership
//    60  processors    u32
//    64  peak bytes    u64, live at once, as requested    72 peak allocated u64, as the traced kernel rounded
//    80  title         u32, a string, or all ones
//    84  dropped       u32, lines of the source that are not in here
//    88  checksum      u32, CRC-32C of the records
//    92  checksum      u32, CRC-32C of header and tables, these four bytes left out
//   operations, 20 bytes each
//     0  kind u8   1 flags u8   2 address limit u8   3 order u8   4 call site u32, a string, or all ones
//     8  cache u32, or all ones   12 bytes requested u32   16 bytes that the traced kernel gave u32
//   caches, 12 bytes each: name u32, a string; object size u32; size in the traced kernel's slab u32
//   strings: for each the end of its bytes, u32; then all bytes
//   records, for each event
//     head         bits 0 to 2 kind, 3 and 4 context, 5 "a processor follows", 6 and 7 zero
//     processor    varint, if it is not the one of the event before (the first event's is 0)
//     operation    varint
//     identity     varint: 0 for none (a free of nil, a request that failed), else number + 1;
//                  of a block of frames the first
//
// A varint has seven bits a byte, the low ones first, and the high bit means that more follow. It has at most five
// bytes,
// 32 bits, and no more bytes than the number needs.

import MemoryPrimitives

/// The kind of an event.
package enum TraceKind: UInt8, Sendable {
  case kmalloc, kfree, cacheAlloc, cacheFree, pageAlloc, pageFree, pageFreeBatched

  package static var count: Int { 7 }

  /// The name of the kernel's event.
  package var description: StaticString {
    switch self {
    case .kmalloc: "kmalloc"
    case .kfree: "kfree"
    case .cacheAlloc: "kmem_cache_alloc"
    case .cacheFree: "kmem_cache_free"
    case .pageAlloc: "mm_page_alloc"
    case .pageFree: "mm_page_free"
    case .pageFreeBatched: "mm_page_free_batched"
    }
  }

  /// Whether it is about frames, and not about an object.
  package var isAboutPages: Bool { rawValue >= Self.pageAlloc.rawValue }
  package var allocates: Bool {
    switch self {
    case .kmalloc, .cacheAlloc, .pageAlloc: true
    default: false
    }
  }
}

/// The context of an event on its processor.
package enum TraceContext: UInt8, Sendable {
  case thread, softInterrupt, hardInterrupt
}

/// The flags of an allocation that matter here.
package struct TraceFlags: OptionSet, Sendable {
  package let rawValue: UInt8
  package init(rawValue: UInt8) { self.rawValue = rawValue }
  /// The memory was to be zero.
  package static var zero: Self { Self(rawValue: 1) }
  /// The request could not wait and might dip into the reserve.
  package static var atomic: Self { Self(rawValue: 2) }
  /// The request could not wait.
  package static var noWait: Self { Self(rawValue: 4) }
  package static var movable: Self { Self(rawValue: 8) }
  package static var reclaimable: Self { Self(rawValue: 16) }
  static var all: UInt8 { 31 }
}

/// The memory that an allocation had to lie in.
package enum TraceAddressLimit: UInt8, Sendable {
  /// Memory that the kernel reaches directly.
  case none
  /// Below 16 MiB.
  case dma
  /// Below 4 GiB.
  case dma32
  /// Anywhere.
  case highmem
}

/// A cache of objects of the traced kernel.
package struct TraceCache: Equatable, Sendable {
  /// Index of its name among the strings.
  package var name: UInt32
  /// Bytes in an object.
  package var size: UInt32
  /// Bytes that an object took in the traced kernel.
  package var allocated: UInt32

  package init(name: UInt32, size: UInt32, allocated: UInt32) {
    self.name = name
    self.size = size
    self.allocated = allocated
  }
}

/// All that recurs of an event. Fields that don't apply to its kind are zero or `none`.
package struct TraceOperation: Equatable, Sendable {
  package static var none: UInt32 { .max }
  package var kind: TraceKind
  package var flags: TraceFlags = []
  package var limit: TraceAddressLimit = .none
  /// Of a block of frames.
  package var order: UInt8 = 0
  /// Index of the call site among the strings.
  package var site: UInt32 = Self.none
  /// Index of the cache.
  package var cache: UInt32 = Self.none
  /// Bytes asked for.
  package var requested: UInt32 = 0
  /// Bytes that the traced kernel gave.
  package var allocated: UInt32 = 0

  package init(_ kind: TraceKind) { self.kind = kind }
}

/// One event.
package struct TraceEvent: Equatable, Sendable {
  /// No identity.
  package static var noIdentity: UInt32 { .max }
  package var kind: TraceKind
  package var context: TraceContext
  package var processor: UInt32
  /// Index of its operation.
  package var operation: UInt32
  /// The object, or the (first) frame; `noIdentity` for a free of nil or a request that failed.
  package var identity: UInt32

  package init(
    _ kind: TraceKind, context: TraceContext = .thread, processor: UInt32 = 0, operation: UInt32,
    identity: UInt32
  ) {
    self.kind = kind
    self.context = context
    self.processor = processor
    self.operation = operation
    self.identity = identity
  }
}

/// The counts of the header.
package struct TraceCounts: Equatable, Sendable {
  package var events: UInt32 = 0
  package var operations: UInt32 = 0
  package var caches: UInt32 = 0
  package var strings: UInt32 = 0
  package var stringBytes: UInt32 = 0
  /// Object identities.
  package var objects: UInt32 = 0
  /// Frame identities.
  package var pages: UInt32 = 0
  /// Objects live at once.
  package var peakObjects: UInt32 = 0
  /// Frames live at once.
  package var peakPages: UInt32 = 0
  package var processors: UInt32 = 1
  /// Bytes live at once, as requested.
  package var peakBytes: UInt64 = 0
  /// Bytes live at once, as the traced kernel rounded them.
  package var peakAllocated: UInt64 = 0
  /// Index of the title among the strings, or all ones.
  package var title: UInt32 = .max
  /// Lines of the source that the packer left out.
  package var dropped: UInt32 = 0

  package init() {}
}

enum TraceLayout {
  static var magic: UInt64 { 0x0a41_5441_5254_5389 }
  static var version: UInt32 { 1 }
  static var header: Int { 96 }
  static var operation: Int { 20 }
  static var cache: Int { 12 }
  /// The shortest record: head, operation and identity, a byte each.
  static var shortestRecord: UInt64 { 3 }
  /// Blocks of 1 GiB are the largest that the buddy queues know.
  static var highestOrder: UInt8 { 18 }
}
