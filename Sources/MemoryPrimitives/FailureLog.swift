// The last requests that did not go well: who asked for what, when, and how much was free. A refusal is an
// answer and no bug, so nothing stops for it; this is where one looks afterwards.
//
// A ring in memory that the caller gives. A layer notes what it refuses to somebody above all layers; what a
// layer asked of one below is not noted there again. Noting costs a spin lock on a path that has failed.

import Synchronization

/// A request that was refused, or granted only after others had to move.
public struct RefusedRequest: Sendable {
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

  public var kind: Kind
  public var bytes: ByteCount
  public var priority: AllocationPriority
  /// Zero where none was asked for.
  public var alignment = ByteCount.zero
  public var boundary = ByteCount.zero
  /// Where a run may lie; all of memory unless limits were given.
  public var low = PhysicalAddress(0)
  public var high = PhysicalAddress(UInt64.max)
  /// For whom: a type, a role.
  public var requester: Name
  public var site = CallSite.unknown
  /// Why, in a few words.
  public var reason: StaticString
  /// Frames free at that moment.
  public var free: PageCount
  /// A request for a run may be granted in the end, after pages were moved or written for it.
  public var moved = PageCount.zero
  public var written = PageCount.zero
  public var wasGranted = false
  /// The frame that stood in the way of the best run.
  public var blocker = FrameNumber.none
  /// Set when it is noted: refusals are counted from 1.
  public internal(set) var number: UInt64 = 0
  public internal(set) var tick = Tick(0)

  public init(
    _ kind: Kind, _ bytes: ByteCount, priority: AllocationPriority, requester: Name, reason: StaticString,
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
  public static var capacity: Int { 64 }
  /// Bytes that a log needs, aligned to 64.
  public static var size: ByteCount { ByteCount(64 + capacity * MemoryLayout<RefusedRequest>.stride) }

  /// An empty log in `memory`, which it keeps.
  public init(_ memory: UnsafeMutableRawPointer) {
    state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(to: State())
    ring = (memory + 64).bindMemory(to: RefusedRequest.self, capacity: Self.capacity)
  }

  func note(_ request: RefusedRequest, at tick: Tick) {
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
      // Overwritten meanwhile: the rest is older still.
      guard request.number == number else { return }
      try body(request)
      number -= 1
    }
  }
}
