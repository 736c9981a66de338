import BlockDevices
import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// How pages become clean and free: written out, dirtied again, failed, without a slot, without memory; and the
/// daemon that keeps frames free.
final class LaunderingTests: XCTestCase {
  private func failAll(_ seed: UInt64 = 1) -> DeviceFaults {
    var faults = DeviceFaults(seed: seed)
    faults.failed = 1000
    return faults
  }

  // MARK: Dirtied while they are written out

  func testAPageWrittenToWhileItIsWrittenOutStaysDirty() throws {
    let system = try TestSystem()
    let area = try system.area(40)
    try system.fill(area)
    var written: Set<UInt64> = []
    system.atPoll = {
      for page in [3, 17, 39] as [UInt64] where !written.contains(page) {
        let what = system.place(area, page)
        guard what.busyWord.sbusyCount > 0, !what.flags.contains(.dirty) else { continue }
        try! system.write(area, page, 9000 + page)
        written.insert(page)
        XCTAssertTrue(system.place(area, page).flags.contains(.dirty))
      }
    }
    let outcome = system.launderAll()
    system.atPoll = nil
    XCTAssertEqual(written.count, 3)
    XCTAssertEqual(outcome.written, PageCount(40))
    XCTAssertEqual(outcome.redirtied, PageCount(3))
    XCTAssertEqual(outcome.freed, PageCount(37))
    XCTAssertEqual(system.paging.residentCount(area.object), PageCount(3))
    // The copies of what was written are let go.
    XCTAssertEqual(system.paging.swap.figures.used, PageCount(37))
    for page in written {
      let what = system.place(area, page)
      XCTAssertEqual(what.flags, [.valid, .dirty])
      XCTAssertEqual(what.queue, .active)
    }
    system.check()
    system.dropCached()
    for page in 0..<area.count {
      XCTAssertTrue(try system.holds(area, page, written.contains(page) ? 9000 + page : 1000 + page))
    }
    XCTAssertEqual(system.launderAll().redirtied, .zero)
    system.dropCached()
    for page in written { XCTAssertTrue(try system.holds(area, page, 9000 + page)) }
    system.check()
  }

  /// At every moment between the first look at the pages and the last, from another processor.
  func testNoStampIsLostWheneverThePageIsWrittenTo() throws {
    let system = try TestSystem()
    let area = try system.area(5)
    var moment = 0
    var redirtied = UInt64(0)
    while true {
      try system.fill(area)
      var stamp: UInt64 = 1002
      let happened = system.preempting(
        at: moment,
        {
          let what = system.place(area, 2)
          // The thread that has it xbusy can't be waited for: it would wait for this one.
          guard !what.busyWord.isXbusy else { return }
          stamp = 7000 + UInt64(moment)
          try! system.write(area, 2, stamp)
        },
        {
          redirtied +=
            system.paging.launder(.active, upTo: PageCount(9), referenced: .launder).redirtied.rawValue
        })
      system.check("moment \(moment)")
      system.launderAll()
      system.dropCached()
      for page in 0..<area.count {
        XCTAssertTrue(try system.holds(area, page, page == 2 ? stamp : 1000 + page), "moment \(moment)")
      }
      if !happened { break }
      moment += 1
    }
    XCTAssertGreaterThan(redirtied, 10)
  }

  func testAPageThatIsReadWhileItIsWrittenOutIsReclaimed() throws {
    let system = try TestSystem()
    let area = try system.area(4)
    try system.fill(area)
    var reads = 0
    system.atPoll = {
      for page in 0..<4 as Range<UInt64> where system.place(area, page).busyWord.sbusyCount > 0 {
        XCTAssertTrue(try! system.holds(area, page, 1000 + page))
        reads += 1
      }
    }
    XCTAssertEqual(system.launderAll().freed, PageCount(4))
    system.atPoll = nil
    XCTAssertGreaterThan(reads, 3)
    for page in 0..<4 as Range<UInt64> { XCTAssertNil(system.mapping(area, page)) }
    try system.verify(area)
    system.check()
  }

