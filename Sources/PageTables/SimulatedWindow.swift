// The bytes of a page window in tables that no processor loads.
//
// Bytes are copied out of the frames that a simulated processor reaches, and those of a write are copied back. A
// processor that models a TLB reaches them by the translations that it caches, stale ones included. Any other walks the
// tables. Only the bytes that were asked for are copied, so that a neighbour in the same frame may be written at the
// same time.

import CPlatform
import MemoryPrimitives

extension OpenWindow {
  @usableFromInline @inline(never) borrowing func withCopy<R, E>(
    at offset: Int, count: Int, _ body: (UnsafeRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    try withMutableCopy(at: offset, count: count, for: .read) { (bytes) throws(E) in
      try body(UnsafeRawBufferPointer(bytes))
    }
  }

  @usableFromInline @inline(never) borrowing func withMutableCopy<R, E>(
    at offset: Int, count: Int, for access: AccessKind = .write,
    _ body: (UnsafeMutableRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    var words = InlineArray<1024, UInt64>(repeating: 0)
    return try withUnsafeMutablePointer(to: &words) { (words) throws(E) in
      let copy = UnsafeMutableRawBufferPointer(start: words, count: count)
      forEachPart(of: offset, count, .read) { page, done, length in
        (copy.baseAddress! + done).copyMemory(from: page, byteCount: length)
      }
      let result = try body(copy)
      if access == .write {
        forEachPart(of: offset, count, .write) { page, done, length in
          page.copyMemory(from: copy.baseAddress! + done, byteCount: length)
        }
      }
      return result
    }
  }

  /// Calls `body` with the memory that an access reaches in each page, the bytes done before, and the bytes there.
  private borrowing func forEachPart(
    of offset: Int, _ count: Int, _ access: AccessKind, _ body: (UnsafeMutableRawPointer, Int, Int) -> Void
  ) {
    guard windows.isMine(rawAddress, of: processor, .here) else { return }
    let (size, mask) = (Int(Page.size), Int(Page.size) - 1)
    var done = 0
    while done < count {
      let place = offset + done
      let length = min(size - place & mask, count - done)
      guard let page = windows.reach(rawAddress &+ UInt64(place & ~mask), access) else { return }
      body(page + place & mask, done, length)
      done += length
    }
  }
}

extension PageWindows {
  /// The memory that an access to the page at `address` reaches on this processor. Nil after a report: it faults.
  func reach(_ address: UInt64, _ access: AccessKind) -> UnsafeMutableRawPointer? {
    let map = map
    let directMap = map.machine.directMap
    var frame: FrameNumber?
    if cp_caches(directMap.pointer(to: map.root)) {
      frame = FrameNumber(cp_reach(address, access == .write))
    } else {
      frame = map.access(VirtualAddress(address), access)
    }
    guard let frame, frame != .none else {
      map.report(.notMapped, "an access to a page window faults", VirtualAddress(address))
      return nil
    }
    return directMap.pointer(to: frame)
  }
}
