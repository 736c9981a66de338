import BlockDevices
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// A fault finds nothing, zeroes, a page in memory, a cached one, a copy in swap or on a device.
final class PageFaultTests: XCTestCase {
  // MARK: Zeroes

  func testAPageReadBeforeItWasWrittenIsZeroAndNeedsNoSwap() throws {
    for attaches in [true, false] {
      let system = try TestSystem(attaches: attaches)
      let area = try system.area(70)
      for turn in 1...3 as ClosedRange<UInt64> {
        for page in 0..<area.count { XCTAssertTrue(try system.holds(area, page, 0)) }
        XCTAssertEqual(system.paging.figures.zeroFills, 70 * turn)
        XCTAssertEqual(system.paging.residentCount(area.object), PageCount(70))
        system.check()
        let outcome = system.launderAll()
        XCTAssertEqual(outcome.freed, PageCount(70))
        XCTAssertEqual(outcome.written, .zero)
        XCTAssertEqual(system.paging.residentCount(area.object), .zero)
        XCTAssertEqual(system.physical.cachedCount, .zero, "a page of zeroes is not worth keeping")
        for page in 0..<area.count { XCTAssertEqual(system.place(area, page).place, .untouched) }
        system.check()
      }
      XCTAssertEqual(system.swapDisk.requests.count, 0)
      XCTAssertEqual(system.paging.swap.figures.used, .zero)
    }
  }

  /// A frame with other content is zeroed for the thread that faults on it.
  func testAZeroPageShowsNothingOfItsFramesLastContents() throws {
    let system = try TestSystem()
    for frame in system.takeAll() {
      system.words(frame).update(repeating: 0xdead_beef, count: 512)
      system.physical.free(FrameRun(first: frame, count: .one))
    }
    let area = try system.area(200)
    for page in 0..<area.count {
      try system.processor.store(area[page] + ByteCount(UInt64(800)), 1)
      let words = system.words(system.frame(area, page))
      for word in 0..<512 where word != 100 { XCTAssertEqual(words[word], 0) }
    }
  }

  // MARK: Swap

  func testDirtyPagesGoToSwapAndComeBack() throws {
    let system = try TestSystem()
    let area = try system.area(300)
    try system.fill(area)
    XCTAssertEqual(system.paging.swap.figures.used, .zero)
    let outcome = system.launderAll()
    XCTAssertEqual(outcome.written, PageCount(300))
    XCTAssertEqual(outcome.freed, PageCount(300))
    XCTAssertEqual(system.paging.swapCount(area.object), PageCount(300))
    XCTAssertEqual(system.paging.residentCount(area.object), .zero)
    XCTAssertEqual(system.physical.cachedCount, PageCount(300))
    system.check()
    system.dropCached()
    XCTAssertEqual(system.physical.cachedCount, .zero)
    system.swapDisk.discardHistory()
    try system.verify(area)
    XCTAssertEqual(system.swapDisk.readCount, 300)
    XCTAssertEqual(system.paging.figures.pageIns, 300)
    // A page that was only read keeps its copy; it is reclaimed again without being written.
    XCTAssertEqual(system.paging.swapCount(area.object), PageCount(300))
    system.check()
    let again = system.launderAll()
    XCTAssertEqual(again.written, .zero)
    XCTAssertEqual(again.freed, PageCount(300))
    // The copy of a page that is written to is worth nothing.
    system.dropCached()
    try system.write(area, 7, 1)
    XCTAssertEqual(system.paging.swapCount(area.object), PageCount(299))
    XCTAssertEqual(system.paging.swap.figures.used, PageCount(299))
    system.check()
    XCTAssertTrue(try system.holds(area, 7, 1))
  }

  func testPagesAreWrittenInClustersAndAllAtOnce() throws {
    let system = try TestSystem()
    let area = try system.area(128)
    try system.fill(area)
    system.launderAll()
    let writes = system.swapDisk.requests.filter(\.isWrite)
    XCTAssertEqual(writes.map(\.frames.count), [32, 32, 32, 32])
    XCTAssertEqual(Set(system.swapDisk.written.map(\.rawValue)).count, 128)
  }

  // MARK: Cached pages