  /// Pages of swap and of devices, mixed in one queue: each goes where it belongs.
  func testPagesOfDevicesAndOfSwapNeverShareARequest() throws {
    let system = try TestSystem()
    let disks = [system.makeDisk(20), system.makeDisk(20)]
    var areas = [try system.area(20)]
    for disk in disks {
      areas.append(
        try system.show(
          try system.paging.createObject(ShortName("file"), on: disk.device, from: .zero, PageCount(20))))
    }
    for page in 0..<20 as Range<UInt64> {
      for (i, area) in areas.enumerated() where (page + UInt64(i)) % 5 != 4 {
        try system.write(area, page, 100 * UInt64(i) + page)
      }
    }
    let outcome = system.launderAll()
    XCTAssertEqual(outcome.written, PageCount(48))
    XCTAssertEqual(outcome.freed, PageCount(48))
    XCTAssertEqual(system.swapDisk.written.count, 16)
    for disk in disks { XCTAssertEqual(disk.written.count, 16) }
    XCTAssertEqual(system.paging.swap.figures.used, PageCount(16))
    system.check()
    system.dropCached()
    for page in 0..<20 as Range<UInt64> {
      for (i, area) in areas.enumerated() where (page + UInt64(i)) % 5 != 4 {
        XCTAssertTrue(try system.holds(area, page, 100 * UInt64(i) + page), "\(i) \(page)")
      }
    }
    system.check()
  }

  // MARK: Pages that are passed over

  func testLaunderingKeepsToItsQueueAndItsLimit() throws {
    let system = try TestSystem()
    let area = try system.area(100)
    try system.fill(area)
    XCTAssertEqual(system.paging.launder(.inactive, upTo: PageCount(100)).written, .zero)
    // All were used of late.
    let spared = system.paging.launder(.active, upTo: PageCount(60))
    XCTAssertEqual(spared.passedOver, PageCount(60))
    XCTAssertEqual(spared.written, .zero)
    XCTAssertEqual(system.paging.count(.active), PageCount(100))
    let some = system.paging.launder(.active, upTo: PageCount(10), referenced: .launder)
    XCTAssertEqual(some.written, PageCount(10))
    XCTAssertEqual(some.freed, PageCount(10))
    XCTAssertEqual(system.paging.count(.active), PageCount(90))
    XCTAssertEqual(system.paging.launder(.active, upTo: .zero, referenced: .launder).written, .zero)
    system.check()
    // Those whose turn it was have lost their bit, the others not.
    let rest = system.paging.launder(.active, upTo: PageCount(90))
    XCTAssertEqual(rest.written + rest.passedOver, PageCount(90))
    XCTAssertEqual(rest.passedOver, PageCount(30))
    try system.verify(area)
    system.check()
  }

  // MARK: Writes that fail

  func testAFailedWriteKeepsThePageDirtyAndRetiresItsSlotOnly() throws {
    let system = try TestSystem()
    let area = try system.area(32)
    try system.fill(area)
    system.disk.spoil(DevicePage(5))
    system.disk.spoil(DevicePage(30))
    let outcome = system.paging.launder(.active, upTo: PageCount(100), referenced: .launder)
    XCTAssertEqual(outcome.failed, PageCount(2))
    XCTAssertEqual(outcome.freed, PageCount(30))
    let figures = system.paging.swap.figures
    XCTAssertEqual(figures.bad, PageCount(2))
    XCTAssertEqual(figures.used, PageCount(30))
    XCTAssertEqual(figures.total, figures.free + PageCount(32))
    for page in [5, 30] as [UInt64] {
      let what = system.place(area, page)
      XCTAssertEqual(what.place, .resident)
      XCTAssertEqual(what.flags, [.valid, .dirty])
      XCTAssertEqual(what.queue, .laundry)
    }
    XCTAssertEqual(system.paging.figures.failedWrites, 2)
    system.check()
    // The next time it goes elsewhere.
    let again = system.paging.launder(.laundry, upTo: PageCount(100), referenced: .launder)
    XCTAssertEqual(again.freed, PageCount(2))
    XCTAssertEqual(system.paging.swap.figures.bad, PageCount(2))
    system.dropCached()
    try system.verify(area)
    system.check()
  }

