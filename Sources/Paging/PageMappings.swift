// The mappings of a page, found by its object's list of ranges. The caller holds the object's lock.

import MemoryPrimitives
import PageTables
import PhysicalMemory

extension PagedMemory {
  /// Calls `body` with each address at which a range maps page `index`, and with that range. A range that is being
  /// unmapped (`isGoing`) must be invalidated there even if the tables have no entry. Returns how many ranges it has
  /// visited.
  @discardableResult @inline(__always) func forEachAddress(
    of index: UInt64, _ held: borrowing HeldObject,
    _ body: (_ address: VirtualAddress, _ range: UnsafeMutablePointer<MapEntry>) -> Void
  ) -> Int {
    forEachAddress(of: index, from: held.core.firstEntry, body)
  }

  /// Does the same for the ranges from `first` on in the object's list.
  @discardableResult @inline(__always) func forEachAddress(
    of index: UInt64, from first: UnsafeMutablePointer<MapEntry>?,
    _ body: (_ address: VirtualAddress, _ range: UnsafeMutablePointer<MapEntry>) -> Void
  ) -> Int {
    var at = first
    var ranges = 0
    while let entry = at {
      if let address = entry.address(of: index) { body(address, entry) }
      at = entry.nextOfObject
      ranges &+= 1
    }
    return ranges
  }

  /// Removes all mappings of a page; its addresses go into `batch`, to be invalidated once the lock is released.
  func removeAll(_ index: UInt64, _ held: borrowing HeldObject, _ batch: inout ShootdownBatch) {
    forEachAddress(of: index, held) { address, range in
      if tables.remove(address) != nil || range.isGoing { batch.add(address) }
    }
  }

  /// Write-protects all mappings of a page; the addresses that change go into `batch`.
  func writeProtectAll(_ index: UInt64, _ held: borrowing HeldObject, _ batch: inout ShootdownBatch) {
    forEachAddress(of: index, held) { address, range in
      if let mapping = tables.writeProtect(address), mapping.isWritable { batch.add(address) }
      if range.isGoing { batch.add(address) }
    }
  }

  /// Returns whether the page was used since the last call, by any mapping or by a fault, and clears the marks of that.
  func testAndClearReferenced(
    _ index: UInt64, _ held: borrowing HeldObject, _ record: FrameRecordPointer
  ) -> Usage {
    var usage: Usage = record.pageFlags.contains(.referenced) ? .used : .unused
    record.pageFlags.remove(.referenced)
    forEachAddress(of: index, held) { address, _ in
      if tables.testAndClearAccessed(address) { usage = .used }
    }
    return usage
  }
}

/// Whether a page was used since the last scan.
enum Usage { case used, unused }
