// The kernel's memory allocator: objects up to a page from caches, whole pages above.
//
// Bonwick, "The Slab Allocator" (USENIX 1994); Bonwick and Adams, "Magazines and Vmem" (USENIX 2001);
// NetBSD kmem(9) for the calls, malloc(9) for the types.
//
// STRUCTURES. An object of a cache is in exactly one of these places: with a caller, in a magazine of a processor or of
// the cache's depot, or free in its slab. A slab is 1, 2, 4 or 8 contiguous frames of the direct map, and the records
// of these frames hold its state (Slab.swift). So a pointer leads to its slab, and the slab to its cache, without a
// search. Magazines and the larger tables of slabs lie in frames where no caller has memory (OwnMemory.swift); kmem
// checks them on its slow paths. Requests up to 4096 bytes go to one of 29 size classes (SizeClasses.swift). A larger
// request takes whole pages with an address of their own (Large.swift). Each processor has one row of magazine slots, a
// cache line for each cache. Each type has a row of counters for each processor (MemoryType.swift).
//
// THE HOT HALVES find the slot by processor and class, take or put a word and add one to one counter, with interrupts
// off and nothing else. A slot without magazines is empty and full at once. So a size of zero, a large size, an audited
// cache and a processor's first request all reach the slow half by that one test.
//
//   Invariants
//   1. Of each slab: objects = free in its map + out. It lies on the list that its counts say: free, partial or full. A
//      damaged slab lies on the full list, and its free objects are lost. Audited slabs have lists of their own.
//   2. Of each cache: the sums over its slabs are the figures under its lock.
//   3. Each word in a magazine is an object of that cache which is out of its slab.
//   4. When nothing runs, for each cache: allocations - frees, over all types and processors, = objects out of slabs -
//      words in magazines. A free into a magazine is counted before kmem knows that it is one. When it turns out to be
//      none, an allocation under `other` evens it out.
//   5. The records of all frames of a slab name its cache and its first frame.
//   6. A cache has no magazine in use while it is audited.
//   7. The sums kept beside are those of all caches: frames of slabs, frames of free slabs, and the bytes by which
//      depots may exceed their fixed share.
//   8. Each chunk of kmem's own memory in use is a magazine or the tables of a slab.
//   9. The map of a slab has as many free objects as the slab counts. A free object in a slab holds its word, and the
//      guard of an audited slab is intact, unless a caller wrote there. kmem reports such a write by the object or the
//      map that it hit, before it gives the object out.
//
// STRAY WRITES. A caller that writes to an object which it freed, or beyond the end of one, never reaches the records
// of frames. It may reach a frame of kmem's own: one that was a slab when the caller freed its object, or one behind an
// object that the write runs over by more than 64 bytes. So kmem compares a slab's map in tables with the slab's counts
// before it takes objects out. It compares each word of a magazine that comes from the depot with the slab that the
// word names (ObjectFinder.swift). It reports a difference, and hands out no object of that slab and no word of that
// magazine.
//   The limits: a processor does not check the words in its own two magazines, which would cost the fast path. kmem
// does not see an overwritten link from one magazine of a depot to the next. Nor does it see a word that now names
// another object out of its slab, or a map in which as many bits were set as cleared.
//
// KEPT FREE. Each cache keeps one or two free slabs and up to 32 KiB in full magazines. A cache that needs more takes
// it from two shared allowances, each a 64th of all slabs (at least 128 KiB). So a burst of requests finds its own
// frames again, and kmem holds only a few hundredths more than is used. A request that would fail, and a drain, take
// all of it back. A trim takes what was not needed since the last one (Trimming.swift).
//
// LOCKS, in their order: the registry of caches and types (`kmemCaches`), a depot (`kmemDepot`), a cache's slabs or
// kmem's own memory (`kmemSlabs`); then PhysicalMemory's. A processor holds no two of one rank. kmem calls
// constructors, destructors, other layers and the fault reporter with none held.
//
// COST. Hot pair: 42 instructions for a constant size, interrupts off and on included; up to 60 for another. An
// exchange at the depot checks each word of the magazine, in about 40 instructions, under the cache's lock. A refill
// takes up to half a magazine from slabs under that lock, in about 20 instructions for each object. A new slab costs
// its objects, and 64 bytes of kmem's own memory if there are more than 64. Drains and queries: as long as what they
// visit, in parts.
//
// EXHAUSTION. An allocation tries a slab of fewer frames, then gives back what all caches keep free, then answers nil;
// nothing has changed but what was kept. A free never needs memory: it may ask for a magazine, and goes to the slab
// without one. No request waits yet, at any priority. A request of priority `.interrupt` does not visit all caches either.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// Why a request was refused.
@frozen public enum KmemError: UInt8, Error {
  case noMemory
  /// Above what a slab can hold.
  case tooLarge
  case tooManyCaches
  /// A size of zero, or an alignment above a page.
  case badConstraint
}

