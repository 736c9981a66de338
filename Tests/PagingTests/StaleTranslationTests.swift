import BlockDevices
import CPlatform
import Foundation
import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import XCTest

@testable import Paging
@testable import Workloads

/// TLB entries of processors while ranges are wired and unmapped, and are laundered in the middle of that.
final class StaleTranslationTests: XCTestCase {
  // MARK: Rights that were raised

  func testWiringInvalidatesReadOnlyTranslations() throws {
    let system = try TestSystem()
    let area = try system.area(60)
    // Some mapped read-only, some writable, some not there.
    for page in 0..<20 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 0)) }
    for page in 20..<40 as Range<UInt64> { try system.write(area, page, page) }
    let faults = system.paging.figures.faults
    var shootdowns = system.shootdowns
    try system.paging.wire(area[0], PageCount(60), holes: .forbidden)
    XCTAssertEqual(system.shootdowns - shootdowns, 40, "not the pages that were mapped")
    for page in 0..<60 as Range<UInt64> {
      let frame = system.buffer.reach(area[page], .write, system.memory.pageTables)
      XCTAssertEqual(frame, system.frame(area, page), "a store into a wired page faults, page \(page)")
    }
    XCTAssertEqual(system.paging.figures.faults, faults)
    // A second wire may be done before the first one has invalidated what it raised.
    shootdowns = system.shootdowns
    try system.paging.wire(area[0], PageCount(60), holes: .forbidden)
    XCTAssertEqual(system.shootdowns - shootdowns, 60)
    for _ in 0..<2 { system.paging.unwire(area[0], PageCount(60)) }
    // No right is raised where none may write.
    let readable = try system.show(area.object, .kernelReadOnly)
    for page in 0..<20 as Range<UInt64> { XCTAssertTrue(try system.holds(readable, page, 0)) }
    shootdowns = system.shootdowns
    try system.paging.wire(readable[0], PageCount(60), holes: .forbidden)
    XCTAssertEqual(system.shootdowns, shootdowns)
    system.paging.unwire(readable[0], PageCount(60))
    system.check()
  }

  /// Another processor's fault raises a right without a shootdown, and then the page is wired: no processor remembers
  /// it as read-only after that.
  func testWiringInvalidatesTheTranslationThatAFaultMadeWritable() throws {
    let system = try TestSystem()
    let area = try system.area(3)
    let tables = system.memory.pageTables
    for page in 0..<3 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 0)) }
    for page in 0..<3 as Range<UInt64> { try system.paging.fault(area[page], .write) }
    XCTAssertNil(system.buffer.find(area[1].rawValue >> Page.shift, .write))
    XCTAssertNotNil(system.buffer.find(area[1].rawValue >> Page.shift, .read))
    try system.paging.wire(area[1], .one, holes: .forbidden)
    XCTAssertNotNil(system.buffer.reach(area[1], .write, tables), "a store into a wired page faults")
    // The page that was not wired is as before.
    XCTAssertNil(system.buffer.reach(area[0], .write, tables))
    system.paging.unwire(area[1], .one)
    system.check()
  }

  /// A fault of another processor raises a right without a shootdown: a store here faults once, and the tables permit it.
  func testAStoreThroughAReadOnlyTranslationIsNoFaultOfPaging() throws {
    let system = try TestSystem()
    let area = try system.area(1)
    let tables = system.memory.pageTables
    XCTAssertTrue(try system.holds(area, 0, 0))
    try system.paging.fault(area[0], .write)
    let faults = system.paging.figures.faults
    XCTAssertNil(system.buffer.reach(area[0], .write, tables), "the buffer looked again before it faulted")
    XCTAssertTrue(try system.holds(area, 0, 0))
    XCTAssertNotNil(system.buffer.reach(area[0], .write, tables))

    system.launderAll()
    XCTAssertTrue(try system.holds(area, 0, 0))
    try system.paging.fault(area[0], .write)
    XCTAssertEqual(system.paging.figures.faults, faults + 2)
    try system.write(area, 0, 7)
    XCTAssertEqual(system.paging.figures.faults, faults + 2, "a spurious fault went to paging")
    XCTAssertTrue(try system.holds(area, 0, 7))
    system.check()
  }

  // MARK: Ranges that go

  /// A clean page leaves its frame while its range goes: its translations are gone before its frame is another's.
  func testAPageOfARangeThatGoesIsInvalidatedBeforeItLeavesItsFrame() throws {
    func move(_ system: TestSystem, _ clean: CleanPages) -> MoveOutcome {
      let run = FrameRun(first: FrameNumber(256), count: PageCount(UInt64(160)))
      return system.paging.move(outOf: run, leaving: .zero, clean: clean, atMost: run.count)
    }
    let ways: [(String, (TestSystem) -> PageCount)] = [
      ("reclaimed", { $0.launderAll().freed }), ("moved", { move($0, .move).moved }),
      ("discarded", { move($0, .discard).dropped }),
    ]
    for (name, leave) in ways {
      var moment = 0
      var left = 0
      while true {
        let system = try TestSystem(runs: [(256, 160)], swap: 128)
        let area = try system.area(8)
        try system.fill(area)
        system.launderAll()
        try system.verify(area)
        let happened = system.preempting(
          at: moment,
          {
            left += Int(leave(system).rawValue)
            for page in 0..<area.count {
              guard let frame = system.buffer.find(area[page].rawValue >> Page.shift, .read) else { continue }
              let note = "page \(page), \(name) at moment \(moment)"
              XCTAssertEqual(system.place(area, page).place, .resident, note)
              XCTAssertEqual(system.place(area, page).frame, frame, note)
            }
          }, { system.hide(area) })
        system.paging.destroy(area.object)
        system.check("\(name) at moment \(moment)")
        if !happened { break }
        moment += 1
      }
      XCTAssertGreaterThan(moment, 10)
      XCTAssertGreaterThan(left, 40)
    }
  }

  /// A dirty page is written out while its range goes: no processor can write to it behind the laundry's back.
  func testAPageThatIsWrittenOutWhileItsRangeGoesCanNotBeWrittenTo() throws {
    var moment = 0
    var looks = 0
    while true {
      let system = try TestSystem(runs: [(256, 160)], swap: 128)
      let area = try system.area(8)
      try system.fill(area)
      let happened = system.preempting(
        at: moment,
        {
          system.atPoll = {
            for page in 0..<area.count where system.place(area, page).busyWord.sbusyCount > 0 {
              looks += 1
              XCTAssertNil(
                system.buffer.find(area[page].rawValue >> Page.shift, .write),
                "page \(page) is written out and written to, moment \(moment)")
            }
          }
          system.launderAll()
          system.atPoll = nil
        }, { system.hide(area) })
      let second = try system.show(area.object)
      try system.verify(second, "moment \(moment)")
      system.release(second)
      system.check("moment \(moment)")
      if !happened { break }
      moment += 1
    }
    XCTAssertGreaterThan(moment, 10)
    XCTAssertGreaterThan(looks, 40)
  }

  /// Two threads that run in turns: whenever the one sleeps, the other goes on.
  private final class Turns: @unchecked Sendable {
    private let toFirst = DispatchSemaphore(value: 0)
    private let toSecond = DispatchSemaphore(value: 0)
    private var isOver = false

    /// Runs `second` as processor 1 until it sleeps for the first time, then `first`; `devices` run in the second
    /// one's sleeps alone.
    func run(_ system: TestSystem, _ first: () -> Void, _ second: @escaping @Sendable () -> Void) {
      let devices = system.host.runDevices!
      system.host.runDevices = { [self] in
        if cp_processor_index() == 1 {
          toFirst.signal()
          toSecond.wait()
          return devices()
        }
        return giveTurn()
      }
      Thread.detachNewThread { [self] in
        toSecond.wait()
        system.host.runAs(processor: 1, second)
        isOver = true
        toFirst.signal()
      }
      _ = giveTurn()
      first()
      while giveTurn() {}
      system.host.runDevices = devices
    }

    private func giveTurn() -> Bool {
      if isOver { return false }
      toSecond.signal()
      toFirst.wait()
      return true
    }
  }

  /// A fault that found a range is let through before the range goes, and wakes the thread that takes it back. With
  /// no wake-up nothing would run that could end its sleep, and the process ends.
  func testARangeGoesOnceTheFaultInItIsThrough() throws {
    let system = try TestSystem(processors: 2)
    let area = try system.area(4)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    let isThrough = Flag()
    Turns().run(
      system,
      {
        XCTAssertTrue(system.place(area, 2).busyWord.isXbusy)
        system.hide(area)
        XCTAssertTrue(isThrough.isSet, "the range went while a fault was in it")
      },
      {
        try! system.paging.fault(area[2], .read)
        isThrough.isSet = true
      })
    XCTAssertEqual(system.place(area, 2).place, .resident)
    XCTAssertNil(system.mapping(area, 2))
    let second = try system.show(area.object)
    try system.verify(second)
    system.release(second)
    system.check()
  }

  private final class Flag: @unchecked Sendable { var isSet = false }

  /// A wire that found a range before it went: the page is wired, and the range stays.
  func testARangeStaysWhenAWireThatFoundItIsThrough() throws {
    let system = try TestSystem(processors: 2)
    let area = try system.area(4)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    let faults = system.host.faults {
      Turns().run(
        system, { system.hide(area) },
        { try! system.paging.wire(area[2], .one, holes: .forbidden) })
    }
    XCTAssertEqual(faults.map(\.kind), [.notAllocated])
    XCTAssertEqual(system.mapping(area, 2)?.wires, 1)
    XCTAssertEqual(system.paging.wiredCount, .one)
    system.check()
    try system.verify(area)
    system.paging.unwire(area[2], .one)
    system.release(area)
    system.check()
  }

  /// While a thread that unmaps a range waits for a wire in it, other threads can use the range. Once the wire
  /// is made, the unmap is refused, and the range was usable throughout.
  func testARangeStaysMappedWhileItsUnmapWaits() throws {
    for isUnwired in [false, true] {
      let system = try TestSystem(processors: 2)
      let area = try system.area(4)
      try system.fill(area)
      system.launderAll()
      system.dropCached()
      XCTAssertTrue(try system.holds(area, 1, 1001))
      let paging = system.paging
      let faults = system.host.faults {
        Turns().run(
          system, { system.hide(area) },
          {
            try! paging.wire(area[2], .one, holes: .forbidden)
            XCTAssertNotNil(try? paging.fault(area[1], .write), "a range that stays was not there")
            if isUnwired { paging.unwire(area[2], .one) }
          })
      }
      XCTAssertEqual(faults.map { $0.kind }, isUnwired ? [] : [FaultKind.notAllocated])
      XCTAssertEqual(paging.wiredCount, isUnwired ? .zero : .one)
      XCTAssertEqual(paging.figures.ranges, isUnwired ? 0 : 1)
      system.check()
      if !isUnwired {
        try system.verify(area)
        paging.unwire(area[2], .one)
        system.hide(area)
      }
      let second = try system.show(area.object)
      try system.verify(second)
      system.release(second)
      system.check()
    }
  }

  /// A range is unmapped, and another is mapped at its address, while a second thread waits to unmap the first
  /// one: that is reported, and the other one stays.
  func testAnUnmapThatWaitsTakesNoOtherRange() throws {
    let system = try TestSystem(processors: 2)
    let area = try system.area(4)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    nonisolated(unsafe) var second: Area?
    let faults = system.host.faults {
      Turns().run(
        system, { system.hide(area) },
        {
          try! system.paging.fault(area[2], .read)
          system.hide(area)
          second = try! system.show(area.object)
        })
    }
    XCTAssertEqual(faults.map(\.kind), [.notAllocated])
    let there = try XCTUnwrap(second)
    XCTAssertEqual(there.address, area.address)
    XCTAssertEqual(system.paging.figures.ranges, 1)
    try system.verify(there)
    system.release(there)
    system.check()
  }

  func testARangeThatIsUnmappedTwiceAtOnceIsUnmappedOnce() throws {
    var moment = 0
    while true {
      let system = try TestSystem()
      let area = try system.area(3)
      try system.fill(area)
      var happened = false
      let faults = system.host.faults {
        happened = system.preempting(at: moment, { system.hide(area) }, { system.hide(area) })
      }
      XCTAssertEqual(faults.map(\.kind), happened ? [.notAllocated] : [], "moment \(moment)")
      XCTAssertEqual(system.paging.figures.ranges, 0)
      system.paging.destroy(area.object)
      system.check("moment \(moment)")
      if !happened { break }
      moment += 1
    }
    XCTAssertGreaterThan(moment, 5)
  }

  // MARK: Wires and ranges

  /// A range goes when it has neither users nor wires: at each moment of a wire and of its end it has one of them.
  func testEachWireIsCountedByItsRangeAtEachMoment() throws {
    let system = try TestSystem()
    let area = try system.area(3)
    let entry = system.paging.withMap { $0.find(area.address.rawValue)! }
    var moments = 0
    func look() {
      let made = (0..<area.count).reduce(UInt64(0)) { $0 + UInt64(system.mapping(area, $1)?.wires ?? 0) }
      let (users, wires) = (UInt64(entry.pointee.users), entry.pointee.wires)
      XCTAssertLessThanOrEqual(made, wires + users, "moment \(moments)")
      XCTAssertLessThanOrEqual(wires, made + users, "moment \(moments)")
      moments += 1
    }
    try system.host.withInterrupts(seed: 0, oneIn: 1, handler: look) {
      try system.paging.wire(area.address, PageCount(area.count), holes: .forbidden)
      XCTAssertEqual(entry.pointee.wires, area.count)
      system.paging.unwire(area.address, PageCount(area.count))
    }
    XCTAssertEqual(entry.pointee.wires, 0)
    XCTAssertGreaterThan(moments, 10)
    system.check()
  }

  func testARangeWhosePagesAnotherRangeHasWiredCanBeUnmapped() throws {
    let system = try TestSystem()
    let a = try system.area(8)
    let b = try system.show(a.object, from: 2, 4)
    try system.fill(a)
    try system.verify(b)
    try system.paging.wire(a[0], PageCount(8), holes: .forbidden)
    // Mapped here, and wired by the other range only.
    XCTAssertNotNil(system.mapping(b, 1))
    system.expectFault(.notAllocated) { system.paging.unwire(b[0], .one) }
    system.hide(b)
    system.check()
    XCTAssertEqual(system.paging.wiredCount, PageCount(8))
    let faults = system.paging.figures.faults
    try system.fill(a, from: 3000)
    XCTAssertEqual(system.paging.figures.faults, faults)
    // Wired by both: each range stays until its own wires are gone.
    let c = try system.show(a.object, from: 2, 4)
    for _ in 0..<2 { try system.paging.wire(c[1], .one, holes: .forbidden) }
    system.expectFault(.notAllocated) { system.hide(c) }
    system.expectFault(.notAllocated) { system.hide(a) }
    system.paging.unwire(a[0], PageCount(8))
    XCTAssertEqual(system.paging.wiredCount, .one)
    system.hide(a)
    system.paging.unwire(c[1], .one)
    system.expectFault(.notAllocated) { system.hide(c) }
    system.paging.unwire(c[1], .one)
    system.check()
    try system.verify(c, from: 3000)
    system.release(c)
    system.check()
  }

  /// Addresses without pages cost nothing, however many there are.
  func testAHugeCountIsUnwiredOrRefusedAtOnce() throws {
    let system = try TestSystem()
    let area = try system.area(4)
    let other = try system.area(3)
    try system.fill(area)
    let most = PageCount((UInt64.max - area.address.rawValue) >> Page.shift + 1)
    let huge = [PageCount(UInt64(1) << 30), PageCount(UInt64(1) << 33), most]
    for count in huge {
      system.expectFault(.notAllocated) { system.paging.unwire(area[0], count) }
      XCTAssertFails(PagingError.notPageable) { try system.paging.wire(area[0], count, holes: .forbidden) }
    }
    for count in [most + .one, PageCount(UInt64(1) << 52), PageCount(UInt64.max)] {
      system.expectFault(.badConstraint) { system.paging.unwire(area[0], count) }
      for holes in [HolePolicy.allowed, .forbidden] {
        XCTAssertFails(PagingError.badConstraint) { try system.paging.wire(area[0], count, holes: holes) }
      }
    }
    system.expectFault(.badConstraint) { system.paging.unwire(area[0], .zero) }
    system.expectFault(.badConstraint) { system.paging.unwire(area[0] + ByteCount(8), .one) }
    for count in huge {
      try system.paging.wire(area[0], count, holes: .allowed)
      XCTAssertEqual(system.paging.wiredCount, PageCount(area.count + other.count))
      system.paging.unwire(area[0], count)
      XCTAssertEqual(system.paging.wiredCount, .zero)
    }
    system.check()
  }

  // MARK: FreeBSD's log

  // "defer the setting of the page's valid bits until contigmapping() when the mapping is known to be successful."
  func testAPageIsNotMarkedValidBeforeItsMappingStands() throws {
    // A page that is brought in from swap, from the cached ones, or as zeroes: at no moment it is valid with other
    // contents than its own, or mapped and not valid.
    for kind in ["swap", "cached", "zero"] {
      var moment = 0
      while true {
        let note = "\(kind), moment \(moment)"
        let system = try TestSystem()
        let area = try system.area(1)
        let stamp: UInt64 = kind == "zero" ? 0 : 77
        if stamp != 0 { try system.write(area, 0, stamp) }
        system.launderAll()
        if kind != "cached" {
          // No frame holds by chance what the page is to hold.
          let frames = system.takeAll()
          for frame in frames { system.write(frame: frame, 5) }
          system.giveBack(frames)
        }
        let happened = system.preempting(
          at: moment,
          {
            let what = system.place(area, 0)
            let mapping = system.mapping(area, 0)
            if let mapping {
              XCTAssertEqual(mapping.frame, what.frame, note)
              XCTAssertTrue(what.flags.contains(.valid), "a page is mapped and not valid, \(note)")
            }
            guard what.place == .resident, what.flags.contains(.valid), let frame = what.frame else { return }
            XCTAssertTrue(
              system.holds(frame: frame, stamp), "a page is valid before its contents are there, \(note)")
          }, { XCTAssertTrue(try! system.holds(area, 0, stamp)) })
        system.check(note)
        if !happened { break }
        moment += 1
      }
      XCTAssertGreaterThan(moment, 3)
    }
    // A read that fails: the page is neither valid nor mapped, and the frame has no owner.
    let system = try TestSystem()
    let area = try system.area(1)
    try system.write(area, 0, 77)
    system.launderAll()
    system.dropCached()
    system.disk.spoil(DevicePage(system.swapDisk.requests.first { $0.isWrite }!.first))
    let pageable = system.physical.count(.pageable)
    XCTAssertFails(PagingError.inputOutput) { _ = try system.holds(area, 0, 77) }
    XCTAssertEqual(system.place(area, 0).place, .swapped)
    XCTAssertNil(system.mapping(area, 0))
    XCTAssertEqual(system.physical.count(.pageable), pageable)
    system.disk.mend()
    XCTAssertTrue(try system.holds(area, 0, 77))
    system.check()
  }

  /// The log's own case: contiguous memory whose mapping fails at each point is no contiguous memory, neither by its
  /// frames' role nor in any count.
  func testContiguousMemoryWhoseMappingFailsIsNone() throws {
    let system = try TestSystem(frames: 2048)
    let type = system.kmem.type(named: ShortName("test"))
    let space = system.memory.space
    var nth: Int64 = 0
    while true {
      let before = system.picture()
      system.host.failures.pointee.hasFailed = false
      system.host.failures.pointee.countdown = nth
      let range = try? system.contiguous.contigmalloc(.kibibytes(2400), type: type)
      system.host.failures.pointee.countdown = -1
      if let range {
        XCTAssertEqual(system.physical.count(.contiguous), PageCount(600))
        XCTAssertEqual(space.pages(.contiguous), PageCount(600))
        system.contiguous.contigfree(range.address, size: .kibibytes(2400), type: type)
      }
      XCTAssertEqual(system.physical.count(.contiguous), .zero, "point \(nth)")
      XCTAssertEqual(space.pages(.contiguous), .zero, "point \(nth)")
      if range == nil { XCTAssertEqual(system.picture().counts, before.counts, "point \(nth)") }
      system.check("point \(nth)")
      if !system.host.failures.pointee.hasFailed { break }
      nth += 1
      guard nth < 300 else { return XCTFail("points without end") }
    }
    XCTAssertGreaterThan(nth, 3)
  }
}
