// The store of this project as a layout: the real one, with bytes in its objects.

import Foundation
import KernelMemory
import MemoryPrimitives
import Workloads
import Zsmalloc

final class StrataStore: ObjectLayout {
  private static let headerSize: UInt64 = 4
  private let compressed: CompressedPages
  private var handles: [ZspageHandle?] = []
  private let buffer = ZeroedStorage(byteCount: 2 * Int(Page.size))

  init(_ memory: MemorySystem) { compressed = memory.compressed }

  var canCompact: Bool { true }
  var held: HeldFrames {
    let figures = compressed.figures
    return HeldFrames(
      data: figures.dataFrames.rawValue, tables: figures.tableFrames.rawValue,
      headers: (figures.objects - figures.huge.rawValue) * Self.headerSize)
  }

  func store(_ size: Int) -> Int? {
    fill(size, for: handles.count)
    let bytes = UnsafeRawBufferPointer(start: buffer.base, count: size)
    guard let handle = try? compressed.store.store(bytes, priority: .interrupt) else { return nil }
    handles.append(handle)
    return handles.count - 1
  }

  func free(_ object: Int) {
    if let handle = handles[object] { compressed.store.free(handle) }
    handles[object] = nil
  }

  func compact() { compressed.store.compact() }

  /// The first object whose bytes are not those that were stored.
  func firstDamaged() -> Int? {
    let copy = buffer.base + Int(Page.size)
    return handles.indices.first { object in
      guard let handle = handles[object] else { return false }
      fill(Int(handle.byteCount.rawValue), for: object)
      let bytes = UnsafeMutableRawBufferPointer(start: copy, count: Int(Page.size))
      guard let length = compressed.store.copy(handle, into: bytes) else { return true }
      return memcmp(buffer.base, copy, Int(length.rawValue)) != 0
    }
  }

  /// Writes the bytes of an object, which no other object has, to the first page of the buffer.
  private func fill(_ size: Int, for object: Int) {
    var random = SeededRandom(seed: UInt64(object))
    for offset in stride(from: 0, to: size, by: 8) {
      buffer.base.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
    }
  }
}