/// One instance: a handle.
@frozen public struct KmemAllocator {
  /// A page of state, then each processor's row of slots.
  @usableFromInline let base: UnsafeMutableRawPointer

  /// A handle on what `create` made in `memory`.
  @inline(always) public init(at memory: UnsafeMutableRawPointer) { base = memory }

  // MARK: The hot halves

  @inlinable static var rowsOffset: Int { 4096 }
  @inlinable static var rowStride: Int { 8192 }
  @inlinable static var classTableOffset: Int { 3840 }

  /// The place of the class that serves `size`: its cacheIndex times 16, by which the processor's address
  /// arithmetic reaches the counters directly and the slots by its factor of four.
  @inlinable @inline(__always) func place(_ size: UInt64) -> Int {
    if size <= 64 { return Int((size &* 2 &+ 14) & ~15) }
    guard size <= 4096 else { return CacheIndex.large &* 16 }
    let line = Int((size &+ 63) >> 6)
    return Int((base + Self.classTableOffset).assumingMemoryBound(to: UInt16.self)[line])
  }
  func cacheIndex(_ size: UInt64) -> Int { place(size) >> 4 }

  @inlinable @inline(__always)
  func slot(_ processor: Int, _ place: Int) -> UnsafeMutablePointer<MagazineSlot> {
    let row = base + (processor &* Self.rowStride &+ Self.rowsOffset)
    return (row + place &* 4).assumingMemoryBound(to: MagazineSlot.self)
  }

  /// The object that this processor was given last; nil when its loaded magazine has none.
  @inlinable @inline(__always) func take(_ place: Int, _ type: MemoryType) -> UnsafeMutableRawPointer? {
    let interrupts = cp_interrupts_disable()
    let processor = Int(cp_processor_index())
    guard let word = slot(processor, place).pointee.take() else {
      cp_interrupts_restore(interrupts)
      return nil
    }
    type.counters(processor, place: place).pointee.allocations.add()
    cp_interrupts_restore(interrupts)
    return UnsafeMutableRawPointer(bitPattern: word)
  }

  /// False when there is no room in the loaded magazine, or the object lies on top of it already.
  @inlinable @inline(__always)
  func put(_ object: UnsafeMutableRawPointer, _ place: Int, _ type: MemoryType) -> Bool {
    let interrupts = cp_interrupts_disable()
    let processor = Int(cp_processor_index())
    guard slot(processor, place).pointee.putUnlessOnTop(UInt(bitPattern: object)) else {
      cp_interrupts_restore(interrupts)
      return false
    }
    type.counters(processor, place: place).pointee.frees.add()
    cp_interrupts_restore(interrupts)
    return true
  }

  /// Memory for `size` bytes, counted under `type`; nil when there is none. Contents are unknown.
  ///
  /// Aligned to 8 bytes; to a cache line from 64 bytes on; to a page from 4096 on; a power of two below
  /// 64 to itself. About 25 instructions when this processor has an object of the class.
  @inline(always)
  public func alloc(
    _ size: ByteCount, type: MemoryType, priority: AllocationPriority = .normal
  ) -> UnsafeMutableRawPointer? {
    let place = place(size.rawValue)
    return take(place, type) ?? allocSlow(place, size.rawValue, type, priority)
  }

