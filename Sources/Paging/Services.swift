// The threads of paging: the page daemon, and the laundry.
//
// The daemon sleeps until physical memory raises its alarm, which it does below the wake mark and when somebody gets in
// line. Then it makes short runs, one after the other, until the target is met, and for the first in line too. What clean
// pages do not give it has the laundry write: meanwhile it looks for pages that nobody uses, and then it waits. A run
// in vain is followed by a pause, longer each time, which ends when somebody asks for memory; who waits for more than is
// to be had stands aside for the time of the longest pause.
//
// A fault that finds no frame asks for a run that begins after it has asked, and sleeps until that has ended. All that
// ask meanwhile are served by the same run, so a shortage is met by one who scans, however many fault.
//
// Without these threads (a machine that has none, or before they start, or after they were ended) a fault makes the
// runs itself. So the threads may come and go at any time; who waits for a run that will not come is told.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// What the threads and those who wait for them share.
struct Services: ~Copyable {
  let isServed = Atomic<Bool>(false)
  let isEnding = Atomic<Bool>(false)
  /// The threads, 0 for none.
  let daemon = Atomic<UInt64>(0)
  let launderer = Atomic<UInt64>(0)

  /// Runs of the daemon that were begun and ended, and pages that they gave up.
  let begun = Atomic<UInt64>(0)
  let ended = Atomic<UInt64>(0)
  let freed = Atomic<UInt64>(0)
  /// Whether somebody waits for a run.
  let isAwaited = Atomic<Bool>(false)
  let runEnded = WaitQueue("the page daemon", .memory)

  /// Pages that the laundry is to look at, loads that it has done, and what came of them.
  let asked = Atomic<UInt64>(0)
  let asking = WaitQueue("dirty pages to write", .thread)
  let loads = Atomic<UInt64>(0)
  let laundered = Atomic<UInt64>(0)
  let written = Atomic<UInt64>(0)
  let loadEnded = WaitQueue("the laundry", .thread)

  init() {}
}

/// Who writes the pages of the laundry during a run of the daemon.
enum Launderer { case caller, thread }

/// A part of the laundry that is being done, or has been.
enum LaundryLoad {
  case done(LaunderOutcome)
  /// By the thread: what it had done before.
  case underWay(loads: UInt64, freed: UInt64, written: UInt64)
}

extension Atomic where Value == UInt64 {
  /// In one order with all other accesses of this kind, for what somebody sleeps on.
  @inline(__always) fileprivate var news: UInt64 { load(ordering: .sequentiallyConsistent) }
}

extension PagedMemory {
  private var services: UnsafeMutablePointer<Services> { state.pointee.services }
  private var isEnding: Bool { services.pointee.isEnding.load(ordering: .sequentiallyConsistent) }

  /// Whether the page daemon has a thread.
  public var isServed: Bool { services.pointee.isServed.load(ordering: .sequentiallyConsistent) }

  /// Has page daemon and laundry run as threads of the machine, until `endServices`. False, and nothing has changed,
  /// when it gives none for the daemon; without one for the laundry the daemon does that too.
  public func startServices() -> Bool {
    precondition(services.pointee.daemon.news == 0, "the services are running")
    services.pointee.isEnding.store(false, ordering: .sequentiallyConsistent)
    let context = UnsafeMutableRawPointer(state)
    guard let daemon = machine.start("page daemon", .service, context, { PagedMemory($0).serveShortage() })
    else { return false }
    let launderer = machine.start("laundry", .service, context) { PagedMemory($0).serveLaundry() }
    services.pointee.launderer.store(launderer?.rawValue ?? 0, ordering: .sequentiallyConsistent)
    services.pointee.daemon.store(daemon.rawValue, ordering: .sequentiallyConsistent)
    services.pointee.isServed.store(true, ordering: .sequentiallyConsistent)
    physical.setLowMemoryMark(below: wakeMark)
    return true
  }

  /// Ends the threads and waits until they are gone. Nothing happens where there are none.
  public func endServices() {
    let daemon = services.pointee.daemon.exchange(0, ordering: .sequentiallyConsistent)
    guard daemon != 0 else { return }
    services.pointee.isServed.store(false, ordering: .sequentiallyConsistent)
    physical.setLowMemoryMark(below: .zero)
    services.pointee.isEnding.store(true, ordering: .sequentiallyConsistent)
    physical.notifyLowMemory(.awaited)
    machine.join(ThreadHandle(rawValue: daemon))
    // Who waited for a run makes it now.
    services.pointee.runEnded.wake(on: machine)
    // The laundry after the daemon, which may have waited for it.
    let launderer = services.pointee.launderer.exchange(0, ordering: .sequentiallyConsistent)
    guard launderer != 0 else { return }
    services.pointee.asking.wake(on: machine)
    machine.join(ThreadHandle(rawValue: launderer))
  }

  // MARK: The page daemon

  /// Pages that a run gives up at most, so that who waits for it to end goes on soon.
  private static var runLength: UInt64 { 256 }
  /// Ticks between two runs that give nothing up: the first time, and at most.
  private static var pauses: (shortest: UInt64, longest: UInt64) { (100, 1600) }

