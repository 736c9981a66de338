import CPlatform
import HostMachine
import MemoryPrimitives
import PageTables
import Synchronization
import TestSupport
import Workloads
import XCTest

/// Prepared places and pages in them, driven by random operations, beside a set and a dictionary.
private final class PageablePagesHistory {
  private typealias Page = PageablePagesTests.Page

  private static let window: UInt64 = 1200
  /// The window lies across a boundary of 1 GiB.
  private static let base = kernelBase + 1 << 30 - (window / 2) << 12

  private let seed: UInt64
  private let bed: PageTablesFixture
  /// In place of a memory object: a lock of a rank below the tables'.
  private let object = Locked(.pagingObject, 0)
  private var random: SeededRandom
  private var prepared: Set<UInt64> = []
  private var pages: [UInt64: Page] = [:]

  init(seed: UInt64, levels: PagingLevels) {
    self.seed = seed
    bed = PageTablesFixture(levels: levels)
    random = SeededRandom(seed: seed)
  }

  func run(operations: Int) throws {
    for operation in 0..<operations {
      let note = "seed \(seed), operation \(operation)"
      let page = random.below(Self.window)
      if operation == 0 || random.oneIn(20) {
        try changePlaces(from: page, note)
      } else {
        // Needs no memory, and may be done with an object's lock held.
        bed.frames.limit = bed.frames.out.count
        bed.host.failures.pointee = FailureInjection()
        object.withLock { _ in changePage(page, note) }
        XCTAssertEqual(bed.host.failures.pointee.reached[Int(FailurePoint.pageTables.rawValue)], 0)
        bed.frames.limit = .max
      }
      guard agrees(note) else { return }
    }
    for page in pages.keys { _ = bed.tables.remove(at(page)) }
    for page in prepared { XCTAssertTrue(bed.tables.unprepare(at(page), count: .one)) }
    XCTAssertEqual(bed.frames.out.count, 1)
    bed.check()
  }

  private func at(_ page: UInt64) -> VirtualAddress { va(page, base: Self.base) }

  /// Prepares places, or undoes that.
  private func changePlaces(from page: UInt64, _ note: String) throws {
    let range = page..<min(Self.window, page + 1 + random.below(random.oneIn(3) ? 700 : 60))
    let count = PageCount(range.count)
    if random.oneIn(3) {
      let isFree = prepared.isSuperset(of: range) && range.allSatisfy { pages[$0] == nil }
      let faults = bed.host.faults {
        XCTAssertEqual(bed.tables.unprepare(at(page), count: count), isFree, note)
      }
      XCTAssertEqual(faults.map(\.kind), isFree ? [] : [.notMapped], note)
      if isFree { prepared.subtract(range) }
    } else {
      let isVacant = prepared.isDisjoint(with: range)
      let faults = try bed.host.faults { try bed.tables.prepare(at(page), count: count) }
      XCTAssertEqual(faults.map(\.kind), isVacant ? [] : [.doubleMap], note)
      if isVacant { prepared.formUnion(range) }
    }
  }

  /// Carries out one random operation on a page.
  private func changePage(_ page: UInt64, _ note: String) {
    switch random.below(10) {
    case 0, 1, 2:
      guard prepared.contains(page), pages[page] == nil else { return }
      let (frame, isWritable) = (FrameNumber(UInt32(random.below(1 << 30))), random.oneIn(2))
      bed.tables.enter(at(page), frame, isWritable ? .kernelData : .kernelReadOnly)
      pages[page] = Page(frame, isWritable)
    case 3:
      XCTAssertEqual(Page(bed.tables.remove(at(page))), pages.removeValue(forKey: page), note)
    case 4:
      XCTAssertEqual(Page(bed.tables.writeProtect(at(page))), pages[page], note)
      pages[page]?.writable = false
      pages[page]?.dirty = false
    case 5:
      guard pages[page] != nil else { return }
      bed.tables.permitWriting(at(page))
      pages[page]?.writable = true
      pages[page]?.dirty = true
    case 6, 7:
      XCTAssertEqual(bed.tables.testAndClearAccessed(at(page)), pages[page]?.accessed ?? false, note)
      pages[page]?.accessed = false
    case 8:
      let kind: AccessKind = random.oneIn(2) ? .read : .write
      let isAllowed = pages[page] != nil && (kind == .read || pages[page]!.writable)
      XCTAssertEqual(bed.tables.access(at(page), kind), isAllowed ? pages[page]?.frame : nil, note)
      if isAllowed { pages[page]?.accessed = true }
    default:
      // A processor that does not ask.
      if let (word, _) = bed.walker.word(at(page).rawValue) {
        word.pointee |= word.pointee & 2 != 0 ? 0x60 : 0x20
        pages[page]?.accessed = true
      }
    }
  }

