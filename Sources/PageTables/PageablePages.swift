// Single pages in prepared places: what paging does to its mappings, one entry at a time.
//
// A prepared place has its table for good, so nothing here needs memory or can fail. Each operation is one
// walk and one exchange under the tables' lock, with no upcall, so it may be called with a lock of lower rank
// held; telling other processors is the caller's (`ShootdownBatch`), once that lock is dropped.
//
// The processor takes no lock: it sets accessed, and dirty, in a present entry by a locked exchange of its
// own whenever it likes (SDM vol. 3, 4.8). So what is read from an entry and what is written to it here is
// one atomic operation: no bit that the processor set is ever lost. A page is writable only with dirty
// set already, as paging reckons with every write from there on; so the processor has only accessed left
// to set, and dirty without writable (a shadow stack, 4.6.1) can't come up.
//
// Whatever takes rights away leaves stale translations behind until they are shot down. Until then another
// processor still reads, and writes if it could; only accessed needs no shootdown, as a stale translation
// merely hides a use.

import CPlatform
import MemoryPrimitives
import Synchronization

/// What one prepared place maps.
public struct PageMapping: Equatable, Sendable {
  private let entry: PageTableEntry
  @inline(__always) init(_ entry: PageTableEntry) { self.entry = entry }

  public var frame: FrameNumber { entry.tableFrame }
  public var isWritable: Bool { entry.isWritable }
  /// Whether a processor used it since this was last taken, or since it was mapped.
  public var isAccessed: Bool { entry.isAccessed }
  public var isDirty: Bool { entry.isDirty }
  /// Wires that were made through this mapping.
  public var wires: UInt32 { UInt32(entry.wires) }
  /// The most wires that one mapping counts.
  public static var maximumWires: UInt64 { 0xfff }
}

/// Whether a processor may remember fewer rights than a mapping has after `show`: the mapping was there before, and
/// permits writing now, by this call or by an earlier one that was followed by no invalidation.
@frozen public enum RightsChange: UInt8, Sendable { case none, raised }

/// What the tables say of an access that faulted.
@frozen public enum FaultVerdict: UInt8, Sendable {
  /// It is permitted: the processor used what it remembered from before (SDM vol. 3, 4.10.4.3), and has dropped that
  /// by the fault. The access is to be made again.
  case permitted
  /// It is not, and a place is kept there for a pageable page.
  case pageable
  /// It is not, and nothing pageable is there.
  case notPageable
}

/// A page that an access of a simulated processor arrived at.
public struct AccessedPage: Equatable, Sendable {
  public var frame: FrameNumber
  /// The most that its entry permits.
  public var rights: AccessKind
}

/// What a processor remembers of the entries above a leaf (SDM vol. 3, 4.10.3), for a simulated one.
public protocol UpperEntries {
  /// The table of `level` on the way to `address`, if it is remembered.
  func table(_ level: TableLevel, for address: VirtualAddress) -> FrameNumber?
  /// Remembers that table.
  func keep(_ table: FrameNumber, _ level: TableLevel, for address: VirtualAddress)
}

/// A processor that remembers none.
private struct NoUpperEntries: UpperEntries {
  @inline(__always) func table(_ level: TableLevel, for address: VirtualAddress) -> FrameNumber? { nil }
  @inline(__always) func keep(_ table: FrameNumber, _ level: TableLevel, for address: VirtualAddress) {}
}

extension PageMap {
  // MARK: Mapping

  /// Maps the prepared page at `address`, which is not mapped: data of the kernel, accessed from the start,
  /// and dirty if writable. Traps when the place is not prepared or is in use. Constant.
  public func enter(_ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection) {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    withTree { $0.enter(address.rawValue, frame, protection) }
  }

  /// Runs `body` with one hold of the tables' lock on prepared places, for pages that are entered or removed
  /// together: a few dozen, as the lock is held. `body` makes no upcall.
  @inline(__always) public func withPlaces<R>(_ body: (borrowing PreparedPlaces) -> R) -> R {
    withTree { tree in
      withUnsafeMutablePointer(to: &tree) { body(PreparedPlaces(tree: $0)) }
    }
  }

