import HostMachine
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// Pageable ranges: the map of them, what registering needs, and what a caller can do wrong in taking them back.
final class PagingRangeTests: XCTestCase {
  func testTheMapFindsRangesInAnyOrderOfComingAndGoing() throws {
    let seed = historySeed(7)
    let system = try TestSystem(frames: 4096)
    let object = try system.paging.createObject(ShortName("shown"), PageCount(64))
    var random = SeededRandom(seed: seed)
    var ranges: [Area] = []
    for turn in 0..<1500 {
      if random.below(100) < (turn / 250 % 2 == 0 ? 75 : 25) || ranges.isEmpty {
        let offset = random.below(64)
        let count = 1 + random.below(64 - offset)
        ranges.append(try system.show(object, from: offset, count))
      } else {
        system.hide(ranges.remove(at: Int(random.below(UInt64(ranges.count)))))
      }
      if let one = ranges.randomElement(using: &random) {
        let page = random.below(one.count)
        let found = try XCTUnwrap(system.paging.range(endingFrom: one[page]))
        XCTAssertEqual(found.address, one.address)
        XCTAssertEqual(found.count, PageCount(one.count))
        XCTAssertEqual(found.offset, PageCount(one.offset))
        XCTAssertEqual(found.object, object.number)
      }
      if turn % 100 == 0 {
        system.check("STRATA_SEED=\(seed), turn \(turn)")
        var seen: [UInt64] = []
        system.paging.forEachRange { seen.append($0.address.rawValue) }
        XCTAssertEqual(seen, ranges.map(\.address.rawValue).sorted())
      }
    }
    for one in ranges { system.hide(one) }
    XCTAssertNil(system.paging.range(endingFrom: VirtualAddress(0)))
    system.paging.destroy(object)
    system.check()
  }

  func testRangesThatCannotBeMappedAreRefused() throws {
    let system = try TestSystem()
    let object = try system.paging.createObject(ShortName("o"), PageCount(10))
    let before = system.picture(pages: true)
    for (offset, count) in [(0, 0), (0, 11), (10, 1), (5, 6), (UInt64.max, 1), (1, UInt64.max)]
      as [(UInt64, UInt64)]
    {
      XCTAssertFails(PagingError.badConstraint, "\(offset) \(count)") {
        _ = try system.paging.map(object, from: PageCount(offset), count: PageCount(count))
      }
    }
    XCTAssertFails(PagingError.badConstraint) {
      _ = try system.paging.map(object, count: .one, protection: [.writable, .executable])
    }
    XCTAssertSame(system.picture(pages: true), before)
    system.check()
  }

  func testEachPointThatFailsInRegisteringLeavesEverythingAsItWas() throws {
    let system = try TestSystem(frames: 2048)
    // Memory that stays once it was needed is allocated before: slabs, tags, tables of numbers, inner page tables.
    system.release(try system.area(1200))
    var nth: Int64 = 0
    var refused = 0
    while true {
      let before = system.picture(pages: true)
      system.host.failures.pointee.hasFailed = false
      system.host.failures.pointee.countdown = nth
      do {
        let object = try system.paging.createObject(ShortName("o"), PageCount(1200))
        do {
          let area = try system.show(object)
          system.host.failures.pointee.countdown = 0
          system.release(area)
        } catch {
          XCTAssertEqual(error as? PagingError, .noMemory)
          refused += 1
          // Nothing that goes back needs anything.
          system.host.failures.pointee.countdown = 0
          system.paging.destroy(object)
        }
        system.host.failures.pointee.countdown = -1
      } catch {
        XCTAssertEqual(error, .noMemory)
        refused += 1
      }
      let hasFailed = system.host.failures.pointee.hasFailed
      system.host.failures.pointee.countdown = -1
      system.check("point \(nth)")
      XCTAssertSame(system.picture(pages: true), before, "point \(nth)")
      if !hasFailed { break }
      nth += 1
      guard nth < 300 else { return XCTFail("points without end") }
    }
    XCTAssertGreaterThan(refused, 8)
  }

  // MARK: Bugs of callers

  func testUnmappingAnythingButOneRangeIsReported() throws {
    let system = try TestSystem()
    let area = try system.area(8)
    try system.fill(area)
    let wired = try system.memory.space.allocateWired(PageCount(8))
    system.expectFault(.wrongSize) { system.paging.unmap(area[0], PageCount(7)) }
    system.expectFault(.wrongSize) { system.paging.unmap(area[0], PageCount(9)) }
    system.expectFault(.wrongSize) { system.paging.unmap(area[0], .zero) }
    system.expectFault(.foreignPointer) { system.paging.unmap(area[1], PageCount(7)) }
    system.expectFault(.foreignPointer) { system.paging.unmap(area[7], PageCount(8)) }
    system.expectFault(.foreignPointer) {
      system.paging.unmap(area[0] + ByteCount(UInt64(8)), PageCount(8))
    }
    system.expectFault(.notAllocated) { system.paging.unmap(wired, PageCount(8)) }
    system.expectFault(.notAllocated) { system.paging.unmap(VirtualAddress(0), PageCount(8)) }
    try system.verify(area)
    system.hide(area)
    system.expectFault(.notAllocated) { system.hide(area) }
  }

  func testUnmappingARangeWithAWiredPageIsReported() throws {
    let system = try TestSystem()
    let a = try system.area(8)
    let b = try system.show(a.object, from: 2, 4)
    try system.fill(a)
    try system.paging.wire(b[1], .one, holes: .forbidden)
    system.expectFault(.notAllocated) { system.hide(b) }
    // A page may be wired through the other range only, as long as it is not mapped here.
    try system.paging.wire(a[7], .one, holes: .forbidden)
    system.expectFault(.notAllocated) { system.hide(a) }
    system.paging.unwire(a[7], .one)
    system.paging.unwire(b[1], .one)
    system.hide(b)
    system.hide(a)
    system.paging.destroy(a.object)
    system.check()
  }
}
