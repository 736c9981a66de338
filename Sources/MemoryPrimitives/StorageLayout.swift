// How several values lie in one range of memory that a caller supplies, without an allocator.
//
// A layout is worked out once, by a function that adds each part. The parts' offsets then serve twice: the size says
// how much memory a `create` needs, and the offsets say where each part begins in the memory that it was given.

/// Offsets of parts in a range of memory, each aligned, one behind the other.
@frozen @usableFromInline package struct StorageLayout {
  @usableFromInline var end: Int = 0

  @inlinable package init() {}

  /// Adds a part of `size` bytes, and returns its offset. Traps where the layout exceeds the address space.
  @inlinable package mutating func add(_ size: Int, alignedTo alignment: Alignment = .cacheLine) -> Int {
    let offset = alignment.roundUp(end)
    end = offset + size
    return offset
  }

  /// Adds a part of `size` bytes, and returns its offset.
  @inlinable package mutating func add(_ size: ByteCount, alignedTo alignment: Alignment = .cacheLine) -> Int
  {
    add(Int(size.rawValue), alignedTo: alignment)
  }

  /// Adds a part for `count` values of a type, and returns its offset.
  @inlinable package mutating func add<T: ~Copyable>(
    _ type: T.Type, count: Int = 1, alignedTo alignment: Alignment = .cacheLine
  ) -> Int {
    add(MemoryLayout<T>.stride * count, alignedTo: alignment)
  }

  /// Bytes of all parts, rounded up to a cache line.
  @inlinable package var size: ByteCount { ByteCount(Alignment.cacheLine.roundUp(end)) }
}

extension UnsafeMutableRawPointer {
  /// The part of a layout that begins at `offset`, bound to its type.
  @inlinable package func part<T: ~Copyable>(
    _ type: T.Type, at offset: Int, count: Int = 1
  ) -> UnsafeMutablePointer<T> {
    (self + offset).bindMemory(to: T.self, capacity: count)
  }
}
