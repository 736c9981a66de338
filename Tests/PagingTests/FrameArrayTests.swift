import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

@testable import Paging

final class FrameArrayTests: XCTestCase {
  func make<Element>(
    _ bench: SwapFixture, _ count: Int, _ initial: Element
  ) throws(PagingError) -> FrameArray<Element> {
    try FrameArray<Element>(
      count: count, initial: initial, physical: bench.physical, machine: bench.host.machine)
  }

  func fillAndRead<Element: FixedWidthInteger & UnsignedInteger>(
    _ bench: SwapFixture, _ count: Int, _ initial: Element
  ) throws {
    let before = bench.physical.freeCount
    let array = try make(bench, count, initial)
    XCTAssertEqual(bench.physical.count(.paging), array.frameCount, "\(count)")
    XCTAssertEqual(bench.physical.freeCount + array.frameCount, before)
    var seen = 0
    for i in 0..<count where array[i] == initial { seen += 1 }
    XCTAssertEqual(seen, count)
    for i in 0..<count { array[i] = Element(truncatingIfNeeded: i &* 0x1e37_79b9_7f4a_7c15) }
    seen = 0
    for i in 0..<count where array[i] == Element(truncatingIfNeeded: i &* 0x1e37_79b9_7f4a_7c15) { seen += 1 }
    XCTAssertEqual(seen, count)
    // Neighbours of a frame follow each other.
    let inLeaf = 4096 / MemoryLayout<Element>.size
    if count >= inLeaf { XCTAssertEqual(array.pointer(to: inLeaf - 1), array.pointer(to: 0) + (inLeaf - 1)) }
    array.free()
    XCTAssertEqual(bench.physical.freeCount, before)
    bench.check()
  }

  func testAPageWrittenInTheMiddleOfAnyStepKeepsItsContents() throws {
    let bench = try SwapFixture(pages: 1, frames: 4096)
    for count in [1, 2, 511, 512, 513, 1023, 1024, 1025, 100_000, 1 << 20, 1 << 20 + 1, 1 << 21 + 77] {
      try fillAndRead(bench, count, UInt32(7))
    }
    for count in [1, 511, 512, 513, 1024, 1 << 19, 1 << 19 + 1, 1 << 20 + 512] {
      try fillAndRead(bench, count, UInt64.max - 1)
    }
  }

  func testAnAttachThatIsRefusedAnyOfItsFramesLeavesNothing() throws {
    let bench = try SwapFixture(pages: 1, frames: 4096)
    let before = bench.physical.freeCount
    var points = 0
    for count in [1, 5000, 1 << 20 + 3000] {
      let array = try make(bench, count, UInt32(0))
      let frames = Int(array.frameCount.rawValue)
      array.free()
      // Paging's own point and that of PhysicalMemory for each frame.
      for point in stride(from: 0, to: 2 * frames, by: frames > 100 ? 37 : 1) {
        bench.host.failures.pointee.countdown = Int64(point)
        XCTAssertPaging(.noMemory) { () throws(PagingError) in _ = try make(bench, count, UInt32(0)) }
        bench.host.failures.pointee.countdown = -1
        XCTAssertEqual(bench.physical.freeCount, before, "\(count) \(point)")
        XCTAssertEqual(bench.physical.count(.paging), .zero)
        points += 1
      }
      bench.check()
    }
    XCTAssertGreaterThan(points, 50)
  }

  func testAnExhaustedPoolLeavesNothing() throws {
    let bench = try SwapFixture(pages: 1, frames: 600)
    let before = bench.physical.freeCount
    XCTAssertPaging(.noMemory) { () throws(PagingError) in _ = try make(bench, 1 << 20, UInt32(0)) }
    XCTAssertEqual(bench.physical.freeCount, before)
    XCTAssertPaging(.badConstraint) { () throws(PagingError) in _ = try make(bench, 1 << 30 + 1, UInt32(0)) }
    XCTAssertPaging(.badConstraint) { () throws(PagingError) in _ = try make(bench, 1 << 29 + 1, UInt64(0)) }
    XCTAssertEqual(bench.physical.freeCount, before)
    bench.check()
  }
}
