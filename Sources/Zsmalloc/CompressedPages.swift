// Whole pages in a store of objects: compressed, or as one word where all words of a page are equal.
//
// STRUCTURES
//   A page is one of four things, and its value (`CompressedPage`) shows which:
//     a word of 32 bits that repeats        the value itself: no memory
//     a word of 64 bits that repeats        an object of 8 bytes
//     an LZ4 block                          an object of 17 bytes or more, as no block of a page is shorter
//     the page as it is                     an object of 4096 bytes, where a block would need a page of its own too.
//   Compression needs storage that belongs to one call (`CompressionWorkspace`). A thread owns it, not a processor, so
//   nothing is pinned for the 34,000 instructions that a page takes. Loading needs none: the block is
//   decoded where it lies, from two parts if it straddles two pages.
//
// LOCKS
//   None of its own. A page that is loaded must not be freed before that has ended: pages belong to their owner.
//
// EXHAUSTION
//   A page that is not stored is as it was, and nothing is held for it. Loading and freeing need no memory.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A stored page: a value that its owner keeps, and gives back once.
@frozen public struct CompressedPage: Equatable, Sendable {
  /// The value as an integer, for a table of the owner's; never 0.
  public let rawValue: UInt64
  /// Makes a value of its integer.
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  private static var filled: UInt64 { 1 << 63 }

  init(_ handle: ZspageHandle) { rawValue = handle.rawValue }
  /// A page of a word of 32 bits.
  init(filledWith word: UInt32) { rawValue = Self.filled | UInt64(word) }

  /// Whether a value of a repeated word has no other bits.
  var isFillWord: Bool { rawValue & ~Self.filled <= 0xffff_ffff }
  /// The repeated word; nil for a page that has an object.
  var fillWord: UInt64? {
    guard rawValue & Self.filled != 0 else { return nil }
    let word = rawValue & 0xffff_ffff
    return word << 32 | word
  }
  /// The page's object; none for a page that is a word.
  var handle: ZspageHandle { ZspageHandle(rawValue: rawValue) }

  /// How the page is stored.
  public enum Form: Sendable { case sameFilled, compressed, incompressible }
  /// How the page is stored.
  public var form: Form {
    if rawValue & Self.filled != 0 || handle.length == 8 { return .sameFilled }
    return handle.length == Int(Page.size) ? .incompressible : .compressed
  }
  /// Bytes of its object, without what that costs; 0 for a page that needs none.
  public var byteCount: ByteCount { rawValue & Self.filled != 0 ? ByteCount(0) : handle.byteCount }
}

/// Why a page could not be loaded.
public enum CompressedPageError: UInt8, Error, Sendable {
  /// The value names no page of the store; a fault was reported.
  case notStored
  /// The stored bytes are no page: memory was overwritten.
  case damaged
  /// The way to reach a page that straddles, by `zs.access`, needs memory, and there is none.
  case noMemory
}

/// Storage for one compression at a time.
public struct CompressionWorkspace {
  private let storage: UnsafeMutableRawPointer

  /// Bytes of storage.
  public static var size: ByteCount { ByteCount(UInt64(LZ4Table.byteCount) + Page.size) }

  /// Takes `size` bytes with the alignment of a word, of any contents.
  public init(_ storage: UnsafeMutableRawPointer) { self.storage = storage }

  var table: LZ4Table { LZ4Table(storage) }
  /// A page's worth of bytes.
  var output: UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(start: storage + LZ4Table.byteCount, count: Int(Page.size))
  }
}

/// The pages of a store: a handle.
public struct CompressedPages {
  struct State: ~Copyable {
    let store: ZspageAllocator
    let pages = Atomic<UInt64>(0)
    let sameFilled = Atomic<UInt64>(0)
    let refused = Atomic<UInt64>(0)
    let damaged = Atomic<UInt64>(0)
  }
  let state: UnsafeMutablePointer<State>

  /// The store of the pages' objects.
  public var store: ZspageAllocator { state.pointee.store }

  /// Bytes of storage for `create`.
  package static var stateSize: ByteCount { ByteCount(UInt64(MemoryLayout<State>.stride)) }

  /// Makes a store of pages without pages, in `stateSize` bytes of storage that outlive it.
  package static func create(
    in storage: UnsafeMutableRawPointer, store: ZspageAllocator
  ) -> CompressedPages {
    let state = storage.bindMemory(to: State.self, capacity: 1)
    state.initialize(to: State(store: store))
    return CompressedPages(state: state)
  }

