// Trimming: what caches kept for a burst that is long over goes back to the frames.
//
// A depot's working set is what it had to give since the last look, and the fewest full magazines that lay there all
// the while are beyond it (Bonwick and Adams, "Magazines and Vmem", section 3.1); so with empty magazines, and with
// slabs that have no object in use. A thread looks every few seconds. What is in use all the time is left alone, and
// no processor is disturbed: a trim takes from depots and slabs only.

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
  /// Gives back what no cache needed since the last trim: objects and magazines in depots, free slabs. Answers
  /// the pages given back. Visits each cache; no spin lock may be held.
  @discardableResult public func trim() -> PageCount {
    state.pointee.trimmer.trims.add(1, ordering: .relaxed)
    state.pointee.trimmer.lock.lock(on: state.pointee.machine)
    defer { state.pointee.trimmer.lock.unlock(on: state.pointee.machine) }
    let before = slabPages
    forEach { cache in
      // Before objects come back: slabs that these make free have been needed until now.
      cache.giveBackFree(atMost: cache.cache.pointee.lists.withLock { $0.fewestFree })
      let (emptied, spare) = cache.magazines.trim { cache.putBack($0, .unknown) }
      cache.lowerFullLimit(atMost: emptied)
      if spare > 0 { cache.returnMagazines(atMost: spare) }
      cache.cache.pointee.lists.withLock { $0.fewestFree = $0.plain.free.count }
    }
    return before - min(slabPages, before)
  }

  /// Has a thread of the machine trim from time to time, until `endTrimming`. False when there is none to be had.
  public func startTrimming() -> Bool {
    precondition(state.pointee.trimmer.thread.load(ordering: .relaxed) == 0, "trimming has been started")
    state.pointee.trimmer.isEnding.store(false, ordering: .sequentiallyConsistent)
    guard
      let thread = state.pointee.machine.start(
        "depot trim", .service, base, { KmemAllocator(at: $0.unsafelyUnwrapped).serve() })
    else { return false }
    state.pointee.trimmer.thread.store(thread.rawValue, ordering: .relaxed)
    return true
  }

  /// Ends the thread and waits until it is gone. Nothing happens where there is none.
  public func endTrimming() {
    let thread = state.pointee.trimmer.thread.exchange(0, ordering: .relaxed)
    guard thread != 0 else { return }
    state.pointee.trimmer.isEnding.store(true, ordering: .sequentiallyConsistent)
    state.pointee.trimmer.changed.wake(on: state.pointee.machine)
    state.pointee.machine.join(ThreadHandle(rawValue: thread))
  }

  /// Ticks from one trim to the next.
  var trimInterval: UInt64 { state.pointee.trimmer.interval.load(ordering: .relaxed) }

  func setTrimInterval(_ ticks: UInt64) -> Bool {
    guard (1...86_400_000).contains(ticks) else { return false }
    state.pointee.trimmer.interval.store(ticks, ordering: .relaxed)
    state.pointee.trimmer.changed.wake(on: state.pointee.machine)
    return true
  }

  private func serve() {
    let machine = state.pointee.machine
    var last = machine.now.rawValue
    while true {
      let ticket = state.pointee.trimmer.changed.ticket()
      if state.pointee.trimmer.isEnding.load(ordering: .sequentiallyConsistent) { return }
      let due = last + trimInterval
      if machine.now.rawValue < due {
        _ = state.pointee.trimmer.changed.sleep(ticket, until: Tick(due), on: machine)
        continue
      }
      trim()
      last = machine.now.rawValue
    }
  }
}