  func serveShortage() {
    var isFilling = false
    var pause = Self.pauses.shortest
    var returnTime = Tick(0)
    while !isEnding {
      if machine.now >= returnTime { physical.unparkWaiters() }
      // Before the look at what is free: whoever gets in line after it raises the alarm, whoever did so before is seen.
      let awaited = physical.awaited.rawValue
      let free = physical.freeCount.rawValue
      let mark = isFilling ? freeTarget.rawValue : wakeMark.rawValue
      guard services.pointee.isAwaited.load(ordering: .sequentiallyConsistent) || free < max(mark, awaited)
      else {
        isFilling = false
        physical.awaitLowMemory(.few, until: physical.hasParkedWaiters ? returnTime : .never)
        continue
      }
      isFilling = true
      // In this order: whoever has seen the count before it grew is served by this run, see `roomFromDaemon`.
      services.pointee.begun.add(1, ordering: .sequentiallyConsistent)
      let isAwaited = services.pointee.isAwaited.exchange(false, ordering: .sequentiallyConsistent)
      // A thread that asks from here on counts this run as begun.
      noteClaim(services)
      let goal = max(isAwaited ? goalWithRoom : freeTarget.rawValue, awaited)
      let outcome = reclaimPages(
        until: min(goal, free + Self.runLength),
        laundry: services.pointee.launderer.news == 0 ? .caller : .thread)
      services.pointee.freed.add(outcome.freed.rawValue, ordering: .sequentiallyConsistent)
      services.pointee.ended.add(1, ordering: .sequentiallyConsistent)
      services.pointee.runEnded.wake(on: machine)
      if outcome.isInVain {
        let now = machine.now.rawValue
        returnTime = Tick(now &+ Self.pauses.longest)
        let isAsked = physical.awaitLowMemory(.awaited, until: Tick(now &+ pause))
        pause = isAsked ? Self.pauses.shortest : min(2 * pause, Self.pauses.longest)
      } else {
        pause = Self.pauses.shortest
      }
    }
  }

  /// Has the daemon's thread make a run, and waits until it has ended; nil when there is no thread.
  func roomFromDaemon() -> Room? {
    let freed = services.pointee.freed.news
    // A run that has not begun yet: it sees that it is awaited, as this is said first.
    services.pointee.isAwaited.store(true, ordering: .sequentiallyConsistent)
    let wanted = services.pointee.begun.news + 1
    while true {
      let ticket = services.pointee.runEnded.ticket()
      guard isServed else { return nil }
      if services.pointee.ended.news >= wanted { break }
      // From the look on until it sleeps, only the ticket tells that a run has ended.
      noteClaim(services)
      services.pointee.isAwaited.store(true, ordering: .sequentiallyConsistent)
      physical.notifyLowMemory(.awaited)
      guard services.pointee.runEnded.sleep(ticket, on: machine) else { return nil }
    }
    return services.pointee.freed.news > freed ? Room.some : Room.none
  }

  // MARK: The laundry

  func serveLaundry() {
    while true {
      let ticket = services.pointee.asking.ticket()
      let asked = services.pointee.asked.exchange(0, ordering: .sequentiallyConsistent)
      if asked == 0 {
        // Only when the daemon is gone, who asks.
        if isEnding && services.pointee.launderer.news == 0 { return }
        noteClaim(services)
        _ = services.pointee.asking.sleep(ticket, on: machine)
        continue
      }
      let outcome = launderForDaemon(upTo: PageCount(asked))
      services.pointee.laundered.add(outcome.freed.rawValue, ordering: .sequentiallyConsistent)
      services.pointee.written.add(outcome.written.rawValue, ordering: .sequentiallyConsistent)
      services.pointee.loads.add(1, ordering: .sequentiallyConsistent)
      services.pointee.loadEnded.wake(on: machine)
    }
  }

  /// Has up to `limit` pages of the laundry written: by the caller, at once, or by the thread meanwhile. Only the
  /// daemon's thread asks the laundry's, and only for one load at a time.
  func beginLaundry(upTo limit: PageCount, by launderer: Launderer) -> LaundryLoad {
    guard launderer == .thread else { return .done(launderForDaemon(upTo: limit)) }
    let load = LaundryLoad.underWay(
      loads: services.pointee.loads.news, freed: services.pointee.laundered.news,
      written: services.pointee.written.news)
    services.pointee.asked.store(limit.rawValue, ordering: .sequentiallyConsistent)
    services.pointee.asking.wake(on: machine)
    return load
  }

  func endLaundry(_ load: LaundryLoad) -> LaunderOutcome {
    switch load {
    case .done(let outcome): return outcome
    case .underWay(let loads, let freed, let written):
      while true {
        let ticket = services.pointee.loadEnded.ticket()
        if services.pointee.loads.news != loads { break }
        noteClaim(services)
        _ = services.pointee.loadEnded.sleep(ticket, on: machine)
      }
      var outcome = LaunderOutcome()
      outcome.freed = PageCount(services.pointee.laundered.news - freed)
      outcome.written = PageCount(services.pointee.written.news - written)
      return outcome
    }
  }
}
