// The size classes of Linux' zsmalloc: each a chain of pages that is cut into slots.
//
// Nominal sizes are 32 to 4096 in steps of 16. A chain has as many pages as waste the least at its end: as a whole
// percentage up to Linux 6.2, in bytes since 6.3, where a power of two has one page. From the largest down, a class
// with the same pages and slots as the one above joins it.
//
// SOURCES
//   Linux, mm/zsmalloc.c of 6.1 (get_pages_per_zspage) and 6.3 (calculate_zspage_chain_size).

import MemoryPrimitives

struct LinuxClassTable {
  /// The waste that the length of a chain keeps small.
  enum Rule { case percentage, bytes }

  struct SizeClass: Equatable {
    var size: Int
    var pages: Int
    var slots: Int

    /// Whether an object has a page of its own.
    var isHuge: Bool { pages == 1 && slots == 1 }
  }

  /// From the largest down.
  private(set) var classes: [SizeClass] = []
  /// The class of each nominal size.
  private var byNominalSize: [Int]
  /// The bytes of a slot in front of the object.
  let header: Int

  private static let (smallest, spacing) = (32, 16)
  private static var page: Int { Int(Page.size) }

  init(longestChain: Int, _ rule: Rule, header: Int) {
    self.header = header
    let nominalSizes = (Self.page - Self.smallest) / Self.spacing + 1
    byNominalSize = Array(repeating: 0, count: nominalSizes)
    for index in (0..<nominalSizes).reversed() {
      let size = Self.smallest + index * Self.spacing
      let pages =
        rule == .percentage ? Self.leastShare(size, longestChain) : Self.leastBytes(size, longestChain)
      let one = SizeClass(size: size, pages: pages, slots: pages * Self.page / size)
      if classes.last?.pages != one.pages || classes.last?.slots != one.slots { classes.append(one) }
      byNominalSize[index] = classes.count - 1
    }
  }

  /// The number of the class for an object of 1 to 4096 bytes.
  func number(for length: Int) -> Int {
    let beyond = max(0, length + header - Self.smallest)
    return byNominalSize[min((beyond + Self.spacing - 1) / Self.spacing, byNominalSize.count - 1)]
  }

  /// The size of the largest class whose objects straddle pages; nil if no class has more than a page.
  var largestStraddling: Int? { classes.first { $0.pages > 1 }?.size }

  private static func leastShare(_ size: Int, _ limit: Int) -> Int {
    var (best, most) = (1, 0)
    for pages in 1...limit {
      let bytes = pages * page
      let share = (bytes - bytes % size) * 100 / bytes
      if share > most { (best, most) = (pages, share) }
    }
    return best
  }

  private static func leastBytes(_ size: Int, _ limit: Int) -> Int {
    if size & (size - 1) == 0 { return 1 }
    var (best, least) = (1, Int.max)
    for pages in 1...limit where pages * page % size < least { (best, least) = (pages, pages * page % size) }
    return best
  }
}
