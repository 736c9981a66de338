// Memory of the host, for structures that a caller provides storage for.

/// Zeroed bytes, aligned to a cache line. Freed with this object.
final class ZeroedStorage {
  let base: UnsafeMutableRawPointer

  init(byteCount: Int) {
    base = .allocate(byteCount: byteCount, alignment: 64)
    base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
  }

  deinit { base.deallocate() }
}
