import Foundation
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import XCTest

@testable import Console
@testable import Zsmalloc

/// zs, and what the other commands say of a compressed page store.
final class ZsCommandTests: XCTestCase {
  func testPagesOfDirtyArePackedShownCompactedAndFreed() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    XCTAssertTrue(harness.run("zs").hasPrefix("0 pages of 0 B: "))
    harness.run("dirty 2M")
    let before = harness.physical.freeCount
    let log = harness.run("zs pack dirty")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(log.hasPrefix("Packed 512 pages of the range, 2 MiB, and read each back: "), log)
    assertFits(log)
    let zs = harness.run("zs")
    assertFits(zs)
    XCTAssertTrue(zs.contains("512 pages of 2 MiB: "), zs)
    XCTAssertTrue(harness.run("map").contains("z"))
    XCTAssertTrue(harness.run("frames").contains("\nzspage "))
    XCTAssertNil(harness.memory.checkInvariants())
    let row = try XCTUnwrap(rows(harness.run("zs -j")).last)
    XCTAssertEqual(row["kind"] as? String, "zs")
    XCTAssertEqual(row["pages"] as? Int, 512)
    XCTAssertEqual(
      row["bytes_held"] as? Int, Int(harness.memory.compressed.figures.frames.bytes.rawValue))
    let classes = rows(harness.run("zs -j")).dropLast()
    XCTAssertEqual(classes.map { $0["objects"] as! Int }.reduce(0, +), row["objects"] as? Int)
    XCTAssertTrue(harness.run("zs pack dirty").hasPrefix("Pages are packed already."))
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(harness.run("zs compact").hasPrefix("Moved "))
    XCTAssertTrue(harness.run("zs free").hasPrefix("Freed 512 pages, and "))
    XCTAssertEqual(harness.memory.compressed.figures.frames, .zero)
    harness.memory.kmem.drain()
    XCTAssertGreaterThanOrEqual(harness.physical.freeCount, before)
    XCTAssertEqual(harness.run("zs free"), "Nothing is packed. As in: zs pack module\n")
    harness.run("verify")
    XCTAssertNil(harness.outcome)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testThePagesOfTheModuleAndOfPhysicalMemoryArePacked() throws {
    let harness = ConsoleHarness(trace: try Data(contentsOf: SystemCommandsTests.sample))
    let log = harness.run("zs pack")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(log.contains(" of the boot module, "), log)
    harness.run("zs free")
    let physical = harness.run("zs pack 0x10_0000+64K")
    XCTAssertNil(harness.outcome, physical)
    XCTAssertTrue(physical.hasPrefix("Packed 16 pages of the range, 64 KiB, "), physical)
    harness.run("zs free")
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testWhatCannotBePackedIsRefusedAndLeavesNothing() throws {
    let harness = ConsoleHarness()
    harness.run("zs pack")
    XCTAssertEqual(harness.outcome, .unfit)
    XCTAssertTrue(harness.run("zs pack 0xffff_c000_0000_0000+8K").contains("can't be read"))
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(harness.run("zs nonsense").contains("nonsense"))
    XCTAssertEqual(harness.outcome, .refused)
    harness.run("sysctl zs.limit=4")
    let log = harness.run("zs pack 0x10_0000+1M")
    XCTAssertTrue(log.contains("The store is at its limit after ") || log.hasPrefix("Packed 256 pages"), log)
    harness.run("zs free")
    XCTAssertEqual(harness.memory.compressed.figures.frames, .zero)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testWhatisNamesTheSlotOfEveryByteOfAZspage() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    harness.run("dirty 1M")
    harness.run("zs pack dirty")
    let store = harness.memory.compressed.store
    let lists = store.lists.quiet
    var seen = 0
    for place in 0..<lists.pointee.zspages.indexEnd {
      guard let zspage = lists.pointee.existingZspage(place), seen < 6 else { continue }
      for page in 0..<8 where page < Int(lists.pointee.shape(of: zspage).pages) && zspage.frame(page) != .none
      {
        let frame = zspage.frame(page)
        let log = harness.run("whatis 0x\(String(frame.address.rawValue + 100, radix: 16))")
        XCTAssertNil(harness.outcome)
        XCTAssertTrue(log.contains("zspage     \(place), page \(page) of "), log)
        XCTAssertTrue(harness.run("whatis frame \(frame.rawValue)").contains("role zspage"), log)
        seen += 1
      }
    }
    XCTAssertGreaterThan(seen, 3)
  }
}
