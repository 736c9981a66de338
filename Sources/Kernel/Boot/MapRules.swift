// Which usable memory this machine leaves out: what its command line asks for, and what its MTRRs say.

import CPlatform
import Console
import MemoryPrimitives
import PhysicalMemory

extension MapRules {
  /// Reads the command line and the registers of this processor; those of the others are the same, as the firmware
  /// has to see to that (Intel SDM vol. 3A, 12.11.5). Stops the machine when the line can't be understood.
  init(_ information: UnsafeMutablePointer<cp_boot_information>, _ features: ProcessorFeatures) {
    self.init()
    let line = KernelCommandLine(
      UnsafeBufferPointer(start: cp_boot_line(information), count: Int(information.pointee.line_length)))
    switch line.switching(of: "vm.first_64k") {
    case .on: lowMemory = .fromFrame1
    case .off, .none: break
    case .unreadable:
      Reports.panic("a machine that Strata refuses", "vm.first_64k: what it is set to is neither on nor off")
    }
    if features.typeRanges {
      cacheTypes = MemoryTypeRanges(
        addressBits: features.addressBits, vendor: features.isAMD ? .amd : .other, read: { cp_read_msr($0) })
    }
  }
}
