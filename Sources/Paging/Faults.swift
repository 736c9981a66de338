// Faults: a page is brought to where it is wanted.
//
// One loop for all who want a page (a fault, a wire, a hold): look at the slot under the object's lock; what is
// missing is fetched without it, and then the slot is looked at again. A zero page takes a frame; a page in
// swap or on a device takes a frame and a read, during which it is resident and exclusive, so that others who
// want it sleep and nobody reads it twice. A cached page is taken back under the lock, without I/O.
//
// A read that fails leaves the page where it was, and only the one who asked gets the error; those who slept
// look again and ask themselves.

import CPlatform
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// Whether what was to be done with a page is done, or somebody has it exclusive meanwhile.
enum Settled { case done, busy }

extension PagedMemory {
  /// Makes the page at `address` accessible for `kind`: what the handler of page faults calls, and whoever wants
  /// to see an error instead of being stopped by one. May sleep. No lock may be held.
  ///
  /// Throws `notPageable`, `protection`, `noMemory`; `inputOutput` and `corrupt` when the page can't be read.
  public func fault(_ address: VirtualAddress, _ kind: AccessKind) throws(PagingError) {
    assert(holdsNoSpinLock(), "a page fault with a spin lock held")
    counters.pointee.faults.count()
    guard let entry = enter(address) else { throw .notPageable }
    defer { leave(entry) }
    if kind == .write && !entry.pointee.protection.contains(.writable) { throw .protection }
    let object = entry.pointee.object
    do throws(PagingError) {
      try withPage(object, entry.pointee.index(address.rawValue), kind) { frame, record, _ in
        show(frame, record, at: address.page, entry.pointee.protection)
        return .done
      }
    } catch {
      counters.pointee.failedFaults.count()
      throw error
    }
  }

  /// As `fault`, for each page of a range: what comes before is in memory when a page fails.
  public func touch(
    _ address: VirtualAddress, _ count: PageCount, _ kind: AccessKind
  ) throws(PagingError) {
    for i in 0..<count.rawValue { try fault(address + PageCount(i), kind) }
  }

  /// The page at `address`, not to be moved or given up until `unhold`, for whoever reaches it by its
  /// physical address. Errors as `fault`; `tooManyHolds`.
  public func hold(_ address: VirtualAddress, _ kind: AccessKind) throws(PagingError) -> FrameNumber {
    guard let entry = enter(address) else { throw .notPageable }
    defer { leave(entry) }
    if kind == .write && !entry.pointee.protection.contains(.writable) { throw .protection }
    var held = FrameNumber.none
    try withPage(entry.pointee.object, entry.pointee.index(address.rawValue), kind) { frame, record, _ in
      switch record.tryHold() {
      case .held: held = frame
      case .busy: return .busy
      case .tooMany: break
      }
      return .done
    }
    if held == .none { throw .tooManyHolds }
    return held
  }

  /// Ends a hold. Of a page that nobody holds: a fault report.
  public func unhold(_ frame: FrameNumber) {
    guard let record = physical.record(frame), record.role == .pageable, let waiters = record.endHold() else {
      return machine.report(
        FaultReport(.notAllocated, "a page was let go that nobody holds", UInt64(frame.rawValue), .frame))
    }
    wake(waiters)
  }

  // MARK: The loop

  /// Makes page `index` of `object` resident, dirty if it is to be written, and runs `body` on it with the
  /// object's lock held and nobody exclusive; again when that says `busy`.
  func withPage(
    _ object: MemoryObject, _ index: UInt64, _ kind: AccessKind,
    _ body: (FrameNumber, FrameRecordPointer, PageSlotPointer) -> Settled
  ) throws(PagingError) {
    var patience = Patience.some
    var isTakenBack = false
    while true {
      let interrupts = object.lock()
      let slot = object.slot(index)
      var value = slot.value
      if value.presence == .cached {
        switch reactivate(object, index, slot, value) {
        case .taken:
          value = slot.value
          isTakenBack = true
        case .gone:
          object.unlock(interrupts)
          continue
        case .refused:
          object.unlock(interrupts)
          try makeRoom(&patience)
          continue
        }
      }
      guard value.presence == .resident else {
        object.unlock(interrupts)
        try pageIn(object, index, value)
        continue
      }
      let record = record(value.frame)
      if record.busyWord.isXbusy {
        waitWhileXbusy(record, object, interrupts)
        continue
      }
      if kind == .write { markDirty(slot, value.frame, record, object) }
      let settled = body(value.frame, record, slot)
      object.unlock(interrupts)
      if settled == .done {
        if isTakenBack { physical.checkLowMemory() }
        return
      }
    }
  }

  /// Maps a page at one of its addresses: writable only if it is dirty already. Object's lock held.
  ///
  /// A fault that raises a right sends no shootdown: its own processor has dropped the old mapping by the fault (SDM
  /// vol. 3, 4.10.4.1), and another one that still has it faults once more. `wire` invalidates the mapping everywhere.
  @discardableResult func show(
    _ frame: FrameNumber, _ record: FrameRecordPointer, at address: VirtualAddress, _ protection: Protection
  ) -> RightsChange {
    let mayWrite = protection.contains(.writable) && record.pageFlags.contains(.dirty)
    return tables.enter(address, frame, mayWrite ? .kernelData : .kernelReadOnly)
  }

