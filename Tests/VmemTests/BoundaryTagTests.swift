import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Vmem

/// An arena with two spans, and a child that imports from it. Each damage of their state must be reported by the number of
/// the invariant that it breaks.
private final class DamagedArenas {
  private let bench = VmemFixture()
  private let arena: Arena
  private let child: Arena
  private let imported: UInt64
  private let segments: [UInt64]
  private let core: UnsafeMutablePointer<ArenaCore>
  private let pool: UnsafeMutablePointer<TagPool>
  /// A busy segment, a free one, and the spans.
  private let busy: UnsafeMutablePointer<Tag>
  private let free: UnsafeMutablePointer<Tag>
  private let span: UnsafeMutablePointer<Tag>
  private let second: UnsafeMutablePointer<Tag>

  private var links: TagLinks { core.pointee.links }

  init() throws {
    arena = bench.arena(quantum: 16)
    try arena.add(0...0xffff)
    try arena.add(0x20000...0x2ffff)
    let arena = arena
    segments = (0..<40).map { _ in arena.alloc(32)! }
    for segment in segments.prefix(20) where segment % 64 == 0 { arena.free(segment, 32) }
    child = bench.arena("child", quantum: 16, source: .arena(arena))
    imported = child.alloc(64)!
    bench.check()
    core = arena.state.core.quiet
    pool = bench.tags.state.pool.quiet
    let links = core.pointee.links
    busy = links[core.pointee.hash.find(segments[39])]
    span = links[core.pointee.firstSpan]
    second = links[span.next]
    free = links[core.pointee.lists.head[2]]
  }

  private func breaks(_ number: Int, _ damage: () -> Void, _ repair: () -> Void, line: UInt = #line) {
    damage()
    let broken = bench.tags.checkInvariants().map { "\($0)" } ?? "none"
    XCTAssertTrue(broken.hasPrefix("VM-\(number): "), broken, line: line)
    // The first check may have left marks behind; they go with a tag that is whole again.
    repair()
    core.pointee.forEachTag { $0.isMarked = false }
    child.state.core.quiet.pointee.forEachTag { $0.isMarked = false }
    if let broken = bench.tags.checkInvariants() { XCTFail("\(broken)", line: line) }
  }

  func breakSegments() {
    breaks(1, { busy.last -= 16 }, { busy.last += 16 })
    breaks(1, { busy.kind = .unused }, { busy.kind = .busy })
    breaks(1, { free.kind = .added }, { free.kind = .free })
    // Of the two neighbours of a free segment, one is called free too.
    let neighbour = links[free.nextSegment]
    breaks(2, { neighbour.kind = .free }, { neighbour.kind = .busy })
  }

  func breakSpans() {
    breaks(1, { span.last += 16 }, { span.last -= 16 })
    let end = links[second.nextSegment]
    breaks(
      2,
      {
        second.pointee.start = 0xfff0
        end.pointee.start = 0xfff0
        core.pointee.total += 0x10010
      },
      {
        second.pointee.start = 0x20000
        end.pointee.start = 0x20000
        core.pointee.total -= 0x10010
      })
    // The end of the last segment and of its span move together, so the segments still tile it.
    breaks(
      3,
      {
        second.last += 8
        end.last += 8
      },
      {
        second.last -= 8
        end.last -= 8
      })
  }

  func breakListsAndHash() {
    let next = free.next
    breaks(4, { core.pointee.lists.words[1] ^= 2 }, { core.pointee.lists.words[1] ^= 2 })
    breaks(4, { core.pointee.lists.summary ^= 4 }, { core.pointee.lists.summary ^= 4 })
    breaks(4, { free.next = .none }, { free.next = next })
    let position = core.pointee.hash.findForRemoval(segments[39])!
    breaks(
      5,
      {
        core.pointee.hash.remove(position)
        core.pointee.hash.count += 1
      },
      {
        core.pointee.hash.count -= 1
        core.pointee.hash.insert(position.link)
      })
  }

  func breakCounts() {
    breaks(6, { core.pointee.allocated += 16 }, { core.pointee.allocated -= 16 })
    breaks(6, { core.pointee.total += 16 }, { core.pointee.total -= 16 })
    breaks(6, { core.pointee.spans += 1 }, { core.pointee.spans -= 1 })
    breaks(6, { core.pointee.lists.count += 1 }, { core.pointee.lists.count -= 1 })
    breaks(6, { core.pointee.hash.count += 1 }, { core.pointee.hash.count -= 1 })
    _ = arena.size(.largestFree)
    breaks(6, { core.pointee.lists.largest -= 16 }, { core.pointee.lists.largest += 16 })
  }

