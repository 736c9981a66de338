// A small machine with a RAM disk, for the tests of devices and swap.

import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class SwapFixture: @unchecked Sendable {
  private let allocator: FrameAllocatorFixture
  let transfers: Transfers
  let disk: RamDisk
  let swap: Swap
  let diskMemory: UnsafeMutableRawPointer
  private var storage: [UnsafeMutableRawPointer] = []

  var host: SimulatedMachine { allocator.host }
  var physical: FrameAllocator { allocator.memory }

  /// A machine with `frames` frames, a disk of `pages` pages and a pool of `requests`. A sleeper runs the
  /// disk.
  init(pages: UInt64, requests: Int = 8, frames: UInt64 = 1024, processors: Int = 1) throws {
    allocator = try FrameAllocatorFixture(frames: [(0, frames)], processors: processors)
    let (machine, physical) = (allocator.host.machine, allocator.memory!)
    var storage: [UnsafeMutableRawPointer] = []
    func allocate(_ size: ByteCount, alignment: Int = 64) -> UnsafeMutableRawPointer {
      let memory = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: alignment)
      // No code may rely on zeroes.
      memory.initializeMemory(as: UInt8.self, repeating: 0xa5, count: Int(size.rawValue))
      storage.append(memory)
      return memory
    }
    diskMemory = allocate(PageCount(pages).bytes, alignment: 4096)
    disk = RamDisk.create(
      in: allocate(RamDisk.stateSize), ShortName("ram"), machine: machine,
      over: RamDisk.Extent(diskMemory, PageCount(pages)))
    transfers = Transfers.create(
      in: allocate(Transfers.size(count: requests)), count: requests, machine: machine)
    swap = Swap.create(
      in: allocate(Swap.stateSize), machine: machine, physical: physical, transfers: transfers)
    self.storage = storage
    let disk = disk
    allocator.host.runDevices = { disk.poll() }
  }

  deinit { for pointer in storage { pointer.deallocate() } }

  func frame() throws -> FrameNumber { try physical.allocate(BlockOrder(0), role: .wired) }

  func frames(_ count: Int) throws -> [FrameNumber] { try (0..<count).map { _ in try frame() } }

  func words(_ frame: FrameNumber) -> UnsafeMutablePointer<UInt64> {
    host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
  }

  /// Fills the frame with what only `stamp` gives.
  func fill(_ frame: FrameNumber, _ stamp: UInt64) { fillPage(words(frame), stamp) }

  func holds(_ frame: FrameNumber, _ stamp: UInt64) -> Bool { pageHolds(words(frame), stamp) }

  func diskPage(_ page: UInt64) -> UnsafeMutablePointer<UInt64> {
    (diskMemory + Int(page << 12)).assumingMemoryBound(to: UInt64.self)
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

  func transfer(
    _ operation: cp_block_operation, _ first: UInt64, _ frames: [FrameNumber]
  ) -> Kept<Transfer>? {
    frames.withUnsafeBufferPointer { frames -> Kept<Transfer>? in
      guard let transfer = transfers.begin(disk.device, operation, DevicePage(first), frames) else {
        return nil
      }
      return Kept(transfer)
    }
  }

  /// Carries a request out; whether it succeeded.
  func run(_ operation: cp_block_operation, _ first: UInt64, _ frames: [FrameNumber]) -> Bool {
    let transfer = transfer(operation, first, frames)!
    transfers.wait(transfer.value)
    defer { transfers.end(transfer.move()) }
    return !transfers.hasFailed(transfer.value)
  }
}

func fillPage(_ words: UnsafeMutablePointer<UInt64>, _ stamp: UInt64) {
  var random = SeededRandom(seed: stamp)
  for i in 0..<512 { words[i] = random.next() }
}

func pageHolds(_ words: UnsafeMutablePointer<UInt64>, _ stamp: UInt64) -> Bool {
  var random = SeededRandom(seed: stamp)
  for i in 0..<512 where words[i] != random.next() { return false }
  return true
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
