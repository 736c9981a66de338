// A processor in software, for an instance whose page tables nobody loads: it walks them as hardware does, keeps
// what it found in a translation buffer until it is told to forget it, and calls the page fault handler.
//
// The buffer is the point: an entry is used without another look at the tables, so a mapping that was changed
// without a shootdown leads to the wrong frame here as it would there, and the stamps tell. It has 256 entries,
// an address's place being its page number; more than a processor's, so that stale entries live long.

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

/// A translation buffer: memory that the caller gives.
public struct TranslationBuffer {
  struct Entry {
    var page: UInt64
    var frame: FrameNumber
    var isWritable: Bool
  }
  private let entries: UnsafeMutablePointer<Entry>
  private static var count: Int { 256 }

  public static var size: ByteCount { ByteCount(count * MemoryLayout<Entry>.stride) }

  public init(_ memory: UnsafeMutableRawPointer) {
    entries = memory.bindMemory(to: Entry.self, capacity: Self.count)
    for i in 0..<Self.count {
      (entries + i).initialize(to: Entry(page: .max, frame: .none, isWritable: false))
    }
  }

  private func place(_ page: UInt64) -> UnsafeMutablePointer<Entry> {
    entries + Int(page % UInt64(Self.count))
  }

  func find(_ page: UInt64, _ kind: AccessKind) -> FrameNumber? {
    let entry = place(page).pointee
    return entry.page == page && (kind == .read || entry.isWritable) ? entry.frame : nil
  }
  func keep(_ page: UInt64, _ frame: FrameNumber, _ kind: AccessKind) {
    place(page).pointee = Entry(page: page, frame: frame, isWritable: kind == .write)
  }

  /// Forgets `pages` pages from `address` on.
  public func forget(_ address: UInt64, _ pages: UInt64) {
    let first = address >> Page.shift
    for i in 0..<min(pages, UInt64(Self.count)) {
      // All places are passed when there are so many pages.
      let entry = place(first + i)
      if entry.pointee.page >= first && entry.pointee.page - first < pages { entry.pointee.page = .max }
    }
  }
}

/// A processor over one instance's tables.
public struct SoftwareProcessor: PageAccess {
  let directMap: DirectMap
  let tables: PageTables
  let paging: Paging
  let buffer: TranslationBuffer

  public init(directMap: DirectMap, tables: PageTables, paging: Paging, buffer: TranslationBuffer) {
    self.directMap = directMap
    self.tables = tables
    self.paging = paging
    self.buffer = buffer
  }

  /// Where an access arrives that faults as often as it must.
  func reach(_ address: VirtualAddress, _ kind: AccessKind) throws(PagingError)
    -> UnsafeMutableRawPointer
  {
    let page = address.rawValue >> Page.shift
    while true {
      if let frame = buffer.find(page, kind) {
        return directMap.pointer(to: frame) + Int(address.offsetInPage)
      }
      if let frame = tables.access(address, kind) {
        buffer.keep(page, frame, kind)
        continue
      }
      // A fault empties the entry that it was about (SDM vol. 3, 4.10.4.1).
      buffer.forget(address.rawValue, 1)
      try paging.fault(address, kind)
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
