// What kmem knows, for the console, the host tool and a user's own code. Figures are exact when nothing
// runs; what walks slabs or magazines says so.

import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A cache in figures.
public struct CacheDescription {
  public var name: Name
  /// Bytes of an object, and from one object to the next.
  public var objectSize: ByteCount
  public var spacing: ByteCount
  /// Objects with callers, and those that the cache keeps: in magazines and slabs.
  public var inUse: UInt64
  public var free: UInt64
  public var slabs: UInt64
  /// Frames of these slabs.
  public var frames: PageCount
  public var requests: UInt64
  public var failed: UInt64
  /// Slabs made since the cache was.
  public var slabsMade: UInt64
  public var slabsGivenBack: UInt64
  /// Words that one of its magazines holds, and magazines that it has.
  public var magazineRounds: UInt64
  public var magazines: UInt64
  public var auditing: Auditing
  /// Whether it serves kmem sizes; an object cache otherwise.
  public var isSizeClass: Bool

  public var held: ByteCount { frames.bytes }
}

/// A type in figures.
public struct TypeDescription {
  public var name: Name
  public var inUse: UInt64
  /// Bytes in use, each object counted with its cache's spacing, large requests and contiguous memory by
  /// pages.
  public var bytes: ByteCount
  /// The contiguous memory among them.
  public var contiguous: ByteCount
  public var requests: UInt64
  public var failed: UInt64
}

/// What is known of an address in a slab.
public struct ObjectDescription {
  public enum Standing: Equatable, Sendable {
    case inUse
    case freeInSlab
    case inMagazine(MagazinePlace)
    /// Behind the last object of the slab.
    case noObject
  }

  public var cache: Name
  public var objectSize: ByteCount
  public var slabStart: VirtualAddress
  public var firstFrame: FrameNumber
  public var frames: PageCount
  public var objectStart: VirtualAddress
  /// Bytes from there to the address.
  public var offset: ByteCount
  /// Number of the object in its slab, and of objects there.
  public var index: Int
  public var objects: Int
  /// Objects of this slab that are not free there: in use, or in magazines.
  public var out: Int
  public var standing: Standing
  /// Known when the object was given out while its cache was audited.
  public var audit: ObjectAudit?
}

/// What the audit noted of an object last.
public struct ObjectAudit {
  public var size: ByteCount
  public var type: Name?
  public var allocatedAt: CallSite
  public var freedAt: CallSite
}

extension KmemAllocator {
  // MARK: Caches and types

  /// Visits every cache, size classes first. As long as caches times types times processors.
  public func forEachCache<E>(_ body: (CacheDescription) throws(E) -> Void) throws(E) {
    try forEach { (cache) throws(E) in try body(describe(cache)) }
  }

  func describe(_ cache: CachePointer) -> CacheDescription {
    let sums = sums(cache.cacheIndex)
    let lists = cache.cache.pointee.lists.withLock { $0 }
    let inUse = sums.allocations &- sums.frees
    return CacheDescription(
      name: cache.name, objectSize: ByteCount(cache.size), spacing: ByteCount(cache.chunk),
      inUse: inUse, free: UInt64(lists.objects) &- min(inUse, UInt64(lists.objects)),
      slabs: UInt64(lists.plain.count + lists.audited.count), frames: PageCount(lists.frames),
      requests: sums.allocations, failed: cache.cache.pointee.failed.load(ordering: .relaxed),
      slabsMade: lists.created, slabsGivenBack: lists.released,
      magazineRounds: UInt64(cache.magazines.rounds), magazines: UInt64(cache.magazines.magazineCount),
      auditing: cache.auditPeriod == nil ? .off : .on,
      isSizeClass: cache.cacheIndex < CacheIndex.firstObjectCache)
  }

  /// Allocations and frees of a cacheIndex, over all types.
  func sums(_ cacheIndex: Int) -> (allocations: UInt64, frees: UInt64) {
    var (allocations, frees): (UInt64, UInt64) = (0, 0)
    forEachTypeToken { type in
      let sums = type.sums(cacheIndex, processors: state.pointee.machine.processorCount)
      allocations &+= sums.allocations
      frees &+= sums.frees
    }
    return (allocations, frees)
  }

