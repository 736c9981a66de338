// One cache: the slabs of one size of object, and what is known of them under the cache's lock.

import MemoryPrimitives
import Magazines
import PhysicalMemory
import Synchronization

/// What a constructor or destructor is called with: the context of `createCache`, and the object.
public typealias ObjectHook = @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Void

/// The descriptor of a cache, in 512 bytes with its depot behind it.
struct Cache: ~Copyable {
  let name: Name
  let cacheIndex: Int
  /// Bytes of an object as its users know it.
  let size: Int
  /// Bytes from one object to the next.
  let chunk: Int
  /// 2^32 over it, rounded up.
  let reciprocal: UInt64
  /// Where its word stands in a free object.
  let wordOffset: Int
  let constructor: ObjectHook?
  let destructor: ObjectHook?
  let context: UnsafeMutableRawPointer?
  /// Full magazines that its depot keeps in any case, and beyond that at the moment.
  let fullLimit: Int
  let depotLimit = Atomic<Int>(0)
  let lists: Locked<SlabLists>
  /// The period of auditing, 0 when audit is off.
  let audit = Atomic<UInt32>(0)
  /// Periods so far.
  let periods = Atomic<UInt32>(0)
  let failed = Atomic<UInt64>(0)
  /// False in a descriptor that nobody uses; all zeroes is such a one.
  let isLive = Atomic<Bool>(false)
  /// `owner` in the record of a slab that is not audited and has as many frames as the cache prefers.
  let plainOwner: UInt32
  let visits = CacheVisits()

  static var stride: Int { 512 }
  static var depotOffset: Int { 320 }
}

/// How many visit a cache now, as part of a walk over all of them: a cache is destroyed when nobody does any more.
struct CacheVisits: ~Copyable {
  /// Visitors, and a bit that is set while others may come.
  private let word = Atomic<UInt64>(0)
  private static var open: UInt64 { 1 << 63 }

  init() {}

  var areUnderWay: Bool { word.load(ordering: .acquiring) & ~Self.open != 0 }

  borrowing func open() { word.bitwiseOr(Self.open, ordering: .releasing) }
  /// From here on nobody comes; those who are there may stay a while.
  borrowing func close() { word.bitwiseAnd(~Self.open, ordering: .sequentiallyConsistent) }

  /// False when it is closed.
  borrowing func enter() -> Bool {
    var seen = word.load(ordering: .relaxed)
    while seen & Self.open != 0 {
      let (exchanged, original) = word.weakCompareExchange(
        expected: seen, desired: seen + 1, ordering: .acquiring)
      if exchanged { return true }
      seen = original
    }
    return false
  }
  /// True when somebody may wait for this.
  borrowing func leave() -> Bool {
    word.subtract(1, ordering: .sequentiallyConsistent).newValue == 0
  }
}

/// The slabs of a cache by how full they are.
struct SlabSet {
  var partial = SlabList()
  var full = SlabList()
  var free = SlabList()

  var count: Int { partial.count + full.count + free.count }
  /// The slab to take the next object from; none when all are taken.
  var next: FrameNumber { partial.first != .none ? partial.first : free.first }

  mutating func move(
    _ slab: Slab, from: CachePointer.Place, to: CachePointer.Place, _ physical: FrameAllocator
  ) {
    switch from {
    case .free: free.remove(slab, physical)
    case .partial: partial.remove(slab, physical)
    case .full: full.remove(slab, physical)
    }
    switch to {
    case .free: free.put(slab, physical)
    case .partial: partial.put(slab, physical)
    case .full: full.put(slab, physical)
    }
  }
}

/// What the lock of a cache guards.
struct SlabLists {
  var plain = SlabSet()
  var audited = SlabSet()
  var frames = 0
  /// The fewest plain slabs without an object in use since the last trim.
  var fewestFree = 0
  /// Objects in all slabs, and those of them that are not free there.
  var objects = 0
  var out = 0
  /// Slabs made and given back since the cache was made.
  var created: UInt64 = 0
  var released: UInt64 = 0
  /// Free objects that are not given out because one of their slab was written to.
  var lost = 0
}

/// A cache in place: a handle.
struct CachePointer {
  let cache: UnsafeMutablePointer<Cache>
  let kmem: KmemAllocator

