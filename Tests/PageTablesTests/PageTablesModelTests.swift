import HostMachine
import MemoryPrimitives
import PageTables
import TestSupport
import Workloads
import XCTest

/// Page tables driven by random operations, beside a dictionary of pages.
private struct PageTablesHistory {
  struct Page: Equatable {
    var frame: UInt64
    var protection: Protection
    var attribute: CacheAttribute
    /// The leaf that maps it: its first page, its size, and whether it may be unmapped in part.
    var leaf: UInt64
    var span: UInt64
    var splittable: Bool
  }

  private static let window: UInt64 = 2048
  private static let protections: [Protection] = [.kernelData, .kernelReadOnly, .kernelText, [], .writable]
  private static let attributes: [CacheAttribute] = [.writeBack, .writeThrough, .uncached, .writeCombining]
  /// The window lies across a boundary of 1 GiB.
  private static let base = kernelBase + 1 << 30 - (window / 2) << 12

  private let seed: UInt64
  private let bed: PageTablesFixture
  private let processors: RememberingProcessors
  private var random: SeededRandom
  private var pages: [UInt64: Page] = [:]
  private var prepared: Set<UInt64> = []

  init(seed: UInt64, levels: PagingLevels) {
    self.seed = seed
    bed = PageTablesFixture(levels: levels)
    processors = RememberingProcessors(bed, count: 1)
    random = SeededRandom(seed: seed)
  }

  mutating func run(operations: Int) throws {
    defer { processors.end() }
    for operation in 0..<operations {
      let note = "seed \(seed), operation \(operation)"
      let range = randomRange()
      var expected: FaultKind?
      let faults = try bed.host.faults { expected = try step(on: range) }
      XCTAssertEqual(faults.map(\.kind), expected.map { [$0] } ?? [], note)
      bed.check(note)
      guard agreesWithWalker(note) else { return }
      checkTranslations(around: range, note)
    }
  }

  private func at(_ page: UInt64) -> VirtualAddress { va(page, base: Self.base) }

  private mutating func randomRange() -> Range<UInt64> {
    if random.oneIn(3) {
      let start = random.below(4) * 512
      return start..<min(Self.window, start + 512 * (1 + random.below(2)))
    }
    let start = random.below(Self.window)
    return start..<min(Self.window, start + 1 + random.below(random.oneIn(4) ? 900 : 40))
  }

  // MARK: Operations

  private func isVacant(_ range: Range<UInt64>) -> Bool { range.allSatisfy { pages[$0] == nil } }
  private func isMapped(_ range: Range<UInt64>) -> Bool { range.allSatisfy { pages[$0] != nil } }

  /// Carries out a random operation on `range`. Returns the fault that it must report, or nil.
  private mutating func step(on range: Range<UInt64>) throws -> FaultKind? {
    let count = PageCount(UInt64(range.count))
    let (protection, attribute) = (
      Self.protections[Int(random.below(5))], Self.attributes[Int(random.below(4))]
    )
    switch random.below(9) {
    case 0, 1, 2: return try map(range, protection, attribute)
    case 3, 4, 5: return unmap(range)
    case 6:
      try bed.tables.protect(at(range.lowerBound), count: count, protection)
      guard isMapped(range) else { return .notMapped }
      splitAtEnds(of: range)
      for page in range { pages[page]!.protection = protection }
    case 7:
      try bed.tables.setAttribute(at(range.lowerBound), count: count, attribute)
      guard isMapped(range) else { return .notMapped }
      splitAtEnds(of: range)
      for page in range { pages[page]!.attribute = attribute }
    default:
      if random.oneIn(2) {
        try bed.tables.prepare(at(range.lowerBound), count: count)
        guard isVacant(range), prepared.isDisjoint(with: range) else { return .doubleMap }
        prepared.formUnion(range)
      } else {
        bed.tables.unprepare(at(range.lowerBound), count: count)
        guard isVacant(range), prepared.isSuperset(of: range) else { return .notMapped }
        prepared.subtract(range)
      }
    }
    return nil
  }

