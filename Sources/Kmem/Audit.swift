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
  /// A cache whose objects fill the largest slab has no space for the records, and stays without. Switching on drains
  /// the magazines: it asks every processor, and no spin lock may be held.
  public func setAudit(_ auditing: Auditing) {
    state.pointee.auditsAll.store(auditing == .on, ordering: .relaxed)
    forEach { $0.setAudit(auditing) }
  }

  /// Whether caches made from now on are audited.
  public var auditing: Auditing { state.pointee.auditsAll.load(ordering: .relaxed) ? .on : .off }

  /// Frees an object of an audited slab, or reports why it can't be freed so.
  func freeAudited(_ location: ObjectLocation, _ request: FreeRequest, _ type: MemoryType) {
    let cache = location.cache
    let (slab, index) = (location.slab, location.index)
    let period = cache.auditPeriod
    var chain = FrameNumber.none
    let mistake = cache.cache.pointee.lists.withLock { lists -> FaultKind? in
      let entry = slab.entry(index)
      if !slab.isOut(index) { return .doubleFree }
      if entry.pointee.period == period {
        guard UInt64(entry.pointee.size) == request.size else { return .wrongSize }
        guard entry.pointee.type == type.index else { return .wrongType }
      }
      if index == slab.objects - 1 && !cache.isGuardIntact(slab) { return .overrun }
      cache.free(&lists, slab, index, at: request.site, &chain)
      return nil
    }
    cache.releaseSlabs(chain)
    guard let mistake else { return type.countFree(cache.cacheIndex) }
    if mistake == .overrun {
      // The free is right: the report is on the object, not on its size.
      return report(.init(kind: .overrun, slab: slab, index: index), cache, at: request.site)
    }
    let what: StaticString =
      switch mistake {
      case .doubleFree: "freed an object that is free already"
      case .wrongSize: "freed by another size than it was allocated by"
      default: "freed under another type than it was allocated under"
      }
    report(mistake, what, location, request)
  }
}

extension CachePointer {
  /// Whether the largest slab has space for an object and its record.
  var canBeAudited: Bool { Self.objects(chunk: chunk, order: Slab.largestOrder, isAudited: true) > 0 }

  func beginAuditPeriod() {
    let periods = cache.pointee.periods.add(1, ordering: .relaxed).newValue
    // Zero says off, to the cache and in an entry that was never written.
    cache.pointee.audit.store((periods - 1) % 0xffff + 1, ordering: .releasing)
  }

  func setAudit(_ auditing: Auditing) {
    guard (auditPeriod != nil) != (auditing == .on) else { return }
    switch auditing {
    case .on:
      guard canBeAudited else { return }
      // The magazines first: an allocation past them, while other processors still use theirs, is not recorded.
      magazines.switchOff { returnToSlab($0, .unknown) }
      beginAuditPeriod()
    case .off:
      cache.pointee.audit.store(0, ordering: .releasing)
      magazines.switchOn()
      releaseFreeSlabs()
    }
  }
}
