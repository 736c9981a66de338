// The firmware's ACPI tables, read where they lie in physical memory.
//
// STRUCTURES
//
// The root pointer (RSDP, 5.2.5.3) names one list of tables or two: the RSDT with addresses of 32 bits (5.2.7), and from
// revision 2 on the XSDT with addresses of 64 bits (5.2.8). Every table starts with the same header of 36 bytes (5.2.6),
// which has its length, and the sum of all its bytes is 0.
//
// INVARIANTS, each held by one place in the code
//
//   AC-1  Memory is accessed through `PhysicalReach` only, which checks a whole range before it returns it: nothing at or
//         above `reach`, no length that wraps around. Tables lie at any byte, so loads are unaligned.
//   AC-2  A table is an `ACPITable` only if its length is possible, it lies within reach and its sum is 0.
//   AC-3  The XSDT is used if its address is not 0 and it is sound; else the RSDT. A root pointer whose extended half is
//         unsound still leads to its RSDT: a loader that passes a copy (multiboot2) may have cut it to the 20 bytes of
//         revision 0.
//   AC-4  A list that names a table twice, or a damaged table, hides no sound table further on.
//
// LOCKS
//
// None: the module only reads, and keeps nothing but addresses. A table is valid as long as it stays in its place, and
// `map` leads there.
//
// COST
//
// One pass over each table that a caller asks for, none over the others.
//
// EXHAUSTION
//
// The module allocates no memory and writes none.
//
// SOURCES
//
// Advanced Configuration and Power Interface Specification 6.5; Intel SDM vol. 3A, chapter 11, for the local APIC.

import MemoryPrimitives

/// The tables that one root pointer leads to.
package struct ACPITables {
  /// The list that names them: the XSDT or the RSDT.
  package let list: ACPITable
  let memory: PhysicalReach

  /// Reads the list behind the root pointer at `root`, which `findRoot` finds if no loader passed it. Never accesses
  /// memory at or above `reach`; memory below must be readable through `map`.
  ///
  /// Throws the flaw of the root pointer or of the list that it names; of two lists, of the RSDT.
  package init(root: PhysicalAddress, reach: ByteCount, map: DirectMap) throws(ACPIError) {
    memory = PhysicalReach(end: reach, map: map)
    let pointer = try RootPointer(at: root, in: memory)
    var flaw = pointer.extendedFlaw ?? .noSuchTable
    if pointer.extendedList != PhysicalAddress(0) {
      do throws(ACPIError) {
        list = try ACPITable(.xsdt, at: pointer.extendedList, in: memory)
        return
      } catch { flaw = error }
    }
    guard pointer.list != PhysicalAddress(0) else { throw flaw }
    list = try ACPITable(.rsdt, at: pointer.list, in: memory)
  }

  /// Finds the first sound table with this signature.
  ///
  /// Throws the flaw of the first table with the signature when none is sound. Without such a table it throws
  /// `outOfReach` when the list names an address that can't be read, else `noSuchTable`.
  package func find(_ signature: TableSignature) throws(ACPIError) -> ACPITable {
    var damage: ACPIError?
    var missed: ACPIError?
    var offset = ACPITable.headerSize
    while let address = listed(at: offset) {
      offset += entrySize
      guard address != PhysicalAddress(0) else { continue }
      do throws(ACPIError) {
        guard try TableSignature(at: address, in: memory) == signature else { continue }
      } catch {
        missed = error
        continue
      }
      do throws(ACPIError) {
        return try ACPITable(signature, at: address, in: memory)
      } catch { damage = damage ?? error }
    }
    throw damage ?? missed ?? .noSuchTable
  }

  private var entrySize: Int { list.signature == .xsdt ? 8 : 4 }

  /// Reads the address that the list has at `offset`; nil behind its last.
  private func listed(at offset: Int) -> PhysicalAddress? {
    if entrySize == 8 { return list.bytes.load(at: offset, as: UInt64.self).map { PhysicalAddress($0) } }
    return list.bytes.load(at: offset, as: UInt32.self).map { PhysicalAddress(UInt64($0)) }
  }
}
