import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import strata

/// The layouts of the study: small histories, with every byte looked for where the layout says that it is.
final class LayoutModelTests: XCTestCase {
  /// A layout, its objects, and the bytes that they use.
  private final class World {
    let layout: any ModelLayout
    let supply: FrameSupply
    var sizes: [Int: Int] = [:]
    var random: SeededRandom
    private let system: HostSystem

    init(_ kind: StudiedLayout, seed: UInt64) throws {
      system = try HostSystem(toolMemory: .mebibytes(8))
      supply = FrameSupply(system.memory.physical)
      layout = try XCTUnwrap(kind.make(on: system.memory, supply) as? any ModelLayout)
      random = SeededRandom(seed: seed)
    }

    /// The bytes in use of each frame, ascending.
    var used: [UInt32: [Range<Int>]] {
      var used: [UInt32: [Range<Int>]] = [:]
      for object in sizes.keys.sorted() {
        for part in layout.parts(of: object) { used[part.frame.rawValue, default: []].append(part.bytes) }
      }
      return used.mapValues { $0.sorted { $0.lowerBound < $1.lowerBound } }
    }

    func randomSize() -> Int {
      switch random.below(4) {
      case 0: Int(random.below(4096)) + 1
      case 1: Int(random.below(64)) + 1
      case 2: 2048 + Int(random.below(700))
      default: Int(random.below(1500)) + 1
      }
    }

    func store(_ size: Int) throws -> Int? {
      let before = layout.held
      guard let object = layout.store(size) else {
        XCTAssertEqual(layout.held, before, "a refused object changes nothing")
        return nil
      }
      XCTAssertNil(sizes.updateValue(size, forKey: object), "a number is used once")
      return object
    }

    func freeOne() {
      guard let object = sizes.keys.sorted().randomElement(using: &random) else { return }
      layout.free(object)
      sizes[object] = nil
    }

    /// Objects keep all of their bytes and overlap nowhere, and each frame is counted.
    func check(_ note: String, headers: Int = 0) {
      for (object, size) in sizes {
        let count = layout.parts(of: object).reduce(0) { $0 + $1.bytes.count }
        XCTAssertTrue(
          count == size || count == size + headers, "\(note): object \(object) of \(size) has \(count)")
      }
      for (frame, ranges) in used {
        XCTAssertTrue(ranges.allSatisfy { $0.lowerBound >= 0 && $0.upperBound <= 4096 }, "\(note): \(frame)")
        for (one, next) in zip(ranges, ranges.dropFirst()) {
          XCTAssertLessThanOrEqual(one.upperBound, next.lowerBound, "\(note): frame \(frame)")
        }
      }
      XCTAssertEqual(supply.held, layout.held.frames, note)
    }

    func freeAll() {
      for object in sizes.keys { layout.free(object) }
      sizes = [:]
      XCTAssertEqual(layout.held, HeldFrames(data: 0, tables: 0, headers: 0))
      XCTAssertEqual(supply.held, 0)
    }

    /// Random stores and frees; `each` is called before a store.
    func run(_ operations: Int, each: (Int) throws -> Void = { _ in }) throws {
      for _ in 0..<operations {
        if random.below(5) < 3 { try each(randomSize()) } else { freeOne() }
      }
    }
  }

  private static let models = StudiedLayout.allCases.filter { $0 != .strata }

  func testObjectsNeverOverlapAndFramesAreCounted() throws {
    for kind in Self.models {
      for seed in historySeeds(0x2101, count: 3) {
        let world = try World(kind, seed: seed)
        for round in 0..<12 {
          try world.run(40) { _ = try world.store($0) }
          if round % 4 == 3 { world.layout.compact() }
          world.check("\(kind), seed \(seed)", headers: 8)
          let frames = UInt64(world.used.count)
          switch kind {
          // A chain and a block keep pages on which no object lies.
          case .linux61, .linux63, .orderOne: XCTAssertLessThanOrEqual(frames, world.layout.held.data)
          default: XCTAssertEqual(frames, world.layout.held.data, "\(kind), seed \(seed)")
          }
        }
        world.freeAll()
      }
    }
  }

  func testCompactionLeavesTheFewestChains() throws {
    for kind in [StudiedLayout.linux61, .linux63] {
      let world = try World(kind, seed: 7)
      let chains = try XCTUnwrap(world.layout as? LinuxChains)
      try world.run(600) { _ = try world.store($0) }
      for _ in 0..<world.sizes.count / 2 { world.freeOne() }
      let before = chains.held.data
      chains.compact()
      var counts: [Int: Int] = [:]
      for size in world.sizes.values { counts[chains.table.number(for: size), default: 0] += 1 }
      let fewest = counts.reduce(0) { sum, one in
        let shape = chains.table.classes[one.key]
        return sum + (one.value + shape.slots - 1) / shape.slots * shape.pages
      }
      XCTAssertEqual(chains.held.data, UInt64(fewest), "\(kind)")
      XCTAssertLessThan(chains.held.data, before)
      world.check("\(kind)", headers: 8)
    }
  }

  /// All chains of a class have as many objects in use as each other.
  func testEvenlyUsedChainsAreCompacted() throws {
    let world = try World(.linux61, seed: 1)
    // Five slots a chain of two pages.
    let objects = try (0..<50).map { _ in try XCTUnwrap(try world.store(1600)) }
    XCTAssertEqual(world.layout.held.data, 20)
    for object in objects where object % 5 < 3 {
      world.layout.free(object)
      world.sizes[object] = nil
    }
    XCTAssertEqual(world.layout.held.data, 20)
    world.layout.compact()
    XCTAssertEqual(world.layout.held.data, 8)
    world.check("evenly used", headers: 8)
  }

