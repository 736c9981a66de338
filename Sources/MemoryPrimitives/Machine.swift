// The machine under an instance: the direct map of physical memory, the number of processors, and the upcalls to the
// executive.
//
// A `Machine` is a value that each layer keeps in its state, so two systems over different memory can coexist.

import CPlatform

/// The direct map: all physical memory appears in the address space at one offset.
@frozen public struct DirectMap: Sendable {
  /// The virtual address of physical address 0.
  public let base: UInt64
  /// Makes a direct map at an address.
  @inlinable public init(base: UInt64) { self.base = base }

  /// Translates a physical address to a pointer.
  @inline(always) public func pointer(to address: PhysicalAddress) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(base &+ address.rawValue)).unsafelyUnwrapped
  }
  /// Translates a frame to a pointer to its first byte.
  @inline(always) public func pointer(to frame: FrameNumber) -> UnsafeMutableRawPointer {
    pointer(to: frame.address)
  }
  /// Translates a physical address to its address in the direct map.
  @inline(always) public func virtualAddress(of address: PhysicalAddress) -> VirtualAddress {
    VirtualAddress(base &+ address.rawValue)
  }
  /// Translates an address of the direct map to its physical address; meaningless for any other.
  @inline(always) public func physicalAddress(of address: VirtualAddress) -> PhysicalAddress {
    PhysicalAddress(address.rawValue &- base)
  }
}

/// The machine under one instance.
public struct Machine {
  /// The direct map of the instance's memory.
  public let directMap: DirectMap
  /// Processors that may ever run: per-processor state is made for so many.
  public let processorCount: Int
  let upcalls: UnsafePointer<cp_upcalls>
  @usableFromInline let failures: UnsafeMutablePointer<FailureInjection>?
  let log: FailureLog?

  /// Makes a machine. `upcalls` (and `failures`, for tests) must outlive every instance that uses this machine.
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

  /// Makes the machine of a second instance, over memory that the first one loans: a part of it, with physical
  /// address 0 at the start of `directMap`.
  package func loaning(_ directMap: DirectMap, processors: Int) -> Machine {
    Machine(directMap: directMap, processorCount: processors, upcalls: upcalls)
  }

  /// Makes the same machine for layers that record refusals in `log`.
  package func logging(to log: FailureLog) -> Machine {
    Machine(
      directMap: directMap, processorCount: processorCount, upcalls: upcalls, failures: failures, log: log)
  }

  /// Makes the failure log read by `reader` what is free, reserved and waited for. Called once, at boot.
  package func readFreeMemory(by reader: FreeMemoryReader) { log?.reader = reader }

  /// Records a refused request in the failure log, if there is one. No spin lock may be held.
  package func record(_ refusal: @autoclosure () -> RefusedRequest) {
    if let log { log.record(refusal(), at: now) }
  }

  /// Whether fault injection makes the coming allocation fail. Each allocation point calls it before it changes
  /// anything.
  @inline(always) package func failsHere(_ point: FailurePoint) -> Bool {
    failures != nil && failures.unsafelyUnwrapped.pointee.pass(point)
  }

  /// Reports a bug of a caller. If this returns (on the host), the operation ends and changes nothing.
  package func report(_ fault: FaultReport) {
    withUnsafePointer(to: fault) { upcalls.pointee.report_fault(upcalls.pointee.context, $0) }
  }

  /// Reads the tick count.
  public var now: Tick { Tick(upcalls.pointee.read_tick(upcalls.pointee.context)) }

  /// Makes every processor invalidate the translations of `pages` pages from `first` on.
  package func shootDown(_ first: VirtualAddress, _ pages: PageCount) {
    var run = cp_page_run(address: first.rawValue, count: pages.rawValue)
    shootDown(&run, 1)
  }

  /// Makes every processor invalidate all translations.
  package func shootDownAll() {
    var all = cp_page_run(address: 0, count: UInt64(CP_ALL_PAGES))
    shootDown(&all, 1)
  }

  /// Makes every processor invalidate `count` runs of pages, with one message to each.
  func shootDown(_ runs: UnsafePointer<cp_page_run>, _ count: Int) {
    assert(holdsNoSpinLock(), "an upcall with a spin lock held")
    upcalls.pointee.shoot_down(upcalls.pointee.context, runs, UInt32(count))
  }

