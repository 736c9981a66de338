// Where the hot halves fall: magazines, depot, slabs, frames, in this order.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension KmemAllocator {
  @usableFromInline @inline(never)
  func allocSlow(_ place: Int, _ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority)
    -> UnsafeMutableRawPointer?
  {
    let site = CallSite(codeAddress: cp_return_address())
    if place == CacheIndex.large * 16 { return allocateLarge(size, type, priority, .no, site) }
    // A size of zero is served like a size of one.
    let cacheIndex = max(place >> 4, CacheIndex.firstClass)
    guard let cache = cache(at: cacheIndex) else {
      reportDestroyed(cacheIndex)
      return nil
    }
    var object = cache.take(size: Int(size), type, priority, site)
    if object == nil && priority != .interrupt && reclaim() > .zero {
      object = cache.take(size: Int(size), type, priority, site)
    }
    guard let object else {
      cache.cache.pointee.failed.add(1, ordering: .relaxed)
      noteRefused(size, type, priority, site)
      return nil
    }
    type.countAllocation(cacheIndex)
    return object
  }

  /// Counts a request as refused, and notes it where somebody keeps account.
  func noteRefused(_ size: UInt64, _ type: MemoryType, _ priority: AllocationPriority, _ site: CallSite) {
    type.countAllocation(CacheIndex.failed)
    func request() -> RefusedRequest {
      var request = RefusedRequest(
        .object, ByteCount(size), priority: priority, requester: type.name, reason: "no memory",
        free: state.pointee.physical.freeCount)
      request.site = site
      return request
    }
    state.pointee.machine.note(request())
  }

  @usableFromInline @inline(never)
  func freeSlow(_ object: UnsafeMutableRawPointer, _ place: Int, _ size: UInt64, _ type: MemoryType) {
    let site = CallSite(codeAddress: cp_return_address())
    if place == CacheIndex.large * 16 { return freeLarge(object, size, type, site) }
    let cacheIndex = max(place >> 4, CacheIndex.firstClass)
    guard let found = locate(VirtualAddress(object)) else {
      var fault = FaultReport(
        .foreignPointer, "freed what kmem never gave", VirtualAddress(object).rawValue, .virtualAddress)
      fault.given = size
      fault.type = type.name
      fault.reportedAt = site
      return state.pointee.machine.report(fault)
    }
    if let kind = found.mistake(cacheIndex) {
      return report(kind.kind, kind.what, found, object, size, type, site)
    }
    if found.slab.isAudited {
      return freeAudited(object, found, size, type, site)
    }
    if found.cache.isFreeLocked(found.slab, found.index)
      || found.cache.magazines.isOnTop(UInt(bitPattern: object))
    {
      return report(
        .doubleFree, "freed an object that is free already", found, object, size, type, site)
    }
    found.cache.give(UInt(bitPattern: object), site)
    type.countFree(cacheIndex)
  }

  /// Where an address lies among the slabs; nil when it is not in any.
  func locate(_ address: VirtualAddress) -> ObjectPlace? {
    let machine = state.pointee.machine
    let physical = machine.directMap.physicalAddress(of: address).rawValue
    guard physical >> Page.shift < UInt64(FrameNumber.limit) else { return nil }
    guard let record = state.pointee.physical.record(PhysicalAddress(physical).frame), record.role == .slab,
      record.queue == .owner, let cache = cache(at: Slab.cache(record))
    else { return nil }
    let frame = PhysicalAddress(physical).frame
    let first = Slab.first(frame, record)
    let slab = first == frame ? Slab(frame, record, machine.directMap) : cache.slab(first)
    let offset = Int(address.rawValue - UInt64(UInt(bitPattern: slab.base)))
    // The quotient by multiplication, exact for offsets below 2^15.
    let index = Int((UInt64(offset) &* cache.cache.pointee.reciprocal) >> 32)
    return ObjectPlace(cache: cache, slab: slab, index: index, offset: offset - index * cache.chunk)
  }

  func report(
    _ kind: FaultKind, _ what: StaticString, _ place: ObjectPlace, _ object: UnsafeMutableRawPointer,
    _ size: UInt64, _ type: MemoryType?, _ site: CallSite
  ) {
    var fault = FaultReport(kind, what, VirtualAddress(object).rawValue, .virtualAddress)
    fault.given = size
    fault.expected = UInt64(place.cache.size)
    fault.owner = place.cache.name
    fault.type = type?.name
    fault.reportedAt = site
    if let entry = addAudit(to: &fault, place.slab, place.index), kind != .wrongType {
      fault.expected = UInt64(entry.size)
    }
    state.pointee.machine.report(fault)
  }

  /// Adds what the audit knows of an object to a report on it.
  private func addAudit(to fault: inout FaultReport, _ slab: Slab, _ index: Int) -> AuditEntry? {
    guard slab.isAudited && index < slab.objects else { return nil }
    let entry = slab.entry(index).pointee
    guard entry.period != 0 else { return nil }
    fault.allocatedAt = entry.allocatedAt
    fault.freedAt = entry.freedAt
    fault.type = type(at: entry.type)?.name
    return entry
  }

  /// Reports a stray write, if there was one, by the object that it hit or ran over the end of.
  func report(_ damage: CachePointer.Damage?, _ cache: CachePointer, at site: CallSite = .unknown) {
    guard let damage else { return }
    guard let index = damage.index else {
      let map = damage.slab.tables.unsafelyUnwrapped
      var fault = FaultReport(
        damage.kind, "the map of a slab was written to; the slab gives out no more",
        VirtualAddress(map).rawValue, .virtualAddress)
      fault.owner = cache.name
      fault.reportedAt = site
      return state.pointee.machine.report(fault)
    }
    let what: StaticString =
      damage.kind == .overrun
      ? "something was written behind the end of an object"
      : "a free object was written to; its slab gives out no more"
    let object = cache.object(damage.slab, index)
    var fault = FaultReport(damage.kind, what, VirtualAddress(object).rawValue, .virtualAddress)
    fault.owner = cache.name
    fault.reportedAt = site
    _ = addAudit(to: &fault, damage.slab, index)
    state.pointee.machine.report(fault)
  }
}

