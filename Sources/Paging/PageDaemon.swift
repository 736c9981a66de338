// The page daemon: keeps enough frames free by giving up pages that nobody has used for a while.
//
// The clock with two queues, as FreeBSD has it. New and used pages are active. A scan of the active queue clears
// the accessed bits; a page that has none at its turn becomes inactive. A scan of the inactive queue gives a page
// that was used meanwhile its second chance, gives a clean one up at once, and sends a dirty one to the laundry,
// which is written out when clean ones did not suffice.
//
// A run is a routine with a budget: it ends when the target is reached, when as many pages were given up as were
// missing at its start, whoever took them since, or when each page was looked at twice (once to clear its bit, once to
// find it clear). Its caller is a thread (Services), or where there is none a fault that finds few frames free.
//
// The watermarks are FreeBSD's (vm_pageout.c): about 2 % of memory is kept free, the daemon wakes a tenth below.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// Frames that are to be free.
struct Watermarks: ~Copyable {
  /// Where a run of the daemon ends.
  let target: Atomic<UInt64>
  /// Below this it runs.
  let wake: Atomic<UInt64>
  /// Pages to be kept inactive, for the bits to be seen in time.
  let inactive: Atomic<UInt64>

  init(memory: PageCount) {
    let pages = memory.rawValue
    let least = 4 + (pages > 1024 ? (pages - 1024) / 200 : 0)
    // A small machine has no frames to spare for this.
    let target = min(4 * least + 66 + pages / 768, pages / 8)
    self.target = Atomic(target)
    wake = Atomic(target - target / 10)
    inactive = Atomic(min(target + target / 2, pages / 3))
  }
}

/// Whether a request may be tried again.
enum Room { case some, none }

/// What a run of the daemon did.
public struct DaemonOutcome: Sendable {
  public var freed = PageCount.zero
  public var written = PageCount.zero
  public var deactivated = PageCount.zero
  /// More was wanted, and nothing could be given up.
  public var isInVain = false
}

extension PagedMemory {
  /// Frames that a run of the daemon leaves free, and below how many it is run.
  public var freeTarget: PageCount { PageCount(state.pointee.marks.pointee.target.value) }
  public var wakeMark: PageCount { PageCount(state.pointee.marks.pointee.wake.value) }

  /// Runs the daemon until the target is reached or nothing is left to be given up. Sleeps.
  @discardableResult public func runDaemon() -> DaemonOutcome {
    reclaimPages(until: state.pointee.marks.pointee.target.value)
  }

  /// The same until `frames` are free, whatever the target: for a run that takes free frames of the reserve. Writes
  /// `limit` pages at most.
  @discardableResult public func reclaim(until frames: PageCount, writing limit: PageCount) -> DaemonOutcome {
    reclaimPages(until: frames.rawValue, writing: limit.rawValue)
  }

  /// For a request that was refused: gives up a few pages even where the target is met.
  func makeRoom() -> Room {
    if let room = roomFromDaemon() { return room }
    return reclaimPages(until: goalWithRoom).freed > .zero ? .some : .none
  }

  /// The target, or where that is met already some frames more.
  var goalWithRoom: UInt64 {
    max(state.pointee.marks.pointee.target.value, physical.freeCount.rawValue + 32)
  }

