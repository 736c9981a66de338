// Memory objects: pages 0 to n - 1 of something, wherever each happens to be.
//
// The descriptor comes from an object cache, the slots from single frames (FrameArray), all at creation: what
// comes later never needs memory for its metadata. A record names its object by a number (32 bits), which a
// table of two priorities turns into the descriptor.

import Kmem
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// What is behind an object's pages.
@frozen public enum ObjectKind: UInt8, Sendable {
  /// Nothing: pages begin as zero and go to swap.
  case anonymous
  /// An extent of a block device.
  case device
}

/// A memory object: a handle.
public struct MemoryObject: Equatable {
  struct State: ~Copyable {
    let lock = SpinLock(.pagingObject)
    let number: UInt32
    let name: Name
    let pageCount: UInt64
    let slots: FrameArray<UInt64>
    let device: BlockDevice?
    let deviceFirst: UInt64
  }
  /// Under the lock.
  struct Core {
    /// The ranges that show it.
    var firstEntry: UnsafeMutablePointer<MapEntry>?
    var resident: UInt64 = 0
    var inSwap: UInt64 = 0
  }
  let state: UnsafeMutablePointer<State>
  init(state: UnsafeMutablePointer<State>) { self.state = state }

  private static var coreOffset: Int { (MemoryLayout<State>.size + 63) & ~63 }
  static var size: Int { coreOffset + MemoryLayout<Core>.size }

  var core: UnsafeMutablePointer<Core> {
    (UnsafeMutableRawPointer(state) + Self.coreOffset).assumingMemoryBound(to: Core.self)
  }

  /// Numbers count from 1 and are used again.
  public var number: UInt32 { state.pointee.number }
  public var name: Name { state.pointee.name }
  public var pageCount: PageCount { PageCount(state.pointee.pageCount) }
  public var kind: ObjectKind { state.pointee.device == nil ? .anonymous : .device }

  @inline(__always) func lock() -> UInt64 { state.pointee.lock.lock() }
  @inline(__always) func unlock(_ interrupts: UInt64) { state.pointee.lock.unlock(interrupts) }
  @inline(__always) func withLock<R, E>(_ body: () throws(E) -> R) throws(E) -> R {
    let interrupts = lock()
    defer { unlock(interrupts) }
    return try body()
  }

  /// The slot of a page below `pageCount`. Lock held.
  @inline(__always) func slot(_ index: UInt64) -> PageSlotPointer {
    PageSlotPointer(state.pointee.slots.pointer(to: Int(index)))
  }

  static func make(
    at memory: UnsafeMutableRawPointer, _ number: UInt32, _ name: Name, _ pages: PageCount,
    _ slots: FrameArray<UInt64>,
    _ device: BlockDevice?, _ deviceFirst: UInt64
  ) -> MemoryObject {
    let state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        number: number, name: name, pageCount: pages.rawValue, slots: slots, device: device,
        deviceFirst: deviceFirst))
    (memory + coreOffset).bindMemory(to: Core.self, capacity: 1).initialize(to: Core())
    return MemoryObject(state: state)
  }

  public static func == (a: Self, b: Self) -> Bool { a.state == b.state }
}

/// What a page of an object is, for whoever looks.
public struct PageDescription: Sendable {
  public enum Place: UInt8, Sendable { case untouched, resident, cached, swapped, onDevice }
  public var place: Place
  public var frame: FrameNumber?
  public var flags: PageFlags = []
  public var busyWord = BusyWord.none
  public var queue: PageQueue?
}

extension PagedMemory {
  // MARK: Making and destroying

  /// An object of `pages` pages that read as zero until they are written to. Costs its slots, eight bytes a
  /// page. Throws `noMemory`; `badConstraint` for no pages.
  public func createObject(_ name: Name, _ pages: PageCount) throws(PagingError) -> MemoryObject {
    try makeObject(name, pages, nil, 0)
  }

  /// An object that shows `pages` pages of `device` from `first` on. Errors as above, and `badConstraint` for
  /// pages that the device has not.
  public func createObject(
    _ name: Name, on device: BlockDevice, from first: PageCount, _ pages: PageCount
  ) throws(PagingError) -> MemoryObject {
    guard first <= device.pageCount, pages <= device.pageCount - first else { throw .badConstraint }
    return try makeObject(name, pages, device, first.rawValue)
  }

  private func makeObject(
    _ name: Name, _ pages: PageCount, _ device: BlockDevice?, _ first: UInt64
  ) throws(PagingError) -> MemoryObject {
    guard pages > .zero, pages.rawValue < 1 << 40 else { throw .badConstraint }
    if machine.failsHere(.paging) { throw .noMemory }
    let slots = try FrameArray(
      count: Int(pages.rawValue), initial: PageSlot.untouched.rawValue, physical: physical, machine: machine)
    guard let memory = state.pointee.objectCache.alloc(type: state.pointee.type) else {
      slots.free()
      throw .noMemory
    }
    guard let number = reserveNumber() else {
      state.pointee.objectCache.free(memory, type: state.pointee.type)
      slots.free()
      throw .noMemory
    }
    let object = MemoryObject.make(at: memory, number, name, pages, slots, device, first)
    state.pointee.numbers.withLock { $0.set(number, memory) }
    counters.pointee.objects.count()
    if device != nil { counters.pointee.deviceObjects.count() }
    return object
  }

