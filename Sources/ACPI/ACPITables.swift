// The firmware's ACPI tables, read where they lie in physical memory.
//
// Advanced Configuration and Power Interface Specification 6.5. The root pointer (RSDP, 5.2.5.3) names one
// list of tables or two: the RSDT with addresses of 32 bits (5.2.7), and from revision 2 on the XSDT with
// addresses of 64 bits (5.2.8). Every table starts with the same header of 36 bytes (5.2.6), which tells
// its length, and the sum of all its bytes is 0.
//
// Nothing that firmware says is believed before it was looked at. These are the rules, in one place each:
//   1. Memory is touched through `PhysicalReach` only, which checks a whole range before it gives it out:
//      nothing at or above `reach`, no length that wraps around. Tables lie at any byte, so loads are
//      unaligned ones.
//   2. A table is an `ACPITable` only when its length is possible, it lies within reach and its sum is 0.
//   3. The XSDT is taken where its address is not 0 and it is sound; else the RSDT. A root pointer whose
//      extended half is unsound still leads to its RSDT: a loader that hands over a copy (multiboot2) may
//      have cut it to the 20 bytes of revision 0.
//   4. A list that names a table twice, or a table that is damaged, hides no sound one further on.
//
// All of this reads and keeps nothing but addresses: no memory is allocated and nothing is written. What was
// read is good for as long as the tables lie where they lay, and `map` leads there. Cost: one pass over each
// table that is asked for, none over the others.

import MemoryPrimitives

/// The tables that one root pointer leads to.
public struct ACPITables {
  /// What names them: the XSDT or the RSDT.
  public let list: ACPITable
  let memory: PhysicalReach

  /// The tables behind the root pointer at `root`, which `findRoot` finds where no loader told it.
  /// Memory at or above `reach` is never touched; what lies below must be readable through `map`.
  ///
  /// Throws what is wrong with the root pointer or with the list that it names; of two lists, with the RSDT.
  public init(root: PhysicalAddress, reach: ByteCount, map: DirectMap) throws(ACPIError) {
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

  /// The first sound table with this signature.
  ///
  /// Throws what is wrong with the first one that bears it when none is sound; `outOfReach` when none was
  /// seen and the list names what can't be looked at; else `noSuchTable`.
  public func find(_ signature: TableSignature) throws(ACPIError) -> ACPITable {
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

  /// The address that the list has at `offset`; nil behind its last.
  private func listed(at offset: Int) -> PhysicalAddress? {
    if entrySize == 8 { return list.bytes.load(at: offset, as: UInt64.self).map { PhysicalAddress($0) } }
    return list.bytes.load(at: offset, as: UInt32.self).map { PhysicalAddress(UInt64($0)) }
  }
}
