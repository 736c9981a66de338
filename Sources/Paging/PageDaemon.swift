// The page daemon keeps enough frames free by reclaiming pages that no thread has used for a while.
//
// The clock with two queues, as in FreeBSD. New and used pages are active. A scan of the active queue clears
// the accessed bits; a page that has none at its turn becomes inactive. A scan of the inactive queue gives a page
// that was used since then its second chance, and reclaims a clean one at once. It moves a dirty one to the laundry
// queue, which is written out when clean pages did not suffice.
//
// A run is a routine with a budget. It ends when the target is reached, or when as many pages were reclaimed as were
// missing at its start, even if other threads allocated them since. It also ends when each page was inspected twice:
// once to clear its bit, once to find it clear. A run asks owners of memory, such as kmem, for what they don't need
// first, and for all that they keep free when no page is left. Its caller is a thread (PagingServices), or where there
// is none a fault that finds few frames free.
//
// The watermarks are FreeBSD's (vm_pageout.c): about 2 % of memory is kept free, the daemon wakes a tenth below.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// How many frames the daemon keeps free.
struct Watermarks: ~Copyable {
  /// A run of the daemon ends here.
  let target: Atomic<UInt64>
  /// The daemon runs below this.
  let wake: Atomic<UInt64>
  /// Pages to keep inactive, so that their accessed bits are read in time.
  let inactive: Atomic<UInt64>

  init(memory: PageCount) {
    let pages = memory.rawValue
    let least = 4 + (pages > 1024 ? (pages - 1024) / 200 : 0)
    // A small machine keeps at most an eighth.
    let target = min(4 * least + 66 + pages / 768, pages / 8)
    self.target = Atomic(target)
    wake = Atomic(target - target / 10)
    inactive = Atomic(min(target + target / 2, pages / 3))
  }
}

/// Whether a run has freed pages, so that a request that was refused may be tried again.
enum Capacity { case some, none }

/// The result of a run of the daemon, in pages.
public struct DaemonOutcome: Sendable {
  /// Pages that became free.
  public var freed = PageCount.zero
  /// Pages that were written out.
  public var written = PageCount.zero
  /// Active pages that became inactive.
  public var deactivated = PageCount.zero
  /// The run fell short of its goal, and no page could be reclaimed.
  package var isFruitless = false
}

extension PagedMemory {
  /// Frames that a run of the daemon leaves free.
  package var freeTarget: PageCount { PageCount(marks.target.value) }
  /// Free frames below which the daemon runs.
  package var wakeMark: PageCount { PageCount(marks.wake.value) }

  /// Runs the daemon until the target is reached or no page is left to reclaim. Sleeps.
  @discardableResult package func runDaemon() -> DaemonOutcome {
    reclaimPages(until: marks.target.value)
  }

  /// Runs the daemon until `frames` are free, whatever the target, and writes `limit` pages at most. Sleeps.
  @discardableResult package func reclaim(until frames: PageCount, writing limit: PageCount) -> DaemonOutcome
  {
    reclaimPages(until: frames.rawValue, writing: limit.rawValue)
  }

  /// Reclaims pages for a request that was refused, even where the target is met.
  func gainCapacity() -> Capacity {
    if let capacity = capacityFromDaemon() { return capacity }
    return reclaimPages(until: goalOfRefusedRequest).freed > .zero ? .some : .none
  }

  /// Reclaims pages for a request that waits for frames, where the daemon has no thread. Answers the frames freed.
  func reclaimForWaiter(_ frames: UInt64) -> UInt64 {
    isServed ? 0 : reclaimPages(until: max(frames, goalOfRefusedRequest)).freed.rawValue
  }

  /// The target, or where that is met already some frames more than are free.
  var goalOfRefusedRequest: UInt64 {
    max(marks.target.value, physical.freeCount.rawValue + 32)
  }

