// A log of the last requests that failed, waited or laundered: requester, request, time, and free memory. A refusal is an
// answer and no bug, so the system continues; a person reads the log afterwards.
//
// The log is a ring in memory that the caller supplies. The layer that refuses a request of the system's user records it;
// the requests that this layer made of lower ones are not recorded again. A record costs a spin lock, on a path that has
// failed.

import Synchronization

/// A request that was refused, or granted only after pages were moved or written.
public struct RefusedRequest: Sendable {
  /// The resource that was requested.
  @frozen public enum Kind: UInt8, Sendable {
    /// Memory of kmem, in bytes.
    case object
    /// A block of the buddy queues.
    case block
    /// A run of frames with constraints.
    case run
    /// One given frame.
    case frame
    /// Kernel addresses with memory behind them.
    case space

    /// The words that a report prints.
    public var description: StaticString {
      switch self {
      case .object: "object"
      case .block: "block"
      case .run: "run"
      case .frame: "given frame"
      case .space: "kernel space"
      }
    }
  }

  /// The resource that was requested.
  public var kind: Kind
  /// The size of the request.
  public var bytes: ByteCount
  /// The priority of the request.
  public var priority: AllocationPriority
  /// The alignment of a run; zero without one.
  public var alignment = ByteCount.zero
  /// The boundary that a run must not cross; zero without one.
  public var boundary = ByteCount.zero
  /// The lowest address where a run may lie; all of memory unless limits were given.
  public var low = PhysicalAddress(0)
  /// The highest address where a run may lie.
  public var high = PhysicalAddress(UInt64.max)
  /// The owner of the memory: a type, a role.
  public var requester: ShortName
  /// The call site of the request.
  public var site = CallSite.unknown
  /// The reason, in a few words.
  public var reason: StaticString
  /// Frames free at that moment.
  public var free: PageCount
  /// Pages moved for the request. A run may be granted in the end, after pages were moved or written for it.
  package var moved = PageCount.zero
  /// Pages written for the request.
  package var written = PageCount.zero
  /// Whether the request was granted in the end.
  package var wasGranted = false
  /// The frame that blocked the best run.
  package var blocker = FrameNumber.none
  /// Set when it is recorded: refusals are counted from 1.
  package internal(set) var number: UInt64 = 0
  /// The tick at which it was recorded.
  public internal(set) var tick = Tick(0)

  /// Describes a request; the fields that `init` does not name keep their defaults.
  package init(
    _ kind: Kind, _ bytes: ByteCount, priority: AllocationPriority, requester: ShortName,
    reason: StaticString,
    free: PageCount
  ) {
    self.kind = kind
    self.bytes = bytes
    self.priority = priority
    self.requester = requester
    self.reason = reason
    self.free = free
  }
}

/// The ring of the last refusals: a handle.
public struct FailureLog {
  struct State: ~Copyable {
    let lock = SpinLock(.registry)
    let count = Counter()
  }
  let state: UnsafeMutablePointer<State>
  let ring: UnsafeMutablePointer<RefusedRequest>

  /// Refusals that are kept.
  package static var capacity: Int { 64 }
  /// Bytes that a log needs, aligned to 64.
  package static var size: ByteCount { ByteCount(64 + capacity * MemoryLayout<RefusedRequest>.stride) }

  /// Makes an empty log in `memory`, which it keeps.
  package init(_ memory: UnsafeMutableRawPointer) {
    state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(to: State())
    ring = (memory + 64).bindMemory(to: RefusedRequest.self, capacity: Self.capacity)
  }

  func record(_ request: RefusedRequest, at tick: Tick) {
    let interrupts = state.pointee.lock.lock()
    defer { state.pointee.lock.unlock(interrupts) }
    let number = state.pointee.count.value + 1
    state.pointee.count.set(number)
    var request = request
    request.number = number
    request.tick = tick
    (ring + Int((number - 1) % UInt64(Self.capacity))).initialize(to: request)
  }

  /// Refusals since the start, kept or not.
  public var count: UInt64 { state.pointee.count.value }

  /// Calls `body` with each refusal that is kept, the latest first. No lock is held.
  public func forEach<E>(_ body: (RefusedRequest) throws(E) -> Void) throws(E) {
    let last = count
    var number = last
    while number > 0 && last - number < UInt64(Self.capacity) {
      let interrupts = state.pointee.lock.lock()
      let request = ring[Int((number - 1) % UInt64(Self.capacity))]
      state.pointee.lock.unlock(interrupts)
      // Overwritten by a newer one: the rest is older still.
      guard request.number == number else { return }
      try body(request)
      number -= 1
    }
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension FailureLog: @unchecked Sendable {}
