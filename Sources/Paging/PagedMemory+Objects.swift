// Creating and destroying memory objects, and how one of their pages becomes dirty, clean and free.

import BlockDevices
import Kmem
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension PagedMemory {
  /// Counts and records a request that a public call refuses. Returns the error.
  func refused(
    _ error: PagingError, _ name: ShortName, _ pages: PageCount, at site: CallSite = .unknown
  ) -> PagingError {
    counters.refusals.count()
    func refusedRequest() -> RefusedRequest {
      // The count is the caller's and may be anything.
      let bytes = ByteCount(min(pages.rawValue, UInt64.max >> Page.shift) << Page.shift)
      var refused = RefusedRequest(
        .pageable, bytes, priority: .normal, requester: name, reason: error.description)
      refused.site = site
      return refused
    }
    machine.record(refusedRequest())
    return error
  }

  // MARK: Creation and destruction

  /// Creates an object of `pages` pages that read as zero until they are written to. Costs its slots, eight bytes a
  /// page. Throws `noMemory`; `badConstraint` for no pages.
  public func createObject(
    _ name: ShortName, _ pages: PageCount, priority: AllocationPriority = .normal
  ) throws(PagingError) -> MemoryObject {
    do throws(PagingError) {
      return try makeObject(name, pages, device: nil, from: 0, priority: priority)
    } catch {
      throw refused(error, name, pages)
    }
  }

  /// Creates an object whose pages are `pages` pages of `device` from `first` on. Errors as above, and
  /// `badConstraint` for pages beyond the device.
  public func createObject(
    _ name: ShortName, on device: BlockDevice, from first: PageCount, _ pages: PageCount
  ) throws(PagingError) -> MemoryObject {
    guard first <= device.pageCount, pages <= device.pageCount - first else {
      throw refused(.badConstraint, name, pages)
    }
    do throws(PagingError) {
      return try makeObject(name, pages, device: device, from: first.rawValue, priority: .normal)
    } catch {
      throw refused(error, name, pages)
    }
  }

  private func makeObject(
    _ name: ShortName, _ pages: PageCount, device: BlockDevice?, from first: UInt64,
    priority: AllocationPriority
  ) throws(PagingError) -> MemoryObject {
    guard pages > .zero, pages.rawValue < 1 << 40 else { throw .badConstraint }
    if machine.failsHere(.paging) { throw .noMemory }
    let slots = try FrameArray(
      count: Int(pages.rawValue), initial: PageSlot.untouched.rawValue, physical: physical, machine: machine,
      priority: priority)
    guard let memory = state.objectCache.allocUnlogged(type: state.type, priority: priority) else {
      slots.free()
      throw .noMemory
    }
    guard let number = reserveNumber() else {
      state.objectCache.free(memory, type: state.type)
      slots.free()
      throw .noMemory
    }
    let object = MemoryObject(memory.bindMemory(to: MemoryObject.State.self, capacity: 1))
    object.storage.initialize(
      to: MemoryObject.State(
        number: number, name: name, pageCount: pages.rawValue, slots: slots, device: device,
        deviceFirst: first, core: Locked(.pagingObject, MemoryObject.Core())))
    state.numbers.withLock { $0.set(number, memory) }
    counters.objects.count()
    if device != nil { counters.deviceObjects.count() }
    return object
  }

  /// Reserves a number; when none is free, the table grows by a frame.
  private func reserveNumber() -> UInt32? {
    if let number = state.numbers.withLock({ $0.reserve() }) { return number }
    if machine.failsHere(.paging) { return nil }
    do throws(PhysicalMemoryError) {
      let frame = try physical.allocateUnlogged(
        BlockOrder(0), role: .paging, priority: .system, for: FrameOwner("Paging, numbers of objects"))
      let table = machine.directMap.pointer(to: frame)
      table.initializeMemory(as: UInt64.self, repeating: 0, count: Int(ObjectNumbers.tableLength))
      let isUsed = state.numbers.withLock { $0.grow(table) }
      if !isUsed { physical.free(FrameRun(first: frame, count: .one)) }
      return state.numbers.withLock { $0.reserve() }
    } catch {
      return nil
    }
  }

  /// The object with that number, if one exists.
  public func object(numbered number: UInt32) -> MemoryObject? {
    guard let memory = state.numbers.withLock({ $0.memory(number) }) else { return nil }
    return MemoryObject(memory.assumingMemoryBound(to: MemoryObject.State.self))
  }

  /// Calls `body` with each object, by number. The caller ensures that none is destroyed during the call.
  package func forEachObject<E>(_ body: (MemoryObject) throws(E) -> Void) throws(E) {
    let limit = state.numbers.withLock { $0.limit }
    for number in 0..<limit {
      if let object = object(numbered: number) { try body(object) }
    }
  }

  /// Frees an object with all its pages and its swap; waits for the pages that are under way. An object
  /// that a range still maps, or with a page that is wired or held, is a fault report, and nothing has changed.
  public func destroy(_ object: MemoryObject) {
    if let fault = reasonNotToDestroy(object) { return machine.report(fault) }
    for index in 0..<object.state.pageCount { discard(object, index) }
    if object.kind == .device { counters.deviceObjects.uncount() }
    state.numbers.withLock { $0.release(object.number) }
    object.state.slots.free()
    state.objectCache.free(UnsafeMutableRawPointer(object.storage), type: state.type)
    counters.objects.uncount()
  }

  private func reasonNotToDestroy(_ object: MemoryObject) -> FaultReport? {
    let number = UInt64(object.number)
    let isMapped = object.state.core.withLock { $0.firstEntry != nil }
    if isMapped {
      var fault = FaultReport(.leak, "an object was destroyed that a range still maps", number, .identifier)
      fault.owner = object.name
      return fault
    }
    for index in 0..<object.state.pageCount {
      let held = object.acquire()
      let slot = held.slot(index).value
      let busyWord = slot.presence == .resident ? record(slot.frame).busyWord : .none
      held.release()
      guard busyWord.wires > 0 || busyWord.holds > 0 else { continue }
      var fault = FaultReport(
        .leak, "an object was destroyed with a page that is wired or held", UInt64(slot.frame.rawValue),
        .frame)
      fault.given = UInt64(busyWord.rawValue)
      fault.owner = object.name
      return fault
    }
    return nil
  }

  /// Frees one page of an object that no range maps, wherever the page is.
  private func discard(_ object: MemoryObject, _ index: UInt64) {
    while true {
      let held = object.acquire()
      let slot = held.slot(index)
      let value = slot.value
      switch value.presence {
      case .absent, .cached:
        slot.value = .untouched
        releaseSwap(of: value, held)
        held.release()
        if value.presence == .cached {
          physical.discard(cached: value.frame, owner: object.number, index: index)
        }
        return
      case .resident:
        let record = record(value.frame)
        guard record.tryXbusy() else {
          waitUntilUnused(record, held)
          continue
        }
        markClean(value.frame, record)
        slot.value = .untouched
        releaseSwap(of: value, held)
        held.core.resident -= 1
        held.release()
        withQueues { _ = $0.remove(value.frame) }
        free(value.frame, record, as: .dropped)
        return
      }
    }
  }

  /// Frees a page's copy in swap. The caller writes the slot.
  func releaseSwap(of slot: PageSlot, _ held: borrowing HeldObject) {
    guard slot.swap != .none else { return }
    swap.free(slot.swap)
    held.core.inSwap -= 1
  }

  /// Frees a frame that is xbusy, in no queue and no longer the object's. The caller holds no lock.
  func free(_ frame: FrameNumber, _ record: FrameRecordPointer, as identity: PageIdentity) {
    let waiters: Waiters = record.busyWord.hasWaiters ? .present : .absent
    if waiters == .present { record.busyWord = .xbusy }
    if identity == .cached { counters.cached.count() } else { counters.dropped.count() }
    physical.free(page: frame, identity)
    wake(waiters)
  }

  // MARK: Dirty and clean

  /// Records that the page holds data that no device has; its copy in swap is freed.
  func markDirty(
    _ slot: PageSlotPointer, _ frame: FrameNumber, _ record: FrameRecordPointer, _ held: borrowing HeldObject
  ) {
    if record.pageFlags.contains(.dirty) { return }
    record.pageFlags.insert(.dirty)
    physical.countDirty(frame)
    let value = slot.value
    guard value.swap != .none else { return }
    releaseSwap(of: value, held)
    slot.value = PageSlot(value.presence, value.frame, .none)
  }

  /// Records that the page is not dirty. The caller holds the object's lock.
  @inline(__always) func markClean(_ frame: FrameNumber, _ record: FrameRecordPointer) {
    guard record.pageFlags.contains(.dirty) else { return }
    record.pageFlags.remove(.dirty)
    physical.countClean(frame)
  }
}
