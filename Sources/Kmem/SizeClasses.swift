// Sizes that kmem serves from caches, and the way from a size to its cache.
//
// Classes are steps of 8 bytes up to a cache line, where most requests of a kernel are. Above it every class is a
// multiple of the line, so that no two objects share a line. The classes above 640 bytes are those that cut 1, 2, 4 or 8
// pages with less than a sixteenth left over. Powers of two are classes as well, because callers request them. A
// constant size finds its class at compile time up to a line, with one load above.

import MemoryPrimitives

/// Indices of the counters and of the caches: one for each size class, for larger requests, for the contiguous memory of
/// other layers, and for each object cache.
@usableFromInline enum CacheIndex {
  /// No request succeeds at this index: its allocations are those that failed, its frees those that destroyed caches
  /// had served. A size of zero has this index, and so reaches the slow path.
  @inlinable static var failed: Int { 0 }
  @inlinable static var firstClass: Int { 1 }
  static var lastClass: Int { 29 }
  /// Requests above the largest class, and their pages.
  @inlinable static var large: Int { 30 }
  static var largePages: Int { 31 }
  /// Contiguous memory, which kmem only counts, and its pages.
  static var contiguous: Int { 32 }
  static var contiguousPages: Int { 33 }
  static var firstObjectCache: Int { 34 }
  /// The number of indices for which a processor's row has counters.
  static var limit: Int { 124 }
}

enum SizeClasses {

  /// Looks up the bytes of an object of the class at `cacheIndex`, 1 to 29.
  static func size(_ cacheIndex: Int) -> Int {
    if cacheIndex <= 8 { return cacheIndex * 8 }
    return switch cacheIndex {
    case 9: 128
    case 10: 192
    case 11: 256
    case 12: 320
    case 13: 384
    case 14: 448
    case 15: 512
    case 16: 576
    case 17: 640
    case 18: 768
    case 19: 896
    case 20: 1024
    case 21: 1152
    case 22: 1344
    case 23: 1600
    case 24: 1792
    case 25: 2048
    case 26: 2304
    case 27: 2688
    case 28: 3264
    default: 4096
    }
  }

  /// Finds the index of the smallest class that holds `lines` cache lines, 1 to 64.
  static func cacheIndex(holdingLines lines: Int) -> Int {
    var cacheIndex = 8
    while size(cacheIndex) < lines * 64 { cacheIndex += 1 }
    return cacheIndex
  }

  /// Makes the name of a class's cache: `kmem-` and its size.
  static func name(_ cacheIndex: Int) -> ShortName {
    var digits: (UInt8, UInt8, UInt8, UInt8) = (0, 0, 0, 0)
    var rest = size(cacheIndex)
    var length = 0
    while rest > 0 {
      digits = (UInt8(ascii: "0") + UInt8(rest % 10), digits.0, digits.1, digits.2)
      rest /= 10
      length += 1
    }
    return withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 9) { bytes in
      let prefix: StaticString = "kmem-"
      for i in 0..<5 { bytes[i] = prefix.utf8Start[i] }
      bytes[5] = digits.0
      bytes[6] = digits.1
      bytes[7] = digits.2
      bytes[8] = digits.3
      return ShortName(bytes: UnsafeBufferPointer(start: bytes.baseAddress, count: 5 + length))
    }
  }
}