  var magazines: MagazineSet { MagazineSet(at: UnsafeMutableRawPointer(cache) + Cache.depotOffset) }
  var physical: FrameAllocator { kmem.state.pointee.physical }
  var machine: Machine { kmem.state.pointee.machine }
  var cacheIndex: Int { cache.pointee.cacheIndex }
  var name: Name { cache.pointee.name }
  var size: Int { cache.pointee.size }
  var chunk: Int { cache.pointee.chunk }
  /// The period of auditing, nil when audit is off.
  var auditPeriod: UInt16? {
    let period = cache.pointee.audit.load(ordering: .acquiring)
    return period == 0 ? nil : UInt16(truncatingIfNeeded: period)
  }

  func slab(_ frame: FrameNumber) -> Slab {
    Slab(frame, physical.record(frame).unsafelyUnwrapped, machine.directMap)
  }

  func object(_ slab: Slab, _ index: Int) -> UnsafeMutableRawPointer { slab.base + index * chunk }

  /// Whether an object has the word of a free one.
  func looksFree(_ object: UnsafeMutableRawPointer) -> Bool {
    object.load(fromByteOffset: cache.pointee.wordOffset, as: UInt64.self) == FreeWord.of(object)
  }
  func setWord(of object: UnsafeMutableRawPointer, _ word: UInt64) {
    object.storeBytes(of: word, toByteOffset: cache.pointee.wordOffset, as: UInt64.self)
  }

  // MARK: Geometry

  static func objects(chunk: Int, order: Order, isAudited: Bool) -> Int {
    let bytes = 4096 << Int(order.rawValue)
    return isAudited ? min((bytes - guardBytes) / chunk, Slab.mostAudited) : bytes / chunk
  }

  /// Bytes behind the last object of an audited slab that tell of a write beyond its end.
  static var guardBytes: Int { 16 }

  /// The order of a cache's slabs: the smallest that leaves over less than a sixteenth, else the one that
  /// leaves least.
  static func preferredOrder(chunk: Int, isAudited: Bool) -> Order {
    var best = Order(0)
    var least = Int.max
    for rawValue in UInt8(0)...3 {
      let order = Order(rawValue)
      let bytes = 4096 << Int(rawValue)
      let waste = bytes - objects(chunk: chunk, order: order, isAudited: isAudited) * chunk
      if waste * 16 < bytes { return order }
      if waste << Int(3 - rawValue) < least {
        least = waste << Int(3 - rawValue)
        best = order
      }
    }
    return best
  }

  /// Whether a slab whose objects are all free stays, so that a caller at the edge of a slab does not go
  /// down to the frames each time: one or two of each cache, and a 64th of all slabs on top for whoever
  /// needs it.
  private func keeps(_ slab: Slab, beside others: Int) -> Bool {
    if slab.isAudited && auditPeriod == nil { return false }
    if others < (slab.order.rawValue == 0 ? 2 : 1) { return true }
    let state = kmem.state
    return state.pointee.spareFrames.load(ordering: .relaxed)
      <= max(32, state.pointee.slabFrames.load(ordering: .relaxed) / 64)
  }

  /// Lets the depot keep a full magazine more, after one had to be emptied into slabs: as long as all
  /// that goes beyond stays below a 64th of all slabs. Reclaiming takes it back.
  func raiseFullLimit() -> Bool {
    let state = kmem.state
    let bytes = magazines.rounds * chunk
    let most = max(128 << 10, state.pointee.slabFrames.load(ordering: .relaxed) * 4096 / 64)
    let sum = state.pointee.depotBytes.add(bytes, ordering: .relaxed).newValue
    guard sum <= most else {
      state.pointee.depotBytes.subtract(bytes, ordering: .relaxed)
      return false
    }
    cache.pointee.depotLimit.add(1, ordering: .relaxed)
    magazines.changeFullLimit(by: 1)
    return true
  }

  /// Takes back what `raiseFullLimit` has allowed, or so much of it.
  func lowerFullLimit(atMost most: Int = .max) {
    let depotLimit = cache.pointee.depotLimit.exchange(0, ordering: .relaxed)
    let change = min(depotLimit, most)
    cache.pointee.depotLimit.add(depotLimit - change, ordering: .relaxed)
    kmem.state.pointee.depotBytes.subtract(change * magazines.rounds * chunk, ordering: .relaxed)
    magazines.changeFullLimit(by: -change)
  }

  /// Notes that slabs without an object in use became more or fewer.
  private func noteSpare(_ slab: Slab, _ sign: Int) {
    kmem.state.pointee.spareFrames.add(sign * Int(slab.order.frames.rawValue), ordering: .relaxed)
  }

  // MARK: Making and giving back slabs

