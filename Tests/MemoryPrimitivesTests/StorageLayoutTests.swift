import MemoryPrimitives
import XCTest

final class StorageLayoutTests: XCTestCase {
  func testPartsAreAlignedAndDoNotOverlap() {
    var layout = StorageLayout()
    XCTAssertEqual(layout.size, 0)
    var end = 0
    for (size, alignment) in [
      (1, Alignment.cacheLine), (64, .cacheLine), (3, .byte), (5, .byte), (10, .page),
    ] {
      let offset = layout.add(size, alignedTo: alignment)
      XCTAssertEqual(offset % Int(alignment.rawValue), 0)
      XCTAssertGreaterThanOrEqual(offset, end)
      XCTAssertLessThan(offset - end, Int(alignment.rawValue))
      end = offset + size
    }
    XCTAssertEqual(layout.size.rawValue % 64, 0)
    XCTAssertGreaterThanOrEqual(layout.size, ByteCount(end))
    XCTAssertLessThan(layout.size, ByteCount(end + 64))
  }

  func testATypedPartHoldsAsManyValuesAsItWasAddedFor() {
    var layout = StorageLayout()
    _ = layout.add(ByteCount(1))
    let words = layout.add(UInt64.self, count: 3)
    XCTAssertEqual(words, 64)
    XCTAssertEqual(layout.size, 128)
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 64)
    defer { memory.deallocate() }
    let part = memory.part(UInt64.self, at: words, count: 3)
    part.initialize(repeating: 7, count: 3)
    XCTAssertEqual((memory + 64).load(as: UInt64.self), 7)
    XCTAssertEqual((memory + 80).load(as: UInt64.self), 7)
  }
}
