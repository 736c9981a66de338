import ContiguousMemory
import Foundation
import HostMachine
import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory
import TestSupport
import Workloads
import XCTest
import Zsmalloc

/// The operations of Documentation/WhenMemoryIsGone.md, each on a machine without a frame.
final class WhenMemoryIsGoneTests: XCTestCase {
  /// The cells of the table's row that begins with `operation`.
  private func row(_ operation: String) throws -> [String] {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let text = try String(
      contentsOf: root.appendingPathComponent("Documentation/WhenMemoryIsGone.md"), encoding: .utf8)
    let rows = text.split(separator: "\n").filter { $0.hasPrefix("| ") }.map {
      $0.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
    }
    return try XCTUnwrap(rows.first { $0[0] == operation }, "no row \(operation)")
  }

  private func number(_ operation: String) throws -> Int { try XCTUnwrap(Int(try row(operation)[2])) }

  /// All frames that are free, cached or kept by owners.
  private func exhaust(_ system: TestSystem) -> [FrameNumber] {
    var frames: [FrameNumber] = []
    for _ in 0..<2 {
      while let frame = try? system.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
        frames.append(frame)
      }
      system.kmem.drain()
    }
    XCTAssertEqual(system.physical.freeCount, .zero)
    return frames
  }

  private func end(_ system: TestSystem, _ frames: [FrameNumber]) {
    for frame in frames { system.physical.free(frame, BlockOrder(0)) }
    XCTAssertNil(system.memory.checkInvariants())
  }

  func testAPageWindowOpensWithoutAFrame() throws {
    XCTAssertEqual(try row("open a page window")[2], "all")
    let system = try TestSystem(frames: 3000)
    let frames = exhaust(system)
    for (number, frame) in frames.enumerated() { system.words(frame)[511] = UInt64(number) }
    system.host.failures.pointee.countdown = 0
    for (number, frame) in frames.enumerated() {
      let word = system.memory.pageTables.windows.withBytes(of: frames[0], frame, at: 8184, count: 8) {
        $0.load(as: UInt64.self)
      }
      XCTAssertEqual(word, UInt64(number))
    }
    XCTAssertFalse(system.host.failures.pointee.hasFailed, "an allocation point was passed")
    system.host.failures.pointee.countdown = -1
    end(system, frames)
  }

  func testRangesAreMappedFromTheDemand() throws {
    let system = try TestSystem(frames: 3000)
    let paging = system.paging
    let object = try paging.createObject(ShortName("kept"), PageCount(1))
    let first = try paging.map(object, count: .one)
    let frames = exhaust(system)
    var ranges = [first]
    // Entries beyond the demand are for all.
    while let range = try? paging.map(object, count: .one) { ranges.append(range) }
    let before = ranges.count
    XCTAssertThrowsError(try paging.map(object, count: .one)) {
      XCTAssertEqual($0 as? PagingError, .noMemory)
    }
    XCTAssertEqual(ranges.count - before, try number("map a range, at normal priority"))
    while let range = try? paging.map(object, count: .one, priority: .system) { ranges.append(range) }
    XCTAssertEqual(ranges.count - before, try number("map a range, at system priority"))
    XCTAssertThrowsError(try paging.map(object, count: .one, priority: .system)) {
      XCTAssertEqual($0 as? PagingError, .noMemory)
    }
    XCTAssertNil(system.memory.checkInvariants())
    // Unmapping allocates nothing, and the entries can be used again.
    for range in ranges.dropFirst() { paging.unmap(range, .one) }
    let again = try paging.map(object, count: .one, priority: .system)
    paging.unmap(again, .one)
    paging.unmap(first, .one)
    paging.destroy(object)
    end(system, frames)
  }

  func testWhatNeedsFramesIsRefusedAndChangesNothing() throws {
    let system = try TestSystem(frames: 3000)
    let type = system.kmem.type(named: ShortName("gone"))
    let frames = exhaust(system)
    XCTAssertEqual(try number("create an object"), 0)
    XCTAssertThrowsError(try system.paging.createObject(ShortName("no"), .one)) {
      XCTAssertEqual($0 as? PagingError, .noMemory)
    }
    XCTAssertEqual(try number("allocate an object of kmem at any priority"), 0)
    for priority in [AllocationPriority.normal, .system, .interrupt] {
      for size in [1, 64, 500, 4096, 6000, 50_000] {
        XCTAssertNil(system.kmem.alloc(ByteCount(size), type: type, priority: priority))
      }
    }
    XCTAssertNil(system.kmem.alloc(ByteCount(64), type: type, wait: .allowed), "no thread can free any")
    XCTAssertEqual(try number("allocate contiguous memory"), 0)
    XCTAssertThrowsError(try system.contiguous.allocContig(ContiguousRequest(.one)))
    end(system, frames)
  }

  /// Pages are written out and brought in, unmapped, wired and destroyed without a free frame beforehand.
  func testPagesAreWrittenOutAndBroughtIn() throws {
    let system = try TestSystem(frames: 3000, swap: 4096)
    let area = try system.area(1000)
    system.setTarget(0)
    for page in 0..<area.count { try system.write(area, page, page + 1) }
    let frames = exhaust(system)
    // Half of the pages must go before the others can come back.
    let outcome = system.paging.reclaim(until: PageCount(500), writing: PageCount(500))
    XCTAssertEqual(outcome.written, PageCount(500))
    var taken: [FrameNumber] = []
    while let frame = try? system.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      taken.append(frame)
    }
    for page in 0..<area.count { XCTAssertTrue(try system.holds(area, page, page + 1)) }
    try system.paging.wire(area[0], PageCount(10), holes: .forbidden)
    system.paging.unwire(area[0], PageCount(10))
    system.release(area)
    end(system, frames + taken)
  }

  func testTheCompressedStoreServesThePagesThatItHas() throws {
    XCTAssertEqual(try row("load, free or compact pages of the compressed store")[2], "all")
    let operation = "store a page in the compressed store"
    XCTAssertEqual(try row(operation)[3], "`\(ZsmallocError.noMemory)`")
    let system = try TestSystem(frames: 3000)
    let pages = system.memory.compressed
    let buffers = try XCTUnwrap(PageBuffers(system.memory, waitUntil: .never))
    func fill(_ number: Int) {
      var random = SeededRandom(seed: UInt64(number))
      for i in 0..<512 { buffers.words[i] = i < number % 400 + 20 ? random.next() : 7 }
    }
    func store(_ number: Int) throws -> CompressedPage {
      fill(number)
      return try pages.store(buffers.page, using: buffers.workspace)
    }
    var stored = try (0..<500).map { ($0, try store($0)) }
    let frames = exhaust(system)
    XCTAssertThrowsError(try { while true { stored.append((stored.count, try store(stored.count))) } }()) {
      XCTAssertEqual($0 as? ZsmallocError, .noMemory)
    }
    XCTAssertLessThan(stored.count, 600, "the store has found frames")
    // Three of four pages are freed, the rest is compacted.
    for (number, page) in stored where number % 4 != 0 { pages.free(page) }
    stored.removeAll { $0.0 % 4 != 0 }
    let held = pages.figures.frames
    pages.store.compact()
    XCTAssertLessThan(pages.figures.frames, held)
    for (number, page) in stored {
      fill(number)
      try pages.load(page, into: buffers.loaded)
      XCTAssertTrue(buffers.areEqual, "page \(number)")
      pages.free(page)
    }
    XCTAssertEqual(pages.figures.frames, .zero)
    buffers.release(system.memory)
    end(system, frames)
  }

  /// The machine's own self-test carries it out.
  func testTheTableSaysHowManyThreadsStart() throws {
    XCTAssertEqual(try number("start a thread of the kernel"), Machine.threadsWithoutMemory)
  }

  func testWhatFreesAllocatesNothing() throws {
    let system = try TestSystem(frames: 3000)
    let type = system.kmem.type(named: ShortName("gone"))
    let objects = (0..<500).map { system.kmem.alloc(ByteCount(8 + $0 % 40 * 100), type: type)! }
    let large = try XCTUnwrap(system.kmem.alloc(ByteCount(50_000), type: type))
    let run = try system.contiguous.contigmalloc(ByteCount(100_000), type: type)
    let block = try system.physical.allocate(BlockOrder(5), role: .wired)
    let frames = exhaust(system)
    for (i, object) in objects.enumerated() {
      system.kmem.free(object, size: ByteCount(8 + i % 40 * 100), type: type)
    }
    system.kmem.free(large, size: ByteCount(50_000), type: type)
    system.contiguous.contigfree(run.address, size: ByteCount(100_000), type: type)
    system.physical.free(block, BlockOrder(5))
    XCTAssertEqual(system.kmem.describe(type).inUse, 0)
    end(system, frames)
  }
}
