// The threads of paging: the page daemon, and the laundry.
//
// The daemon sleeps until physical memory sends its low-memory notification: below the wake mark, and when a thread
// queues for memory. Then it makes short runs, one after the other, until the target is met and the first waiter is
// served. If clean pages do not suffice, the laundry thread writes dirty ones. The daemon looks for unused pages during
// that, and then waits for the laundry. A run that frees nothing is followed by a pause, longer each time, which ends
// when a thread asks for memory. A waiter that needs more than can be reclaimed is parked for the longest pause.
//
// A fault that finds no frame asks for a run that begins after it has asked, and sleeps until that has ended. All threads
// that ask before the run begins are served by it, so one thread scans in a shortage, however many fault.
//
// Without these threads (a machine that has none, or before they start, or after they were ended) a fault makes the
// runs itself. So the threads may start and end at any time; a thread that waits for a run that will not come is woken.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// State shared by the threads and those that wait for them.
struct PagingServices: ~Copyable {
  let isServed = Atomic<Bool>(false)
  let isEnding = Atomic<Bool>(false)
  /// Handles of the threads, 0 for none.
  let daemon = Atomic<UInt64>(0)
  let launderer = Atomic<UInt64>(0)

  /// Runs of the daemon that were begun and ended, and pages that they freed.
  let begun = Atomic<UInt64>(0)
  let ended = Atomic<UInt64>(0)
  let freed = Atomic<UInt64>(0)
  /// Whether a thread waits for a run.
  let isAwaited = Atomic<Bool>(false)
  let runEnded = WaitQueue("the page daemon", .memory)

  /// Pages that the laundry is to launder, loads that it has completed, and the pages that these freed and wrote.
  let asked = Atomic<UInt64>(0)
  let asking = WaitQueue("dirty pages to write", .thread)
  let loads = Atomic<UInt64>(0)
  let laundered = Atomic<UInt64>(0)
  let written = Atomic<UInt64>(0)
  let loadEnded = WaitQueue("the laundry", .thread)

  init() {}
}

/// The thread that writes pages of the laundry queue during a run of the daemon.
enum Launderer { case caller, thread }

/// A part of the laundry queue that is being laundered, or has been: `endLaundry` ends it.
enum LaundryLoad: ~Copyable {
  case done(LaunderOutcome)
  /// By the laundry thread, with its totals before.
  case underWay(loads: UInt64, freed: UInt64, written: UInt64)
}

extension Atomic where Value == UInt64 {
  /// The value, in one order with all other accesses of this kind, for conditions that a thread sleeps on.
  @inline(__always) fileprivate var current: UInt64 { load(ordering: .sequentiallyConsistent) }
}

extension PagedMemory {
  private var isEnding: Bool { services.isEnding.load(ordering: .sequentiallyConsistent) }

  /// Whether the page daemon has a thread.
  public var isServed: Bool { services.isServed.load(ordering: .sequentiallyConsistent) }

  /// Starts page daemon and laundry as threads of the machine, until `endServices`. Returns false, and nothing has
  /// changed, when the machine has none for the daemon. Without one for the laundry the daemon launders too.
  package func startServices() -> Bool {
    precondition(services.daemon.current == 0, "the services are running")
    services.isEnding.store(false, ordering: .sequentiallyConsistent)
    let context = UnsafeMutableRawPointer(storage)
    guard let daemon = machine.start("page daemon", .service, context, { PagedMemory($0).serveShortage() })
    else { return false }
    let launderer = machine.start("laundry", .service, context) { PagedMemory($0).serveLaundry() }
    services.launderer.store(launderer?.rawValue ?? 0, ordering: .sequentiallyConsistent)
    services.daemon.store(daemon.rawValue, ordering: .sequentiallyConsistent)
    services.isServed.store(true, ordering: .sequentiallyConsistent)
    physical.setLowMemoryMark(below: wakeMark)
    return true
  }

  /// Ends the threads and waits until they have ended. Does nothing where there are none.
  package func endServices() {
    let daemon = services.daemon.exchange(0, ordering: .sequentiallyConsistent)
    guard daemon != 0 else { return }
    services.isServed.store(false, ordering: .sequentiallyConsistent)
    physical.setLowMemoryMark(below: .zero)
    services.isEnding.store(true, ordering: .sequentiallyConsistent)
    physical.notifyLowMemory(.awaited)
    machine.join(ThreadHandle(rawValue: daemon))
    // A thread that waited for a run makes it itself.
    services.runEnded.wake(on: machine)
    // The laundry after the daemon, which may have waited for it.
    let launderer = services.launderer.exchange(0, ordering: .sequentiallyConsistent)
    guard launderer != 0 else { return }
    services.asking.wake(on: machine)
    machine.join(ThreadHandle(rawValue: launderer))
  }

  // MARK: The page daemon

  /// The most pages that a run frees, so that threads that wait for its end proceed soon.
  private static var runLength: UInt64 { 256 }
  /// Ticks between two runs that free nothing: the first time, and at most.
  private static var pauses: (shortest: UInt64, longest: UInt64) { (100, 1600) }

