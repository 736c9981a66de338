// The memory of a kernel, assembled: one call that brings the layers up in order, and the handles that a kernel keeps.
//
// STRUCTURES
//   An instance is a value of handles, one for each layer. A copy of it copies no memory. Several instances live side
//   by side, each over memory of its own.
//
// ORDER (the state that each step relies on)
//   1  the firmware's map is sanitised: sorted runs of whole frames, without the carve-out
//   2  early memory allocates pages of it, never occupied ones, only below 4 GiB
//   3  the records of all frames are reserved at the top of memory, not touched
//   4  the final page tables are built and made current: from here all memory can be reached, the carve-out too, and
//      the loader's mapping at address 0 is gone
//   5  physical memory opens: early memory's pages and occupied ranges keep their roles, those registered for zones as
//      slabs; all other frames are free
//   6  kernel space, kmem, paging, contiguous memory and the table of statistics allocate from there
//
// INVARIANTS
//   Those of the layers. `checkInvariants` returns the first message, which begins with its number (PM-, PT-, KS-, …).
//
// LOCKS
//   None of its own. `assemble` runs on one processor, before any other uses the instance.
//
// COST
//   No step touches each frame, so a machine of 20 GiB comes up in little more than one of 256 MiB: about a million
//   instructions.
//
// EXHAUSTION
//   A step that fails ends the assembly with `AssemblyError`: the machine is too small for a kernel.
//
// SOURCES
//   FreeBSD, sys/vm/vm_init.c and amd64/machdep.c, for the order.

import ContiguousMemory
import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem
import Zsmalloc

/// One memory system: the layers, and their statistics.
public struct MemorySystem: Sendable {
  /// The machine, with the failure log.
  public let machine: Machine
  /// The firmware's map, sanitised.
  public let map: MemoryMap
  /// The carve-out of the boot request: not owned by the instance, and reached by the direct map.
  public let carveOut: CarveOut
  /// Frames of memory.
  public let physical: FrameAllocator
  /// The kernel's page tables.
  public let pageTables: PageMap
  /// Kernel addresses with memory behind them.
  public let space: KernelAddressSpace
  /// Objects.
  public let kmem: KmemAllocator
  /// Memory objects, pageable ranges, swap.
  public let paging: PagedMemory
  /// Runs of frames, which it can make free.
  public let contiguous: ContiguousAllocator
  /// A store of compressed pages and of objects.
  public let compressed: CompressedPages
  /// The statistics of all layers.
  public let statistics: Statistics
  /// The last requests that a layer refused.
  public let failures: FailureLog

  /// Starts the service threads: page daemon, laundry, and the trimming of caches. Without them a thread that runs
  /// short of memory does their work. Returns false when the machine could not start all; those that it started run.
  @discardableResult public func startServices() -> Bool {
    let isPaging = paging.startServices()
    return kmem.startTrimming() && isPaging
  }

  /// Ends these threads and waits for their end. Call it before the instance's memory is reused.
  public func endServices() {
    paging.endServices()
    kmem.endTrimming()
  }

  /// Memory that this instance uses for itself: each frame that is neither free nor a file of the loader's.
  public var footprint: ByteCount {
    (physical.total - physical.freeCount - physical.count(.bootModule)).bytes
  }

  /// The first broken invariant of any layer, by its number, or nil. Exact when nothing else runs; n log n.
  public func checkInvariants() -> StaticString? {
    physical.checkInvariants() ?? space.checkInvariants() ?? kmem.checkInvariants()
      ?? paging.checkInvariants() ?? contiguous.checkInvariants() ?? compressed.store.checkInvariants()
  }
}
