// The limit of a type: the most bytes that its objects may have at once, as MALLOC_DEFINE_LIMIT of NetBSD had it.
//
// A type gets its limit when it is made. All requests under it are charged to one counter, so the limit is exact, and
// types without a limit pay nothing. A request is charged by the spacing of its class, or by pages, as `vmstat -m` counts.
// At the limit a request that may wait sleeps until enough was freed, in the order of priority and arrival; another one
// is refused. While a request waits, later ones wait behind it or are refused; those at interrupt priority pass it.

import CPlatform
import MemoryPrimitives
import Synchronization

/// A type with a limit: a handle, valid as long as its instance of kmem.
public struct LimitedType {
  let storage: UnsafeMutablePointer<TypeLimit>
  /// The state, in place.
  @inline(__always) var state: TypeLimit { unsafeAddress { UnsafePointer(storage) } }

  /// The type without its limit, for figures. A request by it is not charged.
  public var type: MemoryType { state.type }

  /// The most bytes that its objects may have at once; 0 for no limit. Objects beyond a lowered limit stay in use, and no further one is
  /// allocated until enough are freed.
  public var limit: ByteCount {
    get { ByteCount(state.limit.load(ordering: .relaxed)) }
    nonmutating set {
      state.limit.store(newValue.rawValue, ordering: .relaxed)
      state.serve()
    }
  }
}

/// The state behind a type's limit.
struct TypeLimit: ~Copyable {
  let type: MemoryType
  let machine: Machine
  let limit: Atomic<UInt64>
  /// Bytes that were charged and not yet freed.
  let used = Atomic<UInt64>(0)
  /// Whether a request waits.
  let hasWaiters = Atomic<Bool>(false)
  let waiters = Locked(.kmemCaches, KmemWaiters())
  let freed = WaitQueue("memory below the limit of a type", .thread)
  let waits = Atomic<UInt64>(0)

  init(_ type: MemoryType, _ machine: Machine, limit: ByteCount) {
    (self.type, self.machine) = (type, machine)
    self.limit = Atomic(limit.rawValue)
  }

  private var most: UInt64 {
    let limit = limit.load(ordering: .relaxed)
    return limit == 0 ? .max : limit
  }

  /// Charges bytes if they stay below the limit.
  private borrowing func tryCharge(_ bytes: UInt64) -> Bool {
    let limit = most
    var seen = used.load(ordering: .relaxed)
    while seen <= limit && bytes <= limit - seen {
      let (exchanged, original) = used.weakCompareExchange(
        expected: seen, desired: seen + bytes, ordering: .sequentiallyConsistent)
      if exchanged { return true }
      seen = original
    }
    return false
  }

  /// Charges bytes for a request; waits for them where the request may. Answers false at the limit.
  borrowing func charge(_ bytes: UInt64, for request: AllocationRequest) -> Bool {
    let mayPass = request.priority == .interrupt || !hasWaiters.load(ordering: .sequentiallyConsistent)
    if mayPass && tryCharge(bytes) { return true }
    guard bytes <= most, request.wait.mayWait && request.priority != .interrupt else { return false }
    assert(holdsNoSpinLock(), "a request that may wait was made with a spin lock held")
    waits.add(1, ordering: .relaxed)
    var waiter = KmemWaiter(request: request, charge: bytes)
    return withUnsafeMutablePointer(to: &waiter) { me in
      waiters.withLock { $0.join(me) }
      hasWaiters.store(true, ordering: .sequentiallyConsistent)
      serve()
      while true {
        let (ticket, answer) = waiters.withLock { _ in (freed.ticket(), me.pointee.answer) }
        if let answer { return answer == .charged }
        if !freed.sleep(ticket, until: request.wait.deadline, on: machine) { break }
      }
      let answer = waiters.withLock { waiters in
        waiters.leave(me)
        return me.pointee.answer
      }
      // Those behind it may need less.
      serve()
      return answer == .charged
    }
  }

  /// Ends the charge of an object that is free.
  borrowing func release(_ bytes: UInt64) {
    var seen = used.load(ordering: .relaxed)
    while true {
      // A wrong free that kmem reports later may end more than was charged.
      let (exchanged, original) = used.weakCompareExchange(
        expected: seen, desired: seen - min(seen, bytes), ordering: .sequentiallyConsistent)
      if exchanged { break }
      seen = original
    }
    if hasWaiters.load(ordering: .sequentiallyConsistent) { serve() }
  }