  /// Calls an added span whose one segment is free an imported one, which breaks no other invariant.
  func breakImports() throws {
    let spare = bench.arena("spare", quantum: 16)
    try spare.add(0...0xff)
    let spareCore = spare.state.core.quiet
    let spareSpan = spareCore.pointee.links[spareCore.pointee.firstSpan]
    breaks(
      7, { spareSpan.kind = .imported },
      {
        spareSpan.kind = .added
        spareCore.pointee.forEachTag { $0.isMarked = false }
      })
  }

  func breakTagCounts() {
    breaks(8, { core.pointee.spares.hidden += 1 }, { core.pointee.spares.hidden -= 1 })
    breaks(8, { core.pointee.spares.count += 1 }, { core.pointee.spares.count -= 1 })
    breaks(8, { pool.pointee.free -= 1 }, { pool.pointee.free += 1 })
  }

  func leaveWalker() {
    var walker = ArenaCore.Walker()
    withUnsafeMutablePointer(to: &walker) { walker in
      breaks(9, { core.pointee.register(walker) }, { core.pointee.unregister(walker) })
    }
  }

  func finish() {
    child.free(imported, 64)
    bench.check()
  }
}

final class BoundaryTagTests: XCTestCase {
  /// FreeBSD bug 235747: tags secured for an import stayed hidden when the import failed, until none were
  /// left.
  func testTagsComeBackWhenAnImportFails() throws {
    let bench = VmemFixture()
    bench.pageLimit = 0
    let parent = bench.arena("parent")
    let child = bench.arena("child", source: .arena(parent))
    try parent.add(0...9)
    for policy in [FitPolicy.instantFit, .bestFit] {
      for _ in 0..<1000 {
        XCTAssertVmem(.noSpace) { () throws(VmemError) in try child.alloc(ArenaSize(11), policy: policy) }
        bench.check()
      }
    }
    XCTAssertEqual(child.alloc(10), 0)
    XCTAssertVmem(.noSpace) { () throws(VmemError) in
      try child.xalloc(ArenaSize(1), ArenaConstraints(minimum: ArenaAddress(5)))
    }
    child.free(0, 10)
    bench.check()
  }

  func testStaticTagsServeUntilTheyAreExhausted() throws {
    let bench = VmemFixture()
    bench.pageLimit = 0
    let arena = bench.arena()
    try arena.add(0...9999)
    var segments: [UInt64] = []
    while true {
      do throws(VmemError) {
        segments.append(try arena.alloc(ArenaSize(1)).rawValue)
      } catch {
        XCTAssertEqual(error, .noTags)
        break
      }
    }
    XCTAssertGreaterThan(segments.count, 100)
    XCTAssertEqual(bench.tags.figures.total, 127)
    XCTAssertEqual(arena.figures.failed, 1)
    bench.check()
    // A free needs no tag.
    for segment in segments where segment % 2 == 0 { arena.free(segment, 1) }
    bench.check()
    for segment in segments where segment % 2 == 1 { arena.free(segment, 1) }
    bench.check()
    XCTAssertEqual(arena.figures.freeSegments, 1)
  }

  func testPagesOfTagsAndOfTheHashGoBack() throws {
    let bench = VmemFixture()
    let arena = bench.arena()
    try arena.add(0...UInt64.max)
    var random = SeededRandom(seed: historySeed(3))
    var segments = (0..<40_000).map { _ in arena.alloc(1 + random.below(9))! }
    XCTAssertGreaterThan(bench.pagesOut, 300)
    XCTAssertGreaterThan(arena.figures.hashPages, 30)
    bench.check()
    let sizes = Dictionary(
      uniqueKeysWithValues: arena.segments().filter { $0.kind == .busy }.map {
        ($0.first.rawValue, $0.size.rawValue)
      })
    segments.shuffle(using: &random)
    for (n, segment) in segments.enumerated() {
      arena.free(segment, sizes[segment]!)
      if n % 1000 == 0 { bench.check() }
    }
    bench.check()
    XCTAssertEqual(arena.figures.hashPages, 0)
    // Each tag that the arena still has may keep a page.
    XCTAssertLessThanOrEqual(bench.pagesOut, Int(2 + arena.figures.spareTags) + 1)
    arena.destroy()
    bench.check()
    XCTAssertLessThanOrEqual(bench.pagesOut, 1)
  }

  func testAHashThatGetsNoPageIsSlowerButRight() throws {
    let bench = VmemFixture(staticPages: 40)
    bench.pageLimit = 0
    let arena = bench.arena()
    try arena.add(0...99_999)
    let segments = (0..<4000).map { _ in arena.alloc(1)! }
    XCTAssertEqual(arena.figures.hashPages, 0)
    bench.check()
    bench.pageLimit = 100
    let more = (0..<900).map { _ in arena.alloc(1)! }
    XCTAssertGreaterThan(arena.figures.hashPages, 0)
    bench.check()
    for segment in segments + more { arena.free(segment, 1) }
    bench.check()
    XCTAssertEqual(bench.pagesOut, Int(bench.tags.figures.pages.rawValue - 40))
  }

