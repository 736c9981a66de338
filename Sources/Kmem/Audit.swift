// The audit: for each object who has it, since when, of what size and type; switched on and off for each
// cache while it runs.
//
// illumos kmem's KMF_AUDIT, without a cost when it is off: an audited cache has no magazines, so the hot
// halves fall into the slow ones by the test that they make anyway. Objects given out before stay in plain
// slabs and are freed into them; new ones come from slabs that have an entry for each object, in kmem's own
// memory. A free goes by the slab, not by the switch, so both kinds live side by side.
//
// Switched off again, an audited object may be freed into a magazine and given out past the audit. So each
// entry notes the period of auditing in which it was written, and is held against a free only in the same.

import CPlatform
import Magazines
import MemoryPrimitives
import Synchronization

/// Whether a cache keeps account of each object.
@frozen public enum Auditing: UInt8, Sendable {
  case off, on
}

extension KmemAllocator {
  /// Switches the audit of every cache, and of those made later. A cache whose objects fill the largest slab
  /// has no room for it, and goes on without. Drains magazines where it is switched on:
  /// asks every processor, no spin lock may be held. One caller at a time.
  public func setAudit(_ auditing: Auditing) {
    state.pointee.auditsAll.store(auditing == .on, ordering: .relaxed)
    forEach { $0.setAudit(auditing) }
  }

  /// Whether caches made from now on are audited.
  public var auditing: Auditing { state.pointee.auditsAll.load(ordering: .relaxed) ? .on : .off }

  /// Frees an object of an audited slab, or says what is wrong with it.
  func freeAudited(
    _ object: UnsafeMutableRawPointer, _ place: ObjectPlace, _ size: UInt64, _ type: MemoryType,
    _ site: CallSite
  ) {
    let cache = place.cache
    let period = cache.auditPeriod
    var chain = FrameNumber.none
    let mistake = cache.cache.pointee.lists.withLock { lists -> FaultKind? in
      let entry = place.slab.entry(place.index)
      if !place.slab.isOut(place.index) { return .doubleFree }
      if entry.pointee.period == period {
        guard UInt64(entry.pointee.size) == size else { return .wrongSize }
        guard entry.pointee.type == type.index else { return .wrongType }
      }
      if place.index == place.slab.objects - 1 && !cache.isGuardIntact(place.slab) { return .overrun }
      cache.put(&lists, place.slab, place.index, at: site, &chain)
      return nil
    }
    cache.giveBack(chain)
    guard let mistake else { return type.countFree(cache.cacheIndex) }
    if mistake == .overrun {
      // The free is right: the report is on the object, not on its size.
      return report(.init(kind: .overrun, slab: place.slab, index: place.index), cache, at: site)
    }
    let what: StaticString =
      switch mistake {
      case .doubleFree: "freed an object that is free already"
      case .wrongSize: "freed by another size than it was allocated by"
      default: "freed under another type than it was allocated under"
      }
    report(mistake, what, place, object, size, type, site)
  }
}

extension CachePointer {
  /// Whether the largest slab has room for an object and what the audit notes of it.
  var canBeAudited: Bool { Self.objects(chunk: chunk, order: Order(3), isAudited: true) > 0 }

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
      // The magazines first: what is given out past them while others still use theirs is not noted.
      magazines.switchOff { putBack($0, .unknown) }
      beginAuditPeriod()
    case .off:
      cache.pointee.audit.store(0, ordering: .releasing)
      magazines.switchOn()
      giveBackFree()
    }
  }
}
