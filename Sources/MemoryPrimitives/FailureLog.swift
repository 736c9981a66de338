// A log of the last requests that failed, waited or laundered: requester, request, time, and the memory that was free,
// reserved and waited for. A refusal is an answer and no bug, so the system continues; a person reads the log afterwards.
//
// The log is a ring in memory that the caller supplies. The layer whose public call refuses a request counts and records
// it, exactly once. That layer makes its own requests of lower layers by calls that record nothing. So the refusals that
// were recorded are the sum of the layers' counters. A record costs a spin lock, on a path that has failed.

import Synchronization

/// A request that was refused, or granted only after pages were moved or written.
public struct RefusedRequest: Sendable {
  /// The resource that was requested.
  @frozen public enum Kind: UInt8, Sendable {
    /// Memory of kmem, in bytes.
    case object
    /// A block of the buddy queues.
    case block
    /// Single frames, all or none.
    case frames
    /// A run of frames with constraints.
    case run
    /// One given frame.
    case frame
    /// Kernel addresses with memory behind them.
    case space
    /// A segment of an arena.
    case segment
    /// Pageable memory: an object, a range of one, or a frame for a page.
    case pageable

    /// The words that a report prints.
    public var description: StaticString {
      switch self {
      case .object: "object"
      case .block: "block"
      case .frames: "single frames"
      case .run: "run"
      case .frame: "given frame"
      case .space: "kernel space"
      case .segment: "segment"
      case .pageable: "pageable memory"
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
  public internal(set) var free = PageCount.zero
  /// Frames that requests of this priority had to leave free.
  public internal(set) var reserved = PageCount.zero
  /// Frames that threads waited for.
  public internal(set) var awaited = PageCount.zero
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
    reason: StaticString
  ) {
    self.kind = kind
    self.bytes = bytes
    self.priority = priority
    self.requester = requester
    self.reason = reason
  }
}

/// The layer that counts and records the refusal of a request.
@frozen public enum FailureRecording: UInt8, Sendable {
  /// The layer that is called.
  case here
  /// The caller, whose own request it fails.
  case byCaller
}

/// The reader of the memory that is free, reserved and waited for: the failure log calls it with no lock held.
package struct FreeMemoryReader {
  /// The counts of frames that it reads.
  package enum Count: UInt8 { case free, reserved, awaited }
  /// Any value that the function needs.
  package typealias Context = UnsafeMutableRawPointer?
  /// Reads one count, by its number, for requests of a priority.
  package typealias Read = @convention(c) (_ context: Context, _ count: UInt8, _ priority: UInt8) -> UInt64

  let context: Context
  let readCount: Read

  func count(_ count: Count, for priority: AllocationPriority) -> PageCount {
    PageCount(readCount(context, count.rawValue, priority.rawValue))
  }

  /// Makes a reader of a function and its context.
  package init(_ context: Context, readCount: @escaping Read) {
    self.context = context
    self.readCount = readCount
  }
}

/// The ring of the last refusals: a handle.
public struct FailureLog {
  struct State: ~Copyable {
    let lock = SpinLock(.registry)
    let count = Counter()
    /// Set once, before another processor runs.
    var reader: FreeMemoryReader?
  }
  let state: UnsafeMutablePointer<State>
  let ring: UnsafeMutablePointer<RefusedRequest>

  /// Refusals that are kept.
  package static var capacity: Int { 64 }
  /// Bytes that a log needs, aligned to 64.
  package static var size: ByteCount {
    ByteCount(headSize + capacity * MemoryLayout<RefusedRequest>.stride)
  }
  private static var headSize: Int { 64 }

  /// Makes an empty log in `memory`, which it keeps.
  package init(_ memory: UnsafeMutableRawPointer) {
    precondition(MemoryLayout<State>.size <= Self.headSize)
    state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(to: State())
    ring = (memory + Self.headSize).bindMemory(to: RefusedRequest.self, capacity: Self.capacity)
  }

  /// The reader that fills in the state of memory.
  var reader: FreeMemoryReader? {
    get { state.pointee.reader }
    nonmutating set { state.pointee.reader = newValue }
  }

  func record(_ request: RefusedRequest, at tick: Tick) {
    var request = request
    if let reader {
      request.free = reader.count(.free, for: request.priority)
      request.reserved = reader.count(.reserved, for: request.priority)
      request.awaited = reader.count(.awaited, for: request.priority)
    }
    state.pointee.lock.withLock {
      let number = count + 1
      state.pointee.count.set(number)
      request.number = number
      request.tick = tick
      (ring + Int((number - 1) % UInt64(Self.capacity))).initialize(to: request)
    }
  }

  /// Refusals since the start, kept or not.
  public var count: UInt64 { state.pointee.count.value }

  /// Calls `body` with each refusal that is kept, the latest first. No lock is held.
  public func forEach<E>(_ body: (RefusedRequest) throws(E) -> Void) throws(E) {
    let last = count
    var number = last
    while number > 0 && last - number < UInt64(Self.capacity) {
      let request = state.pointee.lock.withLock { ring[Int((number - 1) % UInt64(Self.capacity))] }
      // Overwritten by a newer one: the rest is older still.
      guard request.number == number else { return }
      try body(request)
      number -= 1
    }
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension FailureLog: @unchecked Sendable {}
