import ACPI
import Foundation
import MemoryPrimitives
import XCTest

/// Physical memory of its own, with nothing readable on either side: a read out of bounds ends the test.
final class GuardedMemory {
  let size: Int
  private let mapping: UnsafeMutableRawPointer
  private static let page = 4096

  init(size: Int) {
    precondition(size % Self.page == 0)
    self.size = size
    mapping = mmap(
      nil, size + 2 * Self.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    precondition(mapping != MAP_FAILED)
    precondition(mprotect(mapping + Self.page, size, PROT_READ | PROT_WRITE) == 0)
  }
  deinit { munmap(mapping, size + 2 * Self.page) }

  var bytes: UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(start: mapping + Self.page, count: size)
  }
  var map: DirectMap { DirectMap(base: UInt64(UInt(bitPattern: mapping + Self.page))) }
  var reach: ByteCount { ByteCount(size) }

  func put(_ content: some Sequence<UInt8>, at address: Int) {
    for (i, byte) in content.enumerated() { bytes[address + i] = byte }
  }

  /// Makes one page a place where any access ends the test.
  func forbid(pageAt address: Int) {
    precondition(mprotect(bytes.baseAddress! + address, Self.page, PROT_NONE) == 0)
  }

  func tables(root: Int) throws(ACPIError) -> ACPITables {
    try ACPITables(root: PhysicalAddress(UInt64(root)), reach: reach, map: map)
  }
}

func littleEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
  withUnsafeBytes(of: value.littleEndian, Array.init)
}

/// Sets the byte at `at` so that all of them add up to 0.
func balance(_ bytes: inout [UInt8], _ range: Range<Int>, at: Int) {
  bytes[at] = 0
  bytes[at] = 0 &- bytes[range].reduce(0, &+)
}

/// A table with header and checksum.
func table(_ signature: String, _ content: [UInt8], length: Int? = nil) -> [UInt8] {
  var bytes = Array(signature.utf8) + littleEndian(UInt32(length ?? 36 + content.count)) + [5, 0]
  bytes +=
    Array("STRATATESTTABL".utf8) + littleEndian(UInt32(1)) + Array("TEST".utf8) + littleEndian(UInt32(1))
  precondition(bytes.count == 36)
  bytes += content
  balance(&bytes, 0..<bytes.count, at: 9)
  return bytes
}

func rootPointer(revision: UInt8, rsdt: Int, xsdt: Int = 0) -> [UInt8] {
  var bytes = Array("RSD PTR ".utf8) + [0] + Array("STRATA".utf8) + [revision] + littleEndian(UInt32(rsdt))
  balance(&bytes, 0..<20, at: 8)
  guard revision >= 2 else { return bytes }
  bytes += littleEndian(UInt32(36)) + littleEndian(UInt64(xsdt)) + [0, 0, 0, 0]
  balance(&bytes, 0..<36, at: 32)
  return bytes
}

enum Listed {
  static func local(_ identity: UInt8, flags: UInt32 = 1) -> [UInt8] {
    [0, 8, 0, identity] + littleEndian(flags)
  }
  static func local2(_ identity: UInt32, flags: UInt32 = 1) -> [UInt8] {
    [9, 16, 0, 0] + littleEndian(identity) + littleEndian(flags) + littleEndian(UInt32(0))
  }
  static func address(_ address: UInt64) -> [UInt8] { [5, 12, 0, 0] + littleEndian(address) }
  static let ioAPIC: [UInt8] = [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]

  static func madt(_ entries: [[UInt8]], controller: UInt32 = 0xfee0_0000) -> [UInt8] {
    table("APIC", littleEndian(controller) + littleEndian(UInt32(1)) + entries.flatMap { $0 })
  }
}

/// A whole set of tables, one behind the other without a gap, so that most are unaligned.
struct TableSet {
  var bytes: [UInt8]
  let base: Int
  let root: Range<Int>
  let xsdt: Range<Int>
  let rsdt: Range<Int>
  let other: Range<Int>
  let madt: Range<Int>

  /// As they would lie at physical address `base`. With a `madt` made elsewhere, it comes last.
  init(at base: Int, madt given: [UInt8]) {
    self.base = base
    let filler = table("SSDT", [1, 2, 3, 4, 5])
    root = 0..<36
    xsdt = 36..<36 + 36 + 24
    rsdt = xsdt.upperBound..<xsdt.upperBound + 36 + 12
    other = rsdt.upperBound..<rsdt.upperBound + filler.count
    madt = other.upperBound..<other.upperBound + given.count
    let listed = [base + other.lowerBound, 0, base + madt.lowerBound]
    bytes = rootPointer(revision: 2, rsdt: base + rsdt.lowerBound, xsdt: base + xsdt.lowerBound)
    bytes += table("XSDT", listed.flatMap { littleEndian(UInt64($0)) })
    bytes += table("RSDT", listed.flatMap { littleEndian(UInt32($0)) })
    bytes += filler + given
    precondition(bytes.count == madt.upperBound)
  }

  /// Every checksum as the lengths of the undamaged set have it.
  mutating func balanceAll() {
    for range in [xsdt, rsdt, other, madt] { balance(&bytes, range, at: range.lowerBound + 9) }
    balance(&bytes, 0..<20, at: 8)
    balance(&bytes, root, at: 32)
  }
}

extension MADT {
  var processors: [LocalProcessor] {
    var all: [LocalProcessor] = []
    forEachProcessor { all.append($0) }
    return all
  }
  var identities: [UInt32] { processors.map(\.identity.rawValue) }
}
