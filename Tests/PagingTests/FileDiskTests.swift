import BlockDevices
import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import Workloads
import TestSupport
import XCTest

@testable import Paging

final class FileDiskTests: XCTestCase {
  private func withFile(_ body: (String) throws -> Void) throws {
    let path = FileManager.default.temporaryDirectory
      .appendingPathComponent(
        "strata-\(ProcessInfo.processInfo.processIdentifier)-\(UInt64.random(in: 0...UInt64.max))"
      )
      .path
    defer { unlink(path) }
    try body(path)
  }

  func testAFileServesAsSwap() throws {
    try withFile { path in
      let bench = try SwapFixture(pages: 1)
      let file = try FileDisk(path: path, pages: PageCount(500), on: bench.host)
      XCTAssertFalse(file.poll())
      bench.host.runDevices = { file.poll() }
      try bench.swap.attach(file.device)
      let frames = try bench.frames(32)
      var runs: [SlotRun] = []
      for round in 0..<10 as Range<UInt64> {
        for (i, frame) in frames.enumerated() { bench.fill(frame, round << 8 | UInt64(i)) }
        let run = bench.swap.reserve(upTo: PageCount(32))!
        XCTAssertEqual(bench.write(frames, to: run).compactMap { $0 }.count, 32)
        runs.append(run)
      }
      for (round, run) in runs.enumerated().reversed() {
        for i in 0..<32 {
          try bench.swap.read(run.first + PageCount(i), into: frames[0])
          XCTAssertTrue(bench.holds(frames[0], UInt64(round) << 8 | UInt64(i)))
        }
      }
      // The file is truncated: a read of a lost page is an error, and the other pages are as before.
      XCTAssertEqual(truncate(path, 100 << 12 + 2048), 0)
      try bench.swap.read(SwapSlot(99), into: frames[0])
      XCTAssertTrue(bench.holds(frames[0], 3 << 8 | 3))
      for slot in [100, 101, 319] as [UInt32] {
        XCTAssertPaging(.inputOutput) { () throws(PagingError) in
          try bench.swap.read(SwapSlot(slot), into: frames[0])
        }
      }
      XCTAssertEqual(bench.swap.figures.failures, 3)
      for run in runs { bench.swap.free(run) }
      try bench.swap.detach()
      XCTAssertFalse(file.poll())
    }
  }

  func testARequestThatTheFileCannotServeFails() throws {
    let bench = try SwapFixture(pages: 1)
    XCTAssertThrowsError(try FileDisk(path: "/nowhere/at/all", pages: .one, on: bench.host))
    // A device that takes no write: every slot is retired, and nothing else happens.
    let full = try FileDisk(path: "/dev/full", pages: PageCount(64), on: bench.host)
    bench.host.runDevices = { full.poll() }
    try bench.swap.attach(full.device)
    let frames = try bench.frames(32)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let run = bench.swap.reserve(upTo: PageCount(32))!
    XCTAssertEqual(bench.write(frames, to: run), [SwapSlot?](repeating: nil, count: 32))
    XCTAssertEqual(bench.swap.figures.bad, PageCount(32))
    for (i, frame) in frames.enumerated() { XCTAssertTrue(bench.holds(frame, UInt64(i))) }
    try bench.swap.detach()
    // Beyond the device, whatever the file has.
    try withFile { path in
      let file = try FileDisk(path: path, pages: PageCount(4), on: bench.host)
      bench.host.runDevices = { file.poll() }
      for (first, isInside) in [(0, true), (3, true), (4, false), (Int.max >> 12, false)] {
        let transfer = [frames[0]].withUnsafeBufferPointer {
          Kept(bench.transfers.begin(file.device, .write, DevicePage(UInt64(first)), $0)!)
        }
        bench.transfers.wait(transfer.value)
        XCTAssertEqual(bench.transfers.hasFailed(transfer.value), !isInside)
        bench.transfers.end(transfer.move())
      }
    }
  }
}
