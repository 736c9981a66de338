// The number of pages of all memory that can be written or dropped, as far as the caller needs to know it.
//
// The counts of a pageblock suffice where every allocated frame is a movable page and none is held or busy. Elsewhere each
// record is read. The walk ends as soon as more pages make no difference to the caller, and passes over pageblocks whose
// pages make none.

import MemoryPrimitives
import PhysicalMemory

/// Pages that are neither wired nor held nor busy.
struct IdlePages: Equatable {
  /// Pages that are not dirty.
  var clean: UInt64
  /// Dirty pages that are written to swap.
  var forSwap: UInt64
  /// Dirty pages that are written to a device of their own.
  var forDevice: UInt64

  /// Counts, zero by default.
  init(clean: UInt64 = 0, forSwap: UInt64 = 0, forDevice: UInt64 = 0) {
    (self.clean, self.forSwap, self.forDevice) = (clean, forSwap, forDevice)
  }

  var all: UInt64 { clean &+ forSwap &+ forDevice }

  fileprivate mutating func add(_ contents: RunContents) {
    clean &+= contents.clean
    forSwap &+= contents.activeForSwap &+ contents.inactiveForSwap
    forDevice &+= contents.activeForDevice &+ contents.inactiveForDevice
  }
}

extension RunSearch {
  /// Counts the idle pages of all memory. Each count is exact, or at least that of `enough`; or all of them together are at
  /// least `enoughInAll`. Takes no lock. A step a pageblock; a few instructions a frame, or some thirty where pages are
  /// wired, held or busy, until that is enough.
  mutating func idlePages<Kinds: DirtyPageKinds>(
    enough: IdlePages, enoughInAll: UInt64 = .max, by kinds: Kinds
  ) -> IdlePages {
    var pages = IdlePages()
    for number in 0..<table.sectionCount {
      let entry = table.entry(number)
      for i in 0..<entry.frames >> Pageblock.shift {
        let lacksClean = pages.clean < enough.clean
        let lacksDirty = pages.forSwap < enough.forSwap || pages.forDevice < enough.forDevice
        if pages.all >= enoughInAll || !(lacksClean || lacksDirty) { return pages }
        steps += 1
        let first = UInt64(entry.first + i << Pageblock.shift)
        let pageblock = table.pageblock(UInt32(first))
        let (snapshot, dirty) = (pageblock.snapshot, pageblock.dirtyCount)
        // Wired pages may be among the dirty ones.
        let mayHaveClean = snapshot.movable > (snapshot.hasObstacles ? 0 : dirty) + pageblock.zspageCount
        guard (lacksClean && mayHaveClean) || (lacksDirty && dirty > 0) else { continue }
        var contents = RunContents()
        table.weigh(first, first + Pageblock.length, kinds, into: &contents)
        steps += Pageblock.length / 8
        pages.add(contents)
      }
    }
    return pages
  }
}