  func testADiskThatFailsEverythingLosesNothing() throws {
    let system = try TestSystem(swap: 600)
    let area = try system.area(300)
    try system.fill(area)
    system.disk.faults = failAll()
    let outcome = system.launderAll()
    XCTAssertEqual(outcome.freed, .zero)
    XCTAssertEqual(system.paging.residentCount(area.object), PageCount(300))
    XCTAssertEqual(system.paging.swapCount(area.object), .zero)
    try system.verify(area)
    system.check()
    for _ in 0..<5 { system.launderAll() }
    // Every slot was tried once and is retired.
    XCTAssertEqual(system.paging.swap.figures.bad, PageCount(600))
    XCTAssertEqual(system.paging.count(.unswappable), PageCount(300))
    try system.verify(area)
    system.check()
    system.release(area)
    system.check()
  }

  // MARK: Swap that is full

  func testPagesWithoutSpaceInSwapWaitForIt() throws {
    let system = try TestSystem(swap: 64)
    let area = try system.area(200)
    try system.fill(area)
    let outcome = system.paging.launder(.active, upTo: PageCount(200), referenced: .launder)
    XCTAssertEqual(outcome.written, PageCount(64))
    XCTAssertEqual(outcome.unswappable, PageCount(136))
    XCTAssertEqual(system.paging.count(.unswappable), PageCount(136))
    XCTAssertEqual(system.paging.swap.figures.free, .zero)
    system.check()
    try system.verify(area)
    // No slot is free, so the disk gets no further requests.
    system.swapDisk.discardHistory()
    system.paging.retryUnswappable()
    XCTAssertEqual(system.paging.count(.unswappable), PageCount(136))
    // Slots get free when pages are written to that have a copy.
    system.launderAll()
    for page in 0..<30 as Range<UInt64> { try system.write(area, page, 1000 + page) }
    XCTAssertEqual(system.paging.swap.figures.free, PageCount(30))
    system.paging.retryUnswappable()
    XCTAssertEqual(system.paging.count(.unswappable), PageCount(106))
    XCTAssertEqual(system.paging.count(.laundry), PageCount(30))
    system.check()
    let again = system.paging.launder(.laundry, upTo: PageCount(200), referenced: .launder)
    XCTAssertEqual(again.written, PageCount(30))
    XCTAssertEqual(system.paging.swap.figures.used, PageCount(64))
    system.dropCached()
    try system.verify(area)
    system.check()
  }

  func testTheDaemonWritesPagesWithoutSpaceInSwapOnceThereIsSome() throws {
    let system = try TestSystem(attaches: false)
    let area = try system.area(400)
    try system.fill(area)
    let taken = system.takeAll(leaving: 100)
    system.setTarget(200)
    XCTAssertEqual(system.paging.runDaemon().freed, .zero)
    XCTAssertGreaterThan(system.paging.count(.unswappable), PageCount(99))
    system.check()
    try system.paging.attachSwap(system.swapDisk.device)
    XCTAssertEqual(system.paging.count(.unswappable), .zero)
    system.paging.runDaemon()
    XCTAssertGreaterThanOrEqual(system.physical.freeCount, system.paging.freeTarget)
    system.check()
    system.giveBack(taken)
    system.dropCached()
    try system.verify(area)
  }

  // MARK: The daemon

  func testTheDaemonReachesItsTarget() throws {
    let system = try TestSystem()
    let area = try system.area(2000)
    try system.fill(area)
    system.check()
    XCTAssertGreaterThan(system.paging.figures.daemonRuns, 10)
    let taken = system.takeAll(leaving: 20)
    let outcome = system.paging.runDaemon()
    XCTAssertGreaterThanOrEqual(system.physical.freeCount, system.paging.freeTarget)
    XCTAssertGreaterThanOrEqual(outcome.freed.rawValue, system.paging.freeTarget.rawValue - 20)
    // And not much more.
    XCTAssertLessThanOrEqual(system.physical.freeCount, system.paging.freeTarget + PageCount(64))
    // With the target met it does nothing.
    let scanned = system.paging.figures.scanned
    XCTAssertEqual(system.paging.runDaemon().freed, .zero)
    XCTAssertEqual(system.paging.figures.scanned, scanned)
    system.check()
    system.giveBack(taken)
    try system.verify(area)
    system.check()
  }

