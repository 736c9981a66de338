// The memory type range registers (MTRRs), decoded: the way in which the processor caches each byte of physical memory.
// Nothing here reads a register.
//
// The firmware sets them. Memory that they do not make write-back is usable and a hundred times slower, and firmware
// that omits the last megabytes of memory exists, so `MemoryMap` leaves such memory out.
//
// RULES (Intel SDM vol. 3A, 12.11; AMD64 Architecture Programmer's Manual vol. 2, 7.7 and 7.9.1)
//   1. While IA32_MTRR_DEF_TYPE.E is clear the registers are off, and have no effect.
//   2. Below 1 MiB the fixed ranges decide, where the processor has them and IA32_MTRR_DEF_TYPE.FE is set.
//   3. A variable range holds an address whose bits in PHYSMASK are those of PHYSBASE. The bits need not be
//      contiguous. Of several ranges that hold it, uncached wins over all, and write-through over write-back; any
//      other mixture, and a type that the manual reserves, is undefined.
//   4. An address that no range holds has the default type. AMD's SYSCFG can make that write-back from 4 GiB to TOM2.
//
// COST. The type of one address costs a pass over the valid variable ranges. Types change only where a range begins or
// ends, so a walk over all of memory asks for few addresses.

import MemoryPrimitives

/// The memory types of physical addresses. A plain value, without registers at first.
public struct MemoryTypeRanges: Sendable {
  /// Whether the registers have an effect.
  public enum State: UInt8, Sendable {
    /// The processor has none.
    case absent
    /// The firmware has not switched them on.
    case off
    /// They decide how memory is cached.
    case on
  }

  /// A memory type, by its encoding in the registers.
  public enum CacheType: UInt8, Sendable {
    /// UC.
    case uncached = 0
    /// WC.
    case writeCombining = 1
    /// WT.
    case writeThrough = 4
    /// WP.
    case writeProtected = 5
    /// WB: how memory is used.
    case writeBack = 6
  }

  /// The maker of the processor: AMD's has a rule of its own above 4 GiB.
  public enum Vendor: Sendable {
    /// AMD, or a maker that follows its manual.
    case amd
    /// Any other maker.
    case other
  }

  /// Whether the registers have an effect.
  public private(set) var state = State.absent
  private var defaultType: CacheType?
  private var hasFixed = false
  private var fixed: InlineArray<11, UInt64> = .init(repeating: 0)
  /// Valid variable ranges: base with the type in its low byte, and mask. Their number has eight bits.
  private var bases: InlineArray<255, UInt64> = .init(repeating: 0)
  private var masks: InlineArray<255, UInt64> = .init(repeating: 0)
  private var count = 0
  /// From 4 GiB to here the default type is write-back.
  private var writeBackEnd: UInt64 = 0

  private enum Register {
    static var capability: UInt32 { 0xfe }
    static var variable: UInt32 { 0x200 }
    static var defaultType: UInt32 { 0x2ff }
    static var systemConfiguration: UInt32 { 0xc001_0010 }
    static var topOfMemory2: UInt32 { 0xc001_001d }
    /// One of eight ranges of 64 KiB, two of 16 KiB, eight of 4 KiB.
    static func fixed(_ index: Int) -> UInt32 {
      switch index {
      case 0: 0x250
      case 1, 2: 0x257 + UInt32(index)
      default: 0x265 + UInt32(index)
      }
    }
  }

  /// A processor without the registers.
  public init() {}

