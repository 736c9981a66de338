// The sizes of the objects that the study stores: of compressed pages, and random ones.

import Foundation
import KernelMemory
import MemoryPrimitives
import Workloads
import Zsmalloc

struct SizeSample {
  /// The name in a row.
  var name: String
  /// The name in a table.
  var title: String
  var sizes: [Int]

  var bytes: UInt64 { sizes.reduce(0) { $0 + UInt64($1) } }
  var mean: UInt64 { sizes.isEmpty ? 0 : bytes / UInt64(sizes.count) }

  private static let largest = Int(Page.size)

  /// The sizes of the pages of `data` as the store compresses them. One that is a repeated word has none; one that
  /// can't be compressed to what fits beside others has 4096 bytes.
  static func pages(of data: Data, on memory: MemorySystem, named title: String) throws -> SizeSample {
    guard let buffers = PageBuffers(memory) else { throw Complaint("no memory for buffers", .software) }
    defer { buffers.release(memory) }
    let compressed = memory.compressed
    var sizes: [Int] = []
    let count = (data.count + largest - 1) / largest
    for page in 0..<count {
      Terminal.standard.progress("compress", UInt64(page), of: UInt64(count), "\(grouped(page)) pages")
      buffers.read(page, of: data)
      guard let stored = try? compressed.store(buffers.page, using: buffers.workspace) else {
        throw Complaint("page \(page) can't be stored", .software)
      }
      if stored.form != .sameFilled { sizes.append(Int(stored.byteCount.rawValue)) }
      compressed.free(stored)
    }
    return SizeSample(name: "pages", title: title, sizes: sizes)
  }

  /// Each size is as likely as any other.
  static func uniform(_ count: Int, seed: UInt64) -> SizeSample {
    var random = SeededRandom(seed: seed)
    return SizeSample(
      name: "uniform", title: "uniform, 1 to 4096 bytes",
      sizes: (0..<count).map { _ in random.within(1...largest) })
  }

  /// Small sizes are likelier, by an exponential with a mean of 1024. One of more than 4096 is drawn again.
  static func exponential(_ count: Int, seed: UInt64) -> SizeSample {
    var random = SeededRandom(seed: seed)
    let sizes = (0..<count).map { _ in
      while true {
        let share = Double(random.below(1 << 53) + 1) / Double(1 << 53)
        let size = Int((-1024 * log(share)).rounded(.up))
        if (1...largest).contains(size) { return size }
      }
    }
    return SizeSample(
      name: "exponential", title: "exponential, mean 1024, those of more than 4096 bytes drawn again",
      sizes: sizes)
  }

  /// One half compresses well, and the other to a little more than half a page.
  static func bimodal(_ count: Int, seed: UInt64) -> SizeSample {
    var random = SeededRandom(seed: seed)
    let sizes = (0..<count).map { _ in random.oneIn(2) ? random.within(200...700) : random.within(2200...3000)
    }
    return SizeSample(
      name: "bimodal", title: "bimodal, half of it uniform from 200 to 700, half from 2200 to 3000",
      sizes: sizes)
  }
}

extension SeededRandom {
  /// A number of the range.
  fileprivate mutating func within(_ range: ClosedRange<Int>) -> Int {
    range.lowerBound + Int(below(UInt64(range.count)))
  }
}
