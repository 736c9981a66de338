// A cache's slabs under its lock: objects allocated from them and returned to them, and the lists that the slabs are on.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension CachePointer {
  /// Allocates up to `most` free objects from plain or audited slabs, and passes each to `body`. The lowest free object of
  /// a slab comes first. Ends early at one that a stray write hit; its slab allocates no more.
  @inline(__always) private func allocate(
    _ lists: inout SlabLists, isAudited: Bool, most: Int, _ found: inout Damage?,
    _ body: (Slab, Int, UnsafeMutableRawPointer) -> Void
  ) -> Int {
    var count = 0
    while count < most && found == nil {
      let first = isAudited ? lists.audited.next : lists.plain.next
      guard first != .none else { break }
      let slab = slab(first)
      let (from, before) = (list(of: slab), count)
      if !slab.isMapSound { found = Damage(kind: .writeAfterFree, slab: slab, index: nil) }
      var number = 0
      while number < slab.mapWords && count < most && found == nil {
        var free = slab.free(number)
        while free != 0 && count < most {
          let index = number << 6 | free.trailingZeroBitCount
          let object = object(slab, index)
          if !looksFree(object) || isAudited {
            found = damage(slab, index)
            if found != nil { break }
          }
          // Else a free of an object that its caller never wrote to would have to read the map.
          setWord(of: object, 0)
          body(slab, index, object)
          free &= free &- 1
          count += 1
        }
        slab.setFree(number, free)
        number += 1
      }
      precondition(count > before || found != nil, "a slab's map has fewer free objects than its count")
      let out = slab.out + count - before
      if found != nil {
        slab.markDamaged()
        lists.lost += slab.objects - out
      }
      move(&lists, slab, from: from, out: out)
    }
    return count
  }

  /// Allocates up to `most` objects from plain slabs.
  func allocate(
    _ lists: inout SlabLists, into words: UnsafeMutablePointer<UInt>, most: Int,
    _ priority: AllocationPriority, _ found: inout Damage?
  ) -> Int {
    var count = 0
    return allocate(&lists, isAudited: false, most: min(most, objectsLeft(&lists, priority)), &found) {
      _, _, object in
      words[count] = UInt(bitPattern: object)
      count += 1
    }
  }

  /// Allocates one object from an audited slab, and records the request in its entry.
  func allocateAudited(
    _ lists: inout SlabLists, _ period: UInt16, _ request: AllocationRequest, _ found: inout Damage?
  ) -> UnsafeMutableRawPointer? {
    var allocated: UnsafeMutableRawPointer?
    _ = allocate(&lists, isAudited: true, most: min(1, objectsLeft(&lists, request.priority)), &found) {
      slab, index, object in
      let entry = slab.entry(index)
      entry.pointee.period = period
      entry.pointee.size = UInt16(truncatingIfNeeded: request.size)
      entry.pointee.type = request.type.index
      entry.pointee.allocatedAt = request.site
      // The free before it was of another object at this address.
      entry.pointee.freedAt = .unknown
      allocated = object
    }
    return allocated
  }

  /// Allocates one object, from an audited slab in a period of auditing.
  func allocateOne(
    _ lists: inout SlabLists, _ period: UInt16?, _ request: AllocationRequest, _ found: inout Damage?
  ) -> UnsafeMutableRawPointer? {
    if let period { return allocateAudited(&lists, period, request, &found) }
    var word: UInt = 0
    let count = allocate(&lists, into: &word, most: 1, request.priority, &found)
    return count == 1 ? UnsafeMutableRawPointer(bitPattern: word) : nil
  }

  /// Sets the count of a slab that is on list `from`, and moves it to the list where it belongs now.
  func move(_ lists: inout SlabLists, _ slab: Slab, from: SlabSet.Kind, out: Int) {
    lists.out += out - slab.out
    lists.peakOut = max(lists.peakOut, lists.out)
    if lists.demand > 0 { lists.lowWater = min(lists.lowWater, lists.free) }
    slab.out = out
    let to = list(of: slab)
    guard from != to else { return }
    if slab.isAudited {
      lists.audited.move(slab, from: from, to: to, physical)
    } else {
      lists.plain.move(slab, from: from, to: to, physical)
      if from == .free { lists.fewestFree = min(lists.fewestFree, lists.plain.free.count) }
    }
    if from == .free {
      countSpare(slab, -1)
    } else if to == .free {
      countSpare(slab, 1)
    }
  }

  /// Chooses the list where a slab belongs by its counts. A damaged slab allocates no more.
  func list(of slab: Slab) -> SlabSet.Kind {
    let out = slab.out
    return out == slab.objects || slab.isDamaged ? .full : out == 0 ? .free : .partial
  }

  /// Adds a slab that `makeSlab` has just made.
  func insert(_ lists: inout SlabLists, _ slab: Slab) {
    if slab.isAudited {
      lists.audited.free.prepend(slab, physical)
    } else {
      lists.plain.free.prepend(slab, physical)
    }
    lists.frames += slab.frames
    lists.objects += slab.objects
    lists.created += 1
    kmem.state.slabFrames.add(slab.frames, ordering: .relaxed)
    countSpare(slab, 1)
  }

  /// Returns object `index` to its slab. A slab that the cache does not keep is then at the front of `chain`.
  func free(
    _ lists: inout SlabLists, _ slab: Slab, _ index: Int, at site: CallSite, _ chain: inout FrameNumber
  ) {
    let object = object(slab, index)
    let from = list(of: slab)
    setWord(of: object, FreeWord.of(object))
    slab.markFree(index)
    if slab.isAudited { slab.entry(index).pointee.freedAt = site }
    // A damaged slab stays on the full list for good.
    if slab.isDamaged { lists.lost += 1 }
    move(&lists, slab, from: from, out: slab.out - 1)
    guard slab.out == 0 && !slab.isDamaged && lists.waiters.first == nil else { return }
    let others = (slab.isAudited ? lists.audited.free.count : lists.plain.free.count) - 1
    if !keeps(slab, beside: others) && isBeyondDemand(&lists, slab) { unlinkFree(&lists, slab, &chain) }
  }

  /// Removes a slab whose objects are all free from its list.
  func unlinkFree(_ lists: inout SlabLists, _ slab: Slab, _ chain: inout FrameNumber) {
    if slab.isAudited {
      lists.audited.free.remove(slab, physical)
    } else {
      lists.plain.free.remove(slab, physical)
      lists.fewestFree = min(lists.fewestFree, lists.plain.free.count)
    }
    lists.frames -= slab.frames
    lists.objects -= slab.objects
    lists.released += 1
    kmem.state.slabFrames.subtract(slab.frames, ordering: .relaxed)
    countSpare(slab, -1)
    slab.record.next = chain
    chain = slab.frame
  }
}
