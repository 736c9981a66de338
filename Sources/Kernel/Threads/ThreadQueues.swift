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
    thread.record.nextOfAll = all
    all = thread
    Self.threadCount.add(1, ordering: .relaxed)
  }

  /// Puts a thread at the end of the queue, and interrupts an idle processor on which it may run.
  mutating func makeReady(_ thread: Thread) {
    enqueue(thread)
    let able = idleMask & thread.record.processors
    guard able != 0 else { return }
    let index = able.trailingZeroBitCount
    // The processor finds the thread when it looks at the queue, so another wake need not interrupt it again.
    idleMask &= ~(1 << UInt64(index))
    if index != Int(cp_processor_index()) {
      LocalAPIC.send(LocalVector.reschedule, to: Processors.block(index).pointee.identity)
    }
  }

  mutating func enqueue(_ thread: Thread) {
    thread.record.state = .ready
    thread.record.next = nil
    if let last { last.record.next = thread } else { first = thread }
    last = thread
    Self.readyCount.add(1, ordering: .relaxed)
  }

  /// Removes the first thread that may run on this processor from the queue.
  mutating func popReady() -> Thread? {
    let bit = UInt64(1) << UInt64(cp_processor_index())
    var before: Thread?
    var at = first
    while let thread = at {
      let next = thread.record.next
      if thread.record.processors & bit != 0 {
        if let before { before.record.next = next } else { first = next }
        if last == thread { last = before }
        thread.record.next = nil
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
      if thread.record.processors & bit != 0 { return true }
      at = thread.record.next
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
    thread.record.asleepSince = sleepCount
    let bucket = bucket(thread.record.sequence.unsafelyUnwrapped)
    // At the end, so that a wake begins with the thread that came first.
    thread.record.next = nil
    if var at = buckets[bucket] {
      while let next = at.record.next { at = next }
      at.record.next = thread
    } else {
      buckets[bucket] = thread
    }
    if thread.record.deadline != .max { insertTimed(thread) }
  }

  mutating func insertTimed(_ thread: Thread) {
    let deadline = thread.record.deadline
    var before: Thread?
    var at = timed
    while let other = at, other.record.deadline <= deadline {
      before = other
      at = other.record.nextTimed
    }
    thread.record.isTimed = true
    if thread.record.role == .worker { timedWorkers += 1 }
    thread.record.previousTimed = before
    thread.record.nextTimed = at
    if let at { at.record.previousTimed = thread }
    if let before { before.record.nextTimed = thread } else { timed = thread }
    updateEarliest()
  }

  private func updateEarliest() {
    Self.earliest.store(timed?.record.deadline ?? .max, ordering: .relaxed)
  }

  /// Removes a sleeper from its bucket, where `before` precedes it, and makes it ready.
  mutating func wake(_ thread: Thread, behind before: Thread?, in bucket: Int, _ answer: cp_wake) {
    let next = thread.record.next
    if let before { before.record.next = next } else { buckets[bucket] = next }
    if thread.record.isTimed {
      let (previous, following) = (thread.record.previousTimed, thread.record.nextTimed)
      if let previous { previous.record.nextTimed = following } else { timed = following }
      if let following { following.record.previousTimed = previous }
      thread.record.isTimed = false
      if thread.record.role == .worker { timedWorkers -= 1 }
      updateEarliest()
    }
    thread.record.wake = answer
    thread.record.sequence = nil
    Self.sleeperCount.subtract(1, ordering: .relaxed)
    makeReady(thread)
  }

  mutating func wakeAll(_ sequence: UnsafePointer<UInt64>) {
    let bucket = bucket(sequence)
    var before: Thread?
    var at = buckets[bucket]
    while let thread = at {
      at = thread.record.next
      if thread.record.sequence == sequence {
        wake(thread, behind: before, in: bucket, .woken)
      } else {
        before = thread
      }
    }
  }

  /// Wakes a thread, whatever word it sleeps on.
  mutating func wake(_ thread: Thread, _ answer: cp_wake) {
    let bucket = bucket(thread.record.sequence.unsafelyUnwrapped)
    var before: Thread?
    var at = buckets[bucket]
    while let other = at, other != thread {
      before = other
      at = other.record.next
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
      at = thread.record.nextOfAll
      guard thread.record.state == .sleeping, thread.record.deadline == .max else { continue }
      sleepers.add(thread, thread.record.waitKind, since: thread.record.asleepSince)
    }
    if let refused = sleepers.refused { wake(refused, .never) }
  }

  // MARK: All threads

  mutating func remove(_ thread: Thread) {
    var before: Thread?
    var at = all
    while let other = at, other != thread {
      before = other
      at = other.record.nextOfAll
    }
    if let before {
      before.record.nextOfAll = thread.record.nextOfAll
    } else {
      all = thread.record.nextOfAll
    }
    Self.threadCount.subtract(1, ordering: .relaxed)
  }

  func describeFirst(from number: UInt32) -> Scheduler.Description? {
    var found: Thread?
    var at = all
    while let thread = at {
      at = thread.record.nextOfAll
      if thread.record.number >= number,
        found.map({ $0.record.number > thread.record.number }) ?? true
      {
        found = thread
      }
    }
    guard let found else { return nil }
    return Scheduler.Description(
      number: found.record.number, name: found.record.name, role: found.record.role,
      state: found.record.state, processor: found.record.processor, cycles: found.record.cycles,
      runs: found.record.runs, deadline: found.record.deadline, waitsFor: found.record.waitsFor,
      size: found.record.stack.count.bytes)
  }
}
