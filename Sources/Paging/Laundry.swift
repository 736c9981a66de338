// Laundering: dirty pages are written out, up to 32 in one request and several requests at a time, and become
// cached pages, which any request may allocate.
//
// A page under way is sbusy, so other threads may read and write it. It is not dirty from the moment at
// which its mappings lost the right to write (the head of PagedMemory.swift says why that is safe), and has no copy
// yet. No other thread reclaims it, because that needs xbusy. When its write is done:
//   failed         it is dirty as before, and the slot of swap, if that was at fault, is retired
//   dirty again    the copy is stale and is freed; the page is in use
//   clean          it has its copy; if there is no other use of it, it is reclaimed
//
// Nothing is allocated on the way. When swap is full a page goes to the queue `unswappable`, and is tried
// again when slots are free.

import BlockDevices
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// The result of laundering, in pages.
public struct LaunderOutcome: Sendable {
  /// Pages that were sent to a device.
  public var written = PageCount.zero
  /// Pages that became free, including those that were clean already.
  public var freed = PageCount.zero
  /// Pages whose write failed.
  public var failed = PageCount.zero
  /// Pages that a thread wrote to while they were written out.
  public var redirtied = PageCount.zero
  /// Pages for which swap had no free slot.
  public var unswappable = PageCount.zero
  /// Pages that were referenced, wired, held or busy.
  public var passedOver = PageCount.zero

  /// Nothing laundered yet.
  package init() {}

  /// The sum of two results.
  package static func + (a: Self, b: Self) -> Self {
    var sum = a
    sum += b
    return sum
  }
  static func += (a: inout Self, b: Self) {
    a.written += b.written
    a.freed += b.freed
    a.failed += b.failed
    a.redirtied += b.redirtied
    a.unswappable += b.unswappable
    a.passedOver += b.passedOver
  }
}

/// Whether laundering writes out pages that were referenced since the last scan.
@frozen @usableFromInline package enum ReferencedPages: UInt8, Sendable {
  /// They become active and are not written.
  case skip
  /// They are written like the others.
  case launder
}

/// The account on which pages are written.
enum LaundryClient { case daemon, caller }

/// The limits of one laundering run, what it has done, and the pages that it has collected.
private struct LaundryRun {
  let referenced: ReferencedPages
  /// Dirty pages that may still be written.
  var writable: UInt64
  var outcome = LaunderOutcome()
  /// Clean pages that are xbusy and unmapped, to be reclaimed.
  var clean = PageBatch()
  /// A page that needs a request of its own, kept for the next one.
  var kept = FrameNumber.none
  var isOver = false
}

/// The pages that one request writes.
private struct Writing: ~Copyable {
  var pages = PageBatch()
  /// Their slots in swap.
  var run: SlotRun?
  var write: SwapWrite?
  /// The request for a page of a device, which is written alone.
  var transfer: Transfer?
}

/// The requests of a run that are under way, in the order in which they began.
private struct WritingRing: ~Copyable {
  static var capacity: Int { 4 }
  // No `InlineArray`, because the compiler can't destroy one of tokens in an Embedded build.
  private var a = Writing()
  private var b = Writing()
  private var c = Writing()
  private var d = Writing()
  private(set) var first = 0
  private(set) var count = 0

  /// One request, in place.
  subscript(i: Int) -> Writing {
    _read {
      switch i {
      case 0: yield a
      case 1: yield b
      case 2: yield c
      default: yield d
      }
    }
    _modify {
      switch i {
      case 0: yield &a
      case 1: yield &b
      case 2: yield &c
      default: yield &d
      }
    }
  }

  /// The position of the next request.
  var end: Int { (first + count) % Self.capacity }
  mutating func append() { count += 1 }
  mutating func removeFirst() {
    first = (first + 1) % Self.capacity
    count -= 1
  }
}

extension PagedMemory {
  /// Launders up to `limit` pages of `queue`, each inspected once: writes them, waits for that, reclaims them. Sleeps.
  ///
  /// For `inactive` and `active` this is what contigmalloc did before 2004; the daemon launders `laundry`.
  @discardableResult
  package func launder(
    _ queue: PageQueue, upTo limit: PageCount, referenced: ReferencedPages = .skip
  ) -> LaunderOutcome {
    launder(queue, upTo: limit, referenced, for: .caller)
  }

  /// Launders up to `limit` pages of the laundry queue for a run of the daemon.
  func launderForDaemon(upTo limit: PageCount) -> LaunderOutcome {
    launder(.laundry, upTo: limit, .skip, for: .daemon)
  }

  private func launder(
    _ queue: PageQueue, upTo limit: PageCount, _ referenced: ReferencedPages, for client: LaundryClient
  ) -> LaunderOutcome {
    var left = min(withQueues { $0.count(queue) }, limit.rawValue)
    return launder(referenced, for: client) { () -> FrameNumber? in
      while left > 0 {
        left -= 1
        let frame = withQueues { $0.popFirst(queue, tries: 1) { $0.trySbusy() } }
        if let frame { return frame }
      }
      return nil
    }
  }

