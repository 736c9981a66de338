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
  let column: Int
  /// Bytes of an object as its users know it.
  let size: Int
  /// Bytes from one object to the next.
  let chunk: Int
  /// 2^32 over it, rounded up.
  let reciprocal: UInt64
  /// Where in a free object its word stands.
  let wordOffset: Int
  let constructor: ObjectHook?
  let destructor: ObjectHook?
  let context: UnsafeMutableRawPointer?
  /// The column of the class that its magazines are taken from.
  let magazineColumn: Int
  /// Full magazines that its depot keeps in any case, and beyond that at the moment.
  let fullLimit: Int
  let raised = Atomic<Int>(0)
  let lists: Locked<SlabLists>
  /// The period of auditing, 0 when audit is off.
  let audit = Atomic<UInt32>(0)
  /// Periods so far.
  let periods = Atomic<UInt32>(0)
  let failed = Atomic<UInt64>(0)
  /// False in a descriptor that nobody uses; all zeroes is such a one.
  let isLive = Atomic<Bool>(false)
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
  /// Objects that can't be given out because somebody wrote to a free one.
  var lost = 0
}

/// A cache in place: a handle.
struct CachePointer {
  let cache: UnsafeMutablePointer<Cache>
  let kmem: Kmem

  var magazines: Magazines { Magazines(at: UnsafeMutableRawPointer(cache) + Cache.depotOffset) }
  var physical: PhysicalMemory { kmem.state.pointee.physical }
  var machine: Machine { kmem.state.pointee.machine }
  var column: Int { cache.pointee.column }
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

  func word(of object: UnsafeMutableRawPointer) -> FreeWord {
    FreeWord(rawValue: object.load(fromByteOffset: cache.pointee.wordOffset, as: UInt64.self))
  }
  func setWord(of object: UnsafeMutableRawPointer, _ word: FreeWord) {
    object.storeBytes(of: word.rawValue, toByteOffset: cache.pointee.wordOffset, as: UInt64.self)
  }

  // MARK: Geometry

