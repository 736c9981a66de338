import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// Objects: their numbers, their end, and what a caller can do wrong with them.
final class MemoryObjectTests: XCTestCase {
  func testNumbersAreFoundAndUsedAgain() throws {
    let system = try TestSystem(frames: 4096)
    var objects: [MemoryObject] = []
    for i in 0..<1200 as Range<UInt64> {
      objects.append(try system.paging.createObject(ShortName("o"), PageCount(1 + i % 3)))
    }
    let numbers = Set(objects.map(\.number))
    XCTAssertEqual(numbers.count, 1200)
    XCTAssertFalse(objects.contains { $0.number == 0 })
    for object in objects {
      XCTAssertEqual(system.paging.object(numbered: object.number), object)
    }
    var seen = 0
    var last: UInt32 = 0
    system.paging.forEachObject {
      XCTAssertGreaterThan($0.number, last)
      last = $0.number
      seen += 1
    }
    XCTAssertEqual(seen, 1200)
    system.check()
    XCTAssertNil(system.paging.object(numbered: 0))
    XCTAssertNil(system.paging.object(numbered: 5000))
    XCTAssertNil(system.paging.object(numbered: UInt32.max))
    for object in objects.reversed() { system.paging.destroy(object) }
    for number in 0..<2000 as Range<UInt32> { XCTAssertNil(system.paging.object(numbered: number)) }
    XCTAssertEqual(system.paging.figures.objects, 0)
    let again = try (0..<1200).map { _ in try system.paging.createObject(ShortName("o"), .one) }
    XCTAssertEqual(Set(again.map(\.number)), numbers)
    for object in again { system.paging.destroy(object) }
    system.check()
  }

  /// A cached page of an object that is gone is not found by the next object of the same number.
  func testANumberUsedAgainDoesNotFindTheOldPages() throws {
    let system = try TestSystem()
    let first = try system.area(10)
    try system.fill(first)
    system.launderAll()
    XCTAssertEqual(system.physical.cachedCount, PageCount(10))
    system.release(first)
    XCTAssertEqual(system.physical.cachedCount, .zero)
    let second = try system.area(10)
    XCTAssertEqual(second.object.number, first.object.number)
    for page in 0..<10 as Range<UInt64> { XCTAssertTrue(try system.holds(second, page, 0)) }
    XCTAssertEqual(system.paging.figures.reactivations, 0)
    system.check()
  }

  func testImpossibleSizesOfObjectsAreRefused() throws {
    let system = try TestSystem()
    for pages in [0, UInt64(1) << 40, UInt64.max] {
      XCTAssertFails(PagingError.badConstraint) {
        _ = try system.paging.createObject(ShortName("o"), PageCount(pages))
      }
    }
    // As many slots as there is memory for, and no more.
    XCTAssertFails(PagingError.noMemory) {
      _ = try system.paging.createObject(ShortName("o"), PageCount(UInt64(1) << 28))
    }
    system.check()
    let object = try system.paging.createObject(ShortName("large"), PageCount(UInt64(100_000)))
    let area = try system.show(object, from: 99_990, 10)
    try system.fill(area)
    try system.verify(area)
    system.release(area)
    system.check()
  }

  // MARK: Bugs of callers

  func testDestroyingAnObjectThatIsMappedWiredOrHeldIsReported() throws {
    let system = try TestSystem()
    let area = try system.area(6)
    try system.fill(area)
    system.expectFault(.leak) { system.paging.destroy(area.object) }
    let held = try system.paging.hold(area[4], .read)
    system.hide(area)
    system.expectFault(.leak) { system.paging.destroy(area.object) }
    system.paging.unhold(held)
    let again = try system.show(area.object)
    try system.verify(again)
    try system.paging.wire(again[5], .one, holes: .forbidden)
    system.expectFault(.leak) { system.paging.destroy(area.object) }
    system.expectFault(.notAllocated) { system.hide(again) }
    system.paging.unwire(again[5], .one)
    system.hide(again)
    system.paging.destroy(area.object)
    system.check()
    XCTAssertEqual(system.physical.count(.pageable), .zero)
  }

  func testDescriptionsOfPagesAreTrue() throws {
    let system = try TestSystem()
    let area = try system.area(3)
    XCTAssertEqual(system.place(area, 0).place, .untouched)
    XCTAssertEqual(system.place(area, 99).place, .untouched)
    try system.write(area, 0, 1)
    let what = system.place(area, 0)
    XCTAssertEqual(what.place, .resident)
    XCTAssertEqual(what.flags, [.valid, .dirty])
    XCTAssertEqual(what.queue, .active)
    XCTAssertEqual(what.busyWord, .none)
    let frame = try XCTUnwrap(what.frame)
    let known = system.physical.whatIs(frame)
    XCTAssertEqual(known.role, .pageable)
    XCTAssertEqual(known.owner, area.object.number)
    XCTAssertEqual(known.index, 0)
    system.launderAll()
    XCTAssertEqual(system.place(area, 0).place, .cached)
    XCTAssertEqual(system.place(area, 0).frame, frame)
    system.dropCached()
    XCTAssertEqual(system.place(area, 0).place, .swapped)
    XCTAssertEqual(area.object.name, ShortName("test"))
    XCTAssertEqual(area.object.kind, .anonymous)
  }
}
