import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

final class MemoryMapTests: XCTestCase {
  typealias Reported = (UInt64, UInt64, FirmwareRange.Kind)

  /// The runs of the map of `reported` as (first, count), or nil when it is refused.
  func map(
    _ reported: [Reported], _ rules: MapRules = MapRules(lowMemory: .all),
    _ body: (MemoryMap) -> Void = { _ in }
  ) -> [[UInt64]]? {
    let storage = UnsafeMutableRawPointer.allocate(
      byteCount: Int(MemoryMap.storage(ranges: reported.count).rawValue), alignment: 16)
    defer { storage.deallocate() }
    guard
      let map = try? MemoryMap(
        storage, count: reported.count, rules: rules,
        range: { i in
          FirmwareRange(
            base: PhysicalAddress(reported[i].0), length: ByteCount(reported[i].1), kind: reported[i].2)
        })
    else { return nil }
    body(map)
    return (0..<map.count).map { [UInt64(map[$0].first.rawValue), map[$0].count.rawValue] }
  }

  func testMapsWithOddRangesAreSanitised() {
    let mebibyte: UInt64 = 1 << 20
    let page: UInt64 = 4096
    let limit: UInt64 = UInt64(UInt32.max) * page
    let table: [(String, [Reported], [[UInt64]]?)] = [
      ("empty", [], nil),
      ("nothing usable", [(0, mebibyte, .reserved)], nil),
      ("zero length", [(0, 0, .usable), (mebibyte, 0, .reserved), (0, mebibyte, .usable)], [[0, 256]]),
      ("only an empty range", [(0, 0, .usable)], nil),
      (
        "a PC",
        [
          (0, 0x9fc00, .usable), (0x9fc00, 0x400, .reserved), (0xf0000, 0x10000, .reserved),
          (mebibyte, 0xfee0000, .usable), (0xffe0000, 0x20000, .reserved),
        ], [[0, 159], [256, 65248]]
      ),
      (
        "unsorted and touching", [(2 * mebibyte, mebibyte, .usable), (0, 2 * mebibyte, .usable)], [[0, 768]]
      ),
      ("overlapping", [(0, 2 * mebibyte, .usable), (mebibyte, 2 * mebibyte, .usable)], [[0, 768]]),
      ("twice", [(0, mebibyte, .usable), (0, mebibyte, .usable)], [[0, 256]]),
      (
        "reserved wins", [(mebibyte, 2 * page, .reserved), (0, 2 * mebibyte, .usable)],
        [[0, 256], [258, 254]]
      ),
      ("reserved over all", [(0, mebibyte, .usable), (0, 2 * mebibyte, .reserved)], nil),
      ("reserved byte", [(0, mebibyte, .usable), (page + 5, 1, .reserved)], [[0, 1], [2, 254]]),
      ("unaligned", [(1, 2 * mebibyte, .usable)], [[1, 511]]),
      (
        "halves of a frame", [(0, mebibyte + 100, .usable), (mebibyte + 100, mebibyte, .usable)], [[0, 512]]
      ),
      ("smaller than a frame", [(100, 2000, .usable)], nil),
      ("usable wraps", [(UInt64.max - 100, 4096, .usable), (0, mebibyte, .usable)], [[0, 256]]),
      ("reserved wraps", [(mebibyte, UInt64.max, .reserved), (0, 2 * mebibyte, .usable)], [[0, 256]]),
      (
        "up to the last byte", [(0, UInt64.max, .usable), (mebibyte, UInt64.max - mebibyte, .reserved)],
        [[0, 256]]
      ),
      ("all there is", [(0, UInt64.max, .usable)], [[0, UInt64(UInt32.max)]]),
      ("beyond 16 TiB", [(limit + page, mebibyte, .usable), (0, mebibyte, .usable)], [[0, 256]]),
      (
        "across 16 TiB", [(limit - 64 * mebibyte, 128 * mebibyte, .usable), (0, 4 * mebibyte, .usable)],
        [[0, 1024], [UInt64(UInt32.max) - 16384, 16384]]
      ),
      ("4 MiB", [(0, 4 * mebibyte, .usable)], [[0, 1024]]),
      ("a crumb far away", [(0, 4 * mebibyte, .usable), (1 << 43, 16 * page, .usable)], [[0, 1024]]),
      ("a crumb in the next section", [(0, (128 << 20) + 2 * page, .usable)], [[0, 32768]]),
      ("a crumb before a section", [((128 << 20) - page, (128 << 20) + page, .usable)], [[32768, 32768]]),
    ]
    for (name, reported, expected) in table { XCTAssertEqual(map(reported), expected, name) }
  }

