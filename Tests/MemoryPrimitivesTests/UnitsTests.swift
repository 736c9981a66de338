import MemoryPrimitives
import XCTest

/// No unit wraps: a conversion that a caller can request without a bug stops at the largest value. Traps are for bugs, and
/// a test of one would end the process; `testALineThatFitsIsExact` stays right below each trap.
final class UnitsTests: XCTestCase {
  func testPagesThatHaveMoreBytesThanThereAreStopAtTheLargestNumber() {
    XCTAssertEqual(PageCount(UInt64(1) << 52 - 1).bytes, ByteCount(UInt64.max - 4095))
    for count in [UInt64(1) << 52, 1 << 52 + 1, 1 << 60, .max] {
      XCTAssertEqual(PageCount(count).bytes, ByteCount(UInt64.max), "\(count)")
    }
    XCTAssertEqual(PageCount.zero.bytes, .zero)
    XCTAssertEqual(PageCount(UInt64.max).bytes.pagesRoundedUp, PageCount(UInt64(1) << 52))
  }

  func testBytesOfMorePagesAreNeverFewer() {
    var last = ByteCount.zero
    for shift in UInt64(0)..<64 {
      for count in [UInt64(1) << shift, UInt64(1) << shift | 1 << (shift / 2)] {
        let bytes = PageCount(count).bytes
        XCTAssertGreaterThanOrEqual(bytes, last, "\(count)")
        last = bytes
      }
    }
  }

  func testADifferenceThatSaturatesIsNeverBelowZero() {
    let five: PageCount = 5
    XCTAssertEqual(five.subtractingSaturated(3), 2)
    XCTAssertEqual(five.subtractingSaturated(5), 0)
    XCTAssertEqual(five.subtractingSaturated(PageCount(UInt64.max)), 0)
    XCTAssertEqual(ByteCount(UInt64.max).subtractingSaturated(1), ByteCount(UInt64.max - 1))
    var (pages, bytes, frame) = (five, ByteCount(8), FrameNumber(3))
    pages += 2
    pages -= 1
    bytes += 8
    bytes -= 1
    frame += pages
    XCTAssertEqual(pages, 6)
    XCTAssertEqual(bytes, 15)
    XCTAssertEqual(frame, FrameNumber(9))
  }

  func testOrdersBeyondTheHighestHaveNoFewerFrames() {
    var last = PageCount.zero
    for order in UInt8(0)...255 {
      let frames = BlockOrder(order).frames
      XCTAssertGreaterThanOrEqual(frames, last, "\(order)")
      if order > 0 && order < 65 { XCTAssertGreaterThan(frames, last, "\(order)") }
      last = frames
    }
    XCTAssertEqual(BlockOrder(18).frames.bytes, .gibibytes(1))
    XCTAssertEqual(BlockOrder(63).frames.bytes, ByteCount(UInt64.max))
    for count in [UInt64(1), 2, 3, 511, 512, 513, 1 << 63, 1 << 63 + 1, .max] {
      let order = BlockOrder.holding(PageCount(count))
      XCTAssertGreaterThanOrEqual(order.frames, PageCount(count), "\(count)")
      if order > BlockOrder(0) {
        XCTAssertLessThan(BlockOrder(order.rawValue - 1).frames, PageCount(count), "\(count)")
      }
    }
  }

  func testARunOfAnyLengthContainsWhatItSays() {
    let first = FrameNumber(0xffff_fff0)
    for count in [UInt64(0), 1, 15, 1 << 32, 1 << 52, .max] {
      let run = FrameRun(first: first, count: PageCount(count))
      XCTAssertEqual(run.contains(first), count > 0)
      XCTAssertEqual(run.contains(FrameNumber(0xffff_fff1)), count > 1)
      XCTAssertFalse(run.contains(FrameNumber(0xffff_ffef)))
      XCTAssertFalse(run.contains(FrameNumber(0)))
    }
  }

  func testALineThatFitsIsExact() {
    XCTAssertEqual(ByteCount.kibibytes(1 << 54 - 1).rawValue, (1 << 54 - 1) << 10)
    XCTAssertEqual(ByteCount.mebibytes(1 << 44 - 1).rawValue, (1 << 44 - 1) << 20)
    XCTAssertEqual(ByteCount.gibibytes(1 << 34 - 1).rawValue, (1 << 34 - 1) << 30)
    XCTAssertEqual(
      VirtualAddress(UInt64(0)) + PageCount(UInt64(1) << 52 - 1), VirtualAddress(UInt64.max - 4095))
    XCTAssertEqual(VirtualAddress(UInt64.max - 4095) + ByteCount(UInt64(4095)), VirtualAddress(UInt64.max))
    XCTAssertEqual(ByteCount(UInt64.max).pagesRoundedUp, PageCount(UInt64(1) << 52))
    XCTAssertEqual(ByteCount(UInt64.max - 4095).pagesRoundedUp, PageCount(UInt64(1) << 52 - 1))
    XCTAssertEqual(PhysicalAddress(FrameNumber.none).frame, .none)
    XCTAssertEqual(FrameNumber(0xffff_fffe) + .one, .none)
    XCTAssertEqual(FrameNumber.none - FrameNumber(0), PageCount(UInt64(UInt32.max)))
  }
}