  /// Maps the prepared page at `address` to `frame`, or, when it is mapped already, gives it the right to write
  /// that `protection` has: what a fault ends with. Traps when the place is not prepared. Constant.
  ///
  /// After `raised` a processor that remembers the page as read-only may fault on a write until it is invalidated
  /// there.
  @discardableResult public func show(
    _ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection
  ) -> RightsChange {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    let written = protection.contains(.writable) ? PageTableEntry.Bit.written : 0
    return withTree { tree in
      guard let slot = tree.place(address.rawValue), slot.entry.isPrepared else {
        preconditionFailure("a pageable page was mapped where no place was kept")
      }
      if slot.entry == .preparedMark {
        slot.store(PageTableEntry(PageTableEntry.pageable | frame.address.rawValue | written))
        tree.leafCount[1] += 1
      } else if written != 0 {
        assert(slot.entry.tableFrame == frame, "a page is mapped to another frame")
        if !slot.entry.isWritable { slot.set(written) }
        return .raised
      }
      return .none
    }
  }

  /// Counts one more wire that was made through the mapping at `address`: no more than `PageMapping.maximumWires`.
  /// Traps when nothing pageable is mapped there. Constant.
  public func addWire(_ address: VirtualAddress) {
    guard changeWires(address, { $0 < PageMapping.maximumWires ? $0 + 1 : nil }) != nil else {
      preconditionFailure("a page that is not mapped was wired, or too often")
    }
  }

  /// Counts one wire less. The frame, or nil when no wire was made through the mapping at `address`. Constant.
  public func removeWire(_ address: VirtualAddress) -> FrameNumber? {
    changeWires(address) { $0 > 0 ? $0 - 1 : nil }
  }

