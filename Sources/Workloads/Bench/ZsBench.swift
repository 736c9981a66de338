// bench zs: storing and loading a page, and reading an object that straddles two pages in each way.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Vmem
import Zsmalloc

extension KernelBenches {
  func measureZs() {
    guard let bench = ZsBench(memory) else { return host.leftOut("zs", "four frames in a row are not free") }
    defer { bench.release() }
    guard let pages = bench.cyclesOfPages(64) else { return host.leftOut("zs", "memory is too full") }
    host.measured(.zsStore, pages.store)
    host.measured(.zsLoad, pages.load)
    let rows: [5 of Budget] = [.zsParts, .zsWindow, .zsMap, .zsVmap, .zsCopy]
    for access in StraddlingAccess.allCases {
      let budget = rows[Int(access.rawValue)]
      if let cycles = bench.cyclesOfReads(by: access, 1000) {
        host.measured(budget, cycles)
      } else {
        host.leftOut(budget.row.name, "memory is too full")
      }
    }
  }
}

/// The bench of one system's store.
package struct ZsBench {
  private let memory: MemorySystem
  private let buffers: PageBuffers
  private var page: UnsafeMutableRawPointer { buffers.page }
  private var store: ZspageAllocator { memory.compressed.store }

  /// A bench with buffers of its own; nil where there is no memory for them.
  package init?(_ memory: MemorySystem) {
    guard let buffers = PageBuffers(memory) else { return nil }
    (self.memory, self.buffers) = (memory, buffers)
  }

  /// Frees the buffers.
  package func release() { buffers.release(memory) }

  /// Fills the page like one of a program: small numbers, pointers with a common start, text, zeroes; some 1400 bytes
  /// compressed.
  private func fillPage(_ number: UInt64) {
    var random = SeededRandom(seed: number + 1)
    let words = buffers.words
    for i in 0..<Int(Page.size) / 8 {
      let word = random.next()
      switch word & 7 {
      case 0...2: words[i] = 0
      case 3: words[i] = word >> 8 & 0xff
      case 4, 5: words[i] = 0x0000_7f3a_9c00_0000 | word >> 8 & 0xfff0
      case 6: words[i] = 0x6e61_6d65_3d00_0000 | word >> 8 & 0xffff
      default: words[i] = word
      }
    }
  }

  /// Cycles of storing and of loading a page, on average over `count` pages. Nil when the store refused one.
  package func cyclesOfPages(_ count: Int) -> (store: UInt64, load: UInt64)? {
    var (stored, loaded): (UInt64, UInt64) = (0, 0)
    for number in 0..<count {
      fillPage(UInt64(number))
      let start = cp_cycles()
      guard let kept = storePage() else { return nil }
      let middle = cp_cycles()
      guard load(kept) else { return nil }
      loaded += cp_cycles() &- middle
      stored += middle &- start
      memory.compressed.free(kept)
    }
    return (stored / UInt64(count), loaded / UInt64(count))
  }

  private func storePage() -> CompressedPage? {
    do throws(ZsmallocError) { return try memory.compressed.store(page, using: buffers.workspace) } catch {
      return nil
    }
  }
  private func load(_ stored: CompressedPage) -> Bool {
    do throws(CompressedPageError) {
      try memory.compressed.load(stored, into: page)
      return true
    } catch {
      return false
    }
  }

  /// Objects of which some straddle two pages.
  private static var length: Int { 1500 }

  /// Stores objects until one straddles, calls `body` with that, and frees all. Nil when the store refused one.
  private func withStraddler<R>(_ body: (ZspageHandle) -> R) -> R? {
    var handles: InlineArray<8, ZspageHandle?> = .init(repeating: nil)
    defer { for i in 0..<8 { if let handle = handles[i] { store.free(handle) } } }
    for i in 0..<8 {
      do throws(ZsmallocError) {
        let handle = try store.store(UnsafeRawBufferPointer(start: page, count: Self.length))
        handles[i] = handle
        if store.straddles(handle) { return body(handle) }
      } catch {
        return nil
      }
    }
    return nil
  }

  /// Reads the first and the last byte of an object; false where that is refused.
  @inline(__always) private func read(_ handle: ZspageHandle) -> Bool {
    do throws(ZsmallocError) {
      return try store.withSelectedParts(of: handle) { parts in
        let last =
          parts.second.count > 0 ? parts.second[parts.second.count - 1] : parts.first[Self.length - 1]
        return UInt64(parts.first[0]) &+ UInt64(last) != cp_opaque_number(512)
      } ?? false
    } catch {
      return false
    }
  }

  /// Cycles of reaching a straddling object in one way. Nil when the store refused an object.
  package func cyclesOfReads(by access: StraddlingAccess, _ count: Int) -> UInt64? {
    defer { selectParts() }
    do throws(ZsmallocError) { try store.select(access) } catch { return nil }
    return withStraddler { handle in
      var least = UInt64.max
      for _ in 0..<5 {
        let start = cp_cycles()
        for _ in 0..<count { _ = read(handle) }
        least = min(least, cp_cycles() &- start)
      }
      return least / UInt64(count)
    }
  }

  /// Reads a straddling object `count` times in one way: how many reads were refused, and how often they have
  /// allocated addresses. `prepare` is called once before the reads, `end` behind them. Nil when the store refused an
  /// object.
  package func reads(
    by access: StraddlingAccess, _ count: Int, prepare: () -> Void = {}, end: () -> Void = {}
  ) -> (refused: UInt64, addresses: UInt64)? {
    defer { selectParts() }
    do throws(ZsmallocError) { try store.select(access) } catch { return nil }
    return withStraddler { handle in
      let before = addressAllocations
      prepare()
      var refused: UInt64 = 0
      for _ in 0..<count where !read(handle) { refused += 1 }
      end()
      return (refused, addressAllocations &- before)
    }
  }

  private var addressAllocations: UInt64 { memory.statistics.value(of: "vmem.allocations") ?? 0 }

  private func selectParts() {
    do throws(ZsmallocError) { try store.select(.parts) } catch {}
  }
}
