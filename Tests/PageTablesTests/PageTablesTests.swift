import CPlatform
import HostMachine
import MemoryPrimitives
import XCTest

@testable import PageTables

final class PageTablesTests: XCTestCase {
  func testPagesAreMappedAndTranslatedAtFourAndFiveLevels() throws {
    for levels in [PagingLevels.four, .five] {
      let bed = PageTablesFixture(levels: levels)
      let all = levels == .four ? 4 : 5
      try bed.tables.map(va(3), to: pa(77), count: PageCount(2), protection: .kernelData)
      XCTAssertEqual(bed.tables.tableCount.rawValue, UInt64(all))
      XCTAssertEqual(
        bed.walker.walk(kernelBase + 0x4123),
        Walked(
          physical: 0x4e123, pageShift: 12, writable: true, executable: false, global: true, memoryType: 6))
      let translation = try XCTUnwrap(bed.tables.translate(VirtualAddress(kernelBase + 0x3fff)))
      XCTAssertEqual(translation.physical, PhysicalAddress(0x4dfff))
      XCTAssertEqual(translation.protection, .kernelData)
      XCTAssertNil(bed.tables.translate(va(2)))
      XCTAssertNil(bed.tables.translate(va(5)))
      var steps: [(UInt8, Int)] = []
      bed.tables.walk(va(3)) { steps.append(($0.level.rawValue, $0.index)) }
      XCTAssertEqual(steps.map(\.0), (1...UInt8(all)).reversed())
      XCTAssertEqual(steps.last?.1, 3)
      bed.check()
      bed.tables.unmap(va(3), count: PageCount(2))
      XCTAssertEqual(bed.frames.out.count, 1)
      XCTAssertNil(bed.walker.walk(kernelBase + 0x3000))
      bed.check()
    }
  }

  func testTheLastPagesOfBothHalvesAreMapped() throws {
    for levels in [PagingLevels.four, .five] {
      let bed = PageTablesFixture(levels: levels)
      let half: UInt64 = levels == .four ? 1 << 47 : 1 << 56
      let places: [UInt64] = [0x1000, half - 0x1000, ~(half - 1), UInt64.max - 0xfff]
      for (i, place) in places.enumerated() {
        try bed.tables.map(
          VirtualAddress(place), to: pa(UInt64(i) + 500), count: .one, protection: .kernelReadOnly)
      }
      var seen: [UInt64] = []
      bed.tables.forEachRun { seen.append($0.address.rawValue) }
      XCTAssertEqual(seen, places)
      bed.check()
      for place in places { bed.tables.unmap(VirtualAddress(place), count: .one) }
      XCTAssertEqual(bed.frames.out.count, 1)
    }
  }

  func testAttributesAndProtectionsArriveInTheEntry() throws {
    let bed = PageTablesFixture()
    let attributes: [CacheAttribute] = [.writeBack, .writeThrough, .uncached, .writeCombining]
    let protections: [Protection] = [
      [], .writable, .executable, .global, .kernelData, .kernelText, .kernelReadOnly,
    ]
    for (leaves, span) in [(LeafSizes.pages, UInt64(1)), (.whole, 512)] {
      for attribute in attributes {
        for protection in protections {
          try bed.tables.map(
            va(512), to: pa(2048), count: PageCount(span), protection: protection, attribute: attribute,
            leaves: leaves)
          let walked = try XCTUnwrap(bed.walker.walk(kernelBase + 512 << 12))
          XCTAssertEqual(walked.pageShift, span == 1 ? 12 : 21)
          XCTAssertEqual(walked.memoryType, memoryType(attribute))
          XCTAssertEqual(walked.writable, protection.contains(.writable))
          XCTAssertEqual(walked.executable, protection.contains(.executable))
          XCTAssertEqual(walked.global, protection.contains(.global))
          let translation = try XCTUnwrap(bed.tables.translate(va(512)))
          XCTAssertEqual(translation.attribute, attribute)
          XCTAssertEqual(translation.protection, protection)
          bed.check()
          bed.tables.unmap(va(512), count: PageCount(span))
        }
      }
    }
  }

