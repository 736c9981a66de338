// Faults: a page is brought to the address where a thread needs it.
//
// One loop serves all that need a page (a fault, a wire, a hold). It reads the slot under the object's lock; a missing
// page is brought in without the lock, and then the slot is read again. A zero page needs a frame. A page in
// swap or on a device needs a frame and a read, during which it is resident and xbusy: other threads that need it
// sleep, so it is read once. A cached page is reactivated under the lock, without I/O.
//
// A read that fails leaves the page where it was, and only the thread that asked gets the error; the threads that slept
// read the slot again and ask themselves.

import BlockDevices
import CPlatform
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// Whether the work on a page is done, or another thread has made the page xbusy.
enum PageVisit { case done, busy }

extension PagedMemory {
  /// Makes the page at `address` accessible for `kind`: called by the page-fault handler, and by a thread that needs
  /// the error rather than a fault report. May sleep. The caller holds no lock.
  ///
  /// Throws `notPageable`, `protection`, `noMemory`; `inputOutput` and `corrupt` when the page can't be read.
  public func fault(_ address: VirtualAddress, _ kind: AccessKind) throws(PagingError) {
    assert(holdsNoSpinLock(), "a page fault with a spin lock held")
    counters.faults.count()
    guard let use = beginUse(of: address) else { throw .notPageable }
    let entry = use.entry
    if kind == .write && !entry.protection.contains(.writable) { throw .protection }
    let object = entry.object
    do throws(PagingError) {
      try withPage(object, entry.index(address.rawValue), kind) { frame, record in
        enter(frame, record, at: address.page, entry.protection)
        return .done
      }
    } catch {
      counters.failedFaults.count()
      throw error
    }
  }

  /// Faults on each page of a range, in order; the pages before one that fails stay in memory. Errors as `fault`.
  public func touch(
    _ address: VirtualAddress, _ count: PageCount, _ kind: AccessKind
  ) throws(PagingError) {
    for i in 0..<count.rawValue { try fault(address + PageCount(i), kind) }
  }

