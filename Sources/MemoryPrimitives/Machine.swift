// What an instance knows of the machine under it: where physical memory can be reached, how many
// processors there are, and whom to ask for what only an executive can do.
//
// A `Machine` is a value that each layer keeps in its state, so two systems over different memory
// live side by side.

import CPlatform

/// Where physical memory appears in the address space: all of it, one offset.
@frozen public struct DirectMap: Sendable {
  public let base: UInt64
  @inlinable public init(base: UInt64) { self.base = base }

  @inline(always) public func pointer(to address: PhysicalAddress) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(base &+ address.rawValue)).unsafelyUnwrapped
  }
  @inline(always) public func pointer(to frame: FrameNumber) -> UnsafeMutableRawPointer {
    pointer(to: frame.address)
  }
  @inline(always) public func virtualAddress(of address: PhysicalAddress) -> VirtualAddress {
    VirtualAddress(base &+ address.rawValue)
  }
  /// The physical address behind an address of the direct map; meaningless for any other.
  @inline(always) public func physicalAddress(of address: VirtualAddress) -> PhysicalAddress {
    PhysicalAddress(address.rawValue &- base)
  }
}

/// The machine under one instance.
public struct Machine {
  public let directMap: DirectMap
  /// Processors that may ever run: per-processor state is made for so many.
  public let processorCount: Int
  let upcalls: UnsafePointer<cp_upcalls>
  @usableFromInline let failures: UnsafeMutablePointer<FailureInjection>?
  let log: FailureLog?

  /// `upcalls` (and `failures`, for tests) must outlive every instance that uses this machine.
  public init(
    directMap: DirectMap, processorCount: Int, upcalls: UnsafePointer<cp_upcalls>,
    failures: UnsafeMutablePointer<FailureInjection>? = nil, log: FailureLog? = nil
  ) {
    self.directMap = directMap
    self.processorCount = processorCount
    self.upcalls = upcalls
    self.failures = failures
    self.log = log
  }

  /// The same machine as an instance sees it that has only a part of its memory, with physical address 0
  /// at the start of `directMap`: for a second instance over memory that the first one lends.
  public func loaning(_ directMap: DirectMap, processors: Int) -> Machine {
    Machine(directMap: directMap, processorCount: processors, upcalls: upcalls)
  }

  /// The same machine, for layers that note in `log` what they refuse.
  public func logging(to log: FailureLog) -> Machine {
    Machine(
      directMap: directMap, processorCount: processorCount, upcalls: upcalls, failures: failures, log: log)
  }

  /// Notes a request that is being refused, where somebody keeps account. No spin lock may be held.
  public func note(_ request: @autoclosure () -> RefusedRequest) {
    if let log { log.note(request(), at: now) }
  }

  /// Whether the allocation about to be tried is to fail. Asked at each place that can run out of
  /// something, before anything was changed.
  @inline(always) public func failsHere(_ point: FailurePoint) -> Bool {
    failures != nil && failures.unsafelyUnwrapped.pointee.pass(point)
  }

  /// Reports a bug of a caller. Where it returns (on the host), the operation ends and changes nothing.
  public func report(_ fault: FaultReport) {
    withUnsafePointer(to: fault) { upcalls.pointee.report_fault(upcalls.pointee.context, $0) }
  }

  public var now: Tick { Tick(upcalls.pointee.tick(upcalls.pointee.context)) }

  /// Makes every processor invalidate the translations of `pages` pages from `first` on.
  public func shootDown(_ first: VirtualAddress, _ pages: PageCount) {
    var run = cp_page_run(address: first.rawValue, count: pages.rawValue)
    shootDown(&run, 1)
  }

  /// Makes every processor invalidate all translations.
  public func shootDownAll() {
    var all = cp_page_run(address: 0, count: UInt64(CP_ALL_PAGES))
    shootDown(&all, 1)
  }

  /// Makes every processor invalidate `count` runs of pages, with one message to each.
  func shootDown(_ runs: UnsafePointer<cp_page_run>, _ count: Int) {
    assert(holdsNoSpinLock(), "an upcall with a spin lock held")
    upcalls.pointee.shoot_down(upcalls.pointee.context, runs, UInt32(count))
  }

  /// Runs `body` on `processor` with interrupts off there, and returns when it has run.
  public func run(
    on processor: ProcessorIndex, _ argument: UnsafeMutableRawPointer,
    _ body: @convention(c) (UnsafeMutableRawPointer) -> Void
  ) {
    assert(holdsNoSpinLock(), "an upcall with a spin lock held")
    upcalls.pointee.run_on(upcalls.pointee.context, processor.rawValue, body, argument)
  }

  /// Starts a thread that runs `body`, on one of `processors`, a bit each. Nil when no thread is to be had, on a
  /// machine without threads always. Who starts a worker joins it.
  public func start(
    _ name: StaticString, _ kind: ThreadKind, on processors: UInt64 = .max,
    _ argument: UnsafeMutableRawPointer?, _ body: @convention(c) (UnsafeMutableRawPointer?) -> Void
  ) -> ThreadHandle? {
    assert(holdsNoSpinLock(), "an upcall with a spin lock held")
    guard let start = upcalls.pointee.start else { return nil }
    var request = cp_thread_request(
      name: name.utf8Start, name_length: UInt32(name.utf8CodeUnitCount), is_service: kind == .service,
      processors: processors, body: body, argument: argument)
    let handle = start(upcalls.pointee.context, &request)
    return handle == 0 ? nil : ThreadHandle(rawValue: handle)
  }

  /// Waits until the body of `thread`, a worker or a service that was told to end, has returned. Once; afterwards the handle means nothing.
  public func join(_ thread: ThreadHandle) {
    assert(holdsNoSpinLock(), "a sleep with a spin lock held")
    upcalls.pointee.join?(upcalls.pointee.context, thread.rawValue)
  }

  func sleep(
    _ sequence: UnsafePointer<UInt64>, seen: UInt64, until deadline: Tick, _ kind: WaitKind,
    for what: StaticString
  ) -> cp_wake {
    assert(holdsNoSpinLock(), "a sleep with a spin lock held")
    return upcalls.pointee.sleep(
      upcalls.pointee.context, sequence, seen, deadline.rawValue, kind, what.utf8Start)
  }

  func wake(_ sequence: UnsafePointer<UInt64>) {
    upcalls.pointee.wake(upcalls.pointee.context, sequence)
  }
}

/// What a thread is there for.
@frozen public enum ThreadKind: UInt8, Sendable {
  /// Does one job and returns; whoever started it joins it.
  case worker
  /// Works for others until it is told to end. When everybody but services sleeps without a deadline, nobody
  /// is left to wake them.
  case service
}

/// A thread that was started.
@frozen public struct ThreadHandle: Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
}
