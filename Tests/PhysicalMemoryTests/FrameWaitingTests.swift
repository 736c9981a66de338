import Foundation
import MemoryPrimitives
import Synchronization
import TestSupport
import XCTest

@testable import HostMachine
@testable import PhysicalMemory

/// Threads in line for memory, on a machine that notices when all its threads sleep: one that was not woken is
/// refused, or counted as rescued.
final class FrameWaitingTests: XCTestCase {
  /// A machine whose frames are all taken but `free` of those that may be.
  private final class Bed: @unchecked Sendable {
    let system: FrameAllocatorFixture
    var memory: FrameAllocator { system.memory }
    var host: SimulatedMachine { system.host }
    private let lock = NSLock()
    private var taken: [FrameNumber] = []

    init(processors: Int, free: Int = 0) throws {
      system = try FrameAllocatorFixture(frames: [(256, 600)], processors: processors)
      system.host.hasOtherThreads = true
      system.host.isClosed = true
      while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { taken.append(frame) }
      give(free)
    }

    func give(_ count: Int) {
      for _ in 0..<count { memory.free(lock.withLock { taken.removeLast() }, BlockOrder(0)) }
    }
    func giveAll() { give(lock.withLock { taken.count }) }

    func giveTwoAtOnce() {
      let first = lock.withLock {
        let first = taken.first { taken.contains($0 + .one) }!
        taken.removeAll { $0 == first || $0 == first + .one }
        return first
      }
      memory.free(FrameRun(first: first, count: PageCount(UInt64(2))))
    }

    /// A block that was waited for; nil when that came to nothing.
    func wait(_ order: Int, until deadline: Tick = .never, priority: AllocationPriority = .normal)
      -> FrameNumber?
    {
      try? memory.allocate(BlockOrder(UInt8(order)), role: .kmem, priority: priority, waitUntil: deadline)
    }

    /// Returns when so many threads sleep.
    func awaitSleepers(_ count: Int) { while host.sleeperCount < count { usleep(20) } }

    func close(refusals: Int = 0, _ file: StaticString = #filePath, _ line: UInt = #line) {
      XCTAssertEqual(
        host.refusals, refusals, "refused for want of a wake-up", file: file, line: line)
      XCTAssertEqual(host.rescues, 0, "threads that were not woken", file: file, line: line)
      XCTAssertTrue(memory.domain.quiet.pointee.waiters[0].isEmpty, file: file, line: line)
      XCTAssertFalse(memory.hasParkedWaiters, file: file, line: line)
      system.check(file, line)
    }
  }

  /// One thread holds a lock and waits for memory, another waits for the lock, a third for memory as well: the first is
  /// refused and frees what it has, and the others have their turn.
  func testOfThreadsThatNoProcessorCanWakeOneThatWaitsForMemoryIsRefused() throws {
    let bed = try Bed(processors: 3)
    let lock = UnsafeMutablePointer<SleepLock>.allocate(capacity: 1)
    lock.initialize(to: SleepLock(.workload))
    defer { lock.deallocate() }
    nonisolated(unsafe) let shared = lock
    let machine = bed.host.machine
    bed.host.onThreads(3) { index in
      switch index {
      case 0:
        shared.pointee.lock(on: machine)
        XCTAssertNil(bed.wait(0))
        shared.pointee.unlock(on: machine)
      case 1:
        bed.awaitSleepers(1)
        shared.pointee.withLock(on: machine) { bed.give(1) }
      default:
        bed.awaitSleepers(2)
        XCTAssertNotNil(bed.wait(0))
      }
    }
    bed.close(refusals: 1)
  }

  /// As long as an interrupt may come that ends what one of them waits for, none is refused.
  func testADeviceThatCompletesByInterruptIsWaitedFor() throws {
    let bed = try Bed(processors: 2)
    let queue = UnsafeMutablePointer<WaitQueue>.allocate(capacity: 1)
    queue.initialize(to: WaitQueue("a device"))
    defer { queue.deallocate() }
    nonisolated(unsafe) let shared = queue
    let machine = bed.host.machine
    let device = Foundation.Thread {
      bed.awaitSleepers(2)
      for _ in 0..<10 { bed.host.condition.withLock { bed.host.findStuck() } }
      shared.pointee.wake(on: machine)
    }
    device.start()
    bed.host.onThreads(2) { index in
      if index == 0 {
        XCTAssertTrue(shared.pointee.sleep(shared.pointee.ticket(), on: machine))
        bed.give(1)
      } else {
        bed.awaitSleepers(1)
        XCTAssertNotNil(bed.wait(0))
      }
    }
    bed.close()
  }

  /// A deadline is as good as an interrupt.
  func testADeadlineIsWaitedFor() throws {
    let bed = try Bed(processors: 3)
    bed.host.onThreads(3) { index in
      switch index {
      case 0: XCTAssertNotNil(bed.wait(0))
      case 1:
        bed.awaitSleepers(1)
        XCTAssertNil(bed.wait(3, until: Tick(10)))
        bed.give(1)
      default:
        bed.awaitSleepers(2)
        bed.host.condition.withLock { bed.host.findStuck() }
        bed.host.advance(ticks: 10)
      }
    }
    bed.close()
  }

