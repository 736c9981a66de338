// The access of a workload to allocated memory, on either machine.
//
// In the kernel each address can be dereferenced. On the host the direct map lies in this process and can be
// dereferenced too. But an address of the arena `kernel_va` exists in the instance's page tables only: there software
// walks them, page by page.

import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// Turns an address of the instance into one that this code may dereference.
package protocol MemoryAccess {
  /// A pointer to the bytes from `address` to the end of its page; nil when it is not mapped.
  func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer?
}

/// Dereferences addresses directly: in the kernel on its own tables, and in the direct map anywhere.
package struct DirectAccess: MemoryAccess {
  package init() {}
  @inline(__always) package func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer? {
    address.pointer
  }
}

/// Dereferences addresses of the direct map directly, all others by a walk through the instance's page tables.
package struct WalkedAccess: MemoryAccess {
  let directMap: DirectMap
  let end: UInt64
  let tables: PageMap

  /// For an instance with `memory` bytes from physical address 0 on.
  package init(directMap: DirectMap, memory: ByteCount, tables: PageMap) {
    self.directMap = directMap
    end = directMap.base + memory.rawValue
    self.tables = tables
  }

  /// For all that a system has.
  package init(_ system: MemorySystem) {
    self.init(
      directMap: system.machine.directMap, memory: PageCount(UInt64(system.map.end.rawValue)).bytes,
      tables: system.pageTables)
  }

  package func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer? {
    if address.rawValue >= directMap.base && address.rawValue < end { return address.pointer }
    return tables.translate(address).map { directMap.pointer(to: $0.physical) }
  }
}
