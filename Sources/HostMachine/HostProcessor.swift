// Simulated processors: a thread that took an index, with an interrupt flag and a mailbox.
//
// What bare metal does with interrupts happens here at the points where a thread switches interrupts
// on again: it first carries out what other processors asked of it (the mailbox: an inter-processor
// interrupt), then perhaps a pending device interrupt, chosen by a seed. So nothing ever enters a
// interval with interrupts off, and the order without threads is the seed's.

import CPlatform
import Foundation
import MemoryPrimitives
import Synchronization

final class HostProcessor: @unchecked Sendable {
  struct Job {
    let body: @convention(c) (UnsafeMutableRawPointer) -> Void
    let argument: UnsafeMutableRawPointer
    let done: UnsafeMutablePointer<Atomic<Bool>>
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

  /// Whether a thread is this processor that keeps translations: it had a hook to be told of those to forget when
  /// it became the processor. Such a thread must not wait anywhere without interrupt windows.
  var keepsTranslations: Bool { lock.withLock { isLive && hasBuffer } }
  private var hasBuffer = false

  /// Whether others wait for it to carry something out.
  var isAsked: Bool { hasJobs.load(ordering: .acquiring) }

  /// Reserves it for a thread that will enter; false when it is reserved already. Processor 0 is the test's own.
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
    words.pointee.pending = { Unmanaged<HostProcessor>.fromOpaque($0!).takeUnretainedValue().poll() }
    // An inner entry, as of a test that switches interrupts on in a thread, leaves the outer one alive.
    let wasLive = lock.withLock {
      defer { isLive = true }
      if !isLive || reserved { hasBuffer = words.pointee.invalidate != nil }
      return isLive && !reserved
    }
    defer {
      carryOut(lock.withLock { takeJobs(stayLive: wasLive) })
      words.pointee = before
    }
    return try body()
  }

  /// Runs `body` here: through the mailbox when a thread is this processor, in its place when none is. `ring` wakes
  /// a thread that sleeps.
  func post(
    _ body: @convention(c) (UnsafeMutableRawPointer) -> Void, _ argument: UnsafeMutableRawPointer,
    from asker: HostProcessor?, ring: () -> Void
  ) {
    if asker === self { return interruptsOff { body(argument) } }
    let done = UnsafeMutablePointer<Atomic<Bool>>.allocate(capacity: 1)
    done.initialize(to: Atomic(false))
    defer { done.deallocate() }
    let posted = lock.withLock {
      if isLive {
        jobs.append(Job(body: body, argument: argument, done: done))
        hasJobs.store(true, ordering: .releasing)
      } else {
        impersonate { body(argument) }
      }
      return isLive
    }
    if posted { ring() }
    while posted && !done.pointee.load(ordering: .acquiring) {
      asker?.poll()
      sched_yield()
    }
  }

  /// Runs `body` as an interrupt of this processor, which the calling thread is: at an interrupt window that is
  /// opened for it, as if no lock were held.
  func interrupt(
    _ body: @convention(c) (UnsafeMutableRawPointer) -> Void, _ argument: UnsafeMutableRawPointer
  ) {
    guard cp_processor().pointee.pending != nil else { return interruptsOff { body(argument) } }
    let done = UnsafeMutablePointer<Atomic<Bool>>.allocate(capacity: 1)
    done.initialize(to: Atomic(false))
    defer { done.deallocate() }
    lock.withLock {
      jobs.append(Job(body: body, argument: argument, done: done))
      hasJobs.store(true, ordering: .releasing)
    }
    while !done.pointee.load(ordering: .acquiring) { cp_interrupts_restore(cp_interrupts_disable()) }
  }

  private func impersonate(_ body: () -> Void) {
    let words = cp_processor()
    let before = words.pointee.index
    words.pointee.index = UInt32(index)
    interruptsOff(body)
    words.pointee.index = before
  }

  private func takeJobs(stayLive: Bool) -> [Job] {
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
      job.done.pointee.store(true, ordering: .releasing)
    }
  }

  /// An interrupt window: what is pending runs now, with interrupts off and as if no lock were held.
  func poll() {
    let words = cp_processor()
    guard words.pointee.handling == 0 else { return }
    let hasClaimed = listener.map { !$0.claimed.isEmpty } ?? false
    guard device != nil || hasClaimed || hasJobs.load(ordering: .relaxed) else { return }
    words.pointee.handling = 1
    let rank = words.pointee.held_rank
    words.pointee.held_rank = 0
    if hasJobs.load(ordering: .acquiring) { carryOut(lock.withLock { takeJobs(stayLive: true) }) }
    if let listener {
      let claimed = listener.claimed
      listener.claimed = []
      for word in claimed { interruptsOff { listener.handler(word) } }
    }
    if let device { interruptsOff { device.point() } }
    words.pointee.held_rank = rank
    words.pointee.handling = 0
  }

  /// This processor has claimed `word`; what the listener does then may claim more, unheard.
  func noteClaim(_ word: UnsafeRawPointer) {
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

/// When a test is told of a claim.
public enum ClaimMoment: Sendable {
  /// With the locks held that the processor holds: only what takes locks of higher ranks can be tried.
  case atOnce
  /// As soon as interrupts are on, as if no lock were held: anything that another processor does.
  case unlocked
}

final class ClaimListener {
  let moment: ClaimMoment
  let handler: (UnsafeRawPointer) -> Void
  /// Claims that the handler is yet to be told of.
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

  /// Runs `body` as each of `count` processors at once, on threads of their own; returns when all have.
  public func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    let group = DispatchGroup()
    // Before one of them starts a thread for the core, which gets a processor that no thread is on.
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

  /// Runs `body` with a device interrupt pending on the processor that this thread is (0 unless it took
  /// another): `handler` runs with interrupts off at
  /// points where interrupts are switched on again, chosen by `seed`, about one in `oneIn` of them.
  public func withInterrupts<R>(
    seed: UInt64, oneIn: UInt64, handler: @escaping () -> Void, _ body: () throws -> R
  ) rethrows -> R {
    let processor = processors[Int(cp_processor_index())]
    let outer = processor.device
    processor.device = PendingInterrupt(seed: seed, oneIn: oneIn, handler: handler)
    defer { processor.device = outer }
    return try processor.enter(body)
  }

  /// Runs `body`; after each claim without a lock that this thread makes in it (a compare-and-swap on a frame's busy
  /// word, on the word of idle transfers), `handler` is told which word was claimed. Interrupts are off in it,
  /// and claims that the handler makes are not told.
  public func withClaims<R>(
    _ moment: ClaimMoment, handler: @escaping (UnsafeRawPointer) -> Void, _ body: () throws -> R
  ) rethrows -> R {
    let processor = processors[Int(cp_processor_index())]
    let outer = processor.listener
    processor.listener = ClaimListener(moment, handler)
    defer { processor.listener = outer }
    return try processor.enter {
      cp_processor().pointee.claimed = {
        Unmanaged<HostProcessor>.fromOpaque($0!).takeUnretainedValue().noteClaim($1)
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
