import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class PageRecordTests: XCTestCase {
  let page = PageName(owner: 3, index: 77)

  /// A machine on which `page` is cached; its frame.
  func cachedPage() throws -> (PageModel, FrameNumber) {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 900)]))
    try model.makePage(page)
    let frame = model.pages[page]!.frame
    model.freePage(page, .cached)
    XCTAssertNil(model.check())
    XCTAssertEqual(model.memory.cachedCount, .one)
    return (model, FrameNumber(UInt32(frame)))
  }

  func testACachedPageIsFreeAndComesBackAsItWas() throws {
    let (model, frame) = try cachedPage()
    let memory = model.memory
    let description = memory.whatIs(frame)
    XCTAssertEqual(description.role, .free)
    XCTAssertEqual(description.pageFlags, .cached)
    XCTAssertEqual(description.owner, 3)
    XCTAssertEqual(description.index, 77)
    XCTAssertTrue(model.reactivate(page, at: Int(frame.rawValue)))
    XCTAssertEqual(memory.cachedCount, .zero)
    XCTAssertNil(model.check())
    XCTAssertNil(model.checkFrames())
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .gone)
  }

  /// From every frame on, in holes and in pageblocks without records too, the pages are found, in their order.
  func testPagesAreListedFromAnyFrameOn() throws {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 700), (4000, 600), (40_000, 1100)]))
    let memory = model.memory
    var random = SeededRandom(seed: historySeed(63))
    for i in 0..<800 { try model.makePage(PageName(owner: 1, index: UInt64(i))) }
    for i in 0..<800 where random.below(10) < 7 {
      model.freePage(PageName(owner: 1, index: UInt64(i)), .dropped)
    }
    let pages = model.names.keys.sorted()
    XCTAssertGreaterThan(pages.count, 100)
    for end in [300, 956, 4200, 40_500, 50_000] {
      for first in Swift.stride(from: 200, through: end, by: 67) {
        for limit in [1, 5, 1000] {
          var found: [Int] = []
          let next = memory.forEachPage(from: FrameNumber(UInt32(first)), below: FrameNumber(UInt32(end))) {
            frame, _ in
            found.append(Int(frame.rawValue))
            return found.count == limit ? .enough : .more
          }
          let expected = Array(pages.filter { $0 >= first && $0 < end }.prefix(limit))
          guard found == expected else { return XCTFail("from \(first) below \(end): \(found)") }
          XCTAssertEqual(Int(next.rawValue), found.count == limit ? found.last! + 1 : end)
        }
      }
    }
    XCTAssertNil(model.checkFrames())
  }

  /// Pages come from single free frames first, as long as there are any, then from larger blocks: one hold of the
  /// lock takes as many as a request at a time would, and the same ones.
  func testABatchTakesTheFramesThatSingleRequestsWould() throws {
    let seed = historySeed(64)
    for turn in 0..<6 as Range<UInt64> {
      let systems = try (0..<2).map { _ in try FrameAllocatorFixture(frames: [(256, 700), (4000, 1200)]) }
      var got: [[FrameNumber]] = [[], []]
      for (which, system) in systems.enumerated() {
        let memory = system.memory!
        var random = SeededRandom(seed: seed &+ turn)
        try memory.setReserve(.zero, for: .normal)
        var frames: [FrameNumber] = []
        while let frame = try? memory.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
        for frame in frames where random.below(4) < 1 + turn % 3 { memory.free(frame, BlockOrder(0)) }
        for _ in 0..<12 {
          var batch = (0..<32).map { _ in FrameNumber.none }
          let wanted = Int(1 + random.below(32))
          var count = 0
          batch.withUnsafeMutableBufferPointer { batch in
            if which == 0 {
              count = memory.allocate(pages: .init(rebasing: batch[..<wanted]))
            } else {
              while count < wanted, memory.allocate(pages: .init(rebasing: batch[count...count])) == 1 {
                count += 1
              }
            }
          }
          got[which] += batch[..<count]
        }
        system.check()
      }
      XCTAssertEqual(got[0], got[1], "turn \(turn), seed \(seed)")
      XCTAssertFalse(got[0].isEmpty)
    }
  }

  /// Each frame of a free block or of a hole is what the whole is reported to be.
  func testFreeBlocksAndHolesAreReportedAsAWhole() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 700), (4000, 600), (40_000, 1100)])
    let memory = system.memory!
    var frames: [FrameNumber] = []
    for _ in 0..<500 { frames.append(try memory.allocate(BlockOrder(0), role: .wired)) }
    for frame in frames where frame.rawValue % 5 > 1 { memory.free(frame, BlockOrder(0)) }
    var reported: [FrameRole: Int] = [:]
    for frame in 0..<70_000 as Range<UInt32> {
      let role = memory.whatIs(FrameNumber(frame)).role
      guard let (last, what) = memory.lastOfBlockOrHole(at: FrameNumber(frame)) else {
        XCTAssertTrue(role != .free, "frame \(frame)")
        continue
      }
      reported[what, default: 0] += 1
      guard role == what, last.rawValue >= frame, memory.whatIs(last).role == what else {
        return XCTFail("frame \(frame) to \(last): \(what.description), but \(role.description)")
      }
    }
    XCTAssertEqual(reported[.free], Int(memory.freeCount.rawValue))
    XCTAssertGreaterThan(reported[.absent] ?? 0, 60_000)
  }

  func testOnlyItsIdentityReactivatesACachedPage() throws {
    let (model, frame) = try cachedPage()
    let memory = model.memory
    XCTAssertEqual(memory.reactivate(frame, owner: 4, index: 77, priority: .normal), .gone)
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 78, priority: .normal), .gone)
    for other: UInt32 in [frame.rawValue + 1, 0, 255, 256, 1155, 1156, 1 << 20, .max]
    where other != frame.rawValue {
      XCTAssertEqual(memory.reactivate(FrameNumber(other), owner: 3, index: 77, priority: .normal), .gone)
      memory.discard(cached: FrameNumber(other), owner: 3, index: 77)
    }
    memory.discard(cached: frame, owner: 3, index: 76)
    XCTAssertEqual(memory.cachedCount, .one)
    memory.discard(cached: frame, owner: 3, index: 77)
    XCTAssertEqual(memory.cachedCount, .zero)
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .gone)
    // A page that was dropped has no owner, whatever its record says.
    try model.makePage(page)
    let dropped = FrameNumber(UInt32(model.pages[page]!.frame))
    model.freePage(page, .dropped)
    XCTAssertEqual(memory.reactivate(dropped, owner: 3, index: 77, priority: .normal), .gone)
    XCTAssertEqual(memory.reactivate(dropped, owner: 0, index: 77, priority: .normal), .gone)
    model.cached = [:]
    XCTAssertNil(model.check())
  }

  func testEveryRequestMayReclaimACachedPage() throws {
    let takers: [(FrameAllocator, FrameNumber) throws -> Void] = [
      { memory, _ in while (try? memory.allocate(BlockOrder(0), role: .wired, priority: .interrupt)) != nil {}
      },
      { memory, _ in
        for order in stride(from: 9, through: 0, by: -1) {
          while (try? memory.allocate(BlockOrder(UInt8(order)), role: .slab, priority: .interrupt)) != nil {}
        }
      },
      { memory, frame in try memory.allocate(frame: frame, role: .wired) },
      { memory, frame in
        _ = try memory.allocate(
          run: PageCount(UInt64(2)),
          where: RunConstraints(low: PhysicalAddress(frame.address.rawValue & ~8191)),
          role: .wired)
        while (try? memory.allocate(run: .one, role: .wired)) != nil {}
      },
      { memory, frame in _ = try memory.isolated(FrameRun(first: frame, count: .one), priority: .normal) },
    ]
    for (i, take) in takers.enumerated() {
      let (model, frame) = try cachedPage()
      // A lock of an object's rank: no call waits for it.
      let object = SpinLock(.pagingObject)
      let interrupts = object.lock()
      object.unlock(interrupts)
      try take(model.memory, frame)
      XCTAssertEqual(model.memory.cachedCount, .zero, "taker \(i)")
      XCTAssertEqual(model.memory.reactivate(frame, owner: 3, index: 77, priority: .interrupt), .gone)
      model.system.check()
    }
  }

  func testInjectionFailsAPriorityOrAPoint() throws {
    let (model, frame) = try cachedPage()
    let memory = model.memory
    while memory.freeCount > .one { _ = try memory.allocate(frame: other(than: frame, memory), role: .wired) }
    try memory.setReserve(.one, for: .normal)
    let before = FrameSnapshot(memory)
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .refused)
    model.system.host.failures.pointee.countdown = 0
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .system), .refused)
    XCTAssertEqual(FrameSnapshot(memory), before)
    XCTAssertEqual(memory.cachedCount, .one)
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .system), .taken)
    model.system.check()
  }

  private func other(than frame: FrameNumber, _ memory: FrameAllocator) -> FrameNumber {
    for number in 256..<UInt32(1156) where number != frame.rawValue {
      if memory.whatIs(FrameNumber(number)).role == .free { return FrameNumber(number) }
    }
    return .none
  }

  func testCallsUnderAnObjectsLockKeepTheOrderOfLocks() throws {
    let (model, frame) = try cachedPage()
    let memory = model.memory
    let object = SpinLock(.pagingObject)
    let interrupts = object.lock()
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .taken)
    let record = memory.record(frame)!
    record.busyWord = .wiredOnce
    memory.setMobility(of: frame, .unmovable)
    record.pageFlags.insert(.dirty)
    memory.countDirty(frame)
    memory.countClean(frame)
    record.pageFlags.remove(.dirty)
    memory.setMobility(of: frame, .movable)
    record.busyWord = .xbusy
    memory.free(page: frame, .cached)
    memory.discard(cached: frame, owner: 3, index: 77)
    object.unlock(interrupts)
    model.system.check()
  }

  func testPageblocksKnowWiredAndDirtyPages() throws {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 900)]))
    let memory = model.memory
    for i in 0..<40 { try model.makePage(PageName(owner: 1, index: UInt64(i))) }
    let first = FrameNumber(UInt32(model.pages[PageName(owner: 1, index: 0)]!.frame))
    let unmovable = memory.pageblockCounts(at: first)!.unmovable
    for i in 0..<10 { model.toggleDirty(PageName(owner: 1, index: UInt64(i))) }
    for i in 5..<12 {
      model.wire(PageName(owner: 1, index: UInt64(i)))
      model.wire(PageName(owner: 1, index: UInt64(i)))
    }
    let counts = memory.pageblockCounts(at: first)!
    XCTAssertEqual(counts.unmovable, unmovable + PageCount(UInt64(7)))
    XCTAssertEqual(counts.other, PageCount(UInt64(33)))
    XCTAssertEqual(counts.dirty, PageCount(UInt64(10)))
    XCTAssertNil(model.check())
    for i in 5..<12 { model.unwire(PageName(owner: 1, index: UInt64(i))) }
    XCTAssertEqual(memory.pageblockCounts(at: first)!.other, PageCount(UInt64(33)))
    for i in 0..<40 { model.freePage(PageName(owner: 1, index: UInt64(i)), .dropped) }
    XCTAssertEqual(memory.pageblockCounts(at: first)!.other, .zero)
    XCTAssertEqual(memory.pageblockCounts(at: first)!.dirty, .zero)
    XCTAssertNil(model.check())
  }

  func testEveryWrongFreeOfAPageIsAFault() throws {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 900)]))
    let memory = model.memory
    try model.makePage(page)
    let frame = FrameNumber(UInt32(model.pages[page]!.frame))
    let record = memory.record(frame)!
    func expect(
      _ kind: FaultKind, _ frame: FrameNumber, _ keeping: PageIdentity = .dropped, line: UInt = #line
    ) {
      let before = FrameSnapshot(memory)
      let busyWord = memory.record(frame)?.busyWord
      let faults = model.system.host.faults { memory.free(page: frame, keeping) }
      XCTAssertEqual(faults.map(\.kind), [kind], line: line)
      XCTAssertEqual(FrameSnapshot(memory), before, line: line)
      XCTAssertEqual(memory.record(frame)?.busyWord, busyWord, line: line)
    }
    expect(.wrongType, FrameNumber(3))
    expect(.wrongType, FrameNumber(100_000))
    let wired = try memory.allocate(BlockOrder(0), role: .wired)
    expect(.wrongType, wired)
    memory.free(wired, BlockOrder(0))
    expect(.doubleFree, wired)
    for busyWord in [
      BusyWord.none, .wiredOnce, BusyWord(rawValue: 1 << 12), BusyWord(rawValue: 1 << 22),
      BusyWord(rawValue: 1 << 30 | 1 << 12),
    ] {
      record.busyWord = busyWord
      expect(.notAllocated, frame)
    }
    record.busyWord = .xbusy
    record.queue = .inactive
    expect(.notAllocated, frame)
    record.queue = .none
    record.pageFlags = [.valid, .dirty]
    memory.countDirty(frame)
    expect(.notAllocated, frame)
    record.busyWord = .wiredOnce
    XCTAssertEqual(
      model.system.host.faults { memory.free(frame, BlockOrder(0)) }.map(\.kind), [.notAllocated])
    record.busyWord = .xbusy
    memory.countClean(frame)
    record.pageFlags = []
    expect(.notAllocated, frame, .cached)
    memory.setMobility(of: frame, .unmovable)
    expect(.notAllocated, frame)
    XCTAssertEqual(
      model.system.host.faults { memory.setMobility(of: frame, .unmovable) }.map(\.kind), [.notAllocated])
    record.busyWord = .wiredOnce
    XCTAssertEqual(
      model.system.host.faults { memory.free(frame, BlockOrder(0)) }.map(\.kind), [.notAllocated])
    memory.setMobility(of: frame, .movable)
    XCTAssertEqual(
      model.system.host.faults { memory.setMobility(of: frame, .movable) }.map(\.kind), [.notAllocated])
    XCTAssertEqual(
      model.system.host.faults { memory.setMobility(of: wired, .unmovable) }.map(\.kind), [.doubleFree])
    // A thread may wait for the page; that ends here.
    record.busyWord = BusyWord(rawValue: 3 << 30)
    memory.free(page: frame, .dropped)
    model.system.check()
    expect(.doubleFree, frame)
  }

  func testAFreedPageServesAThreadThatWaits() throws {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 900)]))
    let memory = model.memory
    try model.makePage(page)
    let frame = FrameNumber(UInt32(model.pages[page]!.frame))
    while (try? memory.allocate(BlockOrder(0), role: .wired)) != nil {}
    nonisolated(unsafe) var rounds = 0
    model.system.host.runDevices = {
      rounds += 1
      if rounds == 2 {
        memory.record(frame)!.busyWord = .xbusy
        memory.free(page: frame, .cached)
      }
      return rounds < 5
    }
    XCTAssertEqual(
      try memory.allocate(BlockOrder(0), role: .wired, priority: .normal, waitUntil: .never), frame)
    XCTAssertEqual(rounds, 2)
    XCTAssertEqual(memory.cachedCount, .zero)
    model.system.check()
  }

  /// One processor gives pages up and asks for them again, the other takes whatever is free and writes on it.
  func testTwoThreadsNeverMixUpAPage() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2500)], processors: 2)
    let before = FrameSnapshot(system.memory)
    let memory = system.memory!
    let seed = historySeed(51)
    nonisolated(unsafe) var counts = (taken: 0, gone: 0)
    system.host.onThreads(2) { processor in
      if processor == 1 { return hammer(memory, seed &+ 1, 20_000, .normal) }
      var random = SeededRandom(seed: seed)
      let map = memory.machine.directMap
      var pages: [FrameNumber?] = Array(repeating: nil, count: 200)
      var hints: [FrameNumber?] = Array(repeating: nil, count: 200)
      for _ in 0..<60_000 {
        let index = Int(random.below(200))
        let word = UInt64(index) << 20 | 0xabc
        if let frame = pages[index] {
          if map.pointer(to: frame).load(as: UInt64.self) != word { XCTFail("a page's contents") }
          memory.record(frame)!.busyWord = .xbusy
          memory.free(page: frame, .cached)
          (pages[index], hints[index]) = (nil, frame)
          continue
        }
        if let hint = hints[index] {
          switch memory.reactivate(hint, owner: 9, index: UInt64(index), priority: .normal) {
          case .taken:
            pages[index] = hint
            counts.taken += 1
            if map.pointer(to: hint).load(as: UInt64.self) != word { XCTFail("a cached page's contents") }
            continue
          case .gone: counts.gone += 1
          case .refused: continue
          }
        }
        guard let frame = try? memory.allocate(BlockOrder(0), role: .pageable) else { continue }
        let record = memory.record(frame)!
        (record.owner, record.index, record.pageFlags) = (9, UInt64(index), .valid)
        map.pointer(to: frame).storeBytes(of: word, as: UInt64.self)
        pages[index] = frame
      }
      for case let frame? in pages {
        memory.record(frame)!.busyWord = .xbusy
        memory.free(page: frame, .dropped)
      }
      for (index, hint) in hints.enumerated() {
        if let hint { memory.discard(cached: hint, owner: 9, index: UInt64(index)) }
      }
    }
    XCTAssertGreaterThan(counts.taken, 0)
    XCTAssertGreaterThan(counts.gone, 0)
    system.check()
    XCTAssertEqual(memory.cachedCount, .zero)
    XCTAssertEqual(FrameSnapshot(memory), before)
  }
}
