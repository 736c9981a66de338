import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Vmem

final class ArenaImportTests: XCTestCase {
  func testAMissingSpanIsImportedAndGoesBack() throws {
    let bench = VmemFixture()
    let parent = bench.arena("parent", quantum: 4096)
    try parent.add(0...0xff_ffff)
    let child = bench.arena("child", quantum: 4096, source: .arena(parent), importUnit: 0x10000)
    let segment = child.alloc(4096)!
    XCTAssertEqual(parent.size(.allocated), ArenaSize(0x10000))
    XCTAssertEqual(child.size(.free), ArenaSize(0xf000))
    let second = child.alloc(4096)!
    XCTAssertEqual(child.figures.imports, 1)
    child.free(segment, 4096)
    bench.check()
    XCTAssertEqual(parent.size(.allocated), ArenaSize(0x10000))
    child.free(second, 4096)
    bench.check()
    XCTAssertEqual(parent.size(.allocated), .zero)
    XCTAssertEqual(child.size(.total), .zero)
    XCTAssertEqual(child.figures.releases, 1)
  }

  func testTheUnitOfImportIsAPreferenceOnly() throws {
    let bench = VmemFixture()
    let parent = bench.arena("parent")
    try parent.add(0...9)
    let child = bench.arena("child", source: .arena(parent), importUnit: 64)
    XCTAssertEqual(child.alloc(10), 0)
    XCTAssertVmem(.noSpace) { () throws(VmemError) in try child.alloc(ArenaSize(1)) }
    child.free(0, 10)
    bench.check()
  }

  func testAnImportHonoursTheConstraintsThatCausedIt() throws {
    let bench = VmemFixture()
    let parent = bench.arena("parent", quantum: 16)
    try parent.add(0x30...0xffff)
    let child = bench.arena("child", quantum: 16, source: .arena(parent), importUnit: 0x400)
    let place = try child.xalloc(
      ArenaSize(0x60),
      ArenaConstraints(
        alignment: Alignment(0x100)!, phase: ArenaSize(0x90), nocross: Alignment(0x100)!,
        minimum: ArenaAddress(0x2345), maximum: ArenaAddress(0x24ef)))
    XCTAssertEqual(place.rawValue, 0x2390)
    XCTAssertEqual(parent.size(.allocated), ArenaSize(0x60))
    child.xfree(place, ArenaSize(0x60))
    XCTAssertEqual(parent.size(.allocated), .zero)
    bench.check()
  }

  func testASourceMayHaveACoarserQuantum() throws {
    let bench = VmemFixture()
    let parent = bench.arena("pages", quantum: 4096)
    try parent.add(0...0xf_ffff)
    let child = bench.arena("words", quantum: 8, source: .arena(parent))
    var random = SeededRandom(seed: historySeed(11))
    var live: [(ArenaAddress, UInt64)] = []
    for _ in 0..<500 {
      let size = 1 + random.below(6000)
      let alignment = UInt64(1) << random.below(15)
      let phase = alignment > 8 ? random.below(alignment / 8) * 8 : 0
      let minimum = random.below(0x10_0000)
      let wish = ArenaConstraints(
        alignment: Alignment(alignment)!, phase: ArenaSize(phase),
        nocross: random.oneIn(3) ? Alignment(1 << (3 + random.below(15))) : nil,
        minimum: ArenaAddress(random.oneIn(2) ? minimum : 0), maximum: ArenaAddress(0xf_ffff))
      if let place = try? child.xalloc(ArenaSize(size), wish) {
        XCTAssertTrue(ArenaModel.satisfies(UInt128(place.rawValue), UInt128(size), wish), "\(wish) \(place)")
        live.append((place, size))
      }
      bench.check()
      if live.count > 20 || random.oneIn(3), let index = live.indices.randomElement(using: &random) {
        let (place, size) = live.remove(at: index)
        child.xfree(place, ArenaSize(size))
      }
    }
    for (place, size) in live { child.xfree(place, ArenaSize(size)) }
    bench.check()
    XCTAssertEqual(parent.size(.allocated), .zero)
  }

  /// A source that misbehaves as asked.
  final class Source {
    var given: ClosedRange<UInt64>?
    var back: [ClosedRange<UInt64>] = []
    var asked: [ImportRequest] = []
    var duringImport: () -> Void = {}

    var source: ArenaSource {
      ArenaSource(
        Unmanaged.passUnretained(self).toOpaque(),
        importSpan: { context, request in
          let me = Unmanaged<Source>.fromOpaque(context!).takeUnretainedValue()
          let request = request.assumingMemoryBound(to: ImportRequest.self)
          me.asked.append(request.pointee)
          me.duringImport()
          guard let given = me.given else { return false }
          request.pointee.first = ArenaAddress(given.lowerBound)
          request.pointee.last = ArenaAddress(given.upperBound)
          return true
        },
        releaseSpan: { context, first, last in
          Unmanaged<Source>.fromOpaque(context!).takeUnretainedValue().back.append(first...last)
        })
    }
  }

  func testAnImportThatCannotServeTheRequestGoesBack() throws {
    let bench = VmemFixture()
    let source = Source()
    let arena = bench.arena(quantum: 16, source: source.source)
    for useless in [0...15, 8...71, 0x1000...0x103e] as [ClosedRange<UInt64>] {
      source.given = useless
      source.back = []
      XCTAssertVmem(.noSpace) { () throws(VmemError) in try arena.alloc(ArenaSize(48)) }
      XCTAssertEqual(source.back, [useless])
      XCTAssertEqual(arena.size(.total), .zero)
      bench.check()
    }
  }

  func testSpaceThatComesUpDuringAnImportIsUsedAndTheImportGoesBack() throws {
    let bench = VmemFixture()
    let source = Source()
    let arena = bench.arena(source: source.source)
    try arena.add(0...99)
    let all = arena.alloc(100)!
    source.given = 1000...1999
    source.duringImport = { arena.free(all, 100) }
    XCTAssertEqual(arena.alloc(50), 0)
    XCTAssertEqual(source.back, [1000...1999])
    XCTAssertEqual(arena.figures.imports, 0)
    bench.check()
    // And space that comes up while an import fails.
    source.given = nil
    source.duringImport = { arena.free(0, 50) }
    XCTAssertEqual(arena.alloc(80), 0)
    bench.check()
    source.duringImport = {}
    // The part of a span beyond the request stays as free space.
    source.given = 5000...5999
    XCTAssertEqual(arena.alloc(200), 5000)
    XCTAssertEqual(arena.size(.total), ArenaSize(1100))
    bench.check()
  }

  func testAWindowOrTheFullRangeIsPassedToTheSource() throws {
    let bench = VmemFixture()
    let source = Source()
    let arena = bench.arena(quantum: 4096, source: source.source, importUnit: 1 << 20)
    source.given = (UInt64.max - 0xfff)...UInt64.max
    XCTAssertEqual(arena.alloc(1), UInt64.max - 0xfff)
    XCTAssertEqual(source.asked.map(\.size), [ArenaSize(1 << 20)])
    arena.free(UInt64.max - 0xfff, 1)
    XCTAssertEqual(source.back, [source.given!])
    bench.check()
  }
}
