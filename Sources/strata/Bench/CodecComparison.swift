// The LZ4 codec beside liblz4, on the same pages, in turns.
//
// A chunk of pages is coded by one and then by the other, several times, and the least time of each counts. So other work
// on the host disturbs both alike. The sums over all chunks are compared.

import CPlatform
import Foundation
import MemoryPrimitives
import Zsmalloc

/// Figures of the codec, each over that of liblz4.
struct CodecFigures {
  var size: Double
  var compressTime: Double
  var decompressTime: Double
}

final class CodecComparison {
  private typealias Function =
    @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int32, Int32) -> Int32

  /// The blocks of all pages by one codec, each in a place of its own.
  private final class Blocks {
    static let stride = 4096 + 64
    let storage: ZeroedStorage
    var sizes: [Int]

    init(_ count: Int) {
      storage = ZeroedStorage(byteCount: count * Self.stride)
      sizes = Array(repeating: 0, count: count)
    }

    func place(_ page: Int) -> UnsafeMutableRawBufferPointer {
      UnsafeMutableRawBufferPointer(start: storage.base + page * Self.stride, count: Self.stride)
    }
    func block(_ page: Int) -> UnsafeRawBufferPointer {
      UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(place(page))[..<sizes[page]])
    }
  }

  private static let pageSize = Int(Page.size)
  private static let chunk = 512
  private static let rounds = 11

  private let compressBlock: Function
  private let decompressBlock: Function
  /// Pages that are not one repeated word.
  private let pages: [Data]
  private let table = ZeroedStorage(byteCount: LZ4Table.byteCount)
  private let restored = ZeroedStorage(byteCount: 4096)
  private let ours: Blocks
  private let theirs: Blocks

  /// A comparison on the whole pages of `data`. Throws where liblz4 is not installed.
  init(_ data: Data) throws {
    guard let library = dlopen("liblz4.so.1", RTLD_NOW),
      let compress = dlsym(library, "LZ4_compress_default"),
      let restore = dlsym(library, "LZ4_decompress_safe")
    else { throw Complaint("liblz4 is not installed: apt-get install liblz4-1", .unavailable) }
    compressBlock = unsafeBitCast(compress, to: Function.self)
    decompressBlock = unsafeBitCast(restore, to: Function.self)
    pages = stride(from: 0, to: data.count / Self.pageSize * Self.pageSize, by: Self.pageSize)
      .map { Data(data[$0..<$0 + Self.pageSize]) }
      .filter { page in page.indices.dropFirst(8).contains { page[$0] != page[$0 - 8] } }
    (ours, theirs) = (Blocks(pages.count), Blocks(pages.count))
  }

  /// Compares sizes and times. Throws where one codec does not restore what the other has compressed.
  func figures() throws -> CodecFigures {
    let compressTime = try ratio({ try compress($0) }, { try compressByLibrary($0) })
    for page in pages.indices {
      try check(page, restoreByLibrary(page, from: ours))
      try check(page, try restore(page, from: theirs))
    }
    let decompressTime = try ratio(
      { _ = try restore($0, from: theirs) }, { _ = restoreByLibrary($0, from: theirs) })
    return CodecFigures(
      size: Double(ours.sizes.reduce(0, +)) / Double(theirs.sizes.reduce(0, +)),
      compressTime: compressTime, decompressTime: decompressTime)
  }

  private func compress(_ page: Int) throws {
    let size = pages[page].withUnsafeBytes {
      LZ4Block.compress($0, into: ours.place(page), table: LZ4Table(table.base))
    }
    guard let size else { throw Complaint("page \(page) is not compressed", .software) }
    ours.sizes[page] = size
  }

  private func compressByLibrary(_ page: Int) throws {
    let size = pages[page].withUnsafeBytes {
      compressBlock($0.baseAddress!, theirs.place(page).baseAddress!, 4096, Int32(Blocks.stride))
    }
    guard size > 0 else { throw Complaint("liblz4 does not compress page \(page)", .software) }
    theirs.sizes[page] = Int(size)
  }

  private func restore(_ page: Int, from blocks: Blocks) throws -> Int {
    try LZ4Block.decompress(
      blocks.block(page), into: UnsafeMutableRawBufferPointer(start: restored.base, count: Self.pageSize))
  }

  private func restoreByLibrary(_ page: Int, from blocks: Blocks) -> Int {
    let block = blocks.block(page)
    return Int(decompressBlock(block.baseAddress!, restored.base, Int32(block.count), 4096))
  }

  private func check(_ page: Int, _ size: Int) throws {
    let isSame = pages[page].withUnsafeBytes { memcmp($0.baseAddress!, restored.base, Self.pageSize) == 0 }
    guard size == Self.pageSize, isSame else {
      throw Complaint("page \(page) is not as it was after the other codec", .software)
    }
  }

  /// The time of `one` over that of `other`, each for all pages.
  private func ratio(_ one: (Int) throws -> Void, _ other: (Int) throws -> Void) rethrows -> Double {
    var sums = (0.0, 0.0)
    for first in stride(from: 0, to: pages.count, by: Self.chunk) {
      let chunk = first..<min(first + Self.chunk, pages.count)
      var least = (UInt64.max, UInt64.max)
      for _ in 0..<Self.rounds {
        least.0 = min(least.0, try Self.cycles { for page in chunk { try one(page) } })
        least.1 = min(least.1, try Self.cycles { for page in chunk { try other(page) } })
      }
      sums = (sums.0 + Double(least.0), sums.1 + Double(least.1))
    }
    return sums.0 / sums.1
  }

  private static func cycles(_ body: () throws -> Void) rethrows -> UInt64 {
    let start = cp_cycles()
    try body()
    return cp_cycles() &- start
  }
}
