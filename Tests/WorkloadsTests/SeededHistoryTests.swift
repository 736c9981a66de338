import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

/// Random histories over one live system: every layer keeps its invariants, gives everything back, and ends with a
/// checksum that depends on the seed only.
final class SeededHistoryTests: XCTestCase {
  private func run(
    _ kind: HistoryKind, seed: UInt64 = testSeed, operations: UInt64 = 20_000, checkEvery: UInt64 = 1000,
    _ file: StaticString = #filePath, _ line: UInt = #line
  ) throws -> HistoryOutcome {
    let system = try TestSystem(memory: .mebibytes(64))
    let outcome = system.run(HistoryPlan(kind, seed: seed, operations: operations, checkEvery: checkEvery))
    if let broken = outcome.broken {
      XCTFail(
        "\(broken), after \(outcome.operations) operations; STRATA_SEED=\(seed)", file: file, line: line)
    }
    if operations > 10_000 {
      XCTAssertGreaterThan(outcome.refused, 0, "STRATA_SEED=\(seed)", file: file, line: line)
    }
    XCTAssertGreaterThan(outcome.granted, operations / 10, "STRATA_SEED=\(seed)", file: file, line: line)
    return outcome
  }

  func testHistoriesOfTheBuddyAllocatorKeepAllInvariants() throws { _ = try run(.buddy) }
  func testHistoriesOfRunsKeepAllInvariants() throws { _ = try run(.runs) }
  func testHistoriesOfVmemKeepAllInvariants() throws { _ = try run(.vmem) }
  func testHistoriesOfKernelSpaceKeepAllInvariants() throws { _ = try run(.kernelSpace) }
  func testHistoriesOfKmemKeepAllInvariants() throws { _ = try run(.kmem) }

  func testAllInvariantsHoldAfterEveryOperationOnASmallMachine() throws {
    for kind in (0..<HistoryKind.count).map({ HistoryKind(rawValue: UInt8($0))! }) {
      let system = try TestSystem(memory: .mebibytes(3))
      let outcome = system.run(HistoryPlan(kind, seed: testSeed, operations: 500, checkEvery: 1))
      XCTAssertNil(
        outcome.broken.map { "\(kind): \($0), after \(outcome.operations); STRATA_SEED=\(testSeed)" })
    }
  }

  func testChecksumsDependOnTheSeedOnly() throws {
    for kind in (0..<HistoryKind.count).map({ HistoryKind(rawValue: UInt8($0))! }) {
      let first = try run(kind, seed: 1, operations: 3000)
      // Invariants may be looked at or not: looking changes nothing.
      let second = try run(kind, seed: 1, operations: 3000, checkEvery: 0)
      let other = try run(kind, seed: 2, operations: 3000)
      XCTAssertEqual(first.checksum, second.checksum, "\(kind)")
      XCTAssertNotEqual(first.checksum, other.checksum, "\(kind)")
    }
  }

  /// One after the other over one instance, as the kernel's `selftest history` runs them. Where the simulated
  /// RAM lies in this process makes no difference.
  func testStandardHistoriesRunOverOneInstance() throws {
    func all() throws -> [UInt64] {
      let system = try TestSystem.standard()
      return (0..<HistoryKind.count).map { number in
        let kind = HistoryKind(rawValue: UInt8(number))!
        let outcome = system.run(.standard(kind))
        XCTAssertNil(outcome.broken.map { "\(kind): \($0) after \(outcome.operations)" })
        return outcome.checksum
      }
    }
    // The second machine can't lie where the first one does.
    let first = try TestSystem.standard()
    XCTAssertEqual(try all(), try withExtendedLifetime(first) { try all() })
  }
}