  /// A slab of its own frames, every object constructed and free, on no list yet; nil without memory.
  /// Falls back on smaller slabs where no run is to be had. Calls the constructor: no lock is held.
  func makeSlab(isAudited: Bool, priority: AllocationPriority) -> Slab? {
    if machine.failsHere(.kmem) { return nil }
    var order = Self.preferredOrder(chunk: chunk, isAudited: isAudited)
    while true {
      let objects = Self.objects(chunk: chunk, order: order, isAudited: isAudited)
      guard objects > 0 else { return nil }
      if let frame = try? physical.allocate(order, role: .slab, priority: priority) {
        let tableBytes = Slab.tableBytes(objects: objects, isAudited: isAudited)
        var tables: UnsafeMutableRawPointer?
        if tableBytes > 0 {
          tables = kmem.takeOwn(tableBytes, priority: priority)
          guard tables != nil else {
            physical.free(frame, order)
            return nil
          }
        }
        let slab = Slab.create(
          frame, order, cache: cacheIndex, objects: objects, isAudited: isAudited, tables: tables,
          physical: physical,
          directMap: machine.directMap)
        construct(slab)
        return slab
      }
      guard order.rawValue > 0 else { return nil }
      order = Order(order.rawValue - 1)
    }
  }

  private func construct(_ slab: Slab) {
    for index in 0..<slab.objects {
      let object = object(slab, index)
      cache.pointee.constructor?(cache.pointee.context, object)
      setWord(of: object, FreeWord.of(object))
    }
    guard slab.isAudited else { return }
    let end = object(slab, slab.objects)
    for word in stride(from: 0, to: Self.guardBytes, by: 8) {
      (end + word).storeBytes(of: FreeWord.of(end + word), as: UInt64.self)
    }
  }

  /// Gives back slabs that were taken off their list, chained by their records. No lock is held.
  func giveBack(_ chain: FrameNumber) {
    var next = chain
    while next != .none {
      let slab = slab(next)
      next = slab.record.next
      if slab.isAudited && !slab.isDamaged { reportDamage(slab) }
      if let destructor = cache.pointee.destructor {
        for index in 0..<slab.objects { destructor(cache.pointee.context, object(slab, index)) }
      }
      if let tables = slab.tables { kmem.giveOwn(tables) }
      let order = slab.order
      for i in 0..<order.frames.rawValue {
        physical.record(slab.frame + PageCount(i)).unsafelyUnwrapped.queue = .none
      }
      physical.free(slab.frame, order)
    }
  }

  // MARK: Stray writes

  /// What a stray write has done to a free object, to the guard behind the last object of an audited slab, or to the
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

  /// What is wrong with object `index`, which is free.
  @inline(never) private func damage(_ slab: Slab, _ index: Int) -> Damage? {
    if !looksFree(object(slab, index)) { return Damage(kind: .writeAfterFree, slab: slab, index: index) }
    if slab.isAudited && index == slab.objects - 1 && !isGuardIntact(slab) {
      return Damage(kind: .overrun, slab: slab, index: index)
    }
    return nil
  }

  /// Reports what is wrong with a slab whose objects are all free and that goes back to the frames.
  private func reportDamage(_ slab: Slab) {
    for index in 0..<slab.objects {
      if let damage = damage(slab, index) { kmem.report(damage, self) }
    }
  }

  // MARK: Objects out of slabs, under the lock

  /// Takes up to `most` free objects out of plain or audited slabs, and hands each to `body`; ends early at one that
  /// was written to, whose slab gives out no more. The lowest free object of a slab comes first.
  @inline(__always) private func take(
    _ lists: inout SlabLists, isAudited: Bool, most: Int, _ found: inout Damage?,
    _ body: (Slab, Int, UnsafeMutableRawPointer) -> Void
  ) -> Int {
    var taken = 0
    while taken < most && found == nil {
      let first = isAudited ? lists.audited.next : lists.plain.next
      guard first != .none else { break }
      let slab = slab(first)
      let (from, before) = (place(slab), taken)
      if !slab.isMapSound { found = Damage(kind: .writeAfterFree, slab: slab, index: nil) }
      var number = 0
      while number < slab.mapWords && taken < most && found == nil {
        var free = slab.free(number)
        while free != 0 && taken < most {
          let index = number << 6 | free.trailingZeroBitCount
          let object = object(slab, index)
          if !looksFree(object) || isAudited {
            found = damage(slab, index)
            if found != nil { break }
          }
          // Else a free of the untouched object would have to ask the map.
          setWord(of: object, 0)
          body(slab, index, object)
          free &= free &- 1
          taken += 1
        }
        slab.setFree(number, free)
        number += 1
      }
      precondition(taken > before || found != nil, "a slab's map has fewer free objects than its count")
      let out = slab.out + taken - before
      if found != nil {
        slab.markDamaged()
        lists.lost += slab.objects - out
      }
      move(&lists, slab, from: from, out: out)
    }
    return taken
  }

