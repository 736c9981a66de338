import MemoryPrimitives
import XCTest

@testable import ACPI

final class ACPITests: XCTestCase {
  let memory = GuardedMemory(size: 8192)

  /// Puts a whole set at the end of memory, and returns it.
  func put(_ entries: [[UInt8]]) -> TableSet {
    let madt = Listed.madt(entries)
    let size = TableSet(at: 0, madt: madt).bytes.count
    let set = TableSet(at: memory.size - size, madt: madt)
    memory.put(set.bytes, at: set.base)
    return set
  }

  func madt(_ entries: [[UInt8]]) throws -> MADT { try MADT(memory.tables(root: put(entries).base)) }

  func assertThrows<T>(
    _ expected: ACPIError, line: UInt = #line, _ body: () throws(ACPIError) -> T
  ) {
    do throws(ACPIError) {
      _ = try body()
      XCTFail("nothing thrown", line: line)
    } catch { XCTAssertEqual(error, expected, line: line) }
  }

  // MARK: Root pointer and lists

  func testTheExtendedListIsPreferred() throws {
    let set = put([Listed.local(0)])
    let tables = try memory.tables(root: set.base)
    XCTAssertEqual(tables.list.signature, .xsdt)
    let found = try tables.find(TableSignature("SSDT"))
    XCTAssertEqual(found.address.rawValue, UInt64(set.base + set.other.lowerBound))
    XCTAssertEqual(found.length.rawValue, 41)
    XCTAssertEqual(found.load(at: ByteCount(37), as: UInt32.self), 0x0504_0302)
    XCTAssertNil(found.load(at: ByteCount(38), as: UInt32.self))
    XCTAssertNil(found.load(at: ByteCount(UInt64.max), as: UInt8.self))
    assertThrows(.noSuchTable) { () throws(ACPIError) in try tables.find(TableSignature("SRAT")) }
  }

  func testRevisionZeroHasTwentyBytesAndOneList() throws {
    let list = table("RSDT", littleEndian(UInt32(512)))
    memory.put(list, at: 256)
    memory.put(Listed.madt([Listed.local(3)]), at: 512)
    // Twenty bytes, and no memory behind them.
    let root = memory.size - 20
    memory.put(rootPointer(revision: 0, rsdt: 256), at: root)
    let tables = try memory.tables(root: root)
    XCTAssertEqual(tables.list.signature, .rsdt)
    XCTAssertEqual(try MADT(tables).identities, [3])
    // The same twenty bytes, cut from a root pointer of revision 2 by the loader.
    memory.put(rootPointer(revision: 2, rsdt: 256, xsdt: 300).prefix(20), at: root)
    XCTAssertEqual(try MADT(memory.tables(root: root)).identities, [3])
    // Without an RSDT there is no way on.
    memory.put(rootPointer(revision: 2, rsdt: 0, xsdt: 300).prefix(20), at: root)
    assertThrows(.outOfReach) { () throws(ACPIError) in try memory.tables(root: root) }
    memory.put(rootPointer(revision: 0, rsdt: 0), at: root)
    assertThrows(.noSuchTable) { () throws(ACPIError) in try memory.tables(root: root) }
  }

  func testAnUnsoundExtendedListGivesWayToTheOther() throws {
    let set = put([Listed.local(0), Listed.local(1)])
    let lists: [(Int, String)] = [
      (0, "none"), (set.base + set.rsdt.lowerBound, "another table"), (memory.size - 4, "past the end"),
      (memory.size, "behind the end"), (-8, "at the top of the address space"),
    ]
    for (address, what) in lists {
      var root = rootPointer(revision: 2, rsdt: set.base + set.rsdt.lowerBound)
      root.replaceSubrange(24..<32, with: littleEndian(UInt64(bitPattern: Int64(address))))
      balance(&root, 0..<36, at: 32)
      memory.put(root, at: set.base)
      let tables = try memory.tables(root: set.base)
      XCTAssertEqual(tables.list.signature, .rsdt, what)
      XCTAssertEqual(try MADT(tables).identities, [0, 1], what)
    }
  }