  /// Visits every type in the order in which they were made, for `vmstat -m`.
  public func forEachType<E>(_ body: (TypeDescription) throws(E) -> Void) throws(E) {
    var next: MemoryType? = otherType
    while let type = next {
      try body(describe(type))
      next = type.header.pointee.nextRow.map { MemoryType(row: $0) }
    }
  }

  /// A type in figures.
  public func describe(_ type: MemoryType) -> TypeDescription {
    let processors = state.pointee.machine.processorCount
    let (failed, past) = type.sums(CacheIndex.failed, processors: processors)
    var description = TypeDescription(
      name: type.name, inUse: 0, bytes: .zero, contiguous: .zero, requests: past, failed: failed)
    var bytes: UInt64 = 0
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      let sums = type.sums(cacheIndex, processors: processors)
      let inUse = sums.allocations &- sums.frees
      if cacheIndex == CacheIndex.largePages || cacheIndex == CacheIndex.contiguousPages {
        bytes &+= inUse &* Page.size
        if cacheIndex == CacheIndex.contiguousPages { description.contiguous = PageCount(inUse).bytes }
        continue
      }
      description.inUse &+= inUse
      description.requests += sums.allocations
      if let cache = cache(at: cacheIndex) { bytes &+= inUse &* UInt64(cache.chunk) }
    }
    description.bytes = ByteCount(bytes)
    return description
  }

  /// Visits the sizes that a type has asked for: spacing, requests, in use. Large requests and contiguous
  /// memory, whose sizes differ, come together, and without one.
  public func forEachSize(
    of type: MemoryType, _ body: (ByteCount?, _ requests: UInt64, _ inUse: UInt64) -> Void
  ) {
    let processors = state.pointee.machine.processorCount
    for cacheIndex in CacheIndex.firstClass..<CacheIndex.limit {
      if cacheIndex > CacheIndex.large && cacheIndex < CacheIndex.firstObjectCache { continue }
      var sums = type.sums(cacheIndex, processors: processors)
      if cacheIndex == CacheIndex.large {
        let contiguous = type.sums(CacheIndex.contiguous, processors: processors)
        sums.allocations &+= contiguous.allocations
        sums.frees &+= contiguous.frees
      }
      guard sums.allocations > 0 else { continue }
      body(
        cache(at: cacheIndex).map { ByteCount($0.chunk) }, sums.allocations, sums.allocations &- sums.frees)
    }
  }

  // MARK: Sums

  /// Bytes of objects in use, with their caches' spacing, and of large requests' pages.
  public var usedBytes: ByteCount {
    var bytes: UInt64 = 0
    forEachType { bytes &+= $0.bytes.rawValue &- $0.contiguous.rawValue }
    return ByteCount(bytes)
  }

  /// Bytes of contiguous memory in use that types account for. Not kmem's own: neither used nor held here.
  public var contiguousBytes: ByteCount {
    let pages = sums(CacheIndex.contiguousPages)
    return PageCount(pages.allocations &- pages.frees).bytes
  }

  /// Bytes of all slabs, of large requests' pages, and of the tables kept beside.
  public var heldBytes: ByteCount {
    let large = sums(CacheIndex.largePages)
    return (slabPages + PageCount(large.allocations &- large.frees)).bytes + metadataBytes
  }

  /// Bytes of kmem's own tables: state, slots, descriptors, counters.
  public var metadataBytes: ByteCount {
    Self.size(processors: state.pointee.machine.processorCount)
      + PageCount(state.pointee.metadataPages.load(ordering: .relaxed)).bytes
  }

  /// Requests granted, and refused, since the start; those for contiguous memory as well.
  public var requests: UInt64 {
    var requests: UInt64 = 0
    forEachType { requests += $0.requests }
    return requests
  }
  public var failedRequests: UInt64 { sums(CacheIndex.failed).allocations }

  // MARK: One address

  /// What is known of an address in a slab; nil when no slab holds it. Looks through the magazines of its
  /// cache, on every processor: no spin lock may be held. While others are at work, what was so a moment ago.
  public func whatIs(_ address: VirtualAddress) -> ObjectDescription? {
    guard let place = locate(address) else { return nil }
    let (cache, slab) = (place.cache, place.slab)
    let isObject = place.index < slab.objects
    var description = ObjectDescription(
      cache: cache.name, objectSize: ByteCount(cache.size),
      slabStart: VirtualAddress(UnsafeRawPointer(slab.base)), firstFrame: slab.frame,
      frames: slab.order.frames,
      objectStart: VirtualAddress(UnsafeRawPointer(cache.object(slab, place.index))),
      offset: ByteCount(place.offset), index: place.index, objects: slab.objects, out: 0,
      standing: .noObject, audit: nil)
    cache.cache.pointee.lists.withLock { _ in
      description.out = slab.out
      guard isObject else { return }
      description.standing = slab.isFree(place.index) ? .freeInSlab : .inUse
      guard slab.isAudited else { return }
      let entry = slab.entry(place.index).pointee
      guard entry.period != 0 else { return }
      description.audit = ObjectAudit(
        size: ByteCount(Int(entry.size)), type: type(at: entry.type)?.name, allocatedAt: entry.allocatedAt,
        freedAt: entry.freedAt)
    }
    if description.standing == .inUse {
      let word = UInt(description.objectStart.rawValue)
      if let magazine = cache.magazines.place(of: word) { description.standing = .inMagazine(magazine) }
    }
    return description
  }

  /// Visits every slab: cache, first frame, frames, objects, objects not free in it, audited or not. In an
  /// order that depends on the history alone. Only when nothing runs.
  public func forEachSlab(
    _ body: (_ cache: Name, FrameNumber, PageCount, _ objects: Int, _ out: Int, Auditing) -> Void
  ) {
    forEach { cache in
      cache.forEachSlab {
        body(cache.name, $0.frame, $0.order.frames, $0.objects, $0.out, $0.isAudited ? .on : .off)
      }
    }
  }

  // MARK: Invariants

  /// Which invariant is broken, nil when none is. Only when nothing runs; as long as all slabs and magazines.
  public func checkInvariants() -> StaticString? {
    var broken: StaticString?
    forEach { cache in
      if broken == nil { broken = cache.checkInvariants() }
    }
    var (frames, spare, bytes, chunks) = (0, 0, 0, 0)
    forEach { cache in
      frames += cache.cache.pointee.lists.withLock { $0.frames }
      bytes += cache.cache.pointee.depotLimit.load(ordering: .relaxed) * cache.magazines.rounds * cache.chunk
      chunks += cache.magazines.magazineCount
      cache.forEachSlab {
        if $0.out == 0 && !$0.isDamaged { spare += Int($0.order.frames.rawValue) }
        if $0.tables != nil { chunks += 1 }
      }
    }
    if frames != state.pointee.slabFrames.load(ordering: .relaxed) {
      return "frames of all slabs are miscounted"
    }
    if spare != state.pointee.spareFrames.load(ordering: .relaxed) {
      return "frames of free slabs are miscounted"
    }
    if bytes != state.pointee.depotBytes.load(ordering: .relaxed) {
      return "what depots may keep beyond their share is miscounted"
    }
    let own = state.pointee.own.withLock { $0 }
    if own.inUse != chunks { return "chunks of kmem's own memory are not those of magazines and slabs" }
    let pages = ownType.sums(CacheIndex.largePages, processors: state.pointee.machine.processorCount)
    if pages.allocations &- pages.frees != UInt64(own.frames) { return "kmem's own frames are miscounted" }
    return broken ?? own.checkInvariants(state.pointee.physical)
  }

  // MARK: Statistics

  /// Adds kmem's rows to the registry.
  public func register(in statistics: Statistics) {
    func row(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, kind, about, context: base, read: read))
    }
    row("kmem.used", .bytes, .gauge, "objects in use and large requests") {
      KmemAllocator($0).usedBytes.rawValue
    }
    row("kmem.held", .bytes, .gauge, "slabs, large requests and kmem's own tables") {
      KmemAllocator($0).heldBytes.rawValue
    }
    row("kmem.metadata", .bytes, .gauge, "kmem's own tables") { KmemAllocator($0).metadataBytes.rawValue }
    row("kmem.slab_pages", .pages, .gauge, "frames of slabs") { KmemAllocator($0).slabPages.rawValue }
    row("kmem.requests", .requests, .counter, "allocations granted") { KmemAllocator($0).requests }
    row("kmem.failed", .requests, .counter, "allocations refused") { KmemAllocator($0).failedRequests }
    row("kmem.depot.exchanges", .events, .counter, "magazines exchanged with a depot") {
      KmemAllocator($0).sum(.exchanges)
    }
    row("kmem.magazine.refills", .events, .counter, "magazines filled from slabs") {
      KmemAllocator($0).sum(.refills)
    }
    row("kmem.magazine.spills", .events, .counter, "magazines emptied into slabs") {
      KmemAllocator($0).sum(.spills)
    }
    row("kmem.slabs_made", .events, .counter, "slabs made") {
      KmemAllocator($0).sum(.slabsMade)
    }
    row("kmem.slabs_given_back", .events, .counter, "slabs given back to the frames") {
      KmemAllocator($0).sum(.slabsGivenBack)
    }
    row("kmem.reclaims", .events, .counter, "times all caches gave back what they kept free") {
      KmemAllocator($0).state.pointee.reclaims.load(ordering: .relaxed)
    }
    row("kmem.trims", .events, .counter, "times that what nobody needed for a while was given back") {
      KmemAllocator($0).state.pointee.trimmer.trims.load(ordering: .relaxed)
    }
    statistics.add(
      Statistic(
        "kmem.trim_every", .ticks, .tunable, "from one trim to the next, by the thread that does it",
        context: base, read: { KmemAllocator($0).trimInterval },
        write: { KmemAllocator($0).setTrimInterval($1) ? .accepted : .out_of_range }))
    statistics.add(
      Statistic(
        "kmem.audit", .switchOnOff, .tunable, "account for each object: size, type, call sites",
        context: base, read: { KmemAllocator($0).auditing == .on ? 1 : 0 },
        write: { context, value in
          guard value <= 1 else { return .out_of_range }
          KmemAllocator(context).setAudit(value == 1 ? .on : .off)
          return .accepted
        }))
  }

  /// From the context of a row.
  private init(_ context: UnsafeMutableRawPointer?) { self.init(at: context.unsafelyUnwrapped) }

  /// Over all caches, those that are gone too.
  private func sum(_ event: CacheEvent) -> UInt64 {
    var sum = state.pointee.past[event.rawValue].load(ordering: .relaxed)
    forEach { sum &+= $0.count(event) }
    return sum
  }
}

