// The fills of a session: memory is dirtied in steps, all stamps are checked, and all of it is freed again.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// The fills that are kept, the oldest first. No two have the same stamps.
package struct DirtyFills {
  package static var capacity: Int { 8 }
  package private(set) var count = 0
  private var ever: UInt64 = 0
  private var list: InlineArray<8, DirtyPages?> = .init(repeating: nil)

  package init() {}

  /// The seed of a new fill.
  package mutating func nextSeed() -> UInt64 {
    ever += 1
    return ever &* 0x2545_f491_4f6c_dd1d
  }

  /// Keeps a fill. There must be space for it.
  package mutating func keep(_ fill: DirtyPages) {
    list[count] = fill
    count += 1
  }

  /// A fill that is kept.
  package subscript(_ index: Int) -> DirtyPages { list[index]! }

  /// Pages of all fills.
  package var pages: PageCount {
    var pages = PageCount.zero
    for i in 0..<count { pages = pages + self[i].filled }
    return pages
  }

  /// Frees all fills but the first `first`. Returns the count of their pages.
  @discardableResult
  package mutating func release(from first: Int = 0, _ memory: MemorySystem) -> PageCount {
    var pages = PageCount.zero
    while count > first {
      count -= 1
      pages = pages + self[count].filled
      self[count].release(memory)
      list[count] = nil
    }
    return pages
  }
}

extension FillFailure {
  /// The pages that fit, less a few frames so that they can be read back from swap. Nil when the fill ended for
  /// another reason than a lack of memory.
  package var fitting: PageCount? {
    let spared: PageCount = 64
    return error == .noMemory && fitted > spared ? fitted - spared : nil
  }
}
