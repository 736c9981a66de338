import ContiguousMemory
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory
import XCTest

@testable import Console

/// whatis names an owner of every frame that is in use.
final class WhatisOwnerTests: XCTestCase {
  private func frame(_ harness: ConsoleHarness, _ frame: FrameNumber) -> [String: Any] {
    rows(harness.run("whatis frame \(frame.rawValue) -j")).first { $0["kind"] as? String == "frame" } ?? [:]
  }

  func testEveryFrameInUseHasAnOwner() throws {
    let harness = ConsoleHarness(
      trace: try Data(contentsOf: SystemCommandsTests.sample), swap: .mebibytes(16))
    harness.run("dirty 4M")
    harness.run("contig 2M align=2M")
    harness.run("replay keep")
    harness.run("sysctl kmem.audit=on")
    let type = harness.memory.kmem.type(named: "test")
    _ = harness.memory.kmem.alloc(.mebibytes(1), type: type)
    _ = try harness.memory.space.allocateStack(PageCount(4))
    var frames: [(FrameNumber, FrameRole)] = []
    harness.physical.forEachRole { run, role in
      guard role != .free && role != .absent else { return }
      // Of a long run, its ends and every 61st frame.
      for i in 0..<run.count.rawValue where i < 8 || i % 61 == 0 || i + 8 > run.count.rawValue {
        frames.append((run.first + PageCount(i), role))
      }
    }
    var roles: Set<String> = []
    for (number, role) in frames {
      let row = frame(harness, number)
      roles.insert(row["role"] as? String ?? "")
      guard row["owner"] is String else {
        XCTFail("frame \(number.rawValue) of role \(role.description) has no owner: \(row)")
        return
      }
      if [.wired, .contiguous, .stack].contains(role) {
        XCTAssertTrue(row["site"] is String, "\(row)")
      }
    }
    XCTAssertTrue(
      roles.isSuperset(of: [
        "wired", "slab", "kmem pages", "page table", "stack", "tags", "frame records", "image", "boot module",
        "boot", "statistics", "contiguous", "pageable", "paging tables",
      ]), "\(roles)")
  }

  func testTheOwnerIsTheTypeAndTheCallSite() throws {
    let harness = ConsoleHarness()
    let memory = harness.memory
    let type = memory.kmem.type(named: "test")
    let large = try XCTUnwrap(memory.kmem.alloc(.mebibytes(1), type: type))
    let log = harness.run("whatis 0x\(String(UInt(bitPattern: large), radix: 16))")
    XCTAssertTrue(log.contains("  owner      kmem, a large request"), log)
    XCTAssertTrue(log.contains("type test, allocated by "), log)
    let range = try memory.contiguous.contigmalloc(.mebibytes(1), type: type)
    let row = frame(harness, range.frames.first)
    XCTAssertEqual(row["owner"] as? String, "contigmalloc")
    XCTAssertEqual(row["type"] as? String, "test")
    let wired = try harness.physical.allocate(BlockOrder(0), role: .wired, for: FrameOwner("a test"))
    XCTAssertEqual(frame(harness, wired)["owner"] as? String, "a test")
    XCTAssertTrue(frame(harness, wired)["type"] is NSNull)
    let unnamed = try harness.physical.allocate(BlockOrder(0), role: .wired)
    XCTAssertTrue(frame(harness, unnamed)["owner"] is NSNull)
    XCTAssertTrue(frame(harness, unnamed)["site"] is String)
  }
}
