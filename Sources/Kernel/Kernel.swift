// The kernel: what is left to do around the layers below on a bare machine. Composition, no algorithms.
//
// Order of boot. The stub (boot/entry.asm) has mapped the first 4 GiB and the image and set gs. Here:
// the serial port, so that everything after can speak; descriptor tables, so that everything after can
// fault; the loader's record, copied before anything may write where it lies; the processor's features; ACPI's
// list of processors, which the final tables do not map; interrupts; then the memory subsystem, threads, the other
// processors, and the console.
//
// When memory is gone in the middle: nothing on this layer allocates.

import CPlatform
import KernelMemory
import MemoryPrimitives

/// Called by boot/entry.asm in the higher half, on the boot stack, with interrupts off.
@c(kernel_main)
public func kernelMain(
  _ loader: UInt32, _ record: UInt64, _ image: UnsafePointer<cp_image>, _ entered: UInt64
) -> Never {
  Image.adopt(image)
  Executive.noteEntry(cycles: entered)
  SerialPort.start()
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
  SerialPort.print(Banner.line(boot.information))

  let memory = Assembly.run(boot.information, features)
  Executive.register(in: memory.statistics)
  Multiprocessing.begin(list, memory)
  RamDiskMemory.register(in: memory.statistics)
  SwapDevice.start(memory)
  if !memory.startServices() {
    SerialPort.print("! Too few threads for all services: what they do is done when memory runs short.")
  }
  SerialConsole.run(memory, boot.information)
}
