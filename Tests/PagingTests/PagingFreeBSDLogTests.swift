import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import XCTest

@testable import Paging

/// The bugs of FreeBSD's commit log that paging could have, each as the test that would have found it here. The words at
/// their heads are the log's.
final class PagingFreeBSDLogTests: XCTestCase {
  // "they observed the page daemon consuming a great deal of CPU time because of pages bouncing back and forth between
  // the cache queue (PQ_CACHE) and the inactive queue (PQ_INACTIVE). The source of this problem turned out to be a
  // deadlock avoidance strategy [...]. However, the root cause was [...] that reclaiming a cached page required the
  // acquisition of an object lock".
  func testCachedPagesDoNotBounceBetweenQueuesWhileTheDaemonBurnsTime() throws {
    let system = try TestSystem(runs: [(256, 500)])
    let area = try system.area(300)
    try system.fill(area)
    system.launderAll()
    XCTAssertEqual(system.physical.cachedCount, PageCount(300))
    func queued() -> [PageCount] {
      [PageQueue.active, .inactive, .laundry, .unswappable].map { system.paging.count($0) }
    }
    let (queues, scanned) = (queued(), system.paging.figures.scanned)
    // The lock that would have been needed is another processor's all the time.
    let free = system.physical.freeCount.rawValue
    let held = area.object.acquire()
    let taken = system.takeAll()
    held.release()
    XCTAssertEqual(UInt64(taken.count), free, "cached pages were passed over")
    XCTAssertEqual(system.physical.cachedCount, .zero)
    XCTAssertEqual(queued(), queues, "a cached page is in a queue again")
    // A daemon with nothing to reclaim looks at nothing.
    for _ in 0..<10 { XCTAssertTrue(system.paging.runDaemon().isFruitless) }
    XCTAssertEqual(system.paging.figures.scanned, scanned)
    XCTAssertEqual(queued(), queues)
    XCTAssertEqual(system.paging.figures.reactivations, 0)
    system.giveBack(taken)
    // More pages than frames, which are read in turn: each page that is reclaimed costs a few inspections, and stays reclaimed.
    let second = try system.area(500)
    try system.fill(second)
    for _ in 0..<3 { try system.verify(second) }
    let before = system.paging.figures
    for _ in 0..<3 { try system.verify(second) }
    let after = system.paging.figures
    let reclaimed = after.cached - before.cached
    XCTAssertGreaterThan(reclaimed, 500)
    XCTAssertLessThanOrEqual(after.scanned - before.scanned, 4 * reclaimed)
    XCTAssertLessThan(after.reactivations - before.reactivations, reclaimed / 4)
    system.check()
  }
}
