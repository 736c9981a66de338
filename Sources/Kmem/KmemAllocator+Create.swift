// The making of an instance: its state, its descriptors of caches, and the memory for its own tables.

import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// The shared state of an instance, behind the handle `KmemAllocator`.
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
  /// Bytes that depots may keep beyond the fixed share of each.
  let depotBytes = Atomic<Int>(0)
  /// Times that all caches released the memory that they kept free.
  let reclaims = Atomic<UInt64>(0)
  /// Refusals among those that types count which another layer counts and records as its own.
  let contiguousFailures = Atomic<UInt64>(0)
  /// Events that destroyed caches had counted, by kind: the sums of the statistics only rise.
  let past: InlineArray<5, Atomic<UInt64>> = .init { _ in Atomic(0) }
  /// Whether caches made from now on are audited.
  let auditsAll = Atomic<Bool>(false)
  /// The source of contiguous slabs; nil until the layer that has it exists.
  var slabRuns: SlabRuns?
  let trimmer = Trimmer()
  /// Requests wait here for an object of a cache that is at its limit.
  let objectFreed = WaitQueue("an object below a limit")
  /// A thread that destroys a cache waits here for the walks that have pinned it.
  let unpinned = WaitQueue("a walk over a cache")
}

/// The data under the registry's lock.
struct Registry {
  /// Cache indices in use, a bit each.
  var cacheIndices: InlineArray<2, UInt64> = [0, 0]
  var types = 2
  /// Memory still to be carved.
  var cursor: UInt = 0
  var end: UInt = 0
}

extension KmemAllocator {
  /// Computes the bytes that `create` needs for so many processors.
  package static func size(processors: Int) -> ByteCount {
    ByteCount(
      rowsOffset + processors * (rowStride + 2 * MemoryType.stride) + classDescriptorPages * Int(Page.size))
  }

  /// Makes an instance in `memory`, of `size(processors:)` bytes and aligned to a page, which stays in use.
  /// Never fails: slabs are allocated when they are needed. `large` allocates the pages of requests above 10880 bytes;
  /// without it they are refused.
  package static func create(
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
    let other = makeType(ShortName("other"), index: 0, row: rows, bytes: typeBytes)
    let own = makeType(ShortName("kmem"), index: 1, row: rows + typeBytes, bytes: typeBytes)
    other.header.pointee.next.store(UInt(bitPattern: own.row), ordering: .relaxed)
    var registry = Registry()
    for cacheIndex in 0..<CacheIndex.firstObjectCache { registry.cacheIndices[0] |= 1 << UInt64(cacheIndex) }
    memory.bindMemory(to: KmemState.self, capacity: 1).initialize(
      to: KmemState(
        machine: machine, physical: physical, large: large, otherType: other.row, ownType: own.row,
        registry: Locked(.kmemCaches, registry)))
    precondition(rowStride == 4 * MemoryType.stride)
    let classes = (memory + classTableOffset).assumingMemoryBound(to: UInt16.self)
    let steps = Int(largestInTable) / 8
    // A size of zero has the index of failures, whose slots are empty.
    for step in 1...steps { classes[step] = UInt16(SizeClasses.cacheIndex(holding: step * 8) * 16) }
    classes[steps + 1] = UInt16(CacheIndex.large * 16)
    let descriptors = rows + 2 * typeBytes
    for page in 0..<classDescriptorPages {
      kmem.descriptorPage(page).pointee.store(
        UInt(bitPattern: descriptors + page * Int(Page.size)), ordering: .relaxed)
    }
    for cacheIndex in CacheIndex.firstClass...CacheIndex.lastClass {
      let size = SizeClasses.size(cacheIndex)
      kmem.makeCache(
        cacheIndex, SizeClasses.name(cacheIndex), size: size, alignment: size < 64 ? 8 : 64, construct: nil,
        destruct: nil, context: nil)
    }
    kmem.registerAsOwner()
    return kmem
  }

  /// The state, in place.
  @inline(__always) var state: KmemState {
    unsafeAddress { UnsafePointer(base.assumingMemoryBound(to: KmemState.self)) }
  }

  // MARK: Descriptors of caches

  static var descriptorTableOffset: Int { 2816 }
  /// Pages of the descriptors of all classes.
  private static var classDescriptorPages: Int { CacheIndex.lastClass / Cache.perPage + 1 }

  /// Finds the word that keeps the address of a page of descriptors.
  func descriptorPage(_ page: Int) -> UnsafeMutablePointer<Atomic<UInt>> {
    (base + Self.descriptorTableOffset + page * 8).assumingMemoryBound(to: Atomic<UInt>.self)
  }

  func descriptor(_ cacheIndex: Int) -> UnsafeMutablePointer<Cache>? {
    let page = descriptorPage(cacheIndex / Cache.perPage).pointee.load(ordering: .acquiring)
    guard let page = UnsafeMutableRawPointer(bitPattern: page) else { return nil }
    return (page + cacheIndex % Cache.perPage * Cache.stride).assumingMemoryBound(to: Cache.self)
  }

  /// Finds the cache of an index, if there is one.
  func cache(at cacheIndex: Int) -> CachePointer? {
    guard cacheIndex >= 0 && cacheIndex < CacheIndex.limit, let cache = descriptor(cacheIndex) else {
      return nil
    }
    guard cache.pointee.isLive.load(ordering: .acquiring) else { return nil }
    return CachePointer(cache: cache, kmem: self)
  }

