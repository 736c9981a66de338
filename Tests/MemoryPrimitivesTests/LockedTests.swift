import HostMachine
import MemoryPrimitives
import XCTest

final class LockedTests: XCTestCase {
  struct Sums: ~Copyable {
    let locked = Locked(LockRank(5), 0)
  }

  func testTwoThreadsCountWithoutLoss() {
    let sums = UnsafeMutablePointer<Sums>.allocate(capacity: 1)
    sums.initialize(to: Sums())
    defer { sums.deallocate() }
    nonisolated(unsafe) let shared = sums
    SimulatedMachine(memory: .mebibytes(1), processors: 2).onThreads(2) { _ in
      for _ in 0..<20_000 { shared.pointee.locked.withLock { $0 += 1 } }
    }
    XCTAssertEqual(sums.pointee.locked.withLock { $0 }, 40_000)
  }
}