  /// One run. When it was in vain, who waits for more than is free keeps nobody else waiting any more.
  func reclaimPages(
    until wanted: UInt64, writing limit: UInt64 = .max, laundry: Launderer = .caller
  ) -> DaemonOutcome {
    counters.pointee.daemonRuns.count()
    retryUnswappable()
    var outcome = DaemonOutcome()
    let missing = wanted - min(wanted, physical.freeCount.rawValue)
    // Each page may be looked at twice: those of the laundry too, which become active when they were used.
    var looks = 2 * withQueues { $0.count(.active) + $0.count(.inactive) + $0.count(.laundry) } + 64
    while true {
      let free = physical.freeCount.rawValue
      if free >= wanted || outcome.freed.rawValue >= missing { return outcome }
      let shortage = min(wanted - free, missing - outcome.freed.rawValue)
      var freed = scanInactive(reclaim: shortage)
      var load: LaundryLoad?
      let writable = limit - min(limit, outcome.written.rawValue)
      if freed < shortage && writable > 0 {
        load = beginLaundry(upTo: PageCount(min(shortage - freed, writable)), by: laundry)
      }
      let deactivated = scanActive(shortage, &looks)
      if let load {
        let laundered = endLaundry(load)
        outcome.written = outcome.written + laundered.written
        freed += laundered.freed.rawValue
      }
      outcome.freed = outcome.freed + PageCount(freed)
      outcome.deactivated = outcome.deactivated + PageCount(deactivated)
      if freed == 0 && deactivated == 0 && looks == 0 { break }
    }
    outcome.isInVain = outcome.freed == .zero
    if outcome.isInVain { physical.parkUnservableWaiters() }
    return outcome
  }

  /// Gives up clean pages of the inactive queue, up to so many; each page is looked at once. Answers how many.
  private func scanInactive(reclaim limit: UInt64) -> UInt64 {
    var left = withQueues { $0.count(.inactive) }
    var outcome = LaunderOutcome()
    var clean = PageBatch()
    while left > 0 && outcome.freed.rawValue < limit {
      var batch = ShootdownBatch()
      while left > 0 && !clean.isFull && !batch.isFull && outcome.freed.rawValue + UInt64(clean.count) < limit
      {
        left -= 1
        guard let frame = withQueues({ $0.take(.inactive, tries: 1) { $0.tryXbusy() } }) else { continue }
        counters.pointee.scanned.count()
        let record = record(frame)
        let object = object(of: record)
        let interrupts = object.lock()
        if takeReferenced(record.index, object, record) == .used {
          endXbusy(frame, record, object, .active, interrupts)
        } else if record.pageFlags.contains(.dirty) {
          endXbusy(frame, record, object, .laundry, interrupts)
        } else {
          removeAll(record.index, object, &batch)
          object.unlock(interrupts)
          clean.add(frame)
        }
      }
      batch.flush(on: machine)
      reclaim(&clean, &outcome)
    }
    return outcome.freed.rawValue
  }

  /// Ends an exclusive claim; the page goes to `queue`. Drops the lock.
  func endXbusy(
    _ frame: FrameNumber, _ record: FrameRecordPointer, _ object: MemoryObject, _ queue: PageQueue,
    _ interrupts: UInt64
  ) {
    withQueues { $0.append(frame, queue) }
    let waiters = record.endXbusy()
    object.unlock(interrupts)
    wake(waiters)
  }

  /// Makes pages inactive that were not used since the scan came by last, until so many and the usual number
  /// are; at most `looks` pages are looked at. Answers how many.
  private func scanActive(_ wanted: UInt64, _ looks: inout UInt64) -> UInt64 {
    var (deactivated, active) = (UInt64(0), UInt64(0))
    let inactive = withQueues {
      active = $0.count(.active)
      return $0.count(.inactive) + $0.count(.laundry)
    }
    let usual = state.pointee.marks.pointee.inactive.value
    var goal = wanted
    if inactive + wanted < usual { goal = usual - inactive }
    // A share of the queue at a time: the bits must have a while to be set.
    var turn = min(looks, active, 4 * goal + 64)
    while turn > 0 && deactivated < goal {
      turn -= 1
      looks -= 1
      guard let frame = withQueues({ $0.take(.active, tries: 1) { $0.tryXbusy() } }) else { continue }
      counters.pointee.scanned.count()
      let record = record(frame)
      let object = object(of: record)
      let interrupts = object.lock()
      let usage = takeReferenced(record.index, object, record)
      endXbusy(frame, record, object, usage == .used ? .active : .inactive, interrupts)
      if usage == .unused { deactivated += 1 }
    }
    if active == 0 { looks = 0 }
    return deactivated
  }
}