/// An address by its slab.
struct ObjectPlace {
  let cache: CachePointer
  let slab: Slab
  let index: Int
  /// Bytes into the object.
  let offset: Int

  /// What is wrong with freeing this as an object of the cache at `cacheIndex`.
  func mistake(_ cacheIndex: Int) -> (kind: FaultKind, what: StaticString)? {
    if index >= slab.objects { return (.foreignPointer, "freed an address behind the objects of a slab") }
    if offset != 0 { return (.foreignPointer, "freed an address inside an object") }
    if cache.cacheIndex == cacheIndex { return nil }
    if cache.cacheIndex < CacheIndex.firstObjectCache && cacheIndex < CacheIndex.firstObjectCache {
      return (.wrongSize, "freed by another size than it was allocated by")
    }
    return (.foreignPointer, "freed to another cache than it came from")
  }
}

extension CachePointer {
  /// An object from the magazines, the slabs, or a new slab.
  func take(
    size: Int, _ type: MemoryType, _ priority: AllocationPriority, _ site: CallSite
  ) -> UnsafeMutableRawPointer? {
    var mayAddMagazine = true
    while true {
      switch magazines.popSlow(unlessRejected: { areOut($0, $1) }) {
      case .word(let word): return UnsafeMutableRawPointer(bitPattern: word)
      case .rejected(let magazine):
        putBack(magazine, magazines.rounds, site)
        magazines.returnEmpty(magazine)
        continue
      case .empty: break
      }
      if auditPeriod != nil { return takePastMagazines(size: size, type, priority, site) }
      var damage: Damage?
      let outcome = magazines.refill { words, most in
        cache.pointee.lists.withLock { take(&$0, into: words, most: most, &damage) }
      }
      kmem.report(damage, self, at: site)
      switch outcome {
      case .word(let word): return UnsafeMutableRawPointer(bitPattern: word)
      case .noMagazine where mayAddMagazine:
        mayAddMagazine = false
        if addMagazine(priority) { continue }
        return takePastMagazines(size: size, type, priority, site)
      case .noMagazine, .empty, .off: return takePastMagazines(size: size, type, priority, site)
      }
    }
  }

