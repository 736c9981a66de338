import Foundation
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import strata

/// The pages of a file in a store, and what `strata zs` makes of input that is odd.
final class PackedFileTests: XCTestCase {
  private var folder: URL!

  override func setUpWithError() throws { folder = try temporaryFolder() }

  private static func random(_ count: Int) -> Data {
    var random = SeededRandom(seed: 1)
    return Data((0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) })
  }

  /// The figures after each step, those of a store that was checked.
  private func steps(_ data: Data) throws -> [PackedFileStep] {
    let file = try PackedFile(data)
    try file.pack()
    var steps = [try file.step("stored")]
    file.compact()
    steps.append(try file.step("compacted"))
    file.freeHalf(seed: 1)
    steps.append(try file.step("halved"))
    file.compact()
    steps.append(try file.step("halved_compacted"))
    try file.finish()
    return steps
  }

  func testZeroesNeedNoFrame() throws {
    let steps = try steps(Data(count: 10 * 4096))
    XCTAssertEqual(steps[0].pages, 10)
    XCTAssertEqual(steps[0].sameFilled, 10)
    XCTAssertEqual(steps[0].frames, 0)
    XCTAssertTrue(steps[0].density.isNaN)
    XCTAssertEqual(steps[2].pages, 5)
  }

  func testRandomPagesTakeAFrameEach() throws {
    let steps = try steps(Self.random(6 * 4096))
    XCTAssertEqual(steps[0].incompressible, 6)
    XCTAssertEqual(steps[0].compressed, 0)
    XCTAssertEqual(steps[0].dataFrames, 6)
    XCTAssertEqual(steps[0].bytes, 6 * 4096)
    XCTAssertLessThan(steps[0].ratio, 1)
    XCTAssertEqual(steps[3].dataFrames, 3)
  }

  func testTextIsCompressed() throws {
    let words = (0..<20_000).map { "line \($0 * 7919 % 1000)\n" }.joined()
    let steps = try steps(Data(words.utf8))
    XCTAssertEqual(steps[0].compressed, steps[0].pages)
    XCTAssertGreaterThan(steps[0].ratio, 1.5)
    XCTAssertLessThanOrEqual(steps[1].frames, steps[0].frames)
    XCTAssertLessThan(steps[3].frames, steps[2].frames)
    XCTAssertGreaterThan(steps[3].density, steps[2].density)
  }

  func testTheLastPageIsFilledUpWithZeroes() throws {
    for (count, pages, padding) in [
      (1, 1, 4095), (4095, 1, 1), (4096, 1, 0), (4097, 2, 4095), (9001, 3, 3287),
    ] {
      let file = try PackedFile(Self.random(count))
      try file.pack()
      XCTAssertEqual(file.padding, padding)
      XCTAssertEqual(try file.step("stored").pages, UInt64(pages))
      try file.finish()
    }
  }

  /// The comparison finds a page whose bytes were overwritten in the machine's memory.
  func testADamagedPageIsFound() throws {
    let file = try PackedFile(Self.random(3 * 4096))
    try file.pack()
    _ = try file.step("stored")
    let memory = file.system.memory
    var damaged = 0
    memory.physical.forEachRole { run, role in
      guard role == .zspage, damaged == 0 else { return }
      memory.machine.directMap.pointer(to: run.first).storeBytes(
        of: 0x5a5a_5a5a, toByteOffset: 64, as: UInt32.self)
      damaged += 1
    }
    XCTAssertEqual(damaged, 1)
    XCTAssertThrowsError(try file.step("damaged")) { error in
      XCTAssertEqual((error as? Complaint)?.status, .software)
      XCTAssertTrue("\(error)".contains("is not as it was"), "\(error)")
    }
  }

  func testInputIsReadWholeOrNotAtAll() throws {
    XCTAssertThrowsError(try DecompressedInput.contents(of: "/dev/zero", limit: 1 << 20)) { error in
      XCTAssertEqual((error as? Complaint)?.status, .dataError)
      XCTAssertEqual("\(error)", "/dev/zero: has more than 1,048,576 bytes")
    }
    let path = folder.appendingPathComponent("file").path
    try Self.random(5000).write(to: URL(fileURLWithPath: path))
    XCTAssertEqual(try DecompressedInput.contents(of: path, limit: 5000), Self.random(5000))
    XCTAssertThrowsError(try DecompressedInput.contents(of: path, limit: 4999))
  }
}
