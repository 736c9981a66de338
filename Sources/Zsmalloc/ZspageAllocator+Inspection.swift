// The store for a person: its classes, and the object at an address.

import MemoryPrimitives
import PhysicalMemory

/// One size class, with what it holds.
package struct ZspageClassDescription {
  /// Bytes of a slot, pages of a chain, slots in it.
  package var slotSize: ByteCount
  package var chainPages: Int
  package var slots: Int
  /// Zspages by the share of slots in use: up to a quarter, a half, three quarters, less than all, all.
  package var zspages: InlineArray<5, UInt64>
  package var objects: UInt64
  package var frames: PageCount

  /// Zspages of all groups.
  package var zspageCount: UInt64 {
    var count: UInt64 = 0
    for group in 0..<5 { count += zspages[group] }
    return count
  }
  /// Bytes of slots in use.
  package var usedBytes: ByteCount { ByteCount(objects * slotSize.rawValue) }
}

/// A place in a zspage.
package struct ZspageDescription {
  /// The zspage's number.
  package var number: UInt32
  /// Bytes of a slot, pages of a chain, slots in it.
  package var slotSize: ByteCount
  package var chainPages: Int
  package var slots: Int
  /// Slots in use, and frames that it has.
  package var used: Int
  package var frames: Int
  /// The page of the chain.
  package var page: Int
  /// The slot there and the offset in it; nil behind the last slot.
  package var slot: Int?
  package var offset: Int
  /// The cell of the object in that slot; nil for a free slot.
  package var cell: UInt32?
}

extension ZspageAllocator {
  /// Calls `body` with each class that has a zspage, ascending by slot size. Takes the lock for each class.
  package func forEachClass(_ body: (ZspageClassDescription) -> Void) {
    for number in 0..<classes.count {
      let counts = lists.withLock { $0.counts[number] }
      let shape = classes[number]
      let description = ZspageClassDescription(
        slotSize: ByteCount(UInt64(shape.slotSize)), chainPages: Int(shape.pages), slots: Int(shape.slots),
        zspages: .init { UInt64(counts.zspages[$0]) }, objects: UInt64(counts.objects),
        frames: PageCount(UInt64(counts.frames)))
      if description.zspageCount > 0 { body(description) }
    }
  }

  /// Describes the place of a byte in a frame with role zspage; nil when it is none any more.
  package func whatIs(_ address: PhysicalAddress) -> ZspageDescription? {
    guard let record = physical.record(address.frame), record.hasRole(.zspage) else { return nil }
    let (place, page) = (record.owner, Int(record.aux))
    return lists.withLock { $0.describe(address, page, of: place) }
  }
}

extension ZspageLists {
  fileprivate func describe(_ address: PhysicalAddress, _ page: Int, of place: UInt32) -> ZspageDescription? {
    guard place < zspages.indexEnd, let zspage = existingZspage(place), page < Int(shape(of: zspage).pages),
      zspage.frame(page) == address.frame
    else { return nil }
    let shape = shape(of: zspage)
    let (slot, offset) = (page << Int(Page.shift) + Int(address.offsetInPage)).quotientAndRemainder(
      dividingBy: Int(shape.slotSize))
    let isSlot = slot < Int(shape.slots)
    return ZspageDescription(
      number: place, slotSize: ByteCount(UInt64(shape.slotSize)), chainPages: Int(shape.pages),
      slots: Int(shape.slots), used: zspage.used, frames: zspage.heldPages, page: page,
      slot: isSlot ? slot : nil, offset: offset,
      cell: isSlot && zspage.occupied.contains(slot) ? owner(of: slot, in: zspage) : nil)
  }
}
