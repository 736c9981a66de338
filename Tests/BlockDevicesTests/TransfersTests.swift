import CPlatform
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import BlockDevices
@testable import HostMachine

final class TransfersTests: XCTestCase {
  func testThePoolIsExhaustedAndFillsAgain() throws {
    let bench = try DiskFixture(pages: 64, requests: 3)
    let frames = try bench.frames(3)
    XCTAssertEqual(bench.transfers.idleCount, 3)
    let begun = (0..<3).map { bench.transfer(.write, UInt64($0), [frames[$0]])! }
    XCTAssertNil(bench.transfer(.write, 9, [frames[0]]))
    XCTAssertEqual(bench.transfers.idleCount, 0)
    // One is done, but not ended.
    XCTAssertTrue(bench.transfers.waitForAny())
    XCTAssertTrue(bench.transfers.isDone(begun[0].value))
    XCTAssertFalse(bench.transfers.isDone(begun[1].value))
    XCTAssertNil(bench.transfer(.write, 9, [frames[0]]))
    while bench.disk.poll() {}
    XCTAssertFalse(bench.transfers.waitForAny())
    bench.transfers.end(begun[1].move())
    XCTAssertTrue(bench.transfers.waitForAny())
    let again = bench.transfer(.read, 0, [frames[1]])
    XCTAssertNotNil(again)
    bench.transfers.wait(again!.value)
    for transfer in [begun[0], again!, begun[2]] { bench.transfers.end(transfer.move()) }
    XCTAssertEqual(bench.transfers.idleCount, 3)
  }

  func testEverySizeOfPoolServesAllRequests() throws {
    for requests in [1, 2, 63, 64] {
      let bench = try DiskFixture(pages: 64, requests: requests)
      let frame = try bench.frame()
      var begun: [Kept<Transfer>] = []
      while let transfer = bench.transfer(.write, 0, [frame]) { begun.append(transfer) }
      XCTAssertEqual(begun.count, requests)
      for transfer in begun.reversed() {
        bench.transfers.wait(transfer.value)
        bench.transfers.end(transfer.move())
      }
      XCTAssertEqual(bench.transfers.idleCount, requests)
    }
  }

  func testRequestsCompleteOutOfOrder() throws {
    let bench = try DiskFixture(pages: 64, requests: 16)
    var faults = DeviceFaults(seed: historySeed(81))
    faults.reordered = 1000
    bench.disk.faults = faults
    let frames = try bench.frames(16)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let begun = (0..<16).map { bench.transfer(.write, UInt64($0), [frames[$0]])! }
    var order: [Int] = []
    while bench.disk.poll() {
      order += begun.indices.filter { bench.transfers.isDone(begun[$0].value) && !order.contains($0) }
    }
    XCTAssertEqual(order.sorted(), Array(0..<16))
    XCTAssertNotEqual(order, Array(0..<16), "in the order in which they were begun")
    for transfer in begun {
      bench.transfers.wait(transfer.value)
      XCTAssertFalse(bench.transfers.hasFailed(transfer.value))
      bench.transfers.end(transfer.move())
    }
    for i in 0..<16 { XCTAssertTrue(pageHolds(bench.diskPage(UInt64(i)), UInt64(i))) }
  }

  /// An interrupt handler completes requests at any point where interrupts are switched on.
  func testInterruptsCompleteRequests() throws {
    let seed = historySeed(82)
    let bench = try DiskFixture(pages: 64, requests: 4)
    let frames = try bench.frames(4)
    bench.host.withInterrupts(seed: seed, oneIn: 3, handler: { bench.disk.poll() }) {
      for round in 0..<2000 {
        let begun = frames.compactMap { bench.transfer(round % 2 == 0 ? .write : .read, 3, [$0]) }
        XCTAssertEqual(begun.count, 4)
        for transfer in begun {
          bench.transfers.wait(transfer.value)
          bench.transfers.end(transfer.move())
        }
      }
    }
    XCTAssertEqual(bench.transfers.idleCount, 4)
    XCTAssertEqual(bench.disk.figures.reads + bench.disk.figures.writes, 8000)
  }

