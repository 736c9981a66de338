// The pages of a file in the compressed store of a simulated machine.

import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import Workloads
import Zsmalloc

/// The figures of the store after a step.
struct PackedFileStep {
  var name: String
  var pages: UInt64
  var sameFilled: UInt64
  var incompressible: UInt64
  var objects: UInt64
  var bytes: UInt64
  var dataFrames: UInt64
  var tableFrames: UInt64

  var compressed: UInt64 { pages - sameFilled - incompressible }
  var frames: UInt64 { dataFrames + tableFrames }
  private var frameBytes: Double { Double(frames) * Double(Page.size) }
  /// Bytes of objects for each byte of frames; no number where there are none.
  var density: Double { Double(bytes) / frameBytes }
  /// Bytes of pages for each byte of frames.
  var ratio: Double { Double(pages) * Double(Page.size) / frameBytes }
}

final class PackedFile {
  /// The most bytes of a file.
  static let limit = 1 << 30

  /// Zeroes behind the file in its last page.
  let padding: Int
  private let data: Data
  let system: HostSystem
  private let buffers: PageBuffers
  /// The value of each page; nil for one that is freed.
  private var stored: [CompressedPage?] = []

  private static var pageSize: Int { Int(Page.size) }
  private var compressed: CompressedPages { system.memory.compressed }
  private var count: Int { (data.count + padding) / Self.pageSize }

  init(_ data: Data) throws {
    self.data = data
    padding = (Self.pageSize - data.count % Self.pageSize) % Self.pageSize
    // A file that can't be compressed takes its own size, and 2 % for tables.
    system = try HostSystem(toolMemory: .mebibytes(32) + ByteCount(UInt64(data.count / 8 * 9)))
    guard let buffers = PageBuffers(system.memory) else {
      throw Complaint("no memory for buffers", .software)
    }
    self.buffers = buffers
  }

  /// Stores all pages.
  func pack() throws {
    for page in 0..<count {
      progress("pack", page)
      buffers.read(page, of: data)
      do throws(ZsmallocError) {
        stored.append(try compressed.store(buffers.page, using: buffers.workspace))
      } catch {
        throw Complaint("page \(page) can't be stored: \(error)", .software)
      }
    }
  }

  /// Moves objects together.
  func compact() { compressed.store.compact() }

  /// Frees half of the pages, those that the seed says.
  func freeHalf(seed: UInt64) {
    for page in permutation(of: stored.count, seed: seed).prefix(stored.count / 2) { free(page) }
  }

  /// Loads each page and compares it; answers the figures.
  func step(_ name: String) throws -> PackedFileStep {
    for (page, value) in stored.enumerated() {
      guard let value else { continue }
      progress("check", page)
      buffers.read(page, of: data)
      do throws(CompressedPageError) {
        try compressed.load(value, into: buffers.loaded)
      } catch {
        throw Complaint("page \(page) can't be loaded: \(error)", .software)
      }
      guard buffers.areEqual else { throw Complaint("page \(page) is not as it was", .software) }
    }
    if let broken = system.memory.checkInvariants() { throw Complaint("\(broken)", .software) }
    let (figures, values) = (compressed.figures, stored.compactMap { $0 })
    return PackedFileStep(
      name: name, pages: figures.pages.rawValue, sameFilled: figures.sameFilled.rawValue,
      incompressible: UInt64(values.count { $0.form == .incompressible }), objects: figures.objects,
      bytes: figures.bytes.rawValue, dataFrames: figures.dataFrames.rawValue,
      tableFrames: figures.tableFrames.rawValue)
  }

  /// Frees what is left, and throws if the store keeps something.
  func finish() throws {
    for page in stored.indices { free(page) }
    buffers.release(system.memory)
    let left = compressed.figures
    guard left.pages == .zero, left.frames == .zero else {
      throw Complaint("the store keeps \(counted(left.frames.rawValue, "frame")) without a page", .software)
    }
  }

  private func free(_ page: Int) {
    if let value = stored[page] { compressed.free(value) }
    stored[page] = nil
  }

  private func progress(_ what: String, _ page: Int) {
    Terminal.standard.progress(what, UInt64(page), of: UInt64(count), "\(grouped(page)) pages")
  }
}