  static func objects(chunk: Int, order: Order, isAudited: Bool) -> Int {
    (4096 << Int(order.rawValue)) / (chunk + (isAudited ? MemoryLayout<AuditEntry>.stride : 0))
  }

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
    cache.pointee.raised.add(1, ordering: .relaxed)
    magazines.changeFullLimit(by: 1)
    return true
  }

  /// Takes back what `raiseFullLimit` has allowed, or so much of it.
  func lowerFullLimit(atMost most: Int = .max) {
    let raised = cache.pointee.raised.exchange(0, ordering: .relaxed)
    let change = min(raised, most)
    cache.pointee.raised.add(raised - change, ordering: .relaxed)
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
  func makeSlab(isAudited: Bool, level: Level) -> Slab? {
    if machine.failsHere(.kmem) { return nil }
    var order = Self.preferredOrder(chunk: chunk, isAudited: isAudited)
    while true {
      let objects = Self.objects(chunk: chunk, order: order, isAudited: isAudited)
      guard objects > 0 else { return nil }
      if let frame = try? physical.allocate(order, role: .slab, level: level) {
        let slab = Slab.create(
          frame, order, cache: column, objects: objects, isAudited: isAudited, physical: physical,
          directMap: machine.directMap)
        linkAll(slab)
        return slab
      }
      guard order.rawValue > 0 else { return nil }
      order = Order(order.rawValue - 1)
    }
  }

  private func linkAll(_ slab: Slab) {
    let objects = slab.objects
    for index in 0..<objects {
      let object = object(slab, index)
      cache.pointee.constructor?(cache.pointee.context, object)
      let next = index + 1 < objects ? UInt16(index + 1) : Slab.none
      if slab.isAudited {
        slab.entry(index).initialize(
          to: AuditEntry(
            link: next, period: 0, size: 0, type: 0, allocatedAt: .unknown, freedAt: .unknown))
      } else {
        setWord(of: object, FreeWord(at: object, next: next))
      }
    }
    slab.firstFree = 0
  }

  /// Gives back slabs that were taken off their list, chained by their records. No lock is held.
  func giveBack(_ chain: FrameNumber) {
    var next = chain
    while next != .none {
      let slab = slab(next)
      next = slab.record.next
      if let destructor = cache.pointee.destructor {
        for index in 0..<slab.objects { destructor(cache.pointee.context, object(slab, index)) }
      }
      let order = slab.order
      for i in 0..<order.frames.rawValue {
        physical.record(slab.frame + PageCount(i)).unsafelyUnwrapped.queue = .none
      }
      physical.free(slab.frame, order)
    }
  }

  // MARK: Objects out of slabs, under the lock

  /// What a look into the slabs under the lock came upon; told when the lock is dropped.
  struct Findings {
    var damaged: UInt = 0
  }

  /// Takes up to `most` objects out of plain slabs.
  func take(
    _ lists: inout SlabLists, into words: UnsafeMutablePointer<UInt>, most: Int, _ findings: inout Findings
  ) -> Int {
    var taken = 0
    while taken < most {
      let first = lists.plain.partial.first != .none ? lists.plain.partial.first : lists.plain.free.first
      guard first != .none else { break }
      let slab = slab(first)
      let wasFree = slab.out == 0
      var out = slab.out
      var next = slab.firstFree
      while taken < most && next != Slab.none {
        let object = object(slab, Int(next))
        let word = word(of: object)
        guard word.isMark(of: object) && (word.next == Slab.none || Int(word.next) < slab.objects) else {
          findings.damaged = UInt(bitPattern: object)
          slab.isDamaged = true
          lists.lost += slab.objects - out
          next = Slab.none
          break
        }
        // Else who frees it untouched would look like one who frees it twice.
        setWord(of: object, FreeWord(rawValue: 0))
        words[taken] = UInt(bitPattern: object)
        taken += 1
        out += 1
        next = word.next
      }
      lists.out += out - slab.out
      slab.firstFree = next
      slab.out = out
      if wasFree {
        lists.plain.free.remove(slab, physical)
        lists.fewestFree = min(lists.fewestFree, lists.plain.free.count)
        noteSpare(slab, -1)
      } else if next == Slab.none {
        lists.plain.partial.remove(slab, physical)
      }
      if next == Slab.none {
        lists.plain.full.put(slab, physical)
      } else if wasFree {
        lists.plain.partial.put(slab, physical)
      }
    }
    return taken
  }

  /// Takes one object out of an audited slab, and notes who has it.
  func takeAudited(
    _ lists: inout SlabLists, _ period: UInt16, size: Int, type: UInt16, at site: CallSite
  ) -> UnsafeMutableRawPointer? {
    let first = lists.audited.partial.first != .none ? lists.audited.partial.first : lists.audited.free.first
    guard first != .none else { return nil }
    let slab = slab(first)
    let index = Int(slab.firstFree)
    let entry = slab.entry(index)
    let next = entry.pointee.link
    if slab.out == 0 { noteSpare(slab, -1) }
    entry.pointee.link = AuditEntry.allocated
    entry.pointee.period = period
    entry.pointee.size = UInt16(truncatingIfNeeded: size)
    entry.pointee.type = type
    entry.pointee.allocatedAt = site
    move(&lists.audited, slab, firstFree: next, out: slab.out + 1)
    lists.out += 1
    return object(slab, index)
  }

  /// Sets the counts of a slab and puts it on the list where it belongs now.
  private func move(_ set: inout SlabSet, _ slab: Slab, firstFree: UInt16, out: Int) {
    let (from, to) = (place(slab, out: slab.out), place(slab, out: out))
    slab.firstFree = firstFree
    slab.out = out
    guard from != to else { return }
    switch from {
    case .free: set.free.remove(slab, physical)
    case .partial: set.partial.remove(slab, physical)
    case .full: set.full.remove(slab, physical)
    }
    switch to {
    case .free: set.free.put(slab, physical)
    case .partial: set.partial.put(slab, physical)
    case .full: set.full.put(slab, physical)
    }
  }

  enum Place { case free, partial, full }

  /// The list where a slab with so many objects out belongs. A damaged one gives nothing out any more.
  func place(_ slab: Slab, out: Int) -> Place {
    out == slab.objects || slab.isDamaged ? .full : out == 0 ? .free : .partial
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
    if slab.isAudited {
      let entry = slab.entry(index)
      entry.pointee.link = slab.firstFree
      entry.pointee.freedAt = site
      move(&lists.audited, slab, firstFree: UInt16(index), out: slab.out - 1)
    } else if slab.isDamaged {
      // Not given out again, nor linked: the list is not to be trusted. The slab stays for good.
      slab.out -= 1
      lists.lost += 1
    } else {
      setWord(of: object, FreeWord(at: object, next: slab.firstFree))
      move(&lists.plain, slab, firstFree: UInt16(index), out: slab.out - 1)
    }
    lists.out -= 1
    if slab.out == 0 && !slab.isDamaged {
      noteSpare(slab, 1)
      let others = (slab.isAudited ? lists.audited.free.count : lists.plain.free.count) - 1
      if !keeps(slab, beside: others) { unlinkFree(&lists, slab, &chain) }
    }
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

  /// Whether object `index` is free in its slab. Constant time where the object does not look so.
  func isFree(_ slab: Slab, _ index: Int) -> Bool {
    if slab.isAudited { return slab.entry(index).pointee.link != AuditEntry.allocated }
    guard word(of: object(slab, index)).isMark(of: object(slab, index)) else { return false }
    return isInFreeList(slab, index)
  }

  func isInFreeList(_ slab: Slab, _ index: Int) -> Bool {
    var next = slab.firstFree
    for _ in 0..<slab.objects {
      guard next != Slab.none, Int(next) < slab.objects else { return false }
      if Int(next) == index { return true }
      let object = object(slab, Int(next))
      next = slab.isAudited ? slab.entry(Int(next)).pointee.link : word(of: object).next
    }
    return false
  }
}
