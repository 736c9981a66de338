// The walk over extents: maximal rows of frames without an unmovable one.

import MemoryPrimitives
import PhysicalMemory

extension RunRequest {
  /// Whether a run may begin inside a pageblock.
  var mayBeginInside: Bool { alignment < Pageblock.length }
}

/// A walk over the extents of a range that could hold a run for a request.
struct ExtentSearch {
  let request: RunRequest
  let table: FrameTable
  var steps: UInt64 = 0
  /// Pageblocks with unmovable frames whose records may be read; after that such pageblocks count as all unmovable.
  var pageblockBudget = Int.max

  private let mayReadInside: Bool
  private let mayBeginInside: Bool
  /// The shortest extent of interest; `.max` ends the walk.
  private var wanted: UInt64 = 0
  /// The current extent is `at` to `top`. If it ends in a pageblock with unmovable frames, `top` is only an upper bound
  /// until the frames in `unread` were read.
  private var at: UInt64 = 0
  private var top: UInt64 = 0
  private var unread: (first: UInt64, end: UInt64)?

  init(_ request: RunRequest, _ table: FrameTable) {
    (self.request, self.table) = (request, table)
    (mayReadInside, mayBeginInside) = (!request.isOfPageblocks, request.mayBeginInside)
  }

  /// Whether any run for the request in frames `low` to `high` could be emptied.
  mutating func hasRun(from low: UInt64, to high: UInt64) -> Bool {
    var found = false
    let request = request
    forEachExtent(from: low, to: high) { first, end in
      found = request.highestStart(first, end) != nil
      return found ? .max : UInt64(request.count)
    }
    return found
  }

  /// Calls `body` with each extent in frames `low` to `high`, from the top down, if it may hold a run as long as is
  /// wanted: at first the request's, then the last result of `body`, where `.max` ends the walk. Extents in which no run
  /// for the request can begin or end are left out or cut.
  mutating func forEachExtent(from low: UInt64, to high: UInt64, _ body: (UInt64, UInt64) -> UInt64) {
    wanted = UInt64(request.count)
    begin(at: min(high, UInt64(table.end)))
    while at > low && wanted != .max {
      let frame = UInt32(at - 1)
      guard let section = table.section(of: frame) else {
        steps += 1
        close(at, body)
        begin(at: max(low, table.holeStart(frame)))
        continue
      }
      let lowest = max(low, UInt64(section.first))
      var pageblock = table.pageblock(frame)
      while at > lowest && wanted != .max {
        steps += 1
        let bottom = max(low, (at - 1) & ~UInt64(Pageblock.frames - 1))
        let snapshot = pageblock.snapshot
        pageblock = pageblock.below
        if snapshot.hasObstacles { cross(snapshot, bottom, body) } else { at = bottom }
      }
    }
    if wanted != .max { close(at, body) }
  }

  /// Begins an extent that ends at `frame`.
  private mutating func begin(at frame: UInt64) {
    (at, top, unread) = (frame, frame, nil)
  }

  /// Ends the current extent at `first` and gives it to `body` if it is long enough.
  private mutating func close(_ first: UInt64, _ body: (UInt64, UInt64) -> UInt64) {
    guard top - first >= wanted else { return }
    if let prefix = unread {
      unread = nil
      pageblockBudget -= 1
      top = prefix.first + prefixLength(prefix.first, prefix.end)
      guard top - first >= wanted else { return }
    }
    wanted = body(first, top)
  }

  /// Walks the part from `bottom` to `at` of a pageblock with unmovable frames.
  private mutating func cross(
    _ snapshot: PageblockSnapshot, _ bottom: UInt64, _ body: (UInt64, UInt64) -> UInt64
  ) {
    let frames = Pageblock.length
    let mayRead = mayReadInside && pageblockBudget > 0
    let most = mayRead ? min(frames - min(snapshot.obstacles, frames), at - bottom) : 0
    if most == 0 {
      close(at, body)
      return begin(at: bottom)
    }
    // The frames right below the current extent belong to it.
    var end = at
    var wasRead = false
    if mayBeginInside && top - at + most >= wanted {
      end = at - suffixLength(bottom, at)
      wasRead = true
      if end == bottom {
        // The unmovable frames of the pageblock lie outside of the range.
        at = bottom
        return
      }
    }
    close(end, body)
    if mayBeginInside && most >= wanted && wanted != .max {
      wasRead = true
      visitInside(bottom, end, body)
    }
    if wasRead { pageblockBudget -= 1 }
    at = bottom
    top = bottom + most
    unread = (bottom, top)
  }

  /// Calls `body` with each extent in frames `first` to `end` of one pageblock that ends at an unmovable frame on either
  /// side, if it is long enough.
  private mutating func visitInside(_ first: UInt64, _ end: UInt64, _ body: (UInt64, UInt64) -> UInt64) {
    let records = table.validRecords(first)
    var frame = end
    steps += (end - first) / 8
    while true {
      while frame > first && isUnmovable(records, frame - first - 1) { frame -= 1 }
      let extentEnd = frame
      while frame > first && !isUnmovable(records, frame - first - 1) { frame -= 1 }
      if frame == first { return }
      if extentEnd - frame >= wanted { wanted = body(frame, extentEnd) }
      if wanted == .max { return }
    }
  }

  @inline(always) private func isUnmovable(_ records: FrameRecordPointer?, _ i: UInt64) -> Bool {
    guard let records else { return true }
    let snapshot = records.after(Int(i)).snapshot
    return !snapshot.isFree && !snapshot.isMovable
  }

  /// The number of frames from `first` on, of one pageblock, before the first unmovable one.
  private mutating func prefixLength(_ first: UInt64, _ end: UInt64) -> UInt64 {
    let records = table.validRecords(first)
    var length: UInt64 = 0
    while first + length < end && !isUnmovable(records, length) { length += 1 }
    steps += 1 + length / 8
    return length
  }

  /// The number of frames below `end`, of one pageblock and not below `first`, behind the last unmovable one.
  private mutating func suffixLength(_ first: UInt64, _ end: UInt64) -> UInt64 {
    let records = table.validRecords(first)
    var length: UInt64 = 0
    while end - length > first && !isUnmovable(records, end - length - first - 1) { length += 1 }
    steps += 1 + length / 8
    return length
  }
}
