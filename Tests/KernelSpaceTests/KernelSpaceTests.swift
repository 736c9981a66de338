import CPlatform
import HostMachine
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem
import XCTest

final class KernelSpaceTests: XCTestCase {
  // MARK: Wired ranges

  func testAWiredRangeHasFramesAndComesBack() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture()
    for arena in [WiredArena.heap, .metadata, .interrupt, .kernel] {
      let address = try bed.space.allocateWired(PageCount(70), from: arena, role: .kmem, contents: .zero)
      XCTAssertGreaterThanOrEqual(address, bed.space.layout.kernelBase)
      var frames: Set<UInt32> = []
      for page in UInt64(0)..<70 {
        let translation = try XCTUnwrap(bed.tables.translate(address + PageCount(page)))
        XCTAssertEqual(translation.protection, .kernelData)
        XCTAssertEqual(translation.attribute, .writeBack)
        let frame = translation.physical.frame
        frames.insert(frame.rawValue)
        XCTAssertEqual(bed.physical.record(frame)?.role, .kmem)
        XCTAssertTrue((0..<512).allSatisfy { bed.bytes(frame)[$0] == 0 })
        bed.bytes(frame)[3] = 77
      }
      XCTAssertEqual(frames.count, 70)
      XCTAssertNil(bed.tables.translate(address + PageCount(70)))
      bed.check()
      bed.space.freeWired(address, PageCount(70))
      bed.check()
    }
    XCTAssertEqual(bed.picture(), before)
  }

  func testFragmentedMemoryBacksARange() throws {
    let bed = try KernelSpaceFixture()
    var singles: [FrameNumber] = []
    while let frame = try? bed.physical.allocate(BlockOrder(0), role: .loaned, priority: .interrupt) {
      singles.append(frame)
    }
    for frame in singles where frame.rawValue % 2 == 0 {
      bed.physical.free(FrameRun(first: frame, count: .one))
    }
    let address = try bed.space.allocateWired(PageCount(500))
    bed.check()
    bed.space.freeWired(address, PageCount(500))
    XCTAssertThrowsError(try bed.space.allocateContiguous(PageCount(2))) {
      XCTAssertEqual($0 as? KernelSpaceError, .noMemory)
    }
    bed.check()
  }

  func testStacksHaveAGuardPageBelow() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture()
    let one = try bed.space.allocateStack(PageCount(4))
    let two = try bed.space.allocateStack(PageCount(4), contents: .zero)
    for stack in [one, two] {
      XCTAssertNil(bed.tables.translate(stack.guardPage))
      XCTAssertNotNil(bed.tables.translate(stack.bottom))
      XCTAssertNotNil(bed.tables.translate(VirtualAddress(stack.top.rawValue - 8)))
      XCTAssertEqual(bed.physical.record(bed.frame(stack.bottom)!)?.role, .stack)
    }
    XCTAssertEqual(bed.space.pages(.stack), PageCount(8))
    XCTAssertEqual(bed.space.rangeCount(.stack), 2)
    bed.check()
    let what = bed.space.whatIs(VirtualAddress(one.top.rawValue - 1))
    XCTAssertEqual(what.kind, .stack)
    XCTAssertEqual(what.range?.address, one.bottom)
    XCTAssertEqual(what.arena, ShortName("kernel_va"))
    XCTAssertNil(bed.space.whatIs(one.guardPage).range)
    XCTAssertEqual(bed.space.whatIs(one.guardPage).segment?.kind, .busy)
    bed.space.freeStack(one)
    bed.space.freeStack(two)
    bed.check()
    XCTAssertEqual(bed.picture(), before)
  }

  // MARK: Physical ranges

  func testDeviceRegistersKeepTheirOffset() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture()
    let ioApic = try bed.space.mapDevice(PhysicalAddress(0xfec0_0010), ByteCount(UInt64(0x20)))
    XCTAssertEqual(bed.tables.translate(ioApic)?.physical, PhysicalAddress(0xfec0_0010))
    XCTAssertEqual(bed.tables.translate(ioApic)?.attribute, .uncached)
    // Across a page boundary, and far above the frames that have numbers.
    let odd = try bed.space.mapDevice(PhysicalAddress(0x3800_0000_0ffc), ByteCount(UInt64(8)), .writeThrough)
    XCTAssertEqual(
      bed.tables.translate(odd + ByteCount(UInt64(7)))?.physical, PhysicalAddress(0x3800_0000_1003))
    let buffer = try bed.space.mapDevice(
      PhysicalAddress(0x8000_0000 + 0x1000), .mebibytes(8), .writeCombining)
    XCTAssertEqual(bed.tables.translate(buffer + .mebibytes(4))?.level.span, PageCount(512))
    XCTAssertEqual(bed.space.pages(.device), PageCount(1 + 2 + 2048))
    XCTAssertEqual(bed.space.whatIs(buffer + .mebibytes(3)).kind, .device)
    bed.check()
    for (address, length) in [(ioApic, 0x20), (odd, 8), (buffer, 8 << 20)] {
      bed.space.unmapDevice(address, ByteCount(UInt64(length)))
    }
    bed.check()
    XCTAssertEqual(bed.picture(), before)

    for (start, length, attribute) in [
      (UInt64(0xfec0_0000), UInt64(0), CacheAttribute.uncached), (1 << 52, 1, .uncached),
      (1 << 51, 1 << 52, .uncached), (0x20_0000, 4096, .uncached),
    ] {
      XCTAssertThrowsError(
        try bed.space.mapDevice(PhysicalAddress(start), ByteCount(length), attribute)
      ) { XCTAssertEqual($0 as? KernelSpaceError, .badConstraint) }
    }
    let tables = try bed.space.mapDevice(PhysicalAddress(0x20_0000), ByteCount(UInt64(4096)), .writeBack)
    bed.space.unmapDevice(tables, ByteCount(UInt64(4096)))
    XCTAssertEqual(bed.picture(), before)
  }

  func testContiguousFramesLoseAndRegainTheirAlias() throws {
    for attribute in [CacheAttribute.writeBack, .writeThrough, .uncached, .writeCombining] {
      let bed = try KernelSpaceFixture()
      let before = bed.picture()
      for count in [1, 7, 512, 700] as [UInt64] {
        let constraints = RunConstraints(alignment: Alignment(1 << 15)!)
        let range = try bed.space.allocateContiguous(
          PageCount(count), where: constraints, attribute: attribute, contents: .zero)
        XCTAssertEqual(range.frames.first.rawValue % 8, 0)
        for page in [0, count / 2, count - 1] {
          let frame = range.frames.first + PageCount(page)
          XCTAssertEqual(bed.frame(range.address + PageCount(page)), frame)
          XCTAssertEqual(bed.tables.translate(range.address + PageCount(page))?.attribute, attribute)
          XCTAssertEqual(bed.alias(frame)?.attribute, attribute)
          XCTAssertEqual(bed.alias(frame)?.protection, .kernelData)
          XCTAssertEqual(bed.bytes(frame)[511], 0)
        }
        XCTAssertEqual(bed.alias(range.frames.end)?.attribute, .writeBack)
        XCTAssertEqual(bed.space.whatIs(range.address).kind, .contiguous)
        bed.check()
        bed.space.freeContiguous(range.address, PageCount(count))
        bed.check()
        XCTAssertEqual(bed.picture(), before, "\(attribute), \(count) pages")
      }
    }
  }

  func testFramesOfTheCallerStayTheCallers() throws {
    let bed = try KernelSpaceFixture()
    let run = try bed.physical.allocate(run: PageCount(5), role: .loaned)
    let before = bed.picture()
    let one = try bed.space.mapFrames(run, .writeCombining)
    XCTAssertEqual(bed.alias(run.first)?.attribute, .writeCombining)
    bed.check()
    bed.space.unmapFrames(one, PageCount(5))
    XCTAssertEqual(bed.alias(run.first)?.attribute, .writeBack)
    XCTAssertEqual(bed.physical.record(run.first)?.role, .loaned)
    XCTAssertEqual(bed.picture(), before)
    bed.check()
  }

  func testAGibibyteGoesBackWithoutATable() throws {
    let bed = try KernelSpaceFixture(memory: .gibibytes(3), largest: .gibibyte)
    // So that the next address begins at no gibibyte by chance.
    let stack = try bed.space.allocateStack(.one)
    let before = bed.picture()
    let gibibyte = PageCount(UInt64(1) << 18)
    let range = try bed.space.allocateContiguous(
      gibibyte, where: RunConstraints(alignment: Alignment(1 << 30)!), attribute: .writeCombining)
    XCTAssertEqual(bed.alias(range.frames.first)?.level.span, gibibyte)
    bed.host.failures.pointee.countdown = 0
    bed.space.freeContiguous(range.address, gibibyte)
    bed.host.failures.pointee.countdown = -1
    XCTAssertFalse(bed.host.failures.pointee.hasFailed)
    XCTAssertEqual(bed.picture(), before)
    bed.space.freeStack(stack)
    bed.check()
  }

  func testNeighboursWithOneAttributeGoBackEachOnItsOwn() throws {
    let bed = try KernelSpaceFixture()
    let half = PageCount(256)
    let run = try bed.physical.allocate(
      run: PageCount(512), where: RunConstraints(alignment: Alignment(1 << 21)!), role: .loaned)
    let before = bed.picture()
    let lower = try bed.space.mapFrames(FrameRun(first: run.first, count: half), .uncached)
    let upper = try bed.space.mapFrames(FrameRun(first: run.first + half, count: half), .uncached)
    // As a change elsewhere does that had to put its join off.
    let alias = bed.host.machine.directMap.virtualAddress(of: run.first.address)
    bed.tables.join(alias, count: PageCount(512))
    bed.host.failures.pointee.countdown = 0
    bed.space.unmapFrames(lower, half)
    XCTAssertEqual(bed.alias(run.first)?.attribute, .writeBack)
    XCTAssertEqual(bed.alias(run.first + half)?.attribute, .uncached)
    bed.space.unmapFrames(upper, half)
    bed.host.failures.pointee.countdown = -1
    XCTAssertFalse(bed.host.failures.pointee.hasFailed)
    XCTAssertEqual(bed.picture(), before)
    bed.check()
  }

  func testFramesAreMappedOtherwiseOnceAtATime() throws {
    let bed = try KernelSpaceFixture()
    let run = try bed.physical.allocate(run: PageCount(8), role: .loaned)
    let one = try bed.space.mapFrames(run)
    let two = try bed.space.mapFrames(run)
    bed.space.unmapFrames(one, run.count)
    bed.space.unmapFrames(two, run.count)
    let three = try bed.space.mapFrames(FrameRun(first: run.first, count: PageCount(5)), .uncached)
    let before = bed.picture(tags: false)
    for attribute in [CacheAttribute.writeBack, .uncached, .writeCombining] {
      XCTAssertThrowsError(
        try bed.space.mapFrames(FrameRun(first: run.first + PageCount(4), count: PageCount(4)), attribute)
      ) { XCTAssertEqual($0 as? KernelSpaceError, .badConstraint) }
      XCTAssertEqual(bed.picture(tags: false), before)
    }
    bed.space.unmapFrames(three, PageCount(5))
    for page in UInt64(0)..<8 {
      XCTAssertEqual(bed.alias(run.first + PageCount(page))?.attribute, .writeBack)
    }
    bed.check()
  }

  func testALargeDeviceCostsAStepForEachTable() throws {
    let bed = try KernelSpaceFixture(largest: .gibibyte)
    let size = ByteCount.gibibytes(512)
    let address = try bed.space.mapDevice(PhysicalAddress(1 << 43), size, .writeCombining)
    XCTAssertEqual(bed.tables.translate(address)?.level.span, PageCount(UInt64(1) << 18))
    bed.space.unmapDevice(address, size)
    bed.check()
  }

  // MARK: Order

  func testNoFrameIsFreeBeforeItsPageIsForgotten() throws {
    final class Log {
      var forgotten: Set<UInt64> = []
    }
    let log = Log()
    let bed = try KernelSpaceFixture()
    let address = try bed.space.allocateWired(PageCount(100))
    let frames = (0..<100).map { bed.frame(address + PageCount(UInt64($0)))! }
    let processor = cp_processor()
    processor.pointee.invalidate_context = Unmanaged.passUnretained(log).toOpaque()
    let context = Context(bed: bed, frames: frames, address: address)
    current = context
    defer { current = nil }
    processor.pointee.invalidate = { context, address in
      Unmanaged<Log>.fromOpaque(context!).takeUnretainedValue().forgotten.insert(address)
      // While processors invalidate the pages, neither frames nor addresses are free.
      guard let current, address < current.address.rawValue + 100 * 4096 else { return }
      if address == current.address.rawValue && current.isDone { return }
      XCTAssertTrue(
        current.frames.allSatisfy { current.bed.physical.record($0)?.role == .wired } || current.isDone)
      XCTAssertEqual(
        current.bed.space.arena(.heap).find(ArenaAddress(current.address.rawValue))?.kind, .busy)
      if address == current.address.rawValue + 99 * 4096 { current.isDone = true }
    }
    defer { processor.pointee.invalidate = nil }
    bed.space.freeWired(address, PageCount(100))
    for page in UInt64(0)..<100 { XCTAssertTrue(log.forgotten.contains(address.rawValue + page << 12)) }
  }

  // MARK: Faults

  func testBugsAreReportedAndChangeNothing() throws {
    let bed = try KernelSpaceFixture()
    let space = bed.space
    let wired = try space.allocateWired(PageCount(8))
    let gone = try space.allocateWired(PageCount(8))
    let stack = try space.allocateStack(PageCount(2))
    let device = try space.mapDevice(PhysicalAddress(0xfee0_0000), ByteCount(UInt64(4096)))
    let contiguous = try space.allocateContiguous(PageCount(4), attribute: .uncached)
    let run = try bed.physical.allocate(run: PageCount(2), role: .loaned)
    let given = try space.mapFrames(run, .writeCombining)
    space.freeWired(gone, PageCount(8))
    let before = bed.picture()
    func expect(_ kind: FaultKind, expected: UInt64? = nil, line: UInt = #line, _ body: () -> Void) {
      let faults = bed.host.faults(in: body)
      XCTAssertEqual(faults.map(\.kind), [kind], line: line)
      if let expected { XCTAssertEqual(faults.first?.expected, expected, line: line) }
      XCTAssertEqual(bed.picture(), before, line: line)
      bed.check(line: line)
    }
    let one = PageCount.one
    expect(.wrongSize, expected: 8) { space.freeWired(wired, PageCount(7)) }
    expect(.wrongSize, expected: 8) { space.freeWired(wired, PageCount(9)) }
    expect(.wrongSize, expected: 8) { space.freeWired(wired, .zero) }
    expect(.doubleFree) { space.freeWired(gone, PageCount(8)) }
    expect(.foreignPointer, expected: wired.rawValue) { space.freeWired(wired + one, PageCount(7)) }
    expect(.foreignPointer) { space.freeWired(VirtualAddress(wired.rawValue + 8), PageCount(8)) }
    expect(.foreignPointer) { space.freeWired(VirtualAddress(0x1000), one) }
    expect(.foreignPointer) { space.freeWired(VirtualAddress(0x1234_5678_9abc_d000), one) }
    expect(.foreignPointer) {
      space.freeWired(bed.host.machine.directMap.virtualAddress(of: run.first.address), one)
    }
    expect(.foreignPointer) { space.freeWired(stack.guardPage, PageCount(3)) }
    expect(.wrongType) { space.freeWired(stack.bottom, PageCount(2)) }
    expect(.wrongType) { space.freeWired(device, one) }
    expect(.wrongType) { space.freeWired(contiguous.address, PageCount(4)) }
    expect(.wrongType) { space.freeWired(given, PageCount(2)) }
    expect(.wrongType) { space.freeContiguous(given, PageCount(2)) }
    expect(.wrongType) { space.unmapFrames(contiguous.address, PageCount(4)) }
    expect(.wrongType) { space.unmapDevice(wired, ByteCount(UInt64(8 * 4096))) }
    expect(.wrongSize) { space.freeStack(KernelStack(bottom: stack.bottom, count: PageCount(3))) }
    expect(.wrongType) { space.freeStack(KernelStack(bottom: wired, count: PageCount(8))) }
    expect(.wrongSize) { space.unmapDevice(device, ByteCount(UInt64(4097))) }
    expect(.wrongSize) { space.freeContiguous(contiguous.address, PageCount(3)) }
    // Free frames, and addresses without memory.
    let end = FrameNumber(UInt32(bed.host.memorySize.rawValue >> 12))
    var free: FrameNumber?
    bed.physical.forEachFreeBlock { frame, _ in free = frame }
    let somethingFree = try XCTUnwrap(free)
    for run in [
      FrameRun(first: somethingFree, count: one), FrameRun(first: end, count: one),
      FrameRun(first: run.first, count: PageCount(100_000)),
      FrameRun(first: run.first, count: PageCount(UInt64.max)),
      FrameRun(first: FrameNumber(FrameNumber.limit - 1), count: PageCount(3)),
      FrameRun(first: .none, count: one),
    ] {
      for attribute in [CacheAttribute.writeBack, .uncached] {
        var error: (any Error)?
        expect(.notAllocated) {
          do { _ = try space.mapFrames(run, attribute) } catch let thrown { error = thrown }
        }
        XCTAssertEqual(error as? KernelSpaceError, .badConstraint)
      }
    }
  }

  func testTheCheckFindsBrokenRanges() throws {
    let bed = try KernelSpaceFixture()
    let address = try bed.space.allocateWired(PageCount(4))
    bed.check()
    // A page that is mapped in a region but in no range.
    let stray = VirtualAddress(bed.space.layout.deviceBase.rawValue + 64 * Page.size)
    try bed.tables.map(stray, to: PhysicalAddress(0), count: .one, protection: .kernelData)
    XCTAssertEqual(bed.brokenInvariant, "KS-2")
    bed.tables.unmap(stray, count: .one)
    bed.check()
    // Addresses that are allocated, and no range is there.
    let first = try bed.space.kernelArena.xalloc(ArenaSize(Page.size), ArenaConstraints(), policy: .bestFit)
    XCTAssertEqual(bed.brokenInvariant, "KS-1")
    bed.space.kernelArena.xfree(first, ArenaSize(Page.size))
    bed.check()
    // A range that has lost its last page.
    let last = address + PageCount(3)
    let frame = try XCTUnwrap(bed.frame(last))
    bed.tables.unmap(last, count: .one)
    XCTAssertEqual(bed.brokenInvariant, "KS-2")
    try bed.tables.map(last, to: frame.address, count: .one, protection: .kernelData)
    bed.check()
  }

  // MARK: Running out

  func testEachAllocationPointFailsInTurn() throws {
    typealias Act = (KernelAddressSpace, FrameRun) throws -> Void
    var acts: [(String, Act)] = [
      ("heap", { space, _ in _ = try space.allocateWired(PageCount(40), contents: .zero) }),
      (
        "interrupt",
        { space, _ in _ = try space.allocateWired(PageCount(1), from: .interrupt, priority: .interrupt) }
      ),
      ("kernel", { space, _ in _ = try space.allocateWired(PageCount(1030), from: .kernel) }),
      ("stack", { space, _ in _ = try space.allocateStack(PageCount(33)) }),
      ("device", { space, _ in _ = try space.mapDevice(PhysicalAddress(0xc000_1000), .mebibytes(4)) }),
    ]
    for attribute in [CacheAttribute.writeBack, .writeCombining] {
      acts.append(
        ("contiguous", { space, _ in _ = try space.allocateContiguous(PageCount(600), attribute: attribute) })
      )
      acts.append(("given", { space, run in _ = try space.mapFrames(run, attribute) }))
    }
    var reached: [FailurePoint: UInt64] = [:]
    for (name, act) in acts {
      for nth in Int64(0)... {
        let bed = try KernelSpaceFixture()
        let run = try bed.physical.allocate(
          run: PageCount(3), where: RunConstraints(alignment: Alignment(1 << 21)!), role: .loaned)
        let before = bed.picture(tags: false)
        bed.host.failures.pointee = FailureInjection()
        bed.host.failures.pointee.countdown = nth
        var error: (any Error)?
        do { try act(bed.space, run) } catch let thrown { error = thrown }
        let hasFailed = bed.host.failures.pointee.hasFailed
        bed.host.failures.pointee.countdown = -1
        if let error {
          XCTAssertTrue(hasFailed, name)
          XCTAssertTrue(
            [KernelSpaceError.noMemory, .noAddressSpace].contains(error as? KernelSpaceError), name)
          XCTAssertEqual(bed.picture(tags: false), before, "\(name), point \(nth)")
          XCTAssertEqual(bed.space.failureCount, 1)
        }
        bed.check("\(name), point \(nth)")
        for point in FailurePoint.allCases {
          reached[point, default: 0] += bed.host.failures.pointee.reached[Int(point.rawValue)]
        }
        if !hasFailed { break }
      }
    }
    print("KernelSpace: allocation points reached \(reached.map { "\($0.key) \($0.value)" }.sorted())")
  }

  func testImpossibleRequestsAreRefused() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture(tags: false)
    func refused(_ error: KernelSpaceError, line: UInt = #line, _ body: () throws -> Void) {
      XCTAssertThrowsError(try body(), line: line) {
        XCTAssertEqual($0 as? KernelSpaceError, error, line: line)
      }
      XCTAssertEqual(bed.picture(tags: false), before, line: line)
      bed.check(line: line)
    }
    let space = bed.space
    refused(.badConstraint) { _ = try space.allocateWired(.zero) }
    refused(.badConstraint) { _ = try space.allocateStack(.zero) }
    refused(.badConstraint) { _ = try space.allocateContiguous(.zero) }
    refused(.badConstraint) { _ = try space.mapFrames(FrameRun(first: FrameNumber(9), count: .zero)) }
    refused(.noMemory) { _ = try space.allocateWired(PageCount(100_000)) }
    refused(.noMemory) { _ = try space.allocateStack(PageCount(100_000)) }
    refused(.noAddressSpace) { _ = try space.allocateWired(PageCount(UInt64(1) << 40)) }
    refused(.noAddressSpace) { _ = try space.allocateWired(PageCount(UInt64.max)) }
    refused(.noAddressSpace) { _ = try space.allocateStack(PageCount(UInt64.max)) }
    refused(.badConstraint) { _ = try space.allocateContiguous(PageCount(UInt64.max), contents: .zero) }
    refused(.noAddressSpace) { _ = try space.mapDevice(PhysicalAddress(0), .gibibytes(2 << 10), .writeBack) }
    refused(.noMemory) {
      _ = try space.allocateContiguous(.one, where: RunConstraints(low: PhysicalAddress(1 << 40)))
    }
  }

  // MARK: Together

  func testTwoThreadsAllocateAndFree() throws {
    let bed = try KernelSpaceFixture()
    let before = bed.picture(tags: false)
    bed.host.onThreads(2) { thread in
      for round in UInt64(0)..<60 {
        let heap = try! bed.space.allocateWired(PageCount(1 + round % 40), contents: .zero)
        let stack = try! bed.space.allocateStack(PageCount(3))
        let range = try! bed.space.allocateContiguous(PageCount(2), attribute: .uncached)
        bed.bytes(bed.frame(heap)!)[1] = UInt64(thread)
        bed.space.freeStack(stack)
        let other = try! bed.space.allocateWired(PageCount(5), from: .metadata)
        XCTAssertEqual(bed.bytes(bed.frame(heap)!)[1], UInt64(thread))
        bed.space.freeWired(heap, PageCount(1 + round % 40))
        bed.space.freeContiguous(range.address, PageCount(2))
        bed.space.freeWired(other, PageCount(5))
      }
    }
    bed.check()
    XCTAssertEqual(bed.picture(tags: false), before)
  }

  func testOfTwoFreesAtOnceOneIsABug() throws {
    let bed = try KernelSpaceFixture()
    for _ in 0..<20 {
      let address = try bed.space.allocateWired(PageCount(1100))
      let faults = bed.host.faults {
        bed.host.onThreads(2) { _ in bed.space.freeWired(address, PageCount(1100)) }
      }
      XCTAssertEqual(faults.count, 1)
      bed.check()
    }
  }

  func testAnInterruptAllocates() throws {
    let bed = try KernelSpaceFixture()
    var kept: [VirtualAddress] = []
    var fired = 0
    try bed.host.withInterrupts(
      seed: 11, oneIn: 4,
      handler: {
        fired += 1
        if kept.count < 8,
          let page = try? bed.space.allocateWired(.one, from: .interrupt, priority: .interrupt)
        {
          kept.append(page)
        } else if let page = kept.popLast() {
          bed.space.freeWired(page, .one)
        }
      },
      {
        for round in UInt64(1)..<60 {
          let heap = try bed.space.allocateWired(PageCount(round))
          let stack = try bed.space.allocateStack(PageCount(2))
          bed.space.freeWired(heap, PageCount(round))
          bed.space.freeStack(stack)
        }
      })
    XCTAssertGreaterThan(fired, 100)
    bed.check()
    for page in kept { bed.space.freeWired(page, .one) }
    bed.check()
    XCTAssertEqual(bed.space.pages(.interrupt), .zero)
  }
}

/// The state that the invalidation hook of one test reads.
private final class Context {
  let bed: KernelSpaceFixture
  let frames: [FrameNumber]
  let address: VirtualAddress
  var isDone = false
  init(bed: KernelSpaceFixture, frames: [FrameNumber], address: VirtualAddress) {
    self.bed = bed
    self.frames = frames
    self.address = address
  }
}
nonisolated(unsafe) private var current: Context?
