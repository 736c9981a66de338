// The processors that this machine may run, read from ACPI's MADT before the final page tables hide it.
//
// A machine with invalid tables runs on the processor that it booted on.

import ACPI
import CPlatform
import MemoryPrimitives

/// Lists at most 64 processors, because a mask of processors has 64 bits.
typealias ProcessorList = ProcessorSelection<64>

extension ProcessorList {
  /// The stub's direct map ends here.
  private static var reach: ByteCount { .gibibytes(4) }

  /// Reads the firmware's tables.
  init(_ information: UnsafeMutablePointer<cp_boot_information>) {
    let boot = LocalAPIC.identity
    do throws(ACPIError) {
      let root = PhysicalAddress(information.pointee.acpi_root)
      let tables = try ACPITables(
        root: root == PhysicalAddress(0)
          ? try ACPITables.findRoot(reach: Self.reach, map: Executive.directMap) : root,
        reach: Self.reach, map: Executive.directMap)
      self.init(try MADT(tables), boot: boot, reachedBy: LocalAPIC.addressing)
    } catch {
      self.init(only: boot, because: error)
    }
  }
}
