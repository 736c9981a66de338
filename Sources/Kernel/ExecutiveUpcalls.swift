// The upcalls of the layers below, carried out by this kernel's processors and threads.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Synchronization

enum Executive {
  static var directMap: DirectMap { DirectMap(base: 0xffff_8000_0000_0000) }

  private static let entered = Atomic<UInt64>(0)

  static func recordEntry(cycles: UInt64) { entered.store(cycles, ordering: .relaxed) }

  /// Cycles since the loader entered the kernel: instructions, under QEMU's `-icount shift=0`.
  static var cyclesSinceEntry: UInt64 { cp_cycles() &- entered.load(ordering: .relaxed) }

  /// The thread that runs here.
  static var currentThreadName: ShortName {
    cp_current_thread() == nil ? ShortName("boot") : Thread.current.record.name
  }

  nonisolated(unsafe) private static var upcalls = cp_upcalls(
    context: nil,
    report_fault: { _, report in
      Reports.report(report.assumingMemoryBound(to: FaultReport.self).pointee)
    },
    read_tick: { _ in Timer.now.rawValue },
    shoot_down: { _, runs, count in Messages.invalidate(runs, Int(count)) },
    run_on: { _, processor, body, argument in Messages.run(on: Int(processor), body, argument) },
    sleep: { _, sequence, seen, deadline, kind, purpose in
      Scheduler.sleep(on: sequence, seen: seen, until: deadline, kind, purpose: purpose)
    },
    wake: { _, sequence in Scheduler.wake(sequence) },
    start: { _, request in Executive.start(request.pointee) },
    join: { _, thread in Executive.join(thread) },
    confine: { _, processors in Scheduler.confine(to: processors) })

  /// The machine for `MemorySystem`.
  static var machine: Machine {
    Machine(
      directMap: directMap, processorCount: Processors.made, upcalls: withUnsafePointer(to: &upcalls) { $0 })
  }

  private static func start(_ request: cp_thread_request) -> UInt64 {
    guard Scheduler.isRunning, let memory = Multiprocessing.threads else { return 0 }
    let name = ShortName(bytes: UnsafeBufferPointer(start: request.name, count: Int(request.name_length)))
    guard
      let thread = Thread.make(
        name, request.is_service ? .service : .worker, on: request.processors, from: memory,
        body: request.body, argument: request.argument)
    else { return 0 }
    Scheduler.add(thread)
    return UInt64(UInt(bitPattern: thread.storage))
  }

  private static func join(_ handle: UInt64) {
    guard let state = UnsafeMutablePointer<Thread.Record>(bitPattern: UInt(handle)),
      let memory = Multiprocessing.threads
    else { return }
    let thread = Thread(state)
    Scheduler.join(thread)
    thread.dispose(memory)
  }

  /// Waits until more than `unread` bytes of input may be unread, or `milliseconds` have passed.
  static func rest(_ milliseconds: UInt64, unread: Int) {
    let seen = SerialPort.arrived
    guard SerialPort.unread <= unread else { return }
    SerialPort.withArrivals {
      _ = Scheduler.sleep(
        on: $0, seen: seen, until: Timer.now.rawValue + max(1, milliseconds), .interrupt,
        purpose: ("input" as StaticString).utf8Start)
    }
  }

  /// Adds what the machine itself counts.
  static func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "machine.cycles", .cycles, .counter, "since the loader's jump; exact with -icount shift=0",
        context: nil, read: { _ in Executive.cyclesSinceEntry }))
    statistics.add(
      Statistic(
        "machine.ticks", .ticks, .counter, "ticks of the clock, 1000 a second", context: nil,
        read: { _ in Timer.now.rawValue }))
    statistics.add(
      Statistic(
        "machine.processors", .processors, .gauge, "processors that run", context: nil,
        read: { _ in UInt64(Processors.onlineCount) }))
    statistics.add(
      Statistic(
        "machine.measure", .switchOnOff, .tunable, "measure how long locks are held and interrupts are off",
        context: nil, read: { _ in UInt64(Processors.block(0).pointee.processor.measuring) },
        write: { _, value in
          for index in 0..<Processors.onlineCount {
            Processors.block(index).pointee.processor.measuring = UInt32(value)
          }
        }))
    statistics.add(
      Statistic(
        "machine.longest_off", .cycles, .gauge, "the longest time with interrupts off, while measured",
        context: nil, read: { _ in ExecutiveInspection.longestOff }))
    Messages.register(in: statistics)
  }
}
