// Waiting: a request that may wait sleeps until an object or a frame is free.
//
// A waiter is a few words on the sleeper's stack, in a list of its cache, those of higher priority first. It waits in the
// queue of physical memory too, by the frames of its slab, so that the page daemon reclaims pages for it. Either may serve
// it: an object that another caller frees goes to the first waiter of its cache, and a slab that one waiter makes serves
// those before it first. While a cache has waiters, it has no magazines, so that each free reaches its slab.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// A thread that waits for an object, or below the limit of its type.
struct KmemWaiter {
  let request: AllocationRequest
  /// Bytes that its type is charged.
  var charge: UInt64 = 0
  /// The object that it got from another processor.
  var object: UnsafeMutableRawPointer?
  /// The end of a request below the limit of its type; nil while it waits.
  var answer: ChargeAnswer?
  var next: UnsafeMutablePointer<KmemWaiter>?
}

/// The end of a wait below the limit of a type.
enum ChargeAnswer { case charged, refused }

/// The waiters of a cache or a type: by priority, then in the order in which they came. Plain data under its lock.
struct KmemWaiters {
  private(set) var first: UnsafeMutablePointer<KmemWaiter>?

  mutating func join(_ waiter: UnsafeMutablePointer<KmemWaiter>) {
    var before: UnsafeMutablePointer<KmemWaiter>?
    var next = first
    while let other = next, other.pointee.request.priority >= waiter.pointee.request.priority {
      before = other
      next = other.pointee.next
    }
    waiter.pointee.next = next
    if let before { before.pointee.next = waiter } else { first = waiter }
  }

  /// Removes a waiter; does nothing when it was served, and so removed.
  mutating func leave(_ waiter: UnsafeMutablePointer<KmemWaiter>) {
    var before: UnsafeMutablePointer<KmemWaiter>?
    var next = first
    while let other = next, other != waiter {
      before = other
      next = other.pointee.next
    }
    guard next != nil else { return }
    if let before { before.pointee.next = waiter.pointee.next } else { first = waiter.pointee.next }
  }

  mutating func removeFirst() { first = first?.pointee.next }
}

extension AllocationPriority {
  fileprivate static func >= (a: Self, b: Self) -> Bool { a.rawValue >= b.rawValue }
}

extension CachePointer {
  /// Takes the magazines from the cache, for one reason more, and returns their objects to slabs. Asks every processor
  /// for the first reason.
  func blockMagazines() {
    descriptor.magazineBlocks.add(1, ordering: .sequentiallyConsistent)
    // Another caller may have begun, and not ended yet.
    if descriptor.magazinesAreOff.load(ordering: .sequentiallyConsistent) { return }
    magazines.switchOff(if: { areBlocked }, { returnToSlab($0, .unknown) })
    descriptor.magazinesAreOff.store(true, ordering: .sequentiallyConsistent)
  }

  /// Ends one reason; the last one lets processors load magazines again.
  func unblockMagazines() {
    guard descriptor.magazineBlocks.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 else {
      return
    }
    // Before processors may load magazines: so it never says that they are off when they are not.
    descriptor.magazinesAreOff.store(false, ordering: .sequentiallyConsistent)
    magazines.switchOn(if: { !areBlocked })
  }

  private var areBlocked: Bool { descriptor.magazineBlocks.load(ordering: .sequentiallyConsistent) > 0 }

  /// Does what `serveWaiters` does after objects became free. Answers true when there was any waiter: one that got none
  /// may now make a slab.
  @inline(__always) func serveAfterFree(_ lists: inout SlabLists) -> Bool {
    guard lists.waiters.first != nil else { return false }
    _ = serveEachWaiter(&lists)
    return true
  }

  /// Gives free objects to waiters, the first ones first. Answers whether any got one; the caller then wakes them.
  @inline(__always) func serveWaiters(_ lists: inout SlabLists) -> Bool {
    lists.waiters.first == nil ? false : serveEachWaiter(&lists)
  }

