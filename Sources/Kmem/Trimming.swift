// Trimming: a thread releases the memory that caches kept for a burst that is over.
//
// A depot's working set is the magazines that it needed since the last trim. The fewest full magazines that it had in
// that time exceed the working set (Bonwick and Adams, "Magazines and Vmem", section 3.1). The same holds for empty
// magazines, and for slabs that have no object in use. The thread trims every few seconds. A trim touches depots and
// slabs only: it disturbs no processor and nothing that is in use all the time.

import Magazines
import MemoryPrimitives
import Synchronization

/// The thread that trims, and how often.
struct Trimmer: ~Copyable {
  /// Held during a trim.
  let lock = SleepLock(.kmemTrim)
  /// 0 for none.
  let thread = Atomic<UInt64>(0)
  let isEnding = Atomic<Bool>(false)
  let interval = Atomic<UInt64>(5000)
  let changed = WaitQueue("the next trim", .thread)
  let trims = Atomic<UInt64>(0)

  init() {}
}

extension KmemAllocator {
  /// Releases the memory that no cache needed since the last trim: objects and magazines in depots, free slabs. Answers
  /// the pages released. Visits each cache; no spin lock may be held.
  @discardableResult public func trim() -> PageCount {
    state.trimmer.trims.add(1, ordering: .relaxed)
    return state.trimmer.lock.withLock(on: state.machine) {
      let before = slabPages
      forEach { cache in
        // Before objects return: slabs that these make free have been needed until now.
        cache.releaseFreeSlabs(atMost: cache.lists.withLock { $0.fewestFree })
        let (emptied, spare) = cache.magazines.trim { cache.returnToSlab($0, .unknown) }
        cache.lowerDepotLimit(atMost: emptied)
        if spare > 0 { cache.freeEmptyMagazines(atMost: spare) }
        cache.lists.withLock { $0.fewestFree = $0.plain.free.count }
      }
      return before.subtractingSaturated(slabPages)
    }
  }

  /// Starts a thread that trims at intervals until `endTrimming`. Answers false when the machine has no thread left.
  package func startTrimming() -> Bool {
    precondition(state.trimmer.thread.load(ordering: .relaxed) == 0, "trimming has been started")
    state.trimmer.isEnding.store(false, ordering: .sequentiallyConsistent)
    guard
      let thread = state.machine.start(
        "depot trim", .service, base, { KmemAllocator(at: $0.unsafelyUnwrapped).serve() })
    else { return false }
    state.trimmer.thread.store(thread.rawValue, ordering: .relaxed)
    return true
  }

  /// Ends the thread and waits until it has ended. Does nothing when there is none.
  package func endTrimming() {
    let thread = state.trimmer.thread.exchange(0, ordering: .relaxed)
    guard thread != 0 else { return }
    state.trimmer.isEnding.store(true, ordering: .sequentiallyConsistent)
    state.trimmer.changed.wake(on: state.machine)
    state.machine.join(ThreadHandle(rawValue: thread))
  }

  /// Ticks from one trim to the next.
  var trimInterval: UInt64 { state.trimmer.interval.load(ordering: .relaxed) }

  func setTrimInterval(_ ticks: UInt64) {
    state.trimmer.interval.store(ticks, ordering: .relaxed)
    state.trimmer.changed.wake(on: state.machine)
  }

  private func serve() {
    let machine = state.machine
    var last = machine.now.rawValue
    while true {
      let ticket = state.trimmer.changed.ticket()
      if state.trimmer.isEnding.load(ordering: .sequentiallyConsistent) { return }
      let due = last + trimInterval
      if machine.now.rawValue < due {
        _ = state.trimmer.changed.sleep(ticket, until: Tick(due), on: machine)
        continue
      }
      trim()
      last = machine.now.rawValue
    }
  }
}