  func testAPageThatWasUsedHasASecondChance() throws {
    let system = try TestSystem()
    let area = try system.area(300)
    try system.fill(area)
    // No page is used; then every third is.
    for page in 0..<area.count { _ = system.memory.pageTables.testAndClearAccessed(area[page]) }
    system.buffer.invalidate(0, 1 << 52)
    var used: [UInt64: FrameNumber] = [:]
    for page in 0..<area.count where page % 3 == 0 {
      _ = try system.processor.load(area[page])
      used[page] = system.frame(area, page)
    }
    let taken = system.takeAll(leaving: 50)
    system.setTarget(200)
    let outcome = system.paging.runDaemon()
    XCTAssertGreaterThanOrEqual(outcome.freed.rawValue, 150)
    for (page, frame) in used {
      XCTAssertEqual(system.place(area, page).place, .resident, "page \(page)")
      XCTAssertEqual(system.frame(area, page), frame)
    }
    system.check()
    system.giveBack(taken)
    try system.verify(area)
  }

  /// In use again and again, while three times as many pages as there is memory for come by.
  func testPagesInUseStayInMemory() throws {
    let system = try TestSystem()
    let area = try system.area(3000)
    let hot = try system.area(40)
    try system.fill(hot)
    for page in 0..<area.count {
      try system.write(area, page, page)
      if page % 8 == 0 {
        // A processor forgets in time; what it remembers hides uses.
        system.buffer.invalidate(0, 1 << 52)
        for page in 0..<hot.count { _ = try system.processor.load(hot[page]) }
      }
    }
    let reads = system.swapDisk.readCount
    try system.verify(hot)
    XCTAssertEqual(system.swapDisk.readCount, reads)
    system.check()
  }

  func testTheDaemonEndsWhenNothingCanBeFreed() throws {
    enum Why: CaseIterable { case noSwap, failingDisk, wired, held, nothing }
    for why in Why.allCases {
      let system = try TestSystem(attaches: why != .noSwap)
      let area = try system.area(200)
      if why != .nothing { try system.fill(area) }
      switch why {
      case .failingDisk: system.disk.faults = failAll()
      case .wired: try system.paging.wire(area.address, PageCount(200), holes: .forbidden)
      case .held: for page in 0..<area.count { _ = try system.paging.hold(area[page], .read) }
      case .noSwap, .nothing: break
      }
      let taken = system.takeAll()
      XCTAssertEqual(system.paging.runDaemon().freed, .zero, "\(why)")
      XCTAssertEqual(system.physical.freeCount, .zero)
      XCTAssertFails(PagingError.noMemory, "\(why)") {
        let other = try system.area(1)
        try system.write(other, 0, 1)
      }
      system.check("\(why)")
      if why != .nothing { try system.verify(area, "\(why)") }
      system.giveBack(taken)
      system.disk.faults = DeviceFaults()
      switch why {
      case .wired: system.paging.unwire(area.address, PageCount(200))
      case .held: for page in 0..<area.count { system.paging.unhold(system.frame(area, page)) }
      case .noSwap: try system.paging.attachSwap(system.swapDisk.device)
      case .failingDisk, .nothing: break
      }
      system.check("\(why)")
      if why != .nothing {
        system.paging.retryUnswappable()
        XCTAssertEqual(system.launderAll().freed, PageCount(200), "\(why)")
        system.dropCached()
        try system.verify(area, "\(why)")
      }
      system.check("\(why)")
    }
  }

