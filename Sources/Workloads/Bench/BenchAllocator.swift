// The allocators that a bench of objects drives: kmem, or the host's malloc in a process of its own.
//
// The bodies are generic, and the compiler inlines them with their allocator into the caller, as in a user's code: the
// fast path of kmem is in the loop, and so is the call of malloc. Both pass through `cp_opaque`, so that no pair is
// optimised away, and neither is favoured.

import CPlatform
import Kmem
import MemoryPrimitives

/// An allocator of objects that a bench drives.
@usableFromInline package protocol BenchAllocator {
  /// An object of `size` bytes; a benchmark ends the process when there is none.
  func allocate(_ size: UInt64) -> UnsafeMutableRawPointer
  /// Frees an object that `allocate` returned for the same size.
  func free(_ object: UnsafeMutableRawPointer, _ size: UInt64)
}

/// Kmem with one type.
@frozen @usableFromInline package struct KmemBenchAllocator: BenchAllocator {
  @usableFromInline let kmem: KmemAllocator
  @usableFromInline let type: MemoryType

  /// Creates an allocator that counts its objects under `type`.
  @inlinable package init(_ kmem: KmemAllocator, _ type: MemoryType) {
    self.kmem = kmem
    self.type = type
  }

  /// Allocates an object of `size` bytes.
  @inline(always) package func allocate(_ size: UInt64) -> UnsafeMutableRawPointer {
    kmem.alloc(ByteCount(size), type: type).unsafelyUnwrapped
  }
  /// Frees an object of `size` bytes.
  @inline(always) package func free(_ object: UnsafeMutableRawPointer, _ size: UInt64) {
    kmem.free(object, size: ByteCount(size), type: type)
  }
}
