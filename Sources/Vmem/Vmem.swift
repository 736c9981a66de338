// Vmem: arenas of integers. An arena is given spans of values, hands out segments of them, takes the
// segments back and joins what lies side by side. It knows neither pages nor memory: the values may be
// addresses, pages or process numbers.
//
// The semantics are those of vmem(9) (NetBSD, FreeBSD); the idea is Bonwick and Adams: "Magazines and
// Vmem: Extending the Slab Allocator to Many CPUs and Arbitrary Resources" (USENIX 2001).
//
// STRUCTURES. Every span and every segment in it, free or busy, has a boundary tag of 32 bytes
// (Tag.swift) in a page of tags (Tags.swift). The segments of a span hang behind the span's tag in the
// order of their values; the spans of an arena form a list in the order in which they came. A free
// segment is on the free list of its size class as well (FreeLists.swift), a busy one in a hash by its
// first value (BusyHash.swift). Ends are inclusive everywhere, so an arena may hold all 2^64 values, and
// no sum is formed that could wrap.
//
// LAWS, which `checkInvariants` checks:
//   1. The segments of a span tile it: the first begins where it begins, each begins behind its
//      predecessor's last value, the last one ends where it ends.
//   2. No two free segments are neighbours in a span. Spans never overlap, and are never joined.
//   3. Starts and sizes are multiples of the quantum.
//   4. A free segment is on the list of its class, exactly once, and on no other; a list's bit is set if
//      and only if the list has members.
//   5. A busy segment is found in the hash by its first value, and the hash holds nothing else.
//   6. Counts and sizes equal what a walk finds; so does the largest free segment, while it is known.
//   7. No imported span is wholly free.
//   8. Between operations no spare tag is hidden, and each tag of the supply is in exactly one place: on
//      its page's list, among an arena's spares, or in an arena's structures.
//
// TAGS. An operation secures the tags that it may need before it looks for space; afterwards it can't
// fail for tags. The number is the longest chain of one call: an import makes a span and a free segment
// (2), cutting the request out of a segment leaves a remainder on each side (2), and there is one import
// in a call, for the segment is cut from the imported span in the same hold of the lock: 4 with a
// source, 2 without, 2 for `add`. While the lock is dropped (import, long search) the tags stay among
// the arena's spares but are *hidden*: counted as not there. There is one way out of an operation and it
// takes the hiding back, so a failed import leaks nothing (FreeBSD bug 235747). A source that is an
// arena secures its own 4. Nothing recurses: a page of tags comes through the direct map and enters no
// arena. A free makes no segment, so it never needs a tag.
//
// LOCKS. One spin lock an arena (rank `vmemArena`), one for the supply of tags (rank `vmemTags`), which
// is taken inside the former. Import, release, the source of tags, reports and sleeping are upcalls, made
// with no lock held; what was read before is read again.
//
// COST. Instant fit, and a free, take constant time whatever the number of segments: one bitmap search,
// the head of one list, one hash chain of expected length 1.5. Best fit costs a pass over one list.
// A request with a window (`minimum`, `maximum`) or `nocross` may cost a pass over all lists that could
// hold it, but is granted whenever any free segment can. Passes are cut into segments of
// `ArenaCore.searchBudget` tags with the lock dropped between; a cursor keeps the place and is moved on when
// its tag goes. If others put segments into the lists meanwhile the pass starts again, up to
// `ArenaCore.searchRounds` times.
//
// WHEN MEMORY IS GONE. A request that finds no tags fails with `.noTags` and has changed nothing. A hash
// that finds no page to grow has longer chains and asks again later. A free needs nothing.
//
// QUANTUM CACHES will stand between `alloc`/`free` and `xalloc`/`xfree`, on the magazines of layer 2:
// that is why the two pairs are distinct and must not be mixed.

import MemoryPrimitives

/// A value of an arena: an address, a page number, an identifier.
@frozen public struct ArenaAddress: Equatable, Comparable, Sendable {
  public var rawValue: UInt64
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The lowest value there is.
  @inline(always) public static var lowest: Self { Self(0) }
  /// The highest value there is.
  @inline(always) public static var highest: Self { Self(UInt64.max) }
}

/// A number of values of an arena.
@frozen public struct ArenaSize: Equatable, Comparable, Sendable {
  public var rawValue: UInt64
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  @inline(always) public static var zero: Self { Self(0) }
  /// More than a word can say: 2^64 - 1 as an answer stands for 2^64 too.
  @inline(always) public static var everything: Self { Self(UInt64.max) }
}

/// Why an arena did not do what was asked. Nothing was changed.
@frozen public enum VmemError: UInt8, Error, Sendable {
  /// No free segment can satisfy the request, and none could be imported.
  case noSpace
  /// No boundary tags, and no memory for more.
  case noTags
  /// The request contradicts itself, or does not fit the quantum.
  case badConstraint
  /// The span to be added overlaps one that the arena has.
  case overlaps
}

/// Which free segment a request gets.
@frozen public enum FitPolicy: UInt8, Sendable {
  /// The first one on a list whose members are all large enough: constant time.
  case instantFit
  /// The smallest one that fits: a pass over one list.
  case bestFit
}

/// What an `xalloc` asks beyond a size.
public struct ArenaConstraints: Equatable, Sendable {
  /// The result is `phase` above a multiple of this. Less than the quantum counts as the quantum.
  public var alignment: Alignment
  /// Below `alignment`, and a multiple of the quantum.
  public var phase: ArenaSize
  /// The segment contains no multiple of this behind its first value. Nil for no such wish.
  public var nocross: Alignment?
  /// The first value that may be part of the segment.
  public var minimum: ArenaAddress
  /// The last value that may be part of the segment (inclusive).
  public var maximum: ArenaAddress

  public init(
    alignment: Alignment = .byte, phase: ArenaSize = .zero, nocross: Alignment? = nil,
    minimum: ArenaAddress = .lowest, maximum: ArenaAddress = .highest
  ) {
    self.alignment = alignment
    self.phase = phase
    self.nocross = nocross
    self.minimum = minimum
    self.maximum = maximum
  }
}

/// What the values of an arena are: decides how reports speak of them.
@frozen public enum ArenaContents: UInt8, Sendable {
  case addresses
  case identifiers
}
