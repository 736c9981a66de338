// A replay split over processors: each event of the trace is done by one of several threads, each on a processor of
// its own, and the counts are those of one processor.
//
// WHO DOES WHAT. Each worker walks the whole trace and does only what is its own: objects by their number; pages by
// the block that they belong to, which is the largest that any event names, since a block may be freed in parts and
// pages of several blocks in one run. So all events of an identity are one worker's, in the order of the trace;
// whether a free has an owner, or an allocation lost its free, does not depend on the others, and nobody locks the
// tables. Neighbours go to different workers, for what they share of a cache line is part of the trial.
//
// INTERRUPTS. What the trace did in a soft or hard interrupt is done in an interrupt handler, if there is a gate to
// one: up to 16 events of a worker that follow each other in one interrupt. There all memory is asked for at
// interrupt priority.
//
// PACE. No worker is more than `window` events ahead of the slowest, or what is live at once would be anything: who
// is ahead sleeps. Who comes by each `step` events says so and wakes the others.
//
// WHEN THREADS ARE NOT TO BE HAD. They are started behind a barrier. If one is missing, the others go home and nothing
// was done. All are started once before the starting counts are read: what stacks leave behind stays.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Synchronization

/// How a replay is shared out.
public struct ReplaySplit {
  public static var mostWorkers: Int { 63 }

  /// Threads that do the events.
  public let workers: Int
  /// The processor of the first; the others follow.
  public let firstProcessor: ProcessorIndex
  /// The way to interrupt priority; without one everything is done by the threads themselves.
  public let interrupts: InterruptGate?

  public init(
    workers: Int, firstProcessor: ProcessorIndex = ProcessorIndex(0), interrupts: InterruptGate? = nil
  ) {
    self.workers = workers
    self.firstProcessor = firstProcessor
    self.interrupts = interrupts
  }

  func check(_ machine: Machine) throws(ReplayError) {
    let there = min(machine.processorCount, Self.mostWorkers + 1) - Int(firstProcessor.rawValue)
    guard workers > 0, workers <= min(there, Self.mostWorkers) else {
      throw .tooFewProcessors(asked: workers, there: max(0, there))
    }
  }
}

/// What the workers of one replay share: a handle. Behind it lie their records, then for each page its owner.
struct ReplayWorkerPool {
  enum Order: UInt8, AtomicRepresentable {
    /// Behind the barrier.
    case wait
    case go
    case exit
  }

  struct State: ~Copyable {
    let machine: Machine
    let trace: PackedTrace
    let split: ReplaySplit
    let owners: UnsafeMutablePointer<UInt8>
    let order = Atomic<Order>(.exit)
    /// Woken whenever a worker has come further, and with each order.
    let progress = WaitQueue("the rest of the replay", .thread)
  }

  private let base: UnsafeMutableRawPointer
  var state: UnsafeMutablePointer<State> { base.assumingMemoryBound(to: State.self) }

  var sums: UnsafeMutablePointer<LiveSums> {
    (base + Self.sumsOffset).assumingMemoryBound(to: LiveSums.self)
  }

  init(at base: UnsafeMutableRawPointer) { self.base = base }

  private static func line(_ bytes: Int) -> Int { (bytes + 63) & ~63 }
  private static var sumsOffset: Int { line(MemoryLayout<State>.size) }
  private static var workersOffset: Int { sumsOffset + line(MemoryLayout<LiveSums>.size) }
  private static var workerStride: Int { line(ReplayWorker.size) }

  static func size(workers: Int, pages: UInt32) -> ByteCount {
    ByteCount(workersOffset + workers * workerStride + Int(pages))
  }

  /// Sets up the pool at `base`, with hands that are like `executor`.
  static func make(at base: UnsafeMutableRawPointer, _ split: ReplaySplit, _ executor: ReplayExecutor)
    -> ReplayWorkerPool
  {
    let pool = ReplayWorkerPool(at: base)
    let owners = (base + workersOffset + split.workers * workerStride).assumingMemoryBound(to: UInt8.self)
    pool.state.initialize(
      to: State(machine: executor.system.machine, trace: executor.trace, split: split, owners: owners))
    pool.sums.initialize(to: LiveSums())
    for number in 0..<split.workers {
      pool.worker(number).initialize(number, pool, executor)
    }
    pool.assignPages()
    return pool
  }

  func worker(_ number: Int) -> ReplayWorker {
    ReplayWorker(at: base + Self.workersOffset + number * Self.workerStride)
  }

  /// Before the memory goes.
  func dismiss() {
    for number in 0..<state.pointee.split.workers { worker(number).deinitialize() }
    sums.deinitialize(count: 1)
    state.deinitialize(count: 1)
  }

  // MARK: Who does what

