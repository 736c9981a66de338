// A small machine with a RAM disk, a disk with faults above it, and a pool of requests.

import BlockDevices
import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

open class DiskFixture: @unchecked Sendable {
  private let allocator: FrameAllocatorFixture
  package let transfers: Transfers
  package let ramDisk: RamDisk
  package let disk: FaultyDisk
  package let diskMemory: UnsafeMutableRawPointer
  /// The device that the conveniences below use, and that sleepers run.
  package private(set) var device: BlockDevice
  private var storage: [UnsafeMutableRawPointer] = []

  package var host: SimulatedMachine { allocator.host }
  package var physical: FrameAllocator { allocator.memory }

  /// A machine with `frames` frames, a disk of `pages` pages and a pool of `requests`. A sleeper runs the
  /// disk.
  package init(pages: UInt64, requests: Int = 8, frames: UInt64 = 1024, processors: Int = 1) throws {
    allocator = try FrameAllocatorFixture(frames: [(0, frames)], processors: processors)
    let machine = allocator.host.machine
    var storage: [UnsafeMutableRawPointer] = []
    diskMemory = Self.allocate(PageCount(pages).bytes, alignment: 4096, &storage)
    ramDisk = RamDisk.create(
      in: Self.allocate(RamDisk.stateSize, &storage), ShortName("ram"), machine: machine,
      over: RamDisk.Extent(diskMemory, PageCount(pages)))
    disk = FaultyDisk.create(
      in: Self.allocate(FaultyDisk.stateSize, &storage), over: ramDisk, machine: machine)
    device = disk.device
    transfers = Transfers.create(
      in: Self.allocate(Transfers.size(count: requests), &storage), count: requests, machine: machine)
    self.storage = storage
    let disk = disk
    allocator.host.runDevices = { disk.poll() }
  }

  deinit { for pointer in storage { pointer.deallocate() } }

  private static func allocate(
    _ size: ByteCount, alignment: Int = 64, _ storage: inout [UnsafeMutableRawPointer]
  ) -> UnsafeMutableRawPointer {
    let memory = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: alignment)
    // No code may rely on zeroes.
    memory.initializeMemory(as: UInt8.self, repeating: 0xa5, count: Int(size.rawValue))
    storage.append(memory)
    return memory
  }

  /// Memory for the state of a layer above, as long as the fixture lives.
  package func allocate(_ size: ByteCount) -> UnsafeMutableRawPointer { Self.allocate(size, &storage) }

  /// From here on, the conveniences use the RAM disk itself, and a sleeper runs that.
  package func useRamDisk() {
    device = ramDisk.device
    let disk = ramDisk
    host.runDevices = { disk.poll() }
  }

  // MARK: Frames and pages

  package func frame() throws -> FrameNumber { try physical.allocate(BlockOrder(0), role: .wired) }

  package func frames(_ count: Int) throws -> [FrameNumber] { try (0..<count).map { _ in try frame() } }

  package func words(_ frame: FrameNumber) -> UnsafeMutablePointer<UInt64> {
    host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
  }

  /// Fills the frame with what only `stamp` gives.
  package func fill(_ frame: FrameNumber, _ stamp: UInt64) { fillPage(words(frame), stamp) }

  package func holds(_ frame: FrameNumber, _ stamp: UInt64) -> Bool { pageHolds(words(frame), stamp) }

  package func diskPage(_ page: UInt64) -> UnsafeMutablePointer<UInt64> {
    (diskMemory + Int(page << 12)).assumingMemoryBound(to: UInt64.self)
  }

  // MARK: Requests

  package func transfer(
    _ operation: DeviceOperation, _ first: UInt64, _ frames: [FrameNumber]
  ) -> Kept<Transfer>? {
    frames.withUnsafeBufferPointer { frames -> Kept<Transfer>? in
      guard let transfer = transfers.begin(device, operation, DevicePage(first), frames) else {
        return nil
      }
      return Kept(transfer)
    }
  }

  /// Carries a request out; whether it succeeded.
  package func run(_ operation: DeviceOperation, _ first: UInt64, _ frames: [FrameNumber]) -> Bool {
    let transfer = transfer(operation, first, frames)!
    transfers.wait(transfer.value)
    defer { transfers.end(transfer.move()) }
    return !transfers.hasFailed(transfer.value)
  }

  /// Each thread writes frames of its own to pages of its own, `rounds` times, and reads them back as it wrote them.
  /// The disk has 80 pages a thread.
  package func writeAndReadBack(
    threads: Int, rounds: Int, file: StaticString = #filePath, line: UInt = #line
  ) throws {
    let frames = try frames(threads * 16)
    host.onThreads(threads) { [self] index in
      var random = SeededRandom(seed: UInt64(index))
      for round in 0..<rounds {
        let mine = Array(frames[index * 16..<index * 16 + 1 + Int(random.below(16))])
        let first = UInt64(index * 80) + random.below(48)
        for (i, frame) in mine.enumerated() { fill(frame, UInt64(round * 1000 + i)) }
        XCTAssertTrue(run(.write, first, mine), file: file, line: line)
        for frame in mine { fill(frame, 1) }
        XCTAssertTrue(run(.read, first, mine), file: file, line: line)
        for (i, frame) in mine.enumerated() {
          XCTAssertTrue(holds(frame, UInt64(round * 1000 + i)), file: file, line: line)
        }
      }
    }
  }
}

package func fillPage(_ words: UnsafeMutablePointer<UInt64>, _ stamp: UInt64) {
  var random = SeededRandom(seed: stamp)
  for i in 0..<512 { words[i] = random.next() }
}

package func pageHolds(_ words: UnsafeMutablePointer<UInt64>, _ stamp: UInt64) -> Bool {
  var random = SeededRandom(seed: stamp)
  for i in 0..<512 where words[i] != random.next() { return false }
  return true
}