  func serveShortage() {
    var isFilling = false
    var pause = Self.pauses.shortest
    var returnTime = Tick(0)
    while !isEnding {
      if machine.now >= returnTime { physical.unparkWaiters() }
      // Read before the number of free frames: a thread that queues later sends the notification, one that queued before
      // is counted here.
      let awaited = physical.awaited.rawValue
      let free = physical.freeCount.rawValue
      let mark = isFilling ? freeTarget.rawValue : wakeMark.rawValue
      guard services.isAwaited.load(ordering: .sequentiallyConsistent) || free < max(mark, awaited)
      else {
        isFilling = false
        physical.awaitLowMemory(.few, until: physical.hasParkedWaiters ? returnTime : .never)
        continue
      }
      isFilling = true
      // In this order: a thread that read the count before it grew is served by this run, see `capacityFromDaemon`.
      services.begun.add(1, ordering: .sequentiallyConsistent)
      let isAwaited = services.isAwaited.exchange(false, ordering: .sequentiallyConsistent)
      // A thread that asks from here on counts this run as begun.
      reportClaim(state.services)
      let goal = max(isAwaited ? goalOfRefusedRequest : freeTarget.rawValue, awaited)
      let outcome = reclaimPages(
        until: min(goal, free + Self.runLength),
        laundry: services.launderer.current == 0 ? .caller : .thread)
      services.freed.add(outcome.freed.rawValue, ordering: .sequentiallyConsistent)
      services.ended.add(1, ordering: .sequentiallyConsistent)
      services.runEnded.wake(on: machine)
      if outcome.isFruitless {
        let now = machine.now.rawValue
        returnTime = Tick(now &+ Self.pauses.longest)
        let isAsked = physical.awaitLowMemory(.awaited, until: Tick(now &+ pause))
        pause = isAsked ? Self.pauses.shortest : min(2 * pause, Self.pauses.longest)
      } else {
        pause = Self.pauses.shortest
      }
    }
  }

  /// Asks the daemon's thread for a run, and waits until that has ended; nil when there is no thread.
  func capacityFromDaemon() -> Capacity? {
    let freed = services.freed.current
    // Set before the count is read, so that a run that has not begun yet sees it.
    services.isAwaited.store(true, ordering: .sequentiallyConsistent)
    let wanted = services.begun.current + 1
    while true {
      let ticket = services.runEnded.ticket()
      guard isServed else { return nil }
      if services.ended.current >= wanted { break }
      // Between this check and the sleep only the ticket reports that a run has ended.
      reportClaim(state.services)
      services.isAwaited.store(true, ordering: .sequentiallyConsistent)
      physical.notifyLowMemory(.awaited)
      guard services.runEnded.sleep(ticket, on: machine) else { return nil }
    }
    return services.freed.current > freed ? Capacity.some : Capacity.none
  }

  // MARK: The laundry

  func serveLaundry() {
    while true {
      let ticket = services.asking.ticket()
      let asked = services.asked.exchange(0, ordering: .sequentiallyConsistent)
      if asked == 0 {
        // Only after the daemon has ended, because that asks for loads.
        if isEnding && services.launderer.current == 0 { return }
        reportClaim(state.services)
        _ = services.asking.sleep(ticket, on: machine)
        continue
      }
      let outcome = launderForDaemon(upTo: PageCount(asked))
      services.laundered.add(outcome.freed.rawValue, ordering: .sequentiallyConsistent)
      services.written.add(outcome.written.rawValue, ordering: .sequentiallyConsistent)
      services.loads.add(1, ordering: .sequentiallyConsistent)
      services.loadEnded.wake(on: machine)
    }
  }

  /// Begins to launder up to `limit` pages of the laundry queue: by the caller, at once, or by the laundry thread while
  /// the caller goes on. Only the daemon's thread asks the laundry thread, and only for one load at a time.
  func beginLaundry(upTo limit: PageCount, by launderer: Launderer) -> LaundryLoad {
    guard launderer == .thread else { return .done(launderForDaemon(upTo: limit)) }
    let load = LaundryLoad.underWay(
      loads: services.loads.current, freed: services.laundered.current,
      written: services.written.current)
    services.asked.store(limit.rawValue, ordering: .sequentiallyConsistent)
    services.asking.wake(on: machine)
    return load
  }

  /// Waits for the load, and returns its result.
  func endLaundry(_ load: consuming LaundryLoad) -> LaunderOutcome {
    switch load {
    case .done(let outcome): return outcome
    case .underWay(let loads, let freed, let written):
      while true {
        let ticket = services.loadEnded.ticket()
        if services.loads.current != loads { break }
        reportClaim(state.services)
        _ = services.loadEnded.sleep(ticket, on: machine)
      }
      var outcome = LaunderOutcome()
      outcome.freed = PageCount(services.laundered.current - freed)
      outcome.written = PageCount(services.written.current - written)
      return outcome
    }
  }
}
