import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import Workloads
import XCTest

/// Pageable memory in the kernel: real page faults, a RAM disk, and a contiguous request on full memory.
final class BootPagingTests: XCTestCase {
  /// A machine of 128 MiB with a swap disk of as much, both part of what QEMU gives.
  private var machine: Boot {
    var boot = Boot()
    boot.memory = "256M"
    boot.line = "swap.ramdisk=128M"
    return boot
  }

  func testAContiguousRequestIsGrantedOutOfDirtyMemory() throws {
    let log = try machine.run(
      "dirty 90%; contig -j 2M align=2M; verify -j; contig free all; dirty free; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let contig = try XCTUnwrap(log.rows("contig").first, log.text)
    XCTAssertEqual(contig["answer"] as? String, "granted", log.text)
    let verify = try XCTUnwrap(log.rows("verify").first, log.text)
    XCTAssertEqual(verify["wrong"] as? Int, 0)
    XCTAssertEqual(verify["unreadable"] as? Int, 0)
    XCTAssertGreaterThan(try XCTUnwrap(verify["intact"] as? Int), 20_000)
  }

  /// A small machine whose memory is full, beside an empty swap: both requests are granted. QEMU counts instructions, so
  /// that daemon and laundry run at the same moments each time.
  func testNoRequestIsRefusedBesideAnEmptySwap() throws {
    var boot = Boot()
    boot.memory = "84M"
    boot.line = "swap.ramdisk=64M"
    boot.extra = ["-icount", "shift=0"]
    let log = try boot.run("dirty 105%; contig -j 2M align=2M; contig -j 2M align=2M; verify -j")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(
      log.rows("contig").map { $0["answer"] as? String }, ["granted", "granted"], log.text)
    XCTAssertEqual(log.rows("verify").first?["wrong"] as? Int, 0, log.text)
  }

  func testMoreIsDirtiedThanThereIsMemory() throws {
    let log = try machine.run(
      "dirty 150%; verify -j; swap; queues; dirty free; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let verify = try XCTUnwrap(log.rows("verify").first, log.text)
    XCTAssertEqual(verify["wrong"] as? Int, 0)
    XCTAssertGreaterThan(try XCTUnwrap(verify["intact"] as? Int), 40_000)
  }

  func testTheHistoryEndsAsOnTheHost() throws {
    // The old contents of its memory do not matter.
    let log = try Boot().run("selftest -j paging; dirty 90%; dirty free; selftest -j paging")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let found = log.rows("history").filter { $0["name"] as? String == "paging" }

    let plan = PagingPlan.standard
    let host = SimulatedMachine(memory: plan.loaned)
    let size = Int(PagingHistory.workspace(plan).rawValue)
    let workspace = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    defer { workspace.deallocate() }
    let outcome = try withExtendedLifetime(host) {
      try PagingHistory.run(
        plan, on: host.machine, loaned: host.machine.directMap.pointer(to: PhysicalAddress(0)),
        workspace: workspace)
    }
    XCTAssertNil(outcome.broken)
    let sum: Line = "\(hex: outcome.checksum, digits: 16)"
    let expected = sum.withBytes { String(decoding: $0, as: UTF8.self) }
    XCTAssertEqual(found.map { $0["checksum"] as? String }, [expected, expected])
  }
}
