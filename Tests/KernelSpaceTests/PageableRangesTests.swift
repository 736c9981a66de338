import HostMachine
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem
import XCTest

/// Addresses for pageable memory, and runs that are mapped after they were had.
final class PageableRangesTests: XCTestCase {
  func expect(
    _ bed: KernelSpaceFixture, _ kind: FaultKind, expected: UInt64? = nil, line: UInt = #line,
    _ body: () -> Void
  ) {
    let before = bed.picture()
    let faults = bed.host.faults(in: body)
    XCTAssertEqual(faults.map(\.kind), [kind], line: line)
    if let expected { XCTAssertEqual(faults.first?.expected, expected, line: line) }
    XCTAssertEqual(bed.picture(), before, line: line)
    bed.check(line: line)
  }

  // MARK: Reservations

  func testAReservationMapsAndUnmapsWithoutMemory() throws {
    for count in [1, 2, 511, 512, 1300] as [UInt64] {
      let bed = try KernelSpaceFixture()
      let before = bed.picture()
      let address = try bed.space.reservePageable(PageCount(count))
      XCTAssertEqual(bed.space.pages(.pageable), PageCount(count))
      XCTAssertEqual(bed.space.rangeCount(.pageable), 1)
      XCTAssertEqual(bed.tables.preparedCount(address, count: PageCount(count)), PageCount(count))
      bed.check()
      let reserved = bed.picture()
      bed.host.failures.pointee = FailureInjection()
      bed.host.failures.pointee.countdown = 0
      let used = Set([0, 1, count / 2, count - 1].filter { $0 < count })
      for page in used {
        bed.tables.enter(address + PageCount(page), FrameNumber(UInt32(page + 1)), .kernelData)
        bed.check()
      }
      for page in used {
        XCTAssertEqual(bed.tables.access(address + PageCount(page), .write)?.rawValue, UInt32(page + 1))
        XCTAssertNotNil(bed.tables.remove(address + PageCount(page)))
        bed.check()
      }
      XCTAssertFalse(bed.host.failures.pointee.hasFailed)
      bed.host.failures.pointee.countdown = -1
      XCTAssertEqual(bed.picture(), reserved)
      bed.space.releasePageable(address, PageCount(count))
      XCTAssertEqual(bed.picture(), before)
      bed.check()
    }
  }

  func testALookupDescribesAPageableRange() throws {
    let bed = try KernelSpaceFixture()
    let count = PageCount(700)
    let address = try bed.space.reservePageable(count)
    bed.tables.enter(address + PageCount(3), FrameNumber(9), .kernelReadOnly)
    bed.tables.enter(address, FrameNumber(8), .kernelReadOnly)
    let range = TaggedRange(
      address: address, count: count, tag: RangeTag(rawValue: RangeKind.pageable.rawValue))
    for page: UInt64 in [0, 1, 3, 699] {
      let what = bed.space.whatIs(address + PageCount(page) + ByteCount(77))
      XCTAssertEqual(what.kind, .pageable)
      XCTAssertEqual(what.range, range)
      XCTAssertEqual(what.arena, ShortName("kernel_va"))
      XCTAssertEqual(what.translation?.physical.frame.rawValue, page == 0 ? 8 : page == 3 ? 9 : nil)
    }
    XCTAssertNotEqual(bed.space.whatIs(address + count).kind, .pageable)
    var seen: [TaggedRange] = []
    bed.space.forEachRange { if $1 == .pageable { seen.append($0) } }
    XCTAssertEqual(seen, [range])
    XCTAssertEqual(RangeKind.pageable.description.description, "pageable")
    var kinds: [RangeKind] = []
    RangeKind.forEach { kinds.append($0) }
    XCTAssertEqual(kinds.count, 9)
    XCTAssertEqual(kinds.last, .pageable)
    // Memory of kmem, taken from kernel_va, is none.
    let heap = try bed.space.allocateWired(.one)
    XCTAssertEqual(bed.space.whatIs(heap).kind, .heap)
    bed.check()
  }

