import HostMachine
import MemoryPrimitives
import XCTest

final class LineTests: XCTestCase {
  func text(_ line: Line) -> String { line.withBytes { String(decoding: $0, as: UTF8.self) } }

  func testNumbersAreFormatted() {
    XCTAssertEqual(
      text("\(count: 1_234_567) and \(hex: 0xffff_8000_0fc9_6c40, digits: 16)"),
      "1,234,567 and 0xffff_8000_0fc9_6c40")
    XCTAssertEqual(
      text("\(ByteCount(3_796_000)) \(ByteCount.kibibytes(4)) \(ByteCount(639))"),
      "3.62 MiB 4 KiB 639 B")
    XCTAssertEqual(text("|\(right: "\(42 as UInt64)", 6)|\(left: "ab", 4)|"), "|    42|ab  |")
    XCTAssertEqual(text("\(ShortName("kmem-64")) \(0 as UInt64)"), "kmem-64 0")
  }

  func testSizesHaveThreeDigitsAndRoundIntoTheNextUnit() {
    func size(_ bytes: UInt64) -> String { text("\(ByteCount(bytes))") }
    XCTAssertEqual(size(0), "0 B")
    XCTAssertEqual(size(1023), "1023 B")
    XCTAssertEqual(size(2 << 20), "2 MiB")
    XCTAssertEqual(size((2 << 20) + 4096), "2.00 MiB")
    XCTAssertEqual(size((10 << 20) - 4096), "10.0 MiB")
    XCTAssertEqual(size((100 << 20) - 4096), "100 MiB")
    XCTAssertEqual(size((1 << 20) - 1), "1.00 MiB")
    XCTAssertEqual(size(1023 << 10), "1023 KiB")
    XCTAssertEqual(size(32 << 40), "32 TiB")
    XCTAssertEqual(size(.max), "16777216 TiB")
  }

  func testCountsCarryTheirNoun() {
    XCTAssertEqual(text("\(count: 1, "frame"), \(count: 2_000, "frame")"), "1 frame, 2,000 frames")
  }
}
