// The kernel's memory allocator: objects of up to 10880 bytes from caches, whole pages above.
//
// STRUCTURES
//
// An object of a cache is in exactly one of three places: with a caller, in a magazine of a processor or of the cache's
// depot, or free in its slab. A slab is a block of 1, 2, 4 or 8 frames of the direct map, or a run of up to 64
// (ContiguousSlabs.swift), and the records of these frames hold its state (Slab.swift). So a pointer leads to its slab,
// and the slab to its cache, without a search. Where memory has no run, an object above a page lies on pages of its own
// (ObjectPages.swift). Magazines and the larger tables of slabs lie in frames where no caller has memory
// (OwnMemory.swift); kmem checks them on its slow paths. Requests up to 10880 bytes go to one of 39 size classes (SizeClasses.swift). A larger request gets
// whole pages with an address of their own (Large.swift). Each processor has one row of magazine slots, a cache line
// for each cache. Each type has a row of counters for each processor (MemoryType.swift).
//
// FAST PATH: it finds the slot by processor and class, pops or pushes a word and adds one to one counter, with
// interrupts off and nothing else. A slot without magazines is empty and full at once. So a size of zero, a large size,
// an audited cache and a processor's first request all reach the slow path by that one test.
//
// STRAY WRITES: a caller that writes to an object which it freed, or beyond the end of one, never reaches the records
// of frames. It may reach a frame of kmem's own: one that was a slab when the caller freed its object, or one behind an
// object that the write runs over by more than 64 bytes. So kmem compares a slab's map in tables with the slab's counts
// before it allocates objects from it. It compares each word of a magazine that comes from the depot with the slab that
// the word names (ObjectFinder.swift). It reports a difference, and allocates no object of that slab and no word of
// that magazine.
//   The limits: a processor does not check the words in its own two magazines, which would cost the fast path. kmem
// does not see an overwritten link from one magazine of a depot to the next. Nor does it see a word that now names
// another object out of its slab, or a map in which as many bits were set as cleared.
//
// KEPT FREE: each cache keeps one or two free slabs and up to 32 KiB in magazines of its depot. A cache that needs more
// uses two shared allowances of at least 128 KiB: a 128th of all slabs as free slabs, a 32nd in magazines. So a burst of
// requests finds its own frames again, and kmem holds only a few hundredths more than is used. A request that would fail,
// and a drain, end both allowances. A trim releases the memory that was not needed since the last one (Trimming.swift).
//
// WAITING, LIMITS, ZONES: a request that may wait sleeps for an object or the frames of a slab (Waiting.swift). A cache
// can have a limit in objects (CacheLimit.swift), a type one in bytes (TypeLimit.swift). A zone keeps objects free for
// requests that must not fail (Zone.swift). Each stays off the fast path: near a limit, while a request waits, and in a
// zone, the cache has no magazines.
//
// INVARIANTS, each checked by `checkInvariants`
//
//   KM-1  Of each slab: objects = free in its map + out. It lies on the list that its counts say: free, partial or
//         full. A damaged slab lies on the full list, and its free objects are lost. Audited slabs have lists of their
//         own.
//   KM-2  Of each cache: the sums over its slabs are the figures under its lock.
//   KM-3  Each word in a magazine is an object of that cache which is out of its slab.
//   KM-4  When nothing runs, for each cache: allocations - frees, over all types and processors, = objects out of
//         slabs - words in magazines. A free into a magazine is counted before kmem knows that it is valid. If it turns
//         out not to be, an allocation under `other` balances it.
//   KM-5  The records of all frames of a slab name its cache and its first frame.
//   KM-6  A cache has no object in a magazine while it is audited.
//   KM-7  The sums over the instance are those of all caches: frames of slabs, frames of free slabs, and the bytes by
//         which depots may exceed their fixed share.
//   KM-8  Each chunk of kmem's own memory in use is a magazine or the tables of a slab.
//   KM-9  The map of a slab has as many free objects as the slab counts. A free object in a slab holds its word, and
//         the guard of an audited slab is intact, unless a caller wrote there. kmem reports such a write by the object
//         or the map that it hit, before it allocates the object.
//   KM-10 A slab lies where the source of its cache puts it: an aligned block, or a run that satisfies the constraints.
//
// LOCKS
//
// In their order: the registry of caches and types (`kmemCaches`), a depot (`kmemDepot`), a cache's slabs or kmem's own
// memory (`kmemSlabs`); then PhysicalMemory's. The waiters of a limited type have the rank of the registry. A processor
// holds no two of one rank. kmem calls constructors,
// destructors, other layers and the fault reporter with none held. The sleeping lock `kmemTrim` is held during a trim.
//
// COST
//
// Hot pair: 42 instructions for a constant size, interrupts off and on included; up to 60 for another. An exchange at
// the depot checks each word of the magazine, in about 40 instructions, under the cache's lock. A refill moves up to
// half a magazine from slabs under that lock, in about 20 instructions for each object. A new slab costs its objects,
// and 64 bytes of kmem's own memory if there are more than 64. Drains and queries take time in proportion to what they
// visit, and drop the lock between parts.
//
// EXHAUSTION
//
// An allocation tries a slab of fewer frames, and for an object above a page, pages of its own (ObjectPages.swift). Then it
// releases all memory that the caches keep free. Then it answers nil; nothing else has changed. A free never needs memory:
// it may ask for a magazine, and returns the object to its slab without one.
//
// SOURCES
//
// Bonwick, "The Slab Allocator" (USENIX 1994); Bonwick and Adams, "Magazines and Vmem" (USENIX 2001); NetBSD kmem(9)
// for the calls, malloc(9) for the types.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// Why kmem refused a request.
@frozen public enum KmemError: UInt8, Error {
  /// No frame, and nothing that caches keep free.
  case noMemory
  /// More than a slab can hold.
  case tooLarge
  /// Each of the instance's object caches exists already.
  case tooManyCaches
  /// A size of zero, an alignment that no slab has, or constraints that no memory of the machine satisfies.
  case badConstraint

