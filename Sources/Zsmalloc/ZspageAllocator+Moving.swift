// Moving pages of zspages out of a run of frames, for a request that needs all of it.
//
// No handle changes: the descriptor of the zspage names another frame. Readers of the zspage are kept off while one
// page is copied; a page with a reader is passed over.

import MemoryPrimitives
import PhysicalMemory

/// The result of moving pages of zspages out of a run, in pages.
package struct ZspageMoves: Sendable {
  /// Pages that were copied to another frame.
  package var moved = PageCount.zero
  /// Pages with a reader.
  package var claimed = PageCount.zero
  /// Pages for which there was no frame to move to.
  package var lackingFrames = PageCount.zero
  /// Nothing moved yet.
  package init() {}
}

extension ZspageAllocator {
  /// Moves pages of zspages out of `run`, as long as more than `reserve` frames are free, and `limit` at most. The
  /// run is isolated, so that the frames that become free there are captured, and none of them is moved to. The
  /// caller holds no lock. Some 20 instructions a frame, and 700 and a copy for each page.
  package func move(
    outOf run: FrameRun, leaving reserve: PageCount, atMost limit: PageCount
  ) -> ZspageMoves {
    var outcome = ZspageMoves()
    guard counters.dataFrames.value > 0 else { return outcome }
    var at = run.first
    while at < run.end {
      let frame = at
      at += 1
      guard let record = physical.record(frame), record.hasRole(.zspage) else { continue }
      guard outcome.moved < limit, physical.freeCount > reserve, let target = allocateTarget() else {
        outcome.lackingFrames += 1
        continue
      }
      let (place, page) = (record.owner, Int(record.aux))
      let answer = lists.withLock { $0.move(frame, page: page, of: place, to: target) }
      switch answer {
      case .moved:
        outcome.moved += 1
        physical.free(FrameRun(first: frame, count: .one))
      case .pinned, .gone:
        // A frame that has just been allocated or emptied becomes a page, or free, in a moment.
        if answer == .pinned || record.hasRole(.zspage) { outcome.claimed += 1 }
        physical.free(FrameRun(first: target, count: .one))
      }
    }
    return outcome
  }

  private func allocateTarget() -> FrameNumber? {
    do throws(PhysicalMemoryError) {
      return try physical.allocateUnlogged(BlockOrder(0), role: .zspage, for: FrameOwner("Zsmalloc"))
    } catch {
      return nil
    }
  }
}

extension ZspageLists {
  enum PageMove { case moved, pinned, gone }

  /// Moves a page, if it is still what the frame's record said.
  mutating func move(_ frame: FrameNumber, page: Int, of place: UInt32, to target: FrameNumber) -> PageMove {
    guard place < zspages.indexEnd, page < ChainClasses.longestChain, let zspage = existingZspage(place),
      page < Int(shape(of: zspage).pages), zspage.frame(page) == frame
    else { return .gone }
    guard zspage.tryExclude() else { return .pinned }
    directMap.pointer(to: target).copyMemory(
      from: directMap.pointer(to: frame), byteCount: Int(Page.size))
    let record = physical.knownRecord(target)
    (record.owner, record.aux, record.index) = (place, UInt32(page), 0)
    zspage.setFrame(page, target)
    zspage.admit()
    counters.pointee.movedPages.add()
    return .moved
  }
}
