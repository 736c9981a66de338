// A stack of frames that are linked through their own first words. It holds tables that were allocated before the lock
// is taken, tables to free after it is dropped, and the reserved tables of splittable leaves.
//
// A link is a frame number, shifted to the bits of an address in an entry, without "present". So a processor that
// still walks through a table that has just left the tree reads an empty entry.

import MemoryPrimitives

struct FrameStack {
  let directMap: DirectMap
  private(set) var count = 0
  private var head = FrameNumber.none

  init(_ directMap: DirectMap) { self.directMap = directMap }

  mutating func push(_ frame: FrameNumber) {
    Slot(directMap.pointer(to: frame)).store(PageTableEntry(head.address.rawValue))
    head = frame
    count += 1
  }

  /// Pops the frame on top, and clears its first word. Traps when there is none.
  mutating func pop() -> FrameNumber {
    precondition(count > 0, "no table is reserved")
    let frame = head
    let slot = Slot(directMap.pointer(to: frame))
    head = slot.entry.tableFrame
    slot.store(.empty)
    count -= 1
    return frame
  }

  mutating func popIfAny() -> FrameNumber? { count == 0 ? nil : pop() }
}