  private func changeWires(_ address: VirtualAddress, _ change: (UInt64) -> UInt64?) -> FrameNumber? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else { return nil }
      while true {
        let entry = slot.entry
        guard let wires = change(entry.wires) else { return nil }
        // Reads the entry again when a processor noted an access in between.
        if slot.replace(entry, with: entry.withWires(wires).rawValue) { return entry.tableFrame }
      }
    }
  }

  /// Unmaps the pageable page at `address`; the place stays prepared. What was there, or nil when nothing
  /// was. Other processors still see it until they are told. Constant.
  public func remove(_ address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { $0.remove(address.rawValue) }
  }

  /// Takes the right to write, and dirty with it, from the pageable page at `address`. What was there
  /// before, or nil when it is not mapped. Other processors may write until they are told. Constant.
  public func writeProtect(_ address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else { return nil }
      let entry = slot.entry
      return PageMapping(entry.isWritable ? slot.clear(PageTableEntry.Bit.written) : entry)
    }
  }

  /// Makes the pageable page at `address` writable, and dirty. Traps when it is not mapped. A processor that
  /// remembers it as read-only may fault on a write until it is told (SDM vol. 3, 4.10.4.3). Constant.
  public func permitWriting(_ address: VirtualAddress) {
    precondition(isCanonical(address))
    withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else {
        preconditionFailure("a page that is not mapped was made writable")
      }
      slot.set(PageTableEntry.Bit.written)
    }
  }

  /// Clears accessed for the pageable page at `address`, and answers whether it was set; false when nothing
  /// is mapped. Constant.
  public func testAndClearAccessed(_ address: VirtualAddress) -> Bool {
    guard isCanonical(address) else { return false }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue), slot.entry.isAccessed else { return false }
      return slot.clear(PageTableEntry.Bit.accessed).isAccessed
    }
  }

  // MARK: Looking

  /// What is mapped at the prepared page that holds `address`; nil when nothing is, or nothing pageable.
  public func mapping(at address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in tree.pageablePage(address.rawValue).map { PageMapping($0.entry) } }
  }

  /// Whether a place is kept for the page that holds `address`, mapped or not.
  public func isPrepared(_ address: VirtualAddress) -> Bool {
    guard isCanonical(address) else { return false }
    return withTree { tree in tree.place(address.rawValue)?.entry.isPrepared ?? false }
  }

  /// What the tables say of an access that faulted, for a handler of page faults, which asks before it knows what
  /// locks the faulting thread holds.
  ///
  /// Takes no lock, so interrupts must be off until this returns: then no table on the way is given back, as an
  /// invalidation waits for this processor.
  public func verdict(onFault address: VirtualAddress, _ kind: AccessKind) -> FaultVerdict {
    assert(!cp_interrupts_enabled(), "tables are walked without their lock and with interrupts on")
    guard isCanonical(address) else { return .notPageable }
    let (_, entry, level) = walkUnlocked(address, NoUpperEntries())
    if entry.isPresent && (kind == .read || entry.isWritable) { return .permitted }
    return level == 1 && entry.isPrepared ? .pageable : .notPageable
  }

  /// Pages that are mapped, by leaves of any size, among `count` from `address` on. A step for each table.
  public func mappedCount(_ address: VirtualAddress, count: PageCount) -> PageCount {
    pages(from: address, count).mapped
  }

  /// Places that are prepared, mapped or not, among `count` pages from `address` on. A step for each table.
  public func preparedCount(_ address: VirtualAddress, count: PageCount) -> PageCount {
    pages(from: address, count).prepared
  }

  /// The first of `count` pages from `address` on that was wired through its mapping. A step for each table.
  public func firstWired(_ address: VirtualAddress, count: PageCount) -> VirtualAddress? {
    var done: UInt64 = 0
    guard isRange(address.page, count) else { return nil }
    while done < count.rawValue {
      let (at, left) = (address.page.rawValue + done << Page.shift, count.rawValue - done)
      let (pages, isWired) = withTree { $0.pagesBeforeWired(at, left) }
      done += pages
      if isWired { return address.page + PageCount(done) }
    }
    return nil
  }

  private func pages(
    from address: VirtualAddress, _ count: PageCount
  ) -> (mapped: PageCount, prepared: PageCount) {
    var (mapped, prepared, done): (UInt64, UInt64, UInt64) = (0, 0, 0)
    guard isRange(address.page, count) else { return (.zero, .zero) }
    while done < count.rawValue {
      let (at, left) = (address.page.rawValue + done << Page.shift, count.rawValue - done)
      let found = withTree { $0.countPages(at, left) }
      mapped += found.mapped
      prepared += found.prepared
      done += found.pages
    }
    return (PageCount(mapped), PageCount(prepared))
  }

  // MARK: The processor's part

  /// Does what a processor does on an access to `address`: sets accessed, and dirty for a write. The frame
  /// that it finds, or nil where it would fault: nothing is mapped, or a write to what is read-only. For
  /// tables that no processor loads, on a simulated machine.
  ///
  /// Takes no lock, as the processor takes none; so whoever gives up the tables that translate `address`,
  /// and not just what is mapped there, must wait until this has returned. `FrameNumber.none` for memory
  /// that lies beyond all frames.
  public func access(_ address: VirtualAddress, _ kind: AccessKind) -> FrameNumber? {
    access(address, kind, remembering: NoUpperEntries())?.frame
  }

  /// The same for a processor that remembers `upper` entries: it begins at the lowest table that it remembers for
  /// the address, whether that is in the tree or not, and keeps each one that it passes.
  public func access(
    _ address: VirtualAddress, _ kind: AccessKind, remembering upper: some UpperEntries
  ) -> AccessedPage? {
    guard isCanonical(address) else { return nil }
    while true {
      let (slot, entry, level) = walkUnlocked(address, upper)
      guard entry.isPresent, kind == .read || entry.isWritable else { return nil }
      let noted = PageTableEntry.Bit.accessed | (kind == .write ? PageTableEntry.Bit.dirty : 0)
      // Walks again when the entry changed in between.
      guard entry.rawValue & noted == noted || slot.replace(entry, with: entry.rawValue | noted) else {
        continue
      }
      let offset = address.rawValue & (1 << TableTree.shift(level) - 1)
      let number = (entry.address(at: level) + offset) >> Page.shift
      return AccessedPage(
        frame: number < UInt64(FrameNumber.limit) ? FrameNumber(UInt32(number)) : .none,
        rights: entry.isWritable ? .write : .read)
    }
  }

  /// The last entry on the way to an address, as a processor finds it.
  @inline(__always) private func walkUnlocked(
    _ address: VirtualAddress, _ upper: some UpperEntries
  ) -> (slot: Slot, entry: PageTableEntry, level: Int) {
    var level = state.pointee.levels
    var table = state.pointee.root
    for known in 1..<level {
      guard let frame = upper.table(TableLevel(known), for: address) else { continue }
      (level, table) = (known, frame)
      break
    }
    while true {
      let slot = Slot(machine.directMap.pointer(to: table)) + TableTree.index(address.rawValue, level)
      let entry = slot.acquired
      guard entry.isTable(at: level) else { return (slot, entry, level) }
      level -= 1
      table = entry.tableFrame
      upper.keep(table, TableLevel(level), for: address)
    }
  }
}

extension PageTableEntry.Bit {
  /// What goes with the right to write.
  @inline(__always) static var written: UInt64 { writable | dirty }
}

extension PageTableEntry {
  /// A pageable page without its address, read-only.
  @inline(__always) static var pageable: UInt64 {
    Bit.present | Bit.accessed | Bit.global | Bit.executeDisable | Bit.prepared
  }
}

