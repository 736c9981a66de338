// Requests to block devices: a pool of them, made once, so that a page-out allocates nothing.
//
// A transfer is a request of the pool between `begin` and `end`. Two words of one bit a request say which
// are idle and which were completed; whoever completes one sets its bit and wakes the pool's one queue. There
// is no lock: a device may complete a request in an interrupt handler, in the middle of anything.

import CPlatform
import MemoryPrimitives
import Synchronization

/// A page of a device, by its number.
@frozen public struct DevicePage: Equatable, Comparable, Sendable {
  public var rawValue: UInt64
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A request that was begun and not ended: a number in its pool.
@frozen public struct Transfer: Equatable, Sendable {
  @usableFromInline let index: UInt8
  @inlinable init(index: Int) { self.index = UInt8(truncatingIfNeeded: index) }
}

/// A pool of requests to block devices: a handle.
public struct Transfers {
  struct State: ~Copyable {
    let machine: Machine
    let requests: UnsafeMutablePointer<cp_block_request>
    let count: Int
    /// A bit for each request that nobody has.
    let idle: Atomic<UInt64>
    /// A bit for each that its device is done with and its owner has not ended.
    let done = Atomic<UInt64>(0)
    /// Who waits for an idle one.
    let waiting = Atomic<Int>(0)
    let queue = WaitQueue("a transfer to complete", .interrupt)
  }
  let state: UnsafeMutablePointer<State>

  /// The most requests that a pool may have.
  public static var limit: Int { 64 }

  private static var requestsOffset: Int { (MemoryLayout<State>.size + 63) & ~63 }

  /// Bytes for a pool of `count` requests.
  public static func size(count: Int) -> ByteCount {
    ByteCount(requestsOffset + count * MemoryLayout<cp_block_request>.stride)
  }

  /// A pool of `count` requests, 1 to `limit`, in `memory` of `size(count:)` bytes, aligned to 64.
  public static func create(
    in memory: UnsafeMutableRawPointer, count: Int, machine: Machine
  ) -> Transfers {
    precondition(count > 0 && count <= limit, "a pool of transfers has 1 to 64 requests")
    let requests = (memory + requestsOffset).bindMemory(to: cp_block_request.self, capacity: count)
    for i in 0..<count { (requests + i).initialize(to: cp_block_request()) }
    let state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        machine: machine, requests: requests, count: count, idle: Atomic(UInt64.max >> UInt64(limit - count))
      ))
    return Transfers(state: state)
  }

  // MARK: One transfer

  /// Asks `device` to read to `frames`, or to write from them, as many pages as there are frames (1 to 32)
  /// from `first` on. Nil when the pool has no idle request. No spin lock may be held. Constant, but for
  /// the copy of the frame numbers. The frames must stay where they are until the transfer is done.
  public func begin(
    _ device: BlockDevice, _ operation: cp_block_operation, _ first: DevicePage,
    _ frames: UnsafeBufferPointer<FrameNumber>
  ) -> Transfer? {
    guard let transfer = claim() else { return nil }
    let list = cp_block_frames(request(transfer))
    precondition(frames.count > 0 && frames.count <= Int(CP_BLOCK_PAGES), "a request has 1 to 32 pages")
    for i in 0..<frames.count { list[i] = frames[i].rawValue }
    start(transfer, device, operation, first, PageCount(frames.count))
    return transfer
  }

  /// Whether the device is done with it. Constant.
  public func isDone(_ transfer: Transfer) -> Bool {
    state.pointee.done.load(ordering: .acquiring) & bit(transfer) != 0
  }

  /// Sleeps until the device is done with it. No spin lock may be held.
  public func wait(_ transfer: Transfer) {
    while true {
      let ticket = state.pointee.queue.ticket()
      if isDone(transfer) { return }
      if state.pointee.queue.sleep(ticket, on: state.pointee.machine) { continue }
      precondition(isDone(transfer), "nothing on this machine completes what a device was asked for")
    }
  }

  /// Whether the device failed to do it. Asked when it is done.
  public func hasFailed(_ transfer: Transfer) -> Bool {
    assert(isDone(transfer), "the outcome of a transfer that is not done")
    return request(transfer).pointee.failed
  }

  /// Gives the request back to the pool. It must be done.
  public func end(_ transfer: Transfer) {
    let bit = bit(transfer)
    let before = state.pointee.done.bitwiseAnd(~bit, ordering: .acquiring).oldValue
    precondition(before & bit != 0, "a transfer ended that is not done")
    state.pointee.idle.bitwiseOr(bit, ordering: .sequentiallyConsistent)
    if state.pointee.waiting.load(ordering: .sequentiallyConsistent) != 0 {
      state.pointee.queue.wake(on: state.pointee.machine)
    }
  }

  /// Sleeps until the pool has an idle request, or until any is done. False when neither can happen: then
  /// all are done, and those who began them have to end them. No spin lock may be held.
  public func waitForAny() -> Bool {
    state.pointee.waiting.add(1, ordering: .sequentiallyConsistent)
    defer { state.pointee.waiting.subtract(1, ordering: .sequentiallyConsistent) }
    let ticket = state.pointee.queue.ticket()
    if idleCount > 0 { return true }
    // From the look on until it sleeps, only the ticket tells that a transfer has ended.
    noteClaim(state)
    return state.pointee.queue.sleep(ticket, on: state.pointee.machine) || idleCount > 0
  }

  /// Requests that nobody has at the moment.
  public var idleCount: Int { state.pointee.idle.load(ordering: .sequentiallyConsistent).nonzeroBitCount }

  // MARK: In parts, for swap

  /// An idle request for the caller.
  func claim() -> Transfer? {
    var idle = state.pointee.idle.load(ordering: .relaxed)
    while idle != 0 {
      let index = idle.trailingZeroBitCount
      let taken = state.pointee.idle.compareExchange(
        expected: idle, desired: idle & (idle &- 1), ordering: .acquiringAndReleasing)
      if taken.exchanged {
        let transfer = Transfer(index: index)
        noteClaim(request(transfer))
        return transfer
      }
      idle = taken.original
    }
    return nil
  }

  /// Submits a claimed request, or again one that is done; its frames are filled in.
  func start(
    _ transfer: Transfer, _ device: BlockDevice, _ operation: cp_block_operation, _ first: DevicePage,
    _ count: PageCount
  ) {
    state.pointee.done.bitwiseAnd(~bit(transfer), ordering: .acquiring)
    let request = request(transfer)
    request.pointee.next = nil
    request.pointee.first = first.rawValue
    request.pointee.count = UInt32(count.rawValue)
    request.pointee.operation = operation
    request.pointee.failed = false
    request.pointee.context = UnsafeMutableRawPointer(state)
    request.pointee.done = { context, request in
      let state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
      let bit: UInt64 = 1 << UInt64(request - state.pointee.requests)
      // From the bit on the request is its owner's, who may end it and begin another.
      state.pointee.done.bitwiseOr(bit, ordering: .acquiringAndReleasing)
      state.pointee.queue.wake(on: state.pointee.machine)
    }
    device.submit(request)
  }

  @inline(__always) func request(_ transfer: Transfer) -> UnsafeMutablePointer<cp_block_request> {
    state.pointee.requests + Int(transfer.index)
  }
  @inline(__always) private func bit(_ transfer: Transfer) -> UInt64 { 1 &<< UInt64(transfer.index) }
}