  func testACachedPageComesBackWithoutInputOutput() throws {
    let system = try TestSystem()
    let area = try system.area(100)
    try system.fill(area)
    system.launderAll()
    let frames = (0..<area.count).map { system.place(area, $0).frame }
    for page in 0..<area.count { XCTAssertEqual(system.place(area, page).place, .cached) }
    system.swapDisk.discardHistory()
    try system.verify(area)
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    XCTAssertEqual(system.paging.figures.reactivations, 100)
    XCTAssertEqual(system.physical.cachedCount, .zero)
    XCTAssertEqual((0..<area.count).map { system.place(area, $0).frame }, frames)
    system.check()
    // By a write as well; then the copy goes.
    system.launderAll()
    try system.fill(area, from: 5000)
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    XCTAssertEqual(system.paging.swap.figures.used, .zero)
    try system.verify(area, from: 5000)
    system.check()
  }

  func testAnyRequestTakesACachedPageWithoutItsObject() throws {
    let system = try TestSystem()
    let area = try system.area(100)
    try system.fill(area)
    system.launderAll()
    XCTAssertEqual(system.physical.cachedCount, PageCount(100))
    // As an interrupt handler that came while the object was locked.
    let held = area.object.acquire()
    let all = system.takeAll()
    held.release()
    XCTAssertEqual(system.physical.cachedCount, .zero)
    XCTAssertEqual(system.physical.freeCount, .zero)
    for frame in all { system.words(frame).update(repeating: 0xbad, count: 512) }
    for page in 0..<area.count {
      XCTAssertEqual(system.place(area, page).place, .swapped, "a hint that has gone stale")
    }
    system.check()
    // There is no frame to read it to; then there is one.
    XCTAssertFails(PagingError.noMemory) { _ = try system.holds(area, 0, 1000) }
    system.giveBack(all)
    system.swapDisk.discardHistory()
    try system.verify(area)
    XCTAssertEqual(system.swapDisk.readCount, 100)
    for frame in all where system.physical.whatIs(frame).role == .free {
      XCTAssertFalse(system.physical.whatIs(frame).pageFlags.contains(.cached))
    }
    system.check()
  }

  func testARunMayHoldCachedPages() throws {
    let system = try TestSystem()
    let area = try system.area(600)
    try system.fill(area)
    system.launderAll()
    let run = try system.physical.allocate(run: PageCount(512), role: .loaned)
    XCTAssertGreaterThan(run.count.rawValue, 0)
    for i in 0..<512 as Range<UInt64> {
      system.words(run.first + PageCount(i)).update(repeating: 0xbad, count: 512)
    }
    system.check()
    try system.verify(area)
    system.physical.free(run)
    system.check()
  }

  // MARK: Two ranges

  func testTwoRangesShowTheSamePages() throws {
    let system = try TestSystem()
    let a = try system.area(40)
    let b = try system.show(a.object, from: 10, 20)
    try system.fill(a)
    let faults = system.paging.figures.zeroFills
    try system.verify(b)
    XCTAssertEqual(system.paging.figures.zeroFills, faults)
    for page in 0..<b.count { XCTAssertEqual(system.frame(a, page + 10), system.frame(b, page)) }
    try system.write(b, 3, 77)
    XCTAssertTrue(try system.holds(a, 13, 77))
    system.check()
    system.launderAll()
    for page in 0..<a.count { XCTAssertNil(system.mapping(a, page)) }
    for page in 0..<b.count { XCTAssertNil(system.mapping(b, page)) }
    system.dropCached()
    XCTAssertTrue(try system.holds(b, 3, 77))
    XCTAssertTrue(try system.holds(a, 13, 77))
    try system.write(a, 13, 78)
    XCTAssertTrue(try system.holds(b, 3, 78))
    system.check()
  }