  func testAMapUsesTheLargestLeavesThatFit() throws {
    let bed = PageTablesFixture(largest: .gibibyte)
    // From 4 pages below 1 GiB to 3 pages behind 2 GiB and 2 MiB.
    let first: UInt64 = (1 << 18) - 4
    let end: UInt64 = (2 << 18) + 512 + 3
    try bed.tables.map(
      va(first), to: pa(first), count: PageCount(end - first), protection: .kernelData, leaves: .whole)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(3)), .one)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(2)), .one)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(1)), PageCount(7))
    XCTAssertEqual(bed.tables.mappedCount, PageCount(end - first))
    for page in [first, first + 3, first + 4, first + 100_000, end - 4, end - 1] {
      XCTAssertEqual(bed.walker.walk(kernelBase + page << 12)?.physical, page << 12)
    }
    bed.check()
    bed.tables.unmap(va(first), count: PageCount(end - first))
    XCTAssertEqual(bed.frames.out.count, 1)

    // Physical and virtual address out of step: small leaves only.
    try bed.tables.map(va(512), to: pa(511), count: PageCount(1024), protection: .kernelData, leaves: .whole)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(2)), .zero)
    bed.check()
  }

  func testAGibibyteIsSplitForOnePageAndJoinedAgain() throws {
    let bed = PageTablesFixture(largest: .gibibyte)
    let gibibyte = PageCount(1 << 18)
    try bed.tables.map(va(0), to: pa(1 << 18), count: gibibyte, protection: .kernelData, leaves: .whole)
    let before = bed.picture()
    try bed.tables.setAttribute(va(1000), count: .one, .uncached)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(2)), PageCount(511))
    XCTAssertEqual(bed.tables.leafCount(TableLevel(1)), PageCount(512))
    for page: UInt64 in [0, 511, 512, 999, 1000, 1001, 1024, 262_143] {
      let walked = try XCTUnwrap(bed.walker.walk(kernelBase + page << 12))
      XCTAssertEqual(walked.physical, (page + (1 << 18)) << 12)
      XCTAssertEqual(walked.memoryType, page == 1000 ? 0 : 6)
      XCTAssertTrue(walked.writable && walked.global && !walked.executable)
    }
    bed.check()
    bed.tables.join(va(1000), count: .one)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(1)), PageCount(512), "joined what differs")
    try bed.tables.setAttribute(va(1000), count: .one, .writeBack)
    bed.tables.join(va(1000), count: .one)
    XCTAssertEqual(bed.picture(), before)
    bed.check()
  }

  func testAJoinedTableServesUntilAllProcessorsHaveInvalidatedIt() throws {
    final class Witness {
      var table: UnsafePointer<UInt64>
      var before: [UInt64]
      var joined: (() -> Bool)
      var looks = 0
      init(_ table: UnsafePointer<UInt64>, joined: @escaping () -> Bool) {
        (self.table, self.joined) = (table, joined)
        before = (0..<512).map { table[$0] }
      }
    }
    let bed = PageTablesFixture()
    try bed.tables.map(va(0), to: pa(512), count: PageCount(512), protection: .kernelData)
    var frame = FrameNumber.none
    bed.tables.forEachTable { if $1 == TableLevel(1) { frame = $0 } }
    let table = bed.host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
    let witness = Witness(table) { bed.tables.leafCount(TableLevel(2)) == .one }
    let processor = cp_processor()
    processor.pointee.invalidate_context = Unmanaged.passUnretained(witness).toOpaque()
    processor.pointee.invalidate = { context, _ in
      let witness = Unmanaged<Witness>.fromOpaque(context!).takeUnretainedValue()
      guard witness.joined() else { return }
      witness.looks += 1
      XCTAssertEqual((0..<512).map { witness.table[$0] }, witness.before)
    }
    defer { processor.pointee.invalidate = nil }
    bed.tables.join(va(0), count: PageCount(512))
    XCTAssertEqual(witness.looks, 1)
    XCTAssertFalse(bed.frames.out.contains(frame.rawValue))
    bed.check()
  }

  func testOnlyWriteBackLeavesAreJoined() throws {
    for attribute in [CacheAttribute.writeBack, .writeThrough, .uncached, .writeCombining] {
      let bed = PageTablesFixture()
      try bed.tables.map(
        va(0), to: pa(512), count: PageCount(512), protection: .kernelData, leaves: .whole)
      // Two neighbours, each of which is changed back alone.
      for half: UInt64 in [0, 256] {
        try bed.tables.setAttribute(va(half), count: PageCount(256), attribute)
      }
      bed.tables.join(va(0), count: PageCount(512))
      bed.check()
      XCTAssertEqual(bed.tables.leafCount(TableLevel(2)) == .one, attribute == .writeBack)
      bed.frames.limit = bed.frames.out.count
      if attribute != .writeBack {
        for half: UInt64 in [0, 256] {
          try bed.tables.setAttribute(va(half), count: PageCount(256), .writeBack)
          bed.tables.join(va(half), count: PageCount(256))
          bed.check()
        }
      }
      XCTAssertEqual(bed.tables.leafCount(TableLevel(2)), .one)
    }
  }

  func testASplittableLeafIsUnmappedInPartWithoutMemory() throws {
    let bed = PageTablesFixture()
    try bed.tables.map(
      va(0), to: pa(1024), count: PageCount(1536), protection: .kernelData, leaves: .splittable)
    XCTAssertEqual(bed.tables.leafCount(TableLevel(2)), PageCount(3))
    XCTAssertEqual(bed.tables.reservedTableCount, PageCount(3))
    bed.check()
    bed.frames.limit = 0
    bed.tables.unmap(va(500), count: PageCount(30))
    XCTAssertEqual(bed.tables.reservedTableCount, .one)
    for page in UInt64(0)..<1536 {
      let expected = (500..<530).contains(page) ? nil : (page + 1024) << 12
      XCTAssertEqual(bed.walker.walk(kernelBase + page << 12)?.physical, expected)
    }
    bed.check()
    bed.tables.unmap(va(0), count: PageCount(500))
    bed.tables.unmap(va(530), count: PageCount(1006))
    XCTAssertEqual(bed.frames.out.count, 1)
    bed.check()
  }

  func testPreparedEntriesNeedNoMemoryAndStayPrepared() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(500), count: PageCount(600))
    bed.frames.limit = 0
    let before = bed.picture()
    for _ in 0..<3 {
      try bed.tables.map(
        va(510), to: pa(2000), count: PageCount(500), protection: .kernelData, leaves: .whole)
      XCTAssertEqual(bed.walker.walk(kernelBase + 900 << 12)?.physical, 2390 << 12)
      bed.check()
      bed.tables.unmap(va(510), count: PageCount(500))
      XCTAssertEqual(bed.picture(), before)
    }
    bed.tables.unprepare(va(500), count: PageCount(600))
    XCTAssertEqual(bed.frames.out.count, 1)
    bed.check()
  }

  func testFramesAreMappedInAnyOrder() throws {
    let bed = PageTablesFixture()
    let frames: [FrameNumber] = (0..<20).map { FrameNumber(3000 + ($0 * 7) % 20) }
    try frames.withUnsafeBufferPointer {
      try bed.tables.map(va(505), frames: $0, protection: .kernelData)
    }
    for (i, frame) in frames.enumerated() {
      XCTAssertEqual(bed.walker.walk(kernelBase + UInt64(505 + i) << 12)?.physical, frame.address.rawValue)
    }
    var back: [UInt64] = []
    bed.tables.unmap(va(505), count: PageCount(20)) { start, count in
      for i in 0..<count.rawValue { back.append(start.rawValue >> 12 + i) }
    }
    XCTAssertEqual(back, frames.map { UInt64($0.rawValue) })
  }

  func testEveryPageIsInvalidatedBeforeItsFrameIsHandedOver() throws {
    final class Seen { var pages: Set<UInt64> = [] }
    let seen = Seen()
    let bed = PageTablesFixture()
    try bed.tables.map(
      va(0), to: pa(1024), count: PageCount(700), protection: .kernelData, leaves: .splittable)
    let processor = cp_processor()
    processor.pointee.invalidate_context = Unmanaged.passUnretained(seen).toOpaque()
    processor.pointee.invalidate = { context, address in
      Unmanaged<Seen>.fromOpaque(context!).takeUnretainedValue().pages.insert(address)
    }
    defer { processor.pointee.invalidate = nil }
    var handed: UInt64 = 0
    bed.tables.unmap(va(100), count: PageCount(600)) { _, count in
      for page in UInt64(100)..<700 {
        XCTAssertTrue(seen.pages.contains(kernelBase + page << 12))
        XCTAssertNil(bed.walker.walk(kernelBase + page << 12))
      }
      handed += count.rawValue
    }
    XCTAssertEqual(handed, 600)
    seen.pages = []
    try bed.tables.protect(va(3), count: PageCount(2), .kernelReadOnly)
    XCTAssertEqual(seen.pages, [kernelBase + 0x3000, kernelBase + 0x4000])
    // So with a range of its own.
    let tag = RangeTag(rawValue: 1)
    try bed.tables.map(va(800), to: pa(2000), count: PageCount(10), protection: .kernelData, tag: tag)
    (seen.pages, handed) = ([], 0)
    let check = bed.tables.unmapRange(va(800), count: PageCount(10), accepting: RangeTagSet(tag)) {
      _, count in
      for page in UInt64(800)..<810 { XCTAssertTrue(seen.pages.contains(kernelBase + page << 12)) }
      handed += count.rawValue
    }
    guard case .unmapped = check else { return XCTFail("\(check)") }
    XCTAssertEqual(handed, 10)
  }

  func testRangesAreRecordedInTheTables() throws {
    let bed = PageTablesFixture()
    let (one, two) = (RangeTag(rawValue: 1), RangeTag(rawValue: 2))
    let tables = bed.tables
    try tables.map(va(500), to: pa(2000), count: PageCount(100), protection: .kernelData, tag: one)
    try tables.map(va(600), to: pa(3000), count: .one, protection: .kernelData, tag: one)
    let frames = [FrameNumber(7), FrameNumber(9)]
    try frames.withUnsafeBufferPointer {
      try tables.map(va(601), frames: $0, protection: .kernelData, tag: two)
    }
    try tables.map(
      va(1024), to: pa(1024), count: PageCount(1024), protection: .kernelData, leaves: .whole, tag: two)
    XCTAssertEqual(
      tables.range(at: va(500)), TaggedRange(address: va(500), count: PageCount(100), tag: one))
    XCTAssertEqual(
      tables.range(containing: va(599)), TaggedRange(address: va(500), count: PageCount(100), tag: one))
    XCTAssertEqual(tables.range(containing: va(600))?.count, .one)
    XCTAssertEqual(tables.range(containing: va(602))?.address, va(601))
    XCTAssertEqual(tables.range(containing: va(2047))?.count, PageCount(1024))
    XCTAssertNil(tables.range(at: va(501)))
    XCTAssertNil(tables.range(containing: va(603)))
    // Changes of rights and attributes, and split leaves, keep the record.
    try tables.protect(va(1024), count: PageCount(3), .kernelReadOnly)
    try tables.setAttribute(va(500), count: PageCount(2), .uncached)
    XCTAssertEqual(tables.range(containing: va(1030))?.count, PageCount(1024))
    XCTAssertEqual(tables.range(containing: va(530))?.count, PageCount(100))
    bed.check()

    let before = bed.picture()
    func refused(_ page: UInt64, _ count: UInt64, _ tag: RangeTag) -> RangeCheck {
      let check = tables.unmapRange(va(page), count: PageCount(count), accepting: RangeTagSet(tag)) { _, _ in
        XCTFail("handed over what stays")
      }
      XCTAssertEqual(bed.picture(), before)
      return check
    }
    XCTAssertEqual(refused(500, 99, one), .otherCount(PageCount(100)))
    XCTAssertEqual(refused(500, 101, one), .otherCount(PageCount(100)))
    XCTAssertEqual(refused(500, 100, two), .otherTag(one))
    XCTAssertEqual(refused(501, 99, one), .notTheStart)
    XCTAssertEqual(refused(499, 1, one), .notMapped)
    XCTAssertEqual(refused(1 << 30, 1, one), .notMapped)
    for (page, count, tag) in [(500, 100, one), (600, 1, one), (601, 2, two), (1024, 1024, two)] {
      var pages: UInt64 = 0
      XCTAssertEqual(
        tables.unmapRange(
          va(UInt64(page)), count: PageCount(count), accepting: RangeTagSet(tag).union(RangeTagSet(one))
        ) { pages += $1.rawValue }, .unmapped(tag))
      XCTAssertEqual(pages, UInt64(count))
    }
    XCTAssertEqual(bed.frames.out.count, 1)
    bed.check()
  }

  func testARangeEndsWhereItsHalfOfTheSpaceDoes() throws {
    let tag = RangeTag(rawValue: 3)
    for levels in [PagingLevels.four, .five] {
      let bed = PageTablesFixture(levels: levels)
      let half: UInt64 = 1 << (levels == .four ? 47 : 56)
      let (low, high) = (VirtualAddress(half - 2 * 4096), VirtualAddress(UInt64.max - 8191))
      try bed.tables.map(low, to: pa(700), count: PageCount(2), protection: .kernelData, tag: tag)
      // The next entries in the tables belong to the other half.
      try bed.tables.map(VirtualAddress(0 &- half), to: pa(702), count: .one, protection: .kernelData)
      try bed.tables.map(high, to: pa(704), count: PageCount(2), protection: .kernelData, tag: tag)
      try bed.tables.map(VirtualAddress(0), to: pa(706), count: .one, protection: .kernelData)
      for address in [low, high] {
        let range = TaggedRange(address: address, count: PageCount(2), tag: tag)
        XCTAssertEqual(bed.tables.range(at: address), range)
        XCTAssertEqual(bed.tables.range(containing: address + .one), range)
      }
      XCTAssertNil(bed.tables.range(containing: VirtualAddress(0 &- half)))
      XCTAssertNil(bed.tables.range(containing: VirtualAddress(0)))
      for address in [low, high] {
        let check = bed.tables.unmapRange(
          address, count: PageCount(2), accepting: RangeTagSet(tag)
        ) { _, _ in }
        XCTAssertEqual(check, .unmapped(tag))
      }
      bed.check()
    }
  }

  func testAnEmptyRangeIsDistinguishedFromAMappedOne() throws {
    let bed = PageTablesFixture()
    let tables = bed.tables
    try tables.map(va(1024), to: pa(1024), count: PageCount(512), protection: .kernelData, leaves: .whole)
    try tables.map(va(1 << 20), to: pa(9), count: .one, protection: .kernelData)
    XCTAssertFalse(tables.isAnyMapped(va(0), count: PageCount(1024)))
    XCTAssertTrue(tables.isAnyMapped(va(0), count: PageCount(1025)))
    XCTAssertTrue(tables.isAnyMapped(va(1535), count: .one))
    XCTAssertFalse(tables.isAnyMapped(va(1536), count: PageCount((1 << 20) - 1536)))
    XCTAssertTrue(tables.isAnyMapped(va(1536), count: PageCount((1 << 20) - 1535)))
    XCTAssertFalse(tables.isAnyMapped(va(1024), count: .zero))
    XCTAssertFalse(tables.isAnyMapped(VirtualAddress(0), count: PageCount(UInt64(1) << 35)))
    XCTAssertFalse(tables.isAnyMapped(VirtualAddress(0x1234_5678_9abc_d000), count: .one))
    XCTAssertFalse(tables.isAnyMapped(VirtualAddress(UInt64.max - 4095), count: PageCount(UInt64.max >> 12)))
  }

  // MARK: Faults

  func testBugsAreReportedAndChangeNothing() throws {
    let bed = PageTablesFixture()
    let tables = bed.tables
    try tables.map(va(1000), to: pa(2000), count: PageCount(1000), protection: .kernelData)
    try tables.map(va(2048), to: pa(2048), count: PageCount(512), protection: .kernelData, leaves: .whole)
    try tables.prepare(va(10), count: PageCount(4))
    let before = bed.picture()
    let frame = [FrameNumber(5), FrameNumber(6)]
    func expect(_ kind: FaultKind, at address: UInt64? = nil, line: UInt = #line, _ body: () throws -> Void)
      throws
    {
      let faults = try bed.host.faults(in: body)
      XCTAssertEqual(faults.map(\.kind), [kind], line: line)
      if let address { XCTAssertEqual(faults.first?.subject, address, line: line) }
      XCTAssertEqual(bed.picture(), before, line: line)
      bed.check(line: line)
    }
    try expect(.doubleMap, at: va(1000).rawValue) {
      try tables.map(va(998), to: pa(9), count: PageCount(4), protection: .kernelData)
    }
    try expect(.doubleMap, at: va(1000).rawValue) {
      try tables.map(va(100), to: pa(9), count: PageCount(3000), protection: .kernelData)
    }
    try expect(.doubleMap, at: va(2048).rawValue) {
      try tables.map(va(2000), to: pa(9), count: PageCount(49), protection: .kernelData)
    }
    try expect(.doubleMap) {
      try frame.withUnsafeBufferPointer { try tables.map(va(999), frames: $0, protection: .kernelData) }
    }
    try expect(.doubleMap) { try tables.prepare(va(12), count: PageCount(4)) }
    try expect(.notMapped, at: va(999).rawValue) { tables.unmap(va(999), count: PageCount(2)) }
    try expect(.notMapped, at: va(2000).rawValue) { tables.unmap(va(1000), count: PageCount(1001)) }
    try expect(.notMapped, at: va(11).rawValue) { tables.unmap(va(11), count: .one) }
    try expect(.notMapped) { tables.unmap(va(2048), count: PageCount(511)) }
    try expect(.notMapped) { tables.unmap(va(2049), count: PageCount(511)) }
    try expect(.notMapped) { try tables.protect(va(999), count: PageCount(2), .kernelReadOnly) }
    try expect(.notMapped) { try tables.setAttribute(va(2500), count: PageCount(61), .uncached) }
    try expect(.notMapped) { tables.unprepare(va(9), count: PageCount(2)) }
    try expect(.notMapped) { tables.unprepare(va(1000), count: PageCount(2)) }
    try expect(.badConstraint) {
      try tables.map(va(0), to: pa(1), count: .one, protection: [.writable, .executable])
    }
    try expect(.badConstraint) {
      try tables.protect(va(1000), count: .one, [.writable, .executable])
    }
    for bad: UInt64 in [0x0000_8000_0000_0000, 0xffff_7fff_ffff_f000, kernelBase + 1, 0x1234_5678_0000_0000] {
      try expect(.badConstraint) {
        try tables.map(VirtualAddress(bad), to: pa(1), count: .one, protection: .kernelData)
      }
      try expect(.badConstraint) { tables.unmap(VirtualAddress(bad), count: .one) }
      if bad & 1 == 0 { XCTAssertNil(tables.translate(VirtualAddress(bad))) }
    }
    try expect(.badConstraint) { tables.unmap(va(1000), count: .zero) }
    try expect(.badConstraint) { tables.unmap(VirtualAddress(0xffff_ffff_ffff_f000), count: PageCount(2)) }
    try expect(.badConstraint) { tables.unmap(VirtualAddress(0x7fff_ffff_f000), count: PageCount(2)) }
    try expect(.badConstraint) {
      try tables.map(va(0), to: PhysicalAddress(17), count: .one, protection: .kernelData)
    }
    try expect(.badConstraint) {
      try tables.map(va(0), to: pa((1 << 40) - 1), count: PageCount(2), protection: .kernelData)
    }
  }

  // MARK: Running out

  func testEachTableFrameFailsInTurn() throws {
    typealias Act = (PageMap) throws -> Void
    let acts: [(String, Act)] = [
      ("map", { try $0.map(va(400), to: pa(7), count: PageCount(2000), protection: .kernelData) }),
      (
        "map splittable",
        {
          try $0.map(
            va(4096 - 5), to: pa(4096 - 5), count: PageCount(2000), protection: .kernelData,
            leaves: .splittable)
        }
      ),
      (
        "map whole",
        {
          try $0.map(
            va(1 << 20), to: pa(0), count: PageCount(1 << 18 + 600), protection: .kernelData, leaves: .whole)
        }
      ),
      ("prepare", { try $0.prepare(va(400), count: PageCount(2000)) }),
      ("protect", { try $0.protect(va(8192 + 5), count: PageCount(1000), .kernelReadOnly) }),
      ("protect one leaf", { try $0.protect(va(8192 + 5), count: PageCount(10), .kernelReadOnly) }),
      ("setAttribute", { try $0.setAttribute(va(3 << 18 + 700), count: PageCount(1), .uncached) }),
      ("setAttribute wide", { try $0.setAttribute(va(3 << 18 + 700), count: PageCount(9000), .uncached) }),
      ("setAttribute prefix", { try $0.setAttribute(va(3 << 18), count: PageCount(512), .uncached) }),
    ]
    var reached: UInt64 = 0
    for (name, act) in acts {
      for nth in Int64(0)... {
        let bed = PageTablesFixture(largest: .gibibyte)
        try bed.tables.map(
          va(8192), to: pa(0), count: PageCount(1024), protection: .kernelData, leaves: .whole)
        try bed.tables.map(
          va(3 << 18), to: pa(0), count: PageCount(1 << 18), protection: .kernelData, leaves: .whole)
        let before = bed.picture()
        bed.host.failures.pointee = FailureInjection()
        bed.host.failures.pointee.countdown = nth
        do {
          try act(bed.tables)
          XCTAssertFalse(bed.host.failures.pointee.hasFailed, name)
        } catch PageTableError.noMemory {
          XCTAssertTrue(bed.host.failures.pointee.hasFailed, name)
          XCTAssertEqual(bed.picture(), before, "\(name), failure \(nth)")
        }
        bed.check("\(name), failure \(nth)")
        reached += bed.host.failures.pointee.reached[Int(FailurePoint.pageTables.rawValue)]
        if !bed.host.failures.pointee.hasFailed { break }
      }
    }
    print("PageTables: \(reached) allocation points reached")
    let host = SimulatedMachine(memory: .mebibytes(1))
    host.failures.pointee.countdown = 0
    XCTAssertThrowsError(
      try PageMap(
        in: UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64), machine: host.machine,
        levels: .four, largestLeaf: .mebibytes2, frames: TestFrames(1..<2).source))
  }

  // MARK: The kernel's own tables

  func testTheKernelImageAndTheDirectMapAreMapped() throws {
    let bed = PageTablesFixture()
    let machine = bed.host.machine
    let image: UInt64 = 0xffff_ffff_8000_0000
    func segment(_ page: UInt64, _ count: UInt64, _ protection: Protection) -> ImageSegment {
      ImageSegment(
        address: va(page, base: image), physical: pa(512 + page), count: PageCount(count),
        protection: protection)
    }
    let segments = [
      segment(0, 100, .kernelText), segment(100, 50, .kernelReadOnly), segment(150, 600, .kernelData),
    ]
    let kernel = KernelImage(start: UnsafeMutablePointer<ImageSegment>.allocate(capacity: 3), count: 3)
    _ = UnsafeMutableBufferPointer(mutating: kernel).initialize(fromContentsOf: segments)
    defer { kernel.deallocate() }
    try bed.tables.mapImage(kernel)
    try bed.tables.mapDirect(pa(1), count: PageCount(158))
    try bed.tables.mapDirect(pa(256), count: PageCount(16384 - 256))
    let violation = try XCTUnwrap(bed.tables.proveWriteXorExecute())
    XCTAssertEqual(violation.frame, pa(512))
    XCTAssertEqual(violation.executableAt, va(0, base: image))
    try bed.tables.protectAliases(of: kernel)
    XCTAssertNil(bed.tables.proveWriteXorExecute())
    bed.check()

    let direct = machine.directMap.base
    XCTAssertNil(bed.walker.walk(0))
    XCTAssertNil(bed.walker.walk(direct))
    XCTAssertNil(bed.walker.walk(direct + 200 << 12))
    for frame: UInt64 in [1, 158, 256, 511, 512, 611, 661, 662, 5000, 16383] {
      let walked = try XCTUnwrap(bed.walker.walk(direct + frame << 12))
      XCTAssertEqual(walked.physical, frame << 12)
      XCTAssertEqual(walked.writable, !(512..<662).contains(frame), "frame \(frame)")
      XCTAssertFalse(walked.executable)
      XCTAssertTrue(walked.global)
    }
    XCTAssertEqual(bed.walker.walk(direct + 5000 << 12)?.pageShift, 21)
    XCTAssertEqual(bed.walker.walk(image)?.executable, true)
    XCTAssertEqual(bed.walker.walk(image)?.writable, false)
    XCTAssertEqual(bed.walker.walk(image + 100 << 12)?.executable, false)
    XCTAssertEqual(bed.walker.walk(image + 100 << 12)?.writable, false)
    XCTAssertEqual(bed.walker.walk(image + 749 << 12)?.writable, true)
    // A guard page in the data.
    bed.tables.unmap(va(200, base: image), count: .one)
    XCTAssertNil(bed.walker.walk(image + 200 << 12))
  }

  func testTheWriteExecuteCheckFindsPlantedViolations() throws {
    let bed = PageTablesFixture()
    try bed.tables.map(
      va(0), to: pa(1024), count: PageCount(512), protection: .kernelReadOnly, leaves: .whole)
    for i in UInt64(0)..<40 {
      // Many extents of executable memory, so that the proof takes several passes.
      try bed.tables.map(va(1000 + i * 2), to: pa(1024 + i * 2), count: .one, protection: .kernelText)
    }
    try bed.tables.map(va(2000), to: pa(1103), count: .one, protection: .kernelData)
    XCTAssertNil(bed.tables.proveWriteXorExecute())
    let (word, _) = try XCTUnwrap(bed.walker.word(va(2000).rawValue))
    word.pointee -= 0x1000
    let violation = try XCTUnwrap(bed.tables.proveWriteXorExecute())
    XCTAssertEqual(violation.frame, pa(1102))
    XCTAssertEqual(violation.executableAt, va(1078))
    XCTAssertEqual(violation.writableAt, va(2000))
    word.pointee += 0x1000
    // One mapping that is both.
    word.pointee &= ~(1 << 63)
    XCTAssertEqual(bed.tables.proveWriteXorExecute()?.frame, pa(1103))
    XCTAssertEqual(bed.brokenInvariant, "PT-4")
    word.pointee |= 1 << 63
    // A table that can be executed.
    try bed.tables.map(va(3000), to: bed.tables.root, count: .one, protection: .kernelText)
    let table = try XCTUnwrap(bed.tables.proveWriteXorExecute())
    XCTAssertEqual(table.frame, bed.tables.root)
    XCTAssertNil(table.writableAt)
  }

  func testTheCheckFindsBrokenInvariants() throws {
    let bed = PageTablesFixture()
    try bed.tables.map(
      va(0), to: pa(1024), count: PageCount(512), protection: .kernelData, leaves: .splittable)
    try bed.tables.map(va(600), to: pa(1024), count: PageCount(3), protection: .kernelData)
    let (large, _) = try XCTUnwrap(bed.walker.word(va(0).rawValue))
    let (small, _) = try XCTUnwrap(bed.walker.word(va(600).rawValue))
    let bits: [(word: UnsafeMutablePointer<UInt64>, bit: UInt64, invariant: String)] = [
      (large, 13, "PT-3"), (large, 9, "PT-5"), (small, 63, "PT-4"), (small, 1, "PT-3"), (small, 0, "PT-3"),
      (small, 6, "PT-3"), (small, 5, "PT-3"), (small, 9, "PT-5"),
    ]
    for (word, bit, invariant) in bits {
      word.pointee ^= 1 << bit
      XCTAssertEqual(bed.brokenInvariant, invariant, "bit \(bit)")
      word.pointee ^= 1 << bit
      bed.check()
    }
    let saved = small.pointee
    small.pointee = 0
    XCTAssertEqual(bed.brokenInvariant, "PT-1")
    small.pointee = saved
    bed.check()
  }

  func testTheCheckFindsTablesThatShouldHaveLeft() throws {
    let bed = PageTablesFixture()
    try bed.tables.map(va(0), to: pa(1024), count: PageCount(1), protection: .kernelData)
    let (only, _) = try XCTUnwrap(bed.walker.word(va(0).rawValue))
    let saved = only.pointee
    only.pointee = 0
    XCTAssertEqual(bed.brokenInvariant, "PT-2")
    only.pointee = saved
    bed.check()
  }

  func testTheCheckFindsWrongCounts() throws {
    let bed = PageTablesFixture()
    try bed.tables.map(
      va(0), to: pa(1024), count: PageCount(512), protection: .kernelData, leaves: .splittable)
    func breaking(_ change: (inout TableTree) -> Void, restore: (inout TableTree) -> Void) -> String? {
      bed.tables.withTree(change)
      defer {
        bed.tables.withTree(restore)
        bed.check()
      }
      return bed.brokenInvariant
    }
    XCTAssertEqual(breaking({ $0.tableCount += 1 }, restore: { $0.tableCount -= 1 }), "PT-6")
    XCTAssertEqual(breaking({ $0.leafCount[1] += 1 }, restore: { $0.leafCount[1] -= 1 }), "PT-6")
    var frame = FrameNumber.none
    XCTAssertEqual(
      breaking({ frame = $0.reserved.pop() }, restore: { $0.reserved.push(frame) }), "PT-5")
  }

  // MARK: Together

  func testTwoThreadsShareTables() throws {
    let bed = PageTablesFixture()
    bed.host.onThreads(2) { thread in
      let mine = (0..<256).map { UInt64($0 * 2 + thread) }
      for round in 0..<40 {
        for page in mine {
          try! bed.tables.map(va(page), to: pa(page + 9), count: .one, protection: .kernelData)
        }
        let wide = VirtualAddress(kernelBase + UInt64(thread + 1) << 30)
        try! bed.tables.map(
          wide, to: pa(1024), count: PageCount(1024), protection: .kernelData, leaves: .splittable)
        try! bed.tables.protect(wide + PageCount(7), count: PageCount(3), .kernelReadOnly)
        for page in mine {
          XCTAssertEqual(bed.tables.translate(va(page))?.physical, pa(page + 9), "round \(round)")
          bed.tables.unmap(va(page), count: .one)
        }
        bed.tables.unmap(wide, count: PageCount(1024))
      }
    }
    bed.check()
    XCTAssertEqual(bed.frames.out.count, 1)
  }

  func testTwoThreadsChangeAndJoinOneLeaf() throws {
    let bed = PageTablesFixture(largest: .gibibyte)
    try bed.tables.map(va(0), to: pa(0), count: PageCount(1 << 18), protection: .kernelData, leaves: .whole)
    let before = bed.picture()
    bed.host.onThreads(2) { thread in
      for round in UInt64(0)..<400 {
        let place = va(200 * UInt64(thread) + round % 190)
        try! bed.tables.setAttribute(place, count: PageCount(3), .uncached)
        XCTAssertEqual(bed.tables.translate(place)?.attribute, .uncached)
        try! bed.tables.setAttribute(place, count: PageCount(3), .writeBack)
        bed.tables.join(place, count: PageCount(3))
      }
    }
    bed.check()
    XCTAssertEqual(bed.picture(), before)
  }

  func testAnInterruptMapsAndUnmaps() throws {
    let bed = PageTablesFixture()
    var fired: UInt64 = 0
    try bed.host.withInterrupts(
      seed: 5, oneIn: 3,
      handler: {
        let place = va(300 + fired % 7)
        if bed.tables.translate(place) == nil {
          try? bed.tables.map(place, to: pa(fired), count: .one, protection: .kernelData)
        } else {
          bed.tables.unmap(place, count: .one)
        }
        fired += 1
      },
      {
        for _ in 0..<200 {
          try bed.tables.map(va(290), to: pa(4), count: PageCount(10), protection: .kernelData)
          try bed.tables.map(va(307), to: pa(4), count: PageCount(1000), protection: .kernelData)
          bed.tables.unmap(va(290), count: PageCount(10))
          bed.tables.unmap(va(307), count: PageCount(1000))
        }
      })
    XCTAssertGreaterThan(fired, 100)
    bed.check()
    for page in UInt64(300)..<307 where bed.tables.translate(va(page)) != nil {
      bed.tables.unmap(va(page), count: .one)
    }
    XCTAssertEqual(bed.frames.out.count, 1)
  }
}
