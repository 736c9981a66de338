// Emptying a run of frames for a request that needs all of it: pages are moved to other frames, or written out.
//
// The run is isolated (PhysicalMemory): each frame that becomes free in it is captured, so no page enters it
// again, and one pass over its frames meets each page once. Up to 32 pages are moved together: made xbusy, unmapped,
// invalidated by one TLB shootdown, copied, mapped where they were. Each of these steps acquires its locks once for
// all pages of one object, so a lock is held for 32 pages, or for 64 ranges that might map one.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// The result of moving pages out of a run, in pages.
package struct MoveOutcome: Sendable {
  /// Pages that were copied to another frame.
  package var moved = PageCount.zero
  /// Clean pages that were reclaimed instead; a fault brings them back.
  package var dropped = PageCount.zero
  /// Pages that were wired, held or busy.
  package var claimed = PageCount.zero
  /// Pages for which there was no frame to move to.
  package var lackingFrames = PageCount.zero
  /// Nothing moved yet.
  package init() {}
}

/// Whether clean pages of a run, which have a copy on a device or never were written to, are moved or reclaimed.
package enum CleanPages: UInt8, Sendable {
  /// They are moved like dirty ones.
  case move
  /// They are reclaimed. Costs no frame now, and a read if a thread needs them again.
  case discard
}

/// A page under way, xbusy.
private struct Move {
  var source = FrameNumber.none
  var target = FrameNumber.none
  /// Its object and its index there, which stay while it is xbusy.
  var owner: UInt32 = 0
  var index: UInt64 = 0
  /// The first of its mappings, which is entered again, 0 for none; faults enter the others.
  var address: UInt64 = 0
  var isWritable = false
}

/// The fields of a page under way, in place.
extension UnsafeMutablePointer<Move> {
  fileprivate var source: FrameNumber { pointee.source }
  fileprivate var target: FrameNumber { pointee.target }
  fileprivate var owner: UInt32 { pointee.owner }
  fileprivate var index: UInt64 { pointee.index }
  fileprivate var address: UInt64 {
    get { pointee.address }
    nonmutating set { pointee.address = newValue }
  }
  fileprivate var isWritable: Bool {
    get { pointee.isWritable }
    nonmutating set { pointee.isWritable = newValue }
  }
}

/// Pages under way, on the stack of `move`: read and written in place.
private struct Moves {
  let first: UnsafeMutablePointer<Move>
  let count: Int

  @inline(__always) subscript(i: Int) -> UnsafeMutablePointer<Move> { first + i }
}

extension PagedMemory {
  /// Ranges that are visited in one hold of an object's lock, except those of the last page.
  private static var rangesInOneHold: Int { 64 }

  /// Moves pages of `run` to other frames, as long as more than `leaving` frames are free, and `limit` at most.
  /// Changes nothing outside of the run. The caller holds no lock. Costs a copy and some 900 instructions a page.
  package func move(
    outOf run: FrameRun, leaving reserve: PageCount, clean: CleanPages, atMost limit: PageCount
  ) -> MoveOutcome {
    var outcome = MoveOutcome()
    var at = run.first
    while at < run.end {
      var moving = PageBatch()
      var dropping = PageBatch()
      var dropped = PageBatch()
      let capacity = min(PageCount(PageBatch.capacity), limit.subtractingSaturated(outcome.moved))
      let mayMove = capacity > .zero && physical.freeCount > reserve
      at = makeXbusy(
        from: at, to: run.end, mayMove: mayMove, clean: clean, &moving, &dropping, &outcome)
      withTargets(for: &moving, limit: Int(capacity.rawValue), reserve, &outcome) { moves, outcome in
        var batch = ShootdownBatch()
        unmap(moves, &batch)
        unmap(&dropping, &dropped, &batch, &outcome)
        batch.flush(on: machine)
        carryOut(moves)
      }
      moving.withFrames { physical.free(droppedPages: $0) }
      outcome.moved += PageCount(moving.count)
      counters.moved.count(UInt64(moving.count))
      outcome.dropped += PageCount(dropped.count)
      var reclaimed = LaunderOutcome()
      reclaim(&dropped, &reclaimed)
    }
    return outcome
  }