  private mutating func map(
    _ range: Range<UInt64>, _ protection: Protection, _ attribute: CacheAttribute
  ) throws -> FaultKind? {
    let sizes: LeafSizes = [.pages, .whole, .splittable][Int(random.below(3))]
    let frame = random.oneIn(2) ? random.below(1 << 20) : random.below(1 << 11) << 9 + range.lowerBound % 512
    try bed.tables.map(
      at(range.lowerBound), to: pa(frame), count: PageCount(UInt64(range.count)), protection: protection,
      attribute: attribute, leaves: sizes)
    guard isVacant(range) else { return .doubleMap }
    for page in range {
      let leaf = page / 512 * 512
      let isLarge =
        sizes != .pages && leaf >= range.lowerBound && leaf + 512 <= range.upperBound
        && (frame + leaf - range.lowerBound) % 512 == 0
        // Places that are prepared, or tables with other leaves, keep to small ones.
        && !(leaf..<leaf + 512).contains { prepared.contains($0) }
      pages[page] = Page(
        frame: frame + page - range.lowerBound, protection: protection, attribute: attribute,
        leaf: isLarge ? leaf : page, span: isLarge ? 512 : 1,
        splittable: isLarge && sizes == .splittable)
    }
    return nil
  }

  private mutating func unmap(_ range: Range<UInt64>) -> FaultKind? {
    var back: [UInt64] = []
    bed.tables.unmap(at(range.lowerBound), count: PageCount(UInt64(range.count))) { start, count in
      for i in 0..<count.rawValue { back.append(start.rawValue >> 12 + i) }
    }
    let isDivided = [range.lowerBound, range.upperBound].contains {
      if let page = pages[$0], page.leaf != $0 { !page.splittable } else { false }
    }
    guard isMapped(range), !isDivided else { return .notMapped }
    XCTAssertEqual(back, range.map { pages[$0]!.frame })
    splitAtEnds(of: range)
    for page in range { pages[page] = nil }
    return nil
  }

  private mutating func splitAtEnds(of range: Range<UInt64>) {
    for edge in [range.lowerBound, range.upperBound] {
      guard let page = pages[edge], page.leaf != edge, page.span > 1 else { continue }
      for other in page.leaf..<page.leaf + page.span {
        pages[other]!.leaf = other
        pages[other]!.span = 1
        pages[other]!.splittable = false
      }
    }
  }

  // MARK: Checks

  /// Checks each page of the window by the independent walker. Answers false after a difference.
  private func agreesWithWalker(_ note: String) -> Bool {
    for page in 0..<Self.window {
      let wanted = pages[page].map {
        Walked(
          physical: $0.frame << 12, pageShift: $0.span == 1 ? 12 : 21,
          writable: $0.protection.contains(.writable), executable: $0.protection.contains(.executable),
          global: $0.protection.contains(.global), memoryType: memoryType($0.attribute))
      }
      let walked = bed.walker.walk(Self.base + page << 12)
      guard walked == wanted else {
        XCTFail("\(note), page \(page): \(String(describing: walked)), not \(String(describing: wanted))")
        return false
      }
    }
    XCTAssertEqual(bed.tables.mappedCount, PageCount(pages.count))
    return true
  }

  /// Checks that a processor uses no stale translation, of some pages of the range and some others.
  private mutating func checkTranslations(around range: Range<UInt64>, _ note: String) {
    for _ in 0..<40 {
      let page = random.oneIn(2) ? random.below(Self.window) : range.randomElement(using: &random)!
      XCTAssertEqual(
        processors.reach(at(page), .read), pages[page].map { FrameNumber(UInt32($0.frame)) },
        "\(note), page \(page)")
    }
  }
}

/// Random histories against a dictionary of pages, compared by the independent walker.
final class PageTablesModelTests: XCTestCase {
  func testRandomHistoriesAgreeWithAModel() throws {
    for seed in historySeeds(1, count: 4) {
      var history = PageTablesHistory(seed: seed, levels: seed % 2 == 0 ? .five : .four)
      try history.run(operations: 400)
    }
  }
}
