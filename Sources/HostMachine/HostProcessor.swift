// Simulated processors: a thread that has an index, with an interrupt flag and a mailbox.
//
// Interrupts run at the points where a thread switches interrupts on again. It first carries out the jobs of other
// processors (the mailbox stands for inter-processor interrupts), then perhaps a pending device interrupt, chosen by a
// seed. So no handler runs in an interval with interrupts off, and without threads the seed decides the order.

import CPlatform
import Foundation
import MemoryPrimitives
import Synchronization

final class HostProcessor: @unchecked Sendable {
  struct Job {
    let body: @convention(c) (UnsafeMutableRawPointer) -> Void
    let argument: UnsafeMutableRawPointer
    let completion: Completion
  }
  /// The end of a job, which the processor that posted it waits for.
  final class Completion: Sendable {
    let isDone = Atomic<Bool>(false)
  }

  let index: Int
  private let lock = NSLock()
  private var jobs: [Job] = []
  /// Written under the lock.
  private let live = Atomic<Bool>(false)
  private let hasJobs = Atomic<Bool>(false)
  /// Touched by the processor's own thread only.
  var device: PendingInterrupt?
  var listener: ClaimListener?

  /// Whether the thread that is this processor is a service of the core; others are workers. Set
  /// before it runs.
  var isService = false

  init(index: Int) { self.index = index }

  /// Whether a thread is this processor.
  private(set) var isLive: Bool {
    get { live.load(ordering: .acquiring) }
    set { live.store(newValue, ordering: .releasing) }
  }

  /// Whether a thread is this processor and caches translations: it had an invalidation hook when it became the
  /// processor. Such a thread must not wait anywhere without interrupt windows.
  var keepsTranslations: Bool { lock.withLock { isLive && hasBuffer } }
  private var hasBuffer = false

  /// Whether another processor waits for it to carry out a job.
  var isAsked: Bool { hasJobs.load(ordering: .acquiring) }

  /// Reserves it for a thread that will enter. Returns false when it is reserved already. Processor 0 belongs to the
  /// test.
  func reserve() -> Bool {
    lock.withLock {
      guard !isLive, index > 0 else { return false }
      isLive = true
      isService = false
      return true
    }
  }

  /// Makes the calling thread this processor while `body` runs; `reserved` when it was reserved for it.
  func enter<R>(reserved: Bool = false, _ body: () throws -> R) rethrows -> R {
    let words = cp_processor()
    let before = words.pointee
    words.pointee.index = UInt32(index)
    words.pointee.pending_context = Unmanaged.passUnretained(self).toOpaque()
    words.pointee.run_pending = { Unmanaged<HostProcessor>.fromOpaque($0!).takeUnretainedValue().poll() }
    // An inner entry, as of a test that switches interrupts on in a thread, leaves the outer one alive.
    let wasLive = lock.withLock {
      defer { isLive = true }
      if !isLive || reserved { hasBuffer = words.pointee.invalidate != nil }
      return isLive && !reserved
    }
    defer {
      carryOut(lock.withLock { removeJobs(stayLive: wasLive) })
      words.pointee = before
    }
    return try body()
  }

  /// Runs `body` here: through the mailbox when a thread is this processor, on the calling thread when none is. `ring`
  /// wakes a thread that sleeps.
  func post(
    _ body: @convention(c) (UnsafeMutableRawPointer) -> Void, _ argument: UnsafeMutableRawPointer,
    from asker: HostProcessor?, ring: () -> Void
  ) {
    if asker === self { return interruptsOff { body(argument) } }
    let completion = Completion()
    let posted = lock.withLock {
      if isLive {
        jobs.append(Job(body: body, argument: argument, completion: completion))
        hasJobs.store(true, ordering: .releasing)
      } else {
        impersonate { body(argument) }
      }
      return isLive
    }
    if posted { ring() }
    while posted && !completion.isDone.load(ordering: .acquiring) {
      asker?.poll()
      sched_yield()
    }
  }

  /// Runs `body` as an interrupt of this processor, which the calling thread is. It opens an interrupt window for it,
  /// as if no lock were held.
  func interrupt(
    _ body: @convention(c) (UnsafeMutableRawPointer) -> Void, _ argument: UnsafeMutableRawPointer
  ) {
    guard cp_processor().pointee.run_pending != nil else {
      // A thread that has entered no processor is processor 0.
      let before = cp_set_handling(1)
      defer { _ = cp_set_handling(before) }
      return interruptsOff { body(argument) }
    }
    let completion = Completion()
    lock.withLock {
      jobs.append(Job(body: body, argument: argument, completion: completion))
      hasJobs.store(true, ordering: .releasing)
    }
    while !completion.isDone.load(ordering: .acquiring) { cp_interrupts_restore(cp_interrupts_disable()) }
  }

  private func impersonate(_ body: () -> Void) {
    let words = cp_processor()
    let before = words.pointee.index
    words.pointee.index = UInt32(index)
    interruptsOff(body)
    words.pointee.index = before
  }

  private func removeJobs(stayLive: Bool) -> [Job] {
    defer {
      jobs = []
      isLive = stayLive
      hasJobs.store(false, ordering: .relaxed)
    }
    return jobs
  }

  private func carryOut(_ jobs: [Job]) {
    for job in jobs {
      interruptsOff { job.body(job.argument) }
      job.completion.isDone.store(true, ordering: .releasing)
    }
  }

