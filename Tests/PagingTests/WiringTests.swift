import BlockDevices
import HostMachine
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// Wires and holds: how they are counted, what they keep from happening, and how a wire that fails undoes itself.
final class WiringTests: XCTestCase {
  private func wire(_ system: TestSystem, _ area: Area, _ page: UInt64, _ count: UInt64) throws {
    try system.paging.wire(area[page], PageCount(count), holes: .forbidden)
  }

  // MARK: Counting

  func testAWiredPageIsMappedAndIsWhereItIs() throws {
    let system = try TestSystem()
    let area = try system.area(30)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    try wire(system, area, 5, 10)
    XCTAssertEqual(system.paging.wiredCount, PageCount(10))
    let frames = (0..<area.count).map { system.frame(area, $0) }
    for page in 5..<15 as Range<UInt64> {
      let what = system.place(area, page)
      XCTAssertEqual(what.busyWord, .wiredOnce)
      XCTAssertNil(what.queue)
      XCTAssertTrue(what.flags.contains(.dirty))
      XCTAssertEqual(system.mapping(area, page)?.isWritable, true)
      XCTAssertEqual(
        system.physical.pageblockCounts(at: frames[Int(page)])?.unmovable.rawValue ?? 0 > 0, true)
    }
    system.check()
    // Neither written out, nor moved, nor reclaimed, whatever memory is short of.
    let faults = system.paging.figures.faults
    system.swapDisk.discardHistory()
    system.launderAll()
    let all = FrameRun(first: FrameNumber(1), count: PageCount(1000))
    let moved = system.paging.move(outOf: all, leaving: .zero, clean: .discard, atMost: PageCount(1000))
    XCTAssertEqual(moved.claimed, PageCount(10))
    XCTAssertEqual(moved.moved, .zero)
    XCTAssertEqual(system.paging.launder(outOf: all, .all, atMost: PageCount(1000)).written, .zero)
    let taken = system.takeAll()
    system.paging.runDaemon()
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    for page in 5..<15 as Range<UInt64> {
      XCTAssertEqual(system.frame(area, page), frames[Int(page)])
      try system.write(area, page, 1000 + page)
    }
    XCTAssertEqual(system.paging.figures.faults, faults, "a wired page does not fault")
    system.check()
    system.giveBack(taken)
    system.paging.unwire(area[5], PageCount(10))
    XCTAssertEqual(system.paging.wiredCount, .zero)
    XCTAssertEqual(system.paging.count(.active), PageCount(10))
    system.check()
    system.launderAll()
    system.dropCached()
    try system.verify(area)
  }

  func testAPageWiredTwiceCountsOnceAndIsUnwiredTwice() throws {
    let system = try TestSystem()
    let a = try system.area(20)
    let b = try system.show(a.object, from: 4, 8)
    try wire(system, a, 0, 20)
    try wire(system, a, 6, 2)
    try wire(system, b, 0, 8)
    XCTAssertEqual(system.paging.wiredCount, PageCount(20))
    XCTAssertEqual(system.place(a, 0).busyWord.wires, 1)
    XCTAssertEqual(system.place(a, 4).busyWord.wires, 2)
    XCTAssertEqual(system.place(a, 7).busyWord.wires, 3)
    system.check()
    system.paging.unwire(a[0], PageCount(20))
    XCTAssertEqual(system.paging.wiredCount, PageCount(8))
    XCTAssertEqual(system.place(a, 7).busyWord.wires, 2)
    system.check()
    system.paging.unwire(b[0], PageCount(8))
    XCTAssertEqual(system.paging.wiredCount, PageCount(2))
    system.paging.unwire(a[6], PageCount(2))
    XCTAssertEqual(system.paging.wiredCount, .zero)
    system.check()
    system.expectFault(.notAllocated) { system.paging.unwire(a[6], PageCount(2)) }
  }

