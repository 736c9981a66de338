// Reclaiming: kmem frees the memory that it keeps for later requests, as far as the one who asks needs it.
//
// Physical memory asks by steps (`ReclaimStep`). First go magazines and slabs that were not needed since the last trim.
// The rest of depots and all free slabs follow, then this processor's magazines, then those of all processors. The first
// two steps ask no processor. None allocates, and kmem's locks are released before frames are.

import CPlatform
import Magazines
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension KmemAllocator {
  /// Registers kmem as an owner that physical memory may ask.
  func registerAsOwner() {
    let isRegistered = state.physical.addOwner(base) { context, step in
      KmemAllocator(at: context.unsafelyUnwrapped)
        .reclaim(ReclaimStep(rawValue: step) ?? .surplus).rawValue
    }
    precondition(isRegistered, "too many owners of physical memory")
  }

  /// Releases the memory of one step. Answers the pages released.
  @discardableResult func reclaim(_ step: ReclaimStep) -> PageCount {
    if step == .surplus { state.reclaims.add(1, ordering: .relaxed) }
    let before = reclaimablePages
    if step == .thisProcessor { withInterruptsOff { unloadMagazines() } }
    if step == .allProcessors {
      for processor in 0..<machine.processorCount {
        machine.run(on: ProcessorIndex(UInt32(processor)), base) { KmemAllocator(at: $0).unloadMagazines() }
      }
    }
    forEach { cache in
      guard cache.mayRelease else { return }
      if step == .surplus {
        cache.lowerDepotLimit(atMost: cache.magazines.drainSurplus { cache.returnToSlab($0, .unknown) })
        let unused = cache.lists.withLock { $0.fewestFree }
        if unused > 0 { cache.releaseFreeSlabs(atMost: unused) }
        // The rest was needed since the last trim.
        cache.lists.withLock { $0.fewestFree = 0 }
      } else {
        cache.lowerDepotLimit()
        cache.magazines.drainDepot { cache.returnToSlab($0, .unknown) }
        cache.freeEmptyMagazines()
        cache.releaseFreeSlabs()
      }
    }
    return before.subtractingSaturated(reclaimablePages)
  }

  /// Moves this processor's magazines of all caches to their depots. Runs on the processor itself with interrupts off;
  /// some 100 instructions for each cache that has any.
  private func unloadMagazines() { forEach { $0.magazines.unload() } }

  /// Empties all magazines and releases every slab that has no object in use. Answers the pages released.
  ///
  /// Asks every processor, and waits for a trim to end; no spin lock may be held.
  @discardableResult package func drain() -> PageCount {
    let before = slabPages
    forEach { cache in
      cache.lowerDepotLimit()
      cache.magazines.drain { cache.returnToSlab($0, .unknown) }
      cache.freeEmptyMagazines()
    }
    // The objects that a trim is moving are in no depot and no slab; a trim that begins now finds the depots empty.
    state.trimmer.lock.withLock(on: state.machine) {}
    forEach { $0.releaseFreeSlabs() }
    return before.subtractingSaturated(slabPages)
  }

  /// Frames of all slabs and of kmem's own tables that can be freed.
  private var reclaimablePages: PageCount { slabPages + PageCount(state.own.withLock { $0.frames }) }

  /// Frames of all slabs.
  var slabPages: PageCount {
    var frames = 0
    forEach { frames += $0.lists.withLock { $0.frames } }
    return PageCount(frames)
  }
}