  /// Pages that any event names together get the same owner. A step for each page of each event.
  private func assignPages() {
    let (trace, owners) = (state.pointee.trace, state.pointee.owners)
    let joined = UInt8.max
    for page in 0..<Int(trace.counts.pages) { owners[page] = 0 }
    var cursor = trace.records
    // The trace has been validated: there is no error.
    while let event = try? cursor.next() {
      guard event.kind.isAboutPages, event.identity != TraceEvent.nobody else { continue }
      let count = 1 << Int(trace.operation(event.operation).order)
      for page in 1..<max(1, count) { owners[Int(event.identity) + page] = joined }
    }
    var block = -1
    for page in 0..<Int(trace.counts.pages) {
      if owners[page] != joined { block += 1 }
      owners[page] = UInt8(block % state.pointee.split.workers)
    }
  }

  /// The number of the worker that does `event`.
  func owner(of event: TraceEvent) -> Int {
    guard event.identity != TraceEvent.nobody else { return 0 }
    return event.kind.isAboutPages
      ? Int(state.pointee.owners[Int(event.identity)]) : Int(event.identity) % state.pointee.split.workers
  }

  // MARK: Orders

  var order: Order { state.pointee.order.load(ordering: .acquiring) }

  func give(_ order: Order) {
    state.pointee.order.store(order, ordering: .releasing)
    state.pointee.progress.wake(on: state.pointee.machine)
  }

  /// Starts all threads; when one is not to be had, none is left.
  func start() throws(ReplayError) {
    let split = state.pointee.split
    for number in 0..<split.workers {
      let processor = Int(split.firstProcessor.rawValue) + number
      let thread = state.pointee.machine.start(
        "replay", .worker, on: 1 << UInt64(processor), worker(number).base
      ) { ReplayWorker(at: $0.unsafelyUnwrapped).live() }
      guard let thread else {
        give(.exit)
        join(number)
        throw .noThread(ProcessorIndex(UInt32(processor)))
      }
      worker(number).thread.pointee = thread
    }
  }

  /// Waits for the first `count` workers to have gone home.
  func join(_ count: Int) {
    for number in 0..<count {
      if let thread = worker(number).thread.pointee { state.pointee.machine.join(thread) }
      worker(number).thread.pointee = nil
    }
  }

  /// How many events the slowest has read; all ones when all are through.
  var slowest: UInt64 {
    var least = UInt64.max
    for number in 0..<state.pointee.split.workers { least = min(least, worker(number).progress) }
    return least
  }
}

/// One worker: a handle. Behind it lie, each for itself, how far it is, which all may read; its thread, which is for
/// who started it; what it found, which is read when it has gone; and its own state.
struct ReplayWorker {
  static var window: UInt64 { 1024 }
  static var step: UInt32 { 256 }
  static var mostInOneInterrupt: Int { 16 }

  struct Waiting {
    var event: TraceEvent
    var sequence: UInt32
  }

  struct State {
    let number: Int
    let pool: ReplayWorkerPool
    let executor: ReplayExecutor
    var error: TraceError?
    /// Events for the next interrupt.
    var batch: InlineArray<16, Waiting>
    var batched = 0
  }

  let base: UnsafeMutableRawPointer

  init(at base: UnsafeMutableRawPointer) { self.base = base }

  /// Events read; all ones when it is through.
  private var read: UnsafeMutablePointer<Atomic<UInt64>> { base.assumingMemoryBound(to: Atomic<UInt64>.self) }
  var thread: UnsafeMutablePointer<ThreadHandle?> {
    (base + 16).assumingMemoryBound(to: ThreadHandle?.self)
  }
  var found: UnsafeMutablePointer<ReplaySummary> {
    (base + 64).assumingMemoryBound(to: ReplaySummary.self)
  }
  private var state: UnsafeMutablePointer<State> {
    (base + Self.stateOffset).assumingMemoryBound(to: State.self)
  }
  private static var stateOffset: Int { 64 + (MemoryLayout<ReplaySummary>.size + 63) & ~63 }
  static var size: Int { stateOffset + MemoryLayout<State>.size }

  func initialize(_ number: Int, _ pool: ReplayWorkerPool, _ executor: ReplayExecutor) {
    read.initialize(to: Atomic(0))
    thread.initialize(to: nil)
    found.initialize(to: ReplaySummary())
    var executor = executor
    executor.summary = found
    executor.sums = pool.sums
    let none = TraceEvent(.kfree, operation: 0, identity: TraceEvent.nobody)
    state.initialize(
      to: State(
        number: number, pool: pool, executor: executor,
        batch: .init(repeating: Waiting(event: none, sequence: 0))))
  }

  func deinitialize() { read.deinitialize(count: 1) }

  var progress: UInt64 { read.pointee.load(ordering: .acquiring) }
  var error: TraceError? { state.pointee.error }

