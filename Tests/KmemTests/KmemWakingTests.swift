import Foundation
import HostMachine
import MemoryPrimitives
import Synchronization
import XCTest

@testable import Kmem

/// Threads that wait for what is rare in kmem, on a machine that notices when all its threads sleep.
final class KmemWakingTests: XCTestCase {
  /// A thread that destroys a cache waits for a walk over all caches that has pinned it.
  func testTheLastVisitorOfACacheWakesTheThreadThatDestroysIt() throws {
    let rig = try KmemFixture(frames: 512, processors: 2)
    let kmem = rig.kmem
    let host = rig.host
    host.hasOtherThreads = true
    host.isClosed = true
    let cache = try kmem.createCache(
      name: ShortName("visited"), size: ByteCount(100), alignment: Alignment(8)!)
    let isThere = Atomic<Bool>(false)
    host.onThreads(2) { index in
      if index == 0 {
        let visit: (CachePointer) -> Void = { visited in
          guard visited.name == ShortName("visited") else { return }
          isThere.store(true, ordering: .releasing)
          while host.sleeperCount == 0 { usleep(20) }
        }
        kmem.forEach(visit)
      } else {
        while !isThere.load(ordering: .acquiring) { usleep(20) }
        kmem.destroy(cache)
      }
    }
    XCTAssertEqual(host.rescues, 0, "the thread was not woken")
    host.hasOtherThreads = false
    rig.expectEmpty()
  }

  /// The thread that trims learns of an interval at once, however long the one before was.
  func testAnotherIntervalWakesTheTrimmer() throws {
    let rig = try KmemFixture(frames: 512, processors: 3)
    let kmem = rig.kmem
    let host = rig.host
    host.hasOtherThreads = true
    host.isClosed = true
    kmem.setTrimInterval(1_000_000)
    host.onThreads(1) { _ in
      XCTAssertTrue(kmem.startTrimming())
      while host.sleeperCount == 0 { usleep(20) }
      host.advance(ticks: 5)
      let before = kmem.state.trimmer.trims.load(ordering: .relaxed)
      XCTAssertEqual(before, 0)
      kmem.setTrimInterval(3)
      func count() -> UInt64 { kmem.state.trimmer.trims.load(ordering: .relaxed) }
      for _ in 0..<50_000 where count() == 0 { usleep(100) }
      XCTAssertGreaterThan(count(), 0, "the thread was not woken")
      kmem.endTrimming()
    }
    XCTAssertEqual(host.rescues, 0)
    host.hasOtherThreads = false
    rig.expectEmpty()
  }
}
