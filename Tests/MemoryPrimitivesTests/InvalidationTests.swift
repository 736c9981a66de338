import CPlatform
import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

/// Each page of an invalidation is invalidated, whatever the number of pages and of runs.
final class InvalidationTests: XCTestCase {
  private struct Run { var first: UInt64; var count: UInt64 }

  /// The pages that are invalidated one by one, and how often everything is.
  private func carryOut(_ runs: [Run]) -> (pages: [UInt64], all: Int) {
    let list = runs.map { cp_page_run(address: $0.first &* Page.size, count: $0.count) }
    var (pages, all): ([UInt64], Int) = ([], 0)
    list.withUnsafeBufferPointer {
      Invalidation.carryOut(
        $0, invalidatePage: { pages.append($0 / Page.size) }, invalidateAll: { all += 1 })
    }
    return (pages, all)
  }

  func testABatchNamesEachPageUpToItsLimitAndEverythingBeyondIt() {
    let limit = Invalidation.pageLimit
    for count in 0...limit {
      let (pages, all) = carryOut([Run(first: 7, count: count)])
      XCTAssertEqual(pages, (0..<count).map { 7 + $0 })
      XCTAssertEqual(all, 0)
    }
    for count in [limit + 1, limit + 2, 2 * limit, 1 << 20, UInt64(CP_ALL_PAGES), .max] {
      let (pages, all) = carryOut([Run(first: 7, count: count)])
      XCTAssertEqual(pages, [])
      XCTAssertEqual(all, 1, "\(count) pages")
    }
  }

  func testTheSumOfAllRunsCounts() {
    let limit = Invalidation.pageLimit
    let single = (0..<limit).map { Run(first: 3 * $0, count: 1) }
    XCTAssertEqual(carryOut(single).pages, single.map(\.first))
    XCTAssertEqual(carryOut(single + [Run(first: 1, count: 1)]).all, 1)
    XCTAssertEqual(carryOut([Run(first: 0, count: limit), Run(first: 900, count: 1)]).all, 1)
    // Sums that wrap around 64 bits are no small ones.
    XCTAssertEqual(carryOut([Run(first: 0, count: .max), Run(first: 0, count: 2)]).all, 1)
    XCTAssertEqual(carryOut((0..<4096).map { _ in Run(first: 0, count: UInt64(CP_ALL_PAGES)) }).all, 1)
    XCTAssertEqual(carryOut([]).pages, [])
  }

  func testNoPageOfAnyInvalidationIsLeftOut() {
    let seed = historySeed(63)
    var random = SeededRandom(seed: seed)
    for round in 0..<2000 {
      let runs = (0..<Int.random(in: 0...32, using: &random)).map { _ in
        Run(
          first: .random(in: 0..<1 << 40, using: &random),
          count: .random(in: 0...[1, 3, 9, 80].randomElement(using: &random)!, using: &random))
      }
      let (pages, all) = carryOut(runs)
      let asked = Set(runs.flatMap { run in (0..<run.count).map { run.first + $0 } })
      XCTAssertTrue(all == 1 || Set(pages) == asked, "STRATA_SEED=\(seed), round \(round)")
      XCTAssertLessThanOrEqual(UInt64(pages.count), Invalidation.pageLimit)
    }
  }
}
