import XCTest

@testable import strata

/// The classes of the models of Linux against tables that were worked out apart from them.
final class LinuxClassTableTests: XCTestCase {
  /// By the longest chain: classes by the rule of percentages, by that of bytes, the largest straddling class, and
  /// the share of full chains that objects of 1 to 4096 bytes fill, each length once.
  private static let rows: [(limit: Int, percentage: Int, bytes: Int, straddling: Int?, full: Double)] = [
    (1, 30, 30, nil, 0.772), (2, 42, 42, 2720, 0.857), (3, 57, 57, 3072, 0.908), (4, 69, 69, 3264, 0.930),
    (5, 86, 86, 3408, 0.949), (6, 93, 94, 3504, 0.957), (7, 112, 110, 3584, 0.966),
    (8, 123, 119, 3632, 0.970),
    (9, 140, 136, 3680, 0.974), (10, 143, 141, 3712, 0.976), (11, 159, 153, 3744, 0.979),
    (12, 164, 159, 3776, 0.981), (13, 180, 173, 3792, 0.982), (14, 183, 179, 3808, 0.983),
    (15, 188, 186, 3840, 0.984), (16, 191, 192, 3840, 0.985),
  ]

  func testClassesAreAsManyAsInLinux() {
    for row in Self.rows {
      let percentage = LinuxClassTable(longestChain: row.limit, .percentage, header: 8)
      let bytes = LinuxClassTable(longestChain: row.limit, .bytes, header: 8)
      // Chains of one page leave no choice, so both rules answer alike.
      XCTAssertEqual(percentage.classes.count, row.percentage, "\(row.limit)")
      XCTAssertEqual(bytes.classes.count, row.bytes, "\(row.limit)")
      XCTAssertEqual(percentage.largestStraddling, row.straddling, "\(row.limit)")
      XCTAssertEqual(bytes.largestStraddling, row.straddling, "\(row.limit)")
      let cost = (1...4096).reduce(0.0) { sum, length in
        let one = bytes.classes[bytes.number(for: length)]
        return sum + Double(one.pages * 4096) / Double(one.slots)
      }
      XCTAssertEqual(4097 * 2048 / cost, row.full, accuracy: 0.001, "\(row.limit)")
    }
  }

  /// Size, pages and objects of each class of chains of four pages.
  private static let chainsOfFour = """
    32:1/128 48:3/256 64:1/64 80:1/51 96:3/128 112:2/73 128:1/32 144:3/85 160:2/51 176:4/93 192:3/64 208:3/59 224:4/73
    240:1/17 256:1/16 272:1/15 288:1/14 304:3/40 320:4/51 336:1/12 352:2/23 368:1/11 384:3/32 400:1/10 416:4/39 432:3/28
    448:1/9 464:4/35 480:2/17 496:4/33 512:1/8 528:4/31 544:2/15 560:4/29 576:1/7 592:4/27 608:3/20 624:2/13 640:3/19
    672:1/6 704:4/23 720:3/17 736:2/11 768:3/16 816:1/5 848:4/19 864:3/14 896:2/9 944:3/13 960:4/17 1024:1/4 1088:4/15
    1104:3/11 1168:2/7 1216:3/10 1248:4/13 1360:1/3 1488:4/11 1536:3/8 1632:2/5 1744:3/7 1808:4/9 2048:1/2 2336:4/7
    2448:3/5 2720:2/3 3072:3/4 3264:4/5 4096:1/1
    """

  func testChainsOfFourAreThoseOfLinux() {
    func text(_ rule: LinuxClassTable.Rule) -> [String] {
      LinuxClassTable(longestChain: 4, rule, header: 8).classes.reversed().map {
        "\($0.size):\($0.pages)/\($0.slots)"
      }
    }
    let expected = Self.chainsOfFour.split { $0 == " " || $0 == "\n" }.map(String.init)
    XCTAssertEqual(text(.bytes), expected)
    XCTAssertEqual(text(.percentage), expected.map { $0 == "208:3/59" ? "208:2/39" : $0 })
  }

  func testLengthsHaveTheirClasses() {
    let four = LinuxClassTable(longestChain: 4, .percentage, header: 8)
    let eight = LinuxClassTable(longestChain: 8, .bytes, header: 8)
    for (length, inFour, inEight) in [
      (1, 32, 32), (24, 32, 32), (25, 48, 48), (40, 48, 48), (64, 80, 80), (100, 112, 112), (512, 528, 528),
      (1024, 1088, 1056), (1544, 1632, 1552), (1560, 1632, 1568), (2040, 2048, 2048), (2041, 2336, 2176),
      (2048, 2336, 2176), (2712, 2720, 2720), (2713, 3072, 2864), (3256, 3264, 3264), (3257, 4096, 3408),
      (3624, 4096, 3632), (3625, 4096, 4096), (4000, 4096, 4096), (4089, 4096, 4096), (4096, 4096, 4096),
    ] {
      XCTAssertEqual(four.classes[four.number(for: length)].size, inFour, "\(length) in chains of four")
      XCTAssertEqual(eight.classes[eight.number(for: length)].size, inEight, "\(length) in chains of eight")
    }
  }

  /// Every length fits, and the next smaller class is too small.
  func testALengthHasTheSmallestClassThatHoldsIt() {
    for header in [0, 8] {
      let table = LinuxClassTable(longestChain: 4, .percentage, header: header)
      for length in 1...4096 {
        let number = table.number(for: length)
        let needed = table.classes[number].isHuge ? length : length + header
        XCTAssertLessThanOrEqual(needed, table.classes[number].size)
        if number + 1 < table.classes.count {
          XCTAssertGreaterThan(length + header, table.classes[number + 1].size, "\(length)")
        }
      }
    }
  }
}
