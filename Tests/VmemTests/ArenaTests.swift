import HostMachine
import MemoryPrimitives
import Workloads
import XCTest

@testable import Vmem

final class ArenaTests: XCTestCase {
  func testATagTakes32Bytes() {
    XCTAssertEqual(MemoryLayout<Tag>.size, 32)
    XCTAssertEqual(MemoryLayout<Tag>.stride, 32)
    XCTAssertEqual(MemoryLayout<TagPage>.size, 32)
    XCTAssertLessThan(Arena.stateSize.rawValue, 4096)
  }

  func testATagKeepsItsFieldsApart() {
    let tag = TagPointer.allocate(capacity: 1)
    defer { tag.deallocate() }
    tag.set(.imported, 1, UInt64.max)
    tag.previousSegment = Link(0x3fff_ffff)
    tag.nextSegment = Link(0x2aaa_aaaa)
    tag.previous = Link(0x1555_5555)
    tag.next = Link(0x3fff_fffe)
    tag.isMarked = true
    XCTAssertEqual(tag.kind, .imported)
    XCTAssertEqual(tag.previousSegment, Link(0x3fff_ffff))
    XCTAssertEqual(tag.nextSegment, Link(0x2aaa_aaaa))
    XCTAssertEqual(tag.previous, Link(0x1555_5555))
    XCTAssertEqual(tag.next, Link(0x3fff_fffe))
    XCTAssertTrue(tag.isMarked)
    tag.kind = .busy
    tag.isMarked = false
    XCTAssertEqual(tag.nextSegment, Link(0x2aaa_aaaa))
    XCTAssertEqual(tag.callSite, CallSite(rawValue: 0x3fff_fffe))
    XCTAssertEqual(tag.nextInHash, Link(0x1555_5555))
  }

  func testFreeListsHoldTheSizesOfTheirClass() {
    var random = SeededRandom(seed: 1)
    XCTAssertEqual(FreeLists.index(quanta: 0), FreeLists.classes - 1)
    XCTAssertLessThan(FreeLists.index(quanta: UInt64.max), FreeLists.classes - 1)
    for _ in 0..<20_000 {
      let a = max(1, random.next() >> random.below(64))
      let b = max(1, random.next() >> random.below(64))
      if a <= b { XCTAssertLessThanOrEqual(FreeLists.index(quanta: a), FreeLists.index(quanta: b)) }
      if FreeLists.index(quanta: b) >= FreeLists.sufficient(quanta: a) { XCTAssertGreaterThanOrEqual(b, a) }
    }
    for log in UInt64(0)..<64 {
      let power = UInt64(1) << log
      XCTAssertEqual(FreeLists.sufficient(quanta: power), FreeLists.index(quanta: power))
    }
  }

