// Pages that are packed into the compressed store, each checked once, and given back together.
//
// The values that the store answers are kept in chunks of kmem, each linked to the one before.

import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory
import Zsmalloc

/// Why packing ended early. The pages packed before are given back.
package enum PackFailure: Error {
  /// The store refused a page, or no memory was left for the list of pages; `packed` were packed until then.
  case noMemory(packed: UInt64)
  /// The store is at its limit.
  case limitReached(packed: UInt64)
  /// The page with that number could not be read.
  case unreadable(UInt64)
  /// The page with that number came back otherwise than it was stored.
  case differs(UInt64)
}

/// Pages in the compressed store.
package struct PackedPages {
  /// A chunk: the address of the one before, and the values of pages.
  private struct Chunk {
    let words: UnsafeMutablePointer<UInt64>
    static var capacity: Int { 511 }
    var previous: Chunk? {
      UnsafeMutablePointer(bitPattern: UInt(words[0])).map { Chunk(words: $0) }
    }
    subscript(index: Int) -> UInt64 {
      get { words[1 + index] }
      nonmutating set { words[1 + index] = newValue }
    }
  }
  private var last: Chunk?
  private let type: MemoryType
  /// Pages that are packed; those that are one repeated word; those that could not be compressed.
  package private(set) var count: UInt64 = 0
  package private(set) var sameFilled: UInt64 = 0
  package private(set) var incompressible: UInt64 = 0
  /// Bytes of their objects.
  package private(set) var bytes = ByteCount(0)

  private init(_ memory: MemorySystem) { type = memory.kmem.type(named: "packed pages") }

  /// Packs `count` pages; `read` reads the 512 words of the page with a number. Each is loaded back and compared.
  /// Calls `pace` with each page's number, and ends with those packed so far when that answers `stop`. Some 40,000
  /// instructions a page.
  package static func pack(
    _ count: PageCount, on memory: MemorySystem,
    reading read: (UInt64, UnsafeMutablePointer<UInt64>) throws(PagingError) -> Void,
    pace: (UInt64) -> Pace
  ) throws(PackFailure) -> PackedPages {
    var pages = PackedPages(memory)
    guard let buffers = PageBuffers(memory, waitUntil: .never) else { throw .noMemory(packed: 0) }
    defer { buffers.release(memory) }
    do throws(PackFailure) {
      for number in 0..<count.rawValue {
        guard pace(number) == .goOn else { break }
        do throws(PagingError) {
          try read(number, buffers.words)
        } catch {
          throw .unreadable(number)
        }
        try pages.add(buffers, number, memory)
      }
    } catch {
      pages.release(memory)
      throw error
    }
    return pages
  }

  private mutating func add(_ buffers: PageBuffers, _ number: UInt64, _ memory: MemorySystem)
    throws(PackFailure)
  {
    let position = Int(number) % Chunk.capacity
    if position == 0 { try addChunk(memory) }
    guard let last else { throw .noMemory(packed: number) }
    let stored: CompressedPage
    do throws(ZsmallocError) {
      stored = try memory.compressed.store(buffers.page, using: buffers.workspace, waitPolicy: .allowed)
    } catch {
      if position == 0 { removeChunk(memory) }
      throw error == .limitReached ? .limitReached(packed: number) : .noMemory(packed: number)
    }
    last[position] = stored.rawValue
    count += 1
    bytes += stored.byteCount
    if stored.form == .sameFilled { sameFilled += 1 }
    if stored.form == .incompressible { incompressible += 1 }
    guard Self.isSame(stored, buffers, memory) else { throw .differs(number) }
  }

  private mutating func addChunk(_ memory: MemorySystem) throws(PackFailure) {
    guard let words = memory.kmem.alloc(ByteCount(Page.size), type: type, wait: .allowed) else {
      throw .noMemory(packed: count)
    }
    let chunk = Chunk(words: words.assumingMemoryBound(to: UInt64.self))
    chunk.words[0] = last.map { UInt64(UInt(bitPattern: $0.words)) } ?? 0
    last = chunk
  }

  /// Frees the last chunk, which has no page.
  private mutating func removeChunk(_ memory: MemorySystem) {
    guard let chunk = last else { return }
    last = chunk.previous
    memory.kmem.free(chunk.words, size: ByteCount(Page.size), type: type)
  }

  private static func isSame(_ stored: CompressedPage, _ buffers: PageBuffers, _ memory: MemorySystem) -> Bool
  {
    do throws(CompressedPageError) {
      try memory.compressed.load(stored, into: buffers.loaded)
      return buffers.areEqual
    } catch {
      return false
    }
  }

  /// Frees all pages.
  package mutating func release(_ memory: MemorySystem) {
    while let chunk = last {
      while count > 0 {
        count -= 1
        let position = Int(count) % Chunk.capacity
        memory.compressed.free(CompressedPage(rawValue: chunk[position]))
        if position == 0 { break }
      }
      removeChunk(memory)
    }
    (bytes, sameFilled, incompressible) = (ByteCount(0), 0, 0)
  }
}
