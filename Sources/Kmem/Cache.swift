// One cache: its descriptor, the handle on it, and the making and releasing of its slabs.

import MemoryPrimitives
import Magazines
import PhysicalMemory
import Synchronization

/// A constructor or destructor. It gets the context of `createCache` and the object.
public typealias ObjectHook = @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Void

/// The descriptor of a cache, in 768 bytes with its depot behind it.
struct Cache: ~Copyable {
  /// The instance that it belongs to.
  let kmem: KmemAllocator
  let name: ShortName
  let cacheIndex: Int
  /// Bytes of an object as its callers know it.
  let size: Int
  /// Bytes from one object to the next.
  let chunk: Int
  /// 2^32 divided by `chunk`, rounded up.
  let reciprocal: UInt64
  /// Where a free object has its word.
  let wordOffset: Int
  let construct: ObjectHook?
  let destruct: ObjectHook?
  let context: UnsafeMutableRawPointer?
  /// Full magazines that its depot keeps in any case.
  let fullLimit: Int
  /// Full magazines that its depot may keep beyond `fullLimit` at the moment.
  let depotLimit = Atomic<Int>(0)
  let lists: Locked<SlabLists>
  /// The period of auditing, 0 when audit is off.
  let audit = Atomic<UInt32>(0)
  /// Periods so far.
  let periods = Atomic<UInt32>(0)
  let failed = Atomic<UInt64>(0)
  /// Bytes that requests in the slow path left unused in their objects, and how many requests these were.
  let roundedBytes = Atomic<UInt64>(0)
  let roundedRequests = Atomic<UInt64>(0)
  /// Requests that slept until memory was free.
  let waits = Atomic<UInt64>(0)
  /// Objects that callers may have at once; 0 for no limit.
  let limit = Atomic<Int>(0)
  /// The reasons for which the cache has no magazines: an audit, each request that waits, and that it is near its limit.
  let magazineBlocks = Atomic<UInt32>(0)
  /// Whether all magazines have been emptied for that.
  let magazinesAreOff = Atomic<Bool>(false)
  /// Whether it keeps objects free for a demand.
  let isZone = Atomic<Bool>(false)
  /// False in a descriptor that no cache has; all zeroes is such a descriptor.
  let isLive = Atomic<Bool>(false)
  /// `owner` in the record of a slab that is not audited and has as many frames as the cache prefers; of contiguous slabs,
  /// which are rare, `Slab.noOwner`.
  let plainOwner: UInt32
  /// Where its slabs come from.
  let source: SlabSource
  let pins = CachePins()

  /// Bytes from one descriptor to the next.
  static var stride: Int { 768 }
  /// Descriptors in a page.
  static var perPage: Int { Int(Page.size) / stride }
  static var depotOffset: Int { 512 }
}

/// The walks over all caches that have this one pinned: a cache is destroyed once there is none.
struct CachePins: ~Copyable {
  /// The number of pins, and a bit that is set while walks may pin the cache.
  private let word = Atomic<UInt64>(0)
  private static var open: UInt64 { 1 << 63 }

  init() {}

  var areHeld: Bool { word.load(ordering: .acquiring) & ~Self.open != 0 }

  borrowing func open() { word.bitwiseOr(Self.open, ordering: .releasing) }
  /// Refuses every later pin; those that exist may last a while.
  borrowing func close() { word.bitwiseAnd(~Self.open, ordering: .sequentiallyConsistent) }

  /// Pins the cache. Answers false when it is closed.
  borrowing func pin() -> Bool {
    var seen = word.load(ordering: .relaxed)
    while seen & Self.open != 0 {
      let (exchanged, original) = word.weakCompareExchange(
        expected: seen, desired: seen + 1, ordering: .acquiring)
      if exchanged { return true }
      seen = original
    }
    return false
  }
  /// Ends a pin. Answers true when a thread may wait for this.
  borrowing func unpin() -> Bool {
    word.subtract(1, ordering: .sequentiallyConsistent).newValue == 0
  }
}

