import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import XCTest

@testable import ContiguousMemory

/// Each invariant of contiguous memory is broken by hand, and the check reports exactly its number.
final class ContiguousInvariantsTests: XCTestCase {
  private func expect(
    _ number: String, line: UInt = #line, after damage: (ContiguousAllocator) -> Void
  ) throws {
    let system = try TestSystem()
    let contiguous = system.contiguous
    let run = try contiguous.allocContig(ContiguousRequest(2))
    contiguous.releaseContig(run)
    XCTAssertNil(contiguous.checkInvariants())
    damage(contiguous)
    let message = contiguous.checkInvariants().map { "\($0)" } ?? "none"
    XCTAssertTrue(message.hasPrefix(number + ":"), message, line: line)
  }

  func testARequestThatEndsTwiceBreaksCM1() throws {
    try expect("CM-1") { $0.counters.granted.add(1, ordering: .relaxed) }
  }

  func testARepeatedRequestThatWasNotRefusedBreaksCM2() throws {
    try expect("CM-2") { $0.counters.repeated.add(1, ordering: .relaxed) }
  }

  func testAStrategyThatDoesNotExistBreaksCM3() throws {
    try expect("CM-3") { $0.state.pointee.strategy.store(9, ordering: .relaxed) }
  }
}
