// The entries of x86-64 tables, each bit once.
//
// Intel SDM vol. 3, 4.5.4 and tables 4-15 to 4-20. This layer keeps its own records in bits that the processor
// ignores, so that no table needs a record beside it:
//
//   in an entry that points to a table    52-61  how many entries of that table are not zero
//   in a pageable page                    52-62, 11  how many wires were made through this mapping
//   in a leaf                             52-55  tag of the range that begins here, 0 inside a range
//                                         9      splittable: a table is reserved for it (2 MiB only);
//                                                of a page: a place of a page window, with or without "present"
//                                         10     prepared: the mark stays when the page is unmapped
//   in an entry without "present"         10     prepared: the place is kept for a map that can't fail
//                                         11     made not present: unmapped, frame still to be reclaimed
//                                         62     unlinked: the table at the address left the tree, and a
//                                                processor may still cache the way through this entry
//
// Accessed is set from the start, and dirty in each writable leaf. So the processor writes to a table only where
// accessed was cleared in a pageable page. Dirty without writable would mean a shadow stack (SDM vol. 3, 4.6.1)
// and is never made.

import MemoryPrimitives

/// A level of the tables: 1 has leaves of 4 KiB, 2 of 2 MiB, 3 of 1 GiB; 4 or 5 is the root's.
@frozen public struct TableLevel: Equatable, Comparable, Sendable {
  /// 1 to 5.
  public let rawValue: UInt8
  init(_ level: Int) { rawValue = UInt8(truncatingIfNeeded: level) }

  /// Leaves of 4 KiB.
  public static var pages: Self { Self(1) }
  /// Leaves of 2 MiB.
  public static var mebibytes2: Self { Self(2) }
  /// Leaves of 1 GiB.
  public static var gibibytes: Self { Self(3) }
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The level whose entries lead to tables of this one.
  package var above: Self { Self(Int(rawValue) + 1) }
  /// Pages that one entry of this level covers.
  public var span: PageCount { PageCount(UInt64(1) << (9 * (UInt64(rawValue) - 1))) }
}

