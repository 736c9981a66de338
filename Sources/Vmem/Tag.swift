// The boundary tag: 32 bytes for a span or a segment, free or busy.
//
// A link is the tag's distance from a base in units of 32 bytes. 30 bits reach 32 GiB, so tag pages come
// from the lowest 32 GiB of the direct map; zero means none, so no tag lies at the base itself. Two
// words hold two links each and four bits: the kind in one, the mark of `checkInvariants` in the other.

import MemoryPrimitives

typealias TagPointer = UnsafeMutablePointer<Tag>

/// Names a tag in 30 bits.
struct Link: Equatable {
  var rawValue: UInt32
  @inline(always) init(_ rawValue: UInt32) { self.rawValue = rawValue }
  @inline(always) static var none: Self { Self(0) }
  @inline(always) static var bits: UInt64 { 0x3fff_ffff }
}

enum TagKind: UInt8 {
  /// In the supply, or a spare.
  case unused = 0
  case free
  case busy
  /// A span that the arena was given.
  case added
  /// A span that came from the arena's source and returns to it.
  case imported

  @inline(always) var isSpan: Bool { self == .added || self == .imported }
}

struct Tag {
  var start: UInt64
  /// Inclusive.
  var last: UInt64
  /// Previous segment in bits 0 to 29 (the span for a first segment), next segment in bits 30 to 59,
  /// kind in bits 60 to 63. A span has its first segment as next.
  fileprivate var order: UInt64
  /// Bits 0 to 29 and 30 to 59: free segment: previous and next on its list; span: previous and next
  /// span; busy segment: next in the hash, call site; unused: -, next. Bit 60: the mark of `checkInvariants`.
  fileprivate var chain: UInt64
}

/// The fields of a tag, in place.
extension TagPointer {
  var start: UInt64 {
    @inline(always) get { pointee.start }
    @inline(always) nonmutating set { pointee.start = newValue }
  }
  /// Inclusive.
  var last: UInt64 {
    @inline(always) get { pointee.last }
    @inline(always) nonmutating set { pointee.last = newValue }
  }

  @inline(always) private static func low(_ word: UInt64) -> UInt32 {
    UInt32(truncatingIfNeeded: word & Link.bits)
  }
  @inline(always) private static func high(_ word: UInt64) -> UInt32 {
    UInt32(truncatingIfNeeded: (word >> 30) & Link.bits)
  }
  @inline(always) private static func setLow(_ word: inout UInt64, _ value: UInt32) {
    word = word & ~Link.bits | UInt64(value)
  }
  @inline(always) private static func setHigh(_ word: inout UInt64, _ value: UInt32) {
    word = word & ~(Link.bits << 30) | UInt64(value) << 30
  }

  var kind: TagKind {
    @inline(always) get { TagKind(rawValue: UInt8(truncatingIfNeeded: pointee.order >> 60)) ?? .unused }
    @inline(always) nonmutating set {
      pointee.order = pointee.order & 0x0fff_ffff_ffff_ffff | UInt64(newValue.rawValue) << 60
    }
  }
  var previousSegment: Link {
    @inline(always) get { Link(Self.low(pointee.order)) }
    @inline(always) nonmutating set { Self.setLow(&pointee.order, newValue.rawValue) }
  }
  var nextSegment: Link {
    @inline(always) get { Link(Self.high(pointee.order)) }
    @inline(always) nonmutating set { Self.setHigh(&pointee.order, newValue.rawValue) }
  }
  /// Of a free segment, or of a span.
  var previous: Link {
    @inline(always) get { Link(Self.low(pointee.chain)) }
    @inline(always) nonmutating set { Self.setLow(&pointee.chain, newValue.rawValue) }
  }
  /// Of a free segment, a span, or an unused tag.
  var next: Link {
    @inline(always) get { Link(Self.high(pointee.chain)) }
    @inline(always) nonmutating set { Self.setHigh(&pointee.chain, newValue.rawValue) }
  }
  var nextInHash: Link {
    @inline(always) get { Link(Self.low(pointee.chain)) }
    @inline(always) nonmutating set { Self.setLow(&pointee.chain, newValue.rawValue) }
  }
  var callSite: CallSite {
    @inline(always) get { CallSite(rawValue: Self.high(pointee.chain)) }
    @inline(always) nonmutating set { Self.setHigh(&pointee.chain, newValue.rawValue) }
  }
  var isMarked: Bool {
    get { pointee.chain >> 60 & 1 != 0 }
    nonmutating set { pointee.chain = pointee.chain & ~(1 << 60) | (newValue ? 1 << 60 : 0) }
  }

  /// Values in the segment less one, which can't overflow.
  @inline(always) var extent: UInt64 { last - start }

  /// Makes the tag one of `kind` for `start ... last` with no links.
  @inline(always) func set(_ kind: TagKind, _ start: UInt64, _ last: UInt64) {
    self.start = start
    self.last = last
    pointee.order = UInt64(kind.rawValue) << 60
    pointee.chain = 0
  }
}

/// Turns links into tags and back.
struct TagLinks {
  let base: UInt64

  @inline(always) subscript(_ link: Link) -> TagPointer {
    UnsafeMutablePointer(bitPattern: UInt(base &+ UInt64(link.rawValue) &<< 5)).unsafelyUnwrapped
  }
  @inline(always) func pointer(_ link: Link) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(self[link])
  }
  @inline(always) func link(_ pointer: UnsafeMutableRawPointer) -> Link {
    Link(UInt32(truncatingIfNeeded: (UInt64(UInt(bitPattern: pointer)) &- base) &>> 5))
  }
  /// Whether a whole page at `pointer` can be named by links.
  func reaches(pageAt pointer: UnsafeMutableRawPointer) -> Bool {
    let address = UInt64(UInt(bitPattern: pointer))
    return address > base && address - base <= (Link.bits << 5) - Page.size + 32 && address % Page.size == 0
  }
}