  /// One object straight from a slab. This is all there is when the cache is audited.
  func takePastMagazines(
    size: Int, _ type: MemoryType, _ priority: AllocationPriority, _ site: CallSite
  ) -> UnsafeMutableRawPointer? {
    while true {
      let period = auditPeriod
      var damage: Damage?
      func one(_ lists: inout SlabLists) -> UnsafeMutableRawPointer? {
        if let period { return takeAudited(&lists, period, size: size, type: type.index, at: site, &damage) }
        var word: UInt = 0
        return take(&lists, into: &word, most: 1, &damage) == 1
          ? UnsafeMutableRawPointer(bitPattern: word) : nil
      }
      if let object = cache.pointee.lists.withLock({ one(&$0) }) { return object }
      if damage != nil {
        kmem.report(damage, self, at: site)
        continue
      }
      guard let slab = makeSlab(isAudited: period != nil, priority: priority) else { return nil }
      let first = cache.pointee.lists.withLock { lists -> UnsafeMutableRawPointer? in
        insert(&lists, slab)
        return one(&lists)
      }
      kmem.report(damage, self, at: site)
      if let first { return first }
    }
  }

  /// Brings the depot another magazine, if it may have one.
  func addMagazine(_ priority: AllocationPriority) -> Bool {
    let depotLimit = cache.pointee.depotLimit.load(ordering: .relaxed)
    let limit = 2 * machine.processorCount + cache.pointee.fullLimit + depotLimit + 2
    guard magazines.magazineCount < limit else { return false }
    let size = Int(MagazineSet.magazineSize(rounds: magazines.rounds).rawValue)
    guard let magazine = kmem.takeOwn(size, priority: priority) else { return false }
    magazines.add(magazine)
    return true
  }

  /// Gives an object, which was found good, to the magazines or its slab. Never fails.
  func give(_ word: UInt, _ site: CallSite) {
    var mayAddMagazine = true
    var mayRaise = true
    for _ in 0..<5 {
      switch magazines.pushSlow(word) {
      case .pushed: return
      case .off: return putBack(word, site)
      case .full where mayRaise:
        mayRaise = false
        if raiseFullLimit() { continue }
        if spill(site) == 0 { return putBack(word, site) }
      case .noMagazine where mayAddMagazine:
        mayAddMagazine = false
        if addMagazine(.normal) { continue }
        fallthrough
      case .noMagazine, .full:
        if spill(site) == 0 { return putBack(word, site) }
      }
    }
    // Interrupts filled the magazine each time.
    putBack(word, site)
  }

  /// Moves a full magazine of this processor to the slabs; answers how many objects that were.
  private func spill(_ site: CallSite) -> Int {
    var words = InlineArray<64, UInt>(repeating: 0)
    return withUnsafeMutablePointer(to: &words) {
      $0.withMemoryRebound(to: UInt.self, capacity: 64) { words in
        let count = magazines.spill(into: words)
        putBack(words, count, site)
        return count
      }
    }
  }

  /// Puts objects back into their slabs. What a caller has put into a magazine need be no object of this
  /// cache, and another processor may free the same one just now: so each is looked at under the lock, and
  /// what is wrong is reported and left alone. An object whose word a stray write changed is lost: it counts as in use.
  func putBack(_ words: UnsafeMutablePointer<UInt>, _ count: Int, _ site: CallSite) {
    var chain = FrameNumber.none
    var bad = 0
    cache.pointee.lists.withLock { lists in
      var finder = ObjectFinder(self)
      for i in 0..<count {
        if let object = finder.objectOut(words[i]) {
          let slab = Slab(object.frame, object.record, machine.directMap)
          put(&lists, slab, object.index, at: site, &chain)
        } else {
          words[bad] = words[i]
          bad += 1
        }
      }
    }
    giveBack(chain)
    for i in 0..<bad { reportBadWord(words[i], site) }
  }

