import HostMachine
import KernelMemory
import MemoryPrimitives
import Workloads
import XCTest

/// One core, proven: the same seeded histories, run in the kernel and here, end with the same checksums
/// over all structures.
final class BootHistoryTests: XCTestCase {
  func testKernelAndHostEndWithTheSameChecksums() throws {
    let log = try Boot().run("selftest -j history")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let kernel = log.rows("history")

    let host = SimulatedMachine(memory: SeededHistory.memory)
    let storage = UnsafeMutableRawPointer.allocate(
      byteCount: Int(MemorySystem.workspaceSize(ranges: 1).rawValue), alignment: 64)
    storage.initializeMemory(
      as: UInt8.self, repeating: 0, count: Int(MemorySystem.workspaceSize(ranges: 1).rawValue))
    let slots = UnsafeMutableRawPointer.allocate(
      byteCount: Int(SeededHistory.workspace.rawValue), alignment: 64)
    defer {
      storage.deallocate()
      slots.deallocate()
    }
    let memory = try SeededHistory.assemble(host.machine, workspace: storage)
    XCTAssertEqual(kernel.count, HistoryKind.count)
    for number in 0..<HistoryKind.count {
      let kind = HistoryKind(rawValue: UInt8(number))!
      let outcome = SeededHistory.run(.standard(kind), on: memory, workspace: slots)
      XCTAssertNil(outcome.broken)
      let sum: Line = "\(hex: outcome.checksum, digits: 16)"
      XCTAssertEqual(
        kernel[number]["checksum"] as? String, sum.withBytes { String(decoding: $0, as: UTF8.self) },
        "\(kind)")
    }
    withExtendedLifetime(host) {}
  }

  /// The second instance has one processor, so its thread must not move to another one in the middle of a history.
  func testHistoriesOnAMachineOfManyProcessorsHaveTheSameChecksums() throws {
    var boot = Boot()
    boot.processors = 4
    boot.memory = "256M"
    let turns = 6
    let log = try boot.run(Array(repeating: "selftest -j history", count: turns).joined(separator: "; "))
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let sums = log.rows("history").compactMap { $0["checksum"] as? String }
    XCTAssertEqual(sums.count, turns * HistoryKind.count)
    XCTAssertEqual(Set(sums).count, HistoryKind.count)
  }
}
