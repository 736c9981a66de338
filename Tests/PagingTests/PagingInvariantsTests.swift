import HostMachine
import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// Each invariant of paging and of swap is broken by hand, and the check reports exactly its number.
final class PagingInvariantsTests: XCTestCase {
  /// Runs `damage` on a system with one resident page that is mapped writable and still zero, and compares the number
  /// in the message of the check.
  private func expect(
    _ number: String, line: UInt = #line,
    after damage: (TestSystem, Area, FrameRecordPointer) throws -> Void
  ) throws {
    let system = try TestSystem()
    let area = try system.area(2)
    try system.paging.fault(area[0], .write)
    XCTAssertNil(system.paging.checkInvariants())
    let record = system.physical.knownRecord(system.frame(area, 0))
    try damage(system, area, record)
    let message = system.paging.checkInvariants().map { "\($0)" } ?? "none"
    XCTAssertTrue(message.hasPrefix(number + ":"), message, line: line)
  }

  func testARecordThatNamesAnotherPageBreaksPG1() throws {
    try expect("PG-1") { _, _, record in record.index = 1 }
  }

  func testAMappingThatIsWritableWhileThePageIsCleanBreaksPG2() throws {
    try expect("PG-2") { _, _, record in record.pageFlags.remove(.dirty) }
  }

  func testAPageInNoQueueBreaksPG3() throws {
    try expect("PG-3") { system, area, _ in
      let frame = system.frame(area, 0)
      system.paging.withQueues { _ = $0.remove(frame) }
    }
  }

  func testADirtyPageWithACopyBreaksPG4() throws {
    try expect("PG-4") { system, area, _ in
      area.object.quietSlot(0).value = PageSlot(.resident, system.frame(area, 0), SwapSlot(0))
    }
  }

  func testACleanPageWithoutACopyThatIsNotZeroBreaksPG5() throws {
    try expect("PG-5") { system, area, record in
      system.host.machine.directMap.pointer(to: system.frame(area, 0)).storeBytes(of: 1, as: UInt64.self)
      record.pageFlags.remove(.dirty)
    }
  }

  func testAWrongCountOfObjectsBreaksPG6() throws {
    try expect("PG-6") { system, _, _ in system.paging.counters.objects.count() }
  }

  private func expectSwap(_ number: String, line: UInt = #line, after damage: (SwapFixture) -> Void) throws {
    let bench = try SwapFixture(pages: 200)
    try bench.swap.attach(bench.disk.device)
    XCTAssertNil(bench.swap.checkInvariants())
    damage(bench)
    let message = bench.swap.checkInvariants().map { "\($0)" } ?? "none"
    XCTAssertTrue(message.hasPrefix(number + ":"), message, line: line)
  }

  func testASlotThatIsNotCountedAsUsedBreaksSW1() throws {
    try expectSwap("SW-1") { $0.swap.state.core.quiet.pointee.slots?.words[0] &= ~1 }
  }

  func testASummaryThatHidesFreeSlotsBreaksSW2() throws {
    // The words of 200 slots are four; the summary is the fifth.
    try expectSwap("SW-2") { $0.swap.state.core.quiet.pointee.slots?.words[4] &= ~1 }
  }

  func testAFreeSlotWithAChecksumBreaksSW3() throws {
    try expectSwap("SW-3") { $0.swap.attachment.checksums[7] = 1 }
  }
}
