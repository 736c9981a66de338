// The system that the console inspects, and the record of its boot.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// The inspected system: a value of handles.
package struct Subject {
  /// The system that the console inspects.
  package var memory: MemorySystem
  /// The boot record, which must outlive the console.
  package var boot: UnsafeMutablePointer<cp_boot_information>
  /// The base of the image, in the last gibibyte of the address space.
  package var imageBase: VirtualAddress

  /// `boot` must stay where it is as long as the console does.
  package init(
    memory: MemorySystem, boot: UnsafeMutablePointer<cp_boot_information>,
    imageBase: VirtualAddress = VirtualAddress(0xffff_ffff_8000_0000)
  ) {
    self.memory = memory
    self.boot = boot
    self.imageBase = imageBase
  }
}

extension Shell {
  var subject: UnsafeMutablePointer<Subject> { inPlace(&state.pointee.subject) }
  var memory: MemorySystem { state.pointee.subject.memory }
  var physical: FrameAllocator { state.pointee.subject.memory.physical }

  /// Hexadecimal digits that physical addresses of this machine need, in whole groups of four.
  var physicalDigits: UInt8 {
    let last = UInt64(memory.map.end.rawValue) << Page.shift - 1
    return UInt8((64 - last.leadingZeroBitCount + 15) / 16 * 4)
  }

  func physicalAddress(_ frame: FrameNumber) -> Line { physicalAddress(frame.address) }
  func physicalAddress(_ address: PhysicalAddress) -> Line {
    "\(hex: address.rawValue, digits: Int(physicalDigits))"
  }

  /// The function at a call site, or its address; `-` for an unknown one.
  func place(_ site: CallSite) -> Line {
    guard site != .unknown else { return "-" }
    return code(site.address(inImageAt: state.pointee.subject.imageBase))
      ?? "\(hex: UInt64(site.rawValue), digits: 8)"
  }

  /// `KmemAllocator.free(_:size:type:) +0x9a`, when the host knows the function.
  func code(_ address: VirtualAddress) -> Line? { state.pointee.host.name(of: address) }
}