  /// Runs `body` on `processor` with interrupts off there, and returns when it has run.
  package func run(
    on processor: ProcessorIndex, _ argument: UnsafeMutableRawPointer,
    _ body: @convention(c) (UnsafeMutableRawPointer) -> Void
  ) {
    assert(holdsNoSpinLock(), "an upcall with a spin lock held")
    upcalls.pointee.run_on(upcalls.pointee.context, processor.rawValue, body, argument)
  }

  /// Threads that a machine can start when memory is gone. No operation that frees memory starts a thread, so two are
  /// for its caller: one works while the other waits for a device.
  package static var threadsWithoutMemory: Int { 2 }

  /// Starts a thread that runs `body` on one of `processors`, a bit each. Nil when the machine has no thread left, or
  /// has none at all. The caller that starts a worker must join it.
  package func start(
    _ name: StaticString, _ kind: ThreadKind, on processors: UInt64 = .max,
    _ argument: UnsafeMutableRawPointer?, _ body: @convention(c) (UnsafeMutableRawPointer?) -> Void
  ) -> ThreadHandle? {
    assert(holdsNoSpinLock(), "an upcall with a spin lock held")
    let executive = upcalls.pointee
    guard let start = executive.start else { return nil }
    var request = cp_thread_request(
      name: name.utf8Start, name_length: UInt32(name.utf8CodeUnitCount), is_service: kind == .service,
      processors: processors, body: body, argument: argument)
    let handle = start(executive.context, &request)
    return handle == 0 ? nil : ThreadHandle(rawValue: handle)
  }

  /// Runs `body` on processor 0, whatever other threads do: for an instance that knows no other processor.
  package func onFirstProcessor<R, E>(_ body: () throws(E) -> R) throws(E) -> R {
    let executive = upcalls.pointee
    guard let confine = executive.confine else { return try body() }
    let before = confine(executive.context, 1)
    defer { _ = confine(executive.context, before) }
    return try body()
  }

  /// Waits until the body of `thread` has returned: of a worker, or of a service that was asked to end. The handle is
  /// invalid afterwards.
  package func join(_ thread: ThreadHandle) {
    assert(holdsNoSpinLock(), "a sleep with a spin lock held")
    if cp_pins() != 0 {
      _ = refusePinned()
      return
    }
    upcalls.pointee.join?(upcalls.pointee.context, thread.rawValue)
  }

  func sleep(
    _ sequence: UnsafePointer<UInt64>, seen: UInt64, until deadline: Tick, _ kind: WaitKind,
    for what: StaticString
  ) -> cp_wake {
    assert(holdsNoSpinLock(), "a sleep with a spin lock held")
    if cp_pins() != 0 { return refusePinned() }
    return upcalls.pointee.sleep(
      upcalls.pointee.context, sequence, seen, deadline.rawValue, kind, what.utf8Start)
  }

  /// Reports a sleep of a thread that has a page window open. Others would find the window in use, or its contents
  /// changed.
  @inline(never) private func refusePinned() -> cp_wake {
    var fault = FaultReport(
      .windowMisuse, "a thread sleeps with a page window open, on processor", UInt64(cp_processor_index()),
      .identifier)
    fault.openedAt = CallSite(codeAddress: cp_window_site(0))
    report(fault)
    return .never
  }

  func wake(_ sequence: UnsafePointer<UInt64>) {
    upcalls.pointee.wake(upcalls.pointee.context, sequence)
  }
}

/// The purpose of a thread.
@frozen @usableFromInline package enum ThreadKind: UInt8, Sendable {
  /// Does one job and returns; the thread that started it joins it.
  case worker
  /// Works for others until it is asked to end. When all threads but services sleep without a deadline, no thread
  /// can wake them.
  case service
}

/// A thread that was started.
@frozen @usableFromInline package struct ThreadHandle: Sendable {
  package let rawValue: UInt64
  /// Makes a handle of the machine's number.
  package init(rawValue: UInt64) { self.rawValue = rawValue }
}

// The table of upcalls is never changed, and its functions may be called from any processor.
extension Machine: @unchecked Sendable {}