  /// A number and, when the table has no room, a frame for more of it.
  private func reserveNumber() -> UInt32? {
    if let number = state.pointee.numbers.withLock({ $0.reserve() }) { return number }
    if machine.failsHere(.paging) { return nil }
    do throws(PhysicalMemoryError) {
      let frame = try physical.allocate(Order(0), role: .paging, priority: .system)
      let table = machine.directMap.pointer(to: frame)
      table.initializeMemory(as: UInt64.self, repeating: 0, count: 512)
      let isTaken = state.pointee.numbers.withLock { $0.grow(table) }
      if !isTaken { physical.free(FrameRun(first: frame, count: .one)) }
      return state.pointee.numbers.withLock { $0.reserve() }
    } catch {
      return nil
    }
  }

  /// The object with that number, if there is one.
  public func object(numbered number: UInt32) -> MemoryObject? {
    guard let memory = state.pointee.numbers.withLock({ $0.memory(number) }) else { return nil }
    return MemoryObject(state: memory.assumingMemoryBound(to: MemoryObject.State.self))
  }

  /// Calls `body` with each object, by number. Nobody may destroy one meanwhile.
  public func forEachObject<E>(_ body: (MemoryObject) throws(E) -> Void) throws(E) {
    let limit = state.pointee.numbers.withLock { $0.limit }
    for number in 0..<limit {
      if let object = object(numbered: number) { try body(object) }
    }
  }

  /// Gives up an object with all its pages and its swap; waits for those that are under way. An object
  /// that a range still shows, or with a page that is wired or held: a fault report, and nothing has changed.
  public func destroy(_ object: MemoryObject) {
    guard let fault = reasonNotToDestroy(object) else {
      for index in 0..<object.state.pointee.pageCount { drop(object, index) }
      if object.kind == .device { counters.pointee.deviceObjects.uncount() }
      state.pointee.numbers.withLock { $0.release(object.number) }
      object.state.pointee.slots.free()
      state.pointee.objectCache.free(UnsafeMutableRawPointer(object.state), type: state.pointee.type)
      counters.pointee.objects.uncount()
      return
    }
    machine.report(fault)
  }

  private func reasonNotToDestroy(_ object: MemoryObject) -> FaultReport? {
    let number = UInt64(object.number)
    let interrupts = object.lock()
    let isShown = object.core.pointee.firstEntry != nil
    object.unlock(interrupts)
    var fault = FaultReport(.leak, "an object was destroyed that a range still shows", number, .identifier)
    fault.owner = object.name
    if isShown { return fault }
    for index in 0..<object.state.pointee.pageCount {
      let interrupts = object.lock()
      let slot = object.slot(index).value
      let busyWord = slot.presence == .resident ? record(slot.frame).busyWord : .none
      object.unlock(interrupts)
      guard busyWord.wires > 0 || busyWord.holds > 0 else { continue }
      fault = FaultReport(
        .leak, "an object was destroyed with a page that is wired or held", UInt64(slot.frame.rawValue),
        .frame)
      fault.given = UInt64(busyWord.rawValue)
      fault.owner = object.name
      return fault
    }
    return nil
  }

  /// Gives up one page of an object that no range shows, wherever it is.
  private func drop(_ object: MemoryObject, _ index: UInt64) {
    while true {
      let interrupts = object.lock()
      let slot = object.slot(index)
      let value = slot.value
      switch value.presence {
      case .absent, .cached:
        slot.value = .untouched
        releaseSwap(of: value, object)
        object.unlock(interrupts)
        if value.presence == .cached {
          physical.discard(cached: value.frame, owner: object.number, index: index)
        }
        return
      case .resident:
        let record = record(value.frame)
        guard record.tryXbusy() else {
          waitWhileClaimed(record, object, interrupts)
          continue
        }
        markClean(value.frame, record)
        slot.value = .untouched
        releaseSwap(of: value, object)
        object.core.pointee.resident -= 1
        object.unlock(interrupts)
        withQueues { _ = $0.remove(value.frame) }
        release(value.frame, record, .dropped)
        return
      }
    }
  }

  /// Lets go of a page's copy in swap. The object's lock is held; the slot is the caller's to write.
  func releaseSwap(of slot: PageSlot, _ object: MemoryObject) {
    guard slot.swap != .none else { return }
    swap.free(slot.swap)
    object.core.pointee.inSwap -= 1
  }

