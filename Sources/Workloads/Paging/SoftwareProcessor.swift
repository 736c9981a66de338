// A processor in software, for an instance whose page tables no real one loads: it walks them as hardware does, keeps
// what it found until it is told to invalidate it, and calls the page fault handler.
//
// What it keeps is the point: a translation is used without another look at the tables, so a mapping that was
// changed without a shootdown leads to the wrong frame here as it would there, and the stamps tell. Three rules of the
// SDM (vol. 3, 4.10) that a lenient processor hides are taken at their worst:
//
//   A write through a translation that was read-only when it was kept faults, whatever the tables say by now
//   (4.10.4.3). The fault drops the translation.
//   The tables above the last level are remembered too (4.10.3), whether anything was mapped there or not, and a walk
//   begins at the lowest of them, though it may have left the tree.
//   Any invalidation drops all remembered tables (4.10.4.1), and nothing else does but a fault at the same address.
//
// There are 256 translations, an address's place being its page number; more than a processor's, so that stale ones
// live long.

import MemoryPrimitives
import PageTables
import Paging

/// How a workload reaches pageable memory: by its address.
public protocol PageAccess {
  /// The word at `address`, a multiple of 8; throws what the page fault came to.
  func load(_ address: VirtualAddress) throws(PagingError) -> UInt64
  func store(_ address: VirtualAddress, _ value: UInt64) throws(PagingError)
  /// All 512 words of the page at `address`.
  func load(page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>) throws(PagingError)
}

extension PageAccess {
  /// A word at a time: what can't do better has this.
  public func load(
    page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>
  ) throws(PagingError) {
    for i in 0..<Int(Page.size / 8) { words[i] = try load(address + ByteCount(i * 8)) }
  }
}

/// What a processor remembers of the page tables: memory that the caller gives.
public struct TranslationBuffer: UpperEntries {
  private struct Entry {
    var page: UInt64
    var frame: FrameNumber
    var isWritable: Bool
  }
  private struct Table {
    /// The address that it translates, by the span of an entry that leads to it.
    var block: UInt64
    var frame: FrameNumber
    var generation: UInt32
  }
  private let entries: UnsafeMutablePointer<Entry>
  /// Tables of levels 1 to 4, so many of each level.
  private let tables: UnsafeMutablePointer<Table>
  /// Tables of older generations are forgotten.
  private let generation: UnsafeMutablePointer<UInt32>
  private static var count: Int { 256 }
  private static var tableCount: Int { 16 }
  private static var levels: Int { 4 }

  private static var entryBytes: Int { count * MemoryLayout<Entry>.stride }
  private static var tableBytes: Int { levels * tableCount * MemoryLayout<Table>.stride }
  public static var size: ByteCount { ByteCount(entryBytes + tableBytes + MemoryLayout<UInt32>.stride) }

  public init(_ memory: UnsafeMutableRawPointer) {
    entries = memory.bindMemory(to: Entry.self, capacity: Self.count)
    for i in 0..<Self.count {
      (entries + i).initialize(to: Entry(page: .max, frame: .none, isWritable: false))
    }
    let behind = memory + Self.entryBytes
    tables = behind.bindMemory(to: Table.self, capacity: Self.levels * Self.tableCount)
    for i in 0..<Self.levels * Self.tableCount {
      (tables + i).initialize(to: Table(block: .max, frame: .none, generation: 0))
    }
    generation = (behind + Self.tableBytes).bindMemory(to: UInt32.self, capacity: 1)
    generation.initialize(to: 1)
  }

  // MARK: Accesses

  /// The frame that an access to `address` reaches, by what is remembered or by `pageTables`; nil when it faults.
  public func reach(_ address: VirtualAddress, _ kind: AccessKind, _ pageTables: PageMap) -> FrameNumber? {
    let page = address.rawValue >> Page.shift
    let entry = place(page)
    if entry.pointee.page == page {
      if kind == .read || entry.pointee.isWritable { return entry.pointee.frame }
    } else if let found = pageTables.access(address, kind, caching: self) {
      entry.pointee = Entry(page: page, frame: found.frame, isWritable: found.rights == .write)
      return found.frame
    }
    fault(address)
    return nil
  }

