import ACPI
import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

/// Damage of every kind: for any contents of the tables, nothing crashes, nothing outside of memory is read, and no
/// processor is visited twice.
final class DamagedTablesTests: XCTestCase {
  static let entries = [
    Listed.local(0), Listed.local(1), Listed.ioAPIC, Listed.local(2, flags: 0), Listed.local2(1),
    Listed.local2(300),
    Listed.address(0xfee0_0000), Listed.local2(300, flags: 2), Listed.local(3, flags: 2),
  ]
  static let sound: [UInt32] = [0, 1, 300, 3, 2]

  let memory = GuardedMemory(size: 4096)

  /// The set as it lies when it ends where memory does.
  func set() -> TableSet {
    let madt = Listed.madt(Self.entries)
    return TableSet(at: memory.size - TableSet(at: 0, madt: madt).bytes.count, madt: madt)
  }

  /// Reads everything there is to read, and returns the processors.
  @discardableResult
  func read(root: Int, _ what: @autoclosure () -> String) throws(ACPIError) -> [UInt32] {
    let tables = try memory.tables(root: root)
    _ = try? tables.find(TableSignature("SSDT"))
    let madt = try MADT(tables)
    let identities = madt.identities
    XCTAssertEqual(Set(identities).count, identities.count, what())
    XCTAssertLessThanOrEqual(identities.count, memory.size / 8, what())
    return identities
  }

  func testEveryFlippedByteIsFound() throws {
    let set = set()
    memory.put(set.bytes, at: set.base)
    XCTAssertEqual(try read(root: set.base, "as it is"), Self.sound)
    let lengths = Set(20..<24).union(
      [set.xsdt, set.rsdt, set.madt].flatMap { $0.lowerBound + 4..<$0.lowerBound + 8 })
    for i in set.bytes.indices {
      for flip in 1...255 {
        memory.bytes[set.base + i] = set.bytes[i] ^ UInt8(flip)
        let listed = try? read(root: set.base, "byte \(i) ^ \(flip)")
        if lengths.contains(i) {
          // The bytes inside a wrong length may add up by chance: then fewer processors are visited, but no others.
          XCTAssertTrue(Set(listed ?? []).isSubset(of: Self.sound), "byte \(i) ^ \(flip)")
        } else if set.madt.contains(i) || i < 20 {
          XCTAssertNil(listed, "byte \(i) ^ \(flip)")
        } else {
          // The second half of the root or one list is lost, or a table that the reader does not need.
          XCTAssertEqual(listed, Self.sound, "byte \(i) ^ \(flip)")
        }
      }
      memory.bytes[set.base + i] = set.bytes[i]
    }
  }

  /// The same with sums that are right again, so that the damage reaches the reader.
  func testNoFlippedByteUnderARightChecksumCrashesTheReader() {
    let whole = set()
    for i in whole.bytes.indices {
      for flip in 1...255 {
        var set = whole
        set.bytes[i] ^= UInt8(flip)
        set.balanceAll()
        memory.put(set.bytes, at: set.base)
        _ = try? read(root: set.base, "byte \(i) ^ \(flip), balanced")
      }
    }
  }

  /// Memory ends after each byte of the set in turn.
  func testNoTruncatedTableIsReadPastItsEnd() {
    let madt = Listed.madt(Self.entries)
    let count = TableSet(at: 0, madt: madt).bytes.count
    for kept in 0..<count {
      let set = TableSet(at: memory.size - kept, madt: madt)
      memory.put(set.bytes.prefix(kept), at: set.base)
      XCTAssertNil(try? read(root: set.base, "\(kept) bytes kept"), "\(kept) bytes kept")
    }
  }

  /// Each table says in turn that it has any length up to its own and a bit beyond, and adds up.
  func testNoLengthCrashesTheReader() {
    let whole = set()
    for table in [whole.xsdt, whole.rsdt, whole.other, whole.madt] {
      for length in 0...table.count + 64 {
        var set = whole
        set.bytes.replaceSubrange(
          table.lowerBound + 4..<table.lowerBound + 8, with: littleEndian(UInt32(length)))
        let end = table.lowerBound + length
        if length >= 10, end <= set.bytes.count {
          balance(&set.bytes, table.lowerBound..<end, at: table.lowerBound + 9)
        }
        memory.put(set.bytes, at: set.base)
        let listed = try? read(root: set.base, "\(table) of length \(length)")
        if table == whole.madt, end > set.bytes.count { XCTAssertNil(listed, "length \(length)") }
      }
    }
  }

  func testRandomDamageCrashesNothing() {
    let seed = historySeed(61)
    var random = SeededRandom(seed: seed)
    let whole = set()
    for round in 0..<100_000 {
      var set = whole
      for _ in 0..<Int.random(in: 1...12, using: &random) {
        let at = Int.random(in: 0..<set.bytes.count, using: &random)
        switch Int.random(in: 0..<4, using: &random) {
        case 0: set.bytes[at] = UInt8.random(in: .min ... .max, using: &random)
        case 1: set.bytes[at] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &random)!
        case 2: set.bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        default:
          let from = Int.random(in: 0..<set.bytes.count, using: &random)
          let count = min(Int.random(in: 1...16, using: &random), set.bytes.count - max(at, from))
          for i in 0..<count { set.bytes[at + i] = set.bytes[from + i] }
        }
      }
      if round % 4 != 0 { set.balanceAll() }
      memory.put(set.bytes, at: set.base)
      _ = try? read(root: set.base, "STRATA_SEED=\(seed), round \(round)")
    }
  }

  /// Nothing but noise where a MADT has its entries.
  func testRandomEntriesCrashNothing() {
    let seed = historySeed(62)
    var random = SeededRandom(seed: seed)
    for round in 0..<20_000 {
      // Small numbers, so that kinds and lengths are often right.
      let noise = (0..<Int.random(in: 0...300, using: &random)).map { _ in
        UInt8.random(in: 0...17, using: &random)
      }
      let madt = Listed.madt([noise])
      let set = TableSet(at: memory.size - TableSet(at: 0, madt: madt).bytes.count, madt: madt)
      memory.put(set.bytes, at: set.base)
      XCTAssertNotNil(try? read(root: set.base, "STRATA_SEED=\(seed), round \(round)"))
    }
  }
}
