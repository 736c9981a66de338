// Requests to block devices: a pool of them, allocated once, so that page-out allocates nothing.
//
// A transfer is a request of the pool between `begin` and `end`. Two words of one bit a request say which
// are idle and which were completed. The device that completes one sets its bit and wakes the pool's one queue. There
// is no lock, because a device may complete a request in an interrupt handler, at any instruction.

import CPlatform
import MemoryPrimitives
import Synchronization

/// A request that was begun: a number in its pool, which its owner ends once. One that is dropped is a bug, because the
/// device may still use its frames.
@frozen @usableFromInline package struct Transfer: ~Copyable, Sendable {
  @usableFromInline let index: UInt8
  @inlinable init(index: Int) { self.index = UInt8(truncatingIfNeeded: index) }

  /// Ends the token without its check: `Transfers.end` returns the request to the pool.
  @inline(__always) fileprivate consuming func release() { discard self }

  /// A transfer was dropped that was not ended.
  deinit { cp_trap() }
}

/// A pool of requests to block devices: a handle.
package struct Transfers {
  struct State: ~Copyable {
    let machine: Machine
    let requests: BlockRequest
    let count: Int
    /// A bit for each request that has no owner.
    let idle: Atomic<UInt64>
    /// A bit for each request that its device has completed and its owner has not ended.
    let done = Atomic<UInt64>(0)
    /// Threads that wait for an idle one.
    let waiting = Atomic<Int>(0)
    let queue = WaitQueue("a transfer to complete", .interrupt)
  }
  let storage: UnsafeMutablePointer<State>

  private init(_ storage: UnsafeMutablePointer<State>) { self.storage = storage }

  /// The state, in place.
  @inline(__always) var state: State { unsafeAddress { UnsafePointer(storage) } }

  /// The most requests that a pool may have.
  package static var limit: Int { 64 }

  private static func layout(count: Int) -> (state: Int, requests: Int, size: ByteCount) {
    var layout = StorageLayout()
    let state = layout.add(State.self)
    let requests = layout.add(cp_block_request.self, count: count)
    return (state, requests, layout.size)
  }

  /// Bytes for a pool of `count` requests.
  package static func size(count: Int) -> ByteCount { layout(count: count).size }

  /// Creates a pool of `count` requests, 1 to `limit`, in `memory` of `size(count:)` bytes, aligned to 64.
  package static func create(
    in memory: UnsafeMutableRawPointer, count: Int, machine: Machine
  ) -> Transfers {
    precondition(count > 0 && count <= limit, "a pool of transfers has 1 to 64 requests")
    let layout = layout(count: count)
    let requests = memory.part(cp_block_request.self, at: layout.requests, count: count)
    for i in 0..<count { (requests + i).initialize(to: cp_block_request()) }
    let storage = memory.part(State.self, at: layout.state)
    storage.initialize(
      to: State(
        machine: machine, requests: requests, count: count, idle: Atomic(UInt64.max >> UInt64(limit - count))
      ))
    return Transfers(storage)
  }

  // MARK: One transfer

  /// Begins to read to `frames`, or to write from them, as many pages of `device` as there are frames (1 to 32)
  /// from `first` on. Nil when the pool has no idle request. No spin lock may be held. Constant, except
  /// the copy of the frame numbers. The frames must not be freed before the transfer is done.
  package func begin(
    _ device: BlockDevice, _ operation: DeviceOperation, _ first: DevicePage,
    _ frames: UnsafeBufferPointer<FrameNumber>
  ) -> Transfer? {
    guard let transfer = allocate() else { return nil }
    precondition(
      frames.count > 0 && PageCount(frames.count) <= BlockRequest.pageLimit, "a request has 1 to 32 pages")
    let request = request(transfer)
    for i in 0..<frames.count { request.setFrame(i, frames[i]) }
    start(transfer, on: device, operation, first, PageCount(frames.count))
    return transfer
  }

  /// Whether the device has completed the transfer. Constant.
  package func isDone(_ transfer: borrowing Transfer) -> Bool {
    state.done.load(ordering: .acquiring) & bit(transfer) != 0
  }

  /// Sleeps until the device has completed the transfer. No spin lock may be held.
  package func wait(_ transfer: borrowing Transfer) {
    while true {
      let ticket = state.queue.ticket()
      if isDone(transfer) { return }
      if state.queue.sleep(ticket, on: state.machine) { continue }
      precondition(isDone(transfer), "nothing on this machine completes the requests of a device")
    }
  }

  /// Whether the device failed. The transfer must be done.
  package func hasFailed(_ transfer: borrowing Transfer) -> Bool {
    assert(isDone(transfer), "the outcome of a transfer that is not done")
    return request(transfer).outcome == .failure
  }

  /// Returns the request to the pool. The transfer must be done.
  package func end(_ transfer: consuming Transfer) {
    let bit = bit(transfer)
    transfer.release()
    let before = state.done.bitwiseAnd(~bit, ordering: .acquiring).oldValue
    precondition(before & bit != 0, "a transfer ended that is not done")
    state.idle.bitwiseOr(bit, ordering: .sequentiallyConsistent)
    if state.waiting.load(ordering: .sequentiallyConsistent) != 0 {
      state.queue.wake(on: state.machine)
    }
  }

  /// Sleeps until the pool has an idle request, or until any is done. Returns false when neither can happen: then
  /// all are done, and their owners must end them. No spin lock may be held.
  package func waitForAny() -> Bool {
    state.waiting.add(1, ordering: .sequentiallyConsistent)
    defer { state.waiting.subtract(1, ordering: .sequentiallyConsistent) }
    let ticket = state.queue.ticket()
    if idleCount > 0 { return true }
    // Between this check and the sleep only the ticket reports that a transfer has ended.
    reportClaim(storage)
    return state.queue.sleep(ticket, on: state.machine) || idleCount > 0
  }

  /// Sleeps as `waitForAny`, for a thread that has no transfer of its own.
  package func waitForIdle() {
    let canComplete = waitForAny()
    precondition(canComplete, "all transfers are held by threads that never end one")
  }

  /// Requests that have no owner at the moment.
  package var idleCount: Int { state.idle.load(ordering: .sequentiallyConsistent).nonzeroBitCount }

  // MARK: In parts, for a client that begins a request anew without giving it back

  /// Allocates an idle request; nil when there is none.
  package func allocate() -> Transfer? {
    var idle = state.idle.load(ordering: .relaxed)
    while idle != 0 {
      let index = idle.trailingZeroBitCount
      let taken = state.idle.compareExchange(
        expected: idle, desired: idle & (idle &- 1), ordering: .acquiringAndReleasing)
      if taken.exchanged {
        let transfer = Transfer(index: index)
        reportClaim(request(transfer))
        return transfer
      }
      idle = taken.original
    }
    return nil
  }

  /// Submits an allocated request, or again one that is done; its frames are filled in.
  package func start(
    _ transfer: borrowing Transfer, on device: BlockDevice, _ operation: DeviceOperation,
    _ first: DevicePage,
    _ count: PageCount
  ) {
    state.done.bitwiseAnd(~bit(transfer), ordering: .acquiring)
    let request = request(transfer)
    request.prepare(operation, first, count, context: UnsafeMutableRawPointer(storage)) { context, request in
      let transfers = Transfers(context.unsafelyUnwrapped.assumingMemoryBound(to: State.self))
      let bit: UInt64 = 1 << UInt64(request - transfers.state.requests)
      // Once the bit is set, the owner may end the request and begin another.
      transfers.state.done.bitwiseOr(bit, ordering: .acquiringAndReleasing)
      transfers.state.queue.wake(on: transfers.state.machine)
    }
    device.submit(request)
  }

  /// The request of a transfer, whose owner fills in its frames before `start`.
  package func request(_ transfer: borrowing Transfer) -> BlockRequest {
    state.requests + Int(transfer.index)
  }
  @inline(__always) private func bit(_ transfer: borrowing Transfer) -> UInt64 {
    1 &<< UInt64(transfer.index)
  }
}
