// What the other processors did when one began to tell of a fault: each is stopped by an NMI, which comes through
// whatever it does, leaves word of where it was, and halts for good.

import CPlatform
import MemoryPrimitives
import Synchronization

enum OtherProcessors {
  private static let stopper = Atomic<UInt32>(.max)
  private static let wasTold = Atomic<Bool>(false)

  private static func stopped(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
    UnsafeMutableRawPointer(cp_stopped_flag(Processors.block(index))).assumingMemoryBound(
      to: Atomic<UInt32>.self)
  }

  /// Stops all but this one; those that do not answer within about a second are left. Of two that begin at once, one
  /// stops the other.
  static func stop() {
    let me = cp_processor_index()
    guard stopper.compareExchange(expected: .max, desired: me, ordering: .sequentiallyConsistent).exchanged
    else {
      return
    }
    guard Processors.onlineCount > 1 else { return }
    for index in 0..<Processors.onlineCount where index != Int(me) {
      LocalAPIC.sendNMI(to: Processors.block(index).pointee.identity)
    }
    let start = cp_cycles()
    while cp_cycles() &- start < 3_000_000_000 && !allAreStopped(but: Int(me)) { cp_pause(0) }
  }

  private static func allAreStopped(but me: Int) -> Bool {
    for index in 0..<Processors.onlineCount where index != me {
      if stopped(index).pointee.load(ordering: .acquiring) == 0 { return false }
    }
    return true
  }

  /// An NMI has come. Does not return if it is to stop this processor.
  static func handleNMI(_ frame: UnsafePointer<cp_trap_frame>) {
    let by = stopper.load(ordering: .acquiring)
    guard by != .max, by != cp_processor_index() else { return }
    let mine = Processors.mine
    mine.pointee.stopped.rip = frame.pointee.rip
    mine.pointee.stopped.rbp = frame.pointee.rbp
    stopped(Int(cp_processor_index())).pointee.store(1, ordering: .releasing)
    while true { cp_halt() }
  }

  /// Whether none of the others was in the middle of anything, so that the floors' laws must hold.
  static var areIdle: Bool {
    for index in 0..<Processors.onlineCount where index != Int(cp_processor_index()) {
      if stopped(index).pointee.load(ordering: .acquiring) == 0 { return false }
      let block = Processors.block(index)
      if block.pointee.processor.thread != block.pointee.idle { return false }
    }
    return true
  }

  /// Rows that name what each was doing, once.
  static func tell() {
    guard !wasTold.exchange(true, ordering: .relaxed) else { return }
    for index in 0..<Processors.onlineCount where index != Int(cp_processor_index()) {
      let block = Processors.block(index)
      let label: Line = "cpu \(index)"
      guard stopped(index).pointee.load(ordering: .acquiring) != 0 else {
        FaultBlock.field(label, "does not answer")
        continue
      }
      let thread = block.pointee.processor.thread.map {
        Thread(state: $0.assumingMemoryBound(to: Thread.Record.self)).state.pointee.name
      }
      FaultBlock.field(
        label, "thread \(thread ?? Name("boot")), in \(Symbols.place(block.pointee.stopped.rip))")
      if block.pointee.processor.thread != block.pointee.idle {
        printBacktrace(from: block.pointee.stopped.rbp, label: "", limit: 8)
      }
    }
  }
}
