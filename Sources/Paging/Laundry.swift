// Laundering: dirty pages are written out, up to 32 in one request and several requests at a time, and become
// cached pages, which any request may take.
//
// A page under way is shared, so it may be read and written to meanwhile. It is not dirty from the moment at
// which its mappings lost the right to write (the head of PagedMemory.swift says why that is safe), and has no copy
// yet; nobody else gives it up, for that takes a claim. When its write is done:
//   failed         it is dirty as before, and the slot of swap, if that was at fault, is retired
//   dirty again    the copy is worth nothing and is let go; the page is in use
//   clean          it has its copy; if nobody else claims it, it is given up
//
// Nothing is allocated on the way. Without room in swap a page goes to the queue `unswappable`, and is looked at
// again when there is some.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// What came of laundering.
public struct LaunderOutcome: Sendable {
  /// Pages that were sent to a device.
  public var written = PageCount.zero
  /// Pages that became free, the clean ones that were met included.
  public var freed = PageCount.zero
  /// Pages whose write failed.
  public var failed = PageCount.zero
  /// Pages that somebody wrote to meanwhile.
  public var redirtied = PageCount.zero
  /// Pages for which there was no room in swap.
  public var unswappable = PageCount.zero
  /// Pages that were in use, or claimed by somebody.
  public var passedOver = PageCount.zero

  public init() {}
  mutating func add(_ other: Self) {
    written = written + other.written
    freed = freed + other.freed
    failed = failed + other.failed
    redirtied = redirtied + other.redirtied
    unswappable = unswappable + other.unswappable
    passedOver = passedOver + other.passedOver
  }
}

/// Up to 32 pages in a row of whatever kind, on the stack.
struct PageBatch {
  static var capacity: Int { 32 }
  private(set) var count = 0
  private var frames: InlineArray<32, FrameNumber> = .init(repeating: .none)

  var isFull: Bool { count == Self.capacity }
  subscript(i: Int) -> FrameNumber { frames[i] }
  mutating func add(_ frame: FrameNumber) {
    frames[count] = frame
    count += 1
  }
  mutating func removeAll() { count = 0 }
  mutating func truncate(to length: Int) { count = min(count, length) }
  mutating func withFrames<R, E>(_ body: (UnsafeBufferPointer<FrameNumber>) throws(E) -> R) throws(E) -> R {
    let count = count
    return try withUnsafeMutablePointer(to: &frames) { array throws(E) in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: FrameNumber.self)
      return try body(UnsafeBufferPointer(start: first, count: count))
    }
  }
}

/// Pages being written by one request.
private struct Writing {
  var pages = PageBatch()
  /// Where they go in swap.
  var run: SlotRun?
  var write: SwapWrite?
  /// For a page of a device, which is written alone.
  var transfer: Transfer?
}

/// Whether pages that were used of late are written out all the same.
@frozen public enum Sparing: UInt8, Sendable { case used, nobody }

/// On whose account pages are written.
enum LaundryClient { case daemon, caller }

extension PagedMemory {
  /// Launders up to `limit` pages of `queue`, each page looked at once: written, waited for, given up. Sleeps.
  ///
  /// For `inactive` and `active` this is what contigmalloc did before 2004; the daemon launders `laundry`.
  @discardableResult
  public func launder(
    _ queue: PageQueue, upTo limit: PageCount, sparing: Sparing = .used
  ) -> LaunderOutcome {
    launder(queue, upTo: limit, sparing, for: .caller)
  }

  /// What a run of the daemon asks of the laundry.
  func launderForDaemon(upTo limit: PageCount) -> LaunderOutcome {
    launder(.laundry, upTo: limit, .used, for: .daemon)
  }

  private func launder(
    _ queue: PageQueue, upTo limit: PageCount, _ sparing: Sparing, for client: LaundryClient
  ) -> LaunderOutcome {
    var left = min(withQueues { $0.count(queue) }, limit.rawValue)
    return launder(sparing, for: client) { () -> FrameNumber? in
      while left > 0 {
        left -= 1
        let frame = withQueues { $0.take(queue, tries: 1) { $0.trySbusy() } }
        if let frame { return frame }
      }
      return nil
    }
  }

