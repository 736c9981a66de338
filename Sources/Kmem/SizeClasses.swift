// Sizes that kmem serves from caches, and the way from a size to its cache.
//
// Classes are steps of 8 bytes up to a cache line, where most requests of a kernel are. Above it every class is a
// multiple of the line, so that no two objects share a line: each multiple up to 1 KiB, because rounding costs more than
// a further cache does. The classes above are those that cut 1, 2, 4 or 8 pages with less than a sixteenth left over.
// 1216 stands for the inodes of file systems, a quarter of a kernel's memory in objects.
// Powers of two are classes as well, because callers request them. A constant size finds its class at compile time up to
// a line, with one load above; any other size with one load.
//
// The classes above a page serve without a fast path. Where physical memory has no run for their slabs, pages with an
// address of their own serve the request (Large.swift). The address distinguishes the two when it is freed.

import MemoryPrimitives

/// Indices of the counters and of the caches: one for each size class, for larger requests, for the contiguous memory of
/// other layers, and for each object cache.
@usableFromInline enum CacheIndex {
  /// No request succeeds at this index: its allocations are those that failed, its frees those that destroyed caches
  /// had served. A size of zero has this index, and so reaches the slow path.
  @inlinable static var failed: Int { 0 }
  @inlinable static var firstClass: Int { 1 }
  static var firstAboveAPage: Int { 35 }
  static var lastClass: Int { 39 }
  /// Requests above the largest class, and their pages.
  @inlinable static var large: Int { 40 }
  static var largePages: Int { 41 }
  /// Contiguous memory, which kmem only counts, and its pages.
  static var contiguous: Int { 42 }
  static var contiguousPages: Int { 43 }
  static var firstObjectCache: Int { 44 }
  /// The number of indices for which a processor's row has counters.
  static var limit: Int { 124 }
}

enum SizeClasses {

  /// Looks up the bytes of an object of the class at `cacheIndex`, a class's.
  static func size(_ cacheIndex: Int) -> Int {
    if cacheIndex <= 8 { return cacheIndex * 8 }
    if cacheIndex <= 23 { return (cacheIndex - 7) * 64 }
    return switch cacheIndex {
    case 24: 1152
    case 25: 1216
    case 26: 1344
    case 27: 1472
    case 28: 1600
    case 29: 1792
    case 30: 2048
    case 31: 2304
    case 32: 2688
    case 33: 3264
    case 34: 4096
    case 35: 4672
    case 36: 5440
    case 37: 6528
    case 38: 8192
    default: 10880
    }
  }

  /// Finds the index of the smallest class whose objects have `bytes`, no more than the largest class has.
  static func cacheIndex(holding bytes: Int) -> Int {
    var cacheIndex = bytes > Int(Page.size) ? CacheIndex.firstAboveAPage : CacheIndex.firstClass
    while size(cacheIndex) < bytes { cacheIndex += 1 }
    return cacheIndex
  }

  /// The largest request that a class serves.
  static var largest: UInt64 { UInt64(size(CacheIndex.lastClass)) }

  /// Finds the class of a request above a page; nil when no class is that large.
  static func cacheIndexAboveAPage(_ size: UInt64) -> Int? {
    size <= largest ? cacheIndex(holding: Int(size)) : nil
  }

  /// Makes the name of a class's cache: `kmem-` and its size.
  static func name(_ cacheIndex: Int) -> ShortName {
    let prefix: StaticString = "kmem-"
    var rest = size(cacheIndex)
    var length = prefix.utf8CodeUnitCount
    while rest > 0 {
      rest /= 10
      length += 1
    }
    // A capacity that the compiler does not know would be allocated.
    return withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 16) { bytes in
      for i in 0..<prefix.utf8CodeUnitCount { bytes[i] = prefix.utf8Start[i] }
      rest = size(cacheIndex)
      var digit = length
      while rest > 0 {
        digit -= 1
        bytes[digit] = UInt8(ascii: "0") + UInt8(rest % 10)
        rest /= 10
      }
      return ShortName(bytes: UnsafeBufferPointer(start: bytes.baseAddress, count: length))
    }
  }
}