  /// Holds the page at `address`: it is neither moved nor reclaimed until `unhold`, so that the caller may reach it by
  /// its physical address. Errors as `fault`; `tooManyHolds`.
  public func hold(_ address: VirtualAddress, _ kind: AccessKind) throws(PagingError) -> FrameNumber {
    guard let use = beginUse(of: address) else { throw .notPageable }
    let entry = use.entry
    if kind == .write && !entry.protection.contains(.writable) { throw .protection }
    var held = FrameNumber.none
    try withPage(entry.object, entry.index(address.rawValue), kind) { frame, record in
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

  /// Ends a hold. A page that is not held is a fault report.
  public func unhold(_ frame: FrameNumber) {
    guard let record = physical.record(frame), record.role == .pageable, let waiters = record.endHold() else {
      return machine.report(
        FaultReport(.notAllocated, "a page was unheld that is not held", UInt64(frame.rawValue), .frame))
    }
    wake(waiters)
  }

  // MARK: The loop

  /// Makes page `index` of `object` resident, and dirty if it is to be written. Runs `body` on it with the
  /// object's lock held and the page not xbusy; repeats that when `body` answers `busy`. Records a refusal for want of
  /// memory.
  func withPage(
    _ object: MemoryObject, _ index: UInt64, _ kind: AccessKind,
    _ body: (FrameNumber, FrameRecordPointer) -> PageVisit
  ) throws(PagingError) {
    do throws(PagingError) {
      try visitPage(object, index, kind, body)
    } catch {
      throw error == .noMemory ? refused(error, object.name, .one) : error
    }
  }

  private func visitPage(
    _ object: MemoryObject, _ index: UInt64, _ kind: AccessKind,
    _ body: (FrameNumber, FrameRecordPointer) -> PageVisit
  ) throws(PagingError) {
    var retries = Retries.allowed
    var isReactivated = false
    while true {
      let held = object.acquire()
      let slot = held.slot(index)
      var value = slot.value
      if value.presence == .cached {
        switch reactivate(held, index, slot, value) {
        case .taken:
          value = slot.value
          isReactivated = true
        case .gone:
          held.release()
          continue
        case .refused:
          held.release()
          try gainCapacity(&retries)
          continue
        }
      }
      guard value.presence == .resident else {
        held.release()
        try pageIn(object, index, value)
        continue
      }
      let record = record(value.frame)
      if record.busyWord.isXbusy {
        waitWhileXbusy(record, held)
        continue
      }
      if kind == .write { markDirty(slot, value.frame, record, held) }
      let visit = body(value.frame, record)
      held.release()
      if visit == .done {
        if isReactivated { physical.checkLowMemory() }
        return
      }
    }
  }

  /// Maps a page at one of its addresses: writable only if it is dirty already. The caller holds the object's lock.
  ///
  /// A fault that raises a right sends no shootdown. Its own processor has dropped the old mapping by the fault (SDM
  /// vol. 3, 4.10.4.1), and another one that still has it faults once more. `wire` invalidates the mapping everywhere.
  @discardableResult func enter(
    _ frame: FrameNumber, _ record: FrameRecordPointer, at address: VirtualAddress, _ protection: Protection
  ) -> RightsChange {
    let mayWrite = protection.contains(.writable) && record.pageFlags.contains(.dirty)
    return tables.enter(address, frame, mayWrite ? .kernelData : .kernelReadOnly)
  }

  /// Reactivates a cached page.
  private func reactivate(
    _ held: borrowing HeldObject, _ index: UInt64, _ slot: PageSlotPointer, _ value: PageSlot
  ) -> Reactivation {
    let answer = physical.reactivate(value.frame, owner: held.number, index: index, priority: .normal)
    switch answer {
    case .taken:
      slot.value = PageSlot(.resident, value.frame, value.swap)
      held.core.resident += 1
      withQueues { $0.append(value.frame, .active) }
      _ = record(value.frame).endXbusy()
      counters.reactivations.count()
    case .gone:
      slot.value = PageSlot(.absent, .none, value.swap)
    case .refused: break
    }
    return answer
  }

  // MARK: Bringing in

  /// Allocates a frame for a page, xbusy. Where the page daemon has no thread, it is run when few frames are free.
  func allocatePage() throws(PagingError) -> FrameNumber {
    if machine.failsHere(.paging) { throw .noMemory }
    if !isServed && physical.freeCount.rawValue < marks.wake.value { runDaemon() }
    var retries = Retries.allowed
    while true {
      var frame = FrameNumber.none
      let count = withUnsafeMutablePointer(to: &frame) {
        physical.allocate(pages: UnsafeMutableBufferPointer(start: $0, count: 1))
      }
      if count == 1 { return frame }
      try gainCapacity(&retries)
    }
  }

  /// Whether a request for a frame may be tried again after another refusal.
  private enum Retries { case allowed, exhausted }

  /// Frees pages for a request that was refused and is to be tried again. Throws `noMemory` when none are left to free.
  private func gainCapacity(_ retries: inout Retries) throws(PagingError) {
    guard retries == .allowed else { throw .noMemory }
    // The caller tries once more even then, because another thread may have freed a frame.
    if gainCapacity() == .none && !laundryEnded() { retries = .exhausted }
  }

  /// Waits until a laundering run has ended that another thread began; returns false when there is none.
  func laundryEnded() -> Bool {
    state.starvationCount.add(1, ordering: .sequentiallyConsistent)
    defer { state.starvationCount.subtract(1, ordering: .sequentiallyConsistent) }
    let ticket = state.laundered.ticket()
    guard state.launderers.load(ordering: .sequentiallyConsistent) > 0 else { return false }
    // Between this check and the sleep only the ticket reports that a run has ended.
    reportClaim(storage)
    return state.laundered.sleep(ticket, on: machine)
  }

  /// Brings in a page whose slot was `value`, which says absent. Does nothing if the slot has changed.
  private func pageIn(_ object: MemoryObject, _ index: UInt64, _ value: PageSlot) throws(PagingError) {
    let frame = try allocatePage()
    let record = record(frame)
    record.owner = object.number
    record.index = index
    let isZero = value.swap == .none && object.kind == .anonymous
    if isZero { zero(frame) }
    let before = object.acquire()
    let slot = before.slot(index)
    guard slot.value == value else {
      before.release()
      physical.free(page: frame, .dropped)
      return
    }
    slot.value = PageSlot(.resident, frame, value.swap)
    before.core.resident += 1
    if isZero {
      counters.zeroFills.count()
      endPageIn(frame, record, before)
      return
    }
    before.release()
    do throws(PagingError) {
      try read(object, index, value, into: frame)
    } catch {
      let held = object.acquire()
      slot.value = PageSlot(.absent, .none, slot.value.swap)
      held.core.resident -= 1
      held.release()
      free(frame, record, as: .dropped)
      throw error
    }
    counters.pageIns.count()
    endPageIn(frame, record, object.acquire())
  }

  /// Makes a page valid that was brought in, and ends its xbusy.
  @inline(__always)
  private func endPageIn(_ frame: FrameNumber, _ record: FrameRecordPointer, _ held: consuming HeldObject) {
    record.pageFlags = [.valid]
    endXbusy(frame, record, .active, held)
  }

  /// Repeats `begin` until the pool has a request for it, and returns its answer. The caller has no transfer that other
  /// threads wait for.
  func waitForRequest<Begun: ~Copyable>(_ transfers: Transfers, _ begin: () -> Begun?) -> Begun {
    while true {
      if let begun = begin() { return begun }
      transfers.waitForIdle()
    }
  }

  private func zero(_ frame: FrameNumber) {
    machine.directMap.pointer(to: frame).initializeMemory(
      as: UInt64.self, repeating: 0, count: Int(Page.size) / 8)
  }

  /// Reads a page from swap or from its device. Sleeps.
  private func read(
    _ object: MemoryObject, _ index: UInt64, _ value: PageSlot, into frame: FrameNumber
  ) throws(PagingError) {
    guard let device = object.state.device else {
      return try swap.read(value.swap, into: frame)
    }
    let transfers = state.transfers
    let transfer = waitForRequest(transfers) {
      withUnsafePointer(to: frame) {
        transfers.begin(
          device, .read, DevicePage(object.state.deviceFirst + index),
          UnsafeBufferPointer(start: $0, count: 1))
      }
    }
    transfers.wait(transfer)
    let hasFailed = transfers.hasFailed(transfer)
    transfers.end(transfer)
    if hasFailed { throw .inputOutput }
  }
}
