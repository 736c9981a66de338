// The contents of frames, by the counts of their pageblocks where these suffice, else frame by frame. Takes no lock.

import MemoryPrimitives
import PhysicalMemory

extension PageblockPointer {
  /// The contents of the pageblock, as far as its counts show.
  @inline(always) func contents(_ snapshot: PageblockSnapshot) -> RunContents {
    var contents = RunContents()
    let dirty = dirtyCount
    contents.free = snapshot.free
    contents.unmovable = snapshot.obstacles
    contents.zspages = min(zspageCount, snapshot.movable)
    let pages = snapshot.movable &- contents.zspages
    contents.activeForSwap = min(dirty, pages)
    contents.clean = pages &- contents.activeForSwap
    return contents
  }
}

extension FrameTable {
  /// The contents of one pageblock, by its counts. It has records.
  @inline(always) func contents(ofPageblock number: UInt64) -> RunContents {
    let pageblock = pageblock(UInt32(Pageblock.start(number)))
    return pageblock.contents(pageblock.snapshot)
  }

  /// The contents of frames `first` to `end`. All of them have records.
  func contents<Kinds: DirtyPageKinds>(from first: UInt64, to end: UInt64, by kinds: Kinds) -> RunContents {
    var contents = RunContents()
    var at = first
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      weigh(at, pageblockEnd, kinds, into: &contents)
      at = pageblockEnd
    }
    return contents
  }

  /// The record of `frame`; those behind it in its pageblock follow. Nil when they are not valid.
  @inline(always) func validRecords(_ frame: UInt64) -> FrameRecordPointer? {
    let frame = UInt32(frame)
    return pageblock(frame).state == .valid ? record(frame) : nil
  }

  /// Adds the contents of frames `first` to `end` of one pageblock: a whole pageblock by its counts, where these
  /// suffice, else frame by frame.
  func weigh<Kinds: DirtyPageKinds>(
    _ first: UInt64, _ end: UInt64, _ kinds: Kinds, into contents: inout RunContents
  ) {
    let pageblock = pageblock(UInt32(first))
    let snapshot = pageblock.snapshot
    guard let records = validRecords(first) else {
      // All free, all just allocated, or all as at boot.
      if snapshot.hasObstacles {
        contents.unmovable &+= end - first
      } else if snapshot.movable > 0 {
        contents.claimed &+= end - first
      } else {
        contents.free &+= end - first
      }
      return
    }
    // The dirty pages of a pageblock with unmovable frames may be wired ones.
    if end - first == Pageblock.length && !snapshot.hasObstacles {
      let counts = pageblock.contents(snapshot)
      if (!kinds.distinguishesDirtyPages || counts.dirty == 0) && isQuiet(records) {
        return contents += counts
      }
    }
    for i in 0..<(end - first) {
      contents.add(kind(records.after(Int(i)), FrameNumber(UInt32(first + i)), kinds))
    }
  }

  @inline(always) func kind<Kinds: DirtyPageKinds>(
    _ record: FrameRecordPointer, _ frame: FrameNumber, _ kinds: Kinds
  ) -> FrameKind {
    let snapshot = record.snapshot
    if snapshot.isFree { return .free }
    if snapshot.isIdlePage {
      if snapshot.dirty == 0 { return .clean }
      if !kinds.distinguishesDirtyPages { return .activeForSwap }
      switch (snapshot.isActive, kinds.isForDevice(frame)) {
      case (true, false): return .activeForSwap
      case (false, false): return .inactiveForSwap
      case (true, true): return .activeForDevice
      case (false, true): return .inactiveForDevice
      }
    }
    if snapshot.isZspage { return .zspage }
    return snapshot.isMovable ? .claimed : snapshot.isCaptured ? .captured : .unmovable
  }

  /// Whether no frame of a run of whole pageblocks is busy, held or wired, so that the counts say all. Runs of more
  /// than 8 pageblocks are not read.
  func isQuiet(from start: UInt64, count: UInt32) -> Bool {
    guard count <= 8 * Pageblock.frames else { return true }
    for pageblock in 0..<UInt64(count >> Pageblock.shift) {
      if let records = validRecords(start + Pageblock.start(pageblock)), !isQuiet(records) { return false }
    }
    return true
  }

  /// Whether no frame of a pageblock is busy, held or wired, by its records.
  @inline(always) private func isQuiet(_ records: FrameRecordPointer) -> Bool {
    records.combinedBusyWord(of: Int(Pageblock.frames)).rawValue & ~BusyWord.waiters.rawValue == 0
  }

  /// Counts frames `first` to `end`, all of them memory. Whole pageblocks without unmovable frames by their counts.
  func describe(_ first: UInt64, _ end: UInt64) -> RunCandidate {
    var (free, movable, dirty, unmovable): (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var at = first
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let pageblock = pageblock(UInt32(at))
      let snapshot = pageblock.snapshot
      if pageblockEnd - at == Pageblock.length && !snapshot.hasObstacles {
        free += snapshot.free
        movable += snapshot.movable
        dirty += pageblock.dirtyCount
      } else if let records = validRecords(at) {
        for i in 0..<Int(pageblockEnd - at) {
          let frame = records.after(i).snapshot
          if frame.isFree {
            free += 1
          } else if frame.isMovable {
            movable += 1
            if frame.isDirty { dirty += 1 }
          } else {
            unmovable += 1
          }
        }
      } else if snapshot.hasObstacles {
        unmovable += pageblockEnd - at
      } else if snapshot.movable > 0 {
        movable += pageblockEnd - at
      } else {
        free += pageblockEnd - at
      }
      at = pageblockEnd
    }
    return RunCandidate(
      run: FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first)), free: PageCount(free),
      movable: PageCount(movable), dirty: PageCount(dirty), unmovable: PageCount(unmovable))
  }
}

extension FrameAllocator {
  /// Counts the contents of `run`; frames without a record count as unmovable. A few instructions a frame; takes no
  /// lock.
  func contents<Pricing: RunPricing>(of run: FrameRun, at pricing: Pricing) -> RunContents {
    var contents = RunContents()
    var at = UInt64(run.first.rawValue)
    let end = at + run.count.rawValue
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      if at < UInt64(FrameNumber.limit), table.section(of: UInt32(at)) != nil {
        table.weigh(at, pageblockEnd, pricing, into: &contents)
      } else {
        contents.unmovable += pageblockEnd - at
      }
      at = pageblockEnd
    }
    return contents
  }
}