  /// Makes up to a batch of pages xbusy, from frame `first` on: those to be moved and those to be reclaimed.
  /// Returns the frame to continue with.
  private func makeXbusy(
    from first: FrameNumber, to end: FrameNumber, mayMove: Bool, clean: CleanPages,
    _ moving: inout PageBatch, _ dropping: inout PageBatch, _ outcome: inout MoveOutcome
  ) -> FrameNumber {
    var met = PageBatch()
    let at = physical.forEachPage(from: first, below: end) { frame, record in
      // Nothing could be done with it.
      if !mayMove && (clean == .move || record.pageFlags.contains(.dirty)) {
        outcome.lackingFrames += 1
        return .more
      }
      met.add(frame)
      return met.isFull ? .enough : .more
    }
    guard met.count > 0 else { return at }
    withQueues { queues in
      for i in 0..<met.count {
        let frame = met[i]
        guard queues.tryBusy(frame, { $0.tryXbusy() }) == .busied else {
          outcome.claimed += 1
          continue
        }
        // Read without the object's lock, and checked again under it.
        if clean == .discard && !record(frame).pageFlags.contains(.dirty) {
          queues.remove(frame)
          dropping.add(frame)
        } else {
          moving.add(frame)
        }
      }
    }
    return at
  }

  /// Allocates frames to move to and runs `body` on the pages that got one: the first of `moving`, which is cut to
  /// them. The xbusy of the others ends.
  private func withTargets(
    for moving: inout PageBatch, limit: Int, _ reserve: PageCount, _ outcome: inout MoveOutcome,
    _ body: (Moves, inout MoveOutcome) -> Void
  ) {
    var targets: InlineArray<32, FrameNumber> = .init(repeating: .none)
    var count = 0
    if moving.count > 0 && limit > 0 && !machine.failsHere(.paging) {
      let wanted = min(limit, moving.count)
      count = withUnsafeMutablePointer(to: &targets) {
        let first = UnsafeMutableRawPointer($0).assumingMemoryBound(to: FrameNumber.self)
        return physical.allocate(
          pages: UnsafeMutableBufferPointer(start: first, count: wanted), leaving: reserve)
      }
    }
    for i in count..<moving.count { wake(record(moving[i]).endXbusy()) }
    outcome.lackingFrames += PageCount(moving.count - count)
    moving.truncate(to: count)
    var storage: InlineArray<32, Move> = .init(repeating: Move())
    for i in 0..<count {
      let record = record(moving[i])
      storage[i] = Move(source: moving[i], target: targets[i], owner: record.owner, index: record.index)
    }
    withUnsafeMutablePointer(to: &storage) {
      body(
        Moves(first: UnsafeMutableRawPointer($0).assumingMemoryBound(to: Move.self), count: count), &outcome)
    }
  }

  /// Runs `body` with the lock of an object and the tables' held, repeatedly, until all pages are done. Each call
  /// begins with page `first`, one of the object's, and returns the page behind its last (see `forNeighbours`).
  @inline(__always) private func forEachObject(
    of moves: Moves, _ body: (_ first: Int, borrowing HeldObject, borrowing PreparedPlaces) -> Int
  ) {
    var i = 0
    while i < moves.count {
      let object = object(numbered: moves[i].owner).unsafelyUnwrapped
      let held = object.acquire()
      i = tables.withPlaces { body(i, held, $0) }
      held.release()
    }
  }

  /// Runs `body` on page `first` and those behind it that have the same object, as most do, as far as one hold of
  /// the locks goes. `body` returns how many ranges it has visited.
  @inline(__always) private func forNeighbours(
    _ first: Int, _ moves: Moves, _ body: (UnsafeMutablePointer<Move>) -> Int
  ) -> Int {
    let owner = moves[first].owner
    var (i, ranges) = (first, 0)
    repeat {
      ranges &+= body(moves[i])
      i &+= 1
    } while i < moves.count && ranges < Self.rangesInOneHold && moves[i].owner == owner
    return i
  }

  // MARK: Unmapping

  /// Unmaps pages that are xbusy.
  private func unmap(_ moves: Moves, _ batch: inout ShootdownBatch) {
    forEachObject(of: moves) { first, held, places in
      forNeighbours(first, moves) { unmap($0, held, places, &batch) }
    }
  }

  /// Unmaps one of them. Returns how many ranges it has visited.
  @inline(__always) private func unmap(
    _ move: UnsafeMutablePointer<Move>, _ held: borrowing HeldObject, _ places: borrowing PreparedPlaces,
    _ batch: inout ShootdownBatch
  ) -> Int {
    var (address, isWritable, isAccessed) = (UInt64(0), false, false)
    let ranges = forEachAddress(of: move.index, held) { place, range in
      let found = places.remove(place)
      if found != nil || range.isGoing { batch.add(place) }
      guard let mapping = found else { return }
      if address == 0 && !range.isGoing { (address, isWritable) = (place.rawValue, mapping.isWritable) }
      if mapping.isAccessed { isAccessed = true }
    }
    // Keeps a reference that the old mapping recorded.
    if isAccessed { record(move.source).pageFlags.insert(.referenced) }
    (move.address, move.isWritable) = (address, isWritable)
    return ranges
  }

