// A disk that keeps a list of the requests that it was given.

import BlockDevices
import CPlatform
import Foundation
import HostMachine
import MemoryPrimitives
import Workloads

/// A request that was made to a disk.
package struct DiskRequest {
  package var isWrite: Bool
  package var first: UInt64
  package var frames: [FrameNumber]
}

/// A RAM disk over memory of its own that keeps what it was asked for.
package final class RecordedDisk {
  package let disk: FaultyDisk
  package let memory: UnsafeMutableRawPointer
  package let pages: UInt64
  private let blocks: [UnsafeMutableRawPointer]
  /// Several processors may submit at once.
  private let lock = NSLock()
  private var kept: [DiskRequest] = []

  package init(_ pages: UInt64, _ machine: Machine) {
    self.pages = pages
    memory = .allocate(byteCount: Int(pages << 12), alignment: 4096)
    memory.initializeMemory(as: UInt8.self, repeating: 0x5a, count: Int(pages << 12))
    let blocks = [RamDisk.stateSize, FaultyDisk.stateSize].map {
      UnsafeMutableRawPointer.allocate(byteCount: Int($0.rawValue), alignment: 64)
    }
    self.blocks = blocks
    let ramDisk = RamDisk.create(
      in: blocks[0], ShortName("ram"), machine: machine, over: RamDisk.Extent(memory, PageCount(pages)))
    disk = FaultyDisk.create(in: blocks[1], over: ramDisk, machine: machine)
  }

  deinit {
    memory.deallocate()
    blocks.forEach { $0.deallocate() }
  }

  package var device: BlockDevice {
    BlockDevice(
      ShortName("ram"), pages: PageCount(pages), Unmanaged.passUnretained(self).toOpaque(),
      submitRequest: { context, request in
        let this = Unmanaged<RecordedDisk>.fromOpaque(context!).takeUnretainedValue()
        let note = DiskRequest(
          isWrite: request.operation == .write, first: request.first.rawValue,
          frames: (0..<Int(request.pageCount.rawValue)).map { request.frame($0) })
        this.lock.withLock { this.kept.append(note) }
        this.disk.device.submit(request)
      })
  }

  package var requests: [DiskRequest] { lock.withLock { kept } }
  package func discardHistory() { lock.withLock { kept = [] } }
  package var written: [FrameNumber] { requests.filter(\.isWrite).flatMap(\.frames) }
  package var readCount: Int { requests.filter { !$0.isWrite }.count }
  package func words(_ page: UInt64) -> UnsafeMutablePointer<UInt64> {
    (memory + Int(page << 12)).assumingMemoryBound(to: UInt64.self)
  }
}