  /// Stores the 4096 bytes at `page`, which has the alignment of a word. Some 34,000 instructions, or 600 where all
  /// words are equal. May sleep for frames if `waitPolicy` says so. Throws what `ZspageAllocator.store` throws.
  public func store(
    _ page: UnsafeRawPointer, using workspace: CompressionWorkspace,
    priority: AllocationPriority = .normal, waitPolicy: WaitPolicy = .forbidden
  ) throws(ZsmallocError) -> CompressedPage {
    let bytes = UnsafeRawBufferPointer(start: page, count: Int(Page.size))
    let stored: CompressedPage
    do throws(ZsmallocError) {
      if let word = Self.repeatedWord(page) {
        stored = try store(filledWith: word, priority, waitPolicy)
        state.pointee.sameFilled.add(1, ordering: .relaxed)
      } else {
        // No longer than what fits beside another object in a chain.
        let limit = UnsafeMutableRawBufferPointer(
          rebasing: workspace.output[..<store.classes.longestPackedObject])
        if let length = LZ4Block.compress(bytes, into: limit, table: workspace.table) {
          stored = CompressedPage(
            try store.store(
              UnsafeRawBufferPointer(rebasing: limit[..<length]), priority: priority, waitPolicy: waitPolicy))
        } else {
          stored = CompressedPage(try store.store(bytes, priority: priority, waitPolicy: waitPolicy))
        }
      }
    } catch {
      state.pointee.refused.add(1, ordering: .relaxed)
      throw error
    }
    state.pointee.pages.add(1, ordering: .relaxed)
    return stored
  }

  private func store(
    filledWith word: UInt64, _ priority: AllocationPriority, _ waitPolicy: WaitPolicy
  ) throws(ZsmallocError) -> CompressedPage {
    if word >> 32 == word & 0xffff_ffff {
      return CompressedPage(filledWith: UInt32(truncatingIfNeeded: word))
    }
    var word = word
    return try withUnsafeBytes(of: &word) { bytes throws(ZsmallocError) in
      CompressedPage(try store.store(bytes, priority: priority, waitPolicy: waitPolicy))
    }
  }

  /// The word that all words of a page are equal to; nil where they differ.
  private static func repeatedWord(_ page: UnsafeRawPointer) -> UInt64? {
    let words = page.assumingMemoryBound(to: UInt64.self)
    let first = words[0]
    // Most pages that differ do so at their end, too.
    if words[Int(Page.size) / 8 - 1] != first { return nil }
    for i in 1..<Int(Page.size) / 8 where words[i] != first { return nil }
    return first
  }

  /// Writes a stored page into the 4096 bytes at `page`, which has the alignment of a word. Some 10,000 instructions;
  /// takes no lock. After an error their contents are undefined.
  public func load(_ stored: CompressedPage, into page: UnsafeMutableRawPointer) throws(CompressedPageError) {
    if let word = stored.fillWord { return Self.fill(page, word) }
    let target = UnsafeMutableRawBufferPointer(start: page, count: Int(Page.size))
    guard let length = try store.decode(stored.handle, into: target) else { throw .notStored }
    if length == Int(Page.size) { return }
    state.pointee.damaged.add(1, ordering: .relaxed)
    throw .damaged
  }

  private static func fill(_ page: UnsafeMutableRawPointer, _ word: UInt64) {
    page.initializeMemory(as: UInt64.self, repeating: word, count: Int(Page.size) / 8)
  }

  /// Frees a page. Constant. Reports a fault if the value names no page of the store; of same-filled pages only their number is
  /// known.
  public func free(_ stored: CompressedPage) {
    if stored.fillWord == nil {
      guard store.free(stored.handle) else { return }
    } else if !stored.isFillWord || state.pointee.sameFilled.load(ordering: .relaxed) == 0 {
      return store.report(.notAllocated, "the value names no page of the store", stored.handle)
    }
    if stored.form == .sameFilled { state.pointee.sameFilled.subtract(1, ordering: .relaxed) }
    state.pointee.pages.subtract(1, ordering: .relaxed)
  }
}

extension CompressedPages: @unchecked Sendable {}

extension ZspageAllocator {
  /// Decodes a page's object, and answers how many bytes it wrote; -1 for bytes that are no block, nil for a handle
  /// that names no object, which is reported.
  fileprivate func decode(
    _ handle: ZspageHandle, into target: UnsafeMutableRawBufferPointer
  ) throws(CompressedPageError) -> Int? {
    do throws(ZsmallocError) {
      return try withSelectedParts(of: handle) { Self.decode($0, handle, target) }
    } catch {
      throw .noMemory
    }
  }

  private static func decode(
    _ parts: ObjectParts, _ handle: ZspageHandle, _ target: UnsafeMutableRawBufferPointer
  ) -> Int {
    switch handle.length {
    case Int(Page.size):
      parts.copy(into: target)
      return Int(Page.size)
    case 8:
      var word: UInt64 = 0
      withUnsafeMutableBytes(of: &word) { parts.copy(into: $0) }
      target.initializeMemory(as: UInt64.self, repeating: word)
      return Int(Page.size)
    default:
      do throws(LZ4Error) {
        return try LZ4Block.decompress(parts.first, continuedBy: parts.second, into: target)
      } catch {
        return -1
      }
    }
  }
}
