// Every bug that a caller of kmem can have, driven through a live system: it is reported, nothing changed.

import HostMachine
import MemoryPrimitives
import XCTest

@testable import Kmem
@testable import PhysicalMemory

final class KmemFaultReportTests: XCTestCase {
  private func expect(
    _ rig: KmemFixture, _ kinds: [FaultKind], file: StaticString = #filePath, line: UInt = #line,
    _ body: () -> Void
  ) -> FaultReport? {
    // Magazines may come and go.
    func used() -> ByteCount { rig.kmem.usedBytes - rig.kmem.describe(rig.kmem.ownType).bytes }
    let before = used()
    let faults = rig.host.faults(in: body)
    XCTAssertEqual(faults.map(\.kind), kinds, file: file, line: line)
    XCTAssertEqual(used(), before, "a report changes nothing", file: file, line: line)
    rig.check("", file, line)
    return faults.first
  }

  func testAuditReportsADoubleFreeWithBothCallSites() throws {
    let rig = try KmemFixture()
    rig.kmem.setAudit(.on)
    let type = rig.type()
    let object = rig.kmem.alloc(ByteCount(60), type: type)!
    rig.kmem.free(object, size: ByteCount(60), type: type)
    let fault = expect(rig, [.doubleFree]) { rig.kmem.free(object, size: ByteCount(60), type: type) }!
    XCTAssertEqual(fault.subject, VirtualAddress(object).rawValue)
    XCTAssertEqual(fault.owner, ShortName("kmem-64"))
    XCTAssertEqual(fault.type, ShortName("test"))
    XCTAssertNotEqual(fault.allocatedAt, .unknown)
    XCTAssertNotEqual(fault.freedAt, .unknown)
    XCTAssertNotEqual(fault.reportedAt, .unknown)
    XCTAssertNotEqual(fault.allocatedAt, fault.freedAt)
    rig.expectEmpty()
  }

  func testAuditReportsWrongSizeAndWrongType() throws {
    let rig = try KmemFixture()
    rig.kmem.setAudit(.on)
    let (type, other) = (rig.type(), rig.type("other one"))
    let object = rig.kmem.alloc(ByteCount(60), type: type)!
    let sameClass = expect(rig, [.wrongSize]) { rig.kmem.free(object, size: ByteCount(61), type: type) }!
    XCTAssertEqual(sameClass.given, 61)
    XCTAssertEqual(sameClass.expected, 60)
    XCTAssertEqual(sameClass.type, ShortName("test"))
    _ = expect(rig, [.wrongSize]) { rig.kmem.free(object, size: ByteCount(100), type: type) }
    _ = expect(rig, [.wrongSize]) { rig.kmem.free(object, size: ByteCount(15000), type: type) }
    let wrongType = expect(rig, [.wrongType]) { rig.kmem.free(object, size: ByteCount(60), type: other) }!
    XCTAssertEqual(wrongType.type, ShortName("test"))
    rig.kmem.free(object, size: ByteCount(60), type: type)
    rig.expectEmpty()
  }

  func testForeignPointersAreReportedWithAndWithoutAudit() throws {
    for auditing in [Auditing.off, .on] {
      let rig = try KmemFixture()
      rig.kmem.setAudit(auditing)
      let type = rig.type()
      let object = rig.kmem.alloc(ByteCount(60), type: type)!
      let cache = try rig.kmem.createCache(name: ShortName("own"), size: ByteCount(60))
      // The slow path checks them; a magazine with space would accept them unchecked.
      func free(_ pointer: UnsafeMutableRawPointer, _ size: Int) {
        rig.kmem.freeSlow(pointer, rig.kmem.counterOffset(UInt64(size)), UInt64(size), type)
      }
      var local: UInt64 = 0
      withUnsafeMutablePointer(to: &local) { local in
        _ = expect(rig, [.foreignPointer]) { free(UnsafeMutableRawPointer(local), 60) }
      }
      _ = expect(rig, [.foreignPointer]) { free(UnsafeMutableRawPointer(bitPattern: 64)!, 60) }
      _ = expect(rig, [.foreignPointer]) { free(object + 8, 60) }
      _ = expect(rig, [.wrongSize]) { free(object, 100) }
      _ = expect(rig, [.wrongSize]) { free(object, 4096) }
      _ = expect(rig, [.foreignPointer]) { cache.kmem.freeSlow(object, cache.counterOffset, 60, type) }
      let frame = try rig.physical.allocate(BlockOrder(0), role: .wired, priority: .normal)
      _ = expect(rig, [.foreignPointer]) { free(rig.host.machine.directMap.pointer(to: frame), 60) }
      rig.physical.free(frame, BlockOrder(0))
      _ = expect(rig, [.foreignPointer]) { free(rig.host.machine.directMap.pointer(to: frame), 60) }
      _ = expect(rig, [.notAllocated]) { free(UnsafeMutableRawPointer(bitPattern: 0x1234_5000)!, 15000) }
      let large = rig.kmem.alloc(ByteCount(15000), type: type)!
      _ = expect(rig, [.wrongSize]) { free(large, 50000) }
      _ = expect(rig, [.foreignPointer]) { free(large, 50) }
      rig.kmem.free(large, size: ByteCount(15000), type: type)
      _ = expect(rig, [.notAllocated]) { free(large, 15000) }
      rig.kmem.free(object, size: ByteCount(60), type: type)
      rig.expectEmpty()
    }
  }

