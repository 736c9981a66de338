// Storage to compress a page, and to compare it with the page that is loaded.

import Foundation
import MemoryPrimitives
import Zsmalloc

/// Storage for one compression, for a page, and for a page that is loaded. The pointers are valid as long as this
/// object.
final class PageBuffers {
  private static let size = Int(Page.size)
  private static let pageOffset = (Int(CompressionWorkspace.size.rawValue) + 63) & ~63
  private let storage = ZeroedStorage(byteCount: pageOffset + 2 * size)

  var workspace: CompressionWorkspace { CompressionWorkspace(storage.base) }
  var page: UnsafeMutableRawPointer { storage.base + Self.pageOffset }
  var loaded: UnsafeMutableRawPointer { page + Self.size }
  /// Whether the loaded page is the same.
  var areEqual: Bool { memcmp(page, loaded, Self.size) == 0 }

  /// Reads a page of `data`; zeroes follow the last byte.
  func read(_ number: Int, of data: Data) {
    let start = number * Self.size
    let end = min(start + Self.size, data.count)
    let bytes = page.initializeMemory(as: UInt8.self, repeating: 0, count: Self.size)
    data.copyBytes(to: bytes, from: start..<end)
  }
}