  /// While a page is written out none of its mappings can be written through; a fault through either makes it
  /// dirty again.
  func testLaunderingTakesTheRightToWriteFromAllMappings() throws {
    let system = try TestSystem()
    let a = try system.area(1)
    let b = try system.show(a.object)
    try system.write(a, 0, 1)
    try system.write(b, 0, 2)
    XCTAssertEqual(system.mapping(a, 0)?.isWritable, true)
    XCTAssertEqual(system.mapping(b, 0)?.isWritable, true)
    var looks = 0
    var held = FrameNumber.none
    system.atPoll = {
      looks += 1
      XCTAssertEqual(system.mapping(a, 0)?.isWritable, false)
      XCTAssertEqual(system.mapping(b, 0)?.isWritable, false)
      XCTAssertEqual(system.place(a, 0).flags, [.valid])
      XCTAssertEqual(system.place(a, 0).busyWord.sbusyCount, 1)
      // So that it stays in memory.
      if held == .none { held = try! system.paging.hold(a[0], .read) }
    }
    let outcome = system.launderAll()
    system.atPoll = nil
    XCTAssertGreaterThan(looks, 0)
    XCTAssertEqual(outcome.passedOver, .one)
    XCTAssertEqual(outcome.freed, .zero)
    let what = system.place(a, 0)
    XCTAssertEqual(what.place, .resident)
    XCTAssertEqual(what.flags, [.valid])
    XCTAssertEqual(system.paging.swapCount(a.object), .one)
    XCTAssertEqual(system.mapping(a, 0)?.isWritable, false)
    XCTAssertEqual(system.mapping(b, 0)?.isWritable, false)
    system.check()
    system.paging.unhold(held)
    try system.write(b, 0, 3)
    XCTAssertTrue(try system.holds(a, 0, 3))
    XCTAssertEqual(system.paging.swapCount(a.object), .zero)
    system.check()
    system.launderAll()
    system.dropCached()
    XCTAssertTrue(try system.holds(a, 0, 3))
  }

  func testMovingKeepsBothRangesRight() throws {
    let system = try TestSystem()
    let a = try system.area(50)
    let b = try system.show(a.object)
    try system.fill(a)
    try system.verify(b)
    let before = (0..<a.count).map { system.frame(a, $0) }
    for turn in 0..<3 as Range<UInt64> {
      let run = FrameRun(first: FrameNumber(1), count: PageCount(1000))
      let isolation = try system.physical.isolated(
        FrameRun(first: system.frame(a, turn), count: .one), priority: .interrupt)
      let outcome = system.paging.move(
        outOf: isolation.run, leaving: .zero, clean: .move, atMost: run.count)
      XCTAssertEqual(outcome.moved, .one)
      XCTAssertNotNil(system.physical.finish(isolation))
      system.physical.free(isolation.run)
      XCTAssertNotEqual(system.frame(a, turn), before[Int(turn)])
      system.check()
      XCTAssertTrue(try system.holds(a, turn, 1000 + turn))
      XCTAssertTrue(try system.holds(b, turn, 1000 + turn))
      try system.write(a, turn, 2000 + turn)
      XCTAssertTrue(try system.holds(b, turn, 2000 + turn))
      try system.write(b, turn, 1000 + turn)
    }
    try system.verify(a)
    try system.verify(b)
    system.check()
  }

  // MARK: Ranges that go

  func testUnmappingKeepsThePages() throws {
    let system = try TestSystem()
    let first = try system.area(60)
    try system.fill(first)
    let frames = (0..<first.count).map { system.frame(first, $0) }
    system.hide(first)
    system.check()
    XCTAssertEqual(system.paging.residentCount(first.object), PageCount(60))
    XCTAssertFails(PagingError.notPageable) { _ = try system.holds(first, 0, 1000) }
    let second = try system.show(first.object)
    let figures = system.paging.figures
    try system.verify(second)
    XCTAssertEqual((0..<second.count).map { system.frame(second, $0) }, frames)
    XCTAssertEqual(system.paging.figures.zeroFills, figures.zeroFills)
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    // Pages that no range shows are written out all the same.
    system.hide(second)
    system.launderAll()
    system.dropCached()
    let third = try system.show(first.object)
    try system.verify(third)
    system.check()
  }

  func testDestroyingAnObjectFreesEverything() throws {
    let system = try TestSystem()
    // Tables of numbers, slabs and tags are there for good.
    system.release(try system.area(200))
    let before = system.picture()
    let free = system.physical.freeCount
    let area = try system.area(200)
    // Untouched, zero, dirty, clean, cached, cached and taken, in swap.
    try system.fill(area)
    system.launderAll()
    let some = system.takeAll(leaving: system.physical.freeCount.rawValue - 30)
    for page in 0..<50 as Range<UInt64> { _ = try system.holds(area, page, 0) }
    for page in 50..<100 as Range<UInt64> { try system.write(area, page, 9) }
    system.giveBack(some)
    XCTAssertGreaterThan(system.physical.cachedCount, .zero)
    system.release(area)
    XCTAssertSame(system.picture(), before)
    XCTAssertEqual(system.physical.freeCount, free)
    system.check()
    XCTAssertEqual(system.paging.figures.objects, 0)
    XCTAssertEqual(system.paging.figures.ranges, 0)
  }

