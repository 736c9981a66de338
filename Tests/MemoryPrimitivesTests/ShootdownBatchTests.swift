import CPlatform
import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

/// Sees every message that a batch sends.
final class ShootdownBatchTests: XCTestCase {
  final class Messages {
    var sent: [[UInt64]] = []
    var messages = 0
    let upcalls = UnsafeMutablePointer<cp_upcalls>.allocate(capacity: 1)

    init() {
      upcalls.initialize(
        to: cp_upcalls(
          context: Unmanaged.passUnretained(self).toOpaque(), report_fault: { _, _ in },
          read_tick: { _ in 0 },
          shoot_down: {
            let this = Unmanaged<Messages>.fromOpaque($0!).takeUnretainedValue()
            this.messages += 1
            for run in UnsafeBufferPointer(start: $1, count: Int($2)) {
              this.sent.append([run.address >> 12, run.count])
            }
          }, run_on: { _, _, _, _ in }, sleep: { _, _, _, _, _, _ in .never }, wake: { _, _ in }, start: nil,
          join: nil, confine: nil))
    }
    deinit { upcalls.deallocate() }

    func flush(_ batch: inout ShootdownBatch) -> [[UInt64]] {
      (sent, messages) = ([], 0)
      batch.flush(
        on: Machine(directMap: DirectMap(base: 0), processorCount: 1, upcalls: UnsafePointer(upcalls)))
      XCTAssertTrue(batch.isEmpty)
      XCTAssertEqual(messages, sent.isEmpty ? 0 : 1)
      return sent
    }
  }

  func testPagesInARowGoInOneMessage() {
    let messages = Messages()
    var batch = ShootdownBatch()
    XCTAssertEqual(messages.flush(&batch), [])
    for page: UInt64 in [3, 4, 5, 9, 7, 8, 20] { batch.add(VirtualAddress(page << 12 + page)) }
    XCTAssertEqual(batch.count, 4)
    XCTAssertEqual(messages.flush(&batch), [[3, 3], [9, 1], [7, 2], [20, 1]])
    XCTAssertEqual(messages.flush(&batch), [])
    // The last page of the space and the first are no neighbours.
    batch.add(VirtualAddress(.max))
    batch.add(VirtualAddress(0))
    XCTAssertEqual(messages.flush(&batch), [[.max >> 12, 1], [0, 1]])
  }

  func testAMergedInvalidationCoversEachPageOfBoth() {
    let messages = Messages()
    var random = SeededRandom(seed: historySeed(7))
    var batch = ShootdownBatch()
    var full = 0
    for _ in 0..<300 {
      let spread = 1 + random.below(200)
      var pages: Set<UInt64> = []
      for _ in 0..<(1 + random.below(80)) {
        let page = random.below(spread)
        batch.add(VirtualAddress(page << 12 | random.below(4096)))
        pages.insert(page)
      }
      let sent = messages.flush(&batch)
      if sent == [[0, CP_ALL_PAGES]] {
        full += 1
        continue
      }
      XCTAssertLessThanOrEqual(sent.count, ShootdownBatch.capacity)
      XCTAssertEqual(Set(sent.flatMap { $0[0]..<$0[0] + $0[1] }), pages)
    }
    XCTAssertGreaterThan(full, 0)
  }

  func testKindsOfAccessHaveDescriptions() {
    XCTAssertEqual("\(AccessKind.read.description) \(AccessKind.write.description)", "read write")
  }
}