  /// A page came for the next bucket, and that bucket was not needed any more.
  func testAPageThatTheHashDidNotNeedGoesBack() throws {
    let bench = VmemFixture(staticPages: 2)
    let arena = bench.arena()
    try arena.add(0...999)
    let segments = (0..<17).map { _ in arena.alloc(1)! }
    XCTAssertEqual(arena.figures.hashPages, 1)
    for segment in segments { arena.free(segment, 1) }
    arena.destroy()
    bench.check()
    XCTAssertEqual(bench.tags.figures.hashPages, .zero)
    XCTAssertEqual(bench.pagesOut, 0)
  }

  /// A directory came, and then there was no page to be named in it.
  func testADirectoryWithoutPagesGoesBack() throws {
    let bench = VmemFixture(staticPages: 70)
    let arena = bench.arena()
    try arena.add(0...99_999)
    var segments = (0..<8192).map { _ in arena.alloc(1)! }
    XCTAssertEqual(arena.figures.hashPages, 8)
    XCTAssertEqual(bench.pagesOut, 8)
    bench.pageLimit = 9
    segments += (0..<8).map { _ in arena.alloc(1)! }
    XCTAssertEqual(arena.figures.hashPages, 9)
    bench.check()
    for segment in segments { arena.free(segment, 1) }
    bench.check()
    arena.destroy()
    bench.check()
    XCTAssertEqual(bench.tags.figures.hashPages, .zero)
    XCTAssertEqual(bench.pagesOut, 0)
  }

  func testAPageOutOfReachGoesBackAtOnce() throws {
    let links = TagLinks(base: 0x1000)
    func page(_ address: UInt64) -> UnsafeMutableRawPointer {
      UnsafeMutableRawPointer(bitPattern: UInt(address))!
    }
    XCTAssertFalse(links.reaches(pageAt: page(0x1000)))
    XCTAssertTrue(links.reaches(pageAt: page(0x2000)))
    XCTAssertFalse(links.reaches(pageAt: page(0x2020)))
    XCTAssertTrue(links.reaches(pageAt: page(0x1000 + (32 << 30) - 4096)))
    XCTAssertFalse(links.reaches(pageAt: page(0x1000 + (32 << 30))))
    XCTAssertEqual(links.link(page(0x1000 + (32 << 30) - 32)), Link(0x3fff_ffff))
  }

  func testTheCheckReportsEachBrokenInvariant() throws {
    let damaged = try DamagedArenas()
    damaged.breakSegments()
    damaged.breakSpans()
    damaged.breakListsAndHash()
    damaged.breakCounts()
    try damaged.breakImports()
    damaged.breakTagCounts()
    damaged.leaveWalker()
    damaged.finish()
  }

  func testStatisticsAreSums() throws {
    let bench = VmemFixture()
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Statistics.size(capacity: 32).rawValue), alignment: 64)
    defer { memory.deallocate() }
    let statistics = Statistics(memory, capacity: 32)
    bench.tags.register(in: statistics)
    let parent = bench.arena("parent")
    let child = bench.arena("child", source: .arena(parent))
    try parent.add(0...999)
    let segment = child.alloc(10)!
    XCTAssertNil(child.alloc(2000))
    func value(_ name: String) -> UInt64? {
      (0..<statistics.count).map { statistics[$0] }.first { "\($0.name)" == name }?.value
    }
    XCTAssertEqual(value("vmem.arenas"), 2)
    XCTAssertEqual(value("vmem.allocations"), 2)
    XCTAssertEqual(value("vmem.failed"), 2)
    XCTAssertEqual(value("vmem.imports"), 1)
    XCTAssertEqual(value("vmem.segments"), 3)
    XCTAssertEqual(value("vmem.tags.total"), 127)
    child.free(segment, 10)
    XCTAssertEqual(value("vmem.releases"), 1)
    XCTAssertEqual(value("vmem.frees"), 2)
    XCTAssertEqual(value("vmem.segments"), 1)
    child.destroy()
    XCTAssertEqual(value("vmem.arenas"), 1)
    parent.destroy()
    XCTAssertEqual(value("vmem.tags.free"), 127)
  }
}

extension ArenaCore {
  func forEachTag(_ visit: (TagPointer) -> Void) {
    var span = firstSpan
    while span != .none {
      var segment = links[span].nextSegment
      while segment != .none {
        visit(links[segment])
        segment = links[segment].nextSegment
      }
      span = links[span].next
    }
  }
}
