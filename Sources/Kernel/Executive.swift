// What the floors below ask of an executive, carried out for one processor without threads.

import CPlatform
import MemoryPrimitives
import Synchronization

enum Executive {
  static var directMap: DirectMap { DirectMap(base: 0xffff_8000_0000_0000) }

  private static let entered = Atomic<UInt64>(0)

  static func noteEntry(cycles: UInt64) { entered.store(cycles, ordering: .relaxed) }

  /// Cycles since the loader entered the kernel: instructions, under QEMU's `-icount shift=0`.
  static var cyclesSinceEntry: UInt64 { cp_cycles() &- entered.load(ordering: .relaxed) }

  /// Who runs. There is one thread: the boot, which becomes the console.
  static var currentThreadName: Name { Name("console") }

  nonisolated(unsafe) private static var upcalls = cp_upcalls(
    context: nil,
    report_fault: { _, report in
      Reports.tell(report.assumingMemoryBound(to: FaultReport.self).pointee)
    },
    tick: { _ in Timer.now.rawValue },
    shoot_down: { _, address, pages in
      // From some number on it is cheaper to forget everything.
      if pages > 64 { return cp_invalidate_all() }
      for page in 0..<pages { cp_invalidate_page(address &+ page &* Page.size) }
    },
    run_on: { _, processor, body, argument in
      precondition(processor == 0, "there is no such processor")
      withInterruptsOff { body(argument) }
    },
    sleep: { _, sequence, seen, deadline in Executive.sleep(sequence, seen, deadline) },
    // A sleeper looks again after each interrupt and each round of pollers.
    wake: { _, _ in })

  /// The machine for `KernelMemory`.
  static var machine: Machine {
    Machine(directMap: directMap, processorCount: 1, upcalls: withUnsafePointer(to: &upcalls) { $0 })
  }

  /// Sleeps until `sequence` changes or the deadline passes. Devices run meanwhile: pollers here, and
  /// interrupt handlers. With no poller at work nobody can wake a sleeper, for no interrupt handler does:
  /// then a sleep without a deadline would not end.
  private static func sleep(_ sequence: UnsafePointer<UInt64>, _ seen: UInt64, _ deadline: UInt64) -> cp_wake
  {
    precondition(cp_interrupts_enabled(), "a sleep with interrupts off")
    while true {
      let polled = Pollers.run()
      // Interrupts are off from the look to the halt, or the one that counts could slip in between.
      let interrupts = cp_interrupts_disable()
      defer { cp_interrupts_restore(interrupts) }
      if UnsafeRawPointer(sequence).load(as: UInt64.self) != seen { return .woken }
      if Timer.now.rawValue >= deadline { return .deadline }
      if polled == .busy { continue }
      if deadline == UInt64.max { return .nobody }
      cp_enable_and_wait()
    }
  }

  /// Waits for the next interrupt, unless there is input or a device has work that needs none.
  static func rest() {
    if Pollers.run() == .busy { return }
    let interrupts = cp_interrupts_disable()
    if SerialPort.hasInput { cp_interrupts_restore(interrupts) } else { cp_enable_and_wait() }
  }

  /// Adds what the machine itself counts.
  static func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "machine.cycles", .instructions, .counter, "since the loader's jump; exact with -icount shift=0",
        context: nil, read: { _ in Executive.cyclesSinceEntry }))
    statistics.add(
      Statistic(
        "machine.ticks", .ticks, .counter, "of the clock, 1000 a second", context: nil,
        read: { _ in Timer.now.rawValue }))
  }
}
