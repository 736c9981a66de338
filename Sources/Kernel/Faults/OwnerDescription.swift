// The owner of an address, for fault reports. It is found by the regions of the image and of the address space, not
// by the layers' own records, which may be broken.

import CPlatform
import KernelSpace
import MemoryPrimitives
import PageTables

enum OwnerDescription {
  /// Describes the owner of `address` in one clause.
  static func describe(_ address: UInt64) -> Line {
    let image = Image.layout
    if contains(image.text, address) { return "the kernel's code" }
    if contains(image.rodata, address) { return "the kernel's constants" }
    if contains(image.data, address) { return "the kernel's data" }
    if contains(image.symbols, address) { return "the kernel's table of names" }
    if contains(image.stacks, address) {
      if guards(image.stack.0, address) { return stack("boot stack", image.stack.0) }
      if guards(image.stack.1, address) { return stack("double fault stack", image.stack.1) }
      return stack("NMI stack", image.stack.2)
    }
    if address < 1 << 47 { return "the lower half, in which the kernel has nothing" }
    let layout = AddressLayout()
    let physical = Executive.directMap.physicalAddress(of: VirtualAddress(address))
    if physical.rawValue < 1 << 46 { return "the direct map, of physical address \(physical)" }
    if lies(address, in: layout.kernelBase, layout.kernelSize) { return "the arena kernel_va" }
    if lies(address, in: layout.deviceBase, layout.deviceSize) { return "the window for device registers" }
    if let place = WindowPlace(
      of: VirtualAddress(address), from: layout.windowBase, processors: Processors.made)
    {
      return place.description
    }
    return "none: no region of the address space holds it"
  }

  private static func lies(_ address: UInt64, in base: VirtualAddress, _ size: ByteCount) -> Bool {
    address &- base.rawValue < size.rawValue
  }

  private static func contains(_ span: cp_span, _ address: UInt64) -> Bool {
    address >= span.first && address < span.end
  }

  private static func guards(_ stack: cp_span, _ address: UInt64) -> Bool {
    address >= stack.first - 4096 && address < stack.end
  }

  private static func stack(_ name: StaticString, _ span: cp_span) -> Line {
    let size = ByteCount(span.end - span.first)
    return "\(name) \(VirtualAddress(span.first)) to \(VirtualAddress(span.end - 1)), \(size)"
  }
}