  func testABrokenRootIsRefused() {
    let set = put([])
    assertThrows(.noRoot) { () throws(ACPIError) in try memory.tables(root: 0) }
    assertThrows(.badSignature) { () throws(ACPIError) in try memory.tables(root: set.base + 36) }
    assertThrows(.outOfReach) { () throws(ACPIError) in try memory.tables(root: memory.size - 19) }
    assertThrows(.outOfReach) { () throws(ACPIError) in try memory.tables(root: memory.size) }
    assertThrows(.outOfReach) { () throws(ACPIError) in
      try ACPITables(root: PhysicalAddress(.max), reach: memory.reach, map: memory.map)
    }
    memory.bytes[set.base + 8] ^= 1
    assertThrows(.badChecksum) { () throws(ACPIError) in try memory.tables(root: set.base) }
  }

  func testADamagedTableHidesNoSoundOne() throws {
    var damaged = Listed.madt([Listed.local(7)])
    damaged[50] ^= 1
    memory.put(damaged, at: 1024)
    memory.put(Listed.madt([Listed.local(8)]), at: 2048)
    func list(_ addresses: [UInt64]) {
      memory.put(table("XSDT", addresses.flatMap { littleEndian($0) }), at: 256)
    }
    memory.put(rootPointer(revision: 2, rsdt: 0, xsdt: 256), at: 128)
    list([UInt64(memory.size), 1024, 2048])
    XCTAssertEqual(try MADT(memory.tables(root: 128)).identities, [8])
    list([1024, 1 << 40])
    assertThrows(.badChecksum) { () throws(ACPIError) in try MADT(memory.tables(root: 128)) }
    list([1 << 40])
    assertThrows(.outOfReach) { () throws(ACPIError) in try MADT(memory.tables(root: 128)) }
    list([])
    assertThrows(.noSuchTable) { () throws(ACPIError) in try MADT(memory.tables(root: 128)) }
  }

  func testImpossibleLengthsAreRefused() throws {
    memory.put(rootPointer(revision: 2, rsdt: 0, xsdt: 256), at: 128)
    memory.put(table("XSDT", littleEndian(UInt64(1024))), at: 256)
    let lengths: [(UInt32, ACPIError)] = [
      (0, .badLength), (35, .badLength), (UInt32(memory.size), .outOfReach), (16 << 20 + 1, .badLength),
      (.max, .badLength), (43, .badLength),
    ]
    for (length, error) in lengths {
      var bytes = table("APIC", [UInt8](repeating: 0, count: 7), length: Int(length))
      if length == 35 { balance(&bytes, 0..<35, at: 9) }
      memory.put(bytes, at: 1024)
      assertThrows(error) { () throws(ACPIError) in try MADT(memory.tables(root: 128)) }
    }
  }

  // MARK: Processors

  func testProcessorsOfBothKindsAreListed() throws {
    let madt = try madt([
      Listed.local(0), Listed.ioAPIC, Listed.local(2, flags: 0), [0x7f, 3, 9], Listed.local(4, flags: 2),
      Listed.local(6, flags: 3), Listed.local2(254), Listed.local2(255), Listed.local2(70_000), [0x80, 2],
    ])
    XCTAssertNil(madt.flaw)
    XCTAssertEqual(madt.identities, [0, 6, 254, 255, 70_000, 4, 2])
    XCTAssertEqual(
      madt.processors.map(\.state),
      [.enabled, .enabled, .enabled, .enabled, .enabled, .onlineCapable, .disabled])
    XCTAssertEqual(
      madt.processors.map(\.identity.addressing), [.xAPIC, .xAPIC, .xAPIC, .x2APIC, .x2APIC, .xAPIC, .xAPIC])
  }

  func testAnEntryThatOverridesTheAddressIsSkipped() throws {
    let madt = try madt([Listed.local(0), Listed.address(0x12_3456_7000), Listed.local(2)])
    XCTAssertNil(madt.flaw)
    XCTAssertEqual(madt.identities, [0, 2])
  }

  func testAnIdentityCountsOnceWithTheBestThatIsSaidOfIt() throws {
    let madt = try madt([
      Listed.local(5, flags: 0), Listed.local2(300, flags: 0), Listed.local(5), Listed.local2(5),
      Listed.local2(300),
      Listed.local2(300, flags: 2), Listed.local2(300), Listed.local2(255, flags: 0),
      Listed.local2(255, flags: 0),
      Listed.local2(301, flags: 2), Listed.local2(301, flags: 0), Listed.local(5, flags: 2),
    ])
    XCTAssertEqual(
      madt.processors.map { "\($0.identity.rawValue) \($0.state)" },
      ["5 enabled", "300 enabled", "301 onlineCapable", "255 disabled"])
  }