  /// The reason in a few words, for the failure log.
  var description: StaticString {
    switch self {
    case .noMemory: "no memory"
    case .tooLarge: "never: more than a slab holds"
    case .tooManyCaches: "too many caches"
    case .badConstraint: "never"
    }
  }
}

/// An instance of the allocator: a handle.
@frozen public struct KmemAllocator {
  /// A page of state, then each processor's row of slots.
  @usableFromInline let base: UnsafeMutableRawPointer

  var machine: Machine { state.machine }

  /// Makes a handle on the instance that `create` made in `memory`.
  @inline(always) package init(at memory: UnsafeMutableRawPointer) { base = memory }

  // MARK: The fast path

  @inlinable static var rowsOffset: Int { 4096 }
  @inlinable static var rowStride: Int { 8192 }
  /// Two bytes for each eight bytes of a size: the offset of its class's counters. The last one is for all larger sizes.
  @inlinable static var classTableOffset: Int { 3056 }
  @inlinable static var largestInTable: UInt64 { 4096 }

  /// Computes the offset of the counters of the class that serves `size`: its cache index times 16.
  ///
  /// A branch on the size would be a coin toss for a caller of mixed sizes, so a table answers for all of them.
  @inlinable @inline(__always) func counterOffset(_ size: UInt64) -> Int {
    if cp_is_constant(size) && size <= 64 { return Int((size &* 2 &+ 14) & ~15) }
    let step = Int((min(size, Self.largestInTable &+ 1) &+ 7) &>> 3)
    return Int((base + Self.classTableOffset).assumingMemoryBound(to: UInt16.self)[step])
  }
  func cacheIndex(_ size: UInt64) -> Int { counterOffset(size) >> 4 }

  /// Adds a processor's row to the offset of counters. Four times the sum leads to the slot: one address for both.
  @inlinable @inline(__always) static func place(_ processor: Int, _ offset: Int) -> Int {
    processor &* MemoryType.stride &+ offset
  }
  @inlinable @inline(__always) func slot(at place: Int) -> UnsafeMutablePointer<MagazineSlot> {
    (base + (place &* 4 &+ Self.rowsOffset)).assumingMemoryBound(to: MagazineSlot.self)
  }

