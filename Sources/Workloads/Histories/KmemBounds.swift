// Bounds in the history of kmem: a cache and a type with limits that change, a zone, and moments at which memory is
// gone.
//
// The model is a few counts. They say whether a request is below its limit, and within the demand of the zone. A
// request below its limit is refused only where no frame is free for its priority. One within the demand is never
// refused, and one at a limit always. Some requests may wait until a tick that has passed: they do all that a waiter
// does but sleep.

import Kmem
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// The sources of objects that have a bound, and the model of each.
struct KmemBounds {
  /// A source, by its number in the slot of an object.
  enum Source: UInt64 { case cache = 5, type, zone, demand }

  static var cacheSize: UInt64 { 320 }
  static var zoneSize: UInt64 { 168 }
  static var zoneDemand: Int { 40 }
  static var cacheName: ShortName { ShortName("history, limited") }
  static var zoneName: ShortName { ShortName("history, zone") }

  let cache: ObjectCache
  let type: LimitedType
  let zone: ObjectCache
  /// The type of the objects of the cache and the zone.
  let plain: MemoryType
  /// The sizes of kmem's classes, the smallest first.
  private var classes = InlineArray<64, UInt64>(repeating: .max)

  // The model.
  var cacheLimit: Int?
  var typeLimit: UInt64?
  var zoneLimit: Int?
  var cacheInUse = 0
  var cacheRefused: UInt64 = 0
  var typeBytes: UInt64 = 0
  var zoneInUse = 0
  /// Objects of the zone that were allocated above normal priority.
  var drawn = 0
  /// The block that was taken last while memory is gone; each has the one before it in its first word.
  var taken = FrameNumber.none

  init(_ kmem: KmemAllocator, _ plain: MemoryType) throws(KmemError) {
    self.plain = plain
    type = try kmem.limitedType(named: Self.cacheName, limit: .zero)
    cache = try kmem.createCache(name: Self.cacheName, size: ByteCount(Self.cacheSize))
    do throws(KmemError) {
      zone = try kmem.createZone(
        name: Self.zoneName, size: ByteCount(Self.zoneSize), demand: Self.zoneDemand, type: plain)
    } catch {
      kmem.destroy(cache)
      throw error
    }
    var count = 0
    kmem.forEachCache {
      guard $0.isSizeClass else { return }
      classes[count] = $0.spacing.rawValue
      count += 1
    }
  }

  func end(_ kmem: KmemAllocator) {
    kmem.destroy(zone)
    kmem.destroy(cache)
    type.limit = .zero
  }

  /// The bytes that an object of a size takes: those of its class, or its pages.
  func bytes(_ size: UInt64) -> UInt64 {
    for i in 0..<64 where classes[i] != .max && classes[i] >= size { return classes[i] }
    return ByteCount(size).pagesRoundedUp.bytes.rawValue
  }
}

extension SeededHistory {
  /// The answer that the model expects to a request.
  private enum Expectation { case refused, granted, grantedWithMemory, either }

  /// A request, and the refusals that were recorded before it.
  private struct Request {
    var priority: AllocationPriority
    var wait: WaitPolicy
    var refusals: UInt64
  }

  /// A policy that lets no thread sleep: at interrupt priority no request does, and this tick has passed.
  mutating func waitPolicy(_ priority: AllocationPriority) -> WaitPolicy {
    random.oneIn(2) ? .forbidden : priority == .interrupt ? .allowed : .until(Tick(1))
  }

  private mutating func request(_ priority: AllocationPriority) -> Request {
    Request(priority: priority, wait: waitPolicy(priority), refusals: system.failures.count)
  }

  mutating func requestBounded(_ bounds: inout KmemBounds) {
    switch random.below(4) {
    case 0: requestFromCache(&bounds)
    case 1: requestOfType(&bounds)
    default: requestFromZone(&bounds, priority())
    }
  }

  private mutating func requestFromCache(_ bounds: inout KmemBounds) {
    let request = request(priority())
    let isBelow = bounds.cacheInUse < bounds.cacheLimit ?? .max
    let object = bounds.cache.alloc(type: bounds.plain, priority: request.priority, wait: request.wait)
    let source = Slot(a: 0, b: KmemBounds.cacheSize, c: KmemBounds.Source.cache.rawValue, d: granted)
    let expectation: Expectation = isBelow ? .grantedWithMemory : .refused
    if settle(object.map { VirtualAddress($0) }, source, expecting: expectation, request) {
      bounds.cacheInUse += 1
    } else {
      bounds.cacheRefused += 1
    }
  }

