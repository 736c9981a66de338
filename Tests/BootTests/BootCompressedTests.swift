import Foundation
import XCTest

/// The compressed page store on a machine: packed pages come back, on any processor, while they are moved.
final class BootCompressedTests: XCTestCase {
  func testTheModuleIsPackedMovedAndFreed() throws {
    var boot = Boot()
    boot.memory = "96M"
    boot.line = "swap.ramdisk=32M"
    boot.module = Boot.sample
    let log = try boot.run(
      "zs pack module; zs; zs -j; dirty 60%; zs compact; contig 2M align=2M; selftest invariants; zs free; zs"
    )
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    for words in ["of the boot module, ", "read each back", "Granted: ", "Freed "] {
      XCTAssertTrue(log.text.contains(words), "\(words): \(log.text)")
    }
    let totals = try XCTUnwrap(log.rows("zs").first, log.text)
    XCTAssertGreaterThan(try XCTUnwrap(totals["pages"] as? Int), 100)
  }

  func testEightProcessorsReadObjectsWhileTheyAreMoved() throws {
    var boot = Boot()
    boot.processors = 8
    let log = try boot.run("sysctl zs.access=window; selftest -j zs 20; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let row = try XCTUnwrap(log.rows("smp").first, log.text)
    XCTAssertEqual(row["processors"] as? Int, 8)
    XCTAssertEqual(row["verdict"] as? String, "held", log.text)
    XCTAssertGreaterThan(try XCTUnwrap(row["reads"] as? Int), 10_000)
  }

  func testObjectsAreReadInEachWayWhileOthersMoveThem() throws {
    let lines = ["parts", "window", "map", "vmap", "copy"].map { "sysctl zs.access=\($0); selftest zs 2" }
    var boot = Boot()
    boot.processors = 4
    let log = try boot.run(lines.joined(separator: "; "))
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(log.text.components(separatedBy: "zs            passed").count, 6, log.text)
  }
}