  func testAMapOfThousandsOfEntriesIsSorted() {
    var reported: [Reported] = []
    for i: UInt64 in (0..<4096).reversed() {
      reported.append((i << 20, 1 << 19, i % 5 == 4 ? .reserved : .usable))
    }
    let runs = map(reported)!
    XCTAssertEqual(runs.count, 4096 / 5 * 4 + 1)
    XCTAssertEqual(runs[0], [0, 128])
  }

  func testAMapNamesTheRangesThatItDropped() {
    _ = map([(0, 0x9fc00, .usable), (1 << 20, 1 << 20, .usable), (1 << 20, 4096, .reserved)]) { map in
      XCTAssertEqual(map.dropped(.partOfFrame).rawValue, 0xc00)
      XCTAssertEqual(map.dropped(.reserved).rawValue, 4096)
      XCTAssertEqual(map.noteCount, 2)
      XCTAssertEqual(map.note(at: 0).base.rawValue, 0x9f000)
    }
  }

  /// A map with more odd edges than notes still has notes of the ranges that rules leave out, and each reason adds up.
  func testOddEdgesLeaveSpaceForTheRangesThatRulesLeaveOut() {
    XCTAssertEqual(MapNote.Reason.allCases.count, MapNote.Reason.count)
    var reported: [Reported] = [(0, 0xb_0000, .usable)]
    for i: UInt64 in 1...40 { reported.append((i << 20 | 0x100, 1 << 19, .usable)) }
    reported += [(50 << 20, 0, .usable), (64 << 20, 32 << 20, .usable), (64 << 20, 4096, .reserved)]
    _ = map(reported, MapRules()) { map in
      let notes = (0..<map.noteCount).map { map.note(at: $0) }
      XCTAssertEqual(notes.filter { $0.reason == .frameZero }.map(\.length.rawValue), [4096])
      XCTAssertEqual(notes.filter { $0.reason == .first64KiB }.map(\.length.rawValue), [15 << 12])
      XCTAssertEqual(notes.filter { $0.reason == .deviceArea }.map(\.base.rawValue), [0xa_0000])
      XCTAssertEqual(notes.count, 27)
      XCTAssertEqual(map.unkeptNoteCount, 58)
      XCTAssertEqual(map.places(.partOfFrame), 80)
      XCTAssertEqual(map.dropped(.partOfFrame).rawValue, 40 * 4096)
      XCTAssertEqual(map.places(.reserved), 1)
      XCTAssertEqual(map.dropped(.reserved).rawValue, 4096)
      XCTAssertEqual(map.places(.empty), 1)
      XCTAssertEqual(map.dropped(.empty), .zero)
      let places = MapNote.Reason.allCases.map { map.places($0) }.reduce(0, +)
      XCTAssertEqual(places, map.noteCount + map.unkeptNoteCount)
    }
  }

  func testRandomMapsAgreeWithBruteForce() {
    let number = historySeed(21)
    var random = SeededRandom(seed: number)
    for round in 0..<400 {
      var reported: [Reported] = []
      for _ in 0..<1 + random.below(12) {
        reported.append(
          (random.below(2000) << 10, random.below(600) << 10, random.oneIn(3) ? .reserved : .usable))
      }
      var usable = [Bool](repeating: false, count: 2600)
      var reserved = usable
      for (base, length, kind) in reported {
        for unit in base >> 10..<(base + length) >> 10 {
          if kind == .usable { usable[Int(unit)] = true } else { reserved[Int(unit)] = true }
        }
      }
      var expected: [[UInt64]] = []
      for page in 0..<650 {
        let units = page * 4..<page * 4 + 4
        guard units.allSatisfy({ usable[$0] }), !units.contains(where: { reserved[$0] }) else { continue }
        if let last = expected.last, last[0] + last[1] == UInt64(page) {
          expected[expected.count - 1][1] += 1
        } else {
          expected.append([UInt64(page), 1])
        }
      }
      let total = expected.reduce(0) { $0 + $1[1] }
      let runs = map(reported)
      if total > 9 { XCTAssertEqual(runs, expected, "round \(round), STRATA_SEED=\(number)") }
      if total <= 5 { XCTAssertNil(runs) }
      // Each that is accepted comes up, or is refused as too small.
      if runs != nil, let system = try? FrameAllocatorFixture(frames: expected.map { ($0[0], $0[1]) }) {
        system.check()
      }
    }
  }

  func testAMachineThatIsTooSmallForItsRecordsIsRefused() {
    XCTAssertThrowsError(try FrameAllocatorFixture(frames: [(0, 200)])) {
      XCTAssertEqual($0 as? PhysicalMemoryError, .tooSmall)
    }
  }
}
