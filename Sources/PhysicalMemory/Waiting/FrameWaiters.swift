// Waiting for memory: for a number of frames at a priority, first come first served.
//
// A waiter is a few words on the sleeper's stack, linked into the queue of its priority under the domain lock. While a
// queue is not empty, later requests of that priority are refused, or join it, so that no waiter starves. Other
// priorities are not held up. Requests for runs do not join a queue; a layer that needs a run may wait in it for as many
// frames (`waitForFrames`). A free wakes all waiters when there are any, and the first of each queue tries again. A
// request that joins a queue sends the urgent low-memory notification, so that the page daemon frees pages.
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

/// A request for a block that may wait for memory.
package struct WaitingRequest {
  let order: BlockOrder
  /// Frames that must be free.
  let count: PageCount
  let role: FrameRole
  let priority: AllocationPriority
  let owner: FrameOwner
  /// Whether a block is allocated, or only waited for.
  fileprivate let takesFrames: Bool

  /// Makes a request; `role`, `priority` and `owner` as of `FrameAllocator.allocate`.
  package init(order: BlockOrder, role: FrameRole, priority: AllocationPriority, owner: FrameOwner) {
    (self.order, self.role, self.priority, self.owner) = (order, role, priority, owner)
    count = order.frames
    takesFrames = true
  }

  /// A wait until `count` frames are free, which takes none.
  fileprivate init(count: PageCount, priority: AllocationPriority) {
    order = BlockOrder(0)
    self.count = count
    (role, self.priority, owner) = (.free, priority, .none)
    takesFrames = false
  }
}

/// How a wait for free frames ended.
package enum FramesWait {
  /// The frames are free at once, or after a sleep. Another thread may take them first.
  case ready, slept
  /// The deadline has passed, memory has not so many frames, no thread can free any, or the caller was served otherwise.
  case ended
}

/// How a wait for a block ended.
enum WaitOutcome {
  case frame(FrameNumber)
  /// Frames enough are free, but no block is. `hasSlept` says whether that may have changed during the wait.
  case isFragmented(hasSlept: Bool)
  /// The deadline has passed, memory has not so many frames, no thread can free any, or the caller was served otherwise.
  case ended
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

  /// Wakes the waiters, each to look whether it is served: for a layer that can serve one by something else than frames.
  package func wakeWaiters() {
    if domain.withLock({ $0.hasWaiters }) { state.pointee.waiting.wake(on: machine) }
  }

  /// Waits in the queue of `priority` until `count` frames are free for it, for a caller that allocates them as a run.
  package func waitForFrames(
    _ count: PageCount, priority: AllocationPriority, until deadline: Tick, unless isServed: () -> Bool
  ) -> FramesWait {
    let request = WaitingRequest(count: count, priority: priority)
    return switch wait(for: request, until: deadline, unless: isServed) {
    case .isFragmented(let hasSlept): hasSlept ? .slept : .ready
    case .frame, .ended: .ended
    }
  }

  /// Waits in the queue of the request's priority until it is served, `deadline` passes, or a wake finds that the caller
  /// `isServed` otherwise.
  @inline(never) func wait(
    for request: WaitingRequest, until deadline: Tick, unless isServed: () -> Bool
  ) -> WaitOutcome {
    let priority = request.priority
    let queue = Int(priority.rawValue)
    let count = request.count.rawValue
    var waiter = Waiter(count: count, priority: priority, queue: queue)
    return withUnsafeMutablePointer(to: &waiter) { pointer in
      let me = WaiterLink(pointer: pointer)
      let isPossible = domain.withLock { domain in
        guard count + domain.reserves[queue] <= total.rawValue else { return false }
        domain.join(me, queue)
        domain.events.pointee.waits.add()
        return true
      }
      guard isPossible else { return .ended }
      var outcome = WaitOutcome.ended
      var hasSlept = false
      while true {
        // The ticket is drawn under the lock that guards the count, so no wake is lost.
        let (ticket, mayTry, isParked) = domain.withLock { domain in
          (
            state.pointee.waiting.ticket(), domain.isNext(me, priority) && domain.admits(count, priority),
            pointer.pointee.queue == Waiter.parked
          )
        }
        if isServed() { break }
        if mayTry {
          if request.takesFrames,
            let frame = allocateBlock(
              request.order, request.role, priority, for: request.owner, waiter: me)
          {
            outcome = .frame(FrameNumber(frame))
            break
          }
          if domain.withLock({ $0.admits(count, priority) }) {
            outcome = .isFragmented(hasSlept: hasSlept)
            break
          }
          continue
        }
        if !isParked { notifyLowMemory(.awaited) }
        if reclaimPages(until: count + domain.withLock { $0.reserves[queue] }) { continue }
        if !state.pointee.waiting.sleep(ticket, until: deadline, on: machine) {
          // The deadline has passed, or no other thread could free frames. Owners may keep some that were freed to them
          // during the sleep.
          var owners = ReclaimSteps(self)
          guard machine.now < deadline, owners.reclaimMore() != nil else { break }
        }
        hasSlept = true
      }
      let mustWake = domain.withLock { domain in
        domain.leave(me)
        return domain.hasWaiters
      }
      if mustWake { state.pointee.waiting.wake(on: machine) }
      return outcome
    }
  }
}
