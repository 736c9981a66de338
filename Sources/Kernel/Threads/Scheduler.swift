// The scheduler: one queue of ready threads, first in, first out, for all processors; the sleeping threads, by the word
// that they sleep on; and an idle thread for each processor.
//
// A processor runs a thread until the thread sleeps, ends, or a tick of the processor's timer finds another one ready.
// One queue is enough: eight processors take from it some hundred times a second. A processor that makes a thread ready
// interrupts an idle one.
//
// INVARIANTS
//   One spin lock (rank `scheduler`, above every other) covers all records (ThreadQueues).
//   The lock is held across a context switch: the outgoing thread acquires it and the incoming thread releases it. So
//   no processor uses the stack of a thread that is found ready, sleeping or ended under the lock.
//   A thread is in one place: running on one processor, in the queue, in a bucket of sleepers, or ended.
//   Interrupts arrive with no spin lock held, because a lock switches them off. So a tick may switch threads at any
//   instruction where it arrives. A thread that is pinned (`cp_pin`) is not switched: the next tick tries again.
//   A sleeper reads its sequence number under the lock, and a waker acquires the lock after it has changed the number:
//   no wake is lost. A waker first reads the count of sleepers, which costs one load.
//
// WHEN NO PROCESSOR CAN WAKE A THREAD. All processors are idle, only services sleep with a deadline, and no thread
// waits for an interrupt. Then the scheduler refuses the thread that has waited for memory longest. The others go on
// sleeping, because the refused thread may wake them (StuckSleepers). A service that runs now and then does not count
// as one that can wake others.
//
// COST. A wake, the sleep of the waker, and the switch between them: about 500 instructions (`bench switch`). A wake or
// a sleep walks over the sleepers of one bucket of 64; a sleep with a deadline also walks over those with an earlier
// one.

import CPlatform
import KernelSpace
import MemoryPrimitives
import Synchronization

enum Scheduler {
  /// Milliseconds from one tick of a processor's own timer to the next, which is also how long a thread runs when
  /// others are ready.
  static var timerTicks: UInt32 { 4 }

  /// Whether threads run: from `begin` on.
  static var isRunning: Bool { ThreadQueues.threadCount.load(ordering: .relaxed) > 0 }

  /// Makes `boot` the thread that runs, and `idle` the idle thread of this processor.
  static func begin(_ boot: Thread, idle: Thread) {
    ThreadQueues.withLock { queues in
      let mine = Processors.mine
      mine.pointee.idle = UnsafeMutableRawPointer(idle.storage)
      mine.pointee.processor.thread = UnsafeMutableRawPointer(boot.storage)
      mine.pointee.switched = cp_cycles()
      boot.record.state = .running
      queues.register(boot)
      queues.register(idle)
    }
  }

  /// Registers the idle thread of another processor.
  static func add(idle: Thread) {
    ThreadQueues.withLock { queues in
      queues.register(idle)
      idle.record.state = .running
    }
  }

  /// Registers a new thread and makes it ready.
  static func add(_ thread: Thread) {
    ThreadQueues.withLock { queues in
      queues.register(thread)
      queues.makeReady(thread)
    }
  }

  // MARK: Ready

  /// Runs the next thread, and returns when the scheduler runs this one again, perhaps on another processor. The
  /// caller has put this thread into the queue, into a bucket, or among the ended ones.
  ///
  /// The lock passes to the incoming thread with the processor. It is held again on return, with this thread's own
  /// interrupt state: that is why `held` is the caller's before and after.
  private static func switchAway(_ held: borrowing ThreadQueues.Held) {
    let me = Thread.current
    let mine = Processors.mine
    let next =
      held.queues.popReady()
      ?? Thread(mine.pointee.idle.unsafelyUnwrapped.assumingMemoryBound(to: Thread.Record.self))
    guard next != me else {
      me.record.state = .running
      return
    }
    let now = cp_cycles()
    let ran = now &- mine.pointee.switched
    me.record.cycles &+= ran
    if me.record.role == .idle {
      me.record.state = .ready
      mine.pointee.idle_cycles &+= ran
      held.queues.idleMask &= ~(1 << UInt64(cp_processor_index()))
    }
    mine.pointee.switched = now
    mine.pointee.switches &+= 1
    next.record.state = .running
    next.record.processor = cp_processor_index()
    next.record.runs &+= 1
    mine.pointee.processor.thread = UnsafeMutableRawPointer(next.storage)
    // The rank of a sleeping lock belongs to the thread that holds the lock.
    me.record.heldSleeping = mine.pointee.processor.held_sleeping
    mine.pointee.processor.held_sleeping = next.record.heldSleeping
    cp_switch(&me.record.stackPointer, next.record.stackPointer)
  }