  func testAFreeCoalescesWithBothNeighbours() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    try arena.add(100...399)
    let segments = (0..<3).map { _ in arena.alloc(100)! }
    XCTAssertEqual(segments, [100, 200, 300])
    arena.free(100, 100)
    arena.free(300, 100)
    bench.check()
    XCTAssertEqual(arena.figures.freeSegments, 2)
    arena.free(200, 100)
    bench.check()
    XCTAssertEqual(arena.segments().map(\.kind), [.addedSpan, .free])
    XCTAssertEqual(arena.size(.largestFree), ArenaSize(300))
  }

  func testBestFitTakesTheSmallestThatFits() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    // Free segments of 300, 280, 260 (one class), 400, with busy segments of 1 between.
    var start: UInt64 = 0
    var holes: [UInt64: UInt64] = [:]
    try arena.add(0...2000)
    for size in [300, 260, 280, 400] as [UInt64] {
      holes[size] = arena.alloc(size)
      _ = arena.alloc(1)
      start += size + 1
    }
    _ = arena.alloc(2001 - start)
    for (size, address) in holes { arena.free(address, size) }
    XCTAssertEqual(arena.alloc(259, .bestFit), holes[260])
    XCTAssertEqual(arena.alloc(270, .bestFit), holes[280])
    XCTAssertEqual(arena.alloc(290, .bestFit), holes[300])
    XCTAssertEqual(arena.alloc(290, .bestFit), holes[400])
    XCTAssertNil(arena.alloc(290, .bestFit))
    bench.check()
  }

  func testNetBSDsSpansAndEdgesPass() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    let top = UInt64.max
    let spans: [ClosedRange<UInt64>] = [
      0...49, 100...299, 2000...2000, 40000...105_535, 10000...19999, 500...1499, (top - 49)...top,
    ]
    for span in spans { try arena.add(span) }
    bench.check()
    XCTAssertEqual(arena.size(.total), ArenaSize(50 + 200 + 1 + 65536 + 10000 + 1000 + 50))
    for policy in [FitPolicy.instantFit, .bestFit] {
      func window(_ size: UInt64, _ low: UInt64, _ high: UInt64) -> UInt64? {
        try? arena.xalloc(
          ArenaSize(size), ArenaConstraints(minimum: ArenaAddress(low), maximum: ArenaAddress(high)),
          policy: policy
        ).rawValue
      }
      XCTAssertNil(window(51, 0, 49))
      XCTAssertNil(window(50, 0, 48))
      XCTAssertNil(window(50, 1, 50))
      XCTAssertEqual(window(50, 0, 49), 0)
      arena.free(0, 50)
      XCTAssertEqual(window(1, 0, 0), 0)
      arena.free(0, 1)
      XCTAssertNil(window(50, top - 48, top))
      XCTAssertNil(window(50, top - 49, top - 1))
      XCTAssertEqual(window(50, top - 49, top), top - 49)
      arena.free(top - 49, 50)
      XCTAssertEqual(window(1, top, top), top)
      arena.free(top, 1)
      XCTAssertEqual(window(1, 2000, 2000), 2000)
      XCTAssertNil(window(1, 2000, 2000))
      arena.free(2000, 1)
      bench.check()
    }
    XCTAssertVmem(.overlaps) { () throws(VmemError) in
      try arena.add(ArenaAddress(299), through: ArenaAddress(301))
    }
    XCTAssertVmem(.overlaps) { () throws(VmemError) in try arena.add(ArenaAddress(0), through: .highest) }
    try arena.add(50...99)
    bench.check()
    // Spans never join.
    XCTAssertNil(try? arena.xalloc(ArenaSize(60), ArenaConstraints(maximum: ArenaAddress(99))))
  }

  func testAnArenaMayHoldAllValues() throws {
    let bench = VmemFixture()
    for quantum in [1, 4096] as [UInt64] {
      let arena = bench.arena(quantum: quantum)
      try arena.add(0...UInt64.max)
      XCTAssertEqual(arena.size(.total), .everything)
      XCTAssertEqual(arena.size(.free), .everything)
      XCTAssertEqual(arena.size(.largestFree), .everything)
      XCTAssertEqual(arena.size(.allocated), .zero)
      let half = UInt64(1) << 63
      XCTAssertEqual(arena.alloc(half), 0)
      XCTAssertEqual(arena.size(.free), ArenaSize(half))
      XCTAssertEqual(arena.alloc(half), half)
      XCTAssertEqual(arena.size(.allocated), .everything)
      XCTAssertEqual(arena.size(.free), .zero)
      XCTAssertEqual(arena.size(.largestFree), .zero)
      bench.check()
      arena.free(half, half)
      let top = try arena.xalloc(
        ArenaSize(quantum), ArenaConstraints(minimum: ArenaAddress(UInt64.max - quantum + 1)))
      XCTAssertEqual(top.rawValue, UInt64.max - quantum + 1)
      arena.free(top.rawValue, quantum)
      arena.free(0, half)
      bench.check()
      XCTAssertEqual(arena.size(.free), .everything)
    }
  }

  func testAligningAtTheTopDoesNotWrap() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    try arena.add((UInt64.max - 99)...UInt64.max)
    XCTAssertVmem(.noSpace) { () throws(VmemError) in
      try arena.xalloc(ArenaSize(10), ArenaConstraints(alignment: Alignment(256)!))
    }
    XCTAssertVmem(.noSpace) { () throws(VmemError) in
      try arena.xalloc(ArenaSize(10), ArenaConstraints(alignment: Alignment(1 << 63)!))
    }
    let phased = try arena.xalloc(
      ArenaSize(10), ArenaConstraints(alignment: Alignment(256)!, phase: ArenaSize(246)))
    XCTAssertEqual(phased.rawValue, UInt64.max - 9)
    XCTAssertVmem(.noSpace) { () throws(VmemError) in try arena.alloc(.everything) }
    bench.check()
  }

  func testImpossibleRequestsAreRefused() throws {
    let bench = VmemFixture()
    let arena = bench.arena(quantum: 16)
    try arena.add(0...0xffff)
    let bad: [(UInt64, ArenaConstraints)] = [
      (0, ArenaConstraints()),
      (16, ArenaConstraints(alignment: Alignment(64)!, phase: ArenaSize(64))),
      (16, ArenaConstraints(alignment: Alignment(64)!, phase: ArenaSize(8))),
      (16, ArenaConstraints(phase: ArenaSize(16))),
      (65, ArenaConstraints(nocross: Alignment(64)!)),
      (32, ArenaConstraints(alignment: Alignment(64)!, phase: ArenaSize(48), nocross: Alignment(64)!)),
      (32, ArenaConstraints(alignment: Alignment(256)!, phase: ArenaSize(112), nocross: Alignment(64)!)),
      (16, ArenaConstraints(nocross: Alignment(8)!)),
      (16, ArenaConstraints(minimum: ArenaAddress(32), maximum: ArenaAddress(31))),
    ]
    for (size, constraints) in bad {
      XCTAssertVmem(.badConstraint) { () throws(VmemError) in try arena.xalloc(ArenaSize(size), constraints) }
    }
    XCTAssertVmem(.badConstraint) { () throws(VmemError) in
      try arena.add(ArenaAddress(0x10008), through: ArenaAddress(0x1ffff))
    }
    XCTAssertVmem(.badConstraint) { () throws(VmemError) in
      try arena.add(ArenaAddress(0x10000), through: ArenaAddress(0x10010))
    }
    XCTAssertVmem(.badConstraint) { () throws(VmemError) in try arena.add(ArenaAddress(16), .zero) }
    bench.check()
  }

  func testIdentifiersNeedNoMemoryOfTheirOwn() throws {
    let bench = VmemFixture()
    let arena = bench.arena("process numbers", contents: .identifiers)
    try arena.add(1...99_999)
    XCTAssertEqual(arena.alloc(1), 1)
    XCTAssertEqual(arena.alloc(1), 2)
    let faults = bench.host.faults { arena.free(77, 1) }
    XCTAssertEqual(faults.map(\.place), [.identifier])
    arena.free(1, 1)
    arena.free(2, 1)
    arena.destroy()
    bench.check()
    XCTAssertEqual(bench.tags.figures.free, bench.tags.figures.total)
  }

  func testAFindNamesTheSegment() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    try arena.add(0...9999)
    try arena.add(20000...29999)
    let site = CallSite(rawValue: 0x1234)
    let address = try arena.alloc(ArenaSize(100), at: site)
    let inside = arena.find(ArenaAddress(address.rawValue + 50))
    XCTAssertEqual(inside?.first, address)
    XCTAssertEqual(inside?.size, ArenaSize(100))
    XCTAssertEqual(inside?.allocatedAt, site)
    XCTAssertEqual(arena.find(address)?.kind, .busy)
    XCTAssertEqual(arena.find(ArenaAddress(25000))?.kind, .free)
    XCTAssertNil(arena.find(ArenaAddress(15000)))
  }
}