  /// The frame that an access to a page would reach by what is remembered alone.
  public func find(_ page: UInt64, _ kind: AccessKind) -> FrameNumber? {
    let entry = place(page).pointee
    return entry.page == page && (kind == .read || entry.isWritable) ? entry.frame : nil
  }

  private func place(_ page: UInt64) -> UnsafeMutablePointer<Entry> {
    entries + Int(page % UInt64(Self.count))
  }

  // MARK: Tables

  private func place(_ level: TableLevel, _ address: VirtualAddress) -> (UnsafeMutablePointer<Table>, UInt64)
  {
    let block = address.rawValue / TableLevel.pages.span.bytes.rawValue / (level.span.rawValue << 9)
    let at = Int(level.rawValue - 1) * Self.tableCount + Int(block % UInt64(Self.tableCount))
    return (tables + at, block)
  }

  public func table(_ level: TableLevel, for address: VirtualAddress) -> FrameNumber? {
    let (place, block) = place(level, address)
    return place.pointee.block == block && place.pointee.generation == generation.pointee
      ? place.pointee.frame : nil
  }
  public func keep(_ table: FrameNumber, _ level: TableLevel, for address: VirtualAddress) {
    let (place, block) = place(level, address)
    place.pointee = Table(block: block, frame: table, generation: generation.pointee)
  }

  /// Whether a walk may still begin at `table`.
  public func remembers(_ table: FrameNumber) -> Bool {
    for i in 0..<Self.levels * Self.tableCount
    where tables[i].frame == table && tables[i].generation == generation.pointee { return true }
    return false
  }

  // MARK: Invalidation

  /// Invalidates `pages` pages from `address` on, and all tables.
  public func invalidate(_ address: UInt64, _ pages: UInt64) {
    generation.pointee += 1
    let first = address >> Page.shift
    for i in 0..<min(pages, UInt64(Self.count)) {
      // All places are passed when there are so many pages.
      let entry = place(first &+ i)
      if entry.pointee.page >= first && entry.pointee.page - first < pages { entry.pointee.page = .max }
    }
  }

  /// What a fault drops: the translation of `address`, and the tables on the way to it.
  private func fault(_ address: VirtualAddress) {
    let entry = place(address.rawValue >> Page.shift)
    if entry.pointee.page == address.rawValue >> Page.shift { entry.pointee.page = .max }
    var level = TableLevel.pages
    for _ in 0..<Self.levels {
      let (place, block) = place(level, address)
      if place.pointee.block == block { place.pointee.generation = 0 }
      level = level.above
    }
  }
}

/// A processor over one instance's tables.
public struct SoftwareProcessor: PageAccess {
  let directMap: DirectMap
  let tables: PageMap
  let paging: PagedMemory
  let buffer: TranslationBuffer

  public init(directMap: DirectMap, tables: PageMap, paging: PagedMemory, buffer: TranslationBuffer) {
    self.directMap = directMap
    self.tables = tables
    self.paging = paging
    self.buffer = buffer
  }

  /// Where an access arrives that faults as often as it must.
  func reach(_ address: VirtualAddress, _ kind: AccessKind) throws(PagingError)
    -> UnsafeMutableRawPointer
  {
    while true {
      if let frame = buffer.reach(address, kind, tables) {
        return directMap.pointer(to: frame) + Int(address.offsetInPage)
      }
      let verdict = withInterruptsOff { tables.verdict(onFault: address, kind) }
      if verdict != .permitted { try paging.fault(address, kind) }
    }
  }

  public func load(_ address: VirtualAddress) throws(PagingError) -> UInt64 {
    try reach(address, .read).load(as: UInt64.self)
  }
  public func store(_ address: VirtualAddress, _ value: UInt64) throws(PagingError) {
    try reach(address, .write).storeBytes(of: value, as: UInt64.self)
  }
  public func load(
    page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>
  ) throws(PagingError) {
    UnsafeMutableRawPointer(words).copyMemory(
      from: try reach(address.page, .read), byteCount: Int(Page.size))
  }
}
