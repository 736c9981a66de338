// Every way to reach an object that straddles two pages: the same bytes, refused only where vmap finds no memory.

import MemoryPrimitives
import TestSupport
import XCTest

@testable import Zsmalloc

final class StraddlingAccessTests: XCTestCase {
  private func bytes(_ count: Int, _ seed: Int) -> [UInt8] {
    (0..<count).map { UInt8(($0 &* 7 &+ seed) & 0xff) }
  }

  private func store(_ bytes: [UInt8], in store: ZspageAllocator) throws -> ZspageHandle {
    try bytes.withUnsafeBytes { try store.store($0) }
  }

  func testEachWayReadsTheSameBytesAtEachOffset() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let store = system.memory.compressed.store
    for access in StraddlingAccess.allCases {
      try store.select(access)
      XCTAssertEqual(store.access, access)
      var straddlers = 0
      for length in [90, 1500, 1777, 2900, 3600] {
        let objects = try (0..<40).map { (try self.store(bytes(length, $0), in: store), bytes(length, $0)) }
        for (handle, expected) in objects {
          let straddles = store.straddles(handle)
          let read = try store.withSelectedParts(of: handle) { parts -> [UInt8] in
            if access != .parts { XCTAssertEqual(parts.second.count, 0) }
            return Array(parts.first) + Array(parts.second)
          }
          XCTAssertEqual(read, expected, "\(access)")
          if straddles { straddlers += 1 }
        }
        objects.forEach { store.free($0.0) }
      }
      XCTAssertGreaterThan(straddlers, 20)
      XCTAssertNil(system.memory.checkInvariants())
    }
  }

  func testOnlyNewAddressesAreRefusedWhenEveryAllocationFails() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let store = system.memory.compressed.store
    let handle = try XCTUnwrap(
      (0..<8).map { try self.store(bytes(1500, $0), in: store) }.first { store.straddles($0) })
    for access in StraddlingAccess.allCases {
      try store.select(access)
      system.host.failures.pointee.failsAll = true
      var refused = 0
      for _ in 0..<100 {
        do throws(ZsmallocError) { _ = try store.withSelectedParts(of: handle) { $0.first.count } } catch {
          XCTAssertEqual(error, .noMemory)
          refused += 1
        }
      }
      system.host.failures.pointee.failsAll = false
      XCTAssertEqual(refused, access == .vmap ? 100 : 0, "\(access)")
      XCTAssertNil(system.memory.checkInvariants())
    }
  }

  func testAWayThatLacksMemoryIsNotSelected() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let store = system.memory.compressed.store
    for access in [StraddlingAccess.map, .copy] {
      system.host.failures.pointee.failsAll = true
      XCTAssertFails(ZsmallocError.noMemory) { try store.select(access) }
      system.host.failures.pointee.failsAll = false
      XCTAssertEqual(store.access, .parts)
      XCTAssertNil(system.memory.checkInvariants())
    }
    // By the tunable too.
    system.host.failures.pointee.failsAll = true
    _ = system.memory.statistics.row(named: "zs.access")?.set(UInt64(StraddlingAccess.copy.rawValue))
    system.host.failures.pointee.failsAll = false
    XCTAssertEqual(store.access, .parts)
  }
}