  private mutating func requestOfType(_ bounds: inout KmemBounds) {
    let size = random.oneIn(8) ? 10881 + random.below(20_000) : random.below(8 << random.below(10))
    let (bytes, limit) = (bounds.bytes(size), bounds.typeLimit ?? .max)
    var request = request(priority())
    // More than the limit is refused at once, however long it may wait.
    if bytes > limit { request.wait = .allowed }
    let object = system.kmem.alloc(
      ByteCount(size), type: bounds.type, priority: request.priority, wait: request.wait)
    // Large pages need addresses and tables besides.
    let expectation: Expectation =
      bounds.typeBytes + bytes > limit ? .refused : size > Page.size ? .either : .grantedWithMemory
    let source = Slot(a: 0, b: size, c: KmemBounds.Source.type.rawValue, d: granted)
    if settle(object.map { VirtualAddress($0) }, source, expecting: expectation, request) {
      bounds.typeBytes += bytes
    }
    checkType(bounds)
  }

  /// Requests an object of the zone; answers whether it was granted.
  @discardableResult private mutating func requestFromZone(
    _ bounds: inout KmemBounds, _ priority: AllocationPriority
  ) -> Bool {
    let request = request(priority)
    var expectation = Expectation.grantedWithMemory
    if bounds.zoneInUse >= bounds.zoneLimit ?? .max {
      expectation = .refused
    } else if priority != .normal && bounds.drawn < KmemBounds.zoneDemand {
      expectation = .granted
    }
    let object = bounds.zone.alloc(type: bounds.plain, priority: priority, wait: request.wait)
    let kind = priority == .normal ? KmemBounds.Source.zone : .demand
    let source = Slot(a: 0, b: KmemBounds.zoneSize, c: kind.rawValue, d: granted)
    let isGranted = settle(object.map { VirtualAddress($0) }, source, expecting: expectation, request)
    if isGranted {
      bounds.zoneInUse += 1
      if kind == .demand { bounds.drawn += 1 }
    }
    let free = checkZone(bounds)
    if free < KmemBounds.zoneDemand {
      require(!isGranted || kind == .demand, "a request of normal priority used the demand of a zone")
      require(isMemoryGone(.normal), "a zone did not replenish its demand")
    }
    return isGranted
  }

  /// Compares the answer to a request with the model, and records the object. Answers whether there is one.
  private mutating func settle(
    _ object: VirtualAddress?, _ source: Slot, expecting expectation: Expectation, _ request: Request
  ) -> Bool {
    guard let object else {
      require(system.failures.count == request.refusals + 1, "a refusal was not recorded once")
      require(expectation != .granted, "a zone refused a request within its demand")
      if expectation == .grantedWithMemory {
        require(isMemoryGone(request.priority), "a request below its limit was refused with frames free")
      }
      countRefusal(UInt8(source.c))
      return false
    }
    require(expectation != .refused, "a request at its limit was granted")
    require(system.failures.count == request.refusals, "a request that was granted was recorded")
    recordObject(object, source)
    return true
  }

  /// Whether no slab can be made: it takes a frame, and perhaps one for its tables.
  private func isMemoryGone(_ priority: AllocationPriority) -> Bool {
    system.physical.freeCount <= system.physical.reserve(for: priority) + .one
  }

  // MARK: Changes

  /// Changes a limit, takes all memory, or frees it.
  mutating func changeBounds(_ bounds: inout KmemBounds) {
    switch random.below(5) {
    case 0:
      bounds.cacheLimit = random.oneIn(8) ? nil : Int(1 + random.below(64))
      bounds.cache.setLimit(bounds.cacheLimit)
      require(bounds.cache.limit == bounds.cacheLimit, "a cache has another limit than it was given")
    case 1:
      bounds.typeLimit = random.oneIn(8) ? nil : 1 + random.below(128 << 10)
      bounds.type.limit = ByteCount(bounds.typeLimit ?? 0)
    case 2:
      bounds.zoneLimit = random.oneIn(2) ? nil : Int(1 + random.below(128))
      bounds.zone.setLimit(bounds.zoneLimit)
      checkZone(bounds)
    case 3: takeMemory(&bounds)
    default: freeMemory(&bounds)
    }
  }