  /// Puts the current thread at the end of the queue and runs the first one. Returns at once when the queue is empty,
  /// or the thread is pinned.
  static func yield() {
    guard cp_pins() == 0 else { return }
    let held = ThreadQueues.acquire()
    if held.queues.first != nil {
      let me = Thread.current
      if me.record.role != .idle { held.queues.enqueue(me) }
      switchAway(held)
    }
    held.release()
  }

  /// Lets the current thread run only on `processors`, a bit each, and returns those before. Moves the thread to one of
  /// them. Interrupts are on, and no lock is held.
  static func confine(to processors: UInt64) -> UInt64 {
    guard isRunning else { return .max }
    precondition(cp_pins() == 0, "a thread with a page window open leaves its processor")
    let held = ThreadQueues.acquire()
    let me = Thread.current
    let before = me.record.processors
    me.record.processors = processors
    if processors & 1 << UInt64(cp_processor_index()) == 0 {
      held.queues.makeReady(me)
      switchAway(held)
    }
    held.release()
    return before
  }

  /// Yields when a thread is ready. Called in the handler of a tick of this processor's timer, or of a message that a
  /// thread is ready.
  static func preempt() {
    guard isRunning, ThreadQueues.readyCount.load(ordering: .relaxed) > 0 else { return }
    yield()
  }

  /// Runs ready threads, and halts the processor while there are none. The body of the idle thread.
  static func idle() -> Never {
    _ = cp_interrupts_disable()
    while true {
      guard runReadyOrBecomeIdle() == .idle else { continue }
      // A processor that makes a thread ready from here on interrupts this processor.
      cp_enable_and_wait()
      _ = cp_interrupts_disable()
      ThreadQueues.withLock { $0.idleMask &= ~(1 << UInt64(cp_processor_index())) }
    }
  }

  private enum IdleStep { case ranThreads, idle }

  /// Switches to a ready thread, or marks this processor as idle.
  private static func runReadyOrBecomeIdle() -> IdleStep {
    let held = ThreadQueues.acquire()
    if held.queues.isReadyHere() {
      switchAway(held)
      held.release()
      return .ranThreads
    }
    let mine = UInt64(1) << UInt64(cp_processor_index())
    held.queues.idleMask |= mine
    if held.queues.idleMask == Processors.onlineMask && held.queues.timedWorkers == 0 {
      held.queues.refuseStuckSleeper()
      // The refused thread may run on this processor, which must not halt then.
      if held.queues.isReadyHere() { held.queues.idleMask &= ~mine }
    }
    let isIdle = held.queues.idleMask & mine != 0
    held.release()
    return isIdle ? .idle : .ranThreads
  }

  // MARK: Sleeping

  /// Sleeps until the word at `sequence` differs from `seen`, or the deadline has passed. Interrupts are on, and the
  /// thread is not pinned: `Machine` reports that. `purpose` is a static string that `threads` prints. Five arguments in
  /// registers cost less than a struct in memory.
  static func sleep(
    on sequence: UnsafePointer<UInt64>, seen: UInt64, until deadline: UInt64, _ kind: WaitKind,
    purpose: UnsafePointer<UInt8>
  ) -> cp_wake {
    precondition(cp_interrupts_enabled(), "a sleep with interrupts off")
    precondition(holdsNoSpinLock(), "a sleep with a spin lock held")
    let me = Thread.current
    let held = ThreadQueues.acquire()
    // Counted before the word is read, because a waker reads the count after it has changed the word.
    ThreadQueues.sleeperCount.add(1, ordering: .sequentiallyConsistent)
    let value = UnsafeRawPointer(sequence).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .load(ordering: .sequentiallyConsistent)
    if value != seen || Timer.now.rawValue >= deadline {
      ThreadQueues.sleeperCount.subtract(1, ordering: .relaxed)
      held.release()
      return value != seen ? .woken : .deadline
    }
    me.record.state = .sleeping
    me.record.sequence = sequence
    me.record.deadline = deadline
    me.record.waitsFor = purpose
    me.record.waitKind = kind
    held.queues.addSleeper(me)
    switchAway(held)
    let answer = me.record.wake
    held.release()
    return answer
  }

