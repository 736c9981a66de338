// The carve-out: always the top of memory, never occupied, and reached by the direct map though no layer owns it.

import HostMachine
import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

final class CarveOutTests: XCTestCase {
  private let m: UInt64 = 1 << 20

  /// The carve-out of a machine with this map.
  private func cut(
    _ size: UInt64, of ranges: [FirmwareRange], avoiding occupied: [OccupiedRange] = []
  ) throws -> CarveOut {
    let bytes = Int(MemoryMap.storage(ranges: ranges.count).rawValue)
    let storage = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
    defer { storage.deallocate() }
    let map = try MemoryMap(storage, count: ranges.count) { ranges[$0] }
    return try occupied.withUnsafeBufferPointer {
      try CarveOut(top: ByteCount(size).pagesRoundedUp, of: map, avoiding: $0)
    }
  }

  /// Runs as first byte and length.
  private func runs(_ carveOut: CarveOut) -> [[UInt64]] {
    (0..<carveOut.count).map { [carveOut[$0].first.address.rawValue, carveOut[$0].count.bytes.rawValue] }
  }

  private func occupied(_ base: UInt64, _ length: UInt64) -> OccupiedRange {
    OccupiedRange(base: PhysicalAddress(base), length: ByteCount(length), role: .bootModule)
  }

  func testACarveOutReachesAcrossADeviceWindow() throws {
    let g: UInt64 = 1 << 30
    let pc = [usable(0, 0x9fc00), usable(m, 3 * g - 3 * m), usable(4 * g, g)]
    XCTAssertEqual(runs(try cut(0, of: pc)), [])
    XCTAssertEqual(runs(try cut(64 * m, of: pc)), [[5 * g - 64 * m, 64 * m]])
    XCTAssertEqual(runs(try cut(3 * g, of: pc)), [[4 * g, g], [g - 2 * m, 2 * g]])
    // Any number of bytes becomes pages.
    XCTAssertEqual(runs(try cut(1, of: pc)), [[5 * g - 4096, 4096]])
  }

  func testACarveOutTakesNoOccupiedRange() throws {
    let map = [usable(0, 256 * m)]
    // At the top, in the middle, reaching over the end, empty, in the first 16 MiB, wrapping.
    let taken = [
      occupied(255 * m, 300), occupied(200 * m + 5, m), occupied(201 * m, 4096), occupied(300 * m, m),
      occupied(100 * m, 0), occupied(m, 2 * m),
    ]
    // The 2 MiB around a module stay with it.
    XCTAssertEqual(runs(try cut(4 * m, of: map, avoiding: taken)), [[250 * m, 4 * m]])
    XCTAssertEqual(
      runs(try cut(60 * m, of: map, avoiding: taken)), [[202 * m, 52 * m], [192 * m, 8 * m]])
    XCTAssertEqual(
      runs(try cut(40 * m, of: map, avoiding: [occupied(100 * m, UInt64.max)])), [[60 * m, 40 * m]])
    // 16 MiB stay, for which the first 64 KiB and what lies from 0xa0000 to 0xfffff do not count.
    let most = 240 * m - 0x7_0000
    XCTAssertEqual(runs(try cut(most, of: map)), [[256 * m - most, most]])
    XCTAssertThrowsError(try cut(most + 1, of: map)) { XCTAssertEqual($0 as? CarveOutError, .tooMuch) }
    XCTAssertThrowsError(try cut(240 * m, of: map, avoiding: [occupied(20 * m, 1)])) {
      XCTAssertEqual($0 as? CarveOutError, .tooMuch)
    }
    XCTAssertThrowsError(try cut(UInt64.max, of: map)) { XCTAssertEqual($0 as? CarveOutError, .tooMuch) }
    XCTAssertThrowsError(try cut(m, of: [usable(m, 8 * m)])) {
      XCTAssertEqual($0 as? CarveOutError, .tooMuch)
    }
  }

  func testACarveOutHasFewExtentsAndLeavesSmallRangesOut() throws {
    // An extent of 4 MiB each 8 MiB, and a page between two.
    var map = [usable(0, 64 * m)]
    for i in UInt64(0)..<12 { map += [usable((64 + 8 * i) * m, 4 * m), usable((70 + 8 * i) * m, 4096)] }
    let eight = runs(try cut(32 * m, of: map))
    XCTAssertEqual(eight, (4..<12).reversed().map { [(64 + 8 * $0) * m, 4 * m] })
    XCTAssertThrowsError(try cut(32 * m + 4096, of: map)) {
      XCTAssertEqual($0 as? CarveOutError, .tooScattered)
    }
    // The request itself may be shorter than the shortest extent.
    XCTAssertEqual(runs(try cut(4096, of: map)), [[158 * m, 4096]])
  }