  private var pool: ReplayWorkerPool { state.pointee.pool }

  /// Makes it one that has read nothing. Its thread does not run.
  func begin() { read.pointee.store(0, ordering: .relaxed) }

  /// The life of the thread.
  func live() {
    if awaitOrder() == .go {
      do throws(TraceError) { try walk() } catch { state.pointee.error = error }
      doBatch()
    }
    report(.max)
  }

  private func awaitOrder() -> ReplayWorkerPool.Order {
    let shared = pool.state
    while true {
      let ticket = shared.pointee.progress.ticket()
      let order = pool.order
      if order != .wait { return order }
      _ = shared.pointee.progress.sleep(ticket, on: shared.pointee.machine)
    }
  }

  private func walk() throws(TraceError) {
    let (pool, number) = (pool, state.pointee.number)
    var cursor = pool.state.pointee.trace.records
    while let event = try cursor.next() {
      if pool.owner(of: event) == number { take(event, cursor.index) }
      guard cursor.index % Self.step == 0 else { continue }
      report(UInt64(cursor.index))
      if keepPace(UInt64(cursor.index)) == .stop { return }
    }
  }

  private func report(_ events: UInt64) {
    read.pointee.store(events, ordering: .releasing)
    pool.state.pointee.progress.wake(on: pool.state.pointee.machine)
  }

  /// Sleeps until the slowest is near enough.
  private func keepPace(_ events: UInt64) -> ReplayPace {
    let shared = pool.state
    while true {
      let ticket = shared.pointee.progress.ticket()
      if pool.order != .go { return .stop }
      let slowest = pool.slowest
      if slowest >= events || events - slowest <= Self.window { return .goOn }
      _ = shared.pointee.progress.sleep(ticket, on: shared.pointee.machine)
    }
  }

  // MARK: Its events

  private func take(_ event: TraceEvent, _ sequence: UInt32) {
    guard event.context != .thread, pool.state.pointee.split.interrupts != nil else {
      doBatch()
      return state.pointee.executor.step(event, sequence)
    }
    state.pointee.batch[state.pointee.batched] = Waiting(event: event, sequence: sequence)
    state.pointee.batched += 1
    if state.pointee.batched == Self.mostInOneInterrupt { doBatch() }
  }

  /// Does what waits for an interrupt, in one.
  private func doBatch() {
    guard state.pointee.batched > 0, let gate = pool.state.pointee.split.interrupts else { return }
    gate.run(base) { ReplayWorker(at: $0).handleInterrupt() }
  }

  private func handleInterrupt() {
    var executor = state.pointee.executor
    executor.priority = .interrupt
    let count = state.pointee.batched
    for i in 0..<count {
      let waiting = state.pointee.batch[i]
      executor.step(waiting.event, waiting.sequence)
    }
    state.pointee.batched = 0
    executor.summary.pointee.interruptEvents += UInt64(count)
    executor.summary.pointee.interrupts += 1
  }
}

extension Replay {
  /// Sets up the pool and has its threads once.
  func assemble(_ split: ReplaySplit) throws(ReplayError) {
    let pool = ReplayWorkerPool.make(at: self.pool, split, executor)
    do throws(ReplayError) {
      try pool.start()
    } catch {
      _ = close()
      throw error
    }
    pool.join(split.workers)
  }

  /// Has all events done by the pool.
  func run(_ split: ReplaySplit, progress: (Progress) -> ReplayPace) throws(ReplayError) {
    let pool = ReplayWorkerPool(at: self.pool)
    let shared = pool.state
    let machine = shared.pointee.machine
    pool.give(.wait)
    for number in 0..<split.workers { pool.worker(number).begin() }
    try pool.start()
    pool.give(.go)
    while true {
      let ticket = shared.pointee.progress.ticket()
      let slowest = pool.slowest
      let events = UInt64(shared.pointee.trace.counts.events)
      let now = Progress(
        events: min(slowest, events), of: events, liveObjects: pool.sums.pointee.objects.live)
      if progress(now) == .stop { pool.give(.exit) }
      if slowest == .max { break }
      _ = shared.pointee.progress.sleep(ticket, until: Tick(machine.now.rawValue &+ 100), on: machine)
    }
    pool.join(split.workers)
    gather(pool)
    for number in 0..<split.workers {
      if let error = pool.worker(number).error { throw .trace(error) }
    }
  }

  private func gather(_ pool: ReplayWorkerPool) {
    let workers = pool.state.pointee.split.workers
    for number in 0..<workers { found.pointee.add(pool.worker(number).found.pointee) }
    found.pointee.workers = workers
    found.pointee.peakObjects = pool.sums.pointee.objects.peak
    found.pointee.peakObjectBytes = pool.sums.pointee.bytes.peak
    found.pointee.peakPages = pool.sums.pointee.pages.peak
  }
}