  /// All ones, in the width of the entry, means all processors: none has that identity.
  func testAnIdentityOfAllOnesIsNoProcessor() throws {
    for flags: UInt32 in 0...3 {
      let madt = try madt([
        Listed.local(255, flags: flags), Listed.local(1), Listed.local2(.max, flags: flags),
        Listed.local2(254),
      ])
      XCTAssertNil(madt.flaw)
      XCTAssertEqual(madt.identities, [1, 254])
    }
    // An x2APIC has 32 bits, of which 255 is an identity like others.
    XCTAssertEqual(
      try madt([Listed.local(255), Listed.local2(255), Listed.local2(.max - 1)]).identities, [255, .max - 1])
  }

  func testAVisitCanBeEndedByAnError() throws {
    struct Enough: Error {}
    let madt = try madt([Listed.local(0), Listed.local(1), Listed.local(2)])
    var seen = 0
    do throws(Enough) {
      try madt.forEachProcessor { _ throws(Enough) in
        seen += 1
        if seen == 2 { throw Enough() }
      }
      XCTFail("the error was lost")
    } catch { XCTAssertEqual(seen, 2) }
  }

  func testMalformedEntriesEndTheWalkAndSaySo() throws {
    let malformed: [[UInt8]] = [
      [0, 0, 1, 1, 1, 0, 0, 0], [1, 1], [1], [9, 8, 0, 0, 1, 0, 0, 0], [0, 7, 1, 1, 1, 0, 0],
      [0, 9, 1, 1, 1, 0, 0, 0],
      [5, 8, 0, 0, 0, 0, 0, 0], [9, 16, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], [0x7f, 255, 0],
    ]
    for entry in malformed {
      let madt = try madt([Listed.local(0), Listed.local(2), entry])
      XCTAssertEqual(madt.flaw, .malformedEntry, "\(entry)")
      XCTAssertEqual(madt.identities, [0, 2], "\(entry)")
    }
    // In the middle: the entries after it are lost.
    let madt = try madt([Listed.local(0), [3, 0], Listed.local(2)])
    XCTAssertEqual(madt.flaw, .malformedEntry)
    XCTAssertEqual(madt.identities, [0])
  }

  func testATableWithoutProcessorsListsNone() throws {
    let madt = try madt([])
    XCTAssertNil(madt.flaw)
    XCTAssertEqual(madt.identities, [])
  }

  // MARK: A machine's own

  /// The tables of SeaBIOS in QEMU 7.2 with `-m 64M -smp 4`.
  func testTheTablesOfQEMUAreRead() throws {
    let ram = GuardedMemory(size: 64 << 20)
    func put(_ address: Int, _ hex: String) {
      let digits = Array(hex.utf8).map { UInt8(String(UnicodeScalar($0)), radix: 16)! }
      ram.put(stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }, at: address)
    }
    put(0x40e, "c09f")
    put(0xf59d0, "52534420505452206f424f4348532000c71bfe030000000000000000000000005f534d5f")
    put(
      0x3fe_1bc7,
      "52534454340000000175424f434853204258504320202020010000004258504301000000"
        + "631afe03d71afe03671bfe039f1bfe03")
    put(
      0x3fe_1ad7,
      "4150494390000000014b424f434853204258504320202020010000004258504301000000"
        + "0000e0fe0100000000080000010000000008010101000000000802020100000000080303"
        + "01000000010c00000000c0fe00000000020a0000020000000000020a0005050000000d00"
        + "020a0009090000000d00020a000a0a0000000d00020a000b0b0000000d000406ff000001")
    let root = try ACPITables.findRoot(reach: ram.reach, map: ram.map)
    XCTAssertEqual(root.rawValue, 0xf59d0)
    let madt = try MADT(ACPITables(root: root, reach: ram.reach, map: ram.map))
    XCTAssertNil(madt.flaw)
    XCTAssertEqual(madt.identities, [0, 1, 2, 3])
    XCTAssertEqual(Set(madt.processors.map(\.state)), [.enabled])
  }

  func testEveryErrorHasADescription() {
    XCTAssertEqual(Set(ACPIError.allCases.map { "\($0.description)" }).count, ACPIError.allCases.count)
  }
}