/// The slabs of a cache by how full they are.
struct SlabSet {
  /// The lists, by how full their slabs are.
  enum Kind { case free, partial, full }

  var partial = SlabList()
  var full = SlabList()
  var free = SlabList()

  var count: Int { partial.count + full.count + free.count }
  /// The slab of the next allocation; none when all objects are out.
  var next: FrameNumber { partial.first != .none ? partial.first : free.first }

  mutating func move(
    _ slab: Slab, from: Kind, to: Kind, _ physical: FrameAllocator
  ) {
    switch from {
    case .free: free.remove(slab, physical)
    case .partial: partial.remove(slab, physical)
    case .full: full.remove(slab, physical)
    }
    switch to {
    case .free: free.prepend(slab, physical)
    case .partial: partial.prepend(slab, physical)
    case .full: full.prepend(slab, physical)
    }
  }
}

/// The data under the lock of a cache.
struct SlabLists {
  var plain = SlabSet()
  var audited = SlabSet()
  var frames = 0
  /// The fewest plain slabs without an object in use since the last trim.
  var fewestFree = 0
  /// Objects in all slabs, and those of them that are not free there.
  var objects = 0
  var out = 0
  /// Slabs made and released since the cache was made.
  var created: UInt64 = 0
  var released: UInt64 = 0
  /// The most objects that were out of slabs at once.
  var peakOut = 0
  /// Free objects that are not allocated because a stray write hit their slab.
  var lost = 0
  /// Requests that wait for an object.
  var waiters = KmemWaiters()
  /// Damage that was found while waiters were served, until it is reported.
  var unreported: CachePointer.Damage?
  /// Of a zone, the free objects that requests of normal priority leave, and the fewest free ones that it ever had.
  var demand = 0
  var lowWater = 0
  /// Objects that were registered before kmem existed.
  var registered = 0
  /// Objects on pages of their own.
  var onPages = 0
  /// Whether the cache has no magazines because it is near its limit.
  var isNearLimit = false
}

/// A cache in place: a handle.
struct CachePointer {
  let cache: UnsafeMutablePointer<Cache>
  let kmem: KmemAllocator

  /// The descriptor, in place.
  @inline(__always) var descriptor: Cache { unsafeAddress { UnsafePointer(cache) } }

  var magazines: MagazineSet { MagazineSet(at: UnsafeMutableRawPointer(cache) + Cache.depotOffset) }
  /// The slabs, in place.
  var lists: Locked<SlabLists> { @inline(__always) _read { yield descriptor.lists } }
  var physical: FrameAllocator { kmem.state.physical }
  var machine: Machine { kmem.state.machine }
  var cacheIndex: Int { descriptor.cacheIndex }
  var name: ShortName { descriptor.name }
  var size: Int { descriptor.size }
  var chunk: Int { descriptor.chunk }
  /// The period of auditing, nil when audit is off.
  var auditPeriod: UInt16? {
    let period = descriptor.audit.load(ordering: .acquiring)
    return period == 0 ? nil : UInt16(truncatingIfNeeded: period)
  }

  func slab(_ frame: FrameNumber) -> Slab {
    Slab(frame, physical.record(frame).unsafelyUnwrapped, machine.directMap)
  }

  func object(_ slab: Slab, _ index: Int) -> UnsafeMutableRawPointer { slab.base + index * chunk }

  /// Whether an object has the word of a free one.
  func looksFree(_ object: UnsafeMutableRawPointer) -> Bool {
    object.load(fromByteOffset: descriptor.wordOffset, as: UInt64.self) == FreeWord.of(object)
  }
  func setWord(of object: UnsafeMutableRawPointer, _ word: UInt64) {
    object.storeBytes(of: word, toByteOffset: descriptor.wordOffset, as: UInt64.self)
  }

  // MARK: Geometry

