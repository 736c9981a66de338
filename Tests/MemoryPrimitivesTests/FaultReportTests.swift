import CPlatform
import XCTest

@testable import HostMachine
@testable import MemoryPrimitives

/// The lines of a fault report, which the kernel and the host share.
final class FaultReportTests: XCTestCase {
  private func labels(_ report: FaultReport) -> [String] {
    var labels: [String] = []
    report.forEachLine(region: { _ in "nowhere" }, place: { "\($0.rawValue)" }) { label, _ in
      labels.append(label.description)
    }
    return labels
  }

  func testNoLineRefersToOneThatIsNotThere() {
    var report = FaultReport(.foreignPointer, "freed an address", 4096, .virtualAddress)
    report.reportedAt = .here
    XCTAssertEqual(labels(report), ["what", "owner", "called"])
    report.kind = .doubleFree
    XCTAssertEqual(labels(report), ["what", "owner", "called"])
    report.freedAt = .here
    XCTAssertEqual(labels(report), ["what", "owner", "freed", "and again"])
    report.kind = .wrongSize
    report.given = 2
    report.expected = 1
    report.allocatedAt = .here
    XCTAssertEqual(labels(report), ["what", "", "owner", "allocated", "freed", "called"])
  }

  @inline(never) private func site() -> CallSite { .here }

  func testTheHostPrintsAReportInTheWordsOfTheConsole() {
    var report = FaultReport(.doubleFree, "freed an object that is free already", 0x1000, .virtualAddress)
    report.owner = "kmem-64"
    report.type = "test"
    report.allocatedAt = site()
    report.freedAt = site()
    report.reportedAt = site()
    let lines = HostFaultReport.text(report).split(separator: "\n").map(String.init)
    XCTAssertEqual(lines.first, "FAULT  double free")
    XCTAssertEqual(
      lines.dropFirst().first, "  what      freed an object that is free already: 0x0000_0000_0000_1000")
    XCTAssertTrue(lines.contains("  owner     kmem-64, type test"), "\(lines)")
    for label in ["  allocated ", "  freed     ", "  and again "] {
      XCTAssertTrue(lines.contains { $0.hasPrefix(label) && $0.contains(" +0x") }, "\(label) \(lines)")
    }
    XCTAssertEqual(lines.last, "  Nothing was changed.")
  }

  func testAReportNamesTheLocks() {
    let outer = SpinLock(.registry)
    let inner = LockRank.physicalDomain
    XCTAssertNil(LockRank.heldLocks)
    outer.withLock {
      XCTAssertFalse(inner.isAbove(LockRank.registry.rawValue))
      defer { cp_refuse_rank(0) }
      XCTAssertEqual(
        LockRank.heldLocks.map { $0.withBytes { String(decoding: $0, as: UTF8.self) } },
        "holds registry (rank 70), and acquires physical domain (rank 60)")
    }
  }
}