  /// All pages lie in the laundry, after their disk had failed, and all were read since: they have their second
  /// chance, and then they are written. A fault does not give up before that.
  func testUsedPagesInTheLaundryStillMakeSpace() throws {
    let system = try TestSystem(swap: 4096)
    let area = try system.area(700)
    try system.fill(area)
    system.disk.faults = failAll()
    system.paging.launder(.active, upTo: PageCount(700), referenced: .launder)
    XCTAssertEqual(system.paging.count(.laundry), PageCount(700))
    system.disk.faults = DeviceFaults()
    let other = try system.area(1)
    let taken = system.takeAll()
    system.buffer.invalidate(0, 1 << 52)
    try system.verify(area)
    try system.write(other, 0, 5)
    XCTAssertTrue(try system.holds(other, 0, 5))
    system.giveBack(taken)
    system.check()
    try system.verify(area)
  }

  // MARK: When memory is gone

  func testPageOutNeedsNoMemoryAtAll() throws {
    let system = try TestSystem()
    let area = try system.area(300)
    let disk = system.makeDisk(40)
    let object = try system.paging.createObject(
      ShortName("file"), on: disk.device, from: .zero, PageCount(40))
    let file = try system.show(object)
    try system.fill(area)
    try system.fill(file)
    let taken = system.takeAll()
    XCTAssertEqual(system.physical.freeCount, .zero)
    let before = system.host.failures.pointee.reached
    system.host.failures.pointee.hasFailed = false
    system.host.failures.pointee.countdown = 0
    let outcome = system.launderAll()
    XCTAssertFalse(system.host.failures.pointee.hasFailed, "a point that can fail was passed")
    system.host.failures.pointee.countdown = -1
    for i in 0..<8 { XCTAssertEqual(system.host.failures.pointee.reached[i], before[i]) }
    XCTAssertEqual(outcome.freed, PageCount(340))
    XCTAssertEqual(system.physical.freeCount, PageCount(340))
    system.check()
    system.giveBack(taken)
    system.dropCached()
    try system.verify(area)
    try system.verify(file)
  }

  func testTheDaemonNeedsNoMemoryEither() throws {
    let system = try TestSystem()
    let area = try system.area(700)
    try system.fill(area)
    let taken = system.takeAll()
    system.host.failures.pointee.hasFailed = false
    system.host.failures.pointee.countdown = 0
    system.paging.runDaemon()
    XCTAssertFalse(system.host.failures.pointee.hasFailed)
    system.host.failures.pointee.countdown = -1
    XCTAssertGreaterThanOrEqual(system.physical.freeCount, system.paging.freeTarget)
    system.check()
    system.giveBack(taken)
    try system.verify(area)
  }

  /// Reordered, delayed, failing now and then: with memory gone from beginning to end.
  func testLaunderingGoesOnOnABadDiskWithoutFreeMemory() throws {
    let seed = historySeed(11)
    let system = try TestSystem(frames: 512, swap: 8192)
    let area = try system.area(1500)
    var faults = DeviceFaults(seed: seed)
    faults.failed = 50
    faults.delayed = 300
    faults.longestDelay = 9
    faults.reordered = 400
    system.disk.faults = faults
    var stamps = [UInt64](repeating: 0, count: Int(area.count))
    var random = SeededRandom(seed: seed)
    let taken = system.takeAll(leaving: 40)
    for turn in 0..<6000 as Range<UInt64> {
      let page = random.below(area.count)
      do throws(PagingError) {
        if random.oneIn(3) {
          let isRight = try system.holds(area, page, stamps[Int(page)])
          XCTAssertTrue(isRight, "STRATA_SEED=\(seed), turn \(turn)")
        } else {
          try system.write(area, page, turn + 1)
          stamps[Int(page)] = turn + 1
        }
      } catch {
        XCTAssertEqual(error, .inputOutput, "STRATA_SEED=\(seed), turn \(turn)")
      }
      if turn % 1000 == 0 { system.check("STRATA_SEED=\(seed), turn \(turn)") }
    }
    system.disk.faults = DeviceFaults()
    system.giveBack(taken)
    for page in 0..<area.count {
      XCTAssertTrue(try system.holds(area, page, stamps[Int(page)]), "STRATA_SEED=\(seed), page \(page)")
    }
    system.check("STRATA_SEED=\(seed)")
  }
}