  /// Checks counts, and each page by the independent walker. Answers false after a difference.
  private func agrees(_ note: String) -> Bool {
    bed.check(note)
    XCTAssertEqual(bed.tables.leafCount(.pages), PageCount(pages.count), note)
    XCTAssertEqual(bed.tables.mappedCount(at(0), count: PageCount(Self.window)), PageCount(pages.count))
    XCTAssertEqual(bed.tables.preparedCount(at(0), count: PageCount(Self.window)), PageCount(prepared.count))
    for page in 0..<Self.window {
      let word = bed.walker.word(at(page).rawValue)?.0.pointee
      guard Page(word) == pages[page], Page(bed.tables.mapping(at: at(page))) == pages[page],
        bed.tables.isPrepared(at(page)) == prepared.contains(page)
      else {
        XCTFail("\(note), page \(page): \(String(describing: word))")
        return false
      }
      // Kernel data, for all address spaces.
      if let word { XCTAssertEqual(word & 0x8000_0000_0000_0198, 0x8000_0000_0000_0100, note) }
    }
    return true
  }
}

/// Single pages in prepared places, seen by the independent walker.
final class PageablePagesTests: XCTestCase {
  struct Page: Equatable {
    var frame: FrameNumber
    var writable: Bool
    var accessed: Bool
    var dirty: Bool

    init(_ frame: FrameNumber, _ writable: Bool) {
      (self.frame, self.writable, accessed, dirty) = (frame, writable, true, writable)
    }
    init?(_ mapping: PageMapping?) {
      guard let mapping else { return nil }
      (frame, writable) = (mapping.frame, mapping.isWritable)
      (accessed, dirty) = (mapping.isAccessed, mapping.isDirty)
    }
    /// As the walker finds it, which knows nothing of prepared places.
    init?(_ word: UInt64?) {
      guard let word else { return nil }
      (frame, writable) = (FrameNumber(UInt32((word & 0x000f_ffff_ffff_f000) >> 12)), word & 2 != 0)
      (accessed, dirty) = (word & 0x20 != 0, word & 0x40 != 0)
    }
  }

  // MARK: One page

  func testAPageIsEnteredAndRemoved() throws {
    for levels in [PagingLevels.four, .five] {
      let bed = PageTablesFixture(levels: levels)
      try bed.tables.prepare(va(510), count: PageCount(4))
      let out = bed.frames.out
      bed.frames.limit = 0
      let at = va(512)
      let (one, two) = (FrameNumber(77), FrameNumber(78))
      XCTAssertTrue(bed.tables.isPrepared(at))
      XCTAssertFalse(bed.tables.isPrepared(va(509)))
      XCTAssertFalse(bed.tables.isPrepared(va(514)))
      XCTAssertNil(bed.tables.mapping(at: at))
      XCTAssertNil(bed.tables.remove(at))
      XCTAssertNil(bed.tables.writeProtect(at))
      XCTAssertFalse(bed.tables.testAndClearAccessed(at))

      bed.tables.enter(at, one, .kernelReadOnly)
      bed.check()
      XCTAssertEqual(
        bed.walker.walk(at.rawValue + 5),
        Walked(
          physical: 77 << 12 + 5, pageShift: 12, writable: false, executable: false, global: true,
          memoryType: 6))
      XCTAssertEqual(Page(bed.tables.mapping(at: at + ByteCount(9))), Page(one, false))
      XCTAssertTrue(bed.tables.isPrepared(at))
      XCTAssertEqual(bed.tables.leafCount(.pages), .one)
      XCTAssertEqual(Page(bed.tables.writeProtect(at)), Page(one, false))

      bed.tables.permitWriting(at)
      bed.check()
      XCTAssertEqual(Page(bed.tables.mapping(at: at)), Page(one, true))
      XCTAssertEqual(Page(bed.tables.writeProtect(at)), Page(one, true))
      XCTAssertEqual(Page(bed.tables.writeProtect(at)), Page(one, false))
      bed.check()
      XCTAssertEqual(Page(bed.tables.remove(at)), Page(one, false))
      XCTAssertNil(bed.walker.walk(at.rawValue))
      bed.check()

      bed.tables.enter(at, two, .kernelData)
      bed.check()
      XCTAssertEqual(Page(bed.tables.remove(at)), Page(two, true))
      XCTAssertNil(bed.tables.remove(at))
      bed.check()
      XCTAssertEqual(bed.tables.leafCount(.pages), .zero)
      XCTAssertEqual(bed.frames.out, out)
      XCTAssertTrue(bed.tables.unprepare(va(510), count: PageCount(4)))
      XCTAssertEqual(bed.frames.out.count, 1)
    }
  }

