// Contiguous requests move the pages of zspages, as many as they forecast, and keep their contents.

import ContiguousMemory
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import XCTest

@testable import Zsmalloc

final class ZspageMovingTests: XCTestCase {
  private func fill(_ store: ZspageAllocator, share: Double, of system: TestSystem) throws -> [(
    ZspageHandle, [UInt8]
  )] {
    var objects: [(ZspageHandle, [UInt8])] = []
    let enough = UInt64(Double(system.physical.freeCount.rawValue) * share)
    while system.physical.count(.zspage).rawValue < enough {
      let bytes = (0..<1700).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ objects.count) }
      guard let handle = try? bytes.withUnsafeBytes({ try store.store($0) }) else { break }
      objects.append((handle, bytes))
    }
    return objects
  }

  private func expectIntact(_ objects: [(ZspageHandle, [UInt8])], in store: ZspageAllocator) {
    for (handle, bytes) in objects {
      XCTAssertEqual(store.withParts(of: handle) { Array($0.first) + Array($0.second) }, bytes)
    }
  }

  func testARunIsGrantedByMovingZspagesAsForecast() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let store = system.memory.compressed.store
    var objects = try fill(store, share: 0.97, of: system)
    // All but every fifth object are freed, so that frames are free all over memory.
    objects = objects.enumerated().filter { index, object in
      if index % 5 == 0 { return true }
      store.free(object.0)
      return false
    }.map(\.element)
    var constraints = RunConstraints()
    constraints.alignment = Alignment(1 << 19)!
    let request = ContiguousRequest(PageCount(UInt64(128)), where: constraints)
    let forecast = system.contiguous.forecast(request)
    XCTAssertEqual(forecast.outcome, .granted)
    XCTAssertGreaterThan(forecast.moved, .zero)
    XCTAssertEqual(forecast.written, .zero)
    let moved = store.lists.quiet.pointee.counters.pointee.movedPages.value
    let run = try system.contiguous.allocContig(request)
    XCTAssertEqual(
      store.lists.quiet.pointee.counters.pointee.movedPages.value - moved, forecast.moved.rawValue)
    XCTAssertEqual(run.count, request.count)
    XCTAssertNil(system.memory.checkInvariants())
    expectIntact(objects, in: store)
    system.contiguous.releaseContig(run)
    objects.forEach { store.free($0.0) }
    XCTAssertNil(system.memory.checkInvariants())
  }

  /// A search adds up counts of pageblocks: they are those of the frames.
  func testThePagesOfZspagesAreCountedByPageblock() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let store = system.memory.compressed.store
    let objects = try fill(store, share: 0.5, of: system)
    for (index, object) in objects.enumerated() where index % 3 > 0 { store.free(object.0) }
    let table = system.physical.table
    var (counted, found) = (UInt64(0), UInt64(0))
    for frame in 0..<UInt32(4096) where table.section(of: frame) != nil {
      if frame % 512 == 0 { counted += table.pageblock(frame).zspageCount }
      if system.physical.whatIs(FrameNumber(frame)).role == .zspage { found += 1 }
    }
    XCTAssertGreaterThan(found, 500)
    XCTAssertEqual(counted, found)
    XCTAssertNil(system.memory.checkInvariants())
    for (index, object) in objects.enumerated() where index % 3 == 0 { store.free(object.0) }
    XCTAssertNil(system.memory.checkInvariants())
  }

  func testAPageWithAReaderKeepsARunFromBeingEmptied() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    let store = system.memory.compressed.store
    let bytes = [UInt8](repeating: 9, count: 3000)
    let handle = try bytes.withUnsafeBytes { try store.store($0) }
    var constraints = RunConstraints()
    try XCTUnwrap(
      store.withParts(of: handle) { parts in
        let frame = system.host.machine.directMap.physicalAddress(
          of: VirtualAddress(parts.first.baseAddress!)
        ).frame
        constraints.low = frame.address
        constraints.high = frame.address + PageCount.one.bytes
        XCTAssertThrowsError(
          try system.contiguous.allocContig(ContiguousRequest(.one, where: constraints))
        ) {
          XCTAssertEqual(($0 as? ContiguousFailure)?.answer, .notNow)
        }
        XCTAssertEqual(Array(parts.first) + Array(parts.second), bytes)
      })
    XCTAssertNil(system.memory.checkInvariants())
    // Without the reader it is granted.
    let run = try system.contiguous.allocContig(ContiguousRequest(.one, where: constraints))
    XCTAssertEqual(run.first.address, constraints.low)
    expectIntact([(handle, bytes)], in: store)
    system.contiguous.releaseContig(run)
    store.free(handle)
    XCTAssertNil(system.memory.checkInvariants())
  }
}