  /// As `alloc`, all bytes zero.
  @inline(always)
  public func zalloc(
    _ size: ByteCount, type: MemoryType, priority: AllocationPriority = .normal
  ) -> UnsafeMutableRawPointer? {
    guard size.rawValue <= 4096 else { return zallocLarge(size.rawValue, type, priority) }
    guard let object = alloc(size, type: type, priority: priority) else { return nil }
    object.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
    return object
  }

  /// Frees what `alloc` or `zalloc` gave, by the same size and type. A pointer that is not that, or not
  /// any more, is a fault report where it is seen: at once in an audited cache and for what was freed
  /// just before, else when the object leaves the magazines for its slab.
  @inline(always)
  public func free(_ object: UnsafeMutableRawPointer, size: ByteCount, type: MemoryType) {
    let place = place(size.rawValue)
    if !put(object, place, type) { freeSlow(object, place, size.rawValue, type) }
  }

  /// The cache behind a size up to 4096, for a caller who asks for the same size again and again; nil
  /// above. What it gives may be freed by `free(_:size:type:)` with this size, and the other way round.
  public func lookUp(_ size: ByteCount) -> ObjectCache? {
    let cacheIndex = cacheIndex(size.rawValue)
    guard cacheIndex != CacheIndex.large else { return nil }
    return ObjectCache(
      kmem: self, cacheIndex: max(cacheIndex, CacheIndex.firstClass), size: UInt32(size.rawValue))
  }
}

// MARK: - Making an instance

/// What all of an instance shares. Behind the handle `KmemAllocator`.
struct KmemState: ~Copyable {
  let machine: Machine
  let physical: FrameAllocator
  let large: LargePages?
  let otherType: UnsafeMutableRawPointer
  let ownType: UnsafeMutableRawPointer
  let registry: Locked<Registry>
  let own = Locked(.kmemSlabs, OwnMemory())
  /// Pages taken for descriptors and rows of counters, those given at creation left out.
  let metadataPages = Atomic<UInt64>(0)
  /// Frames of all slabs, and of those without an object in use.
  let slabFrames = Atomic<Int>(0)
  let spareFrames = Atomic<Int>(0)
  /// Bytes that depots may keep beyond what each has anyway.
  let depotBytes = Atomic<Int>(0)
  /// Times that all caches gave back what they kept free.
  let reclaims = Atomic<UInt64>(0)
  /// What caches that are gone had counted, by event: sums that are shown only rise.
  let past: InlineArray<5, Atomic<UInt64>> = .init { _ in Atomic(0) }
  /// Whether caches made from now on are audited.
  let auditsAll = Atomic<Bool>(false)
  let trimmer = Trimmer()
  /// Who destroys a cache waits here for those who look at it.
  let visitors = WaitQueue("a visitor of a cache", .thread)
}

/// What the registry's lock guards.
struct Registry {
  /// Columns in use, a bit each.
  var cacheIndices: InlineArray<2, UInt64> = [0, 0]
  var types = 2
  /// Memory still to be carved.
  var cursor: UInt = 0
  var end: UInt = 0
}

extension KmemAllocator {
  /// Bytes that `create` needs for so many processors.
  public static func size(processors: Int) -> ByteCount {
    ByteCount(rowsOffset + processors * (rowStride + 2 * MemoryType.stride) + 4 * Int(Page.size))
  }

