// Writing pages to their slots and reading them back: the data read is compared with the checksum of the data written.

import BlockDevices
import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// A write that was begun, to be finished once.
package struct SwapWrite: ~Copyable {
  let transfer: Transfer
  /// The slots of the pages, in their order.
  package let run: SlotRun
}

/// A read that was begun, to be finished once.
package struct SwapRead: ~Copyable {
  let transfer: Transfer
  /// The slot that is read.
  package let slot: SwapSlot
}

/// The result of a write.
package struct SwapWritten: Equatable, Sendable {
  /// The slots of the write.
  package let run: SlotRun
  /// A bit for each page of the run that failed.
  let failures: UInt32

  /// The slot that has page `index` of the write; nil when it failed, and its slot is retired.
  package func slot(_ index: Int) -> SwapSlot? {
    precondition(index >= 0 && index < Int(run.count.rawValue), "a page outside of the write")
    return failures >> UInt32(index) & 1 != 0 ? nil : run.first + PageCount(index)
  }
  /// Pages that failed.
  package var failedCount: PageCount { PageCount(failures.nonzeroBitCount) }
}

extension Swap {
  // MARK: Writing

  /// Begins to write `frames` to the slots of `run`, which the caller has reserved and which are as many, in one
  /// request. Computes the checksums. Nil, and nothing done, when the pool has no idle request: then the
  /// caller finishes its own writes, or waits by `Transfers.waitForAny`. The frames must not be freed
  /// before the write is finished; a store to one before that makes only its slot useless.
  /// No spin lock may be held.
  package func beginWrite(_ frames: UnsafeBufferPointer<FrameNumber>, to run: SlotRun) -> SwapWrite? {
    precondition(
      frames.count > 0 && run.count == PageCount(frames.count) && run.count <= Self.clusterLimit,
      "a write to swap has as many slots as frames, 1 to 32")
    let (attachment, transfers) = (attachment, state.transfers)
    guard let transfer = transfers.allocate() else { return nil }
    let request = transfers.request(transfer)
    for i in 0..<frames.count {
      request.setFrame(i, frames[i])
      recordChecksum(run.first + PageCount(i), frames[i], attachment)
    }
    transfers.start(
      transfer, on: attachment.device, .write, DevicePage(UInt64(run.first.rawValue)), run.count)
    return SwapWrite(transfer: transfer, run: run)
  }

  /// Whether `finishWrite` would return without sleeping for the request.
  package func isDone(_ write: borrowing SwapWrite) -> Bool { state.transfers.isDone(write.transfer) }

  /// Sleeps until the write is done, and returns which pages were written. When a cluster failed, each page is
  /// written again by itself; the slots of pages that fail alone are retired. The others stay reserved by the caller.
  /// Allocates nothing. No spin lock may be held.
  package func finishWrite(_ write: consuming SwapWrite) -> SwapWritten {
    let transfers = state.transfers
    let run = write.run
    let count = run.count.rawValue
    transfers.wait(write.transfer)
    var failures: UInt32 = 0
    var requests: UInt64 = transfers.hasFailed(write.transfer) ? 1 : 0
    if requests != 0 { failures = count == 1 ? 1 : writeSingly(write, &requests) }
    transfers.end(write.transfer)
    state.core.withLock {
      $0.writes += count - UInt64(failures.nonzeroBitCount)
      $0.failures += requests
      if count > 1 { $0.clusters += 1 }
    }
    if failures != 0 {
      for i in 0..<count where failures >> UInt32(i) & 1 != 0 { retire(run.first + PageCount(i)) }
    }
    return SwapWritten(run: run, failures: failures)
  }

  /// Writes each page of a cluster by itself, with the cluster's request. Returns a bit for each that failed.
  @inline(never) private func writeSingly(_ write: borrowing SwapWrite, _ failedRequests: inout UInt64)
    -> UInt32
  {
    let (attachment, transfers) = (attachment, state.transfers)
    let request = transfers.request(write.transfer)
    var failures: UInt32 = 0
    for i in 0..<Int(write.run.count.rawValue) {
      let slot = write.run.first + PageCount(i)
      let frame = request.frame(i)
      request.setFrame(0, frame)
      recordChecksum(slot, frame, attachment)
      transfers.start(
        write.transfer, on: attachment.device, .write, DevicePage(UInt64(slot.rawValue)), .one)
      transfers.wait(write.transfer)
      if transfers.hasFailed(write.transfer) {
        failures |= 1 << UInt32(i)
        failedRequests += 1
      }
    }
    return failures
  }

  @inline(__always)
  private func recordChecksum(_ slot: SwapSlot, _ frame: FrameNumber, _ attachment: Attachment) {
    attachment.checksums[Int(slot.rawValue)] =
      Checksum.of(state.machine.directMap.pointer(to: frame))
  }

  // MARK: Reading

  /// Begins to read the page in `slot`, which the caller owns, into `frame`. Nil, and nothing done, when the
  /// pool has no idle request. No spin lock may be held.
  package func beginRead(_ slot: SwapSlot, into frame: FrameNumber) -> SwapRead? {
    let (device, transfers) = (attachment.device, state.transfers)
    guard let transfer = transfers.allocate() else { return nil }
    transfers.request(transfer).setFrame(0, frame)
    transfers.start(transfer, on: device, .read, DevicePage(UInt64(slot.rawValue)), .one)
    return SwapRead(transfer: transfer, slot: slot)
  }

  /// Whether `finishRead` would return without sleeping.
  package func isDone(_ read: borrowing SwapRead) -> Bool { state.transfers.isDone(read.transfer) }

  /// Sleeps until the page is in its frame. Throws `inputOutput` when the device failed, `corrupt` when the data is
  /// not what was written. The frame's content is then undefined, and the caller still owns the slot.
  /// No spin lock may be held.
  package func finishRead(_ read: consuming SwapRead) throws(PagingError) {
    let transfers = state.transfers
    let slot = read.slot
    transfers.wait(read.transfer)
    let hasFailed = transfers.hasFailed(read.transfer)
    let frame = transfers.request(read.transfer).frame(0)
    transfers.end(read.transfer)
    if hasFailed {
      state.core.withLock { $0.failures += 1 }
      throw .inputOutput
    }
    let isSame =
      attachment.checksums[Int(slot.rawValue)]
      == Checksum.of(state.machine.directMap.pointer(to: frame))
    state.core.withLock {
      $0.reads += 1
      if !isSame { $0.corrupt += 1 }
    }
    if !isSame { throw .corrupt }
  }

  /// Reads the page in `slot`, which the caller owns, into `frame`: begins, waiting for a request
  /// if need be, and finishes. The caller has no transfer of its own that other threads wait for.
  package func read(_ slot: SwapSlot, into frame: FrameNumber) throws(PagingError) {
    while true {
      if let read = beginRead(slot, into: frame) { return try finishRead(read) }
      state.transfers.waitForIdle()
    }
  }
}
