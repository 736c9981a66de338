import HostMachine
import MemoryPrimitives
import XCTest

@testable import Vmem

final class VmemFaultReportTests: XCTestCase {
  func testEachFaultIsReportedAndChangesNothing() throws {
    let bench = VmemFixture()
    let arena = bench.arena("faulty", quantum: 16)
    try arena.add(0...0xfff)
    let site = CallSite(rawValue: 0x77)
    let address = try arena.alloc(ArenaSize(64), at: site)
    let freed = arena.alloc(64)!
    let kept = arena.alloc(64)!
    arena.free(freed, 64)
    let before = bench.snapshot()
    let figures = arena.figures

    func drive(_ kind: FaultKind, _ body: () -> Void, line: UInt = #line) -> FaultReport? {
      let faults = bench.host.faults(in: body)
      XCTAssertEqual(faults.map(\.kind), [kind], line: line)
      XCTAssertEqual(faults.first?.owner, ShortName("faulty"), line: line)
      XCTAssertEqual(bench.snapshot(), before, line: line)
      bench.check(line: line)
      return faults.first
    }

    let double = drive(.doubleFree) { arena.free(freed, 64) }
    XCTAssertEqual(double?.subject, freed)
    let wrong = drive(.wrongSize) { arena.free(address, ArenaSize(80)) }
    XCTAssertEqual(wrong?.given, 80)
    XCTAssertEqual(wrong?.expected, 64)
    XCTAssertEqual(wrong?.allocatedAt, site)
    _ = drive(.wrongSize) { arena.free(address, .zero) }
    _ = drive(.foreignPointer) { arena.free(0x5000, 64) }
    let inside = drive(.notAllocated) { arena.xfree(ArenaAddress(address.rawValue + 16), ArenaSize(48)) }
    XCTAssertEqual(inside?.expected, address.rawValue)
    XCTAssertEqual(inside?.allocatedAt, site)
    let leak = drive(.leak) { arena.destroy() }
    XCTAssertEqual(leak?.given, 2)
    XCTAssertEqual(leak?.subject, address.rawValue)
    XCTAssertEqual(leak?.allocatedAt, site)
    XCTAssertEqual(arena.figures.frees, figures.frees)

    arena.free(address, ArenaSize(64))
    arena.free(kept, 64)
    XCTAssertEqual(arena.segments().map(\.kind), [.addedSpan, .free])
    arena.destroy()
    bench.check()
    XCTAssertEqual(bench.tags.figures.free, bench.tags.figures.total)
  }
}
