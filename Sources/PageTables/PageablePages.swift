// Single pages in prepared places: paging enters, write-protects and removes its mappings here, one entry at a time.
//
// A prepared place keeps its table, so nothing here needs memory or can fail. Each operation is one walk and one
// exchange under the tables' lock, with no upcall. So the caller may hold a lock of lower rank. The caller invalidates
// the other processors (`ShootdownBatch`) after it has dropped that lock.
//
// The processor takes no lock: it sets accessed, and dirty, in a present entry by a locked exchange of its
// own at any time (SDM vol. 3, 4.8). So an entry is read and written here in one atomic operation, and no bit that a
// processor set is ever lost. A page is writable only with dirty set already, as paging expects a write from then on.
// So the processor has only accessed left to set, and dirty without writable (a shadow stack, 4.6.1) can't occur.
//
// An operation that removes rights leaves stale translations until they are shot down. Until then another processor
// still reads, and writes if it could. Only accessed needs no shootdown: a stale translation merely hides a use.

import CPlatform
import MemoryPrimitives
import Synchronization

/// The mapping at one prepared place.
package struct PageMapping: Equatable, Sendable {
  private let entry: PageTableEntry
  @inline(__always) init(_ entry: PageTableEntry) { self.entry = entry }

  /// The frame that it maps.
  package var frame: FrameNumber { entry.tableFrame }
  /// Whether it permits writing.
  package var isWritable: Bool { entry.isWritable }
  /// Whether a processor used it since accessed was last cleared, or since it was mapped.
  package var isAccessed: Bool { entry.isAccessed }
  /// Whether it has been writable since dirty was last cleared.
  package var isDirty: Bool { entry.isDirty }
  /// Wires that were made through this mapping.
  package var wires: UInt32 { UInt32(entry.wires) }
  /// The most wires that one mapping counts.
  package static var maximumWires: UInt64 { 0xfff }
}

/// Whether a processor may cache fewer rights than a mapping has after `enter`. That is so when the mapping was there
/// before and permits writing now, by this call or by an earlier one without an invalidation since.
@frozen @usableFromInline package enum RightsChange: UInt8, Sendable { case none, raised }

/// The verdict of the tables on an access that faulted.
@frozen @usableFromInline package enum FaultVerdict: UInt8, Sendable {
  /// It is permitted: the processor used a stale translation (SDM vol. 3, 4.10.4.3), and has dropped it by the fault.
  /// The thread repeats the access.
  case permitted
  /// It is not permitted, and the place is prepared for a pageable page.
  case pageable
  /// It is not permitted, and the place is not prepared.
  case notPageable
}

extension PageMap {
  // MARK: Mapping

  /// Runs `body` under one hold of the tables' lock, for pages that are entered or removed together: a few dozen, as
  /// the lock is held. `body` makes no upcall.
  @inline(__always) package func withPlaces<R>(_ body: (borrowing PreparedPlaces) -> R) -> R {
    withTree { tree in
      withUnsafeMutablePointer(to: &tree) { body(PreparedPlaces(tree: $0)) }
    }
  }

