// Each kind of fault that the processor or the language raises, triggered on purpose, so that its report can be
// checked.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import Synchronization

/// A fault to trigger.
enum TriggeredFault {
  case null, guardPage, writeText, executeData, stackOverflow, divide, overflow
  case lockOrder, lockedSleep, lockedFault, windowFault, hang, nmi, everywhere

  /// Triggers the fault. Returns only where the machine does not raise it.
  @inline(never) func trigger() {
    switch self {
    case .null: cp_touch(16)
    case .guardPage: cp_touch(Image.layout.stack.1.first - 8)
    case .writeText: cp_touch(Image.layout.text.first)
    case .executeData: cp_call(Image.layout.data.first)
    case .stackOverflow: _ = Self.descend(1)
    case .divide: cp_divide_by_zero()
    case .overflow: Self.count(from: UInt8(truncatingIfNeeded: cp_cycles()) | 0xff)
    case .lockOrder: Self.withLock(.registry) { Self.withLock(.physicalDomain) {} }
    case .lockedSleep:
      Self.withLock(.registry) {
        let queue = WaitQueue("nothing")
        _ = queue.sleep(queue.ticket(), until: Executive.machine.now, on: Executive.machine)
      }
    case .lockedFault:
      guard let page = Self.pageableAddress() else { return }
      Self.withLock(.registry) { cp_touch(page.rawValue) }
    case .windowFault:
      guard let page = Self.pageableAddress(), let tables = Assembly.memory?.pageTables else { return }
      tables.windows.withBytes(of: tables.root.frame, tables.root.frame, at: 0, count: 8) { _ in
        cp_touch(page.rawValue)
      }
    case .hang:
      _ = cp_interrupts_disable()
      while true { cp_pause(0) }
    case .nmi: Self.interruptAll()
    case .everywhere: Self.failEverywhere()
    }
  }

  /// Sends an NMI to every processor, as a button on the machine does.
  private static func interruptAll() {
    withInterruptsOff {
      let me = Int(cp_processor_index())
      meeting.store(UInt64(Processors.onlineCount), ordering: .releasing)
      for index in 0..<Processors.onlineCount where index != me {
        LocalAPIC.sendNMI(to: Processors.block(index).pointee.identity)
      }
      LocalAPIC.sendNMI(to: Processors.block(me).pointee.identity)
      let start = cp_cycles()
      while cp_cycles() &- start < longestMeeting { cp_pause(0) }
    }
  }

  private static let ready = Atomic<UInt64>(0)

  /// Lets a check of the language fail on all processors at the same time.
  private static func failEverywhere() {
    var started: UInt64 = 0
    var last: ThreadHandle?
    for index in 0..<Processors.onlineCount {
      guard
        let thread = Executive.machine.start(
          "fault", .worker, on: 1 << UInt64(index), nil, { _ in TriggeredFault.failWithOthers() })
      else { continue }
      started += 1
      last = thread
    }
    meeting.store(started, ordering: .releasing)
    if let last { Executive.machine.join(last) }
  }

  @inline(never) private static func failWithOthers() {
    while meeting.load(ordering: .acquiring) == 0 { Scheduler.yield() }
    _ = cp_interrupts_disable()
    ready.add(1, ordering: .sequentiallyConsistent)
    // A sender that waits for this processor's answer could otherwise keep another processor from arriving.
    while ready.load(ordering: .acquiring) < meeting.load(ordering: .acquiring) { Messages.serve() }
    precondition(ready.load(ordering: .relaxed) == 0, "a fault on all processors at once")
  }

  // Faults that are triggered at the same time wait for each other before the first is reported. Otherwise the NMI of
  // the first one comes before the others have begun.

  /// The count of processors that report a fault together; 0 when none do.
  private static let meeting = Atomic<UInt64>(0)
  private static let arrived = Atomic<UInt64>(0)
  /// Cycles after which the processors that have arrived go on without the others: some seconds.
  private static var longestMeeting: UInt64 { 30_000_000_000 }

  /// Waits for the others that report a fault together. Called with interrupts off, when a fault is about to be
  /// reported.
  static func meetOthers() {
    guard meeting.load(ordering: .acquiring) != 0 else { return }
    arrived.add(1, ordering: .sequentiallyConsistent)
    let start = cp_cycles()
    while arrived.load(ordering: .acquiring) < meeting.load(ordering: .acquiring)
      && cp_cycles() &- start < longestMeeting
    { cp_pause(0) }
  }

  private static func withLock(_ rank: LockRank, _ body: () -> Void) {
    SpinLock(rank).withLock(body)
  }

  /// Maps a page that is not present yet.
  private static func pageableAddress() -> VirtualAddress? {
    guard let paging = Assembly.memory?.paging,
      let object = try? paging.createObject(ShortName("fault"), .one)
    else {
      return nil
    }
    return try? paging.map(object, count: .one)
  }

  @inline(never) private static func descend(_ depth: UInt64) -> UInt64 {
    var storage = InlineArray<8, UInt64>(repeating: depth)
    cp_keep(&storage)
    // The compiler must not recognise that this never ends.
    return (storage[0] == 0 ? 0 : descend(depth &+ 1)) &+ storage[Int(depth & 7)]
  }

  @inline(never) private static func count(from start: UInt8) {
    var value = start
    value += 1
    cp_keep(&value)
  }
}
