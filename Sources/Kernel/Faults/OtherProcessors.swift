// The state of the other processors when one began to report a fault. An NMI stops each of them, with interrupts off as
// well; it records its position and halts for good.
//
// Several may begin at once: an NMI from outside comes to all. The first one reports; any other records the position of
// its own fault, and halts. The one that reports lets no further NMI interrupt it.

import CPlatform
import MemoryPrimitives
import Synchronization

enum OtherProcessors {
  private static let stopper = Atomic<UInt32>(.max)
  private static let isReported = Atomic<Bool>(false)

  /// The state of a processor while another one reports.
  private enum State: UInt32 {
    case running
    /// An NMI has stopped it.
    case stopped
    /// It had a fault of its own to report.
    case faulted
  }

  private static func state(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
    UnsafeMutableRawPointer(cp_stopped_state(Processors.block(index))).assumingMemoryBound(
      to: Atomic<UInt32>.self)
  }

  private static func isStopped(_ index: Int) -> Bool {
    state(index).pointee.load(ordering: .acquiring) != State.running.rawValue
  }

  /// Stops all but this one, which has a fault at `address` to report; those that do not answer within 3 billion
  /// cycles (a second at 3 GHz) are left running. Of two that begin at once, the second does not return.
  static func stop(toReport address: UInt64) {
    let me = cp_processor_index()
    // Recorded before it is known which processor comes first, so that an NMI of the first one finds the record
    // complete.
    recordPosition(.faulted, at: address, cp_frame_pointer())
    TriggeredFault.meetOthers()
    let (isFirst, by) = stopper.compareExchange(
      expected: .max, desired: me, ordering: .sequentiallyConsistent)
    guard isFirst else {
      if by != me { haltForGood() }
      return
    }
    guard Processors.onlineCount > 1 else { return }
    for index in 0..<Processors.onlineCount where index != Int(me) {
      LocalAPIC.sendNMI(to: Processors.block(index).pointee.identity)
    }
    let start = cp_cycles()
    while cp_cycles() &- start < 3_000_000_000 && !allAreStopped(but: Int(me)) { cp_pause(0) }
  }

  private static func recordPosition(_ state: State, at address: UInt64, _ framePointer: UInt64) {
    let mine = Processors.mine
    mine.pointee.stopped.rip = address
    mine.pointee.stopped.rbp = framePointer
    Self.state(Int(cp_processor_index())).pointee.store(state.rawValue, ordering: .releasing)
  }

  private static func haltForGood() -> Never { while true { cp_halt() } }

  private static func allAreStopped(but me: Int) -> Bool {
    for index in 0..<Processors.onlineCount where index != me && !isStopped(index) { return false }
    return true
  }

  /// The meaning of an NMI on this processor.
  enum NMIMeaning {
    /// No report has begun: the NMI is a fault to report.
    case fault
    /// This processor is reporting a fault, and continues.
    case nothing
  }

  /// Handles an NMI. Does not return if the NMI is meant to stop this processor.
  static func handleNMI(_ frame: UnsafePointer<cp_trap_frame>) -> NMIMeaning {
    let (by, me) = (stopper.load(ordering: .acquiring), cp_processor_index())
    if by == .max { return .fault }
    // The report must end: the watchdog may still interrupt it.
    if by == me { return Watchdog.isAccused() ? .fault : .nothing }
    // The record of one that has a fault of its own stays.
    if !isStopped(Int(me)) { recordPosition(.stopped, at: frame.pointee.rip, frame.pointee.rbp) }
    haltForGood()
  }

  /// Whether every other processor was in its idle thread, so that the layers' invariants must hold.
  static var areIdle: Bool {
    for index in 0..<Processors.onlineCount where index != Int(cp_processor_index()) {
      guard state(index).pointee.load(ordering: .acquiring) == State.stopped.rawValue else { return false }
      let block = Processors.block(index)
      if block.pointee.processor.thread != block.pointee.idle { return false }
    }
    return true
  }

  /// Prints what each other processor was running, once.
  static func report() {
    guard !isReported.exchange(true, ordering: .relaxed) else { return }
    for index in 0..<Processors.onlineCount where index != Int(cp_processor_index()) {
      let block = Processors.block(index)
      let label: Line = "cpu \(index)"
      let state = State(rawValue: state(index).pointee.load(ordering: .acquiring)) ?? .running
      guard state != .running else {
        FaultBlock.field(label, "does not answer")
        continue
      }
      let thread = block.pointee.processor.thread.map {
        Thread($0.assumingMemoryBound(to: Thread.Record.self)).record.name
      }
      let fault: StaticString = state == .faulted ? ", a fault of its own" : ""
      FaultBlock.field(
        label, "thread \(thread ?? ShortName("boot")), in \(Symbols.place(block.pointee.stopped.rip))\(fault)"
      )
      if state == .faulted || block.pointee.processor.thread != block.pointee.idle {
        printBacktrace(from: block.pointee.stopped.rbp, label: "", limit: 8)
      }
    }
  }
}
