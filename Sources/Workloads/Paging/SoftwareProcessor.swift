// A processor in software, for an instance whose page tables no real one loads. It walks them as hardware does, caches
// translations until it is made to invalidate them, and calls the page fault handler.
//
// It uses a cached translation without reading the tables again. So a mapping that was changed without a shootdown
// leads to the wrong frame here as it would there, and the stamps detect it. Three rules of the SDM (vol. 3, 4.10)
// that a lenient processor hides are applied in their worst form:
//
//   A write through a translation that was read-only when it was cached faults, even if the tables permit it by now
//   (4.10.4.3). The fault drops the translation.
//   The tables above the last level are cached too (4.10.3), mapped or not. A walk begins at the lowest of them, which
//   may have left the tree.
//   Any invalidation drops all cached tables (4.10.4.1). Besides, only a fault at the same address drops one.
//
// There are 256 translations, indexed by page number: more than a processor's, so that stale ones live long.

import MemoryPrimitives
import PageTables
import Paging

/// Accesses to pageable memory by its address.
package protocol PageAccess {
  /// Loads the word at `address`, a multiple of 8. Throws the error of the page fault.
  func load(_ address: VirtualAddress) throws(PagingError) -> UInt64
  func store(_ address: VirtualAddress, _ value: UInt64) throws(PagingError)
  /// Loads all 512 words of the page at `address`.
  func load(page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>) throws(PagingError)
}

extension PageAccess {
  /// Loads a word at a time.
  package func load(
    page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>
  ) throws(PagingError) {
    for i in 0..<Int(Page.size / 8) { words[i] = try load(address + ByteCount(i * 8)) }
  }
}

/// The translations and tables that a processor caches, in memory of the caller.
package struct TranslationBuffer: UpperEntries {
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
  /// Tables of levels 1 to 4, `tableCount` of each level.
  private let tables: UnsafeMutablePointer<Table>
  /// Tables of older generations are invalid.
  private let generation: UnsafeMutablePointer<UInt32>
  /// Frames of the machine's memory; all numbers where the caller does not say.
  private let memory: UInt32
  private static var count: Int { 256 }
  private static var tableCount: Int { 16 }
  private static var levels: Int { 4 }

  private struct Parts {
    let entries: Int
    let tables: Int
    let generation: Int
    let size: ByteCount

    init() {
      var layout = StorageLayout()
      entries = layout.add(Entry.self, count: count)
      tables = layout.add(Table.self, count: levels * tableCount)
      generation = layout.add(UInt32.self)
      size = layout.size
    }
  }

  /// Bytes that a buffer needs, aligned to a cache line.
  package static var size: ByteCount { Parts().size }

  /// An empty buffer in `storage`. A processor that ignores invalidations needs `memory`, the size of the machine's:
  /// entries that it follows may lie in a frame that is no page table any more.
  package init(_ storage: UnsafeMutableRawPointer, memory: ByteCount? = nil) {
    let parts = Parts()
    self.memory = memory.map { UInt32($0.rawValue >> Page.shift) } ?? .max
    entries = storage.part(Entry.self, at: parts.entries, count: Self.count)
    for i in 0..<Self.count {
      (entries + i).initialize(to: Entry(page: .max, frame: .none, isWritable: false))
    }
    tables = storage.part(Table.self, at: parts.tables, count: Self.levels * Self.tableCount)
    for i in 0..<Self.levels * Self.tableCount {
      (tables + i).initialize(to: Table(block: .max, frame: .none, generation: 0))
    }
    generation = storage.part(UInt32.self, at: parts.generation)
    generation.initialize(to: 1)
  }

  // MARK: Accesses

  /// The frame that an access to `address` reaches, by the cached translation or by `pageTables`; nil when it faults.
  package func reach(_ address: VirtualAddress, _ kind: AccessKind, _ pageTables: PageMap) -> FrameNumber? {
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

  /// The frame that an access to a page would reach by the cached translation alone.
  package func find(_ page: UInt64, _ kind: AccessKind) -> FrameNumber? {
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

  package func table(_ level: TableLevel, for address: VirtualAddress) -> FrameNumber? {
    let (place, block) = place(level, address)
    return place.pointee.block == block && place.pointee.generation == generation.pointee
      ? place.pointee.frame : nil
  }
  package func keep(_ table: FrameNumber, _ level: TableLevel, for address: VirtualAddress) {
    let (place, block) = place(level, address)
    place.pointee = Table(block: block, frame: table, generation: generation.pointee)
  }

  package func hasMemory(at frame: FrameNumber) -> Bool {
    frame.rawValue < memory || memory == .max
  }

  /// Whether a walk may still begin at `table`.
  package func caches(_ table: FrameNumber) -> Bool {
    for i in 0..<Self.levels * Self.tableCount
    where tables[i].frame == table && tables[i].generation == generation.pointee { return true }
    return false
  }

  // MARK: Invalidation

  /// Invalidates `pages` pages from `address` on, and all tables.
  package func invalidate(_ address: UInt64, _ pages: UInt64) {
    generation.pointee += 1
    let first = address >> Page.shift
    for i in 0..<min(pages, UInt64(Self.count)) {
      // With that many pages, this visits all entries.
      let entry = place(first &+ i)
      if entry.pointee.page >= first && entry.pointee.page - first < pages { entry.pointee.page = .max }
    }
  }

  /// Drops the translation of `address` and the tables on the way to it, as a fault does.
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
package struct SoftwareProcessor: PageAccess {
  let directMap: DirectMap
  let tables: PageMap
  let paging: PagedMemory
  let buffer: TranslationBuffer

  package init(directMap: DirectMap, tables: PageMap, paging: PagedMemory, buffer: TranslationBuffer) {
    self.directMap = directMap
    self.tables = tables
    self.paging = paging
    self.buffer = buffer
  }

  /// The memory that an access reaches, after all its faults.
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

  package func load(_ address: VirtualAddress) throws(PagingError) -> UInt64 {
    try reach(address, .read).load(as: UInt64.self)
  }
  package func store(_ address: VirtualAddress, _ value: UInt64) throws(PagingError) {
    try reach(address, .write).storeBytes(of: value, as: UInt64.self)
  }
  package func load(
    page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>
  ) throws(PagingError) {
    UnsafeMutableRawPointer(words).copyMemory(
      from: try reach(address.page, .read), byteCount: Int(Page.size))
  }
}
