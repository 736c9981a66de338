import ACPI
import MemoryPrimitives
import XCTest

/// The search for a root pointer, on a machine of 1 MiB with nothing behind it.
final class RootSearchTests: XCTestCase {
  let memory = GuardedMemory(size: 1 << 20)

  func found() -> UInt64? { try? ACPITables.findRoot(reach: memory.reach, map: memory.map).rawValue }

  func area(_ address: Int) { memory.put(littleEndian(UInt16(address >> 4)), at: 0x40e) }

  func testMemoryWithoutARootHasNone() {
    XCTAssertThrowsError(try ACPITables.findRoot(reach: memory.reach, map: memory.map)) {
      XCTAssertEqual($0 as? ACPIError, .noRoot)
    }
  }

  func testTheROMIsSearchedOnMultiplesOfSixteen() {
    for address in [0xe0000, 0xe0010, 0xf59d0, 0xfffe0] {
      let memory = GuardedMemory(size: 1 << 20)
      memory.put(rootPointer(revision: 0, rsdt: 1), at: address)
      XCTAssertEqual(
        try? ACPITables.findRoot(reach: memory.reach, map: memory.map).rawValue, UInt64(address))
    }
    memory.put(rootPointer(revision: 0, rsdt: 1), at: 0xe0008)
    memory.put(rootPointer(revision: 0, rsdt: 1), at: 0xdfff0)
    // Four of its bytes would lie above 1 MiB.
    memory.put(rootPointer(revision: 0, rsdt: 1).prefix(16), at: 0xffff0)
    XCTAssertNil(found())
  }

  func testTheDataAreaComesFirstAndIsOneKibibyte() {
    memory.put(rootPointer(revision: 0, rsdt: 1), at: 0xf0000)
    area(0x9fc00)
    XCTAssertEqual(found(), 0xf0000)
    memory.put(rootPointer(revision: 2, rsdt: 1), at: 0x9fc00 + 1024 - 48)
    XCTAssertEqual(found(), 0x9fc00 + 1024 - 48)
    area(0x9f800)
    XCTAssertEqual(found(), 0xf0000)
  }

  func testNeitherTheScreenNorTheTableOfInterruptsIsTakenForADataArea() {
    memory.forbid(pageAt: 0xa0000)
    memory.put(rootPointer(revision: 0, rsdt: 1), at: 0x10)
    for address in [0, 0x10, 0x3f0, 0x9fff0, 0xa0000, 0xa0010, 0xffff0] {
      area(address)
      XCTAssertNil(found(), "\(address)")
    }
  }

  func testADamagedRootIsSkipped() {
    var damaged = rootPointer(revision: 0, rsdt: 1)
    damaged[9] ^= 1
    memory.put(damaged, at: 0xe0000)
    damaged = rootPointer(revision: 2, rsdt: 1, xsdt: 2)
    damaged[33] ^= 1
    memory.put(damaged, at: 0xe0040)
    // Cut off by the end of memory.
    memory.put(rootPointer(revision: 2, rsdt: 1, xsdt: 2).prefix(32), at: 0xfffe0)
    XCTAssertNil(found())
    memory.put(rootPointer(revision: 2, rsdt: 1, xsdt: 2), at: 0xf0000)
    XCTAssertEqual(found(), 0xf0000)
  }

  func testASearchStaysWithinTheMemoryThatCanBeRead() {
    for size in [4096, 8192, 0x9f000, 0xe0000, 0xe1000] {
      let memory = GuardedMemory(size: size)
      memory.put(littleEndian(UInt16(0x9fc0)), at: 0x40e)
      XCTAssertNil(try? ACPITables.findRoot(reach: memory.reach, map: memory.map))
    }
    for reach: UInt64 in [0, 0x40e, 0x40f] {
      XCTAssertNil(try? ACPITables.findRoot(reach: ByteCount(reach), map: memory.map))
    }
  }
}
