// Storage to compress a page, and to compare it with the page that is loaded.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Zsmalloc

/// Storage for one compression, for a page, and for a page that is loaded: four frames in a row.
package struct PageBuffers {
  private let block: FrameNumber
  private let base: UnsafeMutableRawPointer

  private static var order: BlockOrder { BlockOrder(2) }

  /// Allocates the storage; nil where there is no memory for it. May sleep until `deadline`.
  package init?(_ memory: MemorySystem, waitUntil deadline: Tick = Tick(0)) {
    do throws(PhysicalMemoryError) {
      block = try memory.physical.allocate(
        Self.order, role: .wired, priority: .normal, waitUntil: deadline,
        for: FrameOwner("compressing pages, buffers"))
    } catch {
      return nil
    }
    base = memory.machine.directMap.pointer(to: block)
  }

  /// Frees the storage.
  package func release(_ memory: MemorySystem) { memory.physical.free(block, Self.order) }

  package var workspace: CompressionWorkspace { CompressionWorkspace(base) }
  /// The page to be stored.
  package var page: UnsafeMutableRawPointer { base + Int(CompressionWorkspace.size.rawValue) }
  /// The page that is loaded. It shares the storage of the workspace's result, which is used while a page is stored.
  package var loaded: UnsafeMutableRawPointer { page - Int(Page.size) }
  /// The words of the page to be stored.
  package var words: UnsafeMutablePointer<UInt64> { page.assumingMemoryBound(to: UInt64.self) }
  /// Whether the loaded page is the same.
  package var areEqual: Bool {
    let other = loaded.assumingMemoryBound(to: UInt64.self)
    for i in 0..<Int(Page.size) / 8 where words[i] != other[i] { return false }
    return true
  }
}