  /// Takes every frame that is free, and then objects of the zone until it refuses one.
  private mutating func takeMemory(_ bounds: inout KmemBounds) {
    var order = BlockOrder(11)
    while true {
      let block = try? system.physical.allocateUnlogged(
        order, role: .wired, priority: .interrupt, for: FrameOwner("a history of kmem"))
      if let block {
        system.machine.directMap.pointer(to: block).storeBytes(
          of: UInt64(order.rawValue) << 32 | UInt64(bounds.taken.rawValue), as: UInt64.self)
        bounds.taken = block
        fold(UInt64(block.rawValue))
      } else if order > BlockOrder(0) {
        order = BlockOrder(order.rawValue - 1)
      } else {
        break
      }
    }
    while used < Self.capacity - 1 && broken == nil {
      if !requestFromZone(&bounds, random.oneIn(2) ? .system : .interrupt) { break }
    }
    requestFromZone(&bounds, .normal)
  }

  /// Frees the frames of `takeMemory`.
  mutating func freeMemory(_ bounds: inout KmemBounds) {
    while bounds.taken != .none {
      let block = bounds.taken
      let word = system.machine.directMap.pointer(to: block).load(as: UInt64.self)
      bounds.taken = FrameNumber(UInt32(truncatingIfNeeded: word))
      system.physical.free(FrameRun(first: block, count: BlockOrder(UInt8(word >> 32)).frames))
    }
  }

  /// Frees an object, whose slot names a source of these.
  mutating func freeBounded(_ slot: Slot, _ bounds: inout KmemBounds) {
    guard let object = VirtualAddress(slot.a).pointer, let source = KmemBounds.Source(rawValue: slot.c) else {
      return
    }
    switch source {
    case .cache:
      bounds.cacheInUse -= 1
      bounds.cache.free(object, type: bounds.plain)
    case .type:
      bounds.typeBytes -= bounds.bytes(slot.b)
      system.kmem.free(object, size: ByteCount(slot.b), type: bounds.type)
      checkType(bounds)
    case .zone, .demand:
      bounds.zoneInUse -= 1
      if source == .demand { bounds.drawn -= 1 }
      bounds.zone.free(object, type: bounds.plain)
      checkZone(bounds)
    }
  }

  // MARK: Checks

  private mutating func checkType(_ bounds: KmemBounds) {
    let description = system.kmem.describe(bounds.type.type)
    require(description.bytes.rawValue == bounds.typeBytes, "a type counts other bytes than its objects take")
    require(description.limit?.rawValue == bounds.typeLimit, "a type has another limit than it was given")
  }

  /// Compares the zone with the model. Answers its free objects.
  @discardableResult private mutating func checkZone(_ bounds: KmemBounds) -> Int {
    var found: Int?
    system.kmem.forEachZone { zone in
      guard zone.name == KmemBounds.zoneName else { return }
      require(zone.inUse == UInt64(bounds.zoneInUse), "a zone counts other objects than are in use")
      require(zone.limit == bounds.zoneLimit.map { UInt64($0) }, "a zone has another limit than it was given")
      require(zone.free + UInt64(bounds.drawn) >= zone.demand, "a zone did not keep its demand")
      require(zone.lowWater <= zone.free, "a zone had fewer free objects than it counted")
      fold(zone.free << 32 | zone.lowWater)
      found = Int(zone.free)
    }
    require(found != nil, "a zone is not listed")
    return found ?? 0
  }

  /// Compares the counts of the cache with a limit with the model.
  mutating func checkLimitedCache(_ bounds: KmemBounds) {
    system.kmem.forEachCache { cache in
      guard cache.name == KmemBounds.cacheName else { return }
      require(cache.failed == bounds.cacheRefused, "a cache counts other refusals than it made")
      require(cache.inUse == UInt64(bounds.cacheInUse), "a cache counts other objects than are in use")
    }
  }
}