/// Prepared places while the tables' lock is held: what `PageMap.withPlaces` lends.
public struct PreparedPlaces: ~Copyable {
  fileprivate let tree: UnsafeMutablePointer<TableTree>

  /// As `PageMap.enter`.
  @inline(__always)
  public func enter(_ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection) {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    tree.pointee.enter(address.rawValue, frame, protection)
  }

  /// As `PageMap.remove`.
  @inline(__always) public func remove(_ address: VirtualAddress) -> PageMapping? {
    isCanonical(address) ? tree.pointee.remove(address.rawValue) : nil
  }

  @inline(__always) private func isCanonical(_ address: VirtualAddress) -> Bool {
    TableTree.canonical(address.rawValue, tree.pointee.levels) == address.rawValue
  }
}

extension TableTree {
  /// Maps the prepared page at `address`, which is not mapped.
  @inline(__always)
  mutating func enter(_ address: UInt64, _ frame: FrameNumber, _ protection: Protection) {
    guard let slot = place(address), slot.entry == .preparedMark else {
      preconditionFailure("a pageable page was mapped where no place was kept, or twice")
    }
    let written = protection.contains(.writable) ? PageTableEntry.Bit.written : 0
    slot.store(PageTableEntry(PageTableEntry.pageable | frame.address.rawValue | written))
    leafCount[1] += 1
  }

  /// Unmaps the pageable page at `address`; the place stays prepared.
  @inline(__always) mutating func remove(_ address: UInt64) -> PageMapping? {
    guard let slot = pageablePage(address) else { return nil }
    leafCount[1] -= 1
    return PageMapping(slot.exchange(.preparedMark))
  }

  /// The place of a page of 4 KiB at `address`, or nil where no table has one. A walk that remembers
  /// nothing: seven instructions a level, as each knows its shift.
  @inline(__always) func place(_ address: UInt64) -> Slot? {
    var table = root.address.rawValue
    if levels == 5 {
      guard let next = below(table, address &>> 45) else { return nil }
      table = next
    }
    guard let level3 = below(table, address &>> 36), let level2 = below(level3, address &>> 27),
      let level1 = below(level2, address &>> 18)
    else { return nil }
    return slot(level1, address &>> 9)
  }

  /// The table that an entry leads to, eight bytes an entry; nil when that is no table.
  @inline(__always) private func below(_ table: UInt64, _ offset: UInt64) -> UInt64? {
    let entry = slot(table, offset).entry
    return entry.isTable(at: 2) ? entry.rawValue & PageTableEntry.Bit.address : nil
  }
  @inline(__always) private func slot(_ table: UInt64, _ offset: UInt64) -> Slot {
    Slot(directMap.pointer(to: PhysicalAddress(table &+ (offset & 0xff8))))
  }

  /// The place at `address` if it is prepared and mapped.
  @inline(__always) func pageablePage(_ address: UInt64) -> Slot? {
    guard let slot = place(address), slot.entry.isPageable else { return nil }
    return slot
  }

  /// Counts pages from `address` on, as far as one table goes, up to one that was wired through its mapping.
  func pagesBeforeWired(_ address: UInt64, _ pages: UInt64) -> (pages: UInt64, isWired: Bool) {
    let path = descend(address)
    let span = Self.span(path.level)
    if path.level > 1 { return (min(span - (address >> Page.shift) % span, pages), false) }
    let some = min(UInt64(Self.toEnd(Self.index(address, 1))), pages)
    for i in 0..<Int(some) {
      let entry = (path.slot + i).entry
      if entry.isPageable && entry.wires > 0 { return (UInt64(i), true) }
    }
    return (some, false)
  }

  /// Counts what is mapped, and what is prepared, of `pages` from `address` on, as far as one table goes.
  func countPages(_ address: UInt64, _ pages: UInt64) -> (pages: UInt64, mapped: UInt64, prepared: UInt64) {
    let path = descend(address)
    let level = path.level
    let span = Self.span(level)
    if level > 1 {
      let some = min(span - (address >> Page.shift) % span, pages)
      return (some, path.slot.entry.isPresent ? some : 0, 0)
    }
    let some = min(UInt64(Self.toEnd(Self.index(address, 1))), pages)
    var (mapped, prepared): (UInt64, UInt64) = (0, 0)
    for i in 0..<Int(some) {
      let entry = (path.slot + i).entry
      if entry.isPresent { mapped += 1 }
      if entry.isPrepared { prepared += 1 }
    }
    return (some, mapped, prepared)
  }
}
