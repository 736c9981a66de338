// The kernel composes the layers below on a bare machine. It holds no algorithms.
//
// Order of boot. The stub (boot/entry.asm) has mapped the first 4 GiB and the image and has set gs. Then come the
// serial port, so that everything after can print, the screen, and the descriptor tables, so that everything after can fault. The
// loader's record is copied before anything writes where it lies. The processor's features and ACPI's list of
// processors follow; the final tables do not map the list. Then come interrupts, the memory subsystem, threads, the
// other processors, and the console.
//
// Nothing on this layer allocates, so a boot on little memory cannot fail here.

import CPlatform
import KernelMemory
import MemoryPrimitives

/// Called by boot/entry.asm in the higher half, on the boot stack, with interrupts off.
@c(kernel_main)
public func kernelMain(
  _ loader: UInt32, _ record: UInt64, _ image: UnsafePointer<cp_image>, _ entered: UInt64
) -> Never {
  Image.adopt(image)
  Executive.recordEntry(cycles: entered)
  SerialPort.start()
  TextScreen.pointToConsole()
  DescriptorTables.install(image)
  let boot = BootRecord(image)
  do throws(BootRecordError) {
    try boot.copy(cp_loader(rawValue: loader).unsafelyUnwrapped, record)
  } catch {
    Reports.panic("a machine that Strata refuses", "\(error.description)")
  }
  guard boot.information.pointee.line_dropped == 0 else {
    let limit = UInt64(CP_BOOT_LINE)
    Reports.panic("a command line that does not fit", "only \(count: limit) bytes of it are kept: shorten it")
  }
  guard boot.information.pointee.modules_dropped == 0 else {
    let limit = UInt64(CP_BOOT_MODULES)
    Reports.panic("more boot modules than are kept", "load \(count: limit) at most")
  }
  let features = ProcessorFeatures()
  features.enable()
  do throws(LocalAPICError) {
    try LocalAPIC.find()
  } catch {
    Reports.panic("a machine that Strata refuses", "\(error.description)")
  }
  let list = ProcessorList(boot.information)
  Processors.make(for: list)
  Interrupts.start()
  SerialPort.print(MachineSummary.line(boot.information))

  let memory = Assembly.run(boot.information, features)
  Executive.register(in: memory.statistics)
  // Before the other processors, which start only as far as memory holds them.
  let console = SerialConsole.allocateStorage(memory.physical)
  Multiprocessing.begin(list, memory)
  RamDiskMemory.register(in: memory.statistics)
  PageFaults.start(memory)
  SwapDevice.start(memory)
  if !memory.startServices() {
    SerialPort.print("! Too few threads for all services: their work is done when memory runs short.")
  }
  SerialConsole.run(memory, boot.information, in: console)
}