  /// Takes up to `most` objects out of plain slabs.
  func take(
    _ lists: inout SlabLists, into words: UnsafeMutablePointer<UInt>, most: Int, _ found: inout Damage?
  ) -> Int {
    var count = 0
    return take(&lists, isAudited: false, most: most, &found) { _, _, object in
      words[count] = UInt(bitPattern: object)
      count += 1
    }
  }

  /// Takes one object out of an audited slab, and notes who has it.
  func takeAudited(
    _ lists: inout SlabLists, _ period: UInt16, size: Int, type: UInt16, at site: CallSite,
    _ found: inout Damage?
  ) -> UnsafeMutableRawPointer? {
    var taken: UnsafeMutableRawPointer?
    _ = take(&lists, isAudited: true, most: 1, &found) { slab, index, object in
      let entry = slab.entry(index)
      entry.pointee.period = period
      entry.pointee.size = UInt16(truncatingIfNeeded: size)
      entry.pointee.type = type
      entry.pointee.allocatedAt = site
      taken = object
    }
    return taken
  }

  /// Sets the count of a slab that is at `from`, and puts it on the list where it belongs now.
  private func move(_ lists: inout SlabLists, _ slab: Slab, from: Place, out: Int) {
    lists.out += out - slab.out
    slab.out = out
    let to = place(slab)
    guard from != to else { return }
    if slab.isAudited {
      lists.audited.move(slab, from: from, to: to, physical)
    } else {
      lists.plain.move(slab, from: from, to: to, physical)
      if from == .free { lists.fewestFree = min(lists.fewestFree, lists.plain.free.count) }
    }
    if from == .free {
      noteSpare(slab, -1)
    } else if to == .free {
      noteSpare(slab, 1)
    }
  }

  enum Place { case free, partial, full }

  /// The list where a slab belongs by its counts. A damaged one gives nothing out any more.
  func place(_ slab: Slab) -> Place {
    let out = slab.out
    return out == slab.objects || slab.isDamaged ? .full : out == 0 ? .free : .partial
  }

  /// Adds a slab fresh from `makeSlab`.
  func insert(_ lists: inout SlabLists, _ slab: Slab) {
    if slab.isAudited {
      lists.audited.free.put(slab, physical)
    } else {
      lists.plain.free.put(slab, physical)
    }
    lists.frames += Int(slab.order.frames.rawValue)
    lists.objects += slab.objects
    lists.created += 1
    kmem.state.pointee.slabFrames.add(Int(slab.order.frames.rawValue), ordering: .relaxed)
    noteSpare(slab, 1)
  }

  /// Puts object `index` back into its slab; a slab that is not needed goes to the front of `chain`.
  func put(
    _ lists: inout SlabLists, _ slab: Slab, _ index: Int, at site: CallSite, _ chain: inout FrameNumber
  ) {
    let object = object(slab, index)
    let from = place(slab)
    setWord(of: object, FreeWord.of(object))
    slab.markFree(index)
    if slab.isAudited { slab.entry(index).pointee.freedAt = site }
    // A damaged slab stays where it is for good.
    if slab.isDamaged { lists.lost += 1 }
    move(&lists, slab, from: from, out: slab.out - 1)
    guard slab.out == 0 && !slab.isDamaged else { return }
    let others = (slab.isAudited ? lists.audited.free.count : lists.plain.free.count) - 1
    if !keeps(slab, beside: others) { unlinkFree(&lists, slab, &chain) }
  }

  /// Takes a slab whose objects are all free off its list.
  func unlinkFree(_ lists: inout SlabLists, _ slab: Slab, _ chain: inout FrameNumber) {
    if slab.isAudited {
      lists.audited.free.remove(slab, physical)
    } else {
      lists.plain.free.remove(slab, physical)
      lists.fewestFree = min(lists.fewestFree, lists.plain.free.count)
    }
    lists.frames -= Int(slab.order.frames.rawValue)
    lists.objects -= slab.objects
    lists.released += 1
    kmem.state.pointee.slabFrames.subtract(Int(slab.order.frames.rawValue), ordering: .relaxed)
    noteSpare(slab, -1)
    slab.record.next = chain
    chain = slab.frame
  }
}