  /// Pops the object that this processor freed last; nil when its loaded magazine has none.
  @inlinable @inline(__always) func popObject(_ offset: Int, _ type: MemoryType) -> UnsafeMutableRawPointer? {
    let interrupts = cp_interrupts_disable()
    let place = Self.place(Int(cp_processor_index()), offset)
    guard let word = slot(at: place).pointee.pop() else {
      cp_interrupts_restore(interrupts)
      return nil
    }
    type.counters(at: place).pointee.allocations.add()
    cp_interrupts_restore(interrupts)
    return UnsafeMutableRawPointer(bitPattern: word).unsafelyUnwrapped
  }

  /// Pushes an object on the loaded magazine. Answers false when that is full, or has the object on top already.
  @inlinable @inline(__always)
  func pushObject(_ object: UnsafeMutableRawPointer, _ offset: Int, _ type: MemoryType) -> Bool {
    let interrupts = cp_interrupts_disable()
    let place = Self.place(Int(cp_processor_index()), offset)
    guard slot(at: place).pointee.pushUnlessOnTop(UInt(bitPattern: object)) else {
      cp_interrupts_restore(interrupts)
      return false
    }
    type.counters(at: place).pointee.frees.add()
    cp_interrupts_restore(interrupts)
    return true
  }

  /// Allocates `size` bytes of unknown contents, counted under `type`; nil when there is no memory.
  ///
  /// Aligned to 8 bytes; to a cache line from 64 bytes on; to a page for a multiple of pages and above 10880 bytes; a power
  /// of two below 64 to itself. About 25 instructions when this processor has an object of the class; up to a page only.
  ///
  /// A request that finds no memory is refused, unless `wait` lets it sleep: then it wakes the page daemon, and is served
  /// after those that came before it. It never waits at interrupt priority; what no machine could grant is refused at
  /// once. Waiting needs a thread, and no spin lock held.
  @inline(always)
  public func alloc(
    _ size: ByteCount, type: MemoryType, priority: AllocationPriority = .normal,
    wait: WaitPolicy = .forbidden
  ) -> UnsafeMutableRawPointer? {
    let offset = counterOffset(size.rawValue)
    return popObject(offset, type) ?? allocSlow(offset, size.rawValue, type, priority, wait: wait)
  }

  /// Allocates as `alloc` does, all bytes zero.
  @inline(always)
  public func zalloc(
    _ size: ByteCount, type: MemoryType, priority: AllocationPriority = .normal,
    wait: WaitPolicy = .forbidden
  ) -> UnsafeMutableRawPointer? {
    guard size.rawValue <= 4096 else { return zallocLarge(size.rawValue, type, priority, wait) }
    guard let object = alloc(size, type: type, priority: priority, wait: wait) else { return nil }
    object.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
    return object
  }

  /// Frees an object that `alloc` or `zalloc` returned, by the same size and type.
  ///
  /// Any other pointer, also one that was freed before, is a fault report. kmem sees it at once in an audited cache, and
  /// for the object that this processor freed last; else when the object leaves the magazines for its slab.
  @inline(always)
  public func free(_ object: UnsafeMutableRawPointer, size: ByteCount, type: MemoryType) {
    let offset = counterOffset(size.rawValue)
    if !pushObject(object, offset, type) { freeSlow(object, offset, size.rawValue, type) }
  }

  /// Looks up the cache of a size up to 4096, for a caller that requests the same size many times; nil above.
  /// `free(_:size:type:)` with this size frees its objects too, and the cache frees objects of this size.
  public func lookUp(_ size: ByteCount) -> ObjectCache? {
    let cacheIndex = cacheIndex(size.rawValue)
    guard cacheIndex != CacheIndex.large else { return nil }
    return ObjectCache(
      kmem: self, cacheIndex: max(cacheIndex, CacheIndex.firstClass), size: UInt32(size.rawValue))
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension KmemAllocator: @unchecked Sendable {}
