// Vmem: arenas of integers. A caller gives an arena spans of values; the arena allocates segments of them, takes
// the segments back and joins free neighbours. It knows neither pages nor memory: the values may be addresses, page
// numbers or process numbers.
//
// STRUCTURES
//
// Every span and every segment in it, free or busy, has a boundary tag of 32 bytes (Tag.swift) in a page of tags
// (TagPool.swift). The segments of a span follow the span's tag in the order of their values. The spans of an arena
// form a list in the order in which they were added or imported. A free segment is also on the free list of its size
// class (FreeLists.swift), a busy one in a hash by its first value (BusyHash.swift). Ends are inclusive everywhere, so
// an arena may hold all 2^64 values, and no sum is formed that could wrap.
//
// TAGS: an operation secures the tags that it may need before it looks for space; afterwards it can't fail for tags.
// The number is the longest chain of one call. An import makes a span and a free segment (2). Cutting the request out
// of a segment leaves a remainder on each side (2). There is one import in a call, because the segment is cut from the
// imported span while the lock is still held. So an arena with a source needs 4 tags, one without 2, and `add` 2.
// While the lock is dropped (import, long search) the tags stay among the arena's spares but are *hidden*: counted as
// absent. Every operation has one exit, which ends the hiding, so a failed import leaks nothing (FreeBSD bug 235747).
// A source that is an arena secures its own 4. Nothing recurses: a page of tags comes through the direct map and
// enters no arena. A free makes no segment, so it never needs a tag.
//
// QUANTUM CACHES: this module has none. `alloc` and `free` are the pair that a cache on top of `Magazines` would
// serve, `xalloc` and `xfree` the pair that would bypass it. So a caller must not mix the two pairs, although both
// lead to the same code today.
//
// INVARIANTS, each checked by `checkInvariants`
//
//   VM-1  The segments of a span tile it: the first begins where the span begins, each begins directly after its
//         predecessor's last value, the last one ends where the span ends. Links in both directions agree.
//   VM-2  No two free segments are neighbours in a span. Spans never overlap, and are never joined.
//   VM-3  Starts and sizes are multiples of the quantum.
//   VM-4  A free segment is on the list of its class, exactly once, and on no other. A list's bit is set if and only
//         if the list has members.
//   VM-5  The hash finds a busy segment by its first value, and holds nothing else.
//   VM-6  Counts and sizes equal those that a walk finds; so does the largest free segment, while it is known.
//   VM-7  No imported span is wholly free.
//   VM-8  Between operations no spare tag is hidden, but those of waiters. Each tag of the supply is in exactly one
//         place: on its page's list, among an arena's spares, or in an arena's structures.
//   VM-9  Between operations no search or walk is registered with the arena.
//   VM-10 No free segment of an arena satisfies one of its waiters: see ArenaWaiters.swift.
//
// LOCKS
//
// Each arena has one spin lock (rank `vmemArena`), the supply of tags another (rank `vmemTags`), which is acquired
// inside the former. Import, release, the source of tags, reports and sleeping are upcalls, made with no lock held;
// afterwards the arena reads its state again.
//
// COST
//
// Instant fit, and a free, take constant time whatever the number of segments: one bitmap search, the head of one
// list, one hash chain of expected length 1.5. Best fit costs a pass over one list. A request with a window
// (`minimum`, `maximum`) or `nocross` may cost a pass over all lists that could hold it, but is granted whenever any
// free segment can satisfy it. A pass drops the lock after every `ArenaCore.searchBudget` tags. A cursor keeps its
// position and moves on when its tag is removed. If other callers add segments to the lists during a pass, the pass
// starts again, up to `ArenaCore.searchRounds` times.
//
// EXHAUSTION
//
// A request that may wait sleeps, and a free serves it directly (ArenaWaiters.swift). A free costs one load more for
// this while no thread waits, and a step for each waiter of its arena else.
//
// A request that finds no tags fails with `.noTags` and has changed nothing. A hash that finds no page to grow into
// has longer chains and asks again later. A free needs nothing.
//
// SOURCES
//
// The semantics are those of vmem(9) (NetBSD, FreeBSD). The idea is Bonwick and Adams: "Magazines and Vmem: Extending
// the Slab Allocator to Many CPUs and Arbitrary Resources" (USENIX 2001). BusyHash.swift and FreeLists.swift name the
// sources of the hash and of the size classes.

import MemoryPrimitives

/// A value of an arena: an address, a page number, an identifier.
@frozen public struct ArenaAddress: Equatable, Comparable, Sendable {
  /// The value as an integer.
  public var rawValue: UInt64
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The lowest value there is.
  @inline(always) public static var lowest: Self { Self(0) }
  /// The highest value there is.
  @inline(always) public static var highest: Self { Self(UInt64.max) }
}

/// A number of values of an arena.
@frozen public struct ArenaSize: Equatable, Comparable, Sendable {
  /// The number as an integer.
  public var rawValue: UInt64
  /// Makes a size of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// No values.
  @inline(always) public static var zero: Self { Self(0) }
  /// More than a word can hold: 2^64 - 1 as an answer stands for 2^64 too.
  @inline(always) public static var everything: Self { Self(UInt64.max) }
}

/// Why an arena did not do what the caller asked. Nothing was changed.
@frozen public enum VmemError: UInt8, Error, Sendable {
  /// No free segment can satisfy the request, and none could be imported.
  case noSpace
  /// No boundary tags, and no memory for more.
  case noTags
  /// The request contradicts itself, or does not fit the quantum.
  case badConstraint
  /// The span to be added overlaps one that the arena has.
  case overlaps

  /// The reason in a few words, for the failure log.
  var description: StaticString {
    switch self {
    case .noSpace: "no space"
    case .noTags: "no boundary tags"
    case .badConstraint: "never"
    case .overlaps: "overlaps a span"
    }
  }
}

/// Which free segment a request gets.
@frozen public enum FitPolicy: UInt8, Sendable {
  /// The first one on a list whose members are all large enough: constant time.
  case instantFit
  /// The smallest one that fits: a pass over one list.
  case bestFit
}

/// The constraints that an `xalloc` adds to a size.
public struct ArenaConstraints: Equatable, Sendable {
  /// The result is `phase` above a multiple of this. Less than the quantum counts as the quantum.
  public var alignment: Alignment
  /// Below `alignment`, and a multiple of the quantum.
  public var phase: ArenaSize
  /// The segment contains no multiple of this after its first value. Nil for no such limit.
  public var nocross: Alignment?
  /// The first value that may be part of the segment.
  public var minimum: ArenaAddress
  /// The last value that may be part of the segment (inclusive).
  public var maximum: ArenaAddress

  /// Makes constraints; each default constrains nothing.
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

/// The meaning of an arena's values: reports print them accordingly.
@frozen public enum ArenaContents: UInt8, Sendable {
  /// Addresses: of memory, or of address space.
  case addresses
  /// Plain numbers.
  case identifiers
}
