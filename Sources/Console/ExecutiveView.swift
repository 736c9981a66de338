// The console's view of the executive below it: processors, threads, waits for locks, the watchdog.

import CPlatform
import MemoryPrimitives
import Workloads

/// Processors and threads as calls that cross the platform interface.
package struct ExecutiveView {
  let context: UnsafeMutableRawPointer?
  private let describeThread:
    @convention(c) (UnsafeMutableRawPointer?, UInt32, UnsafeMutablePointer<cp_thread_row>) -> Bool
  private let describeProcessor:
    @convention(c) (UnsafeMutableRawPointer?, UInt32, UnsafeMutablePointer<cp_processor_row>) -> Bool
  private let describeLock:
    @convention(c) (UnsafeMutableRawPointer?, UInt32, UnsafeMutablePointer<cp_lock_row>) -> Void
  private let readWatchdog: @convention(c) (UnsafeMutableRawPointer?) -> Bool
  private let setWatchdog: @convention(c) (UnsafeMutableRawPointer?, Bool) -> Void
  private let measureInterrupt: @convention(c) (UnsafeMutableRawPointer?) -> UInt64
  /// The way to an interrupt handler.
  let interrupts: InterruptGate

  /// - `describeThread` describes the thread with the lowest number from the given one on, if there is one.
  /// - `describeProcessor` describes the processor with this index, if it runs.
  /// - `describeLock` describes the locks of this rank.
  /// - `measureInterrupt` answers the cost of an interrupt without work, in cycles: its entry and its exit.
  /// - `enterInterrupt` runs a function in an interrupt handler of the processor that calls it.
  /// - `readWatchdog` and `setWatchdog` read and switch the watchdog.
  package init(
    _ context: UnsafeMutableRawPointer?,
    describeThread:
      @escaping @convention(c) (UnsafeMutableRawPointer?, UInt32, UnsafeMutablePointer<cp_thread_row>) -> Bool,
    describeProcessor:
      @escaping @convention(c) (UnsafeMutableRawPointer?, UInt32, UnsafeMutablePointer<cp_processor_row>) ->
      Bool,
    describeLock:
      @escaping @convention(c) (UnsafeMutableRawPointer?, UInt32, UnsafeMutablePointer<cp_lock_row>) -> Void,
    readWatchdog: @escaping @convention(c) (UnsafeMutableRawPointer?) -> Bool,
    setWatchdog: @escaping @convention(c) (UnsafeMutableRawPointer?, Bool) -> Void,
    measureInterrupt: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64,
    enterInterrupt: @escaping InterruptGate.Enter
  ) {
    self.context = context
    self.describeThread = describeThread
    self.describeProcessor = describeProcessor
    self.describeLock = describeLock
    self.readWatchdog = readWatchdog
    self.setWatchdog = setWatchdog
    self.measureInterrupt = measureInterrupt
    interrupts = InterruptGate(context, enter: enterInterrupt)
  }

  /// Calls `body` with each thread in the order of their numbers.
  func forEachThread(_ body: (inout cp_thread_row) -> Void) {
    var from: UInt32 = 0
    var row = cp_thread_row()
    while describeThread(context, from, &row) {
      body(&row)
      guard row.number < .max else { return }
      from = row.number + 1
    }
  }

  /// The waits for the locks of a rank.
  func waits(for rank: LockRank) -> cp_lock_row {
    var row = cp_lock_row()
    describeLock(context, rank.rawValue, &row)
    return row
  }

  /// Whether the watchdog is on.
  var isWatching: Bool { readWatchdog(context) }

  func watch(_ isOn: Bool) { setWatchdog(context, isOn) }

  /// The cost of an interrupt without work, in cycles.
  var interruptCost: UInt64 { measureInterrupt(context) }

  /// The count of processors that run.
  var processorCount: Int {
    var count = 0
    forEachProcessor { _, _ in count += 1 }
    return count
  }

  /// Calls `body` with each processor and its index.
  func forEachProcessor(_ body: (UInt32, inout cp_processor_row) -> Void) {
    var index: UInt32 = 0
    var row = cp_processor_row()
    while describeProcessor(context, index, &row) {
      body(index, &row)
      index += 1
    }
  }
}

extension cp_left_out {
  /// Calls `body` with each reason for which processors of the firmware's list do not run, and their count.
  package func forEachReason(_ body: (UInt64, StaticString) -> Void) {
    func report(_ count: UInt32, _ reason: StaticString) { if count > 0 { body(UInt64(count), reason) } }
    report(mute, "did not come up")
    report(unreachable, "can't be reached by xAPIC")
    report(surplus, "did not start: 64 run at most")
    report(without_memory, "did not start for lack of memory")
  }
}

extension Shell {
  func executive() throws(CommandError) -> ExecutiveView {
    guard let view = state.pointee.host.executive else {
      _ = refuse("There are no processors and threads of Strata's own here.")
      throw .unfit
    }
    return view
  }

  func name(_ bytes: UnsafeMutablePointer<UInt8>, _ length: UInt8) -> Line {
    var line = Line()
    line.append(bytes: UnsafeBufferPointer(start: bytes, count: Int(length)))
    return line
  }
}