  /// Three threads at a pool of two requests, and a fourth that is the device.
  func testThreadsShareAPoolThatIsTooSmall() throws {
    let bench = try DiskFixture(pages: 64, requests: 2, processors: 4)
    bench.host.runDevices = nil
    bench.host.hasOtherThreads = true
    let frames = try bench.frames(3)
    let left = Atomic<Int>(3)
    let waits = Atomic<Int>(0)
    bench.host.onThreads(4) { index in
      if index == 3 {
        while left.load(ordering: .acquiring) > 0 { if !bench.disk.poll() { sched_yield() } }
        return
      }
      for round in 0..<500 as Range<UInt64> {
        bench.fill(frames[index], round)
        for operation in [DeviceOperation.write, .read] {
          while true {
            if let transfer = bench.transfer(operation, UInt64(index), [frames[index]]) {
              bench.transfers.wait(transfer.value)
              XCTAssertFalse(bench.transfers.hasFailed(transfer.value))
              bench.transfers.end(transfer.move())
              break
            }
            XCTAssertTrue(bench.transfers.waitForAny())
            waits.add(1, ordering: .relaxed)
          }
        }
        XCTAssertTrue(bench.holds(frames[index], round))
      }
      left.subtract(1, ordering: .releasing)
    }
    XCTAssertEqual(bench.transfers.idleCount, 2)
    print("Transfers: \(waits.load(ordering: .relaxed)) waits for a request")
  }

  func testTheEndOfATransferWakesAThreadThatWaitsForOne() throws {
    let bench = try DiskFixture(pages: 64, requests: 1)
    let frame = try bench.frame()
    let begun = bench.transfer(.write, 0, [frame])!
    bench.transfers.wait(begun.value)
    nonisolated(unsafe) let transfers = bench.transfers
    nonisolated(unsafe) var sleeps = 0
    bench.host.runDevices = {
      sleeps += 1
      if sleeps == 1 { transfers.end(begun.move()) }
      return sleeps == 1
    }
    XCTAssertTrue(transfers.waitForAny())
    XCTAssertEqual(sleeps, 1, "the thread was not woken")
    XCTAssertEqual(transfers.idleCount, 1)
  }

  func testATransferThatEndsBeforeTheSleepIsNotSleptOn() throws {
    let bench = try DiskFixture(pages: 64, requests: 1)
    let begun = bench.transfer(.write, 0, [try bench.frame()])!
    bench.transfers.wait(begun.value)
    nonisolated(unsafe) var sleeps = 0
    bench.host.runDevices = {
      sleeps += 1
      return false
    }
    bench.host.withClaims(
      .unlocked, handler: { _ in bench.transfers.end(begun.move()) },
      { XCTAssertTrue(bench.transfers.waitForAny()) })
    XCTAssertEqual(sleeps, 0)
  }

  /// Another thread allocates the last request: a thread that was about to allocate it gets none.
  func testATransferIsClaimedOnce() throws {
    let bench = try DiskFixture(pages: 64, requests: 2)
    let frame = try bench.frame()
    var inner: Kept<Transfer>?
    var outer: Kept<Transfer>?
    bench.host.withClaims(
      .unlocked, handler: { _ in inner = inner ?? bench.transfer(.write, 1, [frame]) },
      { outer = bench.transfer(.write, 0, [frame]) })
    XCTAssertNotNil(inner)
    XCTAssertNotNil(outer)
    XCTAssertNotEqual(inner?.value.index, outer?.value.index)
    XCTAssertEqual(bench.transfers.idleCount, 0)
    for transfer in [inner, outer] {
      bench.transfers.wait(transfer!.value)
      bench.transfers.end(transfer!.move())
    }
  }
}