  /// Launders the pages that `next` gives one by one: shared by this caller and in no queue. Writes `limit` at most.
  func launder(
    _ sparing: Sparing, for client: LaundryClient = .caller, atMost limit: PageCount = PageCount(UInt64.max),
    _ next: () -> FrameNumber?
  ) -> LaunderOutcome {
    var writable = limit.rawValue
    state.pointee.launderers.add(1, ordering: .sequentiallyConsistent)
    defer {
      state.pointee.launderers.subtract(1, ordering: .sequentiallyConsistent)
      if state.pointee.starved.load(ordering: .sequentiallyConsistent) > 0 {
        state.pointee.laundered.wake(on: machine)
      }
    }
    var outcome = LaunderOutcome()
    var writings: InlineArray<4, Writing> = .init(repeating: Writing())
    var (first, underWay) = (0, 0)
    var clean = PageBatch()
    var isOver = false
    // A page that was met and needs a request of its own.
    var kept = FrameNumber.none
    while !isOver || underWay > 0 {
      if !isOver && underWay < 4 {
        let slot = (first + underWay) % 4
        isOver = gather(&writings[slot], &clean, &kept, sparing, &writable, &outcome, next) == .atEnd
        reclaim(&clean, &outcome)
        while true {
          let begun = begin(&writings[slot], &outcome)
          if begun == .begun { underWay += 1 }
          if begun != .noRequest { break }
          // The pool is empty: its own requests this caller can end, for those of others it waits.
          if underWay > 0 {
            finish(&writings[first], &outcome)
            first = (first + 1) % 4
            underWay -= 1
          } else {
            let canCome = state.pointee.transfers.waitForAny()
            precondition(canCome, "who has all transfers does not end any")
          }
        }
        continue
      }
      finish(&writings[first], &outcome)
      first = (first + 1) % 4
      underWay -= 1
    }
    if client == .daemon { counters.pointee.writtenForDaemon.count(outcome.written.rawValue) }
    counters.pointee.written.count(outcome.written.rawValue)
    counters.pointee.failedWrites.count(outcome.failed.rawValue)
    counters.pointee.redirtied.count(outcome.redirtied.rawValue)
    return outcome
  }

  private enum Gathered { case more, atEnd }
  private enum Begun { case begun, nothing, noRequest }

  /// Fills `writing` with pages that are to be written together: dirty ones, no longer writable by anybody and not dirty
  /// any more; a page of a device goes alone, and is kept for the next time if others came before it. Clean ones
  /// go to `clean`, exclusive.
  private func gather(
    _ writing: inout Writing, _ clean: inout PageBatch, _ kept: inout FrameNumber, _ sparing: Sparing,
    _ writable: inout UInt64, _ outcome: inout LaunderOutcome, _ next: () -> FrameNumber?
  ) -> Gathered {
    writing.pages.removeAll()
    writing.run = nil
    writing.write = nil
    writing.transfer = nil
    var batch = ShootdownBatch()
    var answer = Gathered.more
    while !writing.pages.isFull && !clean.isFull && !batch.isFull {
      guard let frame = kept == .none ? next() : kept else {
        answer = .atEnd
        break
      }
      kept = .none
      let record = record(frame)
      let object = object(of: record)
      if object.kind == .device && writing.pages.count > 0 {
        kept = frame
        break
      }
      counters.pointee.scanned.count()
      let interrupts = object.lock()
      // A page may have been wired or held since it was shared: it stays mapped as it is, and dirty, as whoever
      // holds it may write to it unseen. From here on that takes this lock, and makes it dirty again.
      let isInUse = record.busyWord.wires > 0 || record.busyWord.holds > 0
      if isInUse || (takeReferenced(record.index, object, record) == .used && sparing == .used) {
        endSbusy(frame, record, object, .active, interrupts)
        outcome.passedOver = outcome.passedOver + .one
      } else if record.pageFlags.contains(.dirty) && writable == 0 {
        // A fault has made it dirty since `next` found it clean.
        endSbusy(frame, record, object, .active, interrupts)
        outcome.passedOver = outcome.passedOver + .one
      } else if record.pageFlags.contains(.dirty) {
        writable -= 1
        writeProtectAll(record.index, object, &batch)
        markClean(frame, record)
        object.unlock(interrupts)
        writing.pages.add(frame)
        if object.kind == .device { break }
      } else if record.trySbusyToXbusy() {
        removeAll(record.index, object, &batch)
        object.unlock(interrupts)
        clean.add(frame)
      } else {
        endSbusy(frame, record, object, .inactive, interrupts)
        outcome.passedOver = outcome.passedOver + .one
      }
    }
    batch.flush(on: machine)
    return answer
  }

  func object(of record: FrameRecordPointer) -> MemoryObject {
    object(numbered: record.owner).unsafelyUnwrapped
  }

  /// Ends the claim of whoever wrote a page, which goes to `queue` unless it is wired. Drops the lock.
  private func endSbusy(
    _ frame: FrameNumber, _ record: FrameRecordPointer, _ object: MemoryObject, _ queue: PageQueue,
    _ interrupts: UInt64
  ) {
    // In its queue before anybody can claim it.
    if record.busyWord.wires == 0 { withQueues { $0.append(frame, queue) } }
    let waiters = record.endSbusy()
    object.unlock(interrupts)
    wake(waiters)
  }