  /// Takes a cached page back. Object's lock held.
  private func reactivate(
    _ object: MemoryObject, _ index: UInt64, _ slot: PageSlotPointer, _ value: PageSlot
  ) -> Reactivation {
    let answer = physical.reactivate(value.frame, owner: object.number, index: index, priority: .normal)
    switch answer {
    case .taken:
      slot.value = PageSlot(.resident, value.frame, value.swap)
      object.core.pointee.resident += 1
      withQueues { $0.append(value.frame, .active) }
      _ = record(value.frame).endXbusy()
      counters.pointee.reactivations.count()
    case .gone:
      slot.value = PageSlot(.absent, .none, value.swap)
    case .refused: break
    }
    return answer
  }

  // MARK: Fetching

  /// A frame for a page, exclusive. Where the page daemon has no thread, it is run when few are free.
  func allocatePage() throws(PagingError) -> FrameNumber {
    if machine.failsHere(.paging) { throw .noMemory }
    if !isServed && physical.freeCount.rawValue < state.pointee.marks.pointee.wake.value { runDaemon() }
    var patience = Patience.some
    while true {
      var frame = FrameNumber.none
      let count = withUnsafeMutablePointer(to: &frame) {
        physical.allocate(pages: UnsafeMutableBufferPointer(start: $0, count: 1))
      }
      if count == 1 { return frame }
      try makeRoom(&patience)
    }
  }

  /// Whether a request for a frame goes on trying.
  private enum Patience { case some, none }

  /// For a request that was refused and is to be tried again. Throws `noMemory` when that is in vain.
  private func makeRoom(_ patience: inout Patience) throws(PagingError) {
    guard patience == .some else { throw .noMemory }
    // Once more even then: others may have freed something since.
    if makeRoom() == .none && !laundryEnded() { patience = .none }
  }

  /// Waits until a run of the laundry has ended that others began; false when there is none.
  func laundryEnded() -> Bool {
    state.pointee.starved.add(1, ordering: .sequentiallyConsistent)
    defer { state.pointee.starved.subtract(1, ordering: .sequentiallyConsistent) }
    let ticket = state.pointee.laundered.ticket()
    guard state.pointee.launderers.load(ordering: .sequentiallyConsistent) > 0 else { return false }
    // From the look on until it sleeps, only the ticket tells that one has ended.
    noteClaim(state)
    return state.pointee.laundered.sleep(ticket, on: machine)
  }

  /// Brings in a page that the slot said was absent, unless the slot says something else by now.
  private func pageIn(_ object: MemoryObject, _ index: UInt64, _ value: PageSlot) throws(PagingError) {
    let frame = try allocatePage()
    let record = record(frame)
    record.owner = object.number
    record.index = index
    let isZero = value.swap == .none && object.kind == .anonymous
    if isZero { zero(frame) }
    var interrupts = object.lock()
    let slot = object.slot(index)
    guard slot.value == value else {
      object.unlock(interrupts)
      physical.free(page: frame, .dropped)
      return
    }
    slot.value = PageSlot(.resident, frame, value.swap)
    object.core.pointee.resident += 1
    if !isZero {
      object.unlock(interrupts)
      do throws(PagingError) {
        try read(object, index, value, into: frame)
      } catch {
        interrupts = object.lock()
        slot.value = PageSlot(.absent, .none, slot.value.swap)
        object.core.pointee.resident -= 1
        object.unlock(interrupts)
        release(frame, record, .dropped)
        throw error
      }
      interrupts = object.lock()
      counters.pointee.pageIns.count()
    } else {
      counters.pointee.zeroFills.count()
    }
    record.pageFlags = [.valid]
    withQueues { $0.append(frame, .active) }
    let waiters = record.endXbusy()
    object.unlock(interrupts)
    wake(waiters)
  }

  /// What `begin` answers once the pool has a request for it. The caller has none that others wait for.
  func waitForRequest<Begun>(_ transfers: Transfers, _ begin: () -> Begun?) -> Begun {
    while true {
      if let begun = begin() { return begun }
      let canCome = transfers.waitForAny()
      precondition(canCome, "who has all transfers does not end any")
    }
  }

  private func zero(_ frame: FrameNumber) {
    machine.directMap.pointer(to: frame).initializeMemory(as: UInt64.self, repeating: 0, count: 512)
  }

  /// Reads a page from swap or from its device. Sleeps.
  private func read(
    _ object: MemoryObject, _ index: UInt64, _ value: PageSlot, into frame: FrameNumber
  ) throws(PagingError) {
    guard let device = object.state.pointee.device else {
      return try swap.read(value.swap, into: frame)
    }
    let transfers = state.pointee.transfers
    let transfer = waitForRequest(transfers) {
      withUnsafePointer(to: frame) {
        transfers.begin(
          device, .read, DevicePage(object.state.pointee.deviceFirst + index),
          UnsafeBufferPointer(start: $0, count: 1))
      }
    }
    transfers.wait(transfer)
    let failed = transfers.hasFailed(transfer)
    transfers.end(transfer)
    if failed { throw .inputOutput }
  }
}
