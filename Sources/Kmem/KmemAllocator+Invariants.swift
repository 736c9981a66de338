// The check of all invariants in KmemAllocator.swift. Takes as long as all slabs and magazines, and needs no memory.

import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension KmemAllocator {
  /// Checks every invariant: nil when all hold, else the broken one, by its number. Nothing else may use the instance.
  public func checkInvariants() -> StaticString? {
    var broken: StaticString?
    forEach { cache in
      if broken == nil { broken = cache.checkInvariants() }
    }
    if let broken { return broken }
    var (frames, spare, bytes, chunks) = (0, 0, 0, 0)
    forEach { cache in
      frames += cache.lists.withLock { $0.frames }
      bytes += cache.descriptor.depotLimit.load(ordering: .relaxed) * cache.magazines.rounds * cache.chunk
      chunks += cache.magazines.magazineCount
      cache.forEachSlab {
        if $0.out == 0 && !$0.isDamaged { spare += $0.frames }
        if $0.tables != nil { chunks += 1 }
      }
    }
    if frames != state.slabFrames.load(ordering: .relaxed) {
      return "KM-7: frames of all slabs are miscounted"
    }
    if spare != state.spareFrames.load(ordering: .relaxed) {
      return "KM-7: frames of free slabs are miscounted"
    }
    if bytes != state.depotBytes.load(ordering: .relaxed) {
      return "KM-7: bytes that depots may keep beyond their share are miscounted"
    }
    let own = state.own.withLock { $0 }
    if own.inUse != chunks {
      return "KM-8: chunks of kmem's own memory are not those of magazines and slabs"
    }
    let pages = ownType.sums(CacheIndex.largePages, processors: machine.processorCount)
    if pages.allocations &- pages.frees != UInt64(own.frames) {
      return "KM-8: kmem's own frames are miscounted"
    }
    return own.checkInvariants(state.physical)
  }
}

extension CachePointer {
  /// Checks the invariants of this cache: nil when all hold. Nothing else may use the instance.
  func checkInvariants() -> StaticString? {
    if let broken = magazines.checkInvariants() { return broken }
    let lists = lists.withLock { $0 }
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
    if seen.frames != lists.frames { return "KM-2: frames of a cache's slabs are miscounted" }
    if seen.objects != lists.objects { return "KM-2: objects of a cache's slabs are miscounted" }
    if seen.out != lists.out { return "KM-2: objects out of a cache's slabs are miscounted" }
    if seen.lost != lists.lost { return "KM-2: lost objects of a cache are miscounted" }
    if lists.created &- lists.released != UInt64(lists.plain.count + lists.audited.count) {
      return "KM-2: slabs made and released do not add up"
    }
    return checkMagazines(lists)
  }

  /// Checks KM-3, KM-4 and KM-6.
  private func checkMagazines(_ lists: SlabLists) -> StaticString? {
    var words: UInt64 = 0
    var broken: StaticString?
    magazines.forEachWord { word, _ in
      words += 1
      guard let location = kmem.locate(VirtualAddress(UInt64(word))), location.mistake(cacheIndex) == nil
      else {
        broken = "KM-3: a word in a magazine is no object of its cache"
        return
      }
      if location.slab.isFree(location.index) {
        broken = "KM-3: an object is in a magazine and free in its slab"
      }
    }
    if let broken { return broken }
    if auditPeriod != nil && words > 0 { return "KM-6: an audited cache has objects in magazines" }
    let sums = kmem.sums(cacheIndex)
    if sums.allocations &- sums.frees != UInt64(lists.out) &- words {
      return "KM-4: counters of types and objects out of slabs do not add up"
    }
    return nil
  }

  private func check(
    _ list: SlabList, _ kind: SlabSet.Kind, isAudited: Bool, _ seen: inout SlabLists
  ) -> StaticString? {
    var (next, previous, count) = (list.first, FrameNumber.none, 0)
    while next != .none {
      guard count < list.count, let record = physical.record(next) else {
        return "KM-1: a list of slabs is damaged"
      }
      let slab = Slab(next, record, machine.directMap)
      if record.previous != previous { return "KM-1: a slab's link back is wrong" }
      if record.role != .slab || Slab.first(next, record) != next {
        return "KM-5: a slab's first frame is not a slab's"
      }
      for i in 0..<slab.frames {
        let frame = next + PageCount(i)
        guard let other = physical.record(frame), other.role == .slab, other.queue == .owner,
          Slab.cache(other) == cacheIndex, Slab.first(frame, other) == next
        else { return "KM-5: a frame of a slab does not name its slab and cache" }
      }
      if !isPlacedRight(slab.run) { return "KM-10: a slab does not lie where its cache's source puts it" }
      if slab.isAudited != isAudited {
        return "KM-1: an audited slab is on a list of plain ones, or the reverse"
      }
      if slab.objects != Self.objects(chunk: chunk, frames: slab.frames, isAudited: isAudited) {
        return "KM-1: a slab has another number of objects than fit"
      }
      if self.list(of: slab) != kind { return "KM-1: a slab is on the wrong list" }
      if let broken = checkFree(slab) { return broken }
      if slab.isDamaged { seen.lost += slab.objects - slab.out }
      seen.frames += slab.frames
      seen.objects += slab.objects
      seen.out += slab.out
      count += 1
      previous = next
      next = record.next
    }
    return count == list.count ? nil : "KM-1: a list of slabs is shorter than counted"
  }

  /// Checks KM-9, and KM-1 for the map of one slab, unless a stray write is known to have damaged it.
  private func checkFree(_ slab: Slab) -> StaticString? {
    if slab.isDamaged { return nil }
    if !slab.isMapSound { return "KM-9: a slab's map has other free objects than the slab counts" }
    var count = 0
    for number in 0..<slab.mapWords { count += slab.free(number).nonzeroBitCount }
    for index in 0..<slab.objects where slab.isFree(index) {
      count -= 1
      if !looksFree(object(slab, index)) { return "KM-9: a free object has lost its word" }
    }
    if count != 0 { return "KM-1: a slab's map has objects that the slab has not" }
    for index in 0..<slab.objects where slab.isFree(index) { count += 1 }
    if count != slab.objects - slab.out { return "KM-1: a slab's free objects are miscounted" }
    if slab.isAudited && !isGuardIntact(slab) {
      return "KM-9: the guard behind the last object of a slab was written to"
    }
    return nil
  }
}
