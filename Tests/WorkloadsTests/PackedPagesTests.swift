import MemoryPrimitives
import Paging
import TestSupport
import XCTest
import Zsmalloc

@testable import Workloads

/// Packing that ends at any page gives everything back.
final class PackedPagesTests: XCTestCase {
  /// Words that no codec shortens, another for each page.
  private func fill(_ number: UInt64, _ words: UnsafeMutablePointer<UInt64>) {
    var random = SeededRandom(seed: number)
    for i in 0..<512 { words[i] = random.next() }
  }

  func testARefusalAtAnyPageLeavesNothing() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let memory = system.memory
    // The list of pages goes on in a new chunk behind page 511.
    for limit in UInt64(506)...524 {
      memory.compressed.store.limit = PageCount(limit)
      do throws(PackFailure) {
        var pages = try PackedPages.pack(
          PageCount(UInt64(600)), on: memory, reading: { fill($0, $1) }, pace: { _ in .goOn })
        XCTFail("\(limit): nothing was refused")
        pages.release(memory)
      } catch {
        guard case .limitReached(let packed) = error else { return XCTFail("\(error)") }
        // Tables and the list take frames as well.
        XCTAssertGreaterThan(packed, limit - 16)
      }
      XCTAssertEqual(memory.compressed.figures.pages, .zero, "\(limit)")
      XCTAssertEqual(memory.compressed.figures.frames, .zero, "\(limit)")
      XCTAssertNil(memory.checkInvariants(), "\(limit)")
    }
    XCTAssertEqual(system.kmem.describe(memory.kmem.type(named: "packed pages")).inUse, 0)
  }

  func testAPageThatCannotBeReadAndAStopGiveBackOrKeep() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let memory = system.memory
    XCTAssertThrowsError(
      try PackedPages.pack(
        PageCount(UInt64(600)), on: memory,
        reading: { (number, words) throws(PagingError) in
          if number == 520 { throw .notPageable }
          fill(number, words)
        }, pace: { _ in .goOn }))
    XCTAssertEqual(memory.compressed.figures.frames, .zero)
    var pages = try PackedPages.pack(
      PageCount(UInt64(600)), on: memory, reading: { fill($0, $1) }, pace: { $0 == 513 ? .stop : .goOn })
    XCTAssertEqual(pages.count, 513)
    XCTAssertEqual(memory.compressed.figures.pages.rawValue, 513)
    pages.release(memory)
    XCTAssertEqual(memory.compressed.figures.frames, .zero)
    XCTAssertNil(memory.checkInvariants())
  }
}