/// One entry of a table.
package struct PageTableEntry: Equatable, Sendable {
  /// The entry as it stands in memory.
  package let rawValue: UInt64
  @inline(__always) init(_ rawValue: UInt64) { self.rawValue = rawValue }

  enum Bit {
    @inline(__always) static var present: UInt64 { 1 << 0 }
    @inline(__always) static var writable: UInt64 { 1 << 1 }
    @inline(__always) static var writeThrough: UInt64 { 1 << 3 }
    @inline(__always) static var cacheDisable: UInt64 { 1 << 4 }
    @inline(__always) static var accessed: UInt64 { 1 << 5 }
    @inline(__always) static var dirty: UInt64 { 1 << 6 }
    /// Levels 2 and 3: this is a leaf. At level 1 the same bit is the third of the attribute.
    @inline(__always) static var large: UInt64 { 1 << 7 }
    @inline(__always) static var smallAttribute: UInt64 { 1 << 7 }
    @inline(__always) static var global: UInt64 { 1 << 8 }
    @inline(__always) static var splittable: UInt64 { 1 << 9 }
    @inline(__always) static var window: UInt64 { 1 << 9 }
    @inline(__always) static var prepared: UInt64 { 1 << 10 }
    @inline(__always) static var madeNotPresent: UInt64 { 1 << 11 }
    @inline(__always) static var largeAttribute: UInt64 { 1 << 12 }
    @inline(__always) static var address: UInt64 { 0x000f_ffff_ffff_f000 }
    @inline(__always) static var usedShift: UInt64 { 52 }
    @inline(__always) static var used: UInt64 { 0x3ff << 52 }
    @inline(__always) static var tagShift: UInt64 { 52 }
    @inline(__always) static var tag: UInt64 { 15 << 52 }
    @inline(__always) static var unlinked: UInt64 { 1 << 62 }
    /// Twelve bits, as many as a page's claims count: the highest is stored at its own weight.
    @inline(__always) static var wires: UInt64 { lowWires << wiresShift | highWire }
    @inline(__always) static var wiresShift: UInt64 { 52 }
    @inline(__always) static var lowWires: UInt64 { 0x7ff }
    @inline(__always) static var highWire: UInt64 { 1 << 11 }
    /// The bits that a change of rights or attribute keeps, in a leaf with or without a prepared place.
    @inline(__always) static var kept: UInt64 { splittable | prepared | wires }
    @inline(__always) static var executeDisable: UInt64 { 1 << 63 }
  }

  @inline(__always) static var empty: Self { Self(0) }
  @inline(__always) static var preparedMark: Self { Self(Bit.prepared) }

  /// Whether the processor uses this entry.
  package var isPresent: Bool { rawValue & Bit.present != 0 }
  /// Whether it permits writing.
  package var isWritable: Bool { rawValue & Bit.writable != 0 }
  /// Whether it permits instruction fetches.
  package var isExecutable: Bool { rawValue & Bit.executeDisable == 0 }
  /// Whether its translation outlives a change of CR3.
  package var isGlobal: Bool { rawValue & Bit.global != 0 }
  /// Whether accessed is set.
  package var isAccessed: Bool { rawValue & Bit.accessed != 0 }
  /// Whether dirty is set.
  package var isDirty: Bool { rawValue & Bit.dirty != 0 }
  @inline(__always) var isEmpty: Bool { rawValue == 0 }
  @inline(__always) var isSplittable: Bool { rawValue & Bit.splittable != 0 }
  @inline(__always) var isPrepared: Bool { rawValue & Bit.prepared != 0 }
  /// Whether this is a page that is mapped at a prepared place.
  @inline(__always) var isPageable: Bool {
    rawValue & (Bit.present | Bit.prepared) == Bit.present | Bit.prepared
  }
  @inline(__always) var isMadeNotPresent: Bool {
    rawValue & (Bit.madeNotPresent | Bit.present) == Bit.madeNotPresent
  }

  /// Whether the processor walks on through this entry.
  @inline(__always) func isTable(at level: Int) -> Bool {
    level > 1 && rawValue & (Bit.present | Bit.large) == Bit.present
  }
  /// Whether this entry points to a table.
  package func isTable(at level: TableLevel) -> Bool { isTable(at: Int(level.rawValue)) }
  @inline(__always) func isLeaf(at level: Int) -> Bool { isPresent && !isTable(at: level) }

  // MARK: Tables

  /// An entry for a table with no entries in use. Rights are narrowed by leaves only.
  @inline(__always) static func table(_ frame: FrameNumber) -> Self {
    Self(frame.address.rawValue | Bit.present | Bit.writable | Bit.accessed)
  }
  @inline(__always) var tableFrame: FrameNumber {
    FrameNumber(UInt32(truncatingIfNeeded: (rawValue & Bit.address) >> Page.shift))
  }
  /// Entries of the table pointed to that are not zero.
  @inline(__always) var used: UInt64 { (rawValue & Bit.used) >> Bit.usedShift }
  @inline(__always) func withUsed(_ count: UInt64) -> Self {
    Self(rawValue & ~Bit.used | count << Bit.usedShift)
  }
  /// The entry that a table leaves behind when it is taken out of the tree.
  @inline(__always) static func unlinked(_ table: FrameNumber) -> Self {
    Self(table.address.rawValue | Bit.unlinked)
  }
  @inline(__always) func isUnlinked(at level: Int) -> Bool {
    level > 1 && rawValue & (Bit.present | Bit.unlinked) == Bit.unlinked
  }
  /// The first word of an unlinked table, not present: the invalidation after which no processor caches the table.
  @inline(__always) static func waiting(for invalidation: UInt64) -> Self {
    Self(invalidation << Page.shift)
  }
  @inline(__always) func isDone(after invalidation: UInt64) -> Bool {
    rawValue >> Page.shift <= invalidation
  }

  // MARK: Page windows

  /// The place of a page window that is not open.
  @inline(__always) static var closedWindow: Self { Self(WindowEntry.closed) }
  /// Whether this is a place of a page window.
  package func isWindow(at level: TableLevel) -> Bool {
    level == .pages && rawValue & Bit.window != 0
  }

  /// Whether a place of a page window is closed, or maps a frame as `PageWindows` does.
  var isSoundWindow: Bool {
    let bits = rawValue & ~Bit.address
    return self == .closedWindow || bits == WindowEntry.readOnly || bits == WindowEntry.readWrite
  }

  // MARK: Leaves

  @inline(__always) var tag: RangeTag { RangeTag(rawValue: UInt8((rawValue & Bit.tag) >> Bit.tagShift)) }
  /// Its bits without the tag, and without accessed and wires, which differ among pageable pages.
  @inline(__always) var meaning: UInt64 { rawValue & ~(Bit.wires | Bit.accessed) }
  /// Wires of a pageable page that were made through this mapping.
  @inline(__always) var wires: UInt64 {
    rawValue >> Bit.wiresShift & Bit.lowWires | rawValue & Bit.highWire
  }
  @inline(__always) func withWires(_ count: UInt64) -> Self {
    Self(
      rawValue & ~Bit.wires | (count & Bit.lowWires) << Bit.wiresShift | count & Bit.highWire)
  }

  /// A leaf's bits without its address.
  static func leafBits(_ protection: Protection, _ attribute: CacheAttribute, at level: Int) -> UInt64 {
    var bits = Bit.present | Bit.accessed
    if protection.contains(.writable) { bits |= Bit.writable | Bit.dirty }
    if protection.contains(.global) { bits |= Bit.global }
    if !protection.contains(.executable) { bits |= Bit.executeDisable }
    let index = attribute.index
    if index & 1 != 0 { bits |= Bit.writeThrough }
    if index & 2 != 0 { bits |= Bit.cacheDisable }
    if level > 1 { bits |= Bit.large }
    if index & 4 != 0 { bits |= level > 1 ? Bit.largeAttribute : Bit.smallAttribute }
    return bits
  }

  /// The address that a leaf at `level` maps.
  @inline(__always) func address(at level: Int) -> UInt64 {
    rawValue & Bit.address & ~(UInt64(1) << (3 + 9 * UInt64(level)) - 1)
  }
  /// The physical address of the memory, or of the table, that an entry of `level` leads to.
  package func address(at level: TableLevel) -> PhysicalAddress {
    isTable(at: level) ? tableFrame.address : PhysicalAddress(address(at: Int(level.rawValue)))
  }

  /// Its rights.
  package var protection: Protection {
    var protection: Protection = []
    if isWritable { protection.insert(.writable) }
    if isExecutable { protection.insert(.executable) }
    if isGlobal { protection.insert(.global) }
    return protection
  }

  func attribute(at level: Int) -> CacheAttribute {
    var index: UInt64 = 0
    if rawValue & Bit.writeThrough != 0 { index |= 1 }
    if rawValue & Bit.cacheDisable != 0 { index |= 2 }
    if rawValue & (level > 1 ? Bit.largeAttribute : Bit.smallAttribute) != 0 { index |= 4 }
    return CacheAttribute(index: index)
  }
  /// How a leaf of `level` is cached.
  package func attribute(at level: TableLevel) -> CacheAttribute { attribute(at: Int(level.rawValue)) }

  /// A leaf one level further down that maps `address` and is otherwise like this one.
  func part(at address: UInt64, below level: Int) -> Self {
    Self(Self.leafBits(protection, attribute(at: level), at: level - 1) | address)
  }

  @inline(__always) var madeNotPresent: Self { Self(rawValue & ~Bit.present | Bit.madeNotPresent) }
  @inline(__always) var restored: Self { Self(rawValue & ~Bit.madeNotPresent | Bit.present) }
}