  /// Unmaps pages that are xbusy and were clean; those that are dirty by now go back to a queue.
  private func unmap(
    _ dropping: inout PageBatch, _ dropped: inout PageBatch, _ batch: inout ShootdownBatch,
    _ outcome: inout MoveOutcome
  ) {
    var last: MemoryObject?
    for i in 0..<dropping.count {
      let record = record(dropping[i])
      if last?.number != record.owner { last = object(of: record) }
      let object = last.unsafelyUnwrapped
      let held = object.acquire()
      if record.pageFlags.contains(.dirty) {
        // A fault that had found it not busy made it so, under this lock.
        endXbusy(dropping[i], record, .active, held)
        outcome.claimed += 1
      } else {
        removeAll(record.index, held, &batch)
        held.release()
        dropped.add(dropping[i])
      }
    }
  }

  // MARK: Moving

  /// Copies pages that no processor can reach, and replaces their frames by the new ones.
  private func carryOut(_ moves: Moves) {
    for i in 0..<moves.count {
      machine.directMap.pointer(to: moves[i].target).copyMemory(
        from: UnsafeRawPointer(machine.directMap.pointer(to: moves[i].source)),
        byteCount: Int(Page.size))
    }
    forEachObject(of: moves) { first, held, places in
      withQueues { queues in forNeighbours(first, moves) { replace($0, held, places, &queues) } }
    }
    // A thread that slept on an old frame reads the slot again.
    var waiters = Waiters.absent
    for i in 0..<moves.count {
      let from = record(moves[i].source)
      guard from.busyWord.hasWaiters else { continue }
      from.busyWord = .xbusy
      waiters = .present
    }
    wake(waiters)
  }

  /// Replaces one frame by its new one. Returns how many ranges it has visited.
  @inline(__always) private func replace(
    _ move: UnsafeMutablePointer<Move>, _ held: borrowing HeldObject, _ places: borrowing PreparedPlaces,
    _ queues: inout PageQueues
  ) -> Int {
    let (source, target, index) = (move.source, move.target, move.index)
    let (from, to) = (record(source), record(target))
    to.owner = move.owner
    to.index = index
    to.pageFlags = from.pageFlags
    if from.pageFlags.contains(.dirty) {
      physical.countDirty(target)
      markClean(source, from)
    }
    let slot = held.slot(index)
    slot.value = PageSlot(.resident, target, slot.value.swap)
    queues.replace(source, by: target)
    let address = VirtualAddress(move.address)
    var ranges = 0
    if address.rawValue != 0 {
      // While the page was under way the range may have been unmapped, and another, with other rights, have its address.
      var allowed: Protection?
      ranges = forEachAddress(of: index, held) { other, range in
        if other == address && !range.isGoing { allowed = range.protection }
      }
      if let allowed {
        let isWritable = move.isWritable && allowed.contains(.writable)
        places.enter(address, target, isWritable ? .kernelData : .kernelReadOnly)
      }
    }
    _ = to.endXbusy()
    return ranges
  }

  /// Writes pages of `run` out, `limit` at most, and reclaims them; clean ones at once, without a limit. Skips pages that
  /// are wired, held or busy, and changes nothing outside of the run. Sleeps.
  package func launder(
    outOf run: FrameRun, _ pages: LaunderedPages, atMost limit: PageCount
  ) -> LaunderOutcome {
    var at = run.first
    var left = limit.rawValue
    return launder(.launder, atMost: limit) { () -> FrameNumber? in
      while at < run.end {
        let frame = at
        at = at + .one
        guard let record = physical.record(frame), record.role == .pageable else { continue }
        if pages == .inactive && record.queue == .active { continue }
        if left == 0 && record.pageFlags.contains(.dirty) { continue }
        let answer = withQueues { queues -> PageQueues.BusyAnswer in
          let answer = queues.tryBusy(frame) { $0.trySbusy() }
          if answer == .busied { queues.remove(frame) }
          return answer
        }
        if answer == .refused { continue }
        if left > 0 && record.pageFlags.contains(.dirty) { left -= 1 }
        return frame
      }
      return nil
    }
  }
}

/// The pages of a run that are laundered.
package enum LaunderedPages: UInt8, Sendable {
  /// All that are not active.
  case inactive
  /// All of them.
  case all
}
