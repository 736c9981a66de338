// Waiting for memory: for a number of frames at a priority, first come first served.
//
// A waiter is a few words on the sleeper's stack, linked into the queue of its priority under the domain lock. While a
// queue is not empty, later requests of that priority are refused, or join it, so that no waiter starves. Other
// priorities are not held up. Requests for runs do not join a queue. A free wakes all waiters when there are any, and
// the first of each queue tries again. A request that joins a queue sends the urgent low-memory notification, so that
// the page daemon frees pages.
//
// When the page daemon can free nothing more, a waiter at the head of a queue keeps all others from the few free frames,
// and is not served itself. So the page daemon parks the waiters at the head that can't be served
// (`parkUnservableWaiters`). They hold up no request, and no page is freed for them. They keep sleeping, and are served
// as soon as enough frames are free. From time to time the page daemon queues them again (`unparkWaiters`), because a
// page that it could not free then may be free now.

import MemoryPrimitives

/// A thread that waits for frames.
struct Waiter {
  /// The queue of the parked waiters; before it there is one for each priority that waits.
  static var parked: Int { 2 }
  /// Waiters that one call moves from queue to queue at most.
  static var movedAtOnce: Int { 64 }

  let count: UInt64
  let priority: AllocationPriority
  /// The queue that it is in.
  var queue: Int
  var next = WaiterLink.none
  var previous = WaiterLink.none
}

/// A request for a block that waits for memory.
struct WaitingRequest {
  let order: BlockOrder
  let role: FrameRole
  let priority: AllocationPriority
  let owner: FrameOwner
}

/// A waiter, or none.
struct WaiterLink: ListLink {
  var pointer: UnsafeMutablePointer<Waiter>?
  static var none: Self { Self(pointer: nil) }
  var waiter: UnsafeMutablePointer<Waiter> { pointer.unsafelyUnwrapped }
}

/// The links of a waiter lie in it.
struct WaiterLinks: ListLinks {
  func next(of member: WaiterLink) -> WaiterLink { member.waiter.pointee.next }
  func previous(of member: WaiterLink) -> WaiterLink { member.waiter.pointee.previous }
  func setNext(of member: WaiterLink, to link: WaiterLink) { member.waiter.pointee.next = link }
  func setPrevious(of member: WaiterLink, to link: WaiterLink) { member.waiter.pointee.previous = link }
}

extension FrameDomain {
  /// Whether a waiter is in any queue.
  @inline(always) var hasWaiters: Bool {
    !(waiters[0].isEmpty && waiters[1].isEmpty && waiters[Waiter.parked].isEmpty)
  }

  /// Whether a request of `priority` may try: no waiter is queued before it.
  @inline(always) func isNext(_ waiter: WaiterLink, _ priority: AllocationPriority) -> Bool {
    if priority == .interrupt || waiters[Int(priority.rawValue)].first == waiter { return true }
    return waiter != .none && waiter.waiter.pointee.queue == Waiter.parked
  }

  mutating func join(_ waiter: WaiterLink, _ queue: Int) {
    waiter.waiter.pointee.queue = queue
    waitedFor &+= waiter.waiter.pointee.count
    waiters[queue].append(waiter, in: WaiterLinks())
  }

  mutating func leave(_ waiter: WaiterLink) {
    waitedFor &-= waiter.waiter.pointee.count
    waiters[waiter.waiter.pointee.queue].remove(waiter, in: WaiterLinks())
  }

  /// Frames that must be free before the first waiter of `queue` is served; 0 when the queue is empty.
  fileprivate func awaited(_ queue: Int) -> UInt64 {
    guard let first = waiters[queue].first.pointer else { return 0 }
    return first.pointee.count + reserves[Int(first.pointee.priority.rawValue)]
  }

  /// Parks the first waiters of each queue that can't be served. Returns how many.
  fileprivate mutating func parkUnservable() -> Int {
    var moved = 0
    for queue in 0..<Waiter.parked {
      while moved < Waiter.movedAtOnce, let first = waiters[queue].first.pointer,
        !admits(first.pointee.count, first.pointee.priority)
      {
        leave(WaiterLink(pointer: first))
        join(WaiterLink(pointer: first), Waiter.parked)
        moved += 1
      }
    }
    return moved
  }

  fileprivate mutating func unpark() {
    var moved = 0
    while moved < Waiter.movedAtOnce, let first = waiters[Waiter.parked].first.pointer {
      leave(WaiterLink(pointer: first))
      join(WaiterLink(pointer: first), Int(first.pointee.priority.rawValue))
      moved += 1
    }
  }
}

extension FrameAllocator {
  /// Frames that must be free for the first waiter of each queue to be served: none where no thread waits. Constant.
  package var awaited: PageCount {
    domain.withLock { domain in
      var most: UInt64 = 0
      for queue in 0..<Waiter.parked { most = max(most, domain.awaited(queue)) }
      return PageCount(most)
    }
  }

  /// Whether any waiter is parked.
  package var hasParkedWaiters: Bool { domain.withLock { !$0.waiters[Waiter.parked].isEmpty } }

  /// Parks the waiters at the head of each queue that can't be served: for the page daemon, when it can free nothing
  /// more. A step for each of them, 64 at most.
  package func parkUnservableWaiters() {
    let moved = domain.withLock { $0.parkUnservable() }
    // The waiters behind them are first now.
    if moved > 0 { state.pointee.waiting.wake(on: machine) }
  }

  /// Queues the parked waiters again, behind all others. A step for each of them, 64 at most.
  package func unparkWaiters() { domain.withLock { $0.unpark() } }

  @inline(never) func wait(for request: WaitingRequest, until deadline: Tick) -> UInt32? {
    let priority = request.priority
    let queue = Int(priority.rawValue)
    let count = request.order.frames.rawValue
    var waiter = Waiter(count: count, priority: priority, queue: queue)
    return withUnsafeMutablePointer(to: &waiter) { pointer in
      let me = WaiterLink(pointer: pointer)
      let isPossible = domain.withLock { domain in
        guard count + domain.reserves[queue] <= total.rawValue else { return false }
        domain.join(me, queue)
        domain.events.pointee.waits.add()
        return true
      }
      guard isPossible else { return nil }
      var frame: UInt32?
      while true {
        // The ticket is drawn under the lock that guards the count, so no wake is lost.
        let (ticket, mayTry, isParked) = domain.withLock { domain in
          (
            state.pointee.waiting.ticket(), domain.isNext(me, priority) && domain.admits(count, priority),
            pointer.pointee.queue == Waiter.parked
          )
        }
        if mayTry {
          frame = allocateBlock(
            request.order, request.role, priority, for: request.owner, waiter: me)
          // Frames enough are free, but no block: the request does not wait for that.
          if frame != nil || domain.withLock({ $0.admits(count, priority) }) { break }
          continue
        }
        if !isParked { notifyLowMemory(.awaited) }
        if !state.pointee.waiting.sleep(ticket, until: deadline, on: machine) { break }
      }
      let mustWake = domain.withLock { domain in
        domain.leave(me)
        return domain.hasWaiters
      }
      if mustWake { state.pointee.waiting.wake(on: machine) }
      return frame
    }
  }
}
