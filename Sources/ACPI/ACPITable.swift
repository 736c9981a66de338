// The header of every table: a signature of four letters, a length, a checksum (ACPI 6.4, 5.2.6).

import MemoryPrimitives

/// The four letters that a table starts with.
package struct TableSignature: Equatable, Sendable {
  /// The letters as they lie in memory, the first one lowest.
  package let rawValue: UInt32

  /// Makes a signature of four letters in ASCII.
  package init(_ letters: StaticString) {
    precondition(letters.utf8CodeUnitCount == 4, "a signature has four letters")
    rawValue = UnsafeRawPointer(letters.utf8Start).loadUnaligned(as: UInt32.self)
  }

  init(at address: PhysicalAddress, in memory: PhysicalReach) throws(ACPIError) {
    guard let letters = try memory.bytes(at: address, count: 4).load(at: 0, as: UInt32.self) else {
      throw .outOfReach
    }
    rawValue = letters
  }

  /// The list of tables with addresses of 32 bits.
  package static var rsdt: Self { Self("RSDT") }
  /// The list of tables with addresses of 64 bits.
  package static var xsdt: Self { Self("XSDT") }
  /// Interrupt controllers and processors.
  package static var madt: Self { Self("APIC") }
}

/// A table that was found sound: a possible length, all of it within reach, the right sum.
package struct ACPITable {
  /// The letters that it starts with.
  package let signature: TableSignature
  /// The physical address of its header.
  package let address: PhysicalAddress
  let bytes: PhysicalBytes

  /// Bytes of the header that all tables share.
  static var headerSize: Int { 36 }
  /// More than any table has; keeps a damaged length from a long walk through memory and devices.
  static var longest: Int { 16 << 20 }

  /// Checks the table at `address`, which must have `signature`.
  init(
    _ signature: TableSignature, at address: PhysicalAddress, in memory: PhysicalReach
  ) throws(ACPIError) {
    guard try TableSignature(at: address, in: memory) == signature else { throw .badSignature }
    let header = try memory.bytes(at: address, count: Self.headerSize)
    guard let length = header.load(at: 4, as: UInt32.self), length >= Self.headerSize, length <= Self.longest
    else { throw .badLength }
    bytes = try memory.bytes(at: address, count: Int(length))
    guard bytes.sum == 0 else { throw .badChecksum }
    self.signature = signature
    self.address = address
  }

  /// Bytes of the table, its header included.
  package var length: ByteCount { ByteCount(bytes.count) }

  /// Loads the value at `offset` from the start of the header, at any alignment; nil if it does not end within the table.
  package func load<T: BitwiseCopyable>(at offset: ByteCount, as type: T.Type) -> T? {
    guard offset <= length else { return nil }
    return bytes.load(at: Int(offset.rawValue), as: type)
  }
}
