// The scheduler: one queue of ready threads, first in, first out, for all processors; the sleeping threads, by the word
// that they sleep on; and an idle thread for each processor.
//
// A processor runs a thread until the thread sleeps, ends, or a tick of the processor's timer finds another one ready.
// One queue is enough: eight processors take from it some hundred times a second. A processor that makes a thread ready
// interrupts an idle one.
//
// INVARIANTS
//   One spin lock (rank `scheduler`, above every other) covers all records.
//   The lock is held across a context switch: the outgoing thread acquires it and the incoming thread releases it. So no
//   processor uses the stack of a thread that is found ready, sleeping or ended under the lock.
//   A thread is in one place: running on one processor, in the queue, in a bucket of sleepers, or ended.
//   Interrupts arrive with no spin lock held, because a lock switches them off. So a tick may switch threads at any
//   instruction where it arrives.
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

  nonisolated(unsafe) private static let lock = SpinLock(.scheduler)
  nonisolated(unsafe) private static var first: Thread?
  nonisolated(unsafe) private static var last: Thread?
  nonisolated(unsafe) private static var timed: Thread?
  /// Threads that sleep with a deadline and are no services.
  nonisolated(unsafe) private static var timedWorkers = 0
  nonisolated(unsafe) private static var all: Thread?
  nonisolated(unsafe) private static var idleMask: UInt64 = 0
  /// Sleeps that have begun.
  nonisolated(unsafe) private static var sleepCount: UInt64 = 0
  private static let readyCount = Atomic<UInt64>(0)
  private static let sleeperCount = Atomic<UInt64>(0)
  private static let earliest = Atomic<UInt64>(.max)
  /// The sleepers, by a hash of the word that they sleep on. An empty bucket is a word of zeroes, which reads as nil.
  private static var buckets: UnsafeMutablePointer<Thread?> {
    UnsafeMutableRawPointer(cp_sleepers(Image.storage)).assumingMemoryBound(to: Thread?.self)
  }
  private static let threadCount = Atomic<UInt64>(0)

  /// Whether threads run: from `begin` on.
  static var isRunning: Bool { threadCount.load(ordering: .relaxed) > 0 }

  /// Makes `boot` the thread that runs, and `idle` the idle thread of this processor.
  static func begin(_ boot: Thread, idle: Thread) {
    lock.withLock {
      let mine = Processors.mine
      mine.pointee.idle = UnsafeMutableRawPointer(idle.state)
      mine.pointee.processor.thread = UnsafeMutableRawPointer(boot.state)
      mine.pointee.switched = cp_cycles()
      boot.state.pointee.state = .running
      register(boot)
      register(idle)
    }
  }

  /// Registers the idle thread of another processor.
  static func add(idle: Thread) {
    lock.withLock {
      register(idle)
      idle.state.pointee.state = .running
    }
  }

  /// Adds a thread to the list of all. Lock held.
  private static func register(_ thread: Thread) {
    thread.state.pointee.nextOfAll = all
    all = thread
    threadCount.add(1, ordering: .relaxed)
  }

  /// Registers a new thread and makes it ready.
  static func add(_ thread: Thread) {
    lock.withLock {
      register(thread)
      makeReady(thread)
    }
  }

  // MARK: Ready

  /// Puts a thread at the end of the queue, and interrupts an idle processor on which it may run. Lock held.
  private static func makeReady(_ thread: Thread) {
    enqueue(thread)
    let able = idleMask & thread.state.pointee.processors
    guard able != 0 else { return }
    let index = able.trailingZeroBitCount
    // The processor finds the thread when it looks at the queue, so another wake need not interrupt it again.
    idleMask &= ~(1 << UInt64(index))
    if index != Int(cp_processor_index()) {
      LocalAPIC.send(LocalVector.reschedule, to: Processors.block(index).pointee.identity)
    }
  }

  private static func enqueue(_ thread: Thread) {
    thread.state.pointee.state = .ready
    thread.state.pointee.next = nil
    if let last { last.state.pointee.next = thread } else { first = thread }
    last = thread
    readyCount.add(1, ordering: .relaxed)
  }

  /// Removes the first thread that may run on this processor from the queue. Lock held.
  private static func popReady() -> Thread? {
    let bit = UInt64(1) << UInt64(cp_processor_index())
    var before: Thread?
    var at = first
    while let thread = at {
      let next = thread.state.pointee.next
      if thread.state.pointee.processors & bit != 0 {
        if let before { before.state.pointee.next = next } else { first = next }
        if last == thread { last = before }
        thread.state.pointee.next = nil
        readyCount.subtract(1, ordering: .relaxed)
        return thread
      }
      before = thread
      at = next
    }
    return nil
  }

  /// Runs the next thread, and returns when the scheduler runs this one again, perhaps on another processor. The
  /// caller has put this thread into the queue, into a bucket, or among the ended ones.
  ///
  /// The lock passes to the incoming thread with the processor. It is held again on return, with this thread's own
  /// interrupt state: that is why `held` is the caller's before and after.
  private static func switchAway(_ held: borrowing HeldSpinLock) {
    let me = Thread.current
    let mine = Processors.mine
    let next =
      popReady()
      ?? Thread(state: mine.pointee.idle.unsafelyUnwrapped.assumingMemoryBound(to: Thread.Record.self))
    guard next != me else {
      me.state.pointee.state = .running
      return
    }
    let now = cp_cycles()
    let ran = now &- mine.pointee.switched
    me.state.pointee.cycles &+= ran
    if me.state.pointee.role == .idle {
      me.state.pointee.state = .ready
      mine.pointee.idle_cycles &+= ran
      idleMask &= ~(1 << UInt64(mine.pointee.processor.index))
    }
    mine.pointee.switched = now
    mine.pointee.switches &+= 1
    next.state.pointee.state = .running
    next.state.pointee.processor = mine.pointee.processor.index
    next.state.pointee.runs &+= 1
    mine.pointee.processor.thread = UnsafeMutableRawPointer(next.state)
    // The rank of a sleeping lock belongs to the thread that holds the lock.
    me.state.pointee.heldSleeping = mine.pointee.processor.held_sleeping
    mine.pointee.processor.held_sleeping = next.state.pointee.heldSleeping
    cp_switch(&me.state.pointee.stackPointer, next.state.pointee.stackPointer)
  }

  /// Puts the current thread at the end of the queue and runs the first one. Returns at once when the queue is empty.
  static func yield() {
    let held = lock.acquire()
    if first != nil {
      let me = Thread.current
      if me.state.pointee.role != .idle { enqueue(me) }
      switchAway(held)
    }
    held.release()
  }

  /// Yields when a thread is ready. Called in the handler of a tick of this processor's timer, or of a message that a
  /// thread is ready.
  static func preempt() {
    guard isRunning, readyCount.load(ordering: .relaxed) > 0 else { return }
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
      lock.withLock { idleMask &= ~(1 << UInt64(cp_processor_index())) }
    }
  }

  private enum IdleStep { case ranThreads, idle }

  /// Switches to a ready thread, or marks this processor as idle.
  private static func runReadyOrBecomeIdle() -> IdleStep {
    let held = lock.acquire()
    if isReadyHere() {
      switchAway(held)
      held.release()
      return .ranThreads
    }
    let mine = UInt64(1) << UInt64(cp_processor_index())
    idleMask |= mine
    if idleMask == Processors.onlineMask && timedWorkers == 0 {
      refuseStuckSleeper()
      // The refused thread may run on this processor, which must not halt then.
      if isReadyHere() { idleMask &= ~mine }
    }
    let isIdle = idleMask & mine != 0
    held.release()
    return isIdle ? .idle : .ranThreads
  }

  private static func isReadyHere() -> Bool {
    let bit = UInt64(1) << UInt64(cp_processor_index())
    var at = first
    while let thread = at {
      if thread.state.pointee.processors & bit != 0 { return true }
      at = thread.state.pointee.next
    }
    return false
  }

  // MARK: Sleeping

  private static func bucket(_ sequence: UnsafePointer<UInt64>) -> Int {
    let address = UInt(bitPattern: sequence)
    return Int((address >> 3 ^ address >> 9) % UInt(CP_SLEEPERS))
  }

  /// Sleeps until the word at `sequence` differs from `seen`, or the deadline has passed. Interrupts are on. `purpose`
  /// is a static string that `threads` prints. Five arguments in registers cost less than a struct in memory.
  static func sleep(
    on sequence: UnsafePointer<UInt64>, seen: UInt64, until deadline: UInt64, _ kind: WaitKind,
    purpose: UnsafePointer<UInt8>
  ) -> cp_wake {
    precondition(cp_interrupts_enabled(), "a sleep with interrupts off")
    precondition(holdsNoSpinLock(), "a sleep with a spin lock held")
    let me = Thread.current
    let held = lock.acquire()
    // Counted before the word is read, because a waker reads the count after it has changed the word.
    sleeperCount.add(1, ordering: .sequentiallyConsistent)
    let value = UnsafeRawPointer(sequence).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .load(ordering: .sequentiallyConsistent)
    if value != seen || Timer.now.rawValue >= deadline {
      sleeperCount.subtract(1, ordering: .relaxed)
      held.release()
      return value != seen ? .woken : .deadline
    }
    me.state.pointee.state = .sleeping
    me.state.pointee.sequence = sequence
    me.state.pointee.deadline = deadline
    me.state.pointee.waitsFor = purpose
    me.state.pointee.waitKind = kind
    sleepCount += 1
    me.state.pointee.asleepSince = sleepCount
    let bucket = bucket(sequence)
    // At the end, so that a wake begins with the thread that came first.
    me.state.pointee.next = nil
    if var at = buckets[bucket] {
      while let next = at.state.pointee.next { at = next }
      at.state.pointee.next = me
    } else {
      buckets[bucket] = me
    }
    if deadline != .max { insertTimed(me) }
    switchAway(held)
    let answer = me.state.pointee.wake
    held.release()
    return answer
  }

  private static func insertTimed(_ thread: Thread) {
    let deadline = thread.state.pointee.deadline
    var before: Thread?
    var at = timed
    while let other = at, other.state.pointee.deadline <= deadline {
      before = other
      at = other.state.pointee.nextTimed
    }
    thread.state.pointee.isTimed = true
    if thread.state.pointee.role == .worker { timedWorkers += 1 }
    thread.state.pointee.previousTimed = before
    thread.state.pointee.nextTimed = at
    if let at { at.state.pointee.previousTimed = thread }
    if let before { before.state.pointee.nextTimed = thread } else { timed = thread }
    updateEarliest()
  }

  private static func updateEarliest() {
    earliest.store(timed?.state.pointee.deadline ?? .max, ordering: .relaxed)
  }

  /// Removes a sleeper from its bucket, where `before` precedes it, and makes it ready. Lock held.
  private static func wake(_ thread: Thread, behind before: Thread?, in bucket: Int, _ answer: cp_wake) {
    let next = thread.state.pointee.next
    if let before { before.state.pointee.next = next } else { buckets[bucket] = next }
    if thread.state.pointee.isTimed {
      let (previous, following) = (thread.state.pointee.previousTimed, thread.state.pointee.nextTimed)
      if let previous { previous.state.pointee.nextTimed = following } else { timed = following }
      if let following { following.state.pointee.previousTimed = previous }
      thread.state.pointee.isTimed = false
      if thread.state.pointee.role == .worker { timedWorkers -= 1 }
      updateEarliest()
    }
    thread.state.pointee.wake = answer
    thread.state.pointee.sequence = nil
    sleeperCount.subtract(1, ordering: .relaxed)
    makeReady(thread)
  }

  /// Wakes all threads that sleep on `sequence`, which has changed, in the order in which they fell asleep.
  static func wake(_ sequence: UnsafePointer<UInt64>) {
    guard sleeperCount.load(ordering: .sequentiallyConsistent) > 0 else { return }
    lock.withLock { wakeAll(sequence) }
  }

  private static func wakeAll(_ sequence: UnsafePointer<UInt64>) {
    let bucket = bucket(sequence)
    var before: Thread?
    var at = buckets[bucket]
    while let thread = at {
      at = thread.state.pointee.next
      if thread.state.pointee.sequence == sequence {
        wake(thread, behind: before, in: bucket, .woken)
      } else {
        before = thread
      }
    }
  }

  /// Wakes a thread, whatever word it sleeps on. Lock held.
  private static func wake(_ thread: Thread, _ answer: cp_wake) {
    let bucket = bucket(thread.state.pointee.sequence.unsafelyUnwrapped)
    var before: Thread?
    var at = buckets[bucket]
    while let other = at, other != thread {
      before = other
      at = other.state.pointee.next
    }
    wake(thread, behind: before, in: bucket, answer)
  }

  /// Wakes the threads whose deadline has come. Called in the clock's interrupt handler.
  static func tick(_ now: UInt64) {
    guard now >= earliest.load(ordering: .relaxed) else { return }
    lock.withLock {
      while let thread = timed, thread.state.pointee.deadline <= now { wake(thread, .deadline) }
    }
  }

  /// Refuses one thread that waits for memory, because no processor can wake it: all threads sleep, and only services
  /// have a deadline. Lock held.
  private static func refuseStuckSleeper() {
    guard sleeperCount.load(ordering: .relaxed) > 0 else { return }
    var sleepers = StuckSleepers<Thread>()
    var at = all
    while let thread = at {
      at = thread.state.pointee.nextOfAll
      guard thread.state.pointee.state == .sleeping, thread.state.pointee.deadline == .max else { continue }
      sleepers.add(thread, thread.state.pointee.waitKind, since: thread.state.pointee.asleepSince)
    }
    if let refused = sleepers.refused { wake(refused, .never) }
  }

  // MARK: Ends

  /// Releases the lock that a new thread holds, because it comes out of a switch. The first call of every thread.
  fileprivate static func begin() -> Thread {
    lock.adopt().release()
    return Thread.current
  }

  /// Ends the thread `me`. Another thread that sees it ended under the lock knows that no processor uses its stack.
  fileprivate static func end(_ me: Thread) -> Never {
    let held = lock.acquire()
    me.state.pointee.state = .ended
    let sequence = me.ended
    UnsafeMutableRawPointer(mutating: sequence).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .store(1, ordering: .sequentiallyConsistent)
    wakeAll(sequence)
    switchAway(held)
    fatalError("a thread that has ended runs")
  }

  /// Waits until `thread` has ended and left its stack, and removes it from the list of all threads.
  static func join(_ thread: Thread) {
    let purpose = ("a thread to end" as StaticString).utf8Start
    while sleep(on: thread.ended, seen: 0, until: .max, .thread, purpose: purpose) != .woken {}
    lock.withLock { remove(thread) }
  }

  private static func remove(_ thread: Thread) {
    var before: Thread?
    var at = all
    while let other = at, other != thread {
      before = other
      at = other.state.pointee.nextOfAll
    }
    if let before {
      before.state.pointee.nextOfAll = thread.state.pointee.nextOfAll
    } else {
      all = thread.state.pointee.nextOfAll
    }
    threadCount.subtract(1, ordering: .relaxed)
  }

  // MARK: Inspection

  /// The state of a thread, as `threads` prints it.
  struct Description {
    var number: UInt32
    var name: Name
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
    lock.withLock { describeFirst(from: number) }
  }

  private static func describeFirst(from number: UInt32) -> Description? {
    var found: Thread?
    var at = all
    while let thread = at {
      at = thread.state.pointee.nextOfAll
      if thread.state.pointee.number >= number,
        found.map({ $0.state.pointee.number > thread.state.pointee.number }) ?? true
      {
        found = thread
      }
    }
    guard let record = found?.state else { return nil }
    return Description(
      number: record.pointee.number, name: record.pointee.name, role: record.pointee.role,
      state: record.pointee.state, processor: record.pointee.processor, cycles: record.pointee.cycles,
      runs: record.pointee.runs, deadline: record.pointee.deadline, waitsFor: record.pointee.waitsFor,
      size: record.pointee.stack.count.bytes)
  }

  /// Bytes of its stack that the thread with this number has ever used; zero when the thread is gone. Walks over the
  /// unused words, and releases the lock after each half page.
  static func stackUse(of number: UInt32) -> ByteCount {
    var unused = 0
    while true {
      let held = lock.acquire()
      var at = all
      while let thread = at, thread.state.pointee.number != number { at = thread.state.pointee.nextOfAll }
      guard let thread = at else {
        held.release()
        return .zero
      }
      if thread.skipUnused(&unused, upTo: 256) {
        let size = thread.state.pointee.stack.count.bytes
        held.release()
        return size - ByteCount(UInt64(unused) * 8)
      }
      held.release()
    }
  }

  /// The name of the thread that runs on a processor. The lock keeps the record of one that ends at the same time.
  static func nameOfThread(on block: ProcessorBlock) -> Name {
    lock.withLock {
      Thread(
        state: block.pointee.processor.thread.unsafelyUnwrapped.assumingMemoryBound(to: Thread.Record.self)
      ).state.pointee.name
    }
  }

  /// Finds the stack whose guard page holds `address`. A fault report calls it, so it acquires no lock.
  static func stack(guardedAt address: UInt64) -> cp_span? {
    var at = all
    while let thread = at {
      let stack = thread.state.pointee.stack
      if address >= stack.guardPage.rawValue && address < stack.bottom.rawValue {
        return cp_span(first: stack.bottom.rawValue, end: stack.top.rawValue)
      }
      at = thread.state.pointee.nextOfAll
    }
    return nil
  }
}

/// Called by boot/processors.asm when a thread runs for the first time, on its own stack.
@c(kernel_thread)
public func kernelThread() -> Never {
  let me = Scheduler.begin()
  me.state.pointee.body?(me.state.pointee.argument)
  Scheduler.end(me)
}