  func testFreedSpaceIsUsedAgain() throws {
    for kind in Self.models {
      let world = try World(kind, seed: 1)
      for _ in 0..<200 { _ = try world.store(1200) }
      let before = world.layout.held
      for _ in 0..<100 { world.freeOne() }
      XCTAssertLessThan(world.layout.held.frames, before.frames + 1, "\(kind)")
      for _ in 0..<100 { _ = try world.store(1200) }
      XCTAssertEqual(world.layout.held.data, before.data, "\(kind)")
      XCTAssertEqual(world.layout.held.headers, before.headers, "\(kind)")
      XCTAssertLessThanOrEqual(world.layout.held.tables, before.tables, "\(kind)")
    }
  }

  func testMetadataIsCounted() throws {
    let world = try World(.linux61, seed: 1)
    for _ in 0..<513 { _ = try world.store(100) }
    _ = try world.store(4000)
    // Two frames of cells and one of records; the huge object has no header.
    XCTAssertEqual(world.layout.held.tables, 3)
    XCTAssertEqual(world.layout.held.headers, 513 * 8)
    XCTAssertEqual(world.layout.held.metadata, 513 * 8 + 3 * 4096)
    let pairs = try World(.zbud, seed: 1)
    for _ in 0..<3 { _ = try pairs.store(1000) }
    XCTAssertEqual(pairs.layout.held, HeldFrames(data: 2, tables: 0, headers: 128))
    let cut = try World(.xvmalloc, seed: 1)
    for size in [1000, 4088, 4089] { _ = try cut.store(size) }
    XCTAssertEqual(cut.layout.held, HeldFrames(data: 3, tables: 0, headers: 16))
  }

  // MARK: The choice of a place, against a search of everything

  private static func gaps(_ ranges: [Range<Int>]) -> [Range<Int>] {
    let ends = [0] + ranges.map(\.upperBound)
    let starts = ranges.map(\.lowerBound) + [4096]
    return zip(ends, starts).filter { $0 < $1 }.map { $0..<$1 }
  }

  func testJoinedPagesLeaveTheLeastUnused() throws {
    for seed in historySeeds(0x2102, count: 4) {
      let world = try World(.joined, seed: seed)
      try world.run(300) { size in
        let length = (size + 15) / 16 * 16
        // Of whole units of 16 bytes.
        let gaps = world.used.mapValues { used in
          Self.gaps(used.map { $0.lowerBound..<(($0.upperBound + 15) / 16 * 16) })
        }
        var totals = gaps.values.joined().map(\.count)
        for (frame, ends) in gaps {
          guard let end = ends.first(where: { $0.upperBound == 4096 }), end.count < length else { continue }
          for (other, starts) in gaps where other != frame {
            guard let start = starts.first, start.lowerBound == 0 else { continue }
            totals.append(end.count + start.count)
          }
        }
        let best = totals.filter { $0 >= length }.min()
        guard let object = try world.store(size) else { return XCTFail("refused") }
        let parts = world.layout.parts(of: object)
        let taken = parts.compactMap { part in
          gaps[part.frame.rawValue]?.first { $0.contains(part.bytes.lowerBound) }
        }
        if let best {
          XCTAssertEqual(taken.reduce(0) { $0 + $1.count }, best, "seed \(seed), size \(size)")
          XCTAssertEqual(taken.count, parts.count, "no page is new")
        } else {
          // The longest end is used with the new page.
          let longest = gaps.values.joined().filter { $0.upperBound == 4096 }.map(\.count).max() ?? 0
          XCTAssertEqual(taken.reduce(0) { $0 + $1.count }, longest, "seed \(seed), size \(size)")
          XCTAssertEqual(parts.count, taken.count + 1)
        }
      }
      world.check("seed \(seed)")
      world.freeAll()
    }
  }

  func testAPairOfObjectsLeavesTheFewestChunks() throws {
    for seed in historySeeds(0x2102, count: 4) {
      let world = try World(.zbud, seed: seed)
      try world.run(300) { size in
        let chunks = (size + 63) / 64
        let used = world.used
        let unused = used.filter { $0.value.count == 1 }.mapValues { 63 - ($0[0].count + 63) / 64 }
        XCTAssertTrue(used.values.allSatisfy { $0.count <= 2 })
        let best = unused.values.filter { $0 >= chunks }.min()
        guard let object = try world.store(size) else { return XCTAssertGreaterThan(size, 3968) }
        XCTAssertLessThanOrEqual(size, 3968)
        XCTAssertEqual(
          unused[world.layout.parts(of: object)[0].frame.rawValue], best, "seed \(seed), size \(size)")
      }
      world.freeAll()
    }
  }

  /// A gap between objects is one block, whatever blocks it was freed from.
  func testABlockIsTheShortestThatIsLongEnough() throws {
    for seed in historySeeds(0x2102, count: 4) {
      let world = try World(.xvmalloc, seed: seed)
      try world.run(300) { size in
        let rounded = max(32, (size + 7) / 8 * 8)
        let gaps = world.used.mapValues { used in
          // The first part of a block is its header.
          Self.gaps(used.map { $0.lowerBound..<max($0.lowerBound + 40, ($0.upperBound + 7) / 8 * 8) })
        }
        let best = gaps.values.joined().map { $0.count - 8 }.filter { $0 >= rounded }.min()
        guard let object = try world.store(size) else { return XCTFail("refused") }
        let part = world.layout.parts(of: object)[0]
        let taken = gaps[part.frame.rawValue]?.first { $0.lowerBound == part.bytes.lowerBound }
        XCTAssertEqual(taken.map { $0.count - 8 }, size > 4088 ? nil : best, "seed \(seed), size \(size)")
      }
      world.check("seed \(seed)", headers: 8)
      world.freeAll()
    }
  }
}
