// The step from one processor on one stack to threads on all processors.

import ACPI
import CPlatform
import Console
import KernelMemory
import KernelSpace
import MemoryPrimitives

enum Multiprocessing {
  /// The memory of all threads. Written once, before any other thread runs.
  nonisolated(unsafe) private(set) static var threads: ThreadMemory?

  /// Turns the boot into the console's thread, and starts the timer of this processor and all other processors.
  static func begin(_ list: ProcessorList, _ memory: MemorySystem) {
    do throws(KernelSpaceError) {
      try LocalAPIC.map(memory.space)
    } catch {
      Reports.panic("a machine that Strata refuses", "its local interrupt controller can't be mapped")
    }
    guard let threads = ThreadMemory(memory), let boot = Thread.adopt(ShortName("console"), threads),
      let idle = Thread.makeIdle(threads)
    else {
      Reports.panic("a machine that Strata refuses", "it is too small: there is no memory for its threads")
    }
    Self.threads = threads
    LocalAPIC.enable(.first)
    Processors.block(0).pointee.identity = list.boot.rawValue
    withInterruptsOff { Processors.recordOnline(0) }
    LocalAPIC.calibrate()
    Scheduler.begin(boot, idle: idle)
    LocalAPIC.startTimer(every: Scheduler.timerTicks)
    ProcessorStart.startOthers(list, memory, threads)
    report(list)
  }

  /// Prints why processors of ACPI's list do not run, a line for each reason.
  private static func report(_ list: ProcessorList) {
    if let flaw = list.flaw {
      SerialPort.print("! ACPI's list of processors: \(flaw.description).")
    }
    Processors.leftOut.forEachReason { count, reason in
      SerialPort.print("! \(count: count, "processor") \(reason); cpus shows the others.")
    }
  }
}
