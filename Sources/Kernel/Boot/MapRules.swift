// The usable memory that this machine leaves out, by its command line and by its MTRRs.

import CPlatform
import Console
import MemoryPrimitives
import PhysicalMemory

extension MapRules {
  /// Reads the command line and the registers of this processor; those of the other processors are the same, which
  /// the firmware ensures (Intel SDM vol. 3A, 12.11.5). Stops the machine when the line can't be read.
  init(_ information: UnsafeMutablePointer<cp_boot_information>, _ features: ProcessorFeatures) {
    self.init()
    let line = KernelCommandLine(
      UnsafeBufferPointer(start: cp_boot_line(information), count: Int(information.pointee.line_length)))
    switch line.switching(of: "vm.first_64k") {
    case .on: lowMemory = .fromFrame1
    case .off, .none: break
    case .unreadable:
      Reports.panic("a machine that Strata refuses", "vm.first_64k: its value is neither on nor off")
    }
    if features.typeRanges {
      cacheTypes = MemoryTypeRanges(
        addressBits: features.addressBits, vendor: features.isAMD ? .amd : .other, read: { cp_read_msr($0) })
    }
  }
}
