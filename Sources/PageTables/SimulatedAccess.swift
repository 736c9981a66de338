// The processor's part of an access, for a simulated processor, and the walk that takes no lock.

import MemoryPrimitives

/// A page that an access of a simulated processor reached.
package struct AccessedPage: Equatable, Sendable {
  /// `FrameNumber.none` for memory beyond all frames.
  package var frame: FrameNumber
  /// The rights of its entry.
  package var rights: AccessKind
}

/// The entries above a leaf that a simulated processor caches (SDM vol. 3, 4.10.3).
package protocol UpperEntries {
  /// The table of `level` on the way to `address`, if it is cached.
  func table(_ level: TableLevel, for address: VirtualAddress) -> FrameNumber?
  /// Caches that table.
  func keep(_ table: FrameNumber, _ level: TableLevel, for address: VirtualAddress)
  /// Whether the machine has memory at a frame. A table that has left the tree may hold any words by now; an entry that
  /// leads nowhere is one with reserved bits, which faults.
  func hasMemory(at frame: FrameNumber) -> Bool
}

/// A processor that caches none.
struct NoUpperEntries: UpperEntries {
  @inline(__always) func table(_ level: TableLevel, for address: VirtualAddress) -> FrameNumber? { nil }
  @inline(__always) func keep(_ table: FrameNumber, _ level: TableLevel, for address: VirtualAddress) {}
  @inline(__always) func hasMemory(at frame: FrameNumber) -> Bool { true }
}

extension PageMap {
  /// Accesses `address` as a processor does: sets accessed, and dirty for a write. Returns the frame, or nil where the
  /// processor would fault: nothing is mapped, or a write to a read-only page. For tables that no processor loads, on a
  /// simulated machine. `FrameNumber.none` for memory beyond all frames.
  ///
  /// Takes no lock, as the processor takes none. So a caller that frees the tables that translate `address`, and not
  /// just the page that is mapped there, must wait until this has returned.
  package func access(_ address: VirtualAddress, _ kind: AccessKind) -> FrameNumber? {
    access(address, kind, caching: NoUpperEntries())?.frame
  }

  /// Accesses `address` as a processor that caches `upper` entries. It begins at the lowest table that it caches for
  /// the address, whether that is in the tree or not, and caches each one that it passes.
  package func access(
    _ address: VirtualAddress, _ kind: AccessKind, caching upper: some UpperEntries
  ) -> AccessedPage? {
    guard isCanonical(address) else { return nil }
    while true {
      let (slot, entry, level) = walkUnlocked(address, upper)
      guard entry.isPresent, kind == .read || entry.isWritable else { return nil }
      let bits = PageTableEntry.Bit.accessed | (kind == .write ? PageTableEntry.Bit.dirty : 0)
      // Walks again when the entry changed in between.
      guard entry.rawValue & bits == bits || slot.replace(entry, with: entry.rawValue | bits) else {
        continue
      }
      let offset = address.rawValue & (1 << TableTree.shift(level) - 1)
      let number = (entry.address(at: level) + offset) >> Page.shift
      let frame = number < UInt64(FrameNumber.limit) ? FrameNumber(UInt32(number)) : .none
      guard upper.hasMemory(at: frame) else { return nil }
      return AccessedPage(frame: frame, rights: entry.isWritable ? .write : .read)
    }
  }

  /// The last entry on the way to an address, as a processor finds it.
  @inline(__always) func walkUnlocked(
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
      guard upper.hasMemory(at: entry.tableFrame) else {
        return (slot, PageTableEntry(0), level)
      }
      level -= 1
      table = entry.tableFrame
      upper.keep(table, TableLevel(level), for: address)
    }
  }
}
