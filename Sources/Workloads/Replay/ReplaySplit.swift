// A replay split over processors: each event of the trace is carried out by one of several threads, each on a processor
// of its own, and the counts are those of one processor.
//
// DISTRIBUTION. Each worker walks the whole trace and carries out only its own events. Objects are distributed by
// their number. Pages are distributed by blocks, the largest that any event names: a block may be freed in parts, and
// pages of several blocks in one run. So all events of an identity are one worker's, in the order of the trace.
// Whether a free has an owner, or an allocation lost its free, does not depend on the other workers, and the tables
// need no lock. Neighbours go to different workers, as the test includes the cache lines that they share.
//
// INTERRUPTS. Events of a soft or hard interrupt are carried out in an interrupt handler, if there is a gate to one:
// up to
// 16 successive events of a worker in one interrupt. All memory for them is requested at interrupt priority.
//
// PACE. No worker is more than `window` events ahead of the slowest; otherwise the live memory would be arbitrary. A
// worker that is ahead sleeps. Each worker reports its progress after each `step` events and wakes the others.
//
// MISSING THREADS. Threads are started behind a barrier. If one can't be started, the others end and no event is
// carried out. All are started once before the starting counts are read, so that memory that their stacks leave
// behind is counted.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Synchronization

/// The distribution of a replay over processors.
package struct ReplaySplit {
  /// The most workers of a replay.
  package static var mostWorkers: Int { 63 }

  /// Threads that carry out events.
  package let workers: Int
  /// The processor of the first; the others follow.
  package let firstProcessor: ProcessorIndex
  /// The way to interrupt priority; without one the threads carry out all events.
  package let interrupts: InterruptGate?

  package init(
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

/// The state that the workers of one replay share: a handle. Behind it lie their records, then for each page its owner.
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
    /// Woken when a worker reports progress, and with each order.
    let progress = WaitQueue("the rest of the replay", .thread)
  }

  private let base: UnsafeMutableRawPointer
  var state: UnsafeMutablePointer<State> { base.assumingMemoryBound(to: State.self) }

  var totals: UnsafeMutablePointer<LiveTotals> {
    (base + Parts(workers: 0, pages: 0).totals).assumingMemoryBound(to: LiveTotals.self)
  }

  init(at base: UnsafeMutableRawPointer) { self.base = base }

  /// The offsets of its parts.
  private struct Parts {
    let totals: Int
    let workers: Int
    let owners: Int
    let size: ByteCount

    init(workers count: Int, pages: UInt32) {
      var layout = StorageLayout()
      _ = layout.add(State.self)
      totals = layout.add(LiveTotals.self)
      workers = layout.add(workerStride * count)
      owners = layout.add(Int(pages))
      size = layout.size
    }
  }
  private static var workerStride: Int { Int(ReplayWorker.size.rawValue) }

  static func size(workers: Int, pages: UInt32) -> ByteCount { Parts(workers: workers, pages: pages).size }

  /// Sets up the pool at `base`, with executors like `executor`.
  static func make(at base: UnsafeMutableRawPointer, _ split: ReplaySplit, _ executor: ReplayExecutor)
    -> ReplayWorkerPool
  {
    let pool = ReplayWorkerPool(at: base)
    let parts = Parts(workers: split.workers, pages: executor.trace.counts.pages)
    let owners = (base + parts.owners).assumingMemoryBound(to: UInt8.self)
    pool.state.initialize(
      to: State(machine: executor.system.machine, trace: executor.trace, split: split, owners: owners))
    pool.totals.initialize(to: LiveTotals())
    for number in 0..<split.workers {
      pool.worker(number).initialize(number, pool, executor)
    }
    pool.assignPages()
    return pool
  }

  func worker(_ number: Int) -> ReplayWorker {
    ReplayWorker(at: base + Parts(workers: 0, pages: 0).workers + number * Self.workerStride)
  }

  /// Ends the pool, before its memory is freed.
  func end() {
    for number in 0..<state.pointee.split.workers { worker(number).deinitialize() }
    totals.deinitialize(count: 1)
    state.deinitialize(count: 1)
  }

  // MARK: Distribution

  /// Gives pages that any event names together the same owner. A step for each page of each event.
  private func assignPages() {
    let (trace, owners) = (state.pointee.trace, state.pointee.owners)
    let joined = UInt8.max
    for page in 0..<Int(trace.counts.pages) { owners[page] = 0 }
    var cursor = trace.records
    // The trace has been validated: there is no error.
    while let event = try? cursor.next() {
      guard event.kind.isAboutPages, event.identity != TraceEvent.noIdentity else { continue }
      let count = 1 << Int(trace.operation(event.operation).order)
      for page in 1..<max(1, count) { owners[Int(event.identity) + page] = joined }
    }
    var block = -1
    for page in 0..<Int(trace.counts.pages) {
      if owners[page] != joined { block += 1 }
      owners[page] = UInt8(block % state.pointee.split.workers)
    }
  }

  /// The number of the worker that carries out `event`.
  func owner(of event: TraceEvent) -> Int {
    guard event.identity != TraceEvent.noIdentity else { return 0 }
    return event.kind.isAboutPages
      ? Int(state.pointee.owners[Int(event.identity)]) : Int(event.identity) % state.pointee.split.workers
  }

  // MARK: Orders

  var order: Order { state.pointee.order.load(ordering: .acquiring) }

  /// Gives all workers an order, and wakes them.
  func send(_ order: Order) {
    state.pointee.order.store(order, ordering: .releasing)
    state.pointee.progress.wake(on: state.pointee.machine)
  }

  /// Starts all threads. When one can't be started, ends those that were.
  func start() throws(ReplayError) {
    let split = state.pointee.split
    for number in 0..<split.workers {
      let processor = Int(split.firstProcessor.rawValue) + number
      let thread = state.pointee.machine.start(
        "replay", .worker, on: 1 << UInt64(processor), worker(number).base
      ) { ReplayWorker(at: $0.unsafelyUnwrapped).run() }
      guard let thread else {
        send(.exit)
        join(number)
        throw .noThread(ProcessorIndex(UInt32(processor)))
      }
      worker(number).thread.pointee = thread
    }
  }

  /// Waits for the end of the first `count` workers.
  func join(_ count: Int) {
    for number in 0..<count {
      if let thread = worker(number).thread.pointee { state.pointee.machine.join(thread) }
      worker(number).thread.pointee = nil
    }
  }

  /// Events that the slowest worker has read; all ones when all have finished.
  var slowest: UInt64 {
    var least = UInt64.max
    for number in 0..<state.pointee.split.workers { least = min(least, worker(number).progress) }
    return least
  }
}