  /// Launders the pages that `next` returns one by one: sbusy by this caller and in no queue. Writes `limit` at most.
  func launder(
    _ referenced: ReferencedPages, for client: LaundryClient = .caller,
    atMost limit: PageCount = PageCount(UInt64.max), _ next: () -> FrameNumber?
  ) -> LaunderOutcome {
    state.launderers.add(1, ordering: .sequentiallyConsistent)
    defer {
      state.launderers.subtract(1, ordering: .sequentiallyConsistent)
      if state.starvationCount.load(ordering: .sequentiallyConsistent) > 0 {
        state.laundered.wake(on: machine)
      }
    }
    var run = LaundryRun(referenced: referenced, writable: limit.rawValue)
    var ring = WritingRing()
    launder(&run, &ring, next)
    let outcome = run.outcome
    if client == .daemon { counters.writtenForDaemon.count(outcome.written.rawValue) }
    counters.written.count(outcome.written.rawValue)
    counters.failedWrites.count(outcome.failed.rawValue)
    counters.redirtied.count(outcome.redirtied.rawValue)
    return outcome
  }

  /// Keeps requests under way until all pages are laundered.
  private func launder(_ run: inout LaundryRun, _ ring: inout WritingRing, _ next: () -> FrameNumber?) {
    while !run.isOver || ring.count > 0 {
      guard !run.isOver && ring.count < WritingRing.capacity else {
        finishFirst(of: &ring, &run.outcome)
        continue
      }
      let slot = ring.end
      gather(&ring[slot], &run, next)
      reclaim(&run.clean, &run.outcome)
      while true {
        let begun = begin(&ring[slot], &run.outcome)
        if begun == .begun { ring.append() }
        if begun != .noRequest { break }
        // The pool is empty: this thread can complete its own requests, and waits for those of others.
        if ring.count > 0 {
          finishFirst(of: &ring, &run.outcome)
        } else {
          state.transfers.waitForIdle()
        }
      }
    }
  }

  private func finishFirst(of ring: inout WritingRing, _ outcome: inout LaunderOutcome) {
    finish(&ring[ring.first], &outcome)
    ring.removeFirst()
  }

  private enum Begun { case begun, nothing, noRequest }

  /// Fills `writing` with pages that are to be written together: dirty ones, which are write-protected and not dirty
  /// afterwards. A page of a device goes alone, and is kept for the next time if others precede it. Clean ones
  /// go to `run.clean`, xbusy.
  private func gather(_ writing: inout Writing, _ run: inout LaundryRun, _ next: () -> FrameNumber?) {
    writing.pages.removeAll()
    writing.run = nil
    var batch = ShootdownBatch()
    while !writing.pages.isFull && !run.clean.isFull && !batch.isFull {
      guard let frame = run.kept == .none ? next() : run.kept else {
        run.isOver = true
        break
      }
      run.kept = .none
      let record = record(frame)
      let object = object(of: record)
      if object.kind == .device && writing.pages.count > 0 {
        run.kept = frame
        break
      }
      counters.scanned.count()
      if prepare(frame, record, object.acquire(), run: &run, &batch) == .toBeWritten {
        writing.pages.add(frame)
        if object.kind == .device { break }
      }
    }
    batch.flush(on: machine)
  }

  private enum Prepared { case toBeWritten, clean, passedOver }

  /// Decides about one page that is sbusy, and unmaps or write-protects it; its addresses go into `batch`. Releases the
  /// lock.
  private func prepare(
    _ frame: FrameNumber, _ record: FrameRecordPointer, _ held: consuming HeldObject,
    run: inout LaundryRun, _ batch: inout ShootdownBatch
  ) -> Prepared {
    let index = record.index
    // A page may have been wired or held since it became sbusy. It stays mapped as it is, and dirty, as the thread that
    // holds it may write to it unseen. From here on a wire or hold needs this lock, and makes it dirty again.
    let isInUse = record.busyWord.wires > 0 || record.busyWord.holds > 0
    if isInUse || (testAndClearReferenced(index, held, record) == .used && run.referenced == .skip) {
      endSbusy(frame, record, .active, held)
    } else if record.pageFlags.contains(.dirty) {
      if run.writable > 0 {
        run.writable -= 1
        writeProtectAll(index, held, &batch)
        markClean(frame, record)
        held.release()
        return .toBeWritten
      }
      // A fault has made it dirty since `next` found it clean.
      endSbusy(frame, record, .active, held)
    } else if record.trySbusyToXbusy() {
      removeAll(index, held, &batch)
      held.release()
      run.clean.add(frame)
      return .clean
    } else {
      endSbusy(frame, record, .inactive, held)
    }
    run.outcome.passedOver += 1
    return .passedOver
  }

  func object(of record: FrameRecordPointer) -> MemoryObject {
    object(numbered: record.owner).unsafelyUnwrapped
  }

