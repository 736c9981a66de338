import Glibc
import TestSupport
import Workloads
import XCTest
import Zsmalloc

/// The codec against liblz4, the format's own implementation, in both directions.
final class LZ4LibraryTests: XCTestCase {
  private typealias Call =
    @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int32, Int32) -> Int32
  private typealias LevelCall =
    @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int32, Int32, Int32) -> Int32

  /// The functions of liblz4 that the tests call.
  private struct Library {
    let compress: Call
    let compressBest: LevelCall
    let decompress: Call

    init() throws {
      guard let library = dlopen("liblz4.so.1", RTLD_NOW) else {
        throw XCTSkip("liblz4.so.1 is not installed: apt-get install liblz4-1")
      }
      compress = unsafeBitCast(try XCTUnwrap(dlsym(library, "LZ4_compress_default")), to: Call.self)
      compressBest = unsafeBitCast(try XCTUnwrap(dlsym(library, "LZ4_compress_HC")), to: LevelCall.self)
      decompress = unsafeBitCast(try XCTUnwrap(dlsym(library, "LZ4_decompress_safe")), to: Call.self)
    }

    /// The library's block of `bytes`, by its usual compressor or by the one that searches longest.
    func block(_ bytes: [UInt8], best: Bool = false) -> [UInt8] {
      var block = [UInt8](repeating: 0, count: bytes.count + bytes.count / 255 + 16)
      let capacity = Int32(block.count)
      let count =
        best
        ? compressBest(bytes, &block, Int32(bytes.count), capacity, 12)
        : compress(bytes, &block, Int32(bytes.count), capacity)
      return Array(block[..<Int(count)])
    }

    /// The bytes that the library decodes, or nil if it reports an error.
    func restore(_ block: [UInt8], capacity: Int) -> [UInt8]? {
      var bytes = [UInt8](repeating: 0, count: capacity)
      let count = decompress(block, &bytes, Int32(block.count), Int32(capacity))
      return count < 0 ? nil : Array(bytes[..<Int(count)])
    }
  }

  private let checks = LZ4Checks(1 << 16)

  private func check(_ library: Library, _ bytes: [UInt8]) -> String? {
    guard let block = checks.compress(bytes) else { return "no block" }
    if library.restore(block, capacity: bytes.count) != bytes { return "\(bytes): not restored by liblz4" }
    for best in [false, true] {
      let block = library.block(bytes, best: best)
      let complaint = checks.checkDecoding(
        block, capacity: bytes.count, cuts: [block.count / 2, block.count / 3])
      if let complaint { return complaint }
      if checks.decompress(block, capacity: bytes.count) != .success(bytes) {
        return "\(bytes): not restored from liblz4's block"
      }
    }
    return nil
  }

  func testEachDecodesTheBlocksOfTheOther() throws {
    let library = try Library()
    var random = SeededRandom(seed: historySeed(1821))
    for count in 0...1000 {
      if let complaint = check(library, LZ4Inputs.any(count, &random)) { return XCTFail(complaint) }
    }
    for kind in LZ4Inputs.Kind.allCases {
      for count in [4096, 4096, 4096, 4095, 65536, 5000 + Int(random.below(60_000))] {
        if let complaint = check(library, LZ4Inputs.make(kind, count, &random)) {
          return XCTFail("\(kind): \(complaint.prefix(2000))")
        }
      }
    }
  }

  /// The library refuses more blocks: it insists on the rules for a block's end. But it takes a distance of 0, which
  /// the format forbids, for a row of zeroes.
  func testADamagedBlockThatTheLibraryTakesHasTheSameBytesHere() throws {
    let library = try Library()
    var random = SeededRandom(seed: historySeed(1822))
    var taken = 0
    for _ in 0..<20_000 {
      let bytes = LZ4Inputs.any(40 + Int(random.below(400)), &random)
      let damaged = LZ4Inputs.mutate(library.block(bytes), &random)
      guard !damaged.isEmpty, let theirs = library.restore(damaged, capacity: bytes.count) else { continue }
      let ours = checks.decompress(damaged, capacity: bytes.count)
      if ours == .failure(.wrongDistance) { continue }
      taken += 1
      if ours != .success(theirs) { return XCTFail("\(damaged): \(ours), and by liblz4 \(theirs)") }
    }
    XCTAssertGreaterThan(taken, 1000)
  }

  /// Pages of this project's sources and of a program.
  func testBlocksAreNotMuchLargerThanTheLibrarys() throws {
    let library = try Library()
    let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let sources = package.appendingPathComponent("Sources").resolvingSymlinksInPath()
    let names = try FileManager.default.subpathsOfDirectory(atPath: sources.path)
    var text = Data()
    for name in names.sorted() where name.hasSuffix(".swift") {
      text += try Data(contentsOf: sources.appendingPathComponent(name))
    }
    let program = try Data(contentsOf: URL(fileURLWithPath: CommandLine.arguments[0])).prefix(1 << 20)
    for (name, data) in [("sources", text), ("a program", program)] {
      var ours = 0
      var theirs = 0
      for start in stride(from: 0, to: data.count - 4095, by: 4096) {
        let page = [UInt8](data[start..<start + 4096])
        ours += try XCTUnwrap(checks.compress(page)).count
        theirs += library.block(page).count
      }
      XCTAssertGreaterThan(theirs, 0, name)
      XCTAssertLessThan(Double(ours), 1.02 * Double(theirs), name)
    }
  }
}