  @inline(never) private func serveEachWaiter(_ lists: inout SlabLists) -> Bool {
    var isAnyServed = false
    while let waiter = lists.waiters.first {
      var damage: Damage?
      guard let object = allocateOne(&lists, auditPeriod, waiter.pointee.request, &damage) else {
        guard damage != nil else { break }
        // The slab that a stray write hit serves nothing more; another may.
        if lists.unreported == nil { lists.unreported = damage }
        isAnyServed = true
        continue
      }
      waiter.pointee.object = object
      lists.waiters.removeFirst()
      isAnyServed = true
    }
    return isAnyServed
  }

  /// Waits until an object is free, or a slab can be made, and allocates it. Nil when the deadline of the request has
  /// passed, or when no thread can free memory. Asks every processor; sleeps, so no spin lock may be held.
  func waitForObject(_ request: AllocationRequest) -> UnsafeMutableRawPointer? {
    assert(holdsNoSpinLock(), "a request that may wait was made with a spin lock held")
    descriptor.waits.add(1, ordering: .relaxed)
    var waiter = KmemWaiter(request: request)
    return withUnsafeMutablePointer(to: &waiter) { me in
      var mustWake = lists.withLock { lists in
        lists.waiters.join(me)
        return serveWaiters(&lists)
      }
      if mustWake { wakeWaiters() }
      blockMagazines()
      while !isServed(me) {
        if isAtLimit {
          guard waitBelowLimit(me) else { break }
          mustWake = lists.withLock { serveWaiters(&$0) }
          if mustWake { wakeWaiters() }
          continue
        }
        guard let slab = makeSlab(isAudited: auditPeriod != nil, waitingFor: me) else { break }
        mustWake = lists.withLock { lists in
          insert(&lists, slab)
          return serveWaiters(&lists)
        }
        if mustWake { wakeWaiters() }
      }
      unblockMagazines()
      return lists.withLock { lists in
        if me.pointee.object == nil { lists.waiters.leave(me) }
        return me.pointee.object
      }
    }
  }

  /// Wakes the waiters, some of which were served.
  func wakeWaiters() {
    let damage = lists.withLock { lists in
      defer { lists.unreported = nil }
      return lists.unreported
    }
    kmem.report(damage, self, at: .unknown)
    physical.wakeWaiters()
    kmem.state.objectFreed.wake(on: machine)
  }

  private func isServed(_ waiter: UnsafeMutablePointer<KmemWaiter>) -> Bool {
    lists.withLock { _ in waiter.pointee.object != nil }
  }

  /// Makes a slab of the fewest frames that hold an object, as soon as they are free; nil when the waiter was served
  /// before, or waits no longer.
  private func makeSlab(isAudited: Bool, waitingFor waiter: UnsafeMutablePointer<KmemWaiter>) -> Slab? {
    if machine.failsHere(.kmem) { return nil }
    let request = waiter.pointee.request
    if source.isContiguous {
      return makeContiguousSlab(isAudited: isAudited, waitingFor: request, unless: { isServed(waiter) })
    }
    var order = BlockOrder(0)
    while Self.objects(chunk: chunk, order: order, isAudited: isAudited) == 0 {
      order = BlockOrder(order.rawValue + 1)
    }
    let frames = WaitingRequest(order: order, role: .slab, priority: request.priority, owner: kmem.owner)
    let deadline = request.wait.deadline
    while !isServed(waiter) {
      guard let frame = physical.allocateWaiting(frames, until: deadline, unless: { isServed(waiter) })
      else { return nil }
      let run = FrameRun(first: frame, count: order.frames)
      if let slab = slab(in: run, isAudited: isAudited, priority: request.priority) { return slab }
      // The frames are free again: the tables of the slab need one more.
      let wait = physical.waitForFrames(
        order.frames + .one, priority: request.priority, until: deadline, unless: { isServed(waiter) })
      if wait == .ended { return nil }
    }
    return nil
  }
}