  /// Makes an instance in `memory`, of `size(processors:)` bytes and aligned to a page, which stays in use.
  /// Never fails: slabs are taken when they are needed. `large` gives requests above 4096 bytes their
  /// pages; without it they are refused.
  public static func create(
    in memory: UnsafeMutableRawPointer, physical: FrameAllocator, large: LargePages?, machine: Machine
  ) -> KmemAllocator {
    precondition(MemoryLayout<KmemState>.size <= descriptorTableOffset)
    precondition(MemoryLayout<Cache>.size <= Cache.depotOffset)
    precondition(Cache.depotOffset + Int(MagazineSet.size.rawValue) <= Cache.stride)
    let processors = machine.processorCount
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size(processors: processors).rawValue))
    let kmem = KmemAllocator(at: memory)
    let rows = memory + rowsOffset + processors * rowStride
    let typeBytes = MemoryType.stride * processors
    let other = makeType(Name("other"), index: 0, row: rows, bytes: typeBytes)
    let own = makeType(Name("kmem"), index: 1, row: rows + typeBytes, bytes: typeBytes)
    other.header.pointee.next.store(UInt(bitPattern: own.row), ordering: .relaxed)
    var registry = Registry()
    for cacheIndex in 0..<CacheIndex.firstObjectCache { registry.cacheIndices[0] |= 1 << UInt64(cacheIndex) }
    memory.bindMemory(to: KmemState.self, capacity: 1).initialize(
      to: KmemState(
        machine: machine, physical: physical, large: large, otherType: other.row, ownType: own.row,
        registry: Locked(.kmemCaches, registry)))
    for lines in 1...64 {
      memory.storeBytes(
        of: UInt16(SizeClasses.cacheIndex(holdingLines: lines) * 16),
        toByteOffset: classTableOffset + lines * 2,
        as: UInt16.self)
    }
    let descriptors = rows + 2 * typeBytes
    for page in 0..<4 {
      kmem.descriptorPage(page).pointee.store(UInt(bitPattern: descriptors + page * 4096), ordering: .relaxed)
    }
    for cacheIndex in CacheIndex.firstClass...CacheIndex.lastClass {
      let size = SizeClasses.size(cacheIndex)
      kmem.makeCache(
        cacheIndex, SizeClasses.name(cacheIndex), size: size, alignment: size < 64 ? 8 : 64, constructor: nil,
        destructor: nil, context: nil)
    }
    return kmem
  }

  var state: UnsafeMutablePointer<KmemState> { base.assumingMemoryBound(to: KmemState.self) }

  // MARK: Descriptors of caches

  static var descriptorTableOffset: Int { 3072 }

  /// Where the address of a page of eight descriptors is kept.
  func descriptorPage(_ page: Int) -> UnsafeMutablePointer<Atomic<UInt>> {
    (base + Self.descriptorTableOffset + page * 8).assumingMemoryBound(to: Atomic<UInt>.self)
  }

  func descriptor(_ cacheIndex: Int) -> UnsafeMutablePointer<Cache>? {
    let page = descriptorPage(cacheIndex >> 3).pointee.load(ordering: .acquiring)
    guard let page = UnsafeMutableRawPointer(bitPattern: page) else { return nil }
    return (page + (cacheIndex & 7) * Cache.stride).assumingMemoryBound(to: Cache.self)
  }

  /// The cache of a cacheIndex, if there is one.
  func cache(at cacheIndex: Int) -> CachePointer? {
    guard cacheIndex >= 0 && cacheIndex < CacheIndex.limit, let cache = descriptor(cacheIndex) else {
      return nil
    }
    guard cache.pointee.isLive.load(ordering: .acquiring) else { return nil }
    return CachePointer(cache: cache, kmem: self)
  }

  /// Visits every cache; none is destroyed while `body` has it.
  func forEach<E>(_ body: (CachePointer) throws(E) -> Void) throws(E) {
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      guard let cache = descriptor(cacheIndex), cache.pointee.visits.enter() else { continue }
      defer { if cache.pointee.visits.leave() { state.pointee.visitors.wake(on: state.pointee.machine) } }
      try body(CachePointer(cache: cache, kmem: self))
    }
  }

  /// Keeps visitors from a cache, and waits for those that are there. Sleeps.
  func close(_ cache: CachePointer) {
    cache.cache.pointee.visits.close()
    while true {
      let ticket = state.pointee.visitors.ticket()
      if !cache.cache.pointee.visits.areUnderWay { return }
      _ = state.pointee.visitors.sleep(ticket, on: state.pointee.machine)
    }
  }

  /// Fills in the descriptor of a cacheIndex that the caller has reserved and whose page is there.
  func makeCache(
    _ cacheIndex: Int, _ name: Name, size: Int, alignment: Int, constructor: ObjectHook?,
    destructor: ObjectHook?, context: UnsafeMutableRawPointer?
  ) {
    // A constructed object keeps its word behind it, any other in its first bytes.
    let isConstructed = constructor != nil || destructor != nil
    let needed = isConstructed ? (size + 7) & ~7 + 8 : max(size, 8)
    let chunk = (needed + alignment - 1) & ~(alignment - 1)
    let rounds = Self.rounds(chunk: chunk)
    let fullLimit = max(2, 32 << 10 / (rounds * chunk))
    let order = CachePointer.preferredOrder(chunk: chunk, isAudited: false)
    let memory = UnsafeMutableRawPointer(descriptor(cacheIndex).unsafelyUnwrapped)
    let cache = memory.bindMemory(to: Cache.self, capacity: 1)
    cache.initialize(
      to: Cache(
        name: name, cacheIndex: cacheIndex, size: size, chunk: chunk,
        reciprocal: (1 << 32 + UInt64(chunk) - 1) / UInt64(chunk),
        wordOffset: isConstructed ? (size + 7) & ~7 : 0, constructor: constructor, destructor: destructor,
        context: context,
        fullLimit: fullLimit, lists: Locked(.kmemSlabs, SlabLists()),
        plainOwner: Slab.owner(
          order, cache: cacheIndex,
          objects: CachePointer.objects(chunk: chunk, order: order, isAudited: false),
          isAudited: false)))
    let magazines = MagazineSet.create(
      in: memory + Cache.depotOffset, slots: slotsStart(cacheIndex), stride: ByteCount(Self.rowStride),
      rounds: rounds, fullLimit: fullLimit, machine: state.pointee.machine)
    let pointer = CachePointer(cache: cache, kmem: self)
    if state.pointee.auditsAll.load(ordering: .relaxed) && pointer.canBeAudited {
      magazines.switchOff { _ in }
      pointer.beginAuditPeriod()
    }
    cache.pointee.isLive.store(true, ordering: .releasing)
    cache.pointee.visits.open()
  }

  func slotsStart(_ cacheIndex: Int) -> UnsafeMutableRawPointer { base + Self.rowsOffset + cacheIndex * 64 }

  /// Words of a magazine for objects of so many bytes: the more the smaller they are, so that what a
  /// processor keeps stays below 30 KiB a cache. A magazine and its link are a power of two.
  static func rounds(chunk: Int) -> Int {
    chunk <= 64 ? 63 : chunk <= 256 ? 31 : chunk <= 1024 ? 15 : chunk <= 4096 ? 7 : 3
  }

  // MARK: Memory for kmem's own tables

  /// Memory that is never given back, aligned to 64; contents unknown. Nil when there is none.
  func carve(_ size: ByteCount, priority: AllocationPriority) -> UnsafeMutableRawPointer? {
    let bytes = UInt((size.rawValue + 63) & ~63)
    func cut() -> UnsafeMutableRawPointer? {
      state.pointee.registry.withLock { registry -> UnsafeMutableRawPointer? in
        guard registry.end - registry.cursor >= bytes else { return nil }
        defer { registry.cursor += bytes }
        return UnsafeMutableRawPointer(bitPattern: registry.cursor)
      }
    }
    if let memory = cut() { return memory }
    if state.pointee.machine.failsHere(.kmem) { return nil }
    let order = Order.holding(size.pagesRoundedUp)
    guard let frame = try? state.pointee.physical.allocate(order, role: .kmem, priority: priority) else {
      return nil
    }
    state.pointee.metadataPages.add(order.frames.rawValue, ordering: .relaxed)
    let memory = UInt(bitPattern: state.pointee.machine.directMap.pointer(to: frame))
    let end = memory + UInt(order.frames.bytes.rawValue)
    state.pointee.registry.withLock { registry in
      // What is left of the smaller of the two is given up.
      if end - memory - bytes > registry.end - registry.cursor {
        registry.cursor = memory + bytes
        registry.end = end
      }
    }
    return UnsafeMutableRawPointer(bitPattern: memory)
  }
}