  /// Carries out one run. When it frees nothing, the waiters that need more than is free are parked, so that the waiters
  /// behind them proceed.
  func reclaimPages(
    until wanted: UInt64, writing limit: UInt64 = .max, laundry: Launderer = .caller
  ) -> DaemonOutcome {
    counters.daemonRuns.count()
    retryUnswappable()
    var outcome = DaemonOutcome()
    var owners = ReclaimSteps(physical)
    let missing = wanted - min(wanted, physical.freeCount.rawValue)
    // Memory that no owner needs comes before any page.
    if missing > 0, let freed = owners.reclaimMore(upTo: .surplus) { outcome.freed += freed }
    // Each page may be inspected twice: those of the laundry too, which become active when they were used.
    var scanBudget = 2 * withQueues { $0.count(.active) + $0.count(.inactive) + $0.count(.laundry) } + 64
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
      let deactivated = scanActive(shortage, &scanBudget)
      if let load {
        let laundered = endLaundry(load)
        outcome.written += laundered.written
        freed += laundered.freed.rawValue
      }
      outcome.freed += PageCount(freed)
      outcome.deactivated += PageCount(deactivated)
      if freed == 0 && deactivated == 0 && scanBudget == 0 {
        // No page is left to reclaim, but owners keep more than what they don't need.
        guard let freed = owners.reclaimMore() else { break }
        outcome.freed += freed
      }
    }
    outcome.isFruitless = outcome.freed == .zero
    if outcome.isFruitless { physical.parkUnservableWaiters() }
    return outcome
  }

  /// Reclaims clean pages of the inactive queue, up to `limit`; each page is inspected once. Returns how many.
  private func scanInactive(reclaim limit: UInt64) -> UInt64 {
    var left = withQueues { $0.count(.inactive) }
    var outcome = LaunderOutcome()
    var clean = PageBatch()
    while left > 0 && outcome.freed.rawValue < limit {
      var batch = ShootdownBatch()
      while left > 0 && !clean.isFull && !batch.isFull && outcome.freed.rawValue + UInt64(clean.count) < limit
      {
        left -= 1
        guard let frame = withQueues({ $0.popFirst(.inactive, tries: 1) { $0.tryXbusy() } }) else { continue }
        counters.scanned.count()
        let record = record(frame)
        let object = object(of: record)
        let held = object.acquire()
        if testAndClearReferenced(record.index, held, record) == .used {
          endXbusy(frame, record, .active, held)
        } else if record.pageFlags.contains(.dirty) {
          endXbusy(frame, record, .laundry, held)
        } else {
          removeAll(record.index, held, &batch)
          held.release()
          clean.add(frame)
        }
      }
      batch.flush(on: machine)
      reclaim(&clean, &outcome)
    }
    return outcome.freed.rawValue
  }

  /// Ends the xbusy of a page, which goes to `queue`, releases the object's lock, and wakes the waiters.
  func endXbusy(
    _ frame: FrameNumber, _ record: FrameRecordPointer, _ queue: PageQueue, _ held: consuming HeldObject
  ) {
    withQueues { $0.append(frame, queue) }
    let waiters = record.endXbusy()
    held.release()
    wake(waiters)
  }

  /// Makes pages inactive that were not used since the last scan, until `wanted` and the usual number are inactive.
  /// Inspects at most `scanBudget` pages. Returns how many became inactive.
  private func scanActive(_ wanted: UInt64, _ scanBudget: inout UInt64) -> UInt64 {
    var (deactivated, active) = (UInt64(0), UInt64(0))
    let inactive = withQueues {
      active = $0.count(.active)
      return $0.count(.inactive) + $0.count(.laundry)
    }
    let usual = marks.inactive.value
    var goal = wanted
    if inactive + wanted < usual { goal = usual - inactive }
    // A share of the queue at a time, so that threads have time to set the bits.
    var turn = min(scanBudget, active, 4 * goal + 64)
    while turn > 0 && deactivated < goal {
      turn -= 1
      scanBudget -= 1
      guard let frame = withQueues({ $0.popFirst(.active, tries: 1) { $0.tryXbusy() } }) else { continue }
      counters.scanned.count()
      let record = record(frame)
      let object = object(of: record)
      let held = object.acquire()
      let usage = testAndClearReferenced(record.index, held, record)
      endXbusy(frame, record, usage == .used ? .active : .inactive, held)
      if usage == .unused { deactivated += 1 }
    }
    if active == 0 { scanBudget = 0 }
    return deactivated
  }
}