  func testNeighboursOfPageableRangesAreWhatTheyWere() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture(tags: false)
    var wired: [VirtualAddress] = []
    var pageable: [VirtualAddress] = []
    for _ in 0..<4 {
      wired.append(try bed.space.allocateWired(PageCount(3), from: .kernel))
      pageable.append(try bed.space.reservePageable(PageCount(2)))
    }
    XCTAssertEqual(wired[1], pageable[0] + PageCount(2))
    XCTAssertEqual(pageable[1], wired[1] + PageCount(3))
    for address in pageable {
      for page: UInt64 in [0, 1] {
        bed.tables.enter(address + PageCount(page), FrameNumber(5), .kernelData)
      }
    }
    bed.check()
    XCTAssertEqual(bed.space.whatIs(wired[1] + PageCount(2)).range?.count, PageCount(3))
    expect(bed, .wrongSize, expected: 3) { bed.space.freeWired(wired[1], PageCount(5)) }
    expect(bed, .foreignPointer) { bed.space.freeWired(pageable[1], PageCount(2)) }
    for address in wired { XCTAssertTrue(bed.space.freeWired(address, PageCount(3))) }
    bed.check()
    for address in pageable {
      for page: UInt64 in [0, 1] { XCTAssertNotNil(bed.tables.remove(address + PageCount(page))) }
      bed.space.releasePageable(address, PageCount(2))
      bed.check()
    }
    XCTAssertEqual(bed.picture(tags: false), before)
  }

  func testBugsWithPageableRangesAreReportedAndChangeNothing() throws {
    let bed = try KernelSpaceFixture()
    let space = bed.space
    let one = PageCount.one
    let address = try space.reservePageable(PageCount(600))
    let gone = try space.reservePageable(PageCount(600))
    let wired = try space.allocateWired(PageCount(4), from: .kernel)
    let heap = try space.allocateWired(PageCount(4))
    let stack = try space.allocateStack(PageCount(2))
    let contiguous = try space.allocateContiguous(PageCount(4))
    let device = try space.mapDevice(PhysicalAddress(0xfee0_0000), ByteCount(4096))
    space.releasePageable(gone, PageCount(600))
    func bugs() {
      for count: UInt64 in [0, 1, 599, 601, .max] {
        expect(bed, .wrongSize, expected: 600) { space.releasePageable(address, PageCount(count)) }
      }
      expect(bed, .doubleFree) { space.releasePageable(gone, PageCount(600)) }
      expect(bed, .foreignPointer, expected: address.rawValue) {
        space.releasePageable(address + one, PageCount(599))
      }
      expect(bed, .foreignPointer) {
        space.releasePageable(VirtualAddress(address.rawValue + 8), PageCount(600))
      }
      expect(bed, .foreignPointer) { space.releasePageable(VirtualAddress(0x1000), one) }
      expect(bed, .wrongType) { space.releasePageable(wired, PageCount(4)) }
      expect(bed, .wrongType) { space.releasePageable(contiguous.address, PageCount(4)) }
      expect(bed, .wrongType) { space.releasePageable(heap, PageCount(4)) }
      expect(bed, .foreignPointer) { space.releasePageable(stack.guardPage, PageCount(3)) }
      expect(bed, .foreignPointer) { space.releasePageable(device, one) }
      expect(bed, .foreignPointer) { space.freeWired(address, PageCount(600)) }
      expect(bed, .foreignPointer) { space.freeContiguous(address, PageCount(600)) }
      expect(bed, .foreignPointer) { space.unmapFrames(address, PageCount(600)) }
      expect(bed, .foreignPointer) { space.freeStack(KernelStack(bottom: address, count: PageCount(600))) }
    }
    bugs()
    // The same with pages mapped, and then those are a bug of their own.
    for page: UInt64 in [0, 1, 511, 599] {
      bed.tables.enter(address + PageCount(page), FrameNumber(7), .kernelData)
    }
    bugs()
    for page: UInt64 in [0, 1, 511, 599] {
      expect(bed, .notMapped) { space.releasePageable(address, PageCount(600)) }
      _ = bed.tables.remove(address + PageCount(page))
    }
    space.releasePageable(address, PageCount(600))
    XCTAssertEqual(space.pages(.pageable), .zero)
    bed.check()
  }

  func testTheCheckFindsBrokenPageableRanges() throws {
    let bed = try KernelSpaceFixture()
    let address = try bed.space.reservePageable(PageCount(20))
    bed.tables.enter(address + PageCount(4), FrameNumber(7), .kernelData)
    bed.check()
    // A page whose place is gone, and one that is mapped in another way.
    bed.tables.unprepare(address + PageCount(9), count: .one)
    XCTAssertEqual(bed.brokenInvariant, "KS-1")
    try bed.tables.map(address + PageCount(9), to: PhysicalAddress(0), count: .one, protection: .kernelData)
    XCTAssertEqual(bed.brokenInvariant, "KS-1")
    bed.tables.unmap(address + PageCount(9), count: .one)
    try bed.tables.prepare(address + PageCount(9), count: .one)
    bed.check()
    // Places that are prepared outside of any range.
    try bed.tables.prepare(address + PageCount(20), count: .one)
    bed.tables.enter(address + PageCount(20), FrameNumber(7), .kernelData)
    XCTAssertEqual(bed.brokenInvariant, "KS-2")
    _ = bed.tables.remove(address + PageCount(20))
    bed.tables.unprepare(address + PageCount(20), count: .one)
    bed.check()
  }

  /// Ranges that `whatis` and `vmem` read are freed while they read: at each point where they can be interrupted,
  /// another processor frees all ranges.
  func testRangesGoWhileTheyAreLookedAt() throws {
    for looksAtAll in [false, true] {
      var moment = 0
      while true {
        let bed = try KernelSpaceFixture()
        let pageable = try bed.space.reservePageable(PageCount(700))
        bed.tables.enter(pageable + PageCount(3), FrameNumber(9), .kernelReadOnly)
        let wired = try bed.space.allocateWired(PageCount(600), from: .kernel)
        var (windows, isGone) = (0, false)
        bed.host.withInterrupts(
          seed: 0, oneIn: 1,
          handler: {
            windows += 1
            guard windows == moment + 1, !isGone else { return }
            isGone = true
            _ = bed.tables.remove(pageable + PageCount(3))
            bed.host.machine.shootDown(pageable, PageCount(700))
            bed.space.releasePageable(pageable, PageCount(700))
            bed.space.freeWired(wired, PageCount(600))
          },
          {
            if looksAtAll {
              bed.space.forEachRange { range, kind in
                XCTAssertTrue(kind == .pageable || kind == .kernel)
                XCTAssertTrue(range.address == pageable || range.address == wired)
              }
            } else {
              _ = bed.space.whatIs(pageable + PageCount(3))
              _ = bed.space.whatIs(wired + PageCount(599))
            }
          })
        if !isGone { break }
        bed.check("moment \(moment)")
        moment += 1
      }
      XCTAssertGreaterThan(moment, 5)
    }
  }

  // MARK: Contiguous runs

  func testAnAllocatedRunIsMappedAndFreed() throws {
    for attribute in [CacheAttribute.writeBack, .writeThrough, .uncached, .writeCombining] {
      let bed = try KernelSpaceFixture()
      let before = bed.picture(tags: false)
      for count in [1, 7, 512, 700] as [UInt64] {
        let all = try bed.physical.allocate(
          run: PageCount(count + 1), where: RunConstraints(alignment: Alignment(1 << 15)!), role: .contiguous)
        let run = FrameRun(first: all.first, count: PageCount(count))
        let behind = FrameRun(first: run.end, count: .one)
        bed.bytes(behind.first)[0] = 77
        for page in 0..<count { bed.bytes(run.first + PageCount(page))[511] = page + 1 }
        let address = try bed.space.mapContiguous(
          run, attribute: attribute, contents: count == 7 ? .zero : .unknown)
        for page in [0, count / 2, count - 1] {
          let frame = run.first + PageCount(page)
          XCTAssertEqual(bed.frame(address + PageCount(page)), frame)
          XCTAssertEqual(bed.tables.translate(address + PageCount(page))?.attribute, attribute)
          XCTAssertEqual(bed.alias(frame)?.attribute, attribute)
          XCTAssertEqual(bed.bytes(frame)[511], count == 7 ? 0 : page + 1)
        }
        XCTAssertEqual(bed.bytes(behind.first)[0], 77)
        XCTAssertEqual(bed.alias(behind.first)?.attribute, .writeBack)
        XCTAssertEqual(bed.space.whatIs(address).kind, .contiguous)
        XCTAssertEqual(bed.space.pages(.contiguous), PageCount(count))
        bed.check()
        XCTAssertTrue(bed.space.freeContiguous(address, PageCount(count)))
        XCTAssertEqual(bed.physical.record(behind.first)?.role, .contiguous)
        bed.physical.free(behind)
        bed.check()
        XCTAssertEqual(bed.picture(tags: false), before, "\(attribute), \(count) pages")
      }
    }
  }

  func testOnlyContiguousFramesAreMappedAsSuch() throws {
    let bed = try KernelSpaceFixture()
    let run = try bed.physical.allocate(run: PageCount(4), role: .contiguous)
    let loaned = try bed.physical.allocate(run: PageCount(4), role: .loaned)
    var free: FrameNumber?
    bed.physical.forEachFreeBlock { frame, _ in free = frame }
    func refused(
      _ kind: FaultKind?, _ first: FrameNumber, _ count: UInt64, line: UInt = #line
    ) {
      let before = bed.picture(tags: false)
      var error: (any Error)?
      let faults = bed.host.faults {
        do {
          _ = try bed.space.mapContiguous(FrameRun(first: first, count: PageCount(count)))
        } catch let thrown { error = thrown }
      }
      XCTAssertEqual(error as? KernelSpaceError, .badConstraint, line: line)
      XCTAssertEqual(faults.map(\.kind), kind.map { [$0] } ?? [], line: line)
      XCTAssertEqual(bed.picture(tags: false), before, line: line)
      bed.check(line: line)
    }
    refused(nil, run.first, 0)
    refused(.wrongType, loaned.first, 4)
    refused(.notAllocated, try XCTUnwrap(free), 1)
    refused(.notAllocated, FrameNumber(UInt32(bed.host.memorySize.rawValue >> 12)), 1)
    refused(.notAllocated, .none, 1)
    // They are mapped with another attribute already.
    let address = try bed.space.mapContiguous(run, attribute: .uncached)
    refused(nil, run.first, 4)
    XCTAssertFalse(
      bed.host.faults { XCTAssertFalse(bed.space.freeContiguous(address, PageCount(3))) }.isEmpty)
    XCTAssertTrue(bed.space.freeContiguous(address, PageCount(4)))
    bed.physical.free(loaned)
    bed.check()
  }

  // MARK: Running out

  func testEachAllocationPointFailsInTurn() throws {
    typealias Act = (KernelSpaceFixture, FrameRun) throws -> Void
    var acts: [(String, Act)] = [
      ("pageable", { bed, _ in _ = try bed.space.reservePageable(PageCount(1300)) }),
      ("pageable, one", { bed, _ in _ = try bed.space.reservePageable(.one, priority: .interrupt) }),
    ]
    for attribute in [CacheAttribute.writeBack, .uncached] {
      acts.append(
        (
          "contiguous, \(attribute)",
          { bed, run in _ = try bed.space.mapContiguous(run, attribute: attribute, contents: .zero) }
        ))
    }
    var reached: [FailurePoint: UInt64] = [:]
    var refusals = 0
    for (name, act) in acts {
      for nth in Int64(0)... {
        let bed = try KernelSpaceFixture()
        // Neither starts nor ends where a large leaf does.
        let run = try bed.physical.allocate(
          run: PageCount(700), where: RunConstraints(low: PhysicalAddress(0x30_1000)), role: .contiguous)
        let before = bed.picture(tags: false)
        bed.host.failures.pointee = FailureInjection()
        bed.host.failures.pointee.countdown = nth
        var error: (any Error)?
        do { try act(bed, run) } catch let thrown { error = thrown }
        let hasFailed = bed.host.failures.pointee.hasFailed
        bed.host.failures.pointee.countdown = -1
        if let error {
          refusals += 1
          XCTAssertTrue(hasFailed, name)
          XCTAssertTrue(
            [KernelSpaceError.noMemory, .noAddressSpace].contains(error as? KernelSpaceError), name)
          XCTAssertEqual(bed.picture(tags: false), before, "\(name), point \(nth)")
          XCTAssertEqual(bed.space.failureCount, 1)
          XCTAssertEqual(bed.space.rangeCount(.contiguous) + bed.space.rangeCount(.pageable), 0)
          XCTAssertEqual(bed.alias(run.first)?.attribute, .writeBack)
          // The caller has them still.
          XCTAssertEqual(bed.physical.count(.contiguous), run.count)
          try act(bed, run)
        }
        bed.check("\(name), point \(nth)")
        for point in FailurePoint.allCases {
          reached[point, default: 0] += bed.host.failures.pointee.reached[Int(point.rawValue)]
        }
        if !hasFailed { break }
      }
    }
    for point in [FailurePoint.kernelSpace, .vmem, .pageTables] {
      XCTAssertGreaterThan(reached[point] ?? 0, 0, "\(point)")
    }
    print("pageable and contiguous ranges: \(refusals) requests refused")
  }

  func testImpossibleReservationsAreRefused() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture(tags: false)
    for (count, error) in [
      (UInt64(0), KernelSpaceError.badConstraint), (1 << 40, .noAddressSpace), (.max, .noAddressSpace),
      (16 << 20, .noMemory),
    ] {
      XCTAssertThrowsError(try bed.space.reservePageable(PageCount(count))) {
        XCTAssertEqual($0 as? KernelSpaceError, error, "\(count) pages")
      }
      XCTAssertEqual(bed.picture(tags: false), before)
      bed.check()
    }
  }

  // MARK: Together

  func testProcessorsReserveAndReleaseSideBySide() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture(tags: false)
    bed.host.onThreads(2) { processor in
      for round in UInt64(1)..<60 {
        let count = PageCount(1 + round * 13 % 700)
        let address = try! bed.space.reservePageable(count)
        let heap = try! bed.space.allocateWired(PageCount(2), from: .kernel)
        let frame = FrameNumber(UInt32(processor + 1))
        for page in stride(from: 0, to: count.rawValue, by: 7) {
          bed.tables.enter(address + PageCount(page), frame, .kernelReadOnly)
        }
        XCTAssertEqual(bed.tables.mappedCount(address, count: count).rawValue, (count.rawValue + 6) / 7)
        for page in stride(from: 0, to: count.rawValue, by: 7) {
          XCTAssertEqual(bed.tables.access(address + PageCount(page), .read), frame)
          XCTAssertEqual(bed.tables.remove(address + PageCount(page))?.frame, frame)
        }
        XCTAssertTrue(bed.space.freeWired(heap, PageCount(2)))
        bed.space.releasePageable(address, count)
      }
    }
    bed.check()
    XCTAssertEqual(bed.picture(tags: false), before)
  }
}