  static func objects(chunk: Int, frames: Int, isAudited: Bool) -> Int {
    let bytes = 4096 * frames
    return isAudited
      ? min((bytes - guardBytes) / chunk, Slab.mostAudited) : min(bytes / chunk, Slab.mostObjects)
  }
  static func objects(chunk: Int, order: BlockOrder, isAudited: Bool) -> Int {
    objects(chunk: chunk, frames: Int(order.frames.rawValue), isAudited: isAudited)
  }

  /// Bytes behind the last object of an audited slab that show a write beyond its end.
  static var guardBytes: Int { 16 }

  /// Chooses the order of a cache's slabs: the smallest that leaves less than a sixteenth unused, else the one that
  /// leaves least.
  static func preferredOrder(chunk: Int, isAudited: Bool) -> BlockOrder {
    var best = BlockOrder(0)
    var least = Int.max
    for rawValue in UInt8(0)...Slab.largestOrder.rawValue {
      let order = BlockOrder(rawValue)
      let bytes = 4096 << Int(rawValue)
      let waste = bytes - objects(chunk: chunk, order: order, isAudited: isAudited) * chunk
      if waste * 16 < bytes { return order }
      if waste << Int(Slab.largestOrder.rawValue - rawValue) < least {
        least = waste << Int(Slab.largestOrder.rawValue - rawValue)
        best = order
      }
    }
    return best
  }

  /// Whether the cache keeps a slab whose objects are all free, so that a caller at the edge of a slab does not allocate
  /// frames each time. A cache keeps one or two; all caches together may keep a 128th of all slabs beyond that.
  func keeps(_ slab: Slab, beside others: Int) -> Bool {
    if source.asksProcessors { return true }
    if slab.isAudited && auditPeriod == nil { return false }
    if others < (slab.frames == 1 ? 2 : 1) { return true }
    return kmem.state.spareFrames.load(ordering: .relaxed)
      <= max(32, kmem.state.slabFrames.load(ordering: .relaxed) / 128)
  }

  /// Lets the depot keep one more full magazine, after one had to be emptied into slabs. All such magazines together
  /// stay below a 32nd of all slabs; reclaiming ends the allowance.
  func raiseDepotLimit() -> Bool {
    let bytes = magazines.rounds * chunk
    let most = max(128 << 10, kmem.state.slabFrames.load(ordering: .relaxed) * 4096 / 32)
    let sum = kmem.state.depotBytes.add(bytes, ordering: .relaxed).newValue
    guard sum <= most else {
      kmem.state.depotBytes.subtract(bytes, ordering: .relaxed)
      return false
    }
    descriptor.depotLimit.add(1, ordering: .relaxed)
    magazines.changeFullLimit(by: 1)
    return true
  }

  /// Ends the allowance of `raiseDepotLimit`, or so much of it.
  func lowerDepotLimit(atMost most: Int = .max) {
    let depotLimit = descriptor.depotLimit.exchange(0, ordering: .relaxed)
    let change = min(depotLimit, most)
    descriptor.depotLimit.add(depotLimit - change, ordering: .relaxed)
    kmem.state.depotBytes.subtract(change * magazines.rounds * chunk, ordering: .relaxed)
    magazines.changeFullLimit(by: -change)
  }

  /// Counts a slab that has lost its last object in use, or got its first.
  func countSpare(_ slab: Slab, _ sign: Int) {
    kmem.state.spareFrames.add(sign * slab.frames, ordering: .relaxed)
  }

  // MARK: Making and releasing slabs

  /// Makes a slab whose objects are all constructed and free; it is on no list yet. Nil without memory. Falls back on
  /// smaller slabs when physical memory has no run. Calls the constructor: no lock is held.
  func makeSlab(isAudited: Bool, priority: AllocationPriority) -> Slab? {
    if machine.failsHere(.kmem) { return nil }
    if source.isContiguous {
      return makeContiguousSlab(isAudited: isAudited, priority: priority, mayWait: false)
    }
    var order = Self.preferredOrder(chunk: chunk, isAudited: isAudited)
    while true {
      guard Self.objects(chunk: chunk, order: order, isAudited: isAudited) > 0 else { return nil }
      if let frame = try? physical.allocateUnlogged(order, role: .slab, priority: priority, for: kmem.owner) {
        let run = FrameRun(first: frame, count: order.frames)
        return slab(in: run, isAudited: isAudited, priority: priority)
      }
      guard order.rawValue > 0 else { return nil }
      order = BlockOrder(order.rawValue - 1)
    }
  }

