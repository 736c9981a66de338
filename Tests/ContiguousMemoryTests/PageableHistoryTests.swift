import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Histories of pageable memory, three times as large as the machine's RAM.
final class PageableHistoryTests: XCTestCase {
  private func run(_ plan: PagingPlan) throws -> HistoryOutcome {
    let host = SimulatedMachine(memory: plan.loaned)
    let size = Int(PagingHistory.workspace(plan).rawValue)
    let workspace = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    defer { workspace.deallocate() }
    return try withExtendedLifetime(host) {
      try PagingHistory.run(
        plan, on: host.machine, loaned: host.machine.directMap.pointer(to: PhysicalAddress(0)),
        workspace: workspace)
    }
  }

  private func plan(
    _ seed: UInt64, _ faults: PagingPlan.Faults, operations: UInt64 = 2000, checkEvery: UInt64 = 500
  ) -> PagingPlan {
    PagingPlan(
      seed: seed, operations: operations, checkEvery: checkEvery, memory: .mebibytes(4),
      swap: .mebibytes(16), faults: faults)
  }

  func testHistoriesOfPagingKeepAllInvariants() throws {
    for seed in historySeeds(100, count: 30) {
      let faults: PagingPlan.Faults = seed % 2 == 0 ? .some : .none
      let outcome = try run(plan(seed, faults))
      XCTAssertNil(
        outcome.broken.map { "\($0), after \(outcome.operations), faults \(faults), STRATA_SEED=\(seed)" })
      XCTAssertGreaterThan(outcome.granted, 500)
    }
  }

  func testAllInvariantsHoldAfterEveryFewOperations() throws {
    for seed in historySeeds(200, count: 4) {
      let faults: PagingPlan.Faults = seed % 2 == 0 ? .some : .none
      let outcome = try run(plan(seed, faults, operations: 600, checkEvery: 3))
      XCTAssertNil(
        outcome.broken.map { "\($0), after \(outcome.operations), faults \(faults), STRATA_SEED=\(seed)" })
    }
  }

  func testSumsDependOnTheSeedOnly() throws {
    let seed = historySeed(300)
    for faults in [PagingPlan.Faults.none, .some] {
      let first = try run(plan(seed, faults))
      // Where the simulated RAM lies makes no difference.
      let other = SimulatedMachine(memory: .mebibytes(8))
      let second = try withExtendedLifetime(other) { try run(plan(seed, faults)) }
      XCTAssertEqual(first.checksum, second.checksum)
      XCTAssertNotEqual(first.checksum, try run(plan(seed &+ 1, faults)).checksum)
    }
  }
}