  /// The first waiter wants more than is free, the one behind it does not: when the first leaves, its time being up, the
  /// other has its turn.
  func testAWaiterThatLeavesTheQueueWakesTheNext() throws {
    let bed = try Bed(processors: 3, free: 4)
    bed.host.onThreads(3) { index in
      switch index {
      case 0: XCTAssertNil(bed.wait(3, until: Tick(10)))
      case 1:
        bed.awaitSleepers(1)
        XCTAssertNotNil(bed.wait(0))
      default:
        bed.awaitSleepers(2)
        bed.host.advance(ticks: 10)
      }
    }
    bed.close()
  }

  /// The same when it is served, and something is left.
  func testAWaiterThatIsServedWakesTheNext() throws {
    let bed = try Bed(processors: 3)
    bed.host.onThreads(3) { index in
      switch index {
      case 0: XCTAssertNotNil(bed.wait(0))
      case 1:
        bed.awaitSleepers(1)
        XCTAssertNotNil(bed.wait(0))
      default:
        bed.awaitSleepers(2)
        bed.giveTwoAtOnce()
      }
    }
    bed.close()
  }

  /// When the first waiter is parked, the one behind it has its turn; and the first, too, once there is enough.
  func testAParkedWaiterWakesTheNext() throws {
    let bed = try Bed(processors: 3, free: 4)
    bed.host.onThreads(3) { index in
      switch index {
      case 0: XCTAssertNotNil(bed.wait(3))
      case 1:
        bed.awaitSleepers(1)
        XCTAssertNotNil(bed.wait(0))
        bed.giveAll()
      default:
        bed.awaitSleepers(2)
        bed.memory.parkUnservableWaiters()
      }
    }
    bed.close()
  }

  // MARK: One thread, with the other's part done on its way to sleep

  /// Frames are freed at any moment while a request is on its way to sleep: it gets them and does not sleep.
  func testAFrameThatIsFreedBeforeTheSleepIsNotWaitedFor() throws {
    var moments = 0
    while true {
      let system = try FrameAllocatorFixture(frames: [(256, 600)])
      let memory = system.memory!
      var frames: [FrameNumber] = []
      while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
      let last = frames.removeLast()
      nonisolated(unsafe) var sleeps = 0
      nonisolated(unsafe) var isFreed = false
      @Sendable func free() {
        isFreed = true
        memory.free(last, BlockOrder(0))
      }
      system.host.runDevices = {
        sleeps += 1
        if isFreed { return false }
        free()
        return true
      }
      var moment = 0
      var frame: FrameNumber?
      func interrupt() {
        if moment == moments && !isFreed { free() }
        moment += 1
      }
      system.host.withInterrupts(seed: 0, oneIn: 1, handler: interrupt) {
        frame = try? memory.allocate(BlockOrder(0), role: .kmem, priority: .normal, waitUntil: .never)
      }
      XCTAssertNotNil(frame, "moment \(moments)")
      let happened = moment > moments && sleeps == 0
      XCTAssertTrue(happened || sleeps == 1, "asleep beside a free frame, moment \(moments)")
      system.check()
      if !happened { break }
      moments += 1
    }
    XCTAssertGreaterThan(moments, 1)
  }

  /// The low-memory notification comes between the daemon's check and its sleep.
  func testANotificationBeforeTheSleepIsReceived() throws {
    for shortage in [Shortage.few, .awaited] {
      let system = try FrameAllocatorFixture(frames: [(256, 600)])
      let memory = system.memory!
      nonisolated(unsafe) var sleeps = 0
      system.host.runDevices = {
        sleeps += 1
        return false
      }
      var isReported = false
      var raises = 0
      func raise(_ word: UnsafeRawPointer) {
        raises += 1
        if raises == 1 { memory.notifyLowMemory(shortage) }
      }
      system.host.withClaims(.unlocked, handler: raise) { isReported = memory.awaitLowMemory(shortage) }
      XCTAssertEqual(raises, 1)
      XCTAssertTrue(isReported)
      XCTAssertEqual(sleeps, 0, "asleep beside a notification")
    }
  }

  /// The low-memory notification wakes a thread that waits for it.
  func testTheNotificationWakesItsWaiter() throws {
    for shortage in [Shortage.few, .awaited] {
      let system = try FrameAllocatorFixture(frames: [(256, 600)])
      let memory = system.memory!
      nonisolated(unsafe) var sleeps = 0
      system.host.runDevices = {
        sleeps += 1
        if sleeps == 1 { memory.notifyLowMemory(shortage) }
        return sleeps == 1
      }
      XCTAssertTrue(memory.awaitLowMemory(shortage))
      XCTAssertEqual(sleeps, 1)
    }
  }

