import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// Pages that leave a run together: several objects and ranges in one batch, pages that others claim, frames that
/// run out, and what others do between the steps.
final class PageMovingTests: XCTestCase {
  private func move(
    _ system: TestSystem, _ run: FrameRun, _ clean: CleanPages = .move, leaving reserve: UInt64 = 0,
    atMost limit: UInt64 = .max
  ) -> MoveOutcome {
    system.paging.move(outOf: run, leaving: PageCount(reserve), clean: clean, atMost: PageCount(limit))
  }

  /// A run of `count` frames that are all pages of these areas, and which pages they are.
  private func window(
    _ system: TestSystem, _ areas: [Area], _ count: Int
  ) throws -> (run: FrameRun, pages: [(Area, UInt64)]) {
    var pages: [UInt32: (Area, UInt64)] = [:]
    for area in areas {
      for page in 0..<area.count { pages[system.frame(area, page).rawValue] = (area, page) }
    }
    let first = try XCTUnwrap(
      pages.keys.sorted().first { first in (0..<UInt32(count)).allSatisfy { pages[first + $0] != nil } })
    let run = FrameRun(first: FrameNumber(first), count: PageCount(UInt64(count)))
    return (run, (0..<UInt32(count)).map { pages[first + $0]! })
  }

  // MARK: Objects and ranges

  /// Pages of three objects take turns in memory, so that each batch has all of them; one has more ranges than one
  /// hold of its lock looks at.
  func testABatchOfManyObjectsAndRangesMoves() throws {
    let system = try TestSystem()
    var areas = [try system.area(120), try system.area(120), try system.area(120)]
    for page in 0..<120 as Range<UInt64> {
      for area in areas { try system.write(area, page, 1000 + page) }
    }
    for page in 0..<40 as Range<UInt64> {
      areas.append(try system.show(areas[0].object, from: page, 1))
      areas.append(try system.show(areas[0].object, from: 0, 120))
    }
    areas.append(try system.show(areas[1].object, .kernelReadOnly, from: 10, 20))
    for area in areas { try system.verify(area) }
    let (whole, pages) = try window(system, Array(areas[0..<3]), 100)
    XCTAssertEqual(Set(pages.map(\.0.object.number)).count, 3)
    let isolation = try system.physical.isolated(whole, priority: .interrupt)
    let outcome = move(system, whole)
    XCTAssertEqual(outcome.moved, whole.count)
    XCTAssertNotNil(system.physical.finish(isolation))
    system.check()
    for (area, page) in pages { XCTAssertFalse(whole.contains(system.frame(area, page))) }
    for area in areas { try system.verify(area) }
    // Pages that were writable are, through one range as through the other.
    for area in [areas[0], areas[4], areas[1]] {
      for page in 0..<area.count { try system.write(area, page, 2000 + page) }
    }
    try system.verify(areas[areas.count - 2], from: 2000)
    XCTAssertFails(PagingError.protection) { try system.write(areas.last!, 0, 1) }
    system.check()
    system.physical.free(whole)
    system.launderAll()
    system.dropCached()
    try system.verify(areas[0], from: 2000)
    try system.verify(areas[2])
  }