  func testAccessDoesWhatAProcessorDoes() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: PageCount(2))
    let at = va(1)
    XCTAssertNil(bed.tables.access(at, .read))
    bed.tables.enter(at, FrameNumber(9), .kernelReadOnly)
    XCTAssertTrue(bed.tables.testAndClearAccessed(at))
    XCTAssertFalse(bed.tables.testAndClearAccessed(at))
    XCTAssertEqual(bed.tables.mapping(at: at)?.isAccessed, false)
    bed.check()
    // A write that faults leaves the entry alone.
    XCTAssertNil(bed.tables.access(at, .write))
    XCTAssertEqual(bed.tables.mapping(at: at)?.isAccessed, false)
    XCTAssertEqual(bed.tables.access(at + ByteCount(4095), .read), FrameNumber(9))
    XCTAssertEqual(bed.tables.mapping(at: at)?.isAccessed, true)
    XCTAssertEqual(bed.tables.mapping(at: at)?.isDirty, false)
    XCTAssertTrue(bed.tables.testAndClearAccessed(at))
    bed.tables.permitWriting(at)
    XCTAssertEqual(bed.tables.mapping(at: at)?.isAccessed, false)
    XCTAssertEqual(bed.tables.access(at, .write), FrameNumber(9))
    XCTAssertEqual(Page(bed.tables.mapping(at: at)), Page(FrameNumber(9), true))
    bed.check()
    // Write-protecting keeps the bits that the processor set.
    XCTAssertTrue(bed.tables.testAndClearAccessed(at))
    XCTAssertEqual(bed.tables.access(at, .read), FrameNumber(9))
    XCTAssertEqual(bed.tables.writeProtect(at)?.isAccessed, true)
    XCTAssertEqual(bed.tables.remove(at)?.isAccessed, true)
    XCTAssertNil(bed.tables.access(at, .read))
    bed.check()
  }

  func testAccessWalksAllOfTheTables() throws {
    for levels in [PagingLevels.four, .five] {
      let bed = PageTablesFixture(levels: levels, largest: .gibibyte)
      let places: [(page: UInt64, frame: UInt64, count: UInt64)] = [
        (3, 5, 1), (512, 1024, 512), (1 << 18, 1 << 18, 1 << 18),
      ]
      for (page, frame, count) in places {
        try bed.tables.map(
          va(page), to: pa(frame), count: PageCount(count), protection: .kernelReadOnly, leaves: .whole)
      }
      for (page, frame, count) in places {
        for offset in Set([0, count / 3, count - 1]) {
          let at = va(page + offset)
          let (word, _) = try XCTUnwrap(bed.walker.word(at.rawValue))
          word.pointee &= ~0x20
          XCTAssertNil(bed.tables.access(at, .write))
          XCTAssertEqual(word.pointee & 0x20, 0)
          XCTAssertEqual(bed.tables.access(at, .read), FrameNumber(UInt32(frame + offset)))
          XCTAssertEqual(word.pointee & 0x60, 0x20)
        }
      }
      bed.check()
      try bed.tables.map(va(1024), to: pa(1 << 33), count: .one, protection: .kernelData)
      XCTAssertEqual(bed.tables.access(va(1024), .write), FrameNumber.none)
      XCTAssertNil(bed.tables.access(va(1025), .read))
      XCTAssertNil(bed.tables.access(VirtualAddress(1 << 62), .read))
    }
  }

  func testEntriesThatAreNotPageableAreLeftAlone() throws {
    let bed = PageTablesFixture()
    try bed.tables.map(va(0), to: pa(1024), count: PageCount(3), protection: .kernelData)
    try bed.tables.map(va(512), to: pa(1024), count: PageCount(512), protection: .kernelData, leaves: .whole)
    let before = bed.picture()
    for address in [va(1), va(600), va(5), va(1 << 20), VirtualAddress(1 << 62)] {
      XCTAssertNil(bed.tables.mapping(at: address))
      XCTAssertNil(bed.tables.remove(address))
      XCTAssertNil(bed.tables.writeProtect(address))
      XCTAssertFalse(bed.tables.testAndClearAccessed(address))
      XCTAssertFalse(bed.tables.isPrepared(address))
    }
    XCTAssertEqual(bed.picture(), before)
    bed.check()
  }

  // MARK: Many

  func testPageablePagesAreCountedAndListedAsRuns() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(500), count: PageCount(600))
    try bed.tables.map(va(2048), to: pa(2048), count: PageCount(700), protection: .kernelData, leaves: .whole)
    for page in UInt64(505)..<525 {
      bed.tables.enter(va(page), FrameNumber(UInt32(1000 + page)), .kernelReadOnly)
      if page % 3 == 0 { XCTAssertTrue(bed.tables.testAndClearAccessed(va(page))) }
    }
    bed.check()
    XCTAssertEqual(bed.tables.mappedCount(va(500), count: PageCount(600)), PageCount(20))
    XCTAssertEqual(bed.tables.mappedCount(va(0), count: PageCount(510)), PageCount(5))
    XCTAssertEqual(bed.tables.mappedCount(va(2000), count: PageCount(1000)), PageCount(700))
    XCTAssertEqual(bed.tables.mappedCount(va(2100), count: PageCount(1 << 30)), PageCount(648))
    XCTAssertEqual(bed.tables.preparedCount(va(0), count: PageCount(1 << 20)), PageCount(600))
    XCTAssertEqual(bed.tables.preparedCount(va(510), count: PageCount(4)), PageCount(4))
    XCTAssertEqual(bed.tables.mappedCount(va(0), count: .zero), .zero)
    XCTAssertEqual(bed.tables.mappedCount, PageCount(720))
    // A table ends a run, accessed does not.
    var runs: [[UInt64]] = []
    bed.tables.forEachRun {
      if $0.address < va(600) { runs.append([$0.address.rawValue, $0.count.rawValue]) }
    }
    XCTAssertEqual(runs, [[va(505).rawValue, 7], [va(512).rawValue, 13]])
    XCTAssertNil(bed.tables.proveWriteXorExecute())
  }

  func testARangeEndsWherePreparedEntriesBegin() throws {
    let bed = PageTablesFixture()
    let tag = RangeTag(rawValue: 4)
    try bed.tables.prepare(va(505), count: PageCount(20))
    try bed.tables.map(va(500), to: pa(1000), count: PageCount(5), protection: .kernelData, tag: tag)
    try bed.tables.map(va(525), to: pa(1100), count: PageCount(5), protection: .kernelData, tag: tag)
    for page in UInt64(505)..<525 { bed.tables.enter(va(page), FrameNumber(UInt32(page)), .kernelData) }
    XCTAssertEqual(bed.tables.range(at: va(500))?.count, PageCount(5))
    XCTAssertEqual(bed.tables.range(containing: va(504))?.address, va(500))
    for page in UInt64(505)..<525 {
      XCTAssertNil(bed.tables.range(containing: va(page)))
      XCTAssertNil(bed.tables.range(at: va(page)))
    }
    XCTAssertEqual(bed.tables.range(at: va(525))?.count, PageCount(5))
    XCTAssertEqual(bed.tables.range(containing: va(529))?.address, va(525))
    func unmapped(_ page: UInt64, _ count: UInt64) -> RangeCheck {
      bed.tables.unmapRange(va(page), count: PageCount(count), accepting: RangeTagSet(tag)) { _, _ in }
    }
    XCTAssertEqual(unmapped(505, 20), .notTheStart)
    XCTAssertEqual(unmapped(500, 25), .otherCount(PageCount(5)))
    XCTAssertEqual(unmapped(500, 5), .unmapped(tag))
    XCTAssertEqual(unmapped(525, 5), .unmapped(tag))
    XCTAssertEqual(bed.tables.mappedCount, PageCount(20))
    bed.check()
  }

  func testPlacesInUseStayPrepared() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(500), count: PageCount(600))
    bed.tables.enter(va(1000), FrameNumber(5), .kernelData)
    let before = bed.picture()
    for (first, count) in [(UInt64(500), UInt64(600)), (1000, 1), (900, 101), (1000, 100)] {
      let faults = bed.host.faults {
        XCTAssertFalse(bed.tables.unprepare(va(first), count: PageCount(count)))
      }
      XCTAssertEqual(faults.map(\.kind), [.notMapped])
      XCTAssertEqual(faults.first?.subject, va(1000).rawValue)
      XCTAssertEqual(bed.picture(), before)
      XCTAssertEqual(bed.tables.preparedCount(va(500), count: PageCount(600)), PageCount(600))
      bed.check()
    }
    _ = bed.tables.remove(va(1000))
    XCTAssertTrue(bed.tables.unprepare(va(500), count: PageCount(600)))
    XCTAssertEqual(bed.frames.out.count, 1)
  }

  func testTheCheckFindsBrokenPageablePages() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: PageCount(4))
    bed.tables.enter(va(0), FrameNumber(8), .kernelData)
    bed.tables.enter(va(1), FrameNumber(9), .kernelData)
    bed.tables.enter(va(2), FrameNumber(20), .kernelReadOnly)
    try bed.tables.map(va(8), to: pa(3), count: PageCount(2), protection: .kernelData)
    let bits: [(UInt64, UInt64)] = [(0, 6), (1, 6), (1, 1), (2, 6), (2, 1), (8, 5), (9, 5), (9, 6)]
    for (page, bit) in bits {
      let (word, _) = try XCTUnwrap(bed.walker.word(va(page).rawValue))
      word.pointee ^= 1 << bit
      XCTAssertEqual(bed.brokenInvariant, "PT-3", "page \(page), bit \(bit)")
      word.pointee ^= 1 << bit
      bed.check()
    }
    // A bit that the processor may set at any time breaks no invariant.
    for page in UInt64(0)..<3 {
      let (word, _) = try XCTUnwrap(bed.walker.word(va(page).rawValue))
      word.pointee ^= 0x20
      bed.check()
    }
  }

  // MARK: A history

  func testRandomHistoriesAgreeWithAModel() throws {
    for seed in historySeeds(1, count: 4) {
      try PageablePagesHistory(seed: seed, levels: seed % 2 == 0 ? .five : .four).run(operations: 1500)
    }
  }

  // MARK: Together

  /// Two processors that go through rounds in step.
  final class Rounds: Sendable {
    final class Word: Sendable { let value = Atomic<Int>(0) }
    private let arrived = [Word(), Word()]

    func meet(_ processor: Int, _ round: Int) {
      arrived[processor].value.store(round, ordering: .sequentiallyConsistent)
      var spins: UInt32 = 0
      while arrived[1 - processor].value.load(ordering: .sequentiallyConsistent) < round {
        cp_pause(spins)
        spins += 1
      }
    }
  }

  func testProcessorsLoseNoUseOfAPage() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: .one)
    let (at, frame) = (va(0), FrameNumber(100))
    bed.tables.enter(at, frame, .kernelReadOnly)
    let rounds = Rounds()
    let isDone = Rounds.Word()
    bed.host.onThreads(2) { processor in
      var random = SeededRandom(seed: UInt64(processor))
      for round in 1...4000 {
        if processor == 0 { _ = bed.tables.testAndClearAccessed(at) }
        rounds.meet(processor, 2 * round)
        if processor == 1 {
          for spin in 0..<random.below(40) { cp_pause(UInt32(spin)) }
          if random.oneIn(2) {
            XCTAssertEqual(bed.tables.access(at, .read), frame)
          } else if bed.tables.access(at, .write) == nil {
            XCTAssertEqual(bed.tables.access(at, .read), frame)
          }
          isDone.value.store(round, ordering: .releasing)
        } else {
          // Rights come and go until the other has used the page: its use must still be there then.
          repeat {
            bed.tables.permitWriting(at)
            XCTAssertEqual(bed.tables.writeProtect(at)?.isDirty, true)
          } while isDone.value.load(ordering: .acquiring) < round
          let mapping = bed.tables.mapping(at: at)
          XCTAssertEqual(mapping?.isAccessed, true)
          XCTAssertEqual(mapping?.isDirty, false)
        }
        rounds.meet(processor, 2 * round + 1)
      }
    }
    bed.check()
  }

  func testProcessorsAgreeOnWhetherAPageWasUsed() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: .one)
    let at = va(0)
    let rounds = Rounds()
    let used = Rounds.Word()
    let outcomes = Rounds.Word()
    bed.host.onThreads(2) { processor in
      var random = SeededRandom(seed: UInt64(processor))
      for round in 1...8000 {
        if processor == 0 {
          bed.tables.enter(at, FrameNumber(UInt32(round)), round % 2 == 0 ? .kernelData : .kernelReadOnly)
          XCTAssertTrue(bed.tables.testAndClearAccessed(at))
        }
        rounds.meet(processor, 3 * round)
        for spin in 0..<random.below(12) { cp_pause(UInt32(spin)) }
        var gone: PageMapping?
        if processor == 1 {
          let frame = bed.tables.access(at, round % 4 == 0 ? .write : .read)
          if let frame { XCTAssertEqual(frame, FrameNumber(UInt32(round))) }
          used.value.store(frame == nil ? 0 : 1, ordering: .relaxed)
        } else {
          gone = bed.tables.remove(at)
        }
        rounds.meet(processor, 3 * round + 1)
        if processor == 0 {
          let wasUsed = used.value.load(ordering: .relaxed) == 1
          XCTAssertEqual(gone?.isAccessed, wasUsed)
          XCTAssertEqual(gone?.isDirty, round % 2 == 0)
          outcomes.value.bitwiseOr(wasUsed ? 1 : 2, ordering: .relaxed)
        }
        rounds.meet(processor, 3 * round + 2)
      }
    }
    XCTAssertEqual(outcomes.value.load(ordering: .relaxed), 3, "one was always first")
    XCTAssertEqual(bed.tables.leafCount(.pages), .zero)
    bed.check()
  }

  func testProcessorsMapAndUnmapPagesOfOneTable() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: PageCount(512))
    bed.host.onThreads(2) { processor in
      for round in 0..<60 {
        for page in stride(from: UInt64(processor), to: 512, by: 2) {
          bed.tables.enter(va(page), FrameNumber(UInt32(page) + 7), .kernelReadOnly)
        }
        // Tables come and go beside them.
        let wide = VirtualAddress(kernelBase + UInt64(processor + 1) << 30)
        try! bed.tables.prepare(wide, count: PageCount(1030))
        for page in stride(from: UInt64(processor), to: 512, by: 2) {
          if round % 2 == 0 { bed.tables.permitWriting(va(page)) }
          XCTAssertEqual(
            Page(bed.tables.remove(va(page))), Page(FrameNumber(UInt32(page) + 7), round % 2 == 0))
        }
        XCTAssertTrue(bed.tables.unprepare(wide, count: PageCount(1030)))
      }
    }
    bed.check()
    XCTAssertEqual(bed.tables.mappedCount, .zero)
    XCTAssertTrue(bed.tables.unprepare(va(0), count: PageCount(512)))
    XCTAssertEqual(bed.frames.out.count, 1)
  }
}