/// What a cache counts of its own work.
enum CacheEvent: Int {
  case exchanges, refills, spills, slabsMade, slabsGivenBack

  static var count: Int { 5 }
}

extension CachePointer {
  /// Since the cache was made.
  func count(_ event: CacheEvent) -> UInt64 {
    switch event {
    case .exchanges: magazines.exchanges
    case .refills: magazines.refills
    case .spills: magazines.spills
    case .slabsMade: cache.pointee.lists.withLock { $0.created }
    case .slabsGivenBack: cache.pointee.lists.withLock { $0.released }
    }
  }

  /// Which invariant this cache breaks. Only when nothing runs.
  func checkInvariants() -> StaticString? {
    if let broken = magazines.checkInvariants() { return broken }
    let lists = cache.pointee.lists.withLock { $0 }
    var seen = SlabLists()
    for audited in 0..<2 {
      let set = audited == 0 ? lists.plain : lists.audited
      if let broken = check(set.partial, .partial, isAudited: audited == 1, &seen)
        ?? check(set.full, .full, isAudited: audited == 1, &seen)
        ?? check(set.free, .free, isAudited: audited == 1, &seen)
      {
        return broken
      }
    }
    if seen.frames != lists.frames { return "frames of a cache's slabs are miscounted" }
    if seen.objects != lists.objects { return "objects of a cache's slabs are miscounted" }
    if seen.out != lists.out { return "objects out of a cache's slabs are miscounted" }
    if seen.lost != lists.lost { return "lost objects of a cache are miscounted" }
    if lists.created &- lists.released != UInt64(lists.plain.count + lists.audited.count) {
      return "slabs made and given back do not add up"
    }
    // Invariant 3, and 6.
    var words: UInt64 = 0
    var broken: StaticString?
    magazines.forEachWord { word, _ in
      words += 1
      guard let place = kmem.locate(VirtualAddress(UInt64(word))), place.mistake(cacheIndex) == nil else {
        broken = "a magazine holds what is no object of its cache"
        return
      }
      if place.slab.isFree(place.index) { broken = "an object is in a magazine and free in its slab" }
    }
    if let broken { return broken }
    if auditPeriod != nil && words > 0 { return "an audited cache has objects in magazines" }
    // Invariant 4.
    let sums = kmem.sums(cacheIndex)
    if sums.allocations &- sums.frees != UInt64(lists.out) &- words {
      return "counters of types and objects out of slabs do not add up"
    }
    return nil
  }

