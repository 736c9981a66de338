// Work that runs in an interrupt handler: it stands for a driver's interrupt, for workloads that simulate one.
//
// A thread that has such work makes the processor's own timer fire once, by a vector of its own, and waits until its
// handler has run. That restarts the period of the timer's regular ticks, so the handler also does their work: it
// lets the next thread run, and counts a beat for the watchdog. It does not check its neighbour, because such
// interrupts may come much faster than ticks.

import CPlatform
import MemoryPrimitives
import Synchronization

enum InterruptWork {
  private struct Job: ~Copyable {
    let body: @convention(c) (UnsafeMutableRawPointer) -> Void
    let argument: UnsafeMutableRawPointer
    let isDone = Atomic<Bool>(false)

    init(
      _ body: @escaping @convention(c) (UnsafeMutableRawPointer) -> Void, _ argument: UnsafeMutableRawPointer
    ) {
      self.body = body
      self.argument = argument
    }
  }

  /// Runs `body` in an interrupt handler of this processor, with interrupts off, and returns when it has run.
  static func run(
    _ body: @escaping @convention(c) (UnsafeMutableRawPointer) -> Void, _ argument: UnsafeMutableRawPointer
  ) {
    precondition(
      cp_interrupts_enabled() && holdsNoSpinLock(), "an interrupt is waited for with interrupts off")
    let job = Job(body, argument)
    withUnsafePointer(to: job) { job in
      while !post(UnsafeMutableRawPointer(mutating: job)) { Scheduler.yield() }
      while !job.pointee.isDone.load(ordering: .acquiring) { cp_pause(0) }
    }
  }

  /// Posts the job on this processor. False while another thread's work waits there.
  private static func post(_ job: UnsafeMutableRawPointer) -> Bool {
    withInterruptsOff {
      let mine = Processors.mine
      guard mine.pointee.work == nil else { return false }
      mine.pointee.work = job
      LocalAPIC.fireTimer(LocalVector.work)
      return true
    }
  }

  /// Runs the work that waits on this processor. Called in the interrupt handler.
  static func serve(_ mine: ProcessorBlock) {
    if let work = mine.pointee.work {
      mine.pointee.work = nil
      let job = work.assumingMemoryBound(to: Job.self)
      job.pointee.body(job.pointee.argument)
      // From here on the job's memory belongs to its owner again.
      job.pointee.isDone.store(true, ordering: .releasing)
    }
    LocalAPIC.startTimer(every: Scheduler.timerTicks)
  }
}