  // MARK: Protection

  func testAStoreToAReadOnlyRangeIsRefused() throws {
    let system = try TestSystem()
    let reading = try system.area(4, .kernelReadOnly)
    for page in 0..<4 as Range<UInt64> {
      XCTAssertTrue(try system.holds(reading, page, 0))
      XCTAssertFails(PagingError.protection) { try system.write(reading, page, 1) }
      XCTAssertFails(PagingError.protection) { _ = try system.paging.hold(reading[page], .write) }
      XCTAssertEqual(system.place(reading, page).flags, [.valid])
      XCTAssertEqual(system.mapping(reading, page)?.isWritable, false)
    }
    system.check()
    // A write through another range is read here, never through a writable mapping.
    let writing = try system.show(reading.object)
    try system.fill(writing)
    try system.verify(reading)
    for page in 0..<4 as Range<UInt64> {
      XCTAssertEqual(system.mapping(reading, page)?.isWritable, false)
      XCTAssertFails(PagingError.protection) { try system.write(reading, page, 1) }
    }
    system.check()
    XCTAssertFails(PagingError.badConstraint) { _ = try system.area(1, .kernelText) }
  }

  func testAFaultAtAnAddressThatIsNotPageableIsRefused() throws {
    let system = try TestSystem()
    let area = try system.area(3)
    let wired = try system.memory.space.allocateWired(PageCount(2))
    for address in [
      area.address + PageCount(3), VirtualAddress(0), VirtualAddress(UInt64.max), wired,
      system.host.machine.directMap.virtualAddress(of: PhysicalAddress(0x5000)),
    ] {
      XCTAssertFails(PagingError.notPageable) { try system.paging.fault(address, .read) }
      XCTAssertFails(PagingError.notPageable) { try system.paging.fault(address, .write) }
      XCTAssertFails(PagingError.notPageable) { _ = try system.paging.hold(address, .read) }
    }
    // Touching a range ends at the first page that fails, and what came before is in memory.
    XCTAssertFails(PagingError.notPageable) {
      try system.paging.touch(area.address, PageCount(4), .write)
    }
    XCTAssertEqual(system.paging.residentCount(area.object), PageCount(3))
    system.check()
  }

  // MARK: Devices

  func testAnObjectOfADeviceReadsFromItAndWritesBack() throws {
    let system = try TestSystem()
    let disk = system.makeDisk(64)
    for page in 0..<64 as Range<UInt64> { fillPage(disk.words(page), page) }
    let object = try system.paging.createObject(
      ShortName("file"), on: disk.device, from: PageCount(8), PageCount(40))
    XCTAssertEqual(object.kind, .device)
    let area = try system.show(object)
    for page in 0..<area.count {
      try system.paging.fault(area[page], .read)
      XCTAssertTrue(pageHolds(system.words(system.frame(area, page)), page + 8))
    }
    XCTAssertEqual(disk.readCount, 40)
    XCTAssertEqual(system.paging.figures.zeroFills, 0)
    system.check()
    // Clean ones are reclaimed as they are, and are cached.
    XCTAssertEqual(system.launderAll().written, .zero)
    XCTAssertEqual(system.place(area, 0).place, .cached)
    try system.fill(area)
    XCTAssertEqual(disk.readCount, 40)
    let outcome = system.launderAll()
    XCTAssertEqual(outcome.written, PageCount(40))
    XCTAssertEqual(system.paging.swap.figures.used, .zero)
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    system.check()
    system.dropCached()
    XCTAssertEqual(system.place(area, 0).place, .onDevice)
    try system.verify(area)
    XCTAssertEqual(disk.readCount, 80)
    // Page 5 of the object is page 13 of the device, and its neighbours are as they were.
    let places: [Int] = [0, 1368, 2728, 4088]
    for place in places {
      XCTAssertEqual(
        disk.words(13)[place / 8], try system.processor.load(area[5] + ByteCount(UInt64(place))))
    }
    XCTAssertTrue(pageHolds(disk.words(7), 7))
    XCTAssertTrue(pageHolds(disk.words(48), 48))
    system.release(area)
    system.check()
    XCTAssertFails(PagingError.badConstraint) {
      _ = try system.paging.createObject(ShortName("f"), on: disk.device, from: PageCount(60), PageCount(5))
    }
    XCTAssertFails(PagingError.badConstraint) {
      _ = try system.paging.createObject(
        ShortName("f"), on: disk.device, from: PageCount(UInt64.max), PageCount(1))
    }
    XCTAssertFails(PagingError.badConstraint) {
      _ = try system.paging.createObject(ShortName("f"), on: disk.device, from: PageCount(64), .zero)
    }
  }

