// The bytes of a page window in a host process, whose own loads and stores go through no tables of the core.
//
// Bytes are copied out of the frames that a simulated processor reaches, and those of a write are copied back. A
// processor that models a TLB reaches them by the translations that it caches, stale ones included. Any other walks the
// tables. Only the bytes that were asked for are copied, so that a neighbour in the same frame may be written meanwhile.

import CPlatform
import MemoryPrimitives

extension OpenWindow {
  @usableFromInline borrowing func withCopy<R, E>(
    at offset: Int, count: Int, _ body: (UnsafeRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    var words = InlineArray<1024, UInt64>(repeating: 0)
    copy(.read, offset, count, &words)
    return try withUnsafeMutablePointer(to: &words) { (place) throws(E) in
      try body(UnsafeRawBufferPointer(start: place, count: count))
    }
  }

  @usableFromInline borrowing func withMutableCopy<R, E>(
    at offset: Int, count: Int, _ body: (UnsafeMutableRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    var words = InlineArray<1024, UInt64>(repeating: 0)
    copy(.read, offset, count, &words)
    let result = try withUnsafeMutablePointer(to: &words) { (place) throws(E) in
      try body(UnsafeMutableRawBufferPointer(start: place, count: count))
    }
    copy(.write, offset, count, &words)
    return result
  }

  /// Copies the bytes from `offset` on to the start of `words`, or back.
  private borrowing func copy(
    _ access: AccessKind, _ offset: Int, _ count: Int, _ words: inout InlineArray<1024, UInt64>
  ) {
    guard cp_processor_index() == processor else { return windows.refuseUse(rawAddress, of: processor) }
    let (size, mask) = (Int(Page.size), Int(Page.size) - 1)
    withUnsafeMutableBytes(of: &words) { copy in
      var done = 0
      while done < count {
        let place = offset + done
        let part = min(size - place & mask, count - done)
        guard let page = windows.reach(rawAddress &+ UInt64(place & ~mask), access) else { return }
        let mine = UnsafeMutableRawBufferPointer(rebasing: copy[done..<done + part])
        let bytes = UnsafeMutableRawBufferPointer(start: page + place & mask, count: part)
        switch access {
        case .read: mine.copyMemory(from: UnsafeRawBufferPointer(bytes))
        case .write: bytes.copyMemory(from: UnsafeRawBufferPointer(mine))
        }
        done += part
      }
    }
  }
}

extension PageWindows {
  /// The memory that an access to the page at `address` reaches on this processor. Nil after a report: it faults.
  func reach(_ address: UInt64, _ access: AccessKind) -> UnsafeMutableRawPointer? {
    let (map, mine) = (state.pointee.map, cp_processor())
    let directMap = map.machine.directMap
    let root = UnsafeRawPointer(directMap.pointer(to: map.root))
    var frame: FrameNumber?
    if let reach = mine.pointee.reach, mine.pointee.root == root {
      let number = FrameNumber(reach(mine.pointee.invalidate_context, address, access == .write))
      frame = number == .none ? nil : number
    } else {
      frame = map.access(VirtualAddress(address), access)
    }
    guard let frame else {
      map.report(.notMapped, "an access to a page window faults", VirtualAddress(address))
      return nil
    }
    return directMap.pointer(to: frame)
  }
}
