// The root pointer: the one structure that is found by its location, and leads to all others.
//
// ACPI 6.4, 5.2.5.3: "RSD PTR " and a blank, 20 bytes that add up to 0, and in them the RSDT's address. From
// revision 2 on a second half follows, with a length, the XSDT's address and a checksum over everything.
//
// On a PC with a BIOS (5.2.5.1) it lies at a multiple of 16 bytes: in the first KiB of the extended BIOS data area, or in
// the BIOS's ROM from 0xe0000 up to 1 MiB. The word at 0x40e is the segment of that data area. UEFI and most loaders pass
// its address instead (5.2.5.2).

import MemoryPrimitives

/// A root pointer whose first half is sound.
struct RootPointer {
  /// Physical address of the RSDT, 0 for none.
  let list: PhysicalAddress
  /// Physical address of the XSDT, 0 for none.
  private(set) var extendedList = PhysicalAddress(0)
  /// The reason why there is no XSDT although the revision promises one.
  private(set) var extendedFlaw: ACPIError?

  /// Bytes of revision 0, and of revision 2.
  static var size: Int { 20 }
  static var extendedSize: Int { 36 }

  init(at address: PhysicalAddress, in memory: PhysicalReach) throws(ACPIError) {
    guard address != PhysicalAddress(0) else { throw .noRoot }
    let half = try memory.bytes(at: address, count: Self.size)
    // "RSD PTR ", the first letter lowest.
    guard half.load(at: 0, as: UInt64.self) == 0x2052_5450_2044_5352 else { throw .badSignature }
    guard half.sum == 0 else { throw .badChecksum }
    guard let revision = half.load(at: 15, as: UInt8.self), let list = half.load(at: 16, as: UInt32.self)
    else { throw .outOfReach }
    self.list = PhysicalAddress(UInt64(list))
    guard revision >= 2 else { return }
    do throws(ACPIError) {
      extendedList = try Self.extendedList(at: address, in: memory)
    } catch { extendedFlaw = error }
  }

  /// Reads the XSDT's address in the second half, if that is sound.
  private static func extendedList(
    at address: PhysicalAddress, in memory: PhysicalReach
  ) throws(ACPIError) -> PhysicalAddress {
    let whole = try memory.bytes(at: address, count: extendedSize)
    guard let length = whole.load(at: 20, as: UInt32.self), length >= extendedSize,
      length <= ACPITable.longest, let list = whole.load(at: 24, as: UInt64.self)
    else { throw .badLength }
    guard try memory.bytes(at: address, count: Int(length)).sum == 0 else { throw .badChecksum }
    return PhysicalAddress(list)
  }
}

extension ACPITables {
  /// Finds the root pointer's address on a PC with a BIOS, whose loader did not pass it. Skips one that is damaged in any
  /// part. Accesses nothing at or above `reach`, nor the screen's memory.
  package static func findRoot(reach: ByteCount, map: DirectMap) throws(ACPIError) -> PhysicalAddress {
    let memory = PhysicalReach(end: reach, map: map)
    let (interrupts, screen, rom, top) = (UInt64(0x400), UInt64(0xa0000), UInt64(0xe0000), UInt64(0x100000))
    if let word = try? memory.bytes(at: PhysicalAddress(0x40e), count: 2).load(at: 0, as: UInt16.self) {
      let area = UInt64(word) << 4
      // Below lies the table of interrupts; firmware without such an area leaves a 0 here.
      if area >= interrupts, let root = scan(from: area, to: min(area + 1024, screen), memory) { return root }
    }
    guard let root = scan(from: rom, to: top, memory) else { throw .noRoot }
    return root
  }

  /// Finds the first sound root pointer whose first half lies in this range.
  private static func scan(from first: UInt64, to end: UInt64, _ memory: PhysicalReach) -> PhysicalAddress? {
    var address = first
    while address < end, end - address >= RootPointer.size {
      if let root = try? RootPointer(at: PhysicalAddress(address), in: memory), root.extendedFlaw == nil {
        return PhysicalAddress(address)
      }
      address += 16
    }
    return nil
  }
}
