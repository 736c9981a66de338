// The rows of processors, threads and locks that the console prints.

import CPlatform
import Console
import MemoryPrimitives

enum ExecutiveInspection {
  static var view: ExecutiveView {
    ExecutiveView(
      nil, describeThread: { _, number, row in ExecutiveInspection.fill(row, from: number) },
      describeProcessor: { _, index, row in ExecutiveInspection.fill(row, processor: Int(index)) },
      describeLock: { _, rank, row in ExecutiveInspection.fill(row, rank: Int(rank)) },
      readWatchdog: { _ in Watchdog.isWatching }, setWatchdog: { _, isOn in Watchdog.set(isOn ? .on : .off) },
      measureInterrupt: { _ in ExecutiveInspection.interruptCost() },
      enterInterrupt: { _, body, argument in InterruptWork.run(body, argument) })
  }

  /// Measures the cost of an interrupt: empty messages of this processor to itself, less the cost of sending them.
  private static func interruptCost() -> UInt64 {
    let rounds: UInt64 = 100
    let identity = Processors.block(Int(cp_processor_index())).pointee.identity
    func cycles(_ body: () -> Void) -> UInt64 {
      let start = cp_cycles()
      for _ in 0..<rounds { body() }
      return cp_cycles() &- start
    }
    let both = cycles { LocalAPIC.send(LocalVector.message, to: identity) }
    // With interrupts off, all of them merge into one pending interrupt.
    let sending = withInterruptsOff { cycles { LocalAPIC.send(LocalVector.message, to: identity) } }
    return (both &- min(both, sending)) / rounds
  }

  /// The most cycles with interrupts off on any processor, as far as measured.
  static var longestOff: UInt64 {
    var longest: UInt64 = 0
    for index in 0..<Processors.onlineCount {
      longest = max(longest, Processors.block(index).pointee.processor.longest_off)
    }
    return longest
  }

  private static func copy(_ name: ShortName, _ bytes: UnsafeMutablePointer<UInt8>) -> UInt8 {
    for i in 0..<name.count { bytes[i] = name[i] }
    return UInt8(name.count)
  }

  private static func fill(_ row: UnsafeMutablePointer<cp_thread_row>, from number: UInt32) -> Bool {
    guard let thread = Scheduler.describe(from: number) else { return false }
    row.pointee.number = thread.number
    row.pointee.processor = thread.processor
    row.pointee.state =
      switch thread.state {
      case .ready: .ready
      case .running: .running
      case .sleeping: .sleeping
      case .ended: .ended
      }
    row.pointee.is_service = thread.role == .service
    row.pointee.is_idle = thread.role == .idle
    row.pointee.name_length = copy(thread.name, cp_thread_name(row))
    row.pointee.stack_used = Scheduler.stackUse(of: thread.number).rawValue
    row.pointee.stack_size = thread.size.rawValue
    row.pointee.runs = thread.runs
    row.pointee.cycles = thread.cycles
    row.pointee.deadline = thread.deadline
    row.pointee.waits_for = thread.state == .sleeping ? thread.waitsFor : nil
    return true
  }

  private static func fill(_ row: UnsafeMutablePointer<cp_processor_row>, processor index: Int) -> Bool {
    guard index < Processors.onlineCount else { return false }
    let block = Processors.block(index)
    row.pointee.identity = block.pointee.identity
    row.pointee.held_rank = block.pointee.processor.held_rank
    row.pointee.name_length = copy(Scheduler.nameOfThread(on: block), cp_processor_name(row))
    row.pointee.switches = block.pointee.switches
    row.pointee.interrupts = block.pointee.interrupts
    row.pointee.idle_cycles = cp_idle_cycles_of(block)
    row.pointee.longest_off = block.pointee.processor.longest_off
    row.pointee.left_out = Processors.leftOut
    return true
  }

  private static func fill(_ row: UnsafeMutablePointer<cp_lock_row>, rank: Int) {
    row.pointee = cp_lock_row()
    for index in 0..<Processors.onlineCount {
      let waits = cp_lock_waits_of(Processors.block(index))
      row.pointee.waits &+= cp_wait_counts(waits)[rank]
      row.pointee.longest_wait = max(row.pointee.longest_wait, cp_longest_waits(waits)[rank])
      if cp_longest_holds(waits)[rank] > row.pointee.longest_hold {
        row.pointee.longest_hold = cp_longest_holds(waits)[rank]
        row.pointee.hold_site = cp_hold_sites(waits)[rank]
      }
    }
  }
}