  /// Whether each word of a magazine is an object of this cache that is out of its slab. Runs with interrupts off.
  private func areOut(_ words: UnsafePointer<UInt>, _ count: Int) -> Bool {
    cache.pointee.lists.withLock { _ in
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
    // The free was counted when it went into the magazine, or will be: under which type, nobody knows now.
    kmem.otherType.countAllocation(cacheIndex)
    guard let place = kmem.locate(VirtualAddress(UInt64(word))),
      let object = UnsafeMutableRawPointer(bitPattern: word)
    else {
      var fault = FaultReport(
        .foreignPointer, "freed what kmem never gave, or wrote to a magazine", UInt64(word), .virtualAddress)
      fault.owner = name
      fault.reportedAt = site
      return machine.report(fault)
    }
    if let mistake = place.mistake(cacheIndex) {
      kmem.report(mistake.kind, mistake.what, place, object, UInt64(size), nil, site)
    } else {
      kmem.report(
        .doubleFree, "freed an object that is free in its slab", place, object, UInt64(size), nil,
        site)
    }
  }

  /// Whether an object that a caller wants to free is free already.
  func isFreeLocked(_ slab: Slab, _ index: Int) -> Bool {
    // The word of a live object is its user's; only when it is that of a free one, the map is asked.
    guard looksFree(object(slab, index)) else { return false }
    return cache.pointee.lists.withLock { _ in slab.isFree(index) }
  }
}

// MARK: - Giving memory back

extension KmemAllocator {
  /// Takes all objects out of all magazines and gives every slab back that has none in use. Asks every
  /// processor, and waits for a trim to end; no spin lock may be held. Answers the pages given back.
  @discardableResult public func drain() -> PageCount {
    let before = slabPages
    forEach { cache in
      cache.lowerFullLimit()
      cache.magazines.drain { cache.putBack($0, .unknown) }
      cache.returnMagazines()
    }
    // What a trim has in hand is in no depot and no slab; one that begins now finds the depots empty.
    state.pointee.trimmer.lock.withLock(on: state.pointee.machine) {}
    forEach { $0.giveBackFree() }
    return before - min(slabPages, before)
  }

  /// Gives back what no processor has: the objects in depots, and slabs without any in use. Answers the
  /// pages given back.
  func reclaim() -> PageCount {
    state.pointee.reclaims.add(1, ordering: .relaxed)
    let before = slabPages
    forEach { cache in
      cache.lowerFullLimit()
      cache.magazines.drainDepot { cache.putBack($0, .unknown) }
      cache.giveBackFree()
    }
    return before - min(slabPages, before)
  }

  /// Frames of all slabs.
  var slabPages: PageCount {
    var frames = 0
    forEach { frames += $0.cache.pointee.lists.withLock { $0.frames } }
    return PageCount(frames)
  }
}

extension CachePointer {
  func drain() -> PageCount {
    let before = cache.pointee.lists.withLock { $0.frames }
    lowerFullLimit()
    magazines.drain { putBack($0, .unknown) }
    returnMagazines()
    giveBackFree()
    let after = cache.pointee.lists.withLock { $0.frames }
    return PageCount(before - min(after, before))
  }

  func putBack(_ word: UInt, _ site: CallSite) {
    var word = word
    putBack(&word, 1, site)
  }

  /// Gives the memory of empty magazines back.
  func returnMagazines(atMost limit: Int = .max) {
    var left = limit
    while left > 0, let magazine = magazines.takeEmpty() {
      left -= 1
      kmem.giveOwn(magazine)
    }
  }

  /// Gives back slabs without an object in use, in parts of 32 a lock.
  func giveBackFree(atMost limit: Int = .max) {
    var (left, wasLast) = (limit, false)
    while !wasLast {
      var chain = FrameNumber.none
      cache.pointee.lists.withLock { lists in
        for _ in 0..<32 {
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
          unlinkFree(&lists, slab(first), &chain)
        }
      }
      giveBack(chain)
    }
  }
}