  /// Gives a frame back that is exclusive, in no queue and no longer the object's. No lock held.
  func release(_ frame: FrameNumber, _ record: FrameRecordPointer, _ identity: PageIdentity) {
    let waiters: WaitersAnswer = record.busyWord.hasWaiters ? .somebodyWaits : .nobodyWaits
    if waiters == .somebodyWaits { record.busyWord = .xbusy }
    if identity == .cached { counters.pointee.cached.count() } else { counters.pointee.dropped.count() }
    physical.free(page: frame, identity)
    wake(waiters)
  }

  // MARK: Dirty and clean, under the object's lock

  /// From here on the page holds what no device has.
  func markDirty(
    _ slot: PageSlotPointer, _ frame: FrameNumber, _ record: FrameRecordPointer, _ object: MemoryObject
  ) {
    if record.pageFlags.contains(.dirty) { return }
    record.pageFlags.insert(.dirty)
    physical.noteDirty(frame)
    let value = slot.value
    guard value.swap != .none else { return }
    releaseSwap(of: value, object)
    slot.value = PageSlot(value.presence, value.frame, .none)
  }

  @inline(__always) func markClean(_ frame: FrameNumber, _ record: FrameRecordPointer) {
    guard record.pageFlags.contains(.dirty) else { return }
    record.pageFlags.remove(.dirty)
    physical.noteClean(frame)
  }

  // MARK: Looking

  /// Where a page of `object` is.
  public func describe(_ object: MemoryObject, page index: UInt64) -> PageDescription {
    guard index < object.state.pointee.pageCount else { return PageDescription(place: .untouched) }
    let interrupts = object.lock()
    defer { object.unlock(interrupts) }
    let slot = object.slot(index).value
    let elsewhere: PageDescription.Place =
      slot.swap != .none ? .swapped : object.kind == .device ? .onDevice : .untouched
    switch slot.presence {
    case .absent: return PageDescription(place: elsewhere)
    case .cached:
      // The hint may have gone stale.
      let what = physical.whatIs(slot.frame)
      let isStillThere =
        what.pageFlags.contains(.cached) && what.owner == object.number && what.index == index
      return isStillThere
        ? PageDescription(place: .cached, frame: slot.frame) : PageDescription(place: elsewhere)
    case .resident:
      let record = record(slot.frame)
      return PageDescription(
        place: .resident, frame: slot.frame, flags: record.pageFlags, busyWord: record.busyWord,
        queue: PageQueue(record.queue))
    }
  }

  /// Pages of an object in memory, and with a copy in swap.
  public func residentCount(_ object: MemoryObject) -> PageCount {
    let interrupts = object.lock()
    defer { object.unlock(interrupts) }
    return PageCount(object.core.pointee.resident)
  }
  public func swapCount(_ object: MemoryObject) -> PageCount {
    let interrupts = object.lock()
    defer { object.unlock(interrupts) }
    return PageCount(object.core.pointee.inSwap)
  }
}

/// The numbers of objects: a table of 512 tables of 512 words. A word is a descriptor's address, or twice the
/// next free number plus one.
struct ObjectNumbers {
  static var storage: ByteCount { ByteCount(512 * 8) }
  private let tables: UnsafeMutablePointer<UInt>
  private(set) var limit: UInt32 = 0
  /// 0, which is never given out, ends the list.
  private var firstFree: UInt32 = 0

  init(_ memory: UnsafeMutableRawPointer) {
    tables = memory.bindMemory(to: UInt.self, capacity: 512)
    for i in 0..<512 { tables[i] = 0 }
  }

  private func word(_ number: UInt32) -> UnsafeMutablePointer<UInt>? {
    guard number < limit, let table = UnsafeMutablePointer<UInt>(bitPattern: tables[Int(number >> 9)]) else {
      return nil
    }
    return table + Int(number & 511)
  }

  /// Makes 512 more numbers out of a zeroed page. False when there are as many as can be.
  mutating func grow(_ table: UnsafeMutableRawPointer) -> Bool {
    guard firstFree == 0, limit < 512 * 512 else { return false }
    tables[Int(limit >> 9)] = UInt(bitPattern: table)
    let first = limit
    limit += 512
    for number in stride(from: limit - 1, through: max(1, first), by: -1) {
      word(number)?.pointee = UInt(firstFree) * 2 + 1
      firstFree = number
    }
    return true
  }

  mutating func reserve() -> UInt32? {
    guard firstFree != 0, let word = word(firstFree) else { return nil }
    let number = firstFree
    firstFree = UInt32(word.pointee / 2)
    word.pointee = 0
    return number
  }

  func set(_ number: UInt32, _ memory: UnsafeMutableRawPointer) {
    word(number)?.pointee = UInt(bitPattern: memory)
  }

  mutating func release(_ number: UInt32) {
    word(number)?.pointee = UInt(firstFree) * 2 + 1
    firstFree = number
  }

  func memory(_ number: UInt32) -> UnsafeMutableRawPointer? {
    guard let word = word(number), word.pointee & 1 == 0 else { return nil }
    return UnsafeMutableRawPointer(bitPattern: word.pointee)
  }
}