  /// Visits every cache; none is destroyed while `body` runs on it.
  func forEach<E>(_ body: (CachePointer) throws(E) -> Void) throws(E) {
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      guard let cache = descriptor(cacheIndex), cache.pointee.pins.pin() else { continue }
      defer { if cache.pointee.pins.unpin() { state.unpinned.wake(on: state.machine) } }
      try body(CachePointer(cache: cache, kmem: self))
    }
  }

  /// Keeps walks from a cache, and waits until none has it pinned. Sleeps.
  func close(_ cache: CachePointer) {
    cache.descriptor.pins.close()
    while true {
      let ticket = state.unpinned.ticket()
      if !cache.descriptor.pins.areHeld { return }
      _ = state.unpinned.sleep(ticket, on: state.machine)
    }
  }

  /// Fills in the descriptor of an index that the caller has reserved and whose page exists.
  func makeCache(
    _ cacheIndex: Int, _ name: ShortName, size: Int, alignment: Int, construct: ObjectHook?,
    destruct: ObjectHook?, context: UnsafeMutableRawPointer?, source: SlabSource = .anyMemory
  ) {
    let isConstructed = construct != nil || destruct != nil
    let chunk = source.spacing(Self.spacing(size, alignment, isConstructed: isConstructed))
    let rounds = Self.rounds(chunk: chunk)
    let fullLimit = max(2, 32 << 10 / (rounds * chunk))
    let order = CachePointer.preferredOrder(chunk: chunk, isAudited: false)
    let memory = UnsafeMutableRawPointer(descriptor(cacheIndex).unsafelyUnwrapped)
    let cache = memory.bindMemory(to: Cache.self, capacity: 1)
    cache.initialize(
      to: Cache(
        kmem: self, name: name, cacheIndex: cacheIndex, size: size, chunk: chunk,
        reciprocal: (1 << 32 + UInt64(chunk) - 1) / UInt64(chunk),
        wordOffset: isConstructed ? (size + 7) & ~7 : 0, construct: construct, destruct: destruct,
        context: context,
        fullLimit: fullLimit, lists: Locked(.kmemSlabs, SlabLists()),
        plainOwner: source.isContiguous
          ? Slab.noOwner
          : Slab.owner(
            frames: Int(order.frames.rawValue), cache: cacheIndex,
            objects: CachePointer.objects(chunk: chunk, order: order, isAudited: false),
            isAudited: false),
        source: source))
    _ = MagazineSet.create(
      in: memory + Cache.depotOffset, slots: slotsStart(cacheIndex), stride: ByteCount(Self.rowStride),
      rounds: rounds, capacity: magazineCapacity(chunk: chunk), fullLimit: fullLimit,
      machine: state.machine)
    let pointer = CachePointer(cache: cache, kmem: self)
    if state.auditsAll.load(ordering: .relaxed) && pointer.canBeAudited {
      pointer.blockMagazines()
      pointer.beginAuditPeriod()
    }
    cache.pointee.isLive.store(true, ordering: .releasing)
    cache.pointee.pins.open()
  }

  /// Computes the bytes from one object to the next. A constructed object has its word behind it.
  static func spacing(_ size: Int, _ alignment: Int, isConstructed: Bool) -> Int {
    let needed = isConstructed ? (size + 7) & ~7 + 8 : max(size, 8)
    return (needed + alignment - 1) & ~(alignment - 1)
  }

  func slotsStart(_ cacheIndex: Int) -> UnsafeMutableRawPointer { base + Self.rowsOffset + cacheIndex * 64 }

  /// Chooses how many words a magazine for objects of so many bytes can hold: the more the smaller they are. A magazine
  /// and its link are a power of two.
  static func rounds(chunk: Int) -> Int { chunk <= 256 ? 63 : chunk <= 4096 ? 31 : 7 }

  /// Chooses to how many words processors fill magazines: at first 8 KiB of objects. A cache that is used much goes up to
  /// a share of memory that leaves enough of it for the others, and for other processors.
  private func magazineCapacity(chunk: Int) -> ClosedRange<Int> {
    let rounds = Self.rounds(chunk: chunk)
    let first = max(1, min(rounds, 8192 / chunk))
    let share =
      Int(state.physical.total.bytes.rawValue) / (512 * 2 * state.machine.processorCount)
    return first...max(first, min(rounds, share / chunk))
  }

  // MARK: Memory for kmem's own tables

  /// The owner of kmem's own frames.
  var owner: FrameOwner { FrameOwner("Kmem, its own tables") }

  /// Allocates memory that is never freed, aligned to 64, of unknown contents. Nil when there is none.
  func carve(_ size: ByteCount, priority: AllocationPriority) -> UnsafeMutableRawPointer? {
    let bytes = UInt(Alignment.cacheLine.roundUp(Int(size.rawValue)))
    func cut() -> UnsafeMutableRawPointer? {
      state.registry.withLock { registry -> UnsafeMutableRawPointer? in
        guard registry.end - registry.cursor >= bytes else { return nil }
        defer { registry.cursor += bytes }
        return UnsafeMutableRawPointer(bitPattern: registry.cursor)
      }
    }
    if let memory = cut() { return memory }
    if state.machine.failsHere(.kmem) { return nil }
    let order = BlockOrder.holding(size.pagesRoundedUp)
    guard
      let frame = try? state.physical.allocateUnlogged(
        order, role: .kmem, priority: priority, for: owner)
    else {
      return nil
    }
    state.metadataPages.add(order.frames.rawValue, ordering: .relaxed)
    let memory = UInt(bitPattern: state.machine.directMap.pointer(to: frame))
    let end = memory + UInt(order.frames.bytes.rawValue)
    state.registry.withLock { registry in
      // The smaller of the two remainders stays unused.
      if end - memory - bytes > registry.end - registry.cursor {
        registry.cursor = memory + bytes
        registry.end = end
      }
    }
    return UnsafeMutableRawPointer(bitPattern: memory)
  }
}