/// One worker: a handle. Behind it lie its progress, which all may read; its thread, for the caller that started it;
/// its counts, which are read after its end; and its own state.
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

  /// Events read; all ones when it has finished.
  private var read: UnsafeMutablePointer<Atomic<UInt64>> { base.assumingMemoryBound(to: Atomic<UInt64>.self) }
  var thread: UnsafeMutablePointer<ThreadHandle?> {
    (base + Parts().thread).assumingMemoryBound(to: ThreadHandle?.self)
  }
  var found: UnsafeMutablePointer<ReplaySummary> {
    (base + Parts().found).assumingMemoryBound(to: ReplaySummary.self)
  }
  private var state: UnsafeMutablePointer<State> {
    (base + Parts().state).assumingMemoryBound(to: State.self)
  }

  /// The offsets of its parts, behind its progress.
  private struct Parts {
    let thread: Int
    let found: Int
    let state: Int
    let size: ByteCount

    init() {
      var layout = StorageLayout()
      _ = layout.add(Atomic<UInt64>.self)
      thread = layout.add(ThreadHandle?.self)
      found = layout.add(ReplaySummary.self)
      state = layout.add(State.self)
      size = layout.size
    }
  }
  static var size: ByteCount { Parts().size }

  func initialize(_ number: Int, _ pool: ReplayWorkerPool, _ executor: ReplayExecutor) {
    read.initialize(to: Atomic(0))
    thread.initialize(to: nil)
    found.initialize(to: ReplaySummary())
    var executor = executor
    executor.summary = found
    executor.totals = pool.totals
    let none = TraceEvent(.kfree, operation: 0, identity: TraceEvent.noIdentity)
    state.initialize(
      to: State(
        number: number, pool: pool, executor: executor,
        batch: .init(repeating: Waiting(event: none, sequence: 0))))
  }

  func deinitialize() { read.deinitialize(count: 1) }

  var progress: UInt64 { read.pointee.load(ordering: .acquiring) }
  var error: TraceError? { state.pointee.error }

  private var pool: ReplayWorkerPool { state.pointee.pool }

  /// Resets its progress. Its thread does not run.
  func begin() { read.pointee.store(0, ordering: .relaxed) }

  /// Runs on its thread: waits for an order and carries out its events.
  func run() {
    if awaitOrder() == .go {
      do throws(TraceError) { try walk() } catch { state.pointee.error = error }
      runBatch()
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
      if pool.owner(of: event) == number { carryOut(event, cursor.index) }
      guard cursor.index % Self.step == 0 else { continue }
      report(UInt64(cursor.index))
      if keepPace(UInt64(cursor.index)) == .stop { return }
    }
  }

  private func report(_ events: UInt64) {
    read.pointee.store(events, ordering: .releasing)
    pool.state.pointee.progress.wake(on: pool.state.pointee.machine)
  }

  /// Sleeps until the slowest worker is at most `window` events behind.
  private func keepPace(_ events: UInt64) -> Pace {
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

  private func carryOut(_ event: TraceEvent, _ sequence: UInt32) {
    guard event.context != .thread, pool.state.pointee.split.interrupts != nil else {
      runBatch()
      return state.pointee.executor.step(event, sequence)
    }
    state.pointee.batch[state.pointee.batched] = Waiting(event: event, sequence: sequence)
    state.pointee.batched += 1
    if state.pointee.batched == Self.mostInOneInterrupt { runBatch() }
  }

  /// Carries out the waiting events in one interrupt.
  private func runBatch() {
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
  /// Sets up the pool and starts its threads once.
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

  /// Lets the pool carry out all events.
  func run(_ split: ReplaySplit, progress: (Progress) -> Pace) throws(ReplayError) {
    let pool = ReplayWorkerPool(at: self.pool)
    let shared = pool.state
    let machine = shared.pointee.machine
    pool.send(.wait)
    for number in 0..<split.workers { pool.worker(number).begin() }
    try pool.start()
    pool.send(.go)
    while true {
      let ticket = shared.pointee.progress.ticket()
      let slowest = pool.slowest
      let events = UInt64(shared.pointee.trace.counts.events)
      let now = Progress(
        events: min(slowest, events), of: events, liveObjects: pool.totals.pointee.objects.live)
      if progress(now) == .stop { pool.send(.exit) }
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
    found.pointee.peakObjects = pool.totals.pointee.objects.peak
    found.pointee.peakObjectBytes = pool.totals.pointee.bytes.peak
    found.pointee.peakPages = pool.totals.pointee.pages.peak
  }
}