  /// Wakes all threads that sleep on `sequence`, which has changed, in the order in which they fell asleep.
  static func wake(_ sequence: UnsafePointer<UInt64>) {
    guard ThreadQueues.sleeperCount.load(ordering: .sequentiallyConsistent) > 0 else { return }
    ThreadQueues.withLock { $0.wakeAll(sequence) }
  }

  /// Wakes the threads whose deadline has come. Called in the clock's interrupt handler.
  static func tick(_ now: UInt64) {
    guard now >= ThreadQueues.earliest.load(ordering: .relaxed) else { return }
    ThreadQueues.withLock { queues in
      while let thread = queues.timed, thread.record.deadline <= now { queues.wake(thread, .deadline) }
    }
  }

  // MARK: Ends

  /// Releases the lock that a new thread holds, because it comes out of a switch. The first call of every thread.
  fileprivate static func begin() -> Thread {
    ThreadQueues.adopt().release()
    return Thread.current
  }

  /// Ends the thread `me`. Another thread that sees it ended under the lock knows that no processor uses its stack.
  fileprivate static func end(_ me: Thread) -> Never {
    precondition(cp_pins() == 0, "a thread ends with a page window open")
    let held = ThreadQueues.acquire()
    me.record.state = .ended
    let sequence = me.ended
    UnsafeMutableRawPointer(mutating: sequence).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .store(1, ordering: .sequentiallyConsistent)
    held.queues.wakeAll(sequence)
    switchAway(held)
    fatalError("a thread that has ended runs")
  }

  /// Waits until `thread` has ended and left its stack, and removes it from the list of all threads.
  static func join(_ thread: Thread) {
    let purpose = ("a thread to end" as StaticString).utf8Start
    while sleep(on: thread.ended, seen: 0, until: .max, .thread, purpose: purpose) != .woken {}
    ThreadQueues.withLock { $0.remove(thread) }
  }

  // MARK: Inspection

  /// The state of a thread, as `threads` prints it.
  struct Description {
    var number: UInt32
    var name: ShortName
    var role: Thread.Role
    var state: Thread.State
    var processor: UInt32
    var cycles: UInt64
    var runs: UInt64
    var deadline: UInt64
    var waitsFor: UnsafePointer<UInt8>?
    var size: ByteCount
  }

  /// Describes the thread with the lowest number from `number` on.
  static func describe(from number: UInt32) -> Description? {
    ThreadQueues.withLock { $0.describeFirst(from: number) }
  }

  /// Bytes of its stack that the thread with this number has ever used; zero when the thread is gone. Walks over the
  /// unused words, and releases the lock after each half page.
  static func stackUse(of number: UInt32) -> ByteCount {
    var unused = 0
    while true {
      let held = ThreadQueues.acquire()
      var at = held.queues.all
      while let thread = at, thread.record.number != number { at = thread.record.nextOfAll }
      guard let thread = at else {
        held.release()
        return .zero
      }
      if thread.skipUnused(&unused, upTo: 256) {
        let size = thread.record.stack.count.bytes
        held.release()
        return size - ByteCount(UInt64(unused) * 8)
      }
      held.release()
    }
  }

  /// The name of the thread that runs on a processor. The lock keeps the record of one that ends at the same time.
  static func nameOfThread(on block: ProcessorBlock) -> ShortName {
    ThreadQueues.withLock { _ in
      Thread(
        block.pointee.processor.thread.unsafelyUnwrapped.assumingMemoryBound(to: Thread.Record.self)
      ).record.name
    }
  }

  /// Finds the stack whose guard page holds `address`. A fault report calls it, so it acquires no lock.
  static func stack(guardedAt address: UInt64) -> cp_span? {
    var at = ThreadQueues.unguardedFirst
    while let thread = at {
      let stack = thread.record.stack
      if address >= stack.guardPage.rawValue && address < stack.bottom.rawValue {
        return cp_span(first: stack.bottom.rawValue, end: stack.top.rawValue)
      }
      at = thread.record.nextOfAll
    }
    return nil
  }
}

/// Called by boot/processors.asm when a thread runs for the first time, on its own stack.
@c(kernel_thread)
public func kernelThread() -> Never {
  let me = Scheduler.begin()
  me.record.body?(me.record.argument)
  Scheduler.end(me)
}
