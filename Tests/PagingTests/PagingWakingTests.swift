import Foundation
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import HostMachine
@testable import Paging

/// Threads that wait for what is rare: each is woken when it comes. Where two threads are needed, the machine notices
/// when both sleep: one that was not woken is refused, or counted as rescued.
final class PagingWakingTests: XCTestCase {
  // MARK: One thread, with the other's part done in its sleep

  /// All pages that could be reclaimed are in the hands of another thread's laundry run: a fault waits for it to end.
  func testTheEndOfALaundryRunWakesAFaultThatWaitsForIt() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    try system.physical.setReserve(.zero, for: .normal)
    let (area, other) = (try system.area(1), try system.area(1))
    try system.write(other, 0, 5)
    // It can't be reclaimed before the other run ends.
    let held = try system.paging.hold(other[0], .write)
    _ = system.takeAll()
    let paging = system.paging
    paging.state.launderers.add(1, ordering: .relaxed)
    nonisolated(unsafe) var sleeps = 0
    nonisolated(unsafe) var isEnding = false
    system.host.runDevices = {
      if isEnding { return system.disk.poll() }
      sleeps += 1
      guard sleeps == 1 else { return false }
      isEnding = true
      paging.unhold(held)
      paging.state.launderers.subtract(1, ordering: .relaxed)
      let outcome = paging.launder(outOf: FrameRun(first: held, count: .one), .all, atMost: .one)
      XCTAssertEqual(outcome.freed, .one)
      isEnding = false
      return true
    }
    XCTAssertNoThrow(try paging.fault(area[0], .write))
    XCTAssertEqual(sleeps, 1, "the fault was not woken")
    XCTAssertEqual(paging.state.starvationCount.load(ordering: .relaxed), 0)
    system.check()
  }

  func testALaundryRunThatEndsBeforeTheSleepIsNotSleptOn() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    let paging = system.paging
    paging.state.launderers.add(1, ordering: .relaxed)
    nonisolated(unsafe) var sleeps = 0
    system.host.runDevices = {
      sleeps += 1
      return false
    }
    func end(_: UnsafeRawPointer) {
      paging.state.launderers.subtract(1, ordering: .relaxed)
      paging.state.laundered.wake(on: system.host.machine)
    }
    system.host.withClaims(.unlocked, handler: end) { XCTAssertTrue(system.paging.laundryEnded()) }
    XCTAssertEqual(sleeps, 0)
  }

  /// The last call that uses a range ends at any moment while an unmap is on its way to sleep on it.
  func testARangeThatIsLeftBeforeTheSleepIsNotSleptOn() throws {
    var moments = 0
    while true {
      let system = try TestSystem(runs: [(256, 160)], swap: 64)
      let area = try system.area(1)
      let paging = system.paging
      let use = Kept(paging.beginUse(of: area[0])!)
      nonisolated(unsafe) var isLeft = false
      nonisolated(unsafe) var sleeps = 0
      @Sendable func leave() {
        isLeft = true
        _ = use.move()
      }
      system.host.runDevices = {
        sleeps += 1
        if isLeft { return false }
        leave()
        return true
      }
      var isEarly = false
      func other() {
        isEarly = !isLeft
        if isEarly { leave() }
      }
      _ = system.preempting(at: moments, other, { system.hide(area) })
      XCTAssertEqual(sleeps, isEarly ? 0 : 1, "moment \(moments)")
      if !isEarly { break }
      moments += 1
    }
    XCTAssertGreaterThan(moments, 0)
  }

  /// A thread asks while a run of the daemon is under way, which does not know of it: only the next one is its own.
  func testARunThatHasBegunIsNotTheRunThatIsAskedFor() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    let paging = system.paging
    let services = paging.state.services
    services.pointee.isServed.store(true, ordering: .relaxed)
    services.pointee.begun.add(1, ordering: .relaxed)
    nonisolated(unsafe) let its = services
    let machine = system.host.machine
    nonisolated(unsafe) var sleeps = 0
    system.host.runDevices = {
      sleeps += 1
      switch sleeps {
      // The run that had begun has taken note of the request.
      case 1: its.pointee.isAwaited.store(false, ordering: .relaxed)
      case 2:
        XCTAssertTrue(its.pointee.isAwaited.load(ordering: .relaxed))
        its.pointee.begun.add(1, ordering: .relaxed)
        its.pointee.freed.add(7, ordering: .relaxed)
      default: return false
      }
      its.pointee.ended.add(1, ordering: .relaxed)
      its.pointee.runEnded.wake(on: machine)
      return true
    }
    XCTAssertEqual(paging.capacityFromDaemon(), .some)
    XCTAssertEqual(sleeps, 2)
  }

  /// Runs `act`, which checks the state shared by services and their callers `rounds` times. After the n-th check,
  /// from 0, another thread runs `concurrently(n)`. Returns how often the thread of `act` slept.
  private func sleeps(
    of system: TestSystem, rounds: Int = 1, in act: () -> Void, concurrently: @escaping (Int) -> Void
  ) -> Int {
    let services = UnsafeRawPointer(system.paging.state.services)
    nonisolated(unsafe) var sleeps = 0
    let disk = system.disk
    system.host.runDevices = {
      if disk.poll() { return true }
      sleeps += 1
      return false
    }
    var looks = 0
    func record(_ word: UnsafeRawPointer) {
      guard word == services else { return }
      concurrently(looks)
      looks += 1
    }
    system.host.withClaims(.unlocked, handler: record, act)
    XCTAssertEqual(looks, rounds)
    return sleeps
  }

  /// A thread asks the daemon just after this has begun a run: the run does not count as the one that is asked for, but
  /// another one follows.
  func testAThreadThatAsksAsARunBeginsIsServedByTheNext() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    let services = system.paging.state.services
    services.pointee.isAwaited.store(true, ordering: .relaxed)
    var wanted: UInt64?
    let slept = sleeps(
      of: system, rounds: 2, in: { system.paging.serveShortage() },
      concurrently: { look in
        system.physical.notifyLowMemory(.awaited)
        if look == 0 {
          services.pointee.isAwaited.store(true, ordering: .relaxed)
          wanted = services.pointee.begun.load(ordering: .relaxed) + 1
        } else {
          XCTAssertLessThan(services.pointee.ended.load(ordering: .relaxed), wanted!)
          services.pointee.isEnding.store(true, ordering: .relaxed)
        }
      })
    XCTAssertEqual(services.pointee.ended.load(ordering: .relaxed), wanted)
    XCTAssertEqual(slept, 0)
  }

  func testARunThatEndsBeforeTheSleepIsNotSleptOn() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    let paging = system.paging
    let services = paging.state.services
    services.pointee.isServed.store(true, ordering: .relaxed)
    var capacity: Capacity?
    let slept = sleeps(
      of: system, in: { capacity = paging.capacityFromDaemon() },
      concurrently: { _ in
        services.pointee.begun.add(1, ordering: .relaxed)
        services.pointee.freed.add(7, ordering: .relaxed)
        services.pointee.ended.add(1, ordering: .relaxed)
        services.pointee.runEnded.wake(on: system.host.machine)
      })
    XCTAssertEqual(capacity, .some)
    XCTAssertEqual(slept, 0)
  }

  func testALoadThatIsAskedForBeforeTheLaundrySleepsIsDone() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    let paging = system.paging
    let services = paging.state.services
    services.pointee.launderer.store(1, ordering: .relaxed)
    let slept = sleeps(
      of: system, rounds: 2, in: { paging.serveLaundry() },
      concurrently: { look in
        if look == 0 {
          _ = paging.beginLaundry(upTo: .one, by: .thread)
        } else {
          XCTAssertEqual(services.pointee.loads.load(ordering: .relaxed), 1)
          services.pointee.isEnding.store(true, ordering: .relaxed)
          services.pointee.launderer.store(0, ordering: .relaxed)
          services.pointee.asking.wake(on: system.host.machine)
        }
      })
    XCTAssertEqual(slept, 0)
  }

  func testALoadThatEndsBeforeTheDaemonSleepsIsNotSleptOn() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    let paging = system.paging
    let services = paging.state.services
    let load = Kept(paging.beginLaundry(upTo: .one, by: .thread))
    var outcome = LaunderOutcome()
    let slept = sleeps(
      of: system, in: { outcome = paging.endLaundry(load.move()) },
      concurrently: { _ in
        services.pointee.laundered.add(3, ordering: .relaxed)
        services.pointee.written.add(2, ordering: .relaxed)
        services.pointee.loads.add(1, ordering: .relaxed)
        services.pointee.loadEnded.wake(on: system.host.machine)
      })
    XCTAssertEqual(outcome.freed, PageCount(UInt64(3)))
    XCTAssertEqual(outcome.written, PageCount(UInt64(2)))
    XCTAssertEqual(slept, 0)
  }

  /// A thread that waits until a page has no claims is woken by the end of a hold and of a wire.
  func testTheEndOfAHoldAndOfAWireWakesAThreadThatWaitsForThePage() throws {
    for isWired in [false, true] {
      let system = try TestSystem(runs: [(256, 160)], swap: 64)
      let paging = system.paging
      let area = try system.area(1)
      let frame = try paging.hold(area[0], .write)
      if isWired {
        try paging.wire(area[0], .one, holes: .forbidden)
        paging.unhold(frame)
      }
      let machine = system.host.machine
      nonisolated(unsafe) var sleeps = 0
      system.host.runDevices = {
        sleeps += 1
        if sleeps > 1 {
          // No wake came: the test ends all the same.
          paging.state.waiting.wake(on: machine)
        } else if isWired {
          paging.unwire(area[0], .one)
        } else {
          paging.unhold(frame)
        }
        return true
      }
      let record = system.physical.knownRecord(frame)
      paging.waitUntilUnused(record, area.object.acquire())
      XCTAssertEqual(sleeps, 1, isWired ? "unwire" : "unhold")
      XCTAssertEqual(record.busyWord.uses, 0)
    }
  }

  /// A page is let go at any moment while a fault is on its way to sleep on it.
  func testAPageThatIsReleasedBeforeTheSleepIsNotSleptOn() throws {
    var moments = 0
    while true {
      let system = try TestSystem(runs: [(256, 160)], swap: 64)
      let area = try system.area(1)
      try system.write(area, 0, 1)
      nonisolated(unsafe) let record = system.physical.knownRecord(system.frame(area, 0))
      XCTAssertTrue(record.tryXbusy())
      nonisolated(unsafe) var isLetGo = false
      nonisolated(unsafe) var sleeps = 0
      let paging = system.paging
      @Sendable func letGo() {
        isLetGo = true
        paging.wake(record.endXbusy())
      }
      system.host.runDevices = {
        sleeps += 1
        if isLetGo { return false }
        letGo()
        return true
      }
      var isEarly = false
      func other() {
        isEarly = !isLetGo
        if isEarly { letGo() }
      }
      _ = system.preempting(at: moments, other, { try! paging.fault(area[0], .read) })
      XCTAssertEqual(sleeps, isEarly ? 0 : 1, "moment \(moments)")
      if !isEarly { break }
      moments += 1
    }
    XCTAssertGreaterThan(moments, 1)
  }

  // MARK: Two threads

  /// A machine whose threads are known; its disk completes a request when as many threads sleep as it is set to.
  private final class Duo: @unchecked Sendable {
    let system: TestSystem
    let area: Area
    private let isOver = Atomic<Bool>(false)
    private let isClaimed = Atomic<Bool>(false)

    /// The area's page 0 is dirty.
    init(frames: UInt64 = 160, processors: Int = 2) throws {
      system = try TestSystem(runs: [(256, frames)], swap: 4096, processors: processors)
      area = try system.area(4)
      try system.write(area, 0, 1)
    }

    /// Runs both on threads of their own; the disk carries its first request out when `sleepers` of them sleep.
    func run(
      diskAwaits sleepers: Int, _ first: @escaping () -> Void, _ second: @escaping () -> Void
    ) {
      nonisolated(unsafe) let (first, second) = (first, second)
      system.host.runDevices = nil
      system.host.hasOtherThreads = true
      system.host.isClosed = true
      let device = Foundation.Thread { [self] in
        while system.host.sleeperCount < sleepers && !isOver.load(ordering: .acquiring) {
          usleep(20)
        }
        while !isOver.load(ordering: .acquiring) {
          system.host.advance()
          if !system.disk.poll() { usleep(20) }
        }
      }
      device.start()
      system.host.onThreads(2) { index in if index == 0 { first() } else { second() } }
      isOver.store(true, ordering: .releasing)
      system.host.hasOtherThreads = false
      system.host.isClosed = false
      let disk = system.disk
      system.host.runDevices = { disk.poll() }
      system.buffer.invalidate(0, 1 << 52)
    }

    /// Runs `act`, and `other` as soon as it has claimed page 0; `act` goes on when `other` sleeps. The thread of
    /// `act` runs `concurrently` then.
    func race(
      diskAwaits sleepers: Int = 0, _ act: @escaping () -> Void,
      concurrently: @escaping () -> Void = {},
      _ other: @escaping () -> Void
    ) {
      let record = system.physical.knownRecord(system.frame(area, 0))
      run(
        diskAwaits: sleepers,
        { [self] in
          system.host.withClaims(
            .unlocked,
            handler: { [self] _ in
              guard record.busyWord.isBusy, !isClaimed.exchange(true, ordering: .relaxed) else {
                return
              }
              while system.host.sleeperCount == 0 { usleep(20) }
              concurrently()
            }, act)
          XCTAssertTrue(isClaimed.load(ordering: .acquiring))
        },
        { [self] in
          while !isClaimed.load(ordering: .acquiring) { usleep(20) }
          other()
        })
    }

    /// The page is read, by another thread.
    func read() {
      XCTAssertNoThrow(try system.paging.fault(area[0], .read))
    }

    func close(
      _ note: String = "", refusals: Int = 0, _ file: StaticString = #filePath, _ line: UInt = #line
    ) {
      XCTAssertEqual(
        system.host.rescues, 0, "a thread was not woken \(note)", file: file, line: line)
      XCTAssertEqual(system.host.refusals, refusals, "refused \(note)", file: file, line: line)
      system.check(note, file, line)
    }

    var run: FrameRun { FrameRun(first: system.frame(area, 0), count: .one) }
  }

  func testThreadsThatSleepOnAPageThatIsMovedAreWoken() throws {
    let duo = try Duo()
    let (paging, run) = (duo.system.paging, duo.run)
    duo.race(
      { _ = paging.move(outOf: run, leaving: .zero, clean: .move, atMost: .one) }, duo.read)
    XCTAssertNotEqual(duo.system.frame(duo.area, 0), run.first)
    duo.close()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
  }

  /// No frame is free to move it to.
  func testThreadsThatSleepOnAPageThatCouldNotBeMovedAreWoken() throws {
    let duo = try Duo()
    let (paging, run) = (duo.system.paging, duo.run)
    let failures = duo.system.host.failures
    duo.race(
      { _ = paging.move(outOf: run, leaving: .zero, clean: .move, atMost: .one) },
      concurrently: { failures.pointee.countdown = 0 }, duo.read)
    failures.pointee.countdown = -1
    duo.close()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
  }

  func testThreadsThatSleepOnAPageThatIsDiscardedAreWoken() throws {
    let duo = try Duo()
    duo.system.launderAll()
    duo.system.dropCached()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
    let (paging, run) = (duo.system.paging, duo.run)
    duo.race(
      {
        let outcome = paging.move(outOf: run, leaving: .zero, clean: .discard, atMost: .one)
        XCTAssertEqual(outcome.dropped, .one)
      }, duo.read)
    duo.close()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
  }

  func testThreadsThatSleepOnAPageThatTheDaemonLooksAtAreWoken() throws {
    let duo = try Duo()
    _ = duo.system.takeAll(leaving: 20)
    duo.system.setTarget(64)
    let paging = duo.system.paging
    duo.race({ paging.runDaemon() }, duo.read)
    duo.close()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
  }

  func testThreadsThatSleepOnAPageThatIsReadAreWoken() throws {
    let duo = try Duo()
    duo.system.launderAll()
    duo.system.dropCached()
    duo.run(diskAwaits: 2, duo.read, duo.read)
    XCTAssertEqual(duo.system.paging.figures.pageIns, 1)
    duo.close()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
  }

  func testThreadsThatSleepOnAPageThatCouldNotBeReadAreWoken() throws {
    let duo = try Duo()
    duo.system.launderAll()
    duo.system.dropCached()
    var faults = DeviceFaults(seed: 1)
    faults.failed = 1000
    let disk = duo.system.disk
    disk.faults = faults
    let (paging, area) = (duo.system.paging, duo.area)
    let fails: () -> Void = {
      XCTAssertFails(PagingError.inputOutput) { try paging.fault(area[0], .read) }
    }
    duo.run(diskAwaits: 2, fails, fails)
    disk.faults = DeviceFaults()
    duo.close()
    XCTAssertTrue(try duo.system.holds(duo.area, 0, 1))
  }

  /// A thread that destroys an object waits for its pages that are being written, also if the write fails.
  func testAThreadThatDestroysAnObjectIsWokenWhenItsPageWasWritten() throws {
    for fails in [false, true] {
      let duo = try Duo()
      let (paging, run, object) = (duo.system.paging, duo.run, duo.area.object)
      duo.system.hide(duo.area)
      if fails {
        var faults = DeviceFaults(seed: 1)
        faults.failed = 1000
        duo.system.disk.faults = faults
      }
      duo.race(
        diskAwaits: 2,
        {
          let outcome = paging.launder(outOf: run, .all, atMost: .one)
          XCTAssertEqual(outcome.failed, fails ? .one : .zero)
        }, { paging.destroy(object) })
      duo.close(fails ? "that failed" : "")
      XCTAssertEqual(duo.system.physical.count(.pageable), .zero)
      XCTAssertEqual(duo.system.paging.swap.figures.used, .zero)
    }
  }

  /// A thread waits for a run of the daemon, which ends instead: it makes the run itself.
  func testAThreadThatWaitsForTheDaemonIsWokenWhenTheServicesEnd() throws {
    let duo = try Duo(processors: 3)
    let system = duo.system
    let services = system.paging.state.services
    let machine = system.host.machine
    let paging = system.paging
    duo.run(
      diskAwaits: 0,
      {
        // A daemon that was asked to end before it knows of any shortage.
        let daemon = machine.start("daemon", .service, UnsafeMutableRawPointer(paging.storage)) {
          let services = PagedMemory($0).state.services
          while !services.pointee.isEnding.load(ordering: .acquiring) { usleep(20) }
        }
        services.pointee.daemon.store(daemon!.rawValue, ordering: .relaxed)
        services.pointee.isServed.store(true, ordering: .sequentiallyConsistent)
        XCTAssertNil(paging.capacityFromDaemon())
      },
      {
        while system.host.sleeperCount < 1 { usleep(20) }
        paging.endServices()
      })
    duo.close()
  }

  /// Faults on more pages than there are frames, with daemon and laundry on threads of their own: each wakes the
  /// thread that waits for it, so that the machine never stands still.
  func testServicesWakeTheThreadThatWaitsForThem() throws {
    let duo = try Duo(frames: 300, processors: 5)
    let system = duo.system
    let area = try system.area(400)
    duo.run(
      diskAwaits: 0,
      {
        XCTAssertTrue(system.paging.startServices())
        for _ in 0..<2 {
          for page in 0..<area.count {
            do {
              try system.paging.fault(area[page], .write)
              let frame = try system.paging.hold(area[page], .write)
              system.words(frame)[7] = page
              system.paging.unhold(frame)
            } catch {
              XCTFail("\(error), page \(page)")
            }
          }
        }
        system.paging.endServices()
      }, {})
    XCTAssertGreaterThan(system.paging.figures.daemonRuns, 0)
    XCTAssertGreaterThan(system.paging.figures.writtenForDaemon, 0)
    duo.close()
    for page in 0..<area.count {
      XCTAssertEqual(try system.processor.load(area[page] + ByteCount(UInt64(56))), page)
    }
  }

  /// A request may be refused though frames are not few, as one of a priority that others are in line for: the daemon sees
  /// no shortage, and makes a run because it is asked for one.
  func testARequestWakesADaemonThatSeesNoShortage() throws {
    let duo = try Duo(frames: 300, processors: 5)
    let (system, paging) = (duo.system, duo.system.paging)
    XCTAssertGreaterThan(system.physical.freeCount, paging.wakeMark)
    duo.run(
      diskAwaits: 0,
      {
        XCTAssertTrue(paging.startServices())
        // Daemon and laundry.
        while system.host.sleeperCount < 2 { usleep(20) }
        let runs = paging.figures.daemonRuns
        XCTAssertNotNil(paging.capacityFromDaemon())
        XCTAssertGreaterThan(paging.figures.daemonRuns, runs)
        paging.endServices()
      }, {})
    duo.close()
  }
}
