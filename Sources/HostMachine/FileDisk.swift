// A block device over a file: the swap device of a host process.
//
// A request is queued by `submit` and carried out by `poll`, which tells its owner: as a disk does, and never
// before `submit` has returned. What the file can't do, because it is too short or the system says so, comes
// back as a failed request.

import CPlatform
import Foundation
import MemoryPrimitives

/// A block device over a file. It must outlive all that use it.
public final class FileDisk: @unchecked Sendable {
  private let descriptor: Int32
  private let name: Name
  private let pages: PageCount
  private let directMap: DirectMap
  private let lock = NSLock()
  private var queue: [UnsafeMutablePointer<cp_block_request>] = []
  private var running = 0

  /// Opens the file at `path`, or makes it, as a device of `pages` pages whatever its length: it grows as it
  /// is written. `host` has the memory that requests name. Throws when it can't be opened.
  public init(path: String, pages: PageCount, on host: SimulatedMachine) throws {
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO, userInfo: [NSFilePathErrorKey: path])
    }
    name = Name("file")
    self.pages = pages
    directMap = host.machine.directMap
  }

  deinit { close(descriptor) }

  /// The disk as those see it who use it.
  public var device: BlockDevice {
    BlockDevice(
      name, pages: pages, Unmanaged.passUnretained(self).toOpaque(),
      submit: { context, request in
        let disk = Unmanaged<FileDisk>.fromOpaque(context!).takeUnretainedValue()
        disk.lock.withLock { disk.queue.append(request) }
      })
  }

  /// Carries out one request, and calls its `done`. Answers whether it did, or another thread is about to:
  /// false means that the disk is idle.
  @discardableResult public func poll() -> Bool {
    let (request, isIdle) = lock.withLock { () -> (UnsafeMutablePointer<cp_block_request>?, Bool) in
      guard !queue.isEmpty else { return (nil, running == 0) }
      running += 1
      return (queue.removeFirst(), false)
    }
    guard let request else { return !isIdle }
    request.pointee.failed = !carryOut(request)
    request.pointee.done?(request.pointee.context, request)
    lock.withLock { running -= 1 }
    return true
  }

  private func carryOut(_ request: UnsafeMutablePointer<cp_block_request>) -> Bool {
    let (first, count) = (request.pointee.first, request.pointee.count)
    guard
      count > 0, count <= UInt32(CP_BLOCK_PAGES), first <= pages.rawValue, pages.rawValue - first >= count
    else { return false }
    let frames = cp_block_frames(request)
    for i in 0..<Int(count) {
      let memory = directMap.pointer(to: FrameNumber(frames[i]))
      let offset = Int(first + UInt64(i)) << Int(Page.shift)
      guard transfer(request.pointee.operation, memory, offset) else { return false }
    }
    return true
  }

  /// One page, however often the system interrupts it.
  private func transfer(
    _ operation: cp_block_operation, _ memory: UnsafeMutableRawPointer, _ offset: Int
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