  func testTheWiresOfAPageAreLimited() throws {
    let system = try TestSystem()
    let area = try system.area(4)
    for _ in 0..<4095 { try wire(system, area, 2, 1) }
    try system.fill(area)
    let before = system.picture(pages: true)
    XCTAssertFails(PagingError.tooManyWires) { try wire(system, area, 2, 1) }
    XCTAssertSame(system.picture(pages: true), before)
    // In the middle: the pages before are unwired.
    XCTAssertFails(PagingError.tooManyWires) { try wire(system, area, 0, 4) }
    XCTAssertEqual(system.paging.wiredCount, .one)
    XCTAssertEqual(system.place(area, 0).busyWord, .none)
    XCTAssertEqual(system.place(area, 3).busyWord, .none)
    system.check()
    for _ in 0..<4095 { system.paging.unwire(area[2], .one) }
    XCTAssertEqual(system.paging.wiredCount, .zero)
    system.check()
  }

  // MARK: Holes

  func testHolesAreAllowedOrForbidden() throws {
    let system = try TestSystem()
    // Neighbours in kernel space: a range, memory that is not pageable, a range, nothing.
    let a = try system.area(3)
    let hole = try system.memory.space.allocateWired(PageCount(2), from: .kernel)
    let b = try system.area(4)
    XCTAssertEqual(hole, a.address + PageCount(3))
    XCTAssertEqual(b.address, hole + PageCount(2))
    let before = system.picture(pages: true)
    for (first, count) in [(0, 4), (0, 9), (3, 1), (2, 3), (4, 2), (8, 2)] as [(UInt64, UInt64)] {
      XCTAssertFails(PagingError.notPageable, "\(first) \(count)") {
        try system.paging.wire(a.address + PageCount(first), PageCount(count), holes: .forbidden)
      }
    }
    // Nothing but a hole is no range at all.
    XCTAssertFails(PagingError.notPageable) {
      try system.paging.wire(hole, PageCount(2), holes: .allowed)
    }
    XCTAssertSame(system.picture(pages: true), before)
    for (first, count, wired) in [(0, 9, 7), (1, 5, 3), (3, 4, 2), (8, 5, 1)] as [(UInt64, UInt64, UInt64)] {
      let address = a.address + PageCount(first)
      try system.paging.wire(address, PageCount(count), holes: .allowed)
      XCTAssertEqual(system.paging.wiredCount, PageCount(wired), "\(first) \(count)")
      system.check()
      system.paging.unwire(address, PageCount(count))
      XCTAssertEqual(system.paging.wiredCount, .zero)
    }
    // Two ranges that touch are no hole.
    let c = try system.area(2)
    XCTAssertEqual(c.address, b.address + PageCount(4))
    try system.paging.wire(b[2], PageCount(4), holes: .forbidden)
    XCTAssertEqual(system.paging.wiredCount, PageCount(4))
    system.paging.unwire(b[2], PageCount(4))
    for (address, count) in [
      (a.address, PageCount.zero), (a.address + ByteCount(UInt64(8)), .one),
      (a.address, PageCount(UInt64(1) << 40)), (VirtualAddress(0 &- 4096), PageCount(2)),
    ] {
      XCTAssertFails(PagingError.badConstraint) {
        try system.paging.wire(address, count, holes: .allowed)
      }
    }
    system.check()
  }

  // MARK: Wires that fail

  func testAWireThatFailsHalfWayUnwiresWhatItWired() throws {
    for bad in [0, 1, 17, 39] as [UInt64] {
      let system = try TestSystem()
      let area = try system.area(40)
      try system.fill(area)
      system.launderAll()
      system.dropCached()
      // One page was wired before, and stays so.
      if bad != 5 { try wire(system, area, 5, 1) }
      let slot = system.swapDisk.requests.filter(\.isWrite).reduce(into: [UInt64: UInt64]()) {
        slots, request in
        for (i, _) in request.frames.enumerated() {
          slots[UInt64(slots.count)] = request.first + UInt64(i)
        }
      }
      // Pages were written in the order of the queue, which is that of the fill.
      system.disk.spoil(DevicePage(slot[bad]!))
      XCTAssertFails(PagingError.inputOutput, "page \(bad)") { try wire(system, area, 0, 40) }
      XCTAssertEqual(system.paging.wiredCount, .one)
      for page in 0..<area.count {
        XCTAssertEqual(system.place(area, page).busyWord.wires, page == 5 ? 1 : 0, "page \(page)")
      }
      system.check()
      system.disk.mend()
      try wire(system, area, 0, 40)
      XCTAssertEqual(system.paging.wiredCount, PageCount(40))
      XCTAssertEqual(system.place(area, 5).busyWord.wires, 2)
      try system.verify(area)
      system.paging.unwire(area[0], PageCount(40))
      system.paging.unwire(area[5], .one)
      system.check()
    }
  }

