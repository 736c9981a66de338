import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapChecksumTests: XCTestCase {
  private let page = UnsafeMutablePointer<UInt64>.allocate(capacity: 512)
  deinit { page.deallocate() }

  private var sum: UInt32 { Checksum.of(UnsafeMutableRawPointer(page)) }

  func testZeroesHaveAChecksumAndSoHasEachPart() {
    page.initialize(repeating: 0, count: 512)
    let zero = sum
    XCTAssertNotEqual(zero, 0)
    fillPage(page, 5)
    var seen: Set<UInt32> = [zero]
    // Torn to zeroes after each word.
    for word in (0..<512).reversed() {
      XCTAssertTrue(seen.insert(sum).inserted)
      page[word] = 0
    }
    XCTAssertEqual(sum, zero)
  }

  func testAChecksumDependsOnEachBitAndItsPosition() {
    for stamp in 0..<3 as Range<UInt64> {
      if stamp == 0 { page.initialize(repeating: 0, count: 512) } else { fillPage(page, stamp) }
      var seen: Set<UInt32> = [sum]
      var collisions = 0
      for bit in 0..<512 * 64 {
        page[bit / 64] ^= 1 << UInt64(bit % 64)
        if !seen.insert(sum).inserted { collisions += 1 }
        page[bit / 64] ^= 1 << UInt64(bit % 64)
      }
      // 32 768 numbers of 32 bits: an eighth of a pair is to be expected.
      XCTAssertLessThan(collisions, 4)
    }
    fillPage(page, 9)
    let before = sum
    for _ in 0..<2 {
      for word in 0..<511 {
        swap(&page[word], &page[word + 1])
        XCTAssertNotEqual(sum, before)
        swap(&page[word], &page[word + 1])
      }
      XCTAssertEqual(sum, before)
    }
  }

  func testPairsOfBitsDoNotCancel() {
    var random = SeededRandom(seed: historySeed(91))
    for stamp in 0..<20 as Range<UInt64> {
      if stamp == 0 { page.initialize(repeating: 0, count: 512) } else { fillPage(page, stamp) }
      let before = sum
      for _ in 0..<5000 {
        // Often the same bit of two words, or of neighbours.
        let first = Int(random.below(512 * 64))
        let apart = [1, 63, 64, 65, 128, 4096, Int(random.below(512 * 64))][Int(random.below(7))]
        let second = (first + apart) % (512 * 64)
        if first == second { continue }
        for bit in [first, second] { page[bit / 64] ^= 1 << UInt64(bit % 64) }
        XCTAssertNotEqual(sum, before)
        for bit in [first, second] { page[bit / 64] ^= 1 << UInt64(bit % 64) }
      }
    }
  }
}