  /// Against a search frame by frame, where no extent is too small.
  func testACarveOutIsTheTopOfMemory() throws {
    var seed = SeededRandom(seed: historySeed(4))
    for _ in 0..<200 {
      var map: [FirmwareRange] = []
      var at: UInt64 = 0
      for _ in 0..<Int.random(in: 1...4, using: &seed) {
        at += UInt64.random(in: 0..<8, using: &seed) * 2 * m
        let length = UInt64.random(in: 4..<40, using: &seed) * m
        map.append(usable(at, length))
        at = (at + length + 2 * m - 1) & ~(2 * m - 1)
      }
      let taken = (0..<Int.random(in: 0..<4, using: &seed)).map { _ in
        occupied(UInt64.random(in: 0..<at, using: &seed), UInt64.random(in: 1..<6 * m, using: &seed))
      }
      var allowed: [UInt64] = []
      for range in map {
        for mebibyte in range.base.rawValue / m..<(range.base.rawValue + range.length.rawValue) / m {
          let isTaken = taken.contains {
            let last = $0.base.rawValue + $0.length.rawValue - 1
            return mebibyte / 2 >= $0.base.rawValue / m / 2 && mebibyte / 2 <= last / m / 2
          }
          if mebibyte >= 16 && !isTaken { allowed.append(mebibyte) }
        }
      }
      let inUse: UInt64 = map[0].base.rawValue == 0 ? 0x7_0000 : 0
      let total = map.reduce(0) { $0 + $1.length.rawValue } - inUse
      let wanted = UInt64.random(in: 1...64, using: &seed)
      let isPossible = (wanted + 16) * m <= total && wanted <= allowed.count
      do {
        let carveOut = try cut(wanted * m, of: map, avoiding: taken)
        XCTAssertTrue(isPossible)
        let got = runs(carveOut).flatMap { ($0[0] / m)..<(($0[0] + $0[1]) / m) }
        XCTAssertEqual(Set(got), Set(allowed.suffix(Int(wanted))))
        XCTAssertEqual(got.count, Int(wanted))
        XCTAssertEqual(carveOut.pages, ByteCount(wanted * m).pagesRoundedUp)
      } catch {
        XCTAssertFalse(isPossible && error as? CarveOutError != .tooScattered, "\(error)")
      }
    }
  }

  func testACarveOutIsMappedAndBelongsToNoLayer() throws {
    let map = [usable(0, 0x9f000), usable(m, 63 * m)]
    for size in [4096, 4 * m, 8 * m + 4096, 47 * m] {
      for isReported in [false, true] {
        let carveOut = try cut(size, of: map)
        // The firmware's map may know of it or not.
        var reported = map
        if isReported { reported = [map[0], usable(m, 63 * m - size), reserved(64 * m - size, size)] }
        let host = SimulatedMachine(memory: .mebibytes(64))
        let system = try TestSystem(host, reported, carveOut: carveOut)
        system.check()
        XCTAssertEqual(system.memory.carveOut.pages.bytes.rawValue, size)
        XCTAssertEqual(system.physical.total.bytes.rawValue, 63 * m - size + 0x9f000)
        var sum: UInt64 = 0
        for number in 0..<UInt8(FrameRole.count) where number != FrameRole.absent.rawValue {
          sum += system.physical.count(FrameRole(rawValue: number)!).rawValue
        }
        XCTAssertEqual(sum, system.physical.total.rawValue)
        for address in [64 * m - size, 64 * m - 1] {
          let place = host.machine.directMap.virtualAddress(of: PhysicalAddress(address))
          let translation = try XCTUnwrap(system.tables.translate(place))
          XCTAssertEqual(translation.physical.rawValue, address)
          XCTAssertEqual(translation.protection, .kernelData)
          XCTAssertEqual(system.physical.whatIs(PhysicalAddress(address).frame).role, .absent)
        }
        for frame in system.takeAll() { XCTAssertLessThan(frame.address.rawValue, 64 * m - size) }
      }
    }
  }
}
