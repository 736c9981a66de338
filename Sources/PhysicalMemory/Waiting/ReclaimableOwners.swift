// Reclaiming: the owners of frames give back what they keep free, when a request would be refused otherwise.
//
// An owner above, such as kmem, keeps memory free for its next requests. It registers a callback. A request that finds
// no memory asks all owners, one step further each time, and tries again after each step that freed frames. So do the
// page daemon before it writes a page, and a contiguous request before it is refused.
//
// A callback allocates nothing, neither frames nor an object of kmem, and calls no function of this layer that asks
// owners; assertions check both (`asking`). It is called with no lock of this
// layer held. A caller that holds a spin lock, or has interrupts off, asks for the first two steps only: those take spin
// locks of higher rank, for a bounded time, and ask no other processor. A caller that holds a lock of an owner's rank or
// above asks for nothing.

import MemoryPrimitives
import Synchronization

/// How far an owner goes to free memory. Each step comes after those before it.
public enum ReclaimStep: UInt8, Comparable, Sendable {
  /// Memory that the owner has not needed for a while.
  case surplus
  /// All that is free, and takes no other processor to free.
  case free
  /// And memory that this processor keeps for itself.
  case thisProcessor
  /// And memory that any processor keeps for itself. Asks every processor.
  case allProcessors

  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// An owner's callback: frees what it keeps, up to a step, and answers how many frames became free.
public typealias ReclaimCallback =
  @convention(c) (_ context: UnsafeMutableRawPointer?, _ step: UInt8) -> UInt64

/// The owners that can be asked.
struct ReclaimableOwners: ~Copyable {
  private struct Owner {
    var context: UnsafeMutableRawPointer?
    var reclaim: ReclaimCallback?
  }
  static var limit: Int { 8 }
  /// Written once, before `count` says so.
  private var owners: InlineArray<8, Owner> = .init(repeating: Owner())
  let count = Atomic<Int>(0)
  /// Requests that asked owners, and frames that became free by that.
  let requests = Atomic<UInt64>(0)
  let frames = Atomic<UInt64>(0)
  /// Threads that ask owners.
  let asking = ReentryCheck()

  init() {}

  /// Adds an owner. Answers false when there are as many as fit. One caller at a time.
  mutating func add(_ context: UnsafeMutableRawPointer?, reclaim: @escaping ReclaimCallback) -> Bool {
    let index = count.load(ordering: .relaxed)
    guard index < Self.limit else { return false }
    owners[index] = Owner(context: context, reclaim: reclaim)
    count.store(index + 1, ordering: .releasing)
    return true
  }

  /// Calls an owner, below `count`.
  func ask(_ index: Int, _ step: ReclaimStep) -> UInt64 {
    owners[index].reclaim.unsafelyUnwrapped(owners[index].context, step.rawValue)
  }
}

extension FrameAllocator {
  /// Registers an owner that can free memory, for good. Answers false when there are eight already. Not for two threads at
  /// once.
  public func addOwner(_ context: UnsafeMutableRawPointer?, reclaim: @escaping ReclaimCallback) -> Bool {
    state.pointee.owners.add(context, reclaim: reclaim)
  }

  /// Asks all owners for one step, and answers the frames that became free. Costs as much as the owners do.
  @discardableResult package func reclaimFromOwners(_ step: ReclaimStep) -> PageCount {
    assert(mayAllocate, "an owner of memory asks others while it frees memory")
    assert(state.pointee.owners.asking.enter())
    defer { assert(state.pointee.owners.asking.leave()) }
    var frames: UInt64 = 0
    for index in 0..<state.pointee.owners.count.load(ordering: .acquiring) {
      frames += state.pointee.owners.ask(index, step)
    }
    state.pointee.owners.requests.add(1, ordering: .relaxed)
    state.pointee.owners.frames.add(frames, ordering: .relaxed)
    return PageCount(frames)
  }

  /// Whether this thread is no owner that was asked for memory. Always true in an interrupt handler. For assertions.
  package var mayAllocate: Bool { !state.pointee.owners.asking.isInside }

  /// Tries again what found no memory, after each step of owners that freed some. Nil when none helped.
  @inline(__always) package func retryAfterReclaim<R>(_ attempt: () -> R?) -> R? {
    var steps = ReclaimSteps(self)
    while steps.reclaimMore() != nil {
      if let result = attempt() { return result }
    }
    return nil
  }
}

/// The steps of owners that one request has asked for so far.
package struct ReclaimSteps {
  private let physical: FrameAllocator
  private var next: UInt8
  private let end: UInt8

  /// No step so far. The caller's locks and interrupts decide how far it may go; they must not change before the last step.
  package init(_ physical: FrameAllocator) {
    self.physical = physical
    next = 0
    if holdsSpinLock(from: .kmemCaches) {
      end = 0
    } else if mayAskProcessors() {
      end = ReclaimStep.allProcessors.rawValue + 1
    } else {
      end = ReclaimStep.free.rawValue + 1
    }
  }

  /// Asks owners for one step after the other until one frees frames, and answers how many; nil when all are asked.
  package mutating func reclaimMore(upTo last: ReclaimStep = .allProcessors) -> PageCount? {
    while next < end, let step = ReclaimStep(rawValue: next), step <= last {
      next += 1
      let frames = physical.reclaimFromOwners(step)
      if frames > .zero { return frames }
    }
    return nil
  }
}
