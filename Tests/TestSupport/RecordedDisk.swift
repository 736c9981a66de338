// A RAM disk that keeps a list of the requests that it was given.

import CPlatform
import Foundation
import HostMachine
import MemoryPrimitives
import Paging
import PhysicalMemory

/// A request that was made to a disk.
package struct DiskRequest {
  package var isWrite: Bool
  package var first: UInt64
  package var frames: [FrameNumber]
}

/// A RAM disk over memory of its own that keeps what it was asked for.
package final class RecordedDisk {
  package let disk: RamDisk
  package let memory: UnsafeMutableRawPointer
  package let pages: UInt64
  private let room: UnsafeMutableRawPointer
  /// Several processors may submit at once.
  private let lock = NSLock()
  private var kept: [DiskRequest] = []

  package init(_ pages: UInt64, _ machine: Machine) {
    self.pages = pages
    memory = .allocate(byteCount: Int(pages << 12), alignment: 4096)
    memory.initializeMemory(as: UInt8.self, repeating: 0x5a, count: Int(pages << 12))
    room = .allocate(byteCount: Int(RamDisk.stateSize.rawValue), alignment: 64)
    disk = RamDisk.create(
      in: room, ShortName("ram"), machine: machine, over: RamDisk.Extent(memory, PageCount(pages)))
  }

  deinit {
    memory.deallocate()
    room.deallocate()
  }

  package var device: BlockDevice {
    BlockDevice(
      ShortName("ram"), pages: PageCount(pages), Unmanaged.passUnretained(self).toOpaque(),
      submit: { context, request in
        let this = Unmanaged<RecordedDisk>.fromOpaque(context!).takeUnretainedValue()
        let frames = UnsafeBufferPointer(start: cp_block_frames(request), count: Int(request.pointee.count))
        let note = DiskRequest(
          isWrite: request.pointee.operation == .write, first: request.pointee.first,
          frames: frames.map { FrameNumber($0) })
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