  private func check(
    _ list: SlabList, _ place: Place, isAudited: Bool, _ seen: inout SlabLists
  ) -> StaticString? {
    var (next, previous, count) = (list.first, FrameNumber.none, 0)
    while next != .none {
      guard count < list.count, let record = physical.record(next) else {
        return "a list of slabs is damaged"
      }
      let slab = Slab(next, record, machine.directMap)
      if record.previous != previous { return "a slab's link back is wrong" }
      if record.role != .slab || Slab.first(next, record) != next {
        return "a slab's first frame is not a slab's"
      }
      for i in 0..<slab.order.frames.rawValue {
        let frame = next + PageCount(i)
        guard let other = physical.record(frame), other.role == .slab, other.queue == .owner,
          Slab.cache(other) == cacheIndex, Slab.first(frame, other) == next
        else { return "a frame of a slab does not name its slab and cache" }
      }
      if slab.isAudited != isAudited {
        return "an audited slab is on a list of plain ones, or a plain one here"
      }
      if slab.objects != Self.objects(chunk: chunk, order: slab.order, isAudited: isAudited) {
        return "a slab has another number of objects than fit"
      }
      if self.place(slab) != place { return "a slab is on the wrong list" }
      if let broken = checkFree(slab) { return broken }
      if slab.isDamaged { seen.lost += slab.objects - slab.out }
      seen.frames += Int(slab.order.frames.rawValue)
      seen.objects += slab.objects
      seen.out += slab.out
      count += 1
      previous = next
      next = record.next
    }
    return count == list.count ? nil : "a list of slabs is shorter than counted"
  }

  /// The map of a slab against its count, and the words of its free objects unless one is known to be lost.
  private func checkFree(_ slab: Slab) -> StaticString? {
    if slab.isDamaged { return nil }
    if !slab.isMapSound { return "a slab's map has other free objects than the slab counts" }
    var count = 0
    for number in 0..<slab.mapWords { count += slab.free(number).nonzeroBitCount }
    for index in 0..<slab.objects where slab.isFree(index) {
      count -= 1
      if !looksFree(object(slab, index)) { return "a free object has lost its word" }
    }
    if count != 0 { return "a slab's map has objects that the slab has not" }
    for index in 0..<slab.objects where slab.isFree(index) { count += 1 }
    if count != slab.objects - slab.out { return "a slab's free objects are miscounted" }
    if slab.isAudited && !isGuardIntact(slab) {
      return "the guard behind the last object of a slab was written to"
    }
    return nil
  }
}
