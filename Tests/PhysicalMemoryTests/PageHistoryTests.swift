// Random histories of pages and isolations against the naive model.

import TestSupport
import XCTest

final class PageHistoryTests: XCTestCase {
  func testSmallMachinesAgreeWithTheModel() throws {
    for (i, frames) in PageHistory.smallMachines.enumerated() {
      let isSmall = frames.allSatisfy { $0.0 + $0.1 < 3000 }
      try PageHistory.drive(
        frames, seed: historySeed(UInt64(300 + i)), operations: isSmall ? 4000 : 1500)
    }
  }
}
