// The alias that frames have in the direct map: it gets the attribute of their other mapping.

import CPlatform
import MemoryPrimitives
import PageTables
import PhysicalMemory

extension KernelAddressSpace {
  /// Sets the attribute of the frames' alias to that of their coming mapping, and flushes the cache lines that were
  /// written through it. Asks every processor. Throws when there is no memory for tables; nothing has changed then.
  package func setAlias(_ run: FrameRun, _ attribute: CacheAttribute) throws(PageTableError) {
    guard attribute != .writeBack else { return }
    try tables.setAttribute(alias(run.first.address), count: run.count, attribute)
    let start = UnsafeRawPointer(machine.directMap.pointer(to: run.first))
    for line in 0..<Int(run.count.bytes.rawValue / 64) { cp_flush_line(start + line * 64) }
  }

  /// Makes the frames' alias write-back again, with the large leaves that it had. Asks every processor, unless it is.
  package func restoreAlias(_ start: PhysicalAddress, _ count: PageCount) {
    guard let translation = tables.translate(alias(start)), translation.attribute != .writeBack else {
      return
    }
    do throws(PageTableError) {
      try tables.setAttribute(alias(start), count: count, .writeBack)
    } catch {
      // The alias has had boundaries at both ends of the run since its attribute was set. A range is freed in parts
      // that end where tables of the mapping do. The alias is congruent to the mapping, so no leaf of it crosses
      // such an end.
      preconditionFailure("an alias could not be made write-back again")
    }
    tables.join(alias(start), count: count)
  }

  func alias(_ start: PhysicalAddress) -> VirtualAddress {
    machine.directMap.virtualAddress(of: start)
  }
}
