// A thread of the kernel: a stack with a guard page below it, and the state that the scheduler needs.
//
// Its memory (ThreadMemory) stays until another thread joins it, so that `threads` can list a thread that has ended. The
// kernel's services never end.

import CPlatform
import KernelSpace
import MemoryPrimitives
import Synchronization

/// A handle on a thread.
struct Thread: Equatable {
  enum State: UInt8 { case ready, running, sleeping, ended }
  enum Role: UInt8 { case worker, service, idle }

  struct Record {
    /// 1 when the thread has ended: a thread that joins it sleeps on this word. It must be the first word, because
    /// `ended` below takes its address.
    var ended: UInt64 = 0
    let number: UInt32
    let name: ShortName
    let role: Role
    let body: (@convention(c) (UnsafeMutableRawPointer?) -> Void)?
    let argument: UnsafeMutableRawPointer?
    let stack: KernelStack

    // Under the scheduler's lock.
    /// A bit for each processor that it may run on.
    var processors: UInt64
    var state = State.ready
    /// The address of its saved registers while it does not run.
    var stackPointer: UInt64 = 0
    /// The processor on which it runs, or ran last.
    var processor: UInt32 = 0
    /// The next thread in the queue of ready threads, or in a bucket of sleepers.
    var next: Thread?
    /// Neighbours among the threads that sleep with a deadline, the earliest first.
    var nextTimed: Thread?
    var previousTimed: Thread?
    var isTimed = false
    /// All threads.
    var nextOfAll: Thread?
    /// The word that the thread sleeps on.
    var sequence: UnsafePointer<UInt64>?
    var deadline: UInt64 = 0
    var waitsFor: UnsafePointer<UInt8>?
    var waitKind = WaitKind.interrupt
    /// The number of its last sleep, counted over all threads.
    var asleepSince: UInt64 = 0
    var wake = cp_wake.woken
    /// The error of its last access to pageable memory that failed.
    var pagingError: UInt8 = 0
    var heldSleeping: UInt32 = 0
    var cycles: UInt64 = 0
    var runs: UInt64 = 0

    var stackTop: UInt64 { stack.top.rawValue }
  }

  let storage: UnsafeMutablePointer<Record>
  static func == (a: Thread, b: Thread) -> Bool { a.storage == b.storage }

  init(_ storage: UnsafeMutablePointer<Record>) { self.storage = storage }

  /// The record, in place.
  @inline(__always) var record: Record {
    unsafeAddress { UnsafePointer(storage) }
    nonmutating unsafeMutableAddress { storage }
  }

  /// The thread that runs this.
  static var current: Thread {
    Thread(cp_current_thread().unsafelyUnwrapped.assumingMemoryBound(to: Record.self))
  }

  private static let numbers = Atomic<UInt32>(0)

  /// Makes a thread that the scheduler does not know yet; nil when there is no memory. Its first switch leads to
  /// `kernel_thread`.
  static func make(
    _ name: ShortName, _ role: Role, on processors: UInt64, from memory: ThreadMemory,
    body: (@convention(c) (UnsafeMutableRawPointer?) -> Void)?, argument: UnsafeMutableRawPointer?
  ) -> Thread? {
    guard let storage = memory.allocateRecord() else { return nil }
    guard let stack = memory.allocateStack() else {
      memory.free(storage)
      return nil
    }
    let thread = Thread(storage)
    thread.storage.initialize(
      to: Record(
        number: numbers.add(1, ordering: .relaxed).oldValue, name: name, role: role, body: body,
        argument: argument, stack: stack, processors: processors))
    thread.prepareStack()
    return thread
  }

  static func makeIdle(_ memory: ThreadMemory) -> Thread? {
    make(ShortName("idle"), .idle, on: 0, from: memory, body: { _ in Scheduler.idle() }, argument: nil)
  }

  /// The thread that has run since the loader's jump, on the image's own stack.
  static func adopt(_ name: ShortName, _ memory: ThreadMemory) -> Thread? {
    guard let storage = memory.allocateRecord() else { return nil }
    let span = Image.layout.stack.0
    // The boot has used the stack below this call, and its use is not counted. The loop itself needs some space.
    let unused = Int((cp_frame_pointer() - 1024 - span.first) / 8)
    UnsafeMutablePointer<UInt64>(bitPattern: UInt(span.first)).unsafelyUnwrapped
      .update(repeating: untouched, count: unused)
    let thread = Thread(storage)
    thread.storage.initialize(
      to: Record(
        number: numbers.add(1, ordering: .relaxed).oldValue, name: name, role: .worker, body: nil,
        argument: nil,
        stack: KernelStack(
          bottom: VirtualAddress(span.first), count: ByteCount(span.end - span.first).pagesRoundedUp),
        processors: .max))
    return thread
  }

  var ended: UnsafePointer<UInt64> {
    UnsafeRawPointer(storage).assumingMemoryBound(to: UInt64.self)
  }

  /// Fills the stack as `cp_switch` leaves one: six registers, all zero, and the return address. Two words above end
  /// every backtrace. Words that were never used hold `untouched`.
  private func prepareStack() {
    let bottom = UnsafeMutablePointer<UInt64>(bitPattern: UInt(record.stack.bottom.rawValue))
      .unsafelyUnwrapped
    let words = Int(record.stack.count.bytes.rawValue) / 8
    bottom.update(repeating: Self.untouched, count: words)
    for i in 1...9 { bottom[words - i] = 0 }
    bottom[words - 3] = Image.layout.thread_entry
    record.stackPointer = record.stackTop - 72
  }

  static var untouched: UInt64 { 0x5374_7261_7461_2e2e }

  /// Adds to `unused`, the count of words at the bottom of the stack that were never used, `limit` words at most. True
  /// when the next word was used.
  func skipUnused(_ unused: inout Int, upTo limit: Int) -> Bool {
    let bottom = UnsafePointer<UInt64>(bitPattern: UInt(record.stack.bottom.rawValue))
      .unsafelyUnwrapped
    let words = Int(record.stack.count.bytes.rawValue) / 8
    let end = min(unused + limit, words)
    while unused < end && bottom[unused] == Self.untouched { unused += 1 }
    return unused < end || end == words
  }

  /// Frees the stack and the record. The thread has ended, and no processor runs on its stack.
  func dispose(_ memory: ThreadMemory) {
    memory.free(record.stack)
    storage.deinitialize(count: 1)
    memory.free(storage)
  }
}
