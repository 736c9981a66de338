import Foundation
import MemoryPrimitives
import Synchronization
import XCTest

@testable import HostMachine
@testable import PhysicalMemory

/// Threads in line for memory, on a machine that notices when all its threads sleep: one that was not woken is
/// refused, or counted as rescued.
final class WaitingTests: XCTestCase {
  /// A machine whose frames are all taken but `free` of those that may be.
  private final class Bed: @unchecked Sendable {
    let system: System
    var memory: PhysicalMemory { system.memory }
    var host: HostMachine { system.host }
    private let lock = NSLock()
    private var taken: [FrameNumber] = []

    init(processors: Int, free: Int = 0) throws {
      system = try System(frames: [(256, 600)], processors: processors)
      system.host.hasOtherThreads = true
      system.host.isClosed = true
      while let frame = try? memory.allocate(Order(0), role: .wired) { taken.append(frame) }
      give(free)
    }

    func give(_ count: Int) {
      for _ in 0..<count { memory.free(lock.withLock { taken.removeLast() }, Order(0)) }
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
    func wait(_ order: Int, until deadline: Tick = .never, level: Level = .normal) -> FrameNumber? {
      try? memory.allocate(Order(UInt8(order)), role: .kmem, level: level, waitUntil: deadline)
    }

    /// Returns when so many threads sleep.
    func awaitSleepers(_ count: Int) { while host.sleeperCount < count { usleep(20) } }

    func close(refusals: Int = 0, _ file: StaticString = #filePath, _ line: UInt = #line) {
      XCTAssertEqual(host.refusals, refusals, "refused for want of a wake-up", file: file, line: line)
      XCTAssertEqual(host.rescues, 0, "threads that were not woken", file: file, line: line)
      XCTAssertNil(memory.core.pointee.firstWaiter[0], file: file, line: line)
      XCTAssertFalse(memory.hasPassed, file: file, line: line)
      system.check(file, line)
    }
  }

  /// One thread holds a lock and waits for memory, another waits for the lock, a third for memory as well: the first is
  /// refused and lets go of what it has, and the others have their turn.
  func testOfThreadsThatNoProcessorCanWakeOneThatWaitsForMemoryIsRefused() throws {
    let bed = try Bed(processors: 3)
    let lock = UnsafeMutablePointer<SleepLock>.allocate(capacity: 1)
    lock.initialize(to: SleepLock(.workload))
    defer { lock.deallocate() }
    nonisolated(unsafe) let (shared, machine) = (lock, bed.host.machine)
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
    nonisolated(unsafe) let (shared, machine) = (queue, bed.host.machine)
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

  /// The first in line wants more than is free, the one behind it does not: when the first leaves, its time being up, the
  /// other has its turn.
  func testAWaiterThatLeavesTheLineWakesTheNext() throws {
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

  /// When the first in line stands aside, the one behind it has its turn; and the first, too, once there is enough.
  func testWhoStandsAsideWakesTheNext() throws {
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
        bed.memory.letOthersPass()
      }
    }
    bed.close()
  }
}
