// The first line that a person sees: the version, the machine and the loader.

import CPlatform
import MemoryPrimitives

enum MachineSummary {
  /// `Strata 0.1   x86-64, 256 MiB, 1 processor, by GRUB (multiboot2)`.
  static func line(_ boot: UnsafeMutablePointer<cp_boot_information>) -> Line {
    let loader: StaticString =
      switch boot.pointee.loader {
      case .multiboot2: "by GRUB (multiboot2)"
      case .pvh: "by PVH"
      }
    let processors = UInt64(Processors.made)
    return "Strata 0.1   x86-64, \(memory(boot)), \(count: processors, "processor"), \(loader)"
  }

  /// The nominal size of the memory: the firmware keeps a little of it, so the sum is rounded up.
  private static func memory(_ boot: UnsafeMutablePointer<cp_boot_information>) -> ByteCount {
    var total: UInt64 = 0
    let ranges = cp_boot_ranges(boot)
    for i in 0..<Int(boot.pointee.range_count) {
      if ranges[i].type == 1 { total &+= ranges[i].length }
    }
    guard total > 0 else { return .zero }
    let step = max(1 << 20, (UInt64(1) << UInt64(63 - total.leadingZeroBitCount)) >> 5)
    return ByteCount((total &+ step - 1) & ~(step - 1))
  }
}
