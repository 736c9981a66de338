import Foundation
import MemoryPrimitives
import XCTest

@testable import Console

final class PictureTests: XCTestCase {
  func testLinesOfAPictureThatLookAlikeArePrintedOnce() {
    let harness = ConsoleHarness()
    var picture = Picture(harness.console)
    for i in 0..<16 as Range<UInt64> {
      var cells = Picture.Cells(repeating: UInt8(ascii: "."))
      if i == 0 || i > 13 { cells[0] = UInt8(ascii: "M") }
      picture.add("\(hex: i << 24, digits: 8)", cells)
    }
    picture.finish()
    let dots = String(repeating: ".", count: 63)
    XCTAssertEqual(
      harness.terminal.taken(),
      """
      0x0000_0000 |M\(dots)|
      0x0100_0000 |.\(dots)|
      *           12 more lines like it
      0x0e00_0000 |M\(dots)|
      0x0f00_0000 |M\(dots)|

      """)
  }
}
