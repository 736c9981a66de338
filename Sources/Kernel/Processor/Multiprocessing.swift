// From one processor on one stack to threads on all of them.

import ACPI
import CPlatform
import KernelMemory
import KernelSpace
import MemoryPrimitives

enum Multiprocessing {
  /// Makes the boot the console's thread, starts the timer of this processor, and all other processors.
  static func begin(_ list: ProcessorList, _ memory: KernelMemory) {
    guard LocalAPIC.isThere else {
      Reports.panic(
        "a machine that Strata refuses", "it has no local interrupt controller (APIC), or it is switched off")
    }
    do throws(KernelSpaceError) {
      try LocalAPIC.map(list.controller, memory.space)
    } catch {
      Reports.panic("a machine that Strata refuses", "its local interrupt controller can't be mapped")
    }
    guard let boot = Thread.adopt(Name("console"), memory), let idle = Thread.makeIdle(memory) else {
      Reports.panic("a machine that Strata refuses", "it is too small: its threads find no room")
    }
    LocalAPIC.enable(.first)
    Processors.block(0).pointee.identity = LocalAPIC.identity
    withInterruptsOff { Processors.noteOnline() }
    LocalAPIC.calibrate()
    Scheduler.begin(boot, idle: idle)
    LocalAPIC.startTimer(every: Scheduler.timerTicks)
    list.withOthers(than: LocalAPIC.identity) { ProcessorStart.startAll($0, memory) }
    if let flaw = list.flaw {
      SerialPort.print("! ACPI's list of processors: \(flaw.words).")
    }
    if Processors.leftOut > 0 {
      SerialPort.print(
        "! \(count: UInt64(Processors.leftOut), "processor") did not come up; cpus shows the others.")
    }
  }
}