  /// Runs pending jobs and interrupts, with interrupts off and as if no lock were held: an interrupt window.
  func poll() {
    let words = cp_processor()
    guard words.pointee.handling == 0 else { return }
    let hasClaimed = listener.map { !$0.claimed.isEmpty } ?? false
    guard device != nil || hasClaimed || hasJobs.load(ordering: .relaxed) else { return }
    words.pointee.handling = 1
    let rank = words.pointee.held_rank
    words.pointee.held_rank = 0
    if hasJobs.load(ordering: .acquiring) { carryOut(lock.withLock { removeJobs(stayLive: true) }) }
    if let listener {
      let claimed = listener.claimed
      listener.claimed = []
      for word in claimed { interruptsOff { listener.handler(word) } }
    }
    if let device { interruptsOff { device.point() } }
    words.pointee.held_rank = rank
    words.pointee.handling = 0
  }

  /// Reports a claim of `word` to the listener. Claims that the listener makes are not reported.
  func reportClaim(_ word: UnsafeRawPointer) {
    let words = cp_processor()
    guard let listener, words.pointee.handling == 0 else { return }
    switch listener.moment {
    case .atOnce:
      words.pointee.handling = 1
      interruptsOff { listener.handler(word) }
      words.pointee.handling = 0
    case .unlocked:
      listener.claimed.append(word)
      if cp_interrupts_enabled() { poll() }
    }
  }

  private func interruptsOff(_ body: () -> Void) {
    let words = cp_processor()
    let before = words.pointee.interrupts_off
    words.pointee.interrupts_off = 1
    body()
    words.pointee.interrupts_off = before
  }
}

/// A device interrupt that may come at any interrupt window, about once in `oneIn` of them.
final class PendingInterrupt {
  private var state: UInt64
  private let oneIn: UInt64
  private let handler: () -> Void

  init(seed: UInt64, oneIn: UInt64, handler: @escaping () -> Void) {
    state = seed
    self.oneIn = oneIn
    self.handler = handler
  }

  func point() {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    if (state >> 33) % oneIn == 0 { handler() }
  }
}

/// The moment at which a test's handler of claims runs.
public enum ClaimMoment: Sendable {
  /// With the processor's locks held: the handler may take only locks of higher ranks.
  case atOnce
  /// As soon as interrupts are on, as if no lock were held: the handler may act as any other processor.
  case unlocked
}

final class ClaimListener {
  let moment: ClaimMoment
  let handler: (UnsafeRawPointer) -> Void
  /// Claims that wait for the handler.
  var claimed: [UnsafeRawPointer] = []

  init(_ moment: ClaimMoment, _ handler: @escaping (UnsafeRawPointer) -> Void) {
    self.moment = moment
    self.handler = handler
  }
}

extension SimulatedMachine {
  /// Makes the calling thread the processor `index` while `body` runs. No two threads may be the same
  /// processor at once.
  public func runAs<R>(processor index: Int, _ body: () throws -> R) rethrows -> R {
    try processors[index].enter(body)
  }

  /// Runs `body` as each of `count` processors at once, on threads of their own. Returns when all have returned.
  public func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    let group = DispatchGroup()
    // First of all, because one of them may start a thread for the core, which gets a processor without a thread.
    for index in 1..<max(1, count) {
      precondition(processors[index].reserve(), "processor \(index) is reserved already")
    }
    for index in 0..<count {
      group.enter()
      let thread = Thread {
        self.processors[index].enter(reserved: index > 0) { body(index) }
        group.leave()
      }
      thread.stackSize = 8 << 20
      thread.start()
    }
    group.wait()
  }

  /// Runs `body` as an interrupt handler of the processor that the calling thread is, which has interrupts on.
  public func interrupt(
    _ argument: UnsafeMutableRawPointer, _ body: @convention(c) (UnsafeMutableRawPointer) -> Void
  ) {
    processors[Int(cp_processor_index())].interrupt(body, argument)
  }

  /// Runs `body` with a device interrupt pending on the processor that this thread is (0 unless it is another).
  /// `handler` runs with interrupts off at points where interrupts are switched on again, chosen by `seed`, about one
  /// in `oneIn` of them.
  public func withInterrupts<R>(
    seed: UInt64, oneIn: UInt64, handler: @escaping () -> Void, _ body: () throws -> R
  ) rethrows -> R {
    let processor = processors[Int(cp_processor_index())]
    let outer = processor.device
    processor.device = PendingInterrupt(seed: seed, oneIn: oneIn, handler: handler)
    defer { processor.device = outer }
    return try processor.enter(body)
  }

  /// Runs `body`, and calls `handler` with the word of each claim without a lock that this thread makes in it. Such a
  /// claim is a compare-and-swap on a frame's busy word or on the word of idle transfers. The handler runs with
  /// interrupts off, and its own claims are not reported.
  public func withClaims<R>(
    _ moment: ClaimMoment, handler: @escaping (UnsafeRawPointer) -> Void, _ body: () throws -> R
  ) rethrows -> R {
    let processor = processors[Int(cp_processor_index())]
    let outer = processor.listener
    processor.listener = ClaimListener(moment, handler)
    defer { processor.listener = outer }
    return try processor.enter {
      cp_processor().pointee.report_claim = {
        Unmanaged<HostProcessor>.fromOpaque($0!).takeUnretainedValue().reportClaim($1)
      }
      return try body()
    }
  }

  func run(
    on target: ProcessorIndex, _ body: @convention(c) (UnsafeMutableRawPointer) -> Void,
    _ argument: UnsafeMutableRawPointer
  ) {
    let asker = processors[Int(cp_processor_index())]
    processors[Int(target.rawValue)].post(body, argument, from: asker, ring: wakeAll)
  }
}
