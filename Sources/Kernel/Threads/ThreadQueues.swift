// The data of the scheduler: the ready threads, the sleeping threads, and all threads.
//
// One spin lock (rank `scheduler`, above every other) covers them and the records of the threads. The lock and the data
// are static and private to this file, so that code reaches the data through a guard only. They are no `Locked` value,
// because the compiler can't lay one out as static data, and a switch would pay for a pointer to it.

import CPlatform
import KernelSpace
import MemoryPrimitives
import Synchronization

/// Queues of threads: plain data under the lock.
struct ThreadQueues {
  /// The ready threads, first in, first out.
  fileprivate(set) var first: Thread?
  fileprivate(set) var last: Thread?
  /// The threads that sleep with a deadline, the earliest first.
  fileprivate(set) var timed: Thread?
  /// Threads that sleep with a deadline and are no services.
  fileprivate(set) var timedWorkers = 0
  /// All threads, the youngest first.
  fileprivate(set) var all: Thread?
  /// A bit for each processor that waits for a ready thread.
  var idleMask: UInt64 = 0
  /// Sleeps that have begun.
  private var sleepCount: UInt64 = 0
  /// The sleepers, by a hash of the word that they sleep on. An empty bucket is a word of zeroes, which reads as nil.
  private var buckets: UnsafeMutablePointer<Thread?> {
    UnsafeMutableRawPointer(cp_sleepers(Image.storage)).assumingMemoryBound(to: Thread?.self)
  }

  // Written with the lock held, read without it.
  static let readyCount = Atomic<UInt64>(0)
  static let sleeperCount = Atomic<UInt64>(0)
  static let earliest = Atomic<UInt64>(.max)
  static let threadCount = Atomic<UInt64>(0)

  // MARK: The guard

  nonisolated(unsafe) private static let lock = SpinLock(.scheduler)
  nonisolated(unsafe) private static var data = ThreadQueues()

  private init() {}

  /// Runs `body` on the data with the lock held.
  @inline(__always) static func withLock<R>(_ body: (inout ThreadQueues) -> R) -> R {
    let held = acquire()
    let result = body(&data)
    held.release()
    return result
  }

  /// Acquires the lock until the answer is released: for a lock that is held across a context switch.
  @inline(__always) static func acquire() -> Held { Held(lock: lock.acquire()) }

  /// The lock as held by a thread that runs for the first time: the outgoing thread has acquired it.
  @inline(__always) static func adopt() -> Held { Held(lock: lock.adopt()) }

  /// The data with its lock held. The lock is released when this is.
  struct Held: ~Copyable {
    fileprivate let lock: HeldSpinLock

    @inline(__always) var queues: ThreadQueues {
      _read { yield ThreadQueues.data }
      nonmutating _modify { yield &ThreadQueues.data }
    }
    @inline(__always) consuming func release() { lock.release() }
  }

  /// The list of all threads without the lock, for a fault report.
  static var unguardedFirst: Thread? { data.all }

  // MARK: Ready

  /// Adds a thread to the list of all.
  mutating func register(_ thread: Thread) {
    thread.state.pointee.nextOfAll = all
    all = thread
    Self.threadCount.add(1, ordering: .relaxed)
  }

  /// Puts a thread at the end of the queue, and interrupts an idle processor on which it may run.
  mutating func makeReady(_ thread: Thread) {
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

  mutating func enqueue(_ thread: Thread) {
    thread.state.pointee.state = .ready
    thread.state.pointee.next = nil
    if let last { last.state.pointee.next = thread } else { first = thread }
    last = thread
    Self.readyCount.add(1, ordering: .relaxed)
  }

  /// Removes the first thread that may run on this processor from the queue.
  mutating func popReady() -> Thread? {
    let bit = UInt64(1) << UInt64(cp_processor_index())
    var before: Thread?
    var at = first
    while let thread = at {
      let next = thread.state.pointee.next
      if thread.state.pointee.processors & bit != 0 {
        if let before { before.state.pointee.next = next } else { first = next }
        if last == thread { last = before }
        thread.state.pointee.next = nil
        Self.readyCount.subtract(1, ordering: .relaxed)
        return thread
      }
      before = thread
      at = next
    }
    return nil
  }

  func isReadyHere() -> Bool {
    let bit = UInt64(1) << UInt64(cp_processor_index())
    var at = first
    while let thread = at {
      if thread.state.pointee.processors & bit != 0 { return true }
      at = thread.state.pointee.next
    }
    return false
  }

  // MARK: Sleepers

  private func bucket(_ sequence: UnsafePointer<UInt64>) -> Int {
    let address = UInt(bitPattern: sequence)
    return Int((address >> 3 ^ address >> 9) % UInt(CP_SLEEPERS))
  }

  /// Adds a thread to the sleepers, by the word that its record names.
  mutating func addSleeper(_ thread: Thread) {
    sleepCount += 1
    thread.state.pointee.asleepSince = sleepCount
    let bucket = bucket(thread.state.pointee.sequence.unsafelyUnwrapped)
    // At the end, so that a wake begins with the thread that came first.
    thread.state.pointee.next = nil
    if var at = buckets[bucket] {
      while let next = at.state.pointee.next { at = next }
      at.state.pointee.next = thread
    } else {
      buckets[bucket] = thread
    }
    if thread.state.pointee.deadline != .max { insertTimed(thread) }
  }

  mutating func insertTimed(_ thread: Thread) {
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

  private func updateEarliest() {
    Self.earliest.store(timed?.state.pointee.deadline ?? .max, ordering: .relaxed)
  }

  /// Removes a sleeper from its bucket, where `before` precedes it, and makes it ready.
  mutating func wake(_ thread: Thread, behind before: Thread?, in bucket: Int, _ answer: cp_wake) {
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
    Self.sleeperCount.subtract(1, ordering: .relaxed)
    makeReady(thread)
  }

  mutating func wakeAll(_ sequence: UnsafePointer<UInt64>) {
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

  /// Wakes a thread, whatever word it sleeps on.
  mutating func wake(_ thread: Thread, _ answer: cp_wake) {
    let bucket = bucket(thread.state.pointee.sequence.unsafelyUnwrapped)
    var before: Thread?
    var at = buckets[bucket]
    while let other = at, other != thread {
      before = other
      at = other.state.pointee.next
    }
    wake(thread, behind: before, in: bucket, answer)
  }

  /// Refuses one thread that waits for memory, because no processor can wake it: all threads sleep, and only services
  /// have a deadline.
  mutating func refuseStuckSleeper() {
    guard Self.sleeperCount.load(ordering: .relaxed) > 0 else { return }
    var sleepers = StuckSleepers<Thread>()
    var at = all
    while let thread = at {
      at = thread.state.pointee.nextOfAll
      guard thread.state.pointee.state == .sleeping, thread.state.pointee.deadline == .max else { continue }
      sleepers.add(thread, thread.state.pointee.waitKind, since: thread.state.pointee.asleepSince)
    }
    if let refused = sleepers.refused { wake(refused, .never) }
  }

  // MARK: All threads

  mutating func remove(_ thread: Thread) {
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
    Self.threadCount.subtract(1, ordering: .relaxed)
  }

  func describeFirst(from number: UInt32) -> Scheduler.Description? {
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
    return Scheduler.Description(
      number: record.pointee.number, name: record.pointee.name, role: record.pointee.role,
      state: record.pointee.state, processor: record.pointee.processor, cycles: record.pointee.cycles,
      runs: record.pointee.runs, deadline: record.pointee.deadline, waitsFor: record.pointee.waitsFor,
      size: record.pointee.stack.count.bytes)
  }
}
