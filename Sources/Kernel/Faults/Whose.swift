// Whose memory an address lies in, for fault reports: by the map of addresses in DESIGN.md.

import CPlatform
import MemoryPrimitives

enum Whose {
  /// One clause on who owns `address`.
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
    switch address {
    case 0..<1 << 47: return "the lower half, in which the kernel has nothing"
    case 0xffff_8000_0000_0000..<0xffff_c000_0000_0000:
      return "the direct map, of physical address \(PhysicalAddress(address - 0xffff_8000_0000_0000))"
    case 0xffff_c000_0000_0000..<0xffff_e000_0000_0000: return "the arena kernel_va"
    case 0xffff_f000_0000_0000..<0xffff_f100_0000_0000: return "the fixed windows"
    default: return "nobody"
    }
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