  /// Makes a slab in frames that the cache has allocated. Frees them, and answers nil, without memory for its tables.
  func slab(in run: FrameRun, isAudited: Bool, priority: AllocationPriority) -> Slab? {
    let objects = Self.objects(chunk: chunk, frames: Int(run.count.rawValue), isAudited: isAudited)
    let tableBytes = Slab.tableBytes(objects: objects, isAudited: isAudited)
    var tables: UnsafeMutableRawPointer?
    if tableBytes > 0 {
      tables = kmem.allocateOwn(tableBytes, priority: priority)
      guard tables != nil else {
        freeFrames(run)
        return nil
      }
    }
    let slab = Slab.create(
      run, cache: cacheIndex, objects: objects, isAudited: isAudited, tables: tables, physical: physical,
      directMap: machine.directMap)
    construct(slab)
    return slab
  }

  private func construct(_ slab: Slab) {
    for index in 0..<slab.objects {
      let object = object(slab, index)
      descriptor.construct?(descriptor.context, object)
      setWord(of: object, FreeWord.of(object))
    }
    guard slab.isAudited else { return }
    let end = object(slab, slab.objects)
    for word in stride(from: 0, to: Self.guardBytes, by: 8) {
      (end + word).storeBytes(of: FreeWord.of(end + word), as: UInt64.self)
    }
  }

  /// Releases slabs that are on no list, chained by their records, to physical memory. No lock is held.
  func releaseSlabs(_ chain: FrameNumber) {
    var next = chain
    while next != .none {
      let slab = slab(next)
      next = slab.record.next
      if slab.isAudited && !slab.isDamaged { reportDamage(slab) }
      if let destruct = descriptor.destruct {
        for index in 0..<slab.objects { destruct(descriptor.context, object(slab, index)) }
      }
      if let tables = slab.tables { kmem.freeOwn(tables) }
      let run = slab.run
      for i in 0..<run.count.rawValue {
        physical.record(slab.frame + PageCount(i)).unsafelyUnwrapped.queue = .none
      }
      freeFrames(run)
    }
  }

  // MARK: Stray writes

  /// The damage of a stray write to a free object, to the guard behind the last object of an audited slab, or to the
  /// map in a slab's tables. Found under the lock, reported when that is dropped.
  struct Damage {
    var kind: FaultKind
    var slab: Slab
    /// The object; nil for the map.
    var index: Int?
  }

  /// Whether nothing was written behind the last object of an audited slab.
  func isGuardIntact(_ slab: Slab) -> Bool {
    let end = object(slab, slab.objects)
    for word in stride(from: 0, to: Self.guardBytes, by: 8) {
      if (end + word).load(as: UInt64.self) != FreeWord.of(end + word) { return false }
    }
    return true
  }

  /// Finds the damage of object `index`, which is free; nil when it has none.
  @inline(never) func damage(_ slab: Slab, _ index: Int) -> Damage? {
    if !looksFree(object(slab, index)) { return Damage(kind: .writeAfterFree, slab: slab, index: index) }
    if slab.isAudited && index == slab.objects - 1 && !isGuardIntact(slab) {
      return Damage(kind: .overrun, slab: slab, index: index)
    }
    return nil
  }

  /// Reports the damage of a slab whose objects are all free, before its release.
  private func reportDamage(_ slab: Slab) {
    for index in 0..<slab.objects {
      if let damage = damage(slab, index) { kmem.report(damage, self) }
    }
  }
}