  /// Charges for the waiters as far as the limit permits, the first ones first, and wakes them. Refuses one that the
  /// limit, which may have been lowered, can never satisfy.
  borrowing func serve() {
    let isAnyServed = waiters.withLock { waiters in
      var isAnyServed = false
      while let first = waiters.first {
        let isImpossible = first.pointee.charge > most
        guard isImpossible || tryCharge(first.pointee.charge) else { break }
        first.pointee.answer = isImpossible ? .refused : .charged
        waiters.removeFirst()
        isAnyServed = true
      }
      hasWaiters.store(waiters.first != nil, ordering: .sequentiallyConsistent)
      return isAnyServed
    }
    if isAnyServed { freed.wake(on: machine) }
  }
}

extension KmemAllocator {
  /// Makes a type whose objects may have `limit` bytes at once, or finds the one of that name and sets its limit. Throws
  /// `.noMemory`, also where a type of that name exists and has objects in use.
  public func limitedType(named name: ShortName, limit: ByteCount) throws(KmemError) -> LimitedType {
    let type = type(named: name)
    if let limited = limitedType(type) {
      limited.limit = limit
      return limited
    }
    guard type != otherType, describe(type).inUse == 0,
      let memory = carve(ByteCount(MemoryLayout<TypeLimit>.size), priority: .normal)
    else { throw .noMemory }
    let storage = memory.bindMemory(to: TypeLimit.self, capacity: 1)
    storage.initialize(to: TypeLimit(type, machine, limit: limit))
    let (isFirst, _) = type.header.pointee.limit.compareExchange(
      expected: 0, desired: UInt(bitPattern: storage), ordering: .releasing)
    // If another processor was first, its limit serves, and this memory is lost.
    if isFirst { return LimitedType(storage: storage) }
    return try limitedType(named: name, limit: limit)
  }

  /// The limited form of a type, if it was made with a limit.
  func limitedType(_ type: MemoryType) -> LimitedType? {
    let address = type.header.pointee.limit.load(ordering: .acquiring)
    return UnsafeMutablePointer<TypeLimit>(bitPattern: address).map { LimitedType(storage: $0) }
  }

  /// Bytes by which a request is charged: those that the object takes.
  private func chargedBytes(_ size: UInt64) -> UInt64 {
    let cacheIndex =
      size > Self.largestInTable
      ? SizeClasses.cacheIndexAboveAPage(size) : max(cacheIndex(size), CacheIndex.firstClass)
    return cacheIndex.map { UInt64(SizeClasses.size($0)) } ?? ByteCount(size).pagesRoundedUp.bytes.rawValue
  }

  /// Allocates as for a type without a limit; at the limit, the request waits where `wait` permits, and is refused
  /// otherwise. One atomic operation more.
  public func alloc(
    _ size: ByteCount, type: LimitedType, priority: AllocationPriority = .normal,
    wait: WaitPolicy = .forbidden, at site: CallSite = .here
  ) -> UnsafeMutableRawPointer? {
    let request = AllocationRequest(
      size: size.rawValue, type: type.type, priority: priority, wait: wait, site: site)
    let bytes = chargedBytes(size.rawValue)
    guard type.state.charge(bytes, for: request) else {
      recordRefusal(request, because: "the limit of the type")
      return nil
    }
    let offset = counterOffset(size.rawValue)
    if let object = popObject(offset, type.type) ?? allocate(request, at: offset) { return object }
    type.state.release(bytes)
    return nil
  }

  /// Allocates as `alloc` does, all bytes zero.
  public func zalloc(
    _ size: ByteCount, type: LimitedType, priority: AllocationPriority = .normal,
    wait: WaitPolicy = .forbidden, at site: CallSite = .here
  ) -> UnsafeMutableRawPointer? {
    let object = alloc(size, type: type, priority: priority, wait: wait, at: site)
    object?.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
    return object
  }

  /// Frees an object that was allocated under a type with a limit, by the same size and type.
  public func free(
    _ object: UnsafeMutableRawPointer, size: ByteCount, type: LimitedType, at site: CallSite = .here
  ) {
    let offset = counterOffset(size.rawValue)
    let request = FreeRequest(object: object, size: size.rawValue, type: type.type, site: site)
    guard pushObject(object, offset, type.type) || free(request, type.type, at: offset) else { return }
    type.state.release(chargedBytes(size.rawValue))
  }
}

// All state behind a handle is under a lock or atomic.
extension LimitedType: @unchecked Sendable {}
