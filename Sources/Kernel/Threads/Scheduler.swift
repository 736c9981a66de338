// The threads and where they run: one queue of those that are ready, in turn, for all processors; those that sleep, by
// the word they sleep on; and an idle thread for each processor.
//
// A processor runs a thread until that sleeps, ends, or a tick of the processor's timer finds that another is ready.
// The queue is one, as eight processors take from it some hundred times a second; a processor that has nothing to
// do is interrupted when something becomes ready.
//
// INVARIANTS
//   One spin lock (rank `scheduler`, above every other) covers all records. It is held across a switch: the thread
//   that leaves takes it, the one that comes releases it. So a thread that is found ready, sleeping or ended has left its stack.
//   A thread is in one place: running on one processor, in the queue, in a bucket of sleepers, or ended.
//   Interrupts come with no spin lock held, as a lock switches them off; so a tick may switch threads wherever
//   it arrives.
//   A sleeper looks at its sequence number under the lock, and a waker takes the lock after changing it: no wake
//   is lost. A waker looks first whether any thread sleeps at all, which costs one load.
//
// WHEN NO PROCESSOR CAN WAKE A THREAD. All processors are idle, none but services sleeps with a deadline, and no thread
// waits for an interrupt. Then the thread that has waited for memory longest is told so (`cp_wake_never`); the others
// go on sleeping, as what it does then may wake them (StuckSleepers). A service that looks around now and then is not
// waited for.
//
// COST. A wake, the sleep of the waker, and the switch between them: about 500 instructions (`bench switch`). A wake or
// a sleep is a walk over the sleepers of one bucket of 64; a sleep with a deadline also one over those with an earlier
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
  /// Of those that sleep with a deadline, how many are no services.
  nonisolated(unsafe) private static var timedWorkers = 0
  nonisolated(unsafe) private static var all: Thread?
  nonisolated(unsafe) private static var idleMask: UInt64 = 0
  /// Sleeps that have begun.
  nonisolated(unsafe) private static var sleepCount: UInt64 = 0
  private static let readyCount = Atomic<UInt64>(0)
  private static let sleeperCount = Atomic<UInt64>(0)
  private static let earliest = Atomic<UInt64>(.max)
  /// The sleepers, by the word they sleep on: nil is a word of zeroes.
  private static var buckets: UnsafeMutablePointer<Thread?> {
    UnsafeMutableRawPointer(cp_sleepers(Image.storage)).assumingMemoryBound(to: Thread?.self)
  }
  private static let threadCount = Atomic<UInt64>(0)

  /// Whether threads run: from `begin` on.
  static var isRunning: Bool { threadCount.load(ordering: .relaxed) > 0 }

  /// Makes `boot` the thread that runs, and `idle` the idle thread of this processor.
  static func begin(_ boot: Thread, idle: Thread) {
    let interrupts = lock.lock()
    let mine = Processors.mine
    mine.pointee.idle = UnsafeMutableRawPointer(idle.state)
    mine.pointee.processor.thread = UnsafeMutableRawPointer(boot.state)
    mine.pointee.switched = cp_cycles()
    boot.state.pointee.state = .running
    note(boot)
    note(idle)
    lock.unlock(interrupts)
  }

  /// Makes the idle thread of another processor known.
  static func add(idle: Thread) {
    let interrupts = lock.lock()
    note(idle)
    idle.state.pointee.state = .running
    lock.unlock(interrupts)
  }

  private static func note(_ thread: Thread) {
    thread.state.pointee.nextOfAll = all
    all = thread
    threadCount.add(1, ordering: .relaxed)
  }

  /// Lets a new thread run.
  static func add(_ thread: Thread) {
    let interrupts = lock.lock()
    note(thread)
    makeReady(thread)
    lock.unlock(interrupts)
  }

  // MARK: Ready

  /// Puts a thread at the end of the queue, and tells a processor that has nothing to do. Lock held.
  private static func makeReady(_ thread: Thread) {
    enqueue(thread)
    let able = idleMask & thread.state.pointee.processors
    guard able != 0 else { return }
    let index = able.trailingZeroBitCount
    // It will find it: another wake need not interrupt it again.
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

  /// Takes the first thread that may run here. Lock held.
  private static func takeReady() -> Thread? {
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

  /// Goes on with the next thread; returns when this one has its turn again, perhaps on another processor.
  /// Lock held; the caller has put this thread where it belongs.
  private static func switchAway() {
    let me = Thread.current
    let mine = Processors.mine
    let next =
      takeReady()
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
    // The rank of a sleeping lock goes with the thread that holds it.
    me.state.pointee.heldSleeping = mine.pointee.processor.held_sleeping
    mine.pointee.processor.held_sleeping = next.state.pointee.heldSleeping
    cp_switch(&me.state.pointee.stackPointer, next.state.pointee.stackPointer)
  }

  /// Lets the others have their turn.
  static func yield() {
    let interrupts = lock.lock()
    giveWay()
    lock.unlock(interrupts)
  }

  private static func giveWay() {
    let me = Thread.current
    guard first != nil else { return }
    if me.state.pointee.role != .idle { enqueue(me) }
    switchAway()
  }

  /// A tick of this processor's timer, or a message that a thread is ready: in an interrupt handler.
  static func preempt() {
    guard isRunning, readyCount.load(ordering: .relaxed) > 0 else { return }
    yield()
  }

  /// What a processor does when nothing is ready. Never returns.
  static func idle() -> Never {
    _ = cp_interrupts_disable()
    while true {
      let interrupts = lock.lock()
      if isReadyHere() {
        switchAway()
        lock.unlock(interrupts)
        continue
      }
      idleMask |= 1 << UInt64(cp_processor_index())
      if idleMask == Processors.onlineMask && timedWorkers == 0 {
        refuseStuckSleeper()
        // Perhaps for this processor, which is not to halt then.
        if isReadyHere() {
          idleMask &= ~(1 << UInt64(cp_processor_index()))
          lock.unlock(interrupts)
          continue
        }
      }
      lock.unlock(interrupts)
      // A processor that makes something ready from here on interrupts this processor.
      cp_enable_and_wait()
      _ = cp_interrupts_disable()
      let again = lock.lock()
      idleMask &= ~(1 << UInt64(cp_processor_index()))
      lock.unlock(again)
    }
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

  /// Sleeps until `sequence` is another than `seen`, or the deadline has passed. Interrupts are on. `what` is a static
  /// string for those who look.
  static func sleep(
    _ sequence: UnsafePointer<UInt64>, _ seen: UInt64, _ deadline: UInt64, _ kind: WaitKind,
    _ what: UnsafePointer<UInt8>
  ) -> cp_wake {
    precondition(cp_interrupts_enabled(), "a sleep with interrupts off")
    precondition(holdsNoSpinLock(), "a sleep with a spin lock held")
    let me = Thread.current
    let interrupts = lock.lock()
    // Counted before the look, as a waker looks at the count after the change.
    sleeperCount.add(1, ordering: .sequentiallyConsistent)
    let value = UnsafeRawPointer(sequence).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .load(ordering: .sequentiallyConsistent)
    if value != seen || Timer.now.rawValue >= deadline {
      sleeperCount.subtract(1, ordering: .relaxed)
      lock.unlock(interrupts)
      return value != seen ? .woken : .deadline
    }
    me.state.pointee.state = .sleeping
    me.state.pointee.sequence = sequence
    me.state.pointee.deadline = deadline
    me.state.pointee.waitsFor = what
    me.state.pointee.waitKind = kind
    sleepCount += 1
    me.state.pointee.asleepSince = sleepCount
    let place = bucket(sequence)
    // At the end, so that the first to come is woken first.
    me.state.pointee.next = nil
    if var at = buckets[place] {
      while let next = at.state.pointee.next { at = next }
      at.state.pointee.next = me
    } else {
      buckets[place] = me
    }
    if deadline != .max { insertTimed(me) }
    switchAway()
    let answer = me.state.pointee.wake
    lock.unlock(interrupts)
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
    noteEarliest()
  }

  private static func noteEarliest() {
    earliest.store(timed?.state.pointee.deadline ?? .max, ordering: .relaxed)
  }

  /// Takes a sleeper out of its bucket, where `before` is before it, and makes it ready. Lock held.
  private static func wake(_ thread: Thread, behind before: Thread?, in place: Int, _ answer: cp_wake) {
    let next = thread.state.pointee.next
    if let before { before.state.pointee.next = next } else { buckets[place] = next }
    if thread.state.pointee.isTimed {
      let (previous, following) = (thread.state.pointee.previousTimed, thread.state.pointee.nextTimed)
      if let previous { previous.state.pointee.nextTimed = following } else { timed = following }
      if let following { following.state.pointee.previousTimed = previous }
      thread.state.pointee.isTimed = false
      if thread.state.pointee.role == .worker { timedWorkers -= 1 }
      noteEarliest()
    }
    thread.state.pointee.wake = answer
    thread.state.pointee.sequence = nil
    sleeperCount.subtract(1, ordering: .relaxed)
    makeReady(thread)
  }

  /// Wakes all that sleep on `sequence`, which has changed, in the order in which they came.
  static func wake(_ sequence: UnsafePointer<UInt64>) {
    guard sleeperCount.load(ordering: .sequentiallyConsistent) > 0 else { return }
    let interrupts = lock.lock()
    wakeAll(sequence)
    lock.unlock(interrupts)
  }

  private static func wakeAll(_ sequence: UnsafePointer<UInt64>) {
    let place = bucket(sequence)
    var before: Thread?
    var at = buckets[place]
    while let thread = at {
      at = thread.state.pointee.next
      if thread.state.pointee.sequence == sequence {
        wake(thread, behind: before, in: place, .woken)
      } else {
        before = thread
      }
    }
  }

  /// Wakes a thread wherever it sleeps. Lock held.
  private static func wake(_ thread: Thread, _ answer: cp_wake) {
    let place = bucket(thread.state.pointee.sequence.unsafelyUnwrapped)
    var before: Thread?
    var at = buckets[place]
    while let other = at, other != thread {
      before = other
      at = other.state.pointee.next
    }
    wake(thread, behind: before, in: place, answer)
  }

  /// A tick of the clock, in its interrupt handler: wakes whose deadline has come.
  static func tick(_ now: UInt64) {
    guard now >= earliest.load(ordering: .relaxed) else { return }
    let interrupts = lock.lock()
    while let thread = timed, thread.state.pointee.deadline <= now { wake(thread, .deadline) }
    lock.unlock(interrupts)
  }

  /// All threads sleep, and none has a deadline but services: tells one that waits for memory that no processor can
  /// wake it. Lock held.
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

  /// The first thing that a new thread does: it comes out of a switch, so it holds the lock.
  fileprivate static func enter() -> Thread {
    // As the lock was taken with interrupts on by the thread before this one.
    lock.unlock(0x200)
    return Thread.current
  }

  /// The last thing that a thread does. A thread that finds under the lock that it has ended finds its stack left, too.
  fileprivate static func end(_ me: Thread) -> Never {
    _ = lock.lock()
    me.state.pointee.state = .ended
    let sequence = me.ended
    UnsafeMutableRawPointer(mutating: sequence).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .store(1, ordering: .sequentiallyConsistent)
    wakeAll(sequence)
    switchAway()
    fatalError("a thread that has ended runs")
  }

  /// Waits until `thread` has ended and left its stack, and forgets it.
  static func join(_ thread: Thread) {
    let what = ("a thread to end" as StaticString).utf8Start
    while sleep(thread.ended, 0, .max, .thread, what) != .woken {}
    let interrupts = lock.lock()
    discard(thread)
    lock.unlock(interrupts)
  }

  private static func discard(_ thread: Thread) {
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

  // MARK: Looking

  /// What is to be told of a thread.
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

  /// The thread with the lowest number from `number` on.
  static func describe(from number: UInt32) -> Description? {
    let interrupts = lock.lock()
    defer { lock.unlock(interrupts) }
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
    guard let found else { return nil }
    let record = found.state
    return Description(
      number: record.pointee.number, name: record.pointee.name, role: record.pointee.role,
      state: record.pointee.state, processor: record.pointee.processor, cycles: record.pointee.cycles,
      runs: record.pointee.runs, deadline: record.pointee.deadline, waitsFor: record.pointee.waitsFor,
      size: record.pointee.stack.count.bytes)
  }

  /// Bytes that the thread with this number has ever used of its stack: a pass over those that it has not, the lock
  /// let go after each half page. Zero when it is gone.
  static func stackUse(of number: UInt32) -> ByteCount {
    var unused = 0
    while true {
      let interrupts = lock.lock()
      defer { lock.unlock(interrupts) }
      var at = all
      while let thread = at, thread.state.pointee.number != number { at = thread.state.pointee.nextOfAll }
      guard let thread = at else { return .zero }
      if thread.findUse(&unused, looks: 256) {
        return thread.state.pointee.stack.count.bytes - ByteCount(UInt64(unused) * 8)
      }
    }
  }

  /// The thread that runs on a processor. One that ends at the same time is still there: the lock is held.
  static func nameOfThread(on block: ProcessorBlock) -> Name {
    let interrupts = lock.lock()
    defer { lock.unlock(interrupts) }
    return Thread(
      state: block.pointee.processor.thread.unsafelyUnwrapped.assumingMemoryBound(to: Thread.Record.self)
    ).state.pointee.name
  }

  /// The stack whose guard page holds `address`, for a report: no lock is taken.
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
  let me = Scheduler.enter()
  me.state.pointee.body?(me.state.pointee.argument)
  Scheduler.end(me)
}
