import HostMachine
import MemoryPrimitives
import XCTest

final class StuckSleepersTests: XCTestCase {
  private func refused(_ kinds: [WaitKind], _ since: [UInt64]) -> Int? {
    var stuck = StuckSleepers<Int>()
    for (i, kind) in kinds.enumerated() { stuck.add(i, kind, since: since[i]) }
    return stuck.refused
  }

  func testTheThreadThatHasWaitedForMemoryLongestIsRefused() {
    XCTAssertEqual(refused([.memory, .memory, .memory], [5, 3, 4]), 1)
    XCTAssertEqual(refused([.thread, .memory, .memory], [1, 3, 2]), 2)
  }

  func testAThreadThatDoesNotWaitForMemoryIsNotRefused() {
    XCTAssertNil(refused([.thread, .thread], [1, 2]))
    XCTAssertNil(refused([], []))
  }

  func testNoThreadIsRefusedWhileAnInterruptMayCome() {
    XCTAssertNil(refused([.memory, .interrupt], [1, 2]))
    XCTAssertNil(refused([.interrupt, .memory], [1, 2]))
  }

  /// A machine whose threads are all known finds a wake-up that was lost.
  func testAClosedMachineWakesThreadsThatWereNotWoken() {
    let host = SimulatedMachine(memory: .mebibytes(1), processors: 2)
    host.hasOtherThreads = true
    host.isClosed = true
    let queue = UnsafeMutablePointer<WaitQueue>.allocate(capacity: 1)
    queue.initialize(to: WaitQueue("nothing", .thread))
    defer { queue.deallocate() }
    nonisolated(unsafe) let shared = queue
    let machine = host.machine
    host.onThreads(2) { _ in XCTAssertTrue(shared.pointee.sleep(shared.pointee.ticket(), on: machine)) }
    XCTAssertGreaterThan(host.rescues, 0)
    XCTAssertEqual(host.refusals, 0)
  }
}
