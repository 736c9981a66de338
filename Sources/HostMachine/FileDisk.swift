// A block device over a file: the swap device of a host process.
//
// `submit` queues a request, and `poll` carries it out and calls its `report_done`: as a disk does, never before
// `submit` has returned. A request that the file can't serve, because it is too short or because of an error of the
// system, ends as a failed request.

import BlockDevices
import CPlatform
import Foundation
import MemoryPrimitives

/// A block device over a file. It must outlive all its users.
public final class FileDisk: @unchecked Sendable {
  private let descriptor: Int32
  private let name: ShortName
  private let pages: PageCount
  private let directMap: DirectMap
  private let lock = NSLock()
  private var queue: [BlockRequest] = []
  private var running = 0

  /// Opens or creates the file at `path` as a device of `pages` pages. The file may have any length: it grows as it is
  /// written. Requests name memory of `host`. Throws when the file can't be opened.
  public init(path: String, pages: PageCount, on host: SimulatedMachine) throws {
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO, userInfo: [NSFilePathErrorKey: path])
    }
    name = ShortName("file")
    self.pages = pages
    directMap = host.machine.directMap
  }

  deinit { close(descriptor) }

  /// The disk as a block device.
  public var device: BlockDevice {
    BlockDevice(
      name, pages: pages, Unmanaged.passUnretained(self).toOpaque(),
      submitRequest: { context, request in
        let disk = Unmanaged<FileDisk>.fromOpaque(context!).takeUnretainedValue()
        disk.lock.withLock { disk.queue.append(request) }
      })
  }

  /// Carries out one request, and calls its `report_done`. Returns whether it did so, or another thread is doing so;
  /// false means that the disk is idle.
  @discardableResult public func poll() -> Bool {
    let (request, isIdle) = lock.withLock { () -> (BlockRequest?, Bool) in
      guard !queue.isEmpty else { return (nil, running == 0) }
      running += 1
      return (queue.removeFirst(), false)
    }
    guard let request else { return !isIdle }
    request.complete(carryOut(request))
    lock.withLock { running -= 1 }
    return true
  }

  private func carryOut(_ request: BlockRequest) -> DeviceOutcome {
    guard request.fits(pages) else { return .failure }
    for i in 0..<Int(request.pageCount.rawValue) {
      let memory = directMap.pointer(to: request.frame(i))
      let offset = (Int(request.first.rawValue) + i) << Int(Page.shift)
      guard transfer(request.operation, memory, offset) else { return .failure }
    }
    return .success
  }

  /// Transfers one page, again after each interruption by the system.
  private func transfer(
    _ operation: DeviceOperation, _ memory: UnsafeMutableRawPointer, _ offset: Int
  ) -> Bool {
    var done = 0
    while done < Int(Page.size) {
      let (place, left) = (offset + done, Int(Page.size) - done)
      let moved =
        switch operation {
        case .read: pread(descriptor, memory + done, left, place)
        case .write: pwrite(descriptor, memory + done, left, place)
        }
      if moved < 0 && errno == EINTR { continue }
      // Zero: the file ends here.
      guard moved > 0 else { return false }
      done += moved
    }
    return true
  }
}