  private func begin(_ writing: inout Writing, _ outcome: inout LaunderOutcome) -> Begun {
    guard writing.pages.count > 0 else { return .nothing }
    let record = record(writing.pages[0])
    let object = object(of: record)
    if let device = object.state.pointee.device {
      let first = DevicePage(object.state.pointee.deviceFirst + record.index)
      writing.transfer = writing.pages.withFrames { state.pointee.transfers.begin(device, .write, first, $0) }
      return writing.transfer == nil ? .noRequest : .begun
    }
    let run = writing.run ?? swap.reserve(upTo: PageCount(writing.pages.count))
    writing.run = run
    let accepted = Int(run?.count.rawValue ?? 0)
    // What swap has no room for is as it was.
    for i in accepted..<writing.pages.count {
      let frame = writing.pages[i]
      let record = self.record(frame)
      let object = self.object(of: record)
      let interrupts = object.lock()
      markDirtyAgain(frame, record)
      endSbusy(frame, record, object, accepted == 0 ? .unswappable : .laundry, interrupts)
      if accepted == 0 { outcome.unswappable = outcome.unswappable + .one }
    }
    writing.pages.truncate(to: accepted)
    guard let run else { return .nothing }
    writing.write = writing.pages.withFrames { swap.beginWrite($0, to: run) }
    return writing.write == nil ? .noRequest : .begun
  }

  /// The page has no copy after all. Object's lock held.
  private func markDirtyAgain(_ frame: FrameNumber, _ record: FrameRecordPointer) {
    if record.pageFlags.contains(.dirty) { return }
    record.pageFlags.insert(.dirty)
    physical.noteDirty(frame)
  }

  /// Waits for a request and looks at each of its pages again.
  private func finish(_ writing: inout Writing, _ outcome: inout LaunderOutcome) {
    outcome.written = outcome.written + PageCount(writing.pages.count)
    let transfers = state.pointee.transfers
    if let transfer = writing.transfer { transfers.wait(transfer) }
    let written = writing.write.map { swap.finishWrite($0) }
    let hasFailed = writing.transfer.map { transfers.hasFailed($0) } ?? false
    if let transfer = writing.transfer { transfers.end(transfer) }
    var batch = ShootdownBatch()
    var clean = PageBatch()
    for i in 0..<writing.pages.count {
      let frame = writing.pages[i]
      let record = record(frame)
      let object = object(of: record)
      let copy = written?.slot(i) ?? .none
      let failed = hasFailed || (written != nil && copy == .none)
      let interrupts = object.lock()
      if failed || record.pageFlags.contains(.dirty) {
        let wasDirtied = record.pageFlags.contains(.dirty)
        if copy != .none { swap.free(copy) }
        markDirtyAgain(frame, record)
        if failed {
          outcome.failed = outcome.failed + .one
        } else {
          outcome.redirtied = outcome.redirtied + .one
        }
        endSbusy(frame, record, object, wasDirtied ? .active : .laundry, interrupts)
        continue
      }
      if copy != .none {
        let slot = object.slot(record.index)
        slot.value = PageSlot(.resident, frame, copy)
        object.core.pointee.inSwap += 1
      }
      guard record.trySbusyToXbusy() else {
        endSbusy(frame, record, object, .inactive, interrupts)
        outcome.passedOver = outcome.passedOver + .one
        continue
      }
      removeAll(record.index, object, &batch)
      object.unlock(interrupts)
      clean.add(frame)
    }
    batch.flush(on: machine)
    reclaim(&clean, &outcome)
  }

  /// Gives up pages that are exclusive, clean, unmapped and forgotten by every processor.
  func reclaim(_ clean: inout PageBatch, _ outcome: inout LaunderOutcome) {
    for i in 0..<clean.count { reclaim(clean[i]) }
    outcome.freed = outcome.freed + PageCount(clean.count)
    clean.removeAll()
  }

  func reclaim(_ frame: FrameNumber) {
    let record = record(frame)
    let object = object(of: record)
    let interrupts = object.lock()
    let slot = object.slot(record.index)
    let copy = slot.value.swap
    let hasCopy = copy != .none || object.kind == .device
    slot.value = hasCopy ? PageSlot(.cached, frame, copy) : .untouched
    object.core.pointee.resident -= 1
    object.unlock(interrupts)
    release(frame, record, hasCopy ? .cached : .dropped)
  }

  /// Lets pages that could not be written for want of swap be tried again: as many as there are free slots.
  public func retryUnswappable() {
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