  /// The mapping that comes back is as writable as it was, and the queue that a page is in stays, with its place.
  func testTheStateOfAPageMovesWithIt() throws {
    let system = try TestSystem()
    let area = try system.area(200)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    // Read again, every third written to: clean and dirty pages, read-only and writable mappings.
    for page in 0..<200 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 1000 + page)) }
    for page in stride(from: 0, to: 200, by: 3) as StrideTo<UInt64> {
      try system.write(area, page, 1000 + page)
    }
    func known() -> [[UInt64]] {
      (0..<200 as Range<UInt64>).map { page in
        let (what, mapping) = (system.place(area, page), system.mapping(area, page))
        return [
          UInt64(what.flags.rawValue & ~PageFlags.referenced.rawValue), UInt64(what.queue?.rawValue ?? 9),
          mapping == nil ? 2 : mapping!.isWritable ? 1 : 0,
        ]
      }
    }
    /// Pages in the order of their queue.
    func order() -> [UInt64] {
      var order: [UInt64] = []
      var frame = system.paging.withQueues { $0.first(.active) }
      while frame != .none {
        order.append(system.physical.record(frame)!.index)
        frame = system.physical.record(frame)!.next
      }
      return order
    }
    let (before, inOrder) = (known(), order())
    let (whole, _) = try window(system, [area], 64)
    let isolation = try system.physical.isolated(whole, priority: .interrupt)
    XCTAssertEqual(move(system, whole).moved, PageCount(64))
    XCTAssertNotNil(system.physical.finish(isolation))
    XCTAssertEqual(known(), before)
    XCTAssertEqual(inOrder.count, 200)
    XCTAssertEqual(order(), inOrder)
    system.check()
    try system.verify(area)
  }

  // MARK: Claims

  func testPagesThatOthersClaimStayAndTheOthersOfTheBatchMove() throws {
    let system = try TestSystem()
    let area = try system.area(200)
    try system.fill(area)
    let (whole, pages) = try window(system, [area], 64)
    let frames = (0..<64).map { whole.first + PageCount($0) }
    let record = { (i: Int) in system.physical.record(frames[i])! }
    _ = try system.paging.hold(area[pages[3].1], .read)
    for i in [10, 11, 12] { try system.paging.wire(area[pages[i].1], .one, holes: .forbidden) }
    XCTAssertTrue(record(20).trySbusy())
    XCTAssertTrue(record(33).tryXbusy())
    XCTAssertTrue(record(63).trySbusy())
    let stay: Set = [3, 10, 11, 12, 20, 33, 63]
    for clean in [CleanPages.move, .discard] {
      let isolation = try system.physical.isolated(whole, priority: .interrupt)
      let outcome = move(system, whole, clean)
      XCTAssertEqual(outcome.moved.rawValue, clean == .move ? 57 : 0)
      XCTAssertEqual(outcome.claimed.rawValue, UInt64(stay.count))
      XCTAssertEqual(outcome.lackingFrames, .zero)
      XCTAssertEqual(system.physical.capturedCount(isolation).rawValue, 57)
      for i in 0..<64 {
        XCTAssertEqual(system.frame(area, pages[i].1) == frames[i], stay.contains(i), "frame \(i) of the run")
      }
      system.physical.abandon(isolation)
    }
    _ = record(20).endSbusy()
    _ = record(33).endXbusy()
    _ = record(63).endSbusy()
    system.paging.unhold(frames[3])
    for i in [10, 11, 12] { system.paging.unwire(area[pages[i].1], .one) }
    system.check()
    try system.verify(area)
  }

  // MARK: Frames

  /// Frames run out in the middle of a batch: pages without one are let go, and are used as before.
  func testAMoveWhoseFramesRunOutInTheMiddleLosesNothing() throws {
    for (free, reserve, limit): (UInt64, UInt64, UInt64) in [
      (10, 0, .max), (40, 33, .max), (50, 0, 7), (50, 0, 33), (33, 0, .max), (50, 50, .max), (5, 9, .max),
    ] {
      let system = try TestSystem()
      let area = try system.area(200)
      try system.fill(area)
      let (whole, pages) = try window(system, [area], 70)
      let isolation = try system.physical.isolated(whole, priority: .interrupt)
      let aside = system.takeAll(leaving: free)
      for priority in [AllocationPriority.normal, .system] {
        try system.physical.setReserve(.zero, for: priority)
      }
      let note = "\(free) free, \(reserve) to be left, \(limit) at most"
      let outcome = move(system, whole, leaving: reserve, atMost: limit)
      let moved = min(70, limit, free - min(free, reserve))
      XCTAssertEqual(outcome.moved.rawValue, moved, note)
      XCTAssertEqual(outcome.lackingFrames.rawValue, 70 - moved, note)
      XCTAssertEqual(outcome.claimed, .zero, note)
      XCTAssertEqual(system.physical.capturedCount(isolation).rawValue, moved, note)
      for (_, page) in pages {
        XCTAssertEqual(system.place(area, page).busyWord, .none, note)
        XCTAssertNotNil(system.place(area, page).queue, note)
      }
      system.check(note)
      try system.verify(area)
      for page in 0..<200 as Range<UInt64> { try system.write(area, page, 3000 + page) }
      system.physical.abandon(isolation)
      system.giveBack(aside)
      try system.verify(area, from: 3000)
      system.check(note)
    }
  }

  /// A batch that gets no frame is let go, and the other one is moved all the same.
  func testABatchThatIsRefusedItsFramesChangesNothing() throws {
    // Paging's own question and that of physical memory, in the first batch and in the second.
    for nth in 0..<4 as Range<Int64> {
      let system = try TestSystem()
      let area = try system.area(200)
      try system.fill(area)
      let (whole, pages) = try window(system, [area], 40)
      let isolation = try system.physical.isolated(whole, priority: .interrupt)
      system.host.failures.pointee.hasFailed = false
      system.host.failures.pointee.countdown = nth
      let outcome = move(system, whole)
      system.host.failures.pointee.countdown = -1
      XCTAssertTrue(system.host.failures.pointee.hasFailed)
      XCTAssertEqual(outcome.lackingFrames.rawValue, nth < 2 ? 32 : 8)
      XCTAssertEqual(outcome.moved.rawValue, nth < 2 ? 8 : 32)
      for (_, page) in pages { XCTAssertEqual(system.place(area, page).busyWord, .none) }
      system.physical.abandon(isolation)
      system.check()
      try system.verify(area)
    }
  }

  // MARK: In between

  /// At each moment at which the mover holds no lock, another processor writes to pages of both batches that it can
  /// reach: no word is lost, whether pages are moved or dropped.
  func testPagesThatAreDirtiedBetweenTheStepsStayDirty() throws {
    for clean in [CleanPages.move, .discard] {
      var n = 0
      var isThere = true
      while isThere {
        let system = try TestSystem(frames: 500, swap: 256)
        let area = try system.area(80)
        try system.fill(area)
        system.launderAll()
        system.dropCached()
        for page in 0..<80 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 1000 + page)) }
        let (whole, pages) = try window(system, [area], 40)
        let isolation = try system.physical.isolated(whole, priority: .interrupt)
        var written: Set<UInt64> = []
        isThere = system.preempting(at: n) {
          for i in [0, 17, 31, 32, 39] {
            let page = pages[i].1
            if system.place(area, page).busyWord.isXbusy { continue }
            do throws(PagingError) {
              try system.write(area, page, 2000 + page)
              written.insert(page)
            } catch {
              XCTFail("a page could not be written: \(error.description)")
            }
          }
        } _: {
          _ = move(system, whole, clean)
        }
        system.check("moment \(n)")
        system.physical.abandon(isolation)
        for page in 0..<80 as Range<UInt64> {
          let stamp = (written.contains(page) ? 2000 : 1000) + page
          XCTAssertTrue(try system.holds(area, page, stamp), "page \(page), moment \(n)")
        }
        n += 1
      }
      XCTAssertGreaterThan(n, 10)
    }
  }

  /// A range goes while its pages are on their way: they are not mapped in it again.
  func testARangeIsUnmappedWhileItsPagesMove() throws {
    var n = 0
    var isThere = true
    while isThere {
      let system = try TestSystem(frames: 500, swap: 256)
      let area = try system.area(80)
      try system.fill(area)
      let other = try system.show(area.object)
      try system.verify(other)
      let (whole, _) = try window(system, [area], 40)
      let isolation = try system.physical.isolated(whole, priority: .interrupt)
      let count = PageCount(other.count)
      isThere = system.preempting(at: n) {
        system.hide(other)
        XCTAssertFalse(system.memory.pageTables.isAnyMapped(other.address, count: count), "moment \(n)")
      } _: {
        XCTAssertEqual(move(system, whole).moved, PageCount(40))
      }
      XCTAssertEqual(
        system.memory.pageTables.isAnyMapped(other.address, count: count), !isThere, "moment \(n)")
      XCTAssertNotNil(system.physical.finish(isolation))
      system.check("moment \(n)")
      try system.verify(area)
      n += 1
    }
    XCTAssertGreaterThan(n, 10)
  }
}
