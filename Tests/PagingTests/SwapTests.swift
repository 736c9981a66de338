import BlockDevices
import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapTests: XCTestCase {
  func testASwapDeviceIsAttachedAndDetached() throws {
    let bench = try SwapFixture(pages: 5000)
    let before = bench.physical.freeCount
    XCTAssertNil(bench.swap.reserve(upTo: .one))
    XCTAssertNil(bench.swap.device)
    XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.detach() }
    for _ in 0..<3 {
      try bench.swap.attach(bench.disk.device)
      XCTAssertEqual(bench.swap.device?.name, ShortName("ram"))
      XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.attach(bench.disk.device) }
      XCTAssertEqual(bench.swap.figures.total, PageCount(5000))
      XCTAssertEqual(bench.swap.figures.free, PageCount(5000))
      bench.check()
      let run = bench.swap.reserve(upTo: PageCount(100))!
      XCTAssertEqual(run.count, PageCount(32))
      XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.detach() }
      bench.swap.free(run)
      // A retired slot does not hold the device.
      bench.swap.retire(bench.swap.reserve(upTo: .one)!.first)
      XCTAssertEqual(bench.swap.figures.bad, .one)
      try bench.swap.detach()
      XCTAssertNil(bench.swap.device)
      XCTAssertEqual(bench.physical.freeCount, before)
      XCTAssertEqual(bench.physical.count(.paging), .zero)
      XCTAssertEqual(bench.swap.figures.total, .zero)
    }
    let nothing = BlockDevice(ShortName("none"), pages: .zero, nil, submitRequest: { _, _ in })
    XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.attach(nothing) }
  }

  func testAnAttachThatFailsHalfWayKeepsNothing() throws {
    // Checksums of three levels, so that there are points of all kinds.
    let bench = try SwapFixture(pages: 1, frames: 8192)
    let before = bench.physical.freeCount
    let device = BlockDevice(
      ShortName("large"), pages: PageCount(1 << 20 + 5), nil, submitRequest: { _, _ in })
    var points = 0
    var at = 0
    while true {
      bench.host.failures.pointee.countdown = Int64(at)
      bench.host.failures.pointee.hasFailed = false
      do throws(PagingError) {
        try bench.swap.attach(device)
      } catch {
        XCTAssertEqual(error, .noMemory)
      }
      bench.host.failures.pointee.countdown = -1
      guard bench.host.failures.pointee.hasFailed else { break }
      XCTAssertEqual(bench.physical.freeCount, before, "\(at)")
      XCTAssertNil(bench.swap.reserve(upTo: .one))
      XCTAssertNil(bench.swap.device)
      points += 1
      at += at < 100 ? 1 : 61
    }
    XCTAssertGreaterThan(points, 120)
    print("Swap: \(points) allocation points made to fail")
    try bench.swap.detach()
    XCTAssertEqual(bench.physical.freeCount, before)
    bench.check()
  }

  func testAnAttachWithoutMemoryIsRefused() throws {
    let bench = try SwapFixture(pages: 1, frames: 400)
    let before = bench.physical.freeCount
    let device = BlockDevice(ShortName("large"), pages: PageCount(1 << 20), nil, submitRequest: { _, _ in })
    XCTAssertPaging(.noMemory) { () throws(PagingError) in try bench.swap.attach(device) }
    XCTAssertEqual(bench.physical.freeCount, before)
    try bench.swap.attach(bench.disk.device)
    try bench.swap.detach()
  }

  func testPagesThatAreWrittenComeBack() throws {
    let bench = try SwapFixture(pages: 1000)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(32)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let run = bench.swap.reserve(upTo: PageCount(32))!
    XCTAssertEqual(bench.write(frames, to: run), (0..<32).map { run.first + PageCount($0) })
    for (i, frame) in frames.enumerated().reversed() {
      bench.fill(frames[0], 99)
      try bench.swap.read(run.first + PageCount(i), into: frames[0])
      XCTAssertTrue(bench.holds(frames[0], UInt64(i)))
      _ = frame
    }
    let figures = bench.swap.figures
    XCTAssertEqual([figures.writes, figures.reads, figures.clusters], [32, 32, 1])
    XCTAssertEqual([figures.failures, figures.corrupt], [0, 0])
    // Reserved, but never written: not even what was there before.
    bench.swap.free(run)
    while let again = bench.swap.reserve(upTo: PageCount(32)), again.first != run.first {}
    XCTAssertPaging(.corrupt) { () throws(PagingError) in try bench.swap.read(run.first, into: frames[0]) }
  }

  func testAFailedClusterIsWrittenSinglyAndTheBadSlotRetired() throws {
    let bench = try SwapFixture(pages: 1000)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(32)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    for bad in [[7], [0], [31], [3, 4, 30]] {
      bench.disk.mend()
      let before = bench.swap.figures
      let run = bench.swap.reserve(upTo: PageCount(32))!
      for i in bad { bench.disk.spoil(DevicePage(UInt64(run.first.rawValue) + UInt64(i))) }
      let write = bench.begin(frames, to: run)!
      XCTAssertFalse(bench.swap.isDone(write.value))
      let written = bench.swap.finishWrite(write.move())
      XCTAssertEqual(written.failedCount, PageCount(bad.count))
      for i in 0..<32 {
        XCTAssertEqual(written.slot(i), bad.contains(i) ? nil : run.first + PageCount(i))
      }
      let figures = bench.swap.figures
      XCTAssertEqual(figures.bad, before.bad + PageCount(bad.count))
      XCTAssertEqual(figures.used, before.used + PageCount(32 - bad.count))
      XCTAssertEqual(figures.failures, before.failures + 1 + UInt64(bad.count))
      XCTAssertEqual(figures.writes, before.writes + UInt64(32 - bad.count))
      XCTAssertEqual(bench.transfers.idleCount, 8)
      let frame = try bench.frame()
      for i in 0..<32 where !bad.contains(i) {
        try bench.swap.read(run.first + PageCount(i), into: frame)
        XCTAssertTrue(bench.holds(frame, UInt64(i)))
        bench.swap.free(run.first + PageCount(i))
      }
      bench.physical.free(frame, BlockOrder(0))
      for frame in frames { XCTAssertTrue(bench.holds(frame, UInt64(frames.firstIndex(of: frame)!))) }
    }
    bench.check()
    // A retired slot is never reserved again.
    var given = 0
    while let run = bench.swap.reserve(upTo: PageCount(32)) { given += Int(run.count.rawValue) }
    XCTAssertEqual(given, 1000 - 6)
  }

  func testASinglePageThatFailsIsRetried() throws {
    let bench = try SwapFixture(pages: 10)
    try bench.swap.attach(bench.disk.device)
    let frame = try bench.frame()
    bench.fill(frame, 4)
    bench.disk.spoil(DevicePage(0))
    let run = bench.swap.reserve(upTo: .one)!
    XCTAssertEqual(bench.write([frame], to: run), [nil])
    XCTAssertEqual(bench.swap.figures.bad, .one)
    XCTAssertEqual(bench.swap.figures.failures, 1)
    XCTAssertEqual(bench.swap.figures.clusters, 0)
    bench.disk.spoil(DevicePage(1))
    let other = bench.swap.reserve(upTo: .one)!
    bench.disk.mend()
    XCTAssertEqual(bench.write([frame], to: other), [other.first])
    bench.disk.spoil(DevicePage(1))
    XCTAssertPaging(.inputOutput) { () throws(PagingError) in try bench.swap.read(other.first, into: frame) }
    bench.disk.mend()
    try bench.swap.read(other.first, into: frame)
    XCTAssertTrue(bench.holds(frame, 4))
  }

  func testTornFlippedAndLostWritesAreFound() throws {
    var kinds: [DeviceFaults] = []
    for kind in 0..<2 {
      var faults = DeviceFaults(seed: historySeed(101 + UInt64(kind)))
      if kind == 0 { faults.torn = 1000 } else { faults.corrupted = 1000 }
      kinds.append(faults)
    }
    for faults in kinds {
      let bench = try SwapFixture(pages: 500)
      try bench.swap.attach(bench.disk.device)
      let frames = try bench.frames(8)
      let target = try bench.frame()
      var corrupt = 0
      for round in 0..<200 as Range<UInt64> {
        let run = bench.swap.reserve(upTo: PageCount(8))!
        // The old content of the device there is a page of the same kind.
        for (i, frame) in frames.enumerated() { bench.fill(frame, round << 8 | UInt64(i)) }
        bench.disk.faults = DeviceFaults()
        _ = bench.write(frames, to: run)
        bench.disk.faults = faults
        bench.disk.faults.seed = faults.seed &+ round
        for (i, frame) in frames.enumerated() { bench.fill(frame, 1 << 32 | round << 8 | UInt64(i)) }
        XCTAssertEqual(bench.write(frames, to: run).compactMap { $0 }.count, 8)
        bench.disk.faults = DeviceFaults()
        var broken = 0
        for i in 0..<8 {
          do throws(PagingError) {
            try bench.swap.read(run.first + PageCount(i), into: target)
            XCTAssertTrue(bench.holds(target, 1 << 32 | round << 8 | UInt64(i)))
          } catch {
            XCTAssertEqual(error, .corrupt)
            broken += 1
          }
        }
        XCTAssertGreaterThan(broken, 0, "round \(round)")
        corrupt += broken
        bench.swap.free(run)
      }
      XCTAssertEqual(bench.swap.figures.corrupt, UInt64(corrupt))
    }
  }

  func testExhaustedSwapRefusesPages() throws {
    let bench = try SwapFixture(pages: 77)
    try bench.swap.attach(bench.disk.device)
    var given: [SwapSlot] = []
    while let run = bench.swap.reserve(upTo: PageCount(10)) {
      for i in 0..<run.count.rawValue { given.append(run.first + PageCount(i)) }
    }
    XCTAssertEqual(Set(given.map(\.rawValue)), Set(0..<77))
    XCTAssertEqual(bench.swap.figures.free, .zero)
    XCTAssertNil(bench.swap.reserve(upTo: PageCount(32)))
    XCTAssertNil(bench.swap.reserve(upTo: .zero))
    bench.swap.free(SwapSlot(40))
    XCTAssertEqual(bench.swap.reserve(upTo: PageCount(32)), SlotRun(first: SwapSlot(40), count: .one))
    // All of it with the lock of an object held.
    let lock = SpinLock(.pagingObject)
    let interrupts = lock.lock()
    bench.swap.free(SwapSlot(3))
    XCTAssertEqual(bench.swap.reserve(upTo: .one)?.first, SwapSlot(3))
    bench.swap.retire(SwapSlot(3))
    XCTAssertEqual(bench.swap.figures.bad, .one)
    lock.unlock(interrupts)
    bench.check()
  }

  func testAnExhaustedPoolMakesRequestsWait() throws {
    let bench = try SwapFixture(pages: 77, requests: 2)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(3)
    let runs = frames.map { _ in bench.swap.reserve(upTo: .one)! }
    let first = bench.begin([frames[0]], to: runs[0])!
    let second = bench.begin([frames[1]], to: runs[1])!
    XCTAssertNil(bench.begin([frames[2]], to: runs[2]))
    if bench.swap.beginRead(runs[2].first, into: frames[2]) != nil { XCTFail("the pool has a request") }
    XCTAssertEqual(bench.swap.finishWrite(first.move()).slot(0), runs[0].first)
    let read = bench.swap.beginRead(runs[0].first, into: frames[2])!
    XCTAssertFalse(bench.swap.isDone(read))
    try bench.swap.finishRead(read)
    XCTAssertEqual(bench.swap.finishWrite(second.move()).failedCount, .zero)
  }

  func testBugsOfCallersAreReported() throws {
    let bench = try SwapFixture(pages: 77)
    func kinds(_ body: () -> Void) -> [FaultKind] {
      let (used, bad) = (bench.swap.figures.used, bench.swap.figures.bad)
      let faults = bench.host.faults { body() }
      XCTAssertEqual(bench.swap.figures.used, used)
      XCTAssertEqual(bench.swap.figures.bad, bad)
      bench.check()
      return faults.map(\.kind)
    }
    XCTAssertEqual(kinds { bench.swap.free(SwapSlot(0)) }, [.foreignPointer])
    try bench.swap.attach(bench.disk.device)
    XCTAssertEqual(kinds { bench.swap.free(SwapSlot(0)) }, [.doubleFree])
    XCTAssertEqual(kinds { bench.swap.retire(SwapSlot(0)) }, [.doubleFree])
    XCTAssertEqual(kinds { bench.swap.free(SwapSlot(77)) }, [.foreignPointer])
    XCTAssertEqual(kinds { bench.swap.free(.none) }, [.foreignPointer])
    XCTAssertEqual(kinds { bench.swap.retire(.none) }, [.foreignPointer])
    let run = bench.swap.reserve(upTo: PageCount(3))!
    bench.swap.retire(run.first)
    XCTAssertEqual(kinds { bench.swap.retire(run.first) }, [.notAllocated])
    XCTAssertEqual(kinds { bench.swap.free(run.first) }, [.notAllocated])
    bench.swap.free(run.first + .one)
    XCTAssertEqual(kinds { bench.swap.free(run.first + .one) }, [.doubleFree])
    XCTAssertEqual(bench.swap.figures.used, .one)
  }

  func testStatisticsAddUp() throws {
    let bench = try SwapFixture(pages: 77)
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Statistics.size(capacity: 16).rawValue), alignment: 64)
    defer { memory.deallocate() }
    let statistics = Statistics(memory, capacity: 16)
    bench.swap.register(in: statistics)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(3)
    bench.disk.spoil(DevicePage(1))
    let run = bench.swap.reserve(upTo: PageCount(3))!
    _ = bench.write(frames, to: run)
    bench.disk.mend()
    try bench.swap.read(run.first, into: frames[0])
    bench.diskPage(2)[100] ^= 1
    XCTAssertPaging(.corrupt) { () throws(PagingError) in
      try bench.swap.read(run.first + PageCount(2), into: frames[0])
    }
    var values: [String: UInt64] = [:]
    for i in 0..<statistics.count { values["\(statistics[i].name)"] = statistics[i].value }
    XCTAssertEqual(
      values,
      [
        "vm.swap.total": 77, "vm.swap.used": 2, "vm.swap.free": 74, "vm.swap.bad": 1, "vm.swap.writes": 2,
        "vm.swap.reads": 2, "vm.swap.clusters": 1, "vm.swap.failures": 2, "vm.swap.corrupt": 1,
      ])
  }
}
