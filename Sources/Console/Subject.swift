// What the console looks at: one system, and what its boot knew.

import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// The system at the console's feet: a value of handles.
public struct Subject {
  public var statistics: Statistics
  public var boot: UnsafeMutablePointer<cp_boot_information>
  public var memoryMap: MemoryMap
  public var physical: PhysicalMemory

  public init(
    statistics: Statistics, boot: UnsafeMutablePointer<cp_boot_information>, memoryMap: MemoryMap,
    physical: PhysicalMemory
  ) {
    self.statistics = statistics
    self.boot = boot
    self.memoryMap = memoryMap
    self.physical = physical
  }
}

extension Console {
  var subject: UnsafeMutablePointer<Subject> { place(of: &state.pointee.subject) }
  var physical: PhysicalMemory { state.pointee.subject.physical }

  /// Hexadecimal digits that physical addresses of this machine need, in whole groups of four.
  var physicalDigits: UInt8 {
    let last = UInt64(subject.pointee.memoryMap.end.rawValue) << Page.shift - 1
    return UInt8((64 - last.leadingZeroBitCount + 15) / 16 * 4)
  }

  func physicalAddress(_ frame: FrameNumber) -> Line {
    "\(hex: frame.address.rawValue, digits: Int(physicalDigits))"
  }
}
