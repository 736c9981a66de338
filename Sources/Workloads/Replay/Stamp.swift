// The stamps that a replay writes into each object and page, so that two owners of one byte are detected.
//
// A stamp depends on the identity, the number of the event, and the offset in the object. Up to 128 bytes are filled
// completely; in a larger object, the first word of each cache line and the last whole word. An object of a cache
// line or more begins with one, so two of them can't share a line undetected. Roles show whether frames of pages and
// of slabs mix (`Replay`).

import MemoryPrimitives

struct Stamp {
  private let seed: UInt64

  init(_ identity: UInt32, _ sequence: UInt32) {
    seed = (UInt64(sequence) << 32 | UInt64(identity) + 1) &* 0x9e37_79b9_7f4a_7c15
  }

  @inline(__always) private func word(at offset: UInt64) -> UInt64 {
    seed ^ (offset &* 0xbf58_476d_1ce4_e5b9)
  }

  /// Up to here all bytes are written.
  private static var filled: UInt64 { 128 }

  /// Writes the stamp to `size` bytes from `address` on, a multiple of 8. Returns false if they can't be reached.
  func write<A: MemoryAccess>(_ address: VirtualAddress, _ size: UInt64, _ access: A) -> Bool {
    visit(address, size, access) { pointer, offset, length in
      if length == 8 {
        pointer.storeBytes(of: word(at: offset), as: UInt64.self)
      } else {
        for i in 0..<length {
          pointer.storeBytes(
            of: UInt8(truncatingIfNeeded: word(at: offset) >> (8 * i)), toByteOffset: Int(i), as: UInt8.self)
        }
      }
      return true
    }
  }

  /// Whether the stamp is intact.
  func holds<A: MemoryAccess>(_ address: VirtualAddress, _ size: UInt64, _ access: A) -> Bool {
    visit(address, size, access) { pointer, offset, length in
      if length == 8 { return pointer.load(as: UInt64.self) == word(at: offset) }
      for i in 0..<length {
        let byte = pointer.load(fromByteOffset: Int(i), as: UInt8.self)
        if byte != UInt8(truncatingIfNeeded: word(at: offset) >> (8 * i)) { return false }
      }
      return true
    }
  }

  /// Whether all bytes that a stamp would cover are zero.
  static func isZero<A: MemoryAccess>(_ address: VirtualAddress, _ size: UInt64, _ access: A) -> Bool {
    Stamp(0, 0).visit(address, size, access) { pointer, _, length in
      if length == 8 { return pointer.load(as: UInt64.self) == 0 }
      for i in 0..<length where pointer.load(fromByteOffset: Int(i), as: UInt8.self) != 0 { return false }
      return true
    }
  }

  /// Runs `body` on each stamped word: its address, its offset, its length (8, or less at the end).
  @inline(__always) private func visit<A: MemoryAccess>(
    _ address: VirtualAddress, _ size: UInt64, _ access: A,
    _ body: (UnsafeMutableRawPointer, UInt64, UInt64) -> Bool
  ) -> Bool {
    let step: UInt64 = size <= Self.filled ? 8 : 64
    var offset: UInt64 = 0
    while offset + 8 <= size {
      guard let pointer = access.pointer(to: address + ByteCount(offset)), body(pointer, offset, 8) else {
        return false
      }
      offset += step
    }
    // The rest of a small one, or the last whole word of a large one.
    if step == 64 { offset = (size - 8) & ~7 }
    guard offset < size else { return true }
    guard let pointer = access.pointer(to: address + ByteCount(offset)) else { return false }
    return body(pointer, offset, min(8, size - offset))
  }
}