  func testErrorsOfADeviceLoseNothing() throws {
    let system = try TestSystem()
    let disk = system.makeDisk(16)
    let object = try system.paging.createObject(
      ShortName("file"), on: disk.device, from: .zero, PageCount(16))
    let area = try system.show(object)
    fillPage(disk.words(3), 3)
    disk.disk.spoil(DevicePage(3))
    let before = system.picture(pages: true)
    XCTAssertFails(PagingError.inputOutput) { try system.paging.fault(area[3], .read) }
    XCTAssertSame(system.picture(pages: true), before)
    system.check()
    disk.disk.mend()
    try system.paging.fault(area[3], .read)
    XCTAssertTrue(pageHolds(system.words(system.frame(area, 3)), 3))
    try system.fill(area)
    disk.disk.spoil(DevicePage(7))
    let outcome = system.launderAll()
    // Once from the active queue, where it was, and not again from the laundry, where it is then.
    XCTAssertEqual(outcome.failed, .one)
    XCTAssertEqual(outcome.freed, PageCount(15))
    XCTAssertEqual(system.place(area, 7).flags.contains(.dirty), true)
    XCTAssertEqual(system.place(area, 7).queue, .laundry)
    XCTAssertTrue(try system.holds(area, 7, 1007))
    system.check()
    disk.disk.mend()
    XCTAssertEqual(system.launderAll().freed, .one)
    system.dropCached()
    try system.verify(area)
    system.check()
  }

  // MARK: Reads that fail

  func testAFailedReadIsAnErrorOfTheFaultAndLosesNothing() throws {
    let system = try TestSystem()
    let area = try system.area(64)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    system.disk.faults = {
      var faults = DeviceFaults(seed: 1)
      faults.failed = 1000
      return faults
    }()
    let before = system.picture(pages: true)
    for page in 0..<area.count {
      XCTAssertFails(PagingError.inputOutput) { _ = try system.holds(area, page, 0) }
      XCTAssertFails(PagingError.inputOutput) { try system.write(area, page, 0) }
      XCTAssertFails(PagingError.inputOutput) { _ = try system.paging.hold(area[page], .read) }
      XCTAssertFails(PagingError.inputOutput) {
        try system.paging.wire(area[page], .one, holes: .forbidden)
      }
    }
    XCTAssertSame(system.picture(pages: true), before)
    XCTAssertEqual(system.paging.figures.pageIns, 0)
    system.check()
    system.disk.faults = DeviceFaults()
    try system.verify(area)
    system.check()
  }

  func testTornAndCorruptCopiesAreErrorsAndNeverWrongData() throws {
    for turn in 0..<2 {
      let system = try TestSystem()
      let area = try system.area(200)
      try system.fill(area)
      // Pages that fill their frames, so that every bit counts.
      for page in 0..<area.count { fillPage(system.words(system.frame(area, page)), 100 + page) }
      var faults = DeviceFaults(seed: historySeed(4))
      if turn == 0 { faults.torn = 400 } else { faults.corrupted = 600 }
      system.disk.faults = faults
      // One by one, for a device tears each request at most once.
      for page in 0..<area.count {
        let run = FrameRun(first: system.frame(area, page), count: .one)
        XCTAssertEqual(system.paging.launder(outOf: run, .all, atMost: .one).written, .one)
      }
      system.disk.faults = DeviceFaults()
      system.dropCached()
      var corrupt: UInt64 = 0
      for page in 0..<area.count {
        do throws(PagingError) {
          try system.paging.fault(area[page], .read)
          XCTAssertTrue(pageHolds(system.words(system.frame(area, page)), 100 + page), "page \(page)")
        } catch {
          XCTAssertEqual(error, .corrupt)
          corrupt += 1
          // It stays so, even after a write to a part of it.
          XCTAssertFails(PagingError.corrupt) { try system.processor.store(area[page], 1) }
          XCTAssertEqual(system.place(area, page).place, .swapped)
        }
      }
      XCTAssertGreaterThan(corrupt, 20)
      XCTAssertLessThan(corrupt, 190)
      XCTAssertGreaterThanOrEqual(system.paging.swap.figures.corrupt, corrupt)
      system.check()
      system.release(area)
      system.check()
    }
  }