  /// Enters `frame` at the prepared page `address`: data of the kernel, accessed from the start, and dirty if writable.
  /// When the page is mapped already, to the same frame, adds the right to write if `protection` has it. A page fault
  /// ends here. Traps when the place is not prepared. Constant.
  ///
  /// After `raised` a processor that caches the page as read-only may fault on a write until it is invalidated there.
  @discardableResult package func enter(
    _ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection
  ) -> RightsChange {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    let written = protection.contains(.writable) ? PageTableEntry.Bit.written : 0
    return withTree { tree in
      guard let slot = tree.pageSlot(address.rawValue), slot.entry.isPrepared else {
        preconditionFailure("a pageable page was entered where no place is prepared")
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

  /// Counts one more wire that was made through the mapping at `address`, up to `PageMapping.maximumWires`. Traps when
  /// nothing pageable is mapped there. Constant.
  package func addWire(_ address: VirtualAddress) {
    guard changeWires(address, { $0 < PageMapping.maximumWires ? $0 + 1 : nil }) != nil else {
      preconditionFailure("a page that is not mapped was wired, or too often")
    }
  }

  /// Counts one wire less. Returns the frame, or nil when no wire was made through the mapping at `address`. Constant.
  package func removeWire(_ address: VirtualAddress) -> FrameNumber? {
    changeWires(address) { $0 > 0 ? $0 - 1 : nil }
  }

  private func changeWires(_ address: VirtualAddress, _ change: (UInt64) -> UInt64?) -> FrameNumber? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else { return nil }
      while true {
        let entry = slot.entry
        guard let wires = change(entry.wires) else { return nil }
        // Reads the entry again when a processor set accessed in between.
        if slot.replace(entry, with: entry.withWires(wires).rawValue) { return entry.tableFrame }
      }
    }
  }

  /// Removes the mapping of the pageable page at `address`; the place stays prepared. Returns the mapping, or nil when
  /// there was none. Other processors may use it until they are invalidated. Constant.
  package func remove(_ address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { $0.remove(address.rawValue) }
  }

  /// Removes the right to write, and dirty with it, from the pageable page at `address`. Returns the mapping before, or
  /// nil when it is not mapped. Other processors may write until they are invalidated. Constant.
  package func writeProtect(_ address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else { return nil }
      let entry = slot.entry
      return PageMapping(entry.isWritable ? slot.clear(PageTableEntry.Bit.written) : entry)
    }
  }

  /// Makes the pageable page at `address` writable, and dirty. Traps when it is not mapped. A processor that caches it
  /// as read-only may fault on a write until it is invalidated (SDM vol. 3, 4.10.4.3). Constant.
  package func permitWriting(_ address: VirtualAddress) {
    precondition(isCanonical(address))
    withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else {
        preconditionFailure("a page that is not mapped was made writable")
      }
      slot.set(PageTableEntry.Bit.written)
    }
  }

  /// Clears accessed for the pageable page at `address`. Returns whether it was set; false when nothing is mapped.
  /// Constant.
  package func testAndClearAccessed(_ address: VirtualAddress) -> Bool {
    guard isCanonical(address) else { return false }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue), slot.entry.isAccessed else { return false }
      return slot.clear(PageTableEntry.Bit.accessed).isAccessed
    }
  }

  // MARK: Queries

  /// The mapping at the prepared page that holds `address`; nil when nothing is mapped, or nothing pageable.
  package func mapping(at address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in tree.pageablePage(address.rawValue).map { PageMapping($0.entry) } }
  }

  /// Whether the place of the page that holds `address` is prepared, mapped or not.
  package func isPrepared(_ address: VirtualAddress) -> Bool {
    guard isCanonical(address) else { return false }
    return withTree { tree in tree.pageSlot(address.rawValue)?.entry.isPrepared ?? false }
  }

  /// Judges an access that faulted, for a handler of page faults. The handler doesn't know yet which locks the
  /// faulting thread holds.
  ///
  /// Takes no lock, so interrupts must be off until this returns: then no table on the way is freed, as an invalidation
  /// waits for this processor.
  package func verdict(onFault address: VirtualAddress, _ kind: AccessKind) -> FaultVerdict {
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
  package func preparedCount(_ address: VirtualAddress, count: PageCount) -> PageCount {
    pages(from: address, count).prepared
  }

  /// The first of `count` pages from `address` on that was wired through its mapping. A step for each table.
  package func firstWired(_ address: VirtualAddress, count: PageCount) -> VirtualAddress? {
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
}

extension PageTableEntry.Bit {
  /// The right to write, and dirty, which is set with it.
  @inline(__always) static var written: UInt64 { writable | dirty }
}

extension PageTableEntry {
  /// A pageable page without its address, read-only.
  @inline(__always) static var pageable: UInt64 {
    Bit.present | Bit.accessed | Bit.global | Bit.executeDisable | Bit.prepared
  }
}