  func testEachPointThatFailsDuringAWireUnwiresWhatItWired() throws {
    let system = try TestSystem()
    let area = try system.area(6)
    var nth: Int64 = 0
    while true {
      // Two pages in swap, two cached, one of zeroes in memory, one untouched.
      for page in 0..<2 as Range<UInt64> { try system.write(area, page, 1000 + page) }
      system.launderAll()
      system.dropCached()
      for page in 2..<4 as Range<UInt64> { try system.write(area, page, 1000 + page) }
      system.launderAll()
      _ = try system.holds(area, 4, 0)
      system.host.failures.pointee.hasFailed = false
      system.host.failures.pointee.countdown = nth
      var isWired = true
      do throws(PagingError) {
        try system.paging.wire(area.address, PageCount(6), holes: .forbidden)
      } catch {
        XCTAssertEqual(error, .noMemory)
        isWired = false
      }
      system.host.failures.pointee.countdown = -1
      XCTAssertEqual(system.paging.wiredCount, isWired ? PageCount(6) : .zero, "point \(nth)")
      system.check("point \(nth)")
      if isWired { system.paging.unwire(area.address, PageCount(6)) }
      system.check("point \(nth)")
      for page in 0..<4 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 1000 + page)) }
      for page in 4..<6 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 0)) }
      system.release(area)
      if !system.host.failures.pointee.hasFailed { break }
      let fresh = try system.area(6)
      XCTAssertEqual(fresh.address, area.address)
      nth += 1
      guard nth < 100 else { return XCTFail("points without end") }
    }
    XCTAssertGreaterThan(nth, 6)
  }

  // MARK: Wires and ranges of other threads

  /// Three pages, a hole of two, and five pages of which the third can't be read.
  private struct Bed {
    let system: TestSystem
    let below: Area
    let above: Area
    /// The object of a range in the hole.
    let other: MemoryObject
    var hole: VirtualAddress { below.address + PageCount(3) }

    init() throws {
      system = try TestSystem()
      below = try system.area(3)
      let between = try system.area(2)
      above = try system.area(5)
      other = between.object
      XCTAssertEqual(between.address, below.address + PageCount(3))
      XCTAssertEqual(above.address, between.address + PageCount(2))
      try system.write(above, 2, 1)
      system.launderAll()
      system.dropCached()
      system.disk.spoil(DevicePage(system.swapDisk.requests.last { $0.isWrite }!.first))
      system.hide(between)
    }

    /// Maps a range into the hole, and wires it for a device.
    func wireHole() throws {
      let area = try system.show(other)
      XCTAssertEqual(area.address, hole)
      try system.paging.wire(hole, PageCount(2), holes: .forbidden)
    }

    func checkOnlyTheHoleIsWired(_ note: String = "") {
      XCTAssertEqual(system.paging.wiredCount, PageCount(2), note)
      for page in 0..<2 as Range<UInt64> {
        XCTAssertEqual(system.memory.pageTables.mapping(at: hole + PageCount(page))?.wires, 1, note)
      }
      system.check(note)
      system.paging.unwire(hole, PageCount(2))
      system.paging.unmap(hole, PageCount(2))
      system.check(note)
    }
  }

  /// A range comes into a hole that a wire has passed, and its owner wires it while the wire sleeps: the undoing of
  /// the wire leaves that.
  func testAWireThatFailsLeavesTheWiresOfARangeThatCameIntoAHole() throws {
    let bed = try Bed()
    var hasCome = false
    bed.system.atPoll = {
      guard !hasCome else { return }
      hasCome = true
      try! bed.wireHole()
    }
    XCTAssertFails(PagingError.inputOutput) {
      try bed.system.paging.wire(bed.below[0], PageCount(10), holes: .allowed)
    }
    XCTAssertTrue(hasCome)
    bed.checkOnlyTheHoleIsWired()
  }

  /// The same at each moment, before the wire comes to the hole too: either it wires nothing there, or it is undone.
  func testAWireThatFailsLeavesTheWiresOfARangeThatComesAtAnyMoment() throws {
    var moment = 0
    while true {
      let bed = try Bed()
      let happened = bed.system.preempting(
        at: moment, { try! bed.wireHole() },
        {
          XCTAssertFails(PagingError.inputOutput) {
            try bed.system.paging.wire(bed.below[0], PageCount(10), holes: .allowed)
          }
        })
      if !happened { break }
      bed.checkOnlyTheHoleIsWired("moment \(moment)")
      moment += 1
    }
    XCTAssertGreaterThan(moment, 20)
  }

  /// A range goes before a wire comes to it, and another one comes in its place: the wire leaves that alone.
  func testAWireThatFailsLeavesTheWiresOfARangeThatReplacesAnother() throws {
    var (moment, replaced) = (0, 0)
    while true {
      let bed = try Bed()
      let system = bed.system
      let first = try system.show(bed.other)
      var isReplaced = false
      let happened = system.preempting(
        at: moment,
        {
          let entry = system.paging.withMap { $0.find(bed.hole.rawValue) }
          guard entry?.pointee.users == 0, system.mapping(first, 0) == nil else { return }
          isReplaced = true
          system.hide(first)
          try! bed.wireHole()
        },
        {
          XCTAssertFails(PagingError.inputOutput) {
            try system.paging.wire(bed.below[0], PageCount(10), holes: .allowed)
          }
        })
      if !happened { break }
      if isReplaced {
        replaced += 1
        bed.checkOnlyTheHoleIsWired("moment \(moment)")
      } else {
        XCTAssertEqual(system.paging.wiredCount, .zero, "moment \(moment)")
      }
      system.check("moment \(moment)")
      moment += 1
    }
    XCTAssertGreaterThan(replaced, 5)
    XCTAssertGreaterThan(moment, replaced)
  }

  /// A range that is mapped and wired while an unwire across a hole is under way keeps its wires.
  func testAnUnwireLeavesTheWiresOfARangeThatComesAtAnyMoment() throws {
    var moment = 0
    while true {
      let bed = try Bed()
      bed.system.disk.mend()
      try bed.system.paging.wire(bed.below[0], PageCount(10), holes: .allowed)
      var hasCome = false
      let happened = bed.system.preempting(
        at: moment,
        {
          hasCome = true
          try! bed.wireHole()
        }, { bed.system.paging.unwire(bed.below[0], PageCount(10)) })
      if !happened { break }
      XCTAssertTrue(hasCome)
      bed.checkOnlyTheHoleIsWired("moment \(moment)")
      moment += 1
    }
    XCTAssertGreaterThan(moment, 20)
  }

  /// A range that came into a hole after a wire across it is no part of what the wire's owner unwires, wired or not.
  func testAnUnwireLeavesTheWiresOfARangeThatCameIntoAHole() throws {
    let bed = try Bed()
    bed.system.disk.mend()
    let ranges = try bed.system.paging.wire(bed.below[0], PageCount(10), holes: .allowed)
    try bed.wireHole()
    bed.system.paging.unwire(bed.below[0], PageCount(10), of: ranges)
    bed.checkOnlyTheHoleIsWired()
    let others = try bed.system.paging.wire(bed.below[0], PageCount(10), holes: .allowed)
    _ = try bed.system.show(bed.other)
    bed.system.paging.unwire(bed.below[0], PageCount(10), of: others)
    XCTAssertEqual(bed.system.paging.wiredCount, .zero)
    bed.system.check()
  }

  // MARK: Bugs of callers

  func testUnwiringAPageThatIsNotWiredIsReported() throws {
    let system = try TestSystem()
    let area = try system.area(10)
    try system.fill(area)
    try wire(system, area, 2, 4)
    for (first, count) in [(0, 1), (0, 4), (2, 5), (4, 3), (6, 1), (9, 1)] as [(UInt64, UInt64)] {
      system.expectFault(.notAllocated) { system.paging.unwire(area[first], PageCount(count)) }
    }
    // A page that is nowhere, and one that is in swap.
    let other = try system.area(2)
    try system.write(other, 1, 1)
    system.paging.launder(.active, upTo: PageCount(100), referenced: .launder)
    system.expectFault(.notAllocated) { system.paging.unwire(other[0], .one) }
    system.expectFault(.notAllocated) { system.paging.unwire(other[1], .one) }
    system.paging.unwire(area[2], PageCount(4))
    system.expectFault(.notAllocated) { system.paging.unwire(area[2], PageCount(4)) }
    // Where nothing is pageable there is nothing that could have been wired.
    system.hide(other)
    system.expectFault(.notAllocated) { system.paging.unwire(other[0], PageCount(2)) }
  }

  // MARK: Holds

  func testAHeldPageStaysUntilItIsReleased() throws {
    let system = try TestSystem()
    let area = try system.area(4)
    try system.fill(area)
    let frame = try system.paging.hold(area[1], .write)
    XCTAssertEqual(frame, system.frame(area, 1))
    XCTAssertEqual(system.place(area, 1).busyWord.holds, 1)
    system.launderAll()
    XCTAssertEqual(system.paging.residentCount(area.object), .one)
    let all = FrameRun(first: FrameNumber(1), count: PageCount(1000))
    let moved = system.paging.move(outOf: all, leaving: .zero, clean: .move, atMost: PageCount(1000))
    XCTAssertEqual(moved.claimed, .one)
    XCTAssertEqual(moved.moved, .zero)
    let taken = system.takeAll()
    system.paging.runDaemon()
    XCTAssertEqual(system.frame(area, 1), frame)
    system.giveBack(taken)
    // A write to the frame is a write to the page.
    system.write(frame: frame, 99)
    XCTAssertTrue(try system.holds(area, 1, 99))
    system.check()
    // Twice held, twice let go; a wire goes together with it.
    XCTAssertEqual(try system.paging.hold(area[1], .read), frame)
    try wire(system, area, 1, 1)
    system.paging.unhold(frame)
    system.paging.unwire(area[1], .one)
    system.check()
    system.launderAll()
    XCTAssertEqual(system.frame(area, 1), frame)
    system.paging.unhold(frame)
    system.expectFault(.notAllocated) { system.paging.unhold(frame) }
    system.launderAll()
    XCTAssertEqual(system.paging.residentCount(area.object), .zero)
    system.dropCached()
    XCTAssertTrue(try system.holds(area, 1, 99))
    system.check()
  }

  func testReleasingAPageThatIsNotHeldIsReported() throws {
    let system = try TestSystem()
    let area = try system.area(2)
    try system.write(area, 0, 1)
    system.expectFault(.notAllocated) { system.paging.unhold(system.frame(area, 0)) }
    let frame = try system.physical.allocate(BlockOrder(0), role: .loaned)
    system.expectFault(.notAllocated) { system.paging.unhold(frame) }
    system.physical.free(FrameRun(first: frame, count: .one))
    system.expectFault(.notAllocated) { system.paging.unhold(frame) }
    system.expectFault(.notAllocated) { system.paging.unhold(.none) }
    system.expectFault(.notAllocated) { system.paging.unhold(FrameNumber(1 << 25)) }
  }

  /// The count of holds has ten bits. One more than fits is refused, as it is for wires, and does not wait for ever.
  func testTheHoldsOfAPageAreLimited() throws {
    let system = try TestSystem()
    let area = try system.area(2)
    try system.write(area, 0, 1)
    let frame = system.frame(area, 0)
    for _ in 0..<1023 { XCTAssertEqual(try system.paging.hold(area[0], .read), frame) }
    XCTAssertEqual(system.place(area, 0).busyWord.holds, 1023)
    XCTAssertFails(PagingError.tooManyHolds) { _ = try system.paging.hold(area[0], .read) }
    XCTAssertEqual(system.place(area, 0).busyWord.holds, 1023)
    for _ in 0..<1023 { system.paging.unhold(frame) }
    XCTAssertEqual(system.place(area, 0).busyWord, .none)
    system.check()
  }
}