  /// Ends the sbusy of a page that was written, which goes to `queue` unless it is wired. Releases the lock.
  private func endSbusy(
    _ frame: FrameNumber, _ record: FrameRecordPointer, _ queue: PageQueue, _ held: consuming HeldObject
  ) {
    // In its queue before any thread can make it busy.
    if record.busyWord.wires == 0 { withQueues { $0.append(frame, queue) } }
    let waiters = record.endSbusy()
    held.release()
    wake(waiters)
  }

  private func begin(_ writing: inout Writing, _ outcome: inout LaunderOutcome) -> Begun {
    guard writing.pages.count > 0 else { return .nothing }
    let record = record(writing.pages[0])
    let object = object(of: record)
    if let device = object.state.device {
      let first = DevicePage(object.state.deviceFirst + record.index)
      let transfer = writing.pages.withFrames { state.transfers.begin(device, .write, first, $0) }
      guard let transfer else { return .noRequest }
      writing.transfer = consume transfer
      return .begun
    }
    let run = writing.run ?? swap.reserve(upTo: PageCount(writing.pages.count))
    writing.run = run
    let accepted = Int(run?.count.rawValue ?? 0)
    // Pages for which swap has no slot stay as they were.
    for i in accepted..<writing.pages.count {
      let frame = writing.pages[i]
      let record = self.record(frame)
      let object = self.object(of: record)
      let held = object.acquire()
      markDirtyAgain(frame, record)
      endSbusy(frame, record, accepted == 0 ? .unswappable : .laundry, held)
      if accepted == 0 { outcome.unswappable += 1 }
    }
    writing.pages.truncate(to: accepted)
    guard let run else { return .nothing }
    guard let write = writing.pages.withFrames({ swap.beginWrite($0, to: run) }) else { return .noRequest }
    writing.write = consume write
    return .begun
  }

  /// Marks a page dirty that has no copy after all. The caller holds the object's lock.
  private func markDirtyAgain(_ frame: FrameNumber, _ record: FrameRecordPointer) {
    if record.pageFlags.contains(.dirty) { return }
    record.pageFlags.insert(.dirty)
    physical.countDirty(frame)
  }

  /// Waits for a request and inspects each of its pages again.
  private func finish(_ writing: inout Writing, _ outcome: inout LaunderOutcome) {
    outcome.written += PageCount(writing.pages.count)
    let transfers = state.transfers
    var written: SwapWritten?
    if let write = writing.write.take() { written = swap.finishWrite(write) }
    var hasFailed = false
    if let transfer = writing.transfer.take() {
      transfers.wait(transfer)
      hasFailed = transfers.hasFailed(transfer)
      transfers.end(transfer)
    }
    var batch = ShootdownBatch()
    var clean = PageBatch()
    for i in 0..<writing.pages.count {
      let frame = writing.pages[i]
      let record = record(frame)
      let object = object(of: record)
      let copy = written?.slot(i) ?? .none
      let failed = hasFailed || (written != nil && copy == .none)
      let held = object.acquire()
      if failed || record.pageFlags.contains(.dirty) {
        let wasDirtied = record.pageFlags.contains(.dirty)
        if copy != .none { swap.free(copy) }
        markDirtyAgain(frame, record)
        if failed { outcome.failed += 1 } else { outcome.redirtied += 1 }
        endSbusy(frame, record, wasDirtied ? .active : .laundry, held)
        continue
      }
      if copy != .none {
        let slot = held.slot(record.index)
        slot.value = PageSlot(.resident, frame, copy)
        held.core.inSwap += 1
      }
      guard record.trySbusyToXbusy() else {
        endSbusy(frame, record, .inactive, held)
        outcome.passedOver += 1
        continue
      }
      removeAll(record.index, held, &batch)
      held.release()
      clean.add(frame)
    }
    batch.flush(on: machine)
    reclaim(&clean, &outcome)
  }

  /// Reclaims pages that are xbusy, clean, unmapped and invalidated on every processor.
  func reclaim(_ clean: inout PageBatch, _ outcome: inout LaunderOutcome) {
    for i in 0..<clean.count { reclaim(clean[i]) }
    outcome.freed += PageCount(clean.count)
    clean.removeAll()
  }

  private func reclaim(_ frame: FrameNumber) {
    let record = record(frame)
    let object = object(of: record)
    let held = object.acquire()
    let slot = held.slot(record.index)
    let copy = slot.value.swap
    let hasCopy = copy != .none || object.kind == .device
    slot.value = hasCopy ? PageSlot(.cached, frame, copy) : .untouched
    held.core.resident -= 1
    held.release()
    free(frame, record, as: hasCopy ? .cached : .dropped)
  }

  /// Moves pages that could not be written for lack of swap to the laundry queue: as many as there are free slots.
  package func retryUnswappable() {
    if count(.unswappable) == .zero { return }
    for _ in 0..<swap.figures.free.rawValue {
      let isOver = withQueues { queues -> Bool in
        let frame = queues.first(.unswappable)
        if frame == .none { return true }
        queues.remove(frame)
        queues.append(frame, .laundry)
        return false
      }
      if isOver { return }
    }
  }
}
