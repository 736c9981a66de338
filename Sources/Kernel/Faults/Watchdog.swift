// The watchdog finds a processor that hangs: each tick of a processor's own timer checks whether its neighbour's
// timer has ticked. A neighbour that has not ticked for ten seconds has had interrupts off all that time. It is sent
// an NMI, and reports its position.
//
// A single processor has no neighbour. There QEMU's watchdog device is used (iBASE IB700, `-device ib700 -action
// watchdog=inject-nmi`): a countdown that the clock's ticks restart, and that ends in an NMI.

import CPlatform
import MemoryPrimitives
import Synchronization

enum Watchdog {
  /// Ticks of a processor's own timer in ten seconds.
  private static var missedTickLimit: UInt64 { 10_000 / UInt64(Scheduler.timerTicks) }
  private static let isOn = Atomic<Bool>(false)
  /// The processor that the watchdog has sent an NMI.
  private static let accused = Atomic<UInt32>(.max)

  /// The port that starts the countdown, and the value for about 10 seconds: 15 is none, 0 is 30, two less each.
  private static var port: UInt16 { 0x443 }
  private static var disablePort: UInt16 { 0x441 }
  private static var tenSeconds: UInt8 { 10 }

  static var isWatching: Bool { isOn.load(ordering: .relaxed) }

  static func set(_ state: State) {
    for index in 0..<Processors.onlineCount { Processors.block(index).pointee.neighbours_since = 0 }
    isOn.store(state == .on, ordering: .relaxed)
    if state == .on { cp_out8(port, tenSeconds) } else { cp_out8(disablePort, 0) }
  }
  enum State { case on, off }

  /// Restarts the countdown once a second. Called on a tick of the clock, on processor 0.
  static func feed(_ now: UInt64, after before: UInt64) {
    if isOn.load(ordering: .relaxed) && now / 1000 != before / 1000 { cp_out8(port, tenSeconds) }
  }

  /// Checks the neighbour. Called on a tick of this processor's own timer.
  static func look(_ mine: ProcessorBlock) {
    guard isOn.load(ordering: .relaxed), Processors.onlineCount > 1 else { return }
    let neighbour = Processors.block((Int(mine.pointee.processor.index) + 1) % Processors.onlineCount)
    let beats = neighbour.pointee.beats
    if beats != mine.pointee.neighbours_beats {
      mine.pointee.neighbours_beats = beats
      mine.pointee.neighbours_since = 0
      return
    }
    mine.pointee.neighbours_since &+= 1
    guard mine.pointee.neighbours_since == missedTickLimit else { return }
    accused.store(neighbour.pointee.processor.index, ordering: .sequentiallyConsistent)
    LocalAPIC.sendNMI(to: neighbour.pointee.identity)
  }

  /// Whether an NMI here is the watchdog's.
  static func isAccused() -> Bool {
    guard isOn.load(ordering: .relaxed) else { return false }
    return Processors.onlineCount == 1 || accused.load(ordering: .acquiring) == cp_processor_index()
  }
}