  /// A cached page is a free frame like any other: it is not reactivated before waiting requests are served.
  func testAReactivationDoesNotOvertakeAThreadThatWaits() throws {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 900)]))
    let memory = model.memory
    let name = PageName(owner: 3, index: 77)
    try model.makePage(name)
    let frame = FrameNumber(UInt32(model.pages[name]!.frame))
    nonisolated(unsafe) var taken: [FrameNumber] = []
    while let next = try? memory.allocate(BlockOrder(0), role: .wired) { taken.append(next) }
    nonisolated(unsafe) var sleeps = 0
    model.system.host.runDevices = {
      sleeps += 1
      switch sleeps {
      case 1:
        memory.record(frame)!.busyWord = .xbusy
        memory.free(page: frame, .cached)
        XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .refused)
        XCTAssertEqual(memory.cachedCount, .one)
      case 2:
        XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .refused)
        for next in taken { memory.free(next, BlockOrder(0)) }
      default: return false
      }
      return true
    }
    XCTAssertNoThrow(try memory.allocate(BlockOrder(2), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(sleeps, 2)
    model.system.check()
  }

  /// Nor is a given frame allocated before them, nor a page.
  func testARequestForOneFrameDoesNotOvertakeAThreadThatWaits() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    nonisolated(unsafe) var taken: [FrameNumber] = []
    while let next = try? memory.allocate(BlockOrder(0), role: .wired) { taken.append(next) }
    nonisolated(unsafe) var sleeps = 0
    system.host.runDevices = {
      sleeps += 1
      guard sleeps == 1 else { return false }
      let frame = taken.removeLast()
      memory.free(frame, BlockOrder(0))
      XCTAssertNil(try? memory.allocate(frame: frame, role: .wired))
      var page = FrameNumber.none
      let pages = withUnsafeMutablePointer(to: &page) {
        memory.allocate(pages: UnsafeMutableBufferPointer(start: $0, count: 1))
      }
      XCTAssertEqual(pages, 0)
      XCTAssertNotNil(try? memory.allocate(frame: frame, role: .wired, priority: .system))
      memory.free(frame, BlockOrder(0))
      for next in taken { memory.free(next, BlockOrder(0)) }
      return true
    }
    XCTAssertNoThrow(try memory.allocate(BlockOrder(2), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(sleeps, 1)
    system.check()
  }

  /// Each way in which frames become free wakes who waits for them.
  func testEveryFreeWakesAThreadThatWaits() throws {
    let ways: [(String, (FrameAllocator, FrameNumber) -> Void)] = [
      ("a run", { $0.free(FrameRun(first: $1, count: .one)) }),
      (
        "a page",
        {
          $0.record($1)!.busyWord = .xbusy
          $0.free(page: $1, .dropped)
        }
      ),
      (
        "a cached page",
        {
          $0.record($1)!.busyWord = .xbusy
          $0.record($1)!.pageFlags = .valid
          $0.free(page: $1, .cached)
        }
      ),
      (
        "many pages",
        { memory, frame in
          memory.record(frame)!.busyWord = .xbusy
          withUnsafePointer(to: frame) {
            memory.free(droppedPages: UnsafeBufferPointer(start: $0, count: 1))
          }
        }
      ),
      ("a lowered reserve", { memory, _ in try! memory.setReserve(.zero, for: .normal) }),
    ]
    for (index, (name, free)) in ways.enumerated() {
      let system = try FrameAllocatorFixture(frames: [(256, 600)])
      let memory = system.memory!
      let role: FrameRole = index == 0 ? .wired : .pageable
      let frame = try memory.allocate(BlockOrder(0), role: role)
      while (try? memory.allocate(BlockOrder(0), role: .wired)) != nil {}
      nonisolated(unsafe) var sleeps = 0
      nonisolated(unsafe) let body = free
      system.host.runDevices = {
        sleeps += 1
        if sleeps == 1 { body(memory, frame) }
        return sleeps == 1
      }
      XCTAssertNoThrow(
        try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never), name)
      XCTAssertEqual(sleeps, 1, "\(name) woke no waiter")
      system.check()
    }
  }

  /// Frames that an isolation had captured wake who waits when it is abandoned.
  func testAnIsolationThatIsAbandonedWakesAThreadThatWaits() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    let memory = system.memory!
    // Above the reserve.
    var taken: [FrameNumber] = []
    while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { taken.append(frame) }
    let run = FrameRun(first: taken[0], count: .one)
    nonisolated(unsafe) let isolation = try memory.isolated(run, priority: .normal)
    memory.free(run)
    XCTAssertEqual(memory.capturedCount(isolation), .one)
    nonisolated(unsafe) var sleeps = 0
    system.host.runDevices = {
      sleeps += 1
      if sleeps == 1 { memory.abandon(isolation) }
      return sleeps == 1
    }
    XCTAssertNoThrow(try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never))
    XCTAssertEqual(sleeps, 1)
    system.check()
  }
}