  /// Decodes the registers of a processor that has them and whose physical addresses have `addressBits` bits. `read`
  /// returns the value of a model-specific register, and is called only for those that exist.
  public init(addressBits: UInt32, vendor: Vendor, read: (UInt32) -> UInt64) {
    let settings = read(Register.defaultType)
    guard settings & 1 << 11 != 0 else {
      state = .off
      return
    }
    state = .on
    defaultType = CacheType(rawValue: UInt8(truncatingIfNeeded: settings))
    let capability = read(Register.capability)
    hasFixed = capability & 1 << 8 != 0 && settings & 1 << 10 != 0
    if hasFixed {
      for index in 0..<11 { fixed[index] = read(Register.fixed(index)) }
    }
    let bits = UInt64(1) << UInt64(min(63, addressBits)) - 1
    for index in 0..<UInt32(capability & 0xff) {
      let mask = read(Register.variable + 2 * index + 1)
      guard mask & 1 << 11 != 0 else { continue }
      let base = read(Register.variable + 2 * index)
      // An address that the processor can't have matches nothing.
      masks[count] = (mask & bits | ~bits) & ~(Page.size - 1)
      bases[count] = base & bits & masks[count] | base & 0xff
      count += 1
    }
    guard vendor == .amd else { return }
    // MtrrTom2En and Tom2ForceMemTypeWB.
    let both: UInt64 = 3 << 21
    if read(Register.systemConfiguration) & both == both {
      writeBackEnd = read(Register.topOfMemory2) & bits & ~(1 << 23 - 1)
    }
  }

  /// Returns the type of the byte at `address`, or nil where it is undefined, and the last byte up to which nothing
  /// changes. The registers must be on.
  public func type(at address: PhysicalAddress) -> (type: CacheType?, last: PhysicalAddress) {
    let address = address.rawValue
    if hasFixed && address < 1 << 20 { return fixedType(address) }
    var last = UInt64.max
    // The types of all ranges that hold it, a bit each; bit 7 for those that no register can name.
    var types: UInt8 = 0
    for index in 0..<count {
      let (mask, base) = (masks[index], bases[index] & ~(Page.size - 1))
      if address & mask == base {
        last = min(last, address | ((mask & (0 &- mask)) - 1))
        types |= 1 << min(7, UInt8(truncatingIfNeeded: bases[index]))
      } else if let next = Self.next(after: address, base, mask) {
        last = min(last, next - 1)
      }
    }
    if types != 0 { return (Self.combined(types), PhysicalAddress(last)) }
    let above: UInt64 = 1 << 32
    if address < above {
      if writeBackEnd > above { last = min(last, above - 1) }
    } else if address < writeBackEnd {
      return (.writeBack, PhysicalAddress(min(last, writeBackEnd - 1)))
    }
    return (defaultType, PhysicalAddress(last))
  }

  /// The type of an address that ranges of these types hold.
  private static func combined(_ types: UInt8) -> CacheType? {
    if types & 1 != 0 { return .uncached }
    if types == 1 << CacheType.writeThrough.rawValue | 1 << CacheType.writeBack.rawValue {
      return .writeThrough
    }
    guard types & (types - 1) == 0 else { return nil }
    return CacheType(rawValue: UInt8(types.trailingZeroBitCount))
  }

  private func fixedType(_ address: UInt64) -> (CacheType?, PhysicalAddress) {
    let (register, shift, start): (Int, UInt64, UInt64) =
      switch address {
      case 0..<0x8_0000: (0, 16, 0)
      case 0x8_0000..<0xc_0000: (1, 14, 0x8_0000)
      default: (3, 12, 0xc_0000)
      }
    let index = Int((address - start) >> shift)
    let byte = UInt8(truncatingIfNeeded: fixed[register + index / 8] >> UInt64(index % 8 * 8))
    return (CacheType(rawValue: byte), PhysicalAddress(address | (1 << shift - 1)))
  }

  /// The first address above `address`, which the range does not hold, that it holds.
  private static func next(after address: UInt64, _ base: UInt64, _ mask: UInt64) -> UInt64? {
    // The highest bit in which they differ decides whether the range begins above, or must carry into a free bit.
    let differing = UInt64(63 - (address & mask ^ base).leadingZeroBitCount)
    let below = (UInt64(2) << differing) - 1
    if base >> differing & 1 != 0 { return address & ~below | base & below }
    let free = ~mask & ~address & ~below
    guard free != 0 else { return nil }
    let carry = free & (0 &- free)
    return address & ~(carry - 1) | carry | base & (carry - 1)
  }
}
