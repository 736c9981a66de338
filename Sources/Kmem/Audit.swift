// The audit: a record of each object's size, type, call sites and period. It can be switched on and off for each cache
// at any time.
//
// This is illumos kmem's KMF_AUDIT, without a cost when it is off. An audited cache has no magazines, so the fast path
// falls into the slow one by the test that it makes anyway. Objects allocated before stay in plain slabs and are freed
// into them; new ones come from slabs that have an entry for each object, in kmem's own memory. A free goes by the slab,
// not by the switch, so both kinds of slab coexist.
//
// After the audit was switched off, an audited object may be freed into a magazine and allocated past the audit. So each
// entry records the period of auditing in which it was written, and a free is compared with it only in the same period.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// Whether a cache records each object.
@frozen public enum Auditing: UInt8, Sendable {
  /// Objects go by way of magazines, unrecorded.
  case off
  /// Every allocation and free is recorded and checked, by way of no magazine.
  case on
}

extension KmemAllocator {
  /// Switches the audit of every cache, and of those made later. One caller at a time.
  ///
  /// A cache whose objects fill the largest slab has no space for the records, and stays without; so does one of objects
  /// above 65 535 bytes. Switching on drains
  /// the magazines: it asks every processor, and no spin lock may be held.
  public func setAudit(_ auditing: Auditing) {
    state.auditsAll.store(auditing == .on, ordering: .relaxed)
    forEach { $0.setAudit(auditing) }
  }

  /// Whether caches made from now on are audited.
  public var auditing: Auditing { state.auditsAll.load(ordering: .relaxed) ? .on : .off }

  /// Frees an object of an audited slab, or reports why it can't be freed so, and answers false.
  func freeAudited(_ location: ObjectLocation, _ request: FreeRequest, _ type: MemoryType) -> Bool {
    let cache = location.cache
    let (slab, index) = (location.slab, location.index)
    let period = cache.auditPeriod
    var chain = FrameNumber.none
    var (mustWake, isFarFromLimit) = (false, false)
    let mistake = cache.lists.withLock { lists -> FaultKind? in
      let entry = slab.entry(index)
      if !slab.isOut(index) { return .doubleFree }
      if entry.pointee.period == period {
        guard UInt64(entry.pointee.size) == request.size else { return .wrongSize }
        guard entry.pointee.type == type.index else { return .wrongType }
      }
      if index == slab.objects - 1 && !cache.isGuardIntact(slab) { return .overrun }
      cache.free(&lists, slab, index, at: request.site, &chain)
      (mustWake, isFarFromLimit) = (cache.serveAfterFree(&lists), cache.leavesLimit(&lists))
      return nil
    }
    if mustWake { cache.wakeWaiters() }
    if isFarFromLimit { cache.unblockMagazines() }
    cache.releaseSlabs(chain)
    guard let mistake else {
      type.countFree(cache.cacheIndex)
      return true
    }
    if mistake == .overrun {
      // The free is right: the report is on the object, not on its size.
      report(.init(kind: .overrun, slab: slab, index: index), cache, at: request.site)
      return false
    }
    let what: StaticString =
      switch mistake {
      case .doubleFree: "freed an object that is free already"
      case .wrongSize: "freed by another size than it was allocated by"
      default: "freed under another type than it was allocated under"
      }
    report(mistake, what, location, request)
    return false
  }
}

extension CachePointer {
  /// Whether the largest slab has space for an object and its record, which has 16 bits for the size.
  var canBeAudited: Bool {
    // Objects of audited and of other slabs can't stand for each other in the demand of a zone.
    if descriptor.isZone.load(ordering: .relaxed) { return false }
    let frames = source.isContiguous ? source.mostFrames : Int(Slab.largestOrder.frames.rawValue)
    return size <= UInt16.max && Self.objects(chunk: chunk, frames: frames, isAudited: true) > 0
  }

  func beginAuditPeriod() {
    let periods = descriptor.periods.add(1, ordering: .relaxed).newValue
    // Zero says off, to the cache and in an entry that was never written.
    descriptor.audit.store((periods - 1) % 0xffff + 1, ordering: .releasing)
  }

  func setAudit(_ auditing: Auditing) {
    guard (auditPeriod != nil) != (auditing == .on) else { return }
    switch auditing {
    case .on:
      guard canBeAudited else { return }
      // The magazines first: an allocation past them, while other processors still use theirs, is not recorded.
      blockMagazines()
      beginAuditPeriod()
    case .off:
      descriptor.audit.store(0, ordering: .releasing)
      unblockMagazines()
      releaseFreeSlabs()
    }
  }
}
