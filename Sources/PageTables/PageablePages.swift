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
}

extension PageTables {
  // MARK: Mapping

  /// Maps the prepared page at `address`, which is not mapped: data of the kernel, accessed from the start,
  /// and dirty if writable. Traps when the place is not prepared or is in use. Constant.
  public func enter(_ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection) {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    withTree { $0.enter(address.rawValue, frame, protection) }
  }

  /// Runs `body` with one hold of the tables' lock on prepared places, for pages that are entered or withdrawn
  /// together: a few dozen, as the lock is held. `body` makes no upcall.
  @inline(__always) public func withPlaces<R>(_ body: (borrowing PreparedPlaces) -> R) -> R {
    withTree { tree in
      withUnsafeMutablePointer(to: &tree) { body(PreparedPlaces(tree: $0)) }
    }
  }

  /// Maps the prepared page at `address` to `frame`, or, when it is mapped already, gives it the right to write
  /// that `protection` has: what a fault ends with. Traps when the place is not prepared. Constant.
  public func show(_ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection) {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    let written = protection.contains(.writable) ? PageTableEntry.Bit.written : 0
    withTree { tree in
      guard let slot = tree.place(address.rawValue), slot.entry.isPrepared else {
        preconditionFailure("a pageable page was mapped where no place was kept")
      }
      if slot.entry == .preparedMark {
        slot.store(PageTableEntry(PageTableEntry.pageable | frame.address.rawValue | written))
        tree.leafCount[1] += 1
      } else if written != 0 {
        assert(slot.entry.tableFrame == frame, "a page is mapped to another frame")
        slot.set(written)
      }
    }
  }

  /// Unmaps the pageable page at `address`; the place stays prepared. What was there, or nil when nothing
  /// was. Other processors still see it until they are told. Constant.
  public func withdraw(_ address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { $0.withdraw(address.rawValue) }
  }

  /// Takes the right to write, and dirty with it, from the pageable page at `address`. What was there
  /// before, or nil when it is not mapped. Other processors may write until they are told. Constant.
  public func restrict(_ address: VirtualAddress) -> PageMapping? {
    guard isCanonical(address) else { return nil }
    return withTree { tree in
      guard let slot = tree.pageablePage(address.rawValue) else { return nil }
      let entry = slot.entry
      return PageMapping(entry.isWritable ? slot.clear(PageTableEntry.Bit.written) : entry)
    }
  }

  /// Makes the pageable page at `address` writable, and dirty. Traps when it is not mapped. Nobody needs
  /// to be told: a processor that faults on what it remembers looks again (SDM vol. 3, 4.10.4.3). Constant.
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
  public func takeAccessed(_ address: VirtualAddress) -> Bool {
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

  /// Whether a place is kept for the page that holds `address`, mapped or not. Takes no lock, as `access`: a
  /// handler of page faults asks this before it knows what the one who faulted holds.
  public func isPrepared(_ address: VirtualAddress) -> Bool {
    guard isCanonical(address) else { return false }
    let (_, entry, level) = walkUnlocked(address)
    return level == 1 && entry.isPrepared
  }

  /// Pages that are mapped, by leaves of any size, among `count` from `address` on. A step for each table.
  public func mappedCount(_ address: VirtualAddress, count: PageCount) -> PageCount {
    pages(from: address, count).mapped
  }

  /// Places that are prepared, mapped or not, among `count` pages from `address` on. A step for each table.
  public func preparedCount(_ address: VirtualAddress, count: PageCount) -> PageCount {
    pages(from: address, count).prepared
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
    guard isCanonical(address) else { return nil }
    while true {
      let (slot, entry, level) = walkUnlocked(address)
      guard entry.isPresent, kind == .read || entry.isWritable else { return nil }
      let noted = PageTableEntry.Bit.accessed | (kind == .write ? PageTableEntry.Bit.dirty : 0)
      // Walks again when the entry changed in between.
      guard entry.rawValue & noted == noted || slot.replace(entry, with: entry.rawValue | noted) else {
        continue
      }
      let offset = address.rawValue & (1 << TableTree.shift(level) - 1)
      let number = (entry.address(at: level) + offset) >> Page.shift
      return number < UInt64(FrameNumber.limit) ? FrameNumber(UInt32(number)) : .none
    }
  }

  /// The last entry on the way to an address, as a processor finds it.
  private func walkUnlocked(_ address: VirtualAddress) -> (slot: Slot, entry: PageTableEntry, level: Int) {
    var level = state.pointee.levels
    var slot = Slot(machine.directMap.pointer(to: state.pointee.root))
    slot = slot + TableTree.index(address.rawValue, level)
    var entry = slot.acquired
    while entry.isTable(at: level) {
      level -= 1
      slot = Slot(machine.directMap.pointer(to: entry.tableFrame))
      slot = slot + TableTree.index(address.rawValue, level)
      entry = slot.acquired
    }
    return (slot, entry, level)
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

/// Prepared places while the tables' lock is held: what `PageTables.withPlaces` lends.
public struct PreparedPlaces: ~Copyable {
  fileprivate let tree: UnsafeMutablePointer<TableTree>

  /// As `PageTables.enter`.
  @inline(__always)
  public func enter(_ address: VirtualAddress, _ frame: FrameNumber, _ protection: Protection) {
    precondition(frame != .none && !protection.contains(.executable) && isCanonical(address))
    tree.pointee.enter(address.rawValue, frame, protection)
  }

  /// As `PageTables.withdraw`.
  @inline(__always) public func withdraw(_ address: VirtualAddress) -> PageMapping? {
    isCanonical(address) ? tree.pointee.withdraw(address.rawValue) : nil
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
  @inline(__always) mutating func withdraw(_ address: UInt64) -> PageMapping? {
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
