import HostMachine
import MemoryPrimitives
import PageTables
import TestSupport
import Workloads
import XCTest

/// Random histories against a dictionary of pages, compared by the independent walker.
final class PageTablesModelTests: XCTestCase {
  struct Page: Equatable {
    var frame: UInt64
    var protection: Protection
    var attribute: CacheAttribute
    /// The leaf that maps it: its first page, its size, and whether it may be unmapped in part.
    var leaf: UInt64
    var span: UInt64
    var splittable: Bool
  }

  static let window: UInt64 = 2048
  static let protections: [Protection] = [.kernelData, .kernelReadOnly, .kernelText, [], .writable]
  static let attributes: [CacheAttribute] = [.writeBack, .writeThrough, .uncached, .writeCombining]

  func testRandomHistoriesAgreeWithAModel() throws {
    for seed in historySeeds(1, count: 4) {
      try run(seed: seed, levels: seed % 2 == 0 ? .five : .four, operations: 400)
    }
  }

  func run(seed: UInt64, levels: PagingLevels, operations: Int) throws {
    let bed = PageTablesFixture(levels: levels)
    let processors = RememberingProcessors(bed, count: 1)
    defer { processors.end() }
    var random = SeededRandom(seed: seed)
    var pages: [UInt64: Page] = [:]
    var prepared: Set<UInt64> = []
    // The window lies across a boundary of 1 GiB.
    let base = kernelBase + 1 << 30 - (Self.window / 2) << 12
    func at(_ page: UInt64) -> VirtualAddress { va(page, base: base) }

    func range() -> Range<UInt64> {
      if random.oneIn(3) {
        let start = random.below(4) * 512
        return start..<min(Self.window, start + 512 * (1 + random.below(2)))
      }
      let start = random.below(Self.window)
      return start..<min(Self.window, start + 1 + random.below(random.oneIn(4) ? 900 : 40))
    }
    func split(at edge: UInt64) {
      guard let page = pages[edge], page.leaf != edge, page.span > 1 else { return }
      for other in page.leaf..<page.leaf + page.span {
        pages[other]!.leaf = other
        pages[other]!.span = 1
        pages[other]!.splittable = false
      }
    }

    for operation in 0..<operations {
      let range = range()
      let count = PageCount(UInt64(range.count))
      let (protection, attribute) = (
        Self.protections[Int(random.below(5))], Self.attributes[Int(random.below(4))]
      )
      let isVacant = range.allSatisfy { pages[$0] == nil }
      let isMapped = range.allSatisfy { pages[$0] != nil }
      var expected: FaultKind?
      let faults = try bed.host.faults {
        switch random.below(9) {
        case 0, 1, 2:
          let sizes: LeafSizes = [.pages, .whole, .splittable][Int(random.below(3))]
          let frame =
            random.oneIn(2) ? random.below(1 << 20) : random.below(1 << 11) << 9 + range.lowerBound % 512
          try bed.tables.map(
            at(range.lowerBound), to: pa(frame), count: count, protection: protection, attribute: attribute,
            leaves: sizes)
          guard isVacant else { return expected = .doubleMap }
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
        case 3, 4, 5:
          var back: [UInt64] = []
          bed.tables.unmap(at(range.lowerBound), count: count) { start, count in
            for i in 0..<count.rawValue { back.append(start.rawValue >> 12 + i) }
          }
          let edges = [range.lowerBound, range.upperBound]
          let isDivided = edges.contains {
            if let page = pages[$0], page.leaf != $0 { !page.splittable } else { false }
          }
          guard isMapped, !isDivided else { return expected = .notMapped }
          XCTAssertEqual(back, range.map { pages[$0]!.frame })
          for edge in edges { split(at: edge) }
          for page in range { pages[page] = nil }
        case 6:
          try bed.tables.protect(at(range.lowerBound), count: count, protection)
          guard isMapped else { return expected = .notMapped }
          split(at: range.lowerBound)
          split(at: range.upperBound)
          for page in range { pages[page]!.protection = protection }
        case 7:
          try bed.tables.setAttribute(at(range.lowerBound), count: count, attribute)
          guard isMapped else { return expected = .notMapped }
          split(at: range.lowerBound)
          split(at: range.upperBound)
          for page in range { pages[page]!.attribute = attribute }
        default:
          if random.oneIn(2) {
            try bed.tables.prepare(at(range.lowerBound), count: count)
            guard isVacant, prepared.isDisjoint(with: range) else { return expected = .doubleMap }
            prepared.formUnion(range)
          } else {
            bed.tables.unprepare(at(range.lowerBound), count: count)
            guard isVacant, prepared.isSuperset(of: range) else { return expected = .notMapped }
            prepared.subtract(range)
          }
        }
      }
      XCTAssertEqual(faults.map(\.kind), expected.map { [$0] } ?? [], "seed \(seed), operation \(operation)")
      bed.check("seed \(seed), operation \(operation)")
      for page in 0..<Self.window {
        let wanted = pages[page].map {
          Walked(
            physical: $0.frame << 12, pageShift: $0.span == 1 ? 12 : 21,
            writable: $0.protection.contains(.writable), executable: $0.protection.contains(.executable),
            global: $0.protection.contains(.global), memoryType: memoryType($0.attribute))
        }
        guard bed.walker.walk(base + page << 12) == wanted else {
          return XCTFail(
            "seed \(seed), operation \(operation), page \(page): "
              + "\(String(describing: bed.walker.walk(base + page << 12))), not \(String(describing: wanted))"
          )
        }
      }
      XCTAssertEqual(bed.tables.mappedCount, PageCount(pages.count))
      // A stale translation of a processor must not appear.
      for _ in 0..<40 {
        let page = random.oneIn(2) ? random.below(Self.window) : range.randomElement(using: &random)!
        XCTAssertEqual(
          processors.reach(at(page), .read), pages[page].map { FrameNumber(UInt32($0.frame)) },
          "seed \(seed), operation \(operation), page \(page)")
      }
    }
  }
}
