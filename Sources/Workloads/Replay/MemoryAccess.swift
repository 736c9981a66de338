// How a workload reaches the memory that it was given, on either machine.
//
// In the kernel an address is an address. On the host the direct map lies in this process and can be
// dereferenced as well, but what has an address of the arena `kernel_va` exists in the instance's page
// tables only: there the walk is done in software, page by page.

import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// Turns an address of the instance into one that this code may dereference.
public protocol MemoryAccess {
  /// Where the bytes from `address` to the end of its page are; nil when nothing is mapped there.
  func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer?
}

/// Addresses are what they are: the kernel on its own tables, and the direct map anywhere.
@frozen public struct DirectAccess: MemoryAccess {
  @inlinable public init() {}
  @inline(always) public func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer? {
    address.pointer
  }
}

/// Addresses of the direct map as they are, all others by a walk through the instance's page tables.
public struct WalkedAccess: MemoryAccess {
  let directMap: DirectMap
  let end: UInt64
  let tables: PageMap

  /// For an instance with `memory` bytes from physical address 0 on.
  public init(directMap: DirectMap, memory: ByteCount, tables: PageMap) {
    self.directMap = directMap
    end = directMap.base + memory.rawValue
    self.tables = tables
  }

  /// For all that a system has.
  public init(_ system: MemorySystem) {
    self.init(
      directMap: system.machine.directMap, memory: PageCount(UInt64(system.map.end.rawValue)).bytes,
      tables: system.pageTables)
  }

  public func pointer(to address: VirtualAddress) -> UnsafeMutableRawPointer? {
    if address.rawValue >= directMap.base && address.rawValue < end { return address.pointer }
    return tables.translate(address).map { directMap.pointer(to: $0.physical) }
  }
}