  func testAnAddressBehindTheLastObjectOfASlabIsReportedApart() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let object = rig.kmem.alloc(ByteCount(192), type: type)!
    let start = rig.kmem.whatIs(VirtualAddress(object))!.slabStart
    let behind = (start + ByteCount(21 * 192)).pointer!
    _ = expect(rig, [.foreignPointer]) {
      rig.kmem.freeSlow(behind, rig.kmem.counterOffset(192), 192, type)
    }
    rig.kmem.free(object, size: ByteCount(192), type: type)
    rig.expectEmpty()
  }

  func testTheSlowPathReportsAnObjectThatIsFreeInItsSlabWithoutAudit() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let kept = rig.kmem.alloc(ByteCount(64), type: type)!
    let object = rig.kmem.alloc(ByteCount(64), type: type)!
    rig.kmem.free(object, size: ByteCount(64), type: type)
    rig.kmem.lookUp(ByteCount(64))!.drain()
    _ = expect(rig, [.doubleFree]) { rig.kmem.free(object, size: ByteCount(64), type: type) }
    // A user may have the same word in a live object; then the map is asked.
    kept.storeBytes(of: FreeWord.of(kept), as: UInt64.self)
    rig.kmem.free(kept, size: ByteCount(64), type: type)
    rig.expectEmpty()
  }

  func testAFreeOfTheObjectFreedJustBeforeIsReportedWithoutAudit() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    for size in [8, 64, 512, 4096] {
      let object = rig.kmem.alloc(ByteCount(size), type: type)!
      rig.kmem.free(object, size: ByteCount(size), type: type)
      let fault = expect(rig, [.doubleFree]) { rig.kmem.free(object, size: ByteCount(size), type: type) }
      XCTAssertEqual(fault?.subject, VirtualAddress(object).rawValue)
    }
    rig.expectEmpty()
  }

  func testAWrongObjectInAMagazineIsReportedWhenItLeaves() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let warm = rig.kmem.alloc(ByteCount(32), type: type)!
    let object = rig.kmem.alloc(ByteCount(64), type: type)!
    // The magazine of 32-byte objects has space, and takes it.
    rig.kmem.free(object, size: ByteCount(32), type: type)
    let faults = rig.host.faults { rig.kmem.lookUp(ByteCount(32))!.drain() }
    XCTAssertEqual(faults.map(\.kind), [.wrongSize])
    XCTAssertEqual(faults.first?.subject, VirtualAddress(object).rawValue)
    XCTAssertEqual(faults.first?.expected, 64)
    // The free that was counted and did not take place is evened out, so the invariants hold as before.
    rig.check()
    rig.kmem.free(object, size: ByteCount(64), type: type)
    rig.kmem.free(warm, size: ByteCount(32), type: type)
    rig.expectEmpty()
  }

  func testADoubleFreeUnderAnotherObjectIsReportedWhenItLeaves() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let (a, b) = (rig.kmem.alloc(ByteCount(64), type: type)!, rig.kmem.alloc(ByteCount(64), type: type)!)
    for object in [a, b, a] { rig.kmem.free(object, size: ByteCount(64), type: type) }
    let faults = rig.host.faults { rig.kmem.lookUp(ByteCount(64))!.drain() }
    XCTAssertEqual(faults.map(\.kind), [.doubleFree])
    XCTAssertEqual(faults.first?.subject, VirtualAddress(a).rawValue)
    rig.expectEmpty()
  }

  func testRacingFreesOfOneObjectPastTheMagazinesAreReportedApart() throws {
    let rig = try KmemFixture(frames: 2048, processors: 2)
    let type = rig.type()
    for round in 0..<50 {
      // Plain objects, freed while audit keeps the magazines away.
      let objects = (0..<200).map { _ in rig.kmem.alloc(ByteCount(64), type: type)! }
      rig.kmem.setAudit(.on)
      let kmem = rig.kmem
      nonisolated(unsafe) let both = objects
      let shared = type
      let faults = rig.host.faults {
        rig.host.onThreads(2) { _ in
          for object in both { kmem.free(object, size: ByteCount(64), type: shared) }
        }
      }
      XCTAssertGreaterThan(faults.count, 0)
      XCTAssertTrue(faults.allSatisfy { [.doubleFree, .foreignPointer].contains($0.kind) })
      rig.check("round \(round)")
      rig.kmem.setAudit(.off)
    }
    rig.expectEmpty()
  }

  func testWritingToAFreeObjectIsReportedAndItsSlabTakenOutOfUse() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let objects = (0..<64).map { _ in rig.kmem.alloc(ByteCount(64), type: type)! }
    for object in objects.dropFirst() { rig.kmem.free(object, size: ByteCount(64), type: type) }
    rig.kmem.lookUp(ByteCount(64))!.drain()
    let victim = objects[40]
    XCTAssertEqual(rig.kmem.whatIs(VirtualAddress(victim))!.standing, .freeInSlab)
    victim.storeBytes(of: 0xdead_beef, as: UInt64.self)
    var got: [UnsafeMutableRawPointer] = []
    let faults = rig.host.faults {
      for _ in 0..<100 { got.append(rig.kmem.alloc(ByteCount(64), type: type)!) }
    }
    XCTAssertEqual(faults.map(\.kind), [.writeAfterFree])
    XCTAssertEqual(faults.first?.subject, VirtualAddress(victim).rawValue)
    XCTAssertEqual(Set(got).count, 100)
    XCTAssertFalse(got.contains(victim))
    rig.check()
    for object in got + [objects[0]] { rig.kmem.free(object, size: ByteCount(64), type: type) }
    rig.kmem.drain()
    rig.check()
    XCTAssertEqual(rig.physical.count(.slab), .one, "the damaged slab stays")
  }

  func testDestroyingACacheWithObjectsInUseIsALeak() throws {
    let rig = try KmemFixture()
    for auditing in [Auditing.off, .on] {
      rig.kmem.setAudit(auditing)
      let cache = try rig.kmem.createCache(name: ShortName("leaky"), size: ByteCount(100))
      let type = rig.type()
      let objects = (0..<3).map { _ in cache.alloc(type: type)! }
      let fault = expect(rig, [.leak]) { rig.kmem.destroy(cache) }!
      XCTAssertEqual(fault.given, 3)
      XCTAssertEqual(fault.owner, ShortName("leaky"))
      XCTAssertTrue(objects.contains { VirtualAddress($0).rawValue == fault.subject })
      if auditing == .on { XCTAssertNotEqual(fault.allocatedAt, .unknown) }
      for object in objects { cache.free(object, type: type) }
      rig.kmem.destroy(cache)
    }
    _ = expect(rig, [.foreignPointer]) { rig.kmem.destroy(rig.kmem.lookUp(ByteCount(64))!) }
    rig.kmem.setAudit(.off)
    rig.expectEmpty()
  }

  func testACacheThatIsGoneIsDistinguishedFromOneThatIs() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let cache = try rig.kmem.createCache(name: ShortName("gone"), size: ByteCount(100))
    rig.kmem.destroy(cache)
    let failed = rig.kmem.failedRequests
    _ = expect(rig, [.notAllocated]) { rig.kmem.destroy(cache) }
    _ = expect(rig, [.notAllocated]) { XCTAssertNil(cache.alloc(type: type)) }
    _ = expect(rig, [.notAllocated]) { XCTAssertEqual(cache.drain(), .zero) }
    _ = expect(rig, [.notAllocated]) { cache.setAudit(.on) }
    XCTAssertEqual(rig.kmem.failedRequests, failed)
    rig.expectEmpty()
  }

  func testAuditedAndPlainObjectsLiveSideBySide() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let plain = (0..<40).map { _ in rig.kmem.alloc(ByteCount(60), type: type)! }
    rig.kmem.setAudit(.on)
    let audited = (0..<40).map { _ in rig.kmem.alloc(ByteCount(60), type: type)! }
    rig.check()
    XCTAssertNil(rig.kmem.whatIs(VirtualAddress(plain[0]))!.audit)
    let audit = rig.kmem.whatIs(VirtualAddress(audited[0]))!.audit!
    XCTAssertEqual(audit.size, ByteCount(60))
    XCTAssertEqual(audit.type, ShortName("test"))
    for object in plain[..<20] + audited[..<20] { rig.kmem.free(object, size: ByteCount(60), type: type) }
    rig.check()
    rig.kmem.setAudit(.off)
    // Audited objects go into magazines and come out again under another size.
    for object in audited[20...] { rig.kmem.free(object, size: ByteCount(60), type: type) }
    let again = (0..<60).map { _ in rig.kmem.alloc(ByteCount(64), type: rig.type("b"))! }
    rig.kmem.setAudit(.on)
    rig.check()
    for object in again { rig.kmem.free(object, size: ByteCount(64), type: rig.type("b")) }
    for object in plain[20...] { rig.kmem.free(object, size: ByteCount(60), type: type) }
    rig.kmem.setAudit(.off)
    rig.expectEmpty()
  }
}
