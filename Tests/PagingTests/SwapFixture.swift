// A small machine with a swap device, for the tests of swap.

import BlockDevices
import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapFixture: DiskFixture, @unchecked Sendable {
  private(set) var swap: Swap!

  /// A machine with `frames` frames, a disk of `pages` pages and a pool of `requests`. A sleeper runs the
  /// disk.
  override init(pages: UInt64, requests: Int = 8, frames: UInt64 = 1024, processors: Int = 1) throws {
    try super.init(pages: pages, requests: requests, frames: frames, processors: processors)
    swap = Swap.create(
      in: allocate(Swap.stateSize), machine: host.machine, physical: physical, transfers: transfers)
  }

  func check(_ note: String = "", _ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = swap.checkInvariants() { XCTFail("\(broken). \(note)", file: file, line: line) }
    if let broken = physical.checkInvariants() {
      XCTFail("physical invariant \(broken) \(note)", file: file, line: line)
    }
  }

  // Conveniences with arrays.

  func begin(_ frames: [FrameNumber], to run: SlotRun) -> Kept<SwapWrite>? {
    frames.withUnsafeBufferPointer { frames -> Kept<SwapWrite>? in
      guard let write = swap.beginWrite(frames, to: run) else { return nil }
      return Kept(write)
    }
  }

  /// Writes in one request, and answers where each page is.
  func write(_ frames: [FrameNumber], to run: SlotRun) -> [SwapSlot?] {
    let written = swap.finishWrite(begin(frames, to: run)!.move())
    return (0..<frames.count).map { written.slot($0) }
  }
}

func XCTAssertPaging(
  _ expected: PagingError, _ note: String = "", file: StaticString = #filePath, line: UInt = #line,
  _ body: () throws(PagingError) -> Void
) {
  do throws(PagingError) {
    try body()
    XCTFail("nothing thrown \(note)", file: file, line: line)
  } catch {
    XCTAssertEqual(error, expected, note, file: file, line: line)
  }
}
