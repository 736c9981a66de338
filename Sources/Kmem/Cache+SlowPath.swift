// The part of a cache in the slow path: from magazines to slabs and back.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension CachePointer {
  /// Words of the buffer for one spilled magazine: no magazine holds more.
  private static var spillWords: Int { 64 }
  /// Slabs that one hold of the lock removes from their list.
  private static var releasedAtOnce: Int { 32 }
  /// Attempts to push one object: interrupts may fill the magazine each time.
  private static var pushAttempts: Int { 5 }

  /// Allocates an object from the magazines, the slabs, or a new slab.
  func allocate(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    if descriptor.isZone.load(ordering: .relaxed) { return allocateFromSlab(request) }
    var mayAddMagazine = true
    while true {
      switch magazines.popSlow(unlessRejected: { areOut($0, $1) }) {
      case .word(let word): return UnsafeMutableRawPointer(bitPattern: word)
      case .rejected(let magazine, let rounds):
        returnToSlab(magazine, rounds, request.site)
        magazines.returnEmpty(magazine)
        continue
      case .empty: break
      }
      if auditPeriod != nil { return allocateFromSlab(request) }
      var damage: Damage?
      let outcome = magazines.refill { words, most in
        lists.withLock { allocate(&$0, into: words, most: most, request.priority, &damage) }
      }
      kmem.report(damage, self, at: request.site)
      switch outcome {
      case .word(let word): return UnsafeMutableRawPointer(bitPattern: word)
      case .noMagazine where mayAddMagazine:
        mayAddMagazine = false
        if addMagazine(request.priority) { continue }
        return allocateFromSlab(request)
      case .noMagazine, .empty, .off: return allocateFromSlab(request)
      }
    }
  }

  /// Allocates an object past the magazines, from a slab or a new slab. An audited cache has no other way.
  func allocateFromSlab(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    while true {
      let period = auditPeriod
      var damage: Damage?
      if let object = lists.withLock({ allocateOne(&$0, period, request, &damage) }) {
        return object
      }
      if damage != nil {
        kmem.report(damage, self, at: request.site)
        continue
      }
      if isAtLimit { return nil }
      guard let slab = makeSlab(isAudited: period != nil, priority: request.priority) else { return nil }
      var mustWake = false
      let first = lists.withLock { lists -> UnsafeMutableRawPointer? in
        insert(&lists, slab)
        let first = allocateOne(&lists, period, request, &damage)
        mustWake = serveWaiters(&lists)
        return first
      }
      if mustWake { wakeWaiters() }
      kmem.report(damage, self, at: request.site)
      if let first { return first }
      // A zone may need more slabs until its demand is met, and another processor may have taken the objects.
    }
  }

  /// Adds another magazine to the depot, if its limit allows.
  func addMagazine(_ priority: AllocationPriority) -> Bool {
    let depotLimit = descriptor.depotLimit.load(ordering: .relaxed)
    let limit = 2 * machine.processorCount + descriptor.fullLimit + depotLimit + 2
    guard magazines.magazineCount < limit else { return false }
    let size = Int(MagazineSet.magazineSize(rounds: magazines.rounds).rawValue)
    guard let magazine = kmem.allocateOwn(size, priority: priority) else { return false }
    magazines.add(magazine)
    return true
  }

  /// Frees an object, whose address was checked, to the magazines or its slab. Never fails.
  func free(_ word: UInt, _ site: CallSite) {
    if descriptor.isZone.load(ordering: .relaxed) { return returnToSlab(word, site) }
    var mayAddMagazine = true
    var mayRaise = true
    for _ in 0..<Self.pushAttempts {
      switch magazines.pushSlow(word) {
      case .pushed: return
      case .off: return returnToSlab(word, site)
      case .full where mayRaise:
        mayRaise = false
        if raiseDepotLimit() { continue }
        if spill(site) == 0 { return returnToSlab(word, site) }
      case .noMagazine where mayAddMagazine:
        mayAddMagazine = false
        if addMagazine(.normal) { continue }
        fallthrough
      case .noMagazine, .full:
        if spill(site) == 0 { return returnToSlab(word, site) }
      }
    }
    returnToSlab(word, site)
  }

  /// Moves the objects of a full magazine of this processor to the slabs; answers how many these were.
  private func spill(_ site: CallSite) -> Int {
    var words = InlineArray<64, UInt>(repeating: 0)
    return withUnsafeMutablePointer(to: &words) {
      $0.withMemoryRebound(to: UInt.self, capacity: Self.spillWords) { words in
        let count = magazines.spill(into: words)
        returnToSlab(words, count, site)
        return count
      }
    }
  }

  /// Returns objects to their slabs.
  ///
  /// A word that a caller put into a magazine need not be an object of this cache, and another processor may free the
  /// same object at this moment. So each word is checked under the lock; a wrong one is reported and has no effect. An
  /// object whose word a stray write changed is lost: it counts as in use.
  func returnToSlab(_ words: UnsafeMutablePointer<UInt>, _ count: Int, _ site: CallSite) {
    var chain = FrameNumber.none
    var bad = 0
    let (mustWake, isFarFromLimit) = lists.withLock { lists in
      var finder = ObjectFinder(self)
      for i in 0..<count {
        if let object = finder.objectOut(words[i]) {
          let slab = Slab(object.frame, object.record, machine.directMap)
          free(&lists, slab, object.index, at: site, &chain)
        } else {
          words[bad] = words[i]
          bad += 1
        }
      }
      return (serveAfterFree(&lists), leavesLimit(&lists))
    }
    if mustWake { wakeWaiters() }
    if isFarFromLimit { unblockMagazines() }
    releaseSlabs(chain)
    for i in 0..<bad { reportBadWord(words[i], site) }
  }

  func returnToSlab(_ word: UInt, _ site: CallSite) {
    var word = word
    returnToSlab(&word, 1, site)
  }

  /// Whether each word of a magazine is an object of this cache that is out of its slab. Runs with interrupts off.
  private func areOut(_ words: UnsafePointer<UInt>, _ count: Int) -> Bool {
    lists.withLock { _ in
      var finder = ObjectFinder(self)
      var next = words
      let end = words + count
      while next != end {
        guard finder.objectOut(next.pointee) != nil else { return false }
        next += 1
      }
      return true
    }
  }

  private func reportBadWord(_ word: UInt, _ site: CallSite) {
    // The free was counted when the word went into the magazine, or will be; its type is no longer known.
    kmem.otherType.countAllocation(cacheIndex)
    guard let location = kmem.locate(VirtualAddress(UInt64(word))),
      let object = UnsafeMutableRawPointer(bitPattern: word)
    else {
      var fault = FaultReport(
        .foreignPointer, "freed an address that kmem never returned, or wrote to a magazine", UInt64(word),
        .virtualAddress)
      fault.owner = name
      fault.reportedAt = site
      return machine.report(fault)
    }
    let request = FreeRequest(object: object, size: UInt64(size), type: nil, site: site)
    if let mistake = location.mistake(cacheIndex) {
      kmem.report(mistake.kind, mistake.what, location, request)
    } else {
      kmem.report(.doubleFree, "freed an object that is free in its slab", location, request)
    }
  }

  /// Whether an object that a caller frees is free already. Reads its slab's record and map, which cost less than the
  /// object, whose user may be done with it for long.
  func isFreeLocked(_ slab: Slab, _ index: Int) -> Bool {
    lists.withLock { _ in slab.isFree(index) }
  }

  // MARK: Releasing memory

  func drain() -> PageCount {
    let before = lists.withLock { $0.frames }
    lowerDepotLimit()
    magazines.drain { returnToSlab($0, .unknown) }
    freeEmptyMagazines()
    releaseFreeSlabs()
    let after = lists.withLock { $0.frames }
    return PageCount(before - min(after, before))
  }

  /// Frees the memory of empty magazines.
  func freeEmptyMagazines(atMost limit: Int = .max) {
    var left = limit
    while left > 0, let magazine = magazines.removeEmpty() {
      left -= 1
      kmem.freeOwn(magazine)
    }
  }

  /// Releases slabs without an object in use, and drops the lock between parts.
  func releaseFreeSlabs(atMost limit: Int = .max) {
    var (left, wasLast) = (limit, false)
    while !wasLast {
      var chain = FrameNumber.none
      lists.withLock { lists in
        for _ in 0..<Self.releasedAtOnce {
          guard left > 0 else {
            wasLast = true
            return
          }
          left -= 1
          let plain = lists.plain.free.first
          let first = plain != .none ? plain : lists.audited.free.first
          guard first != .none else {
            wasLast = true
            return
          }
          let slab = slab(first)
          guard isBeyondDemand(&lists, slab) else {
            wasLast = true
            return
          }
          unlinkFree(&lists, slab, &chain)
        }
      }
      releaseSlabs(chain)
    }
  }
}
