import BlockDevices
import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

final class RamDiskTests: XCTestCase {
  func testSubmitCompletesNothingAndPollOneAtATime() throws {
    let bench = try DiskFixture(pages: 64)
    bench.useRamDisk()
    XCTAssertFalse(bench.ramDisk.poll())
    let frames = try bench.frames(4)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let begun = (0..<4).map { bench.transfer(.write, UInt64($0 * 3), [frames[$0]])! }
    XCTAssertFalse(begun.contains { bench.transfers.isDone($0.value) })
    for i in 0..<4 {
      XCTAssertTrue(bench.ramDisk.poll())
      XCTAssertEqual(begun.map { bench.transfers.isDone($0.value) }, (0..<4).map { $0 <= i })
    }
    XCTAssertFalse(bench.ramDisk.poll())
    for i in 0..<4 {
      bench.transfers.end(begun[i].move())
      XCTAssertTrue(pageHolds(bench.diskPage(UInt64(i * 3)), UInt64(i)))
    }
  }

  func testADiskInEightExtentsReadsAndWritesEachPage() throws {
    let bench = try DiskFixture(pages: 1)
    bench.useRamDisk()
    let sizes: [Int] = [3, 1, 40, 2, 7, 1, 1, 33]
    let total = sizes.reduce(0, +)
    let parts = sizes.map { UnsafeMutableRawPointer.allocate(byteCount: $0 << 12, alignment: 4096) }
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(RamDisk.stateSize.rawValue), alignment: 64)
    defer { for pointer in parts + [memory] { pointer.deallocate() } }
    let extents = (0..<8).map { RamDisk.Extent(parts[$0], PageCount(sizes[$0])) }
    let disk = extents.withUnsafeBufferPointer {
      RamDisk.create(in: memory, ShortName("extents"), machine: bench.host.machine, over: $0)
    }
    XCTAssertEqual(disk.device.pageCount, PageCount(total))
    XCTAssertEqual(disk.device.name, ShortName("extents"))
    let polled = disk
    bench.host.runDevices = { polled.poll() }
    let frames = try bench.frames(32)
    func run(_ operation: DeviceOperation, _ first: Int, _ count: Int) -> Bool {
      frames[..<count].withUnsafeBufferPointer {
        let transfer = bench.transfers.begin(disk.device, operation, DevicePage(UInt64(first)), $0)!
        bench.transfers.wait(transfer)
        let hasFailed = bench.transfers.hasFailed(transfer)
        bench.transfers.end(transfer)
        return !hasFailed
      }
    }
    // In parts that lie across every border.
    for first in stride(from: 0, to: total, by: 19) {
      let count = min(19, total - first)
      for i in 0..<count { bench.fill(frames[i], UInt64(first + i)) }
      XCTAssertTrue(run(.write, first, count))
    }
    var page = 0
    for (part, size) in sizes.enumerated() {
      for i in 0..<size {
        XCTAssertTrue(
          pageHolds((parts[part] + i << 12).assumingMemoryBound(to: UInt64.self), UInt64(page)))
        XCTAssertEqual(disk.memory(of: DevicePage(UInt64(page))), parts[part] + i << 12)
        page += 1
      }
    }
    for first in 0..<total {
      let count = min(32, total - first)
      XCTAssertTrue(run(.read, first, count))
      for i in 0..<count { XCTAssertTrue(bench.holds(frames[i], UInt64(first + i))) }
    }
    // Beyond the end nothing is touched.
    XCTAssertFalse(run(.read, total - 3, 4))
    XCTAssertFalse(run(.write, total, 1))
    XCTAssertFalse(run(.write, Int.max, 2))
  }

  func testARequestWithoutOrWithTooManyPagesFails() throws {
    let bench = try DiskFixture(pages: 64)
    bench.useRamDisk()
    var request = cp_block_request()
    request.operation = .read
    request.report_done = { context, _ in context!.assumingMemoryBound(to: Int.self).pointee += 1 }
    var done = 0
    withUnsafeMutablePointer(to: &done) { counter in
      withUnsafeMutablePointer(to: &request) { request in
        request.pointee.context = UnsafeMutableRawPointer(counter)
        for count in [0, 33, UInt32.max] {
          request.pointee.count = count
          request.pointee.failed = false
          bench.ramDisk.device.submit(request)
          XCTAssertTrue(bench.ramDisk.poll())
          XCTAssertTrue(request.pointee.failed)
        }
      }
    }
    XCTAssertEqual(done, 3)
  }

  /// `report_done` may submit requests and poll.
  func testDoneMaySubmitAndPoll() throws {
    let bench = try DiskFixture(pages: 64)
    bench.useRamDisk()
    struct Chain {
      var disk: RamDisk
      var left: Int
      var polled: [Bool] = []
    }
    let chain = UnsafeMutablePointer<Chain>.allocate(capacity: 1)
    let requests = UnsafeMutablePointer<cp_block_request>.allocate(capacity: 1)
    chain.initialize(to: Chain(disk: bench.ramDisk, left: 5))
    requests.initialize(to: cp_block_request())
    defer {
      chain.deinitialize(count: 1)
      chain.deallocate()
      requests.deallocate()
    }
    requests.setFrame(0, try bench.frame())
    requests.prepare(.write, DevicePage(0), .one, context: UnsafeMutableRawPointer(chain)) {
      context, request in
      let chain = context!.assumingMemoryBound(to: Chain.self)
      XCTAssertTrue(holdsNoSpinLock())
      chain.pointee.left -= 1
      guard chain.pointee.left > 0 else { return }
      request.pointee.first += 1
      let disk = chain.pointee.disk
      disk.device.submit(request)
      let answer = disk.poll()
      chain.pointee.polled.append(answer)
    }
    bench.ramDisk.device.submit(requests)
    XCTAssertTrue(bench.ramDisk.poll())
    XCTAssertEqual(chain.pointee.left, 0)
    XCTAssertEqual(chain.pointee.polled, [true, true, true, true])
    XCTAssertFalse(bench.ramDisk.poll())
  }

  func testThreadsPollOneDisk() throws {
    let bench = try DiskFixture(pages: 256, requests: 16, processors: 3)
    bench.useRamDisk()
    try bench.writeAndReadBack(threads: 3, rounds: 400)
    XCTAssertFalse(bench.ramDisk.poll())
  }
}
