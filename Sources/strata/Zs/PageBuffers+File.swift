// Reading a page of a file into the storage that compresses it.

import Foundation
import MemoryPrimitives
import Workloads

extension PageBuffers {
  /// Reads a page of `data`; zeroes follow the last byte.
  func read(_ number: Int, of data: Data) {
    let (size, start) = (Int(Page.size), number * Int(Page.size))
    let bytes = page.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    data.copyBytes(to: bytes, from: start..<min(start + size, data.count))
  }
}