  /// A bit that flips on the way in is an error too, and no more of one than it must be.
  func testACorruptReadSucceedsOnceTheDiskIsRepaired() throws {
    let system = try TestSystem()
    let area = try system.area(100)
    try system.fill(area)
    system.launderAll()
    system.dropCached()
    var faults = DeviceFaults(seed: 2)
    faults.corrupted = 500
    system.disk.faults = faults
    var corrupt = 0
    for page in 0..<area.count {
      do throws(PagingError) {
        let isRight = try system.holds(area, page, 1000 + page)
        XCTAssertTrue(isRight)
      } catch {
        XCTAssertEqual(error, .corrupt)
        corrupt += 1
      }
    }
    XCTAssertGreaterThan(corrupt, 10)
    system.disk.faults = DeviceFaults()
    try system.verify(area)
    system.check()
  }

  // MARK: Memory that is gone

  func testAFaultWithoutAFrameChangesNothing() throws {
    let system = try TestSystem(attaches: false)
    let area = try system.area(50)
    for page in 0..<20 as Range<UInt64> { try system.write(area, page, 1000 + page) }
    let all = system.takeAll()
    // The daemon has put what it can't write into its queue.
    XCTAssertFails(PagingError.noMemory) { try system.write(area, 30, 1) }
    let before = system.picture(pages: true)
    XCTAssertFails(PagingError.noMemory) { try system.write(area, 30, 1) }
    XCTAssertFails(PagingError.noMemory) { _ = try system.holds(area, 31, 0) }
    XCTAssertFails(PagingError.noMemory) { _ = try system.paging.hold(area[31], .read) }
    XCTAssertFails(PagingError.noMemory) {
      try system.paging.wire(area[31], .one, holes: .forbidden)
    }
    XCTAssertSame(system.picture(pages: true), before)
    for page in 0..<20 as Range<UInt64> { XCTAssertTrue(try system.holds(area, page, 1000 + page)) }
    system.check()
    system.giveBack(all)
    XCTAssertTrue(try system.holds(area, 31, 0))
  }

  func testEachPointThatFailsDuringAFaultLeavesThePageWhereItWas() throws {
    let system = try TestSystem()
    let area = try system.area(4)
    // A page of zeroes, one in swap, one that is cached.
    try system.write(area, 1, 1001)
    system.launderAll()
    system.dropCached()
    try system.write(area, 2, 1002)
    system.launderAll()
    let stamps: [UInt64] = [0, 1001, 1002]
    for page in 0..<3 as Range<UInt64> {
      for kind in [AccessKind.read, .write] {
        var nth: Int64 = 0
        while true {
          let before = system.picture(pages: true)
          system.host.failures.pointee.hasFailed = false
          system.host.failures.pointee.countdown = nth
          do throws(PagingError) {
            try system.paging.fault(area[page], kind)
          } catch {
            XCTAssertEqual(error, .noMemory)
            XCTAssertSame(system.picture(pages: true), before, "page \(page), point \(nth)")
          }
          system.host.failures.pointee.countdown = -1
          system.check("page \(page), point \(nth)")
          if !system.host.failures.pointee.hasFailed { break }
          nth += 1
          guard nth < 50 else { return XCTFail("points without end") }
        }
        XCTAssertTrue(try system.holds(area, page, stamps[Int(page)]))
        system.launderAll()
        if page < 2 { system.dropCached() }
      }
    }
  }
}
