// Emptying a run of frames for whoever wants it whole: pages are moved elsewhere, or written out.
//
// The run is isolated (PhysicalMemory): whatever becomes free in it is captured, so no page ever comes into it
// again, and one pass over its frames meets each page once. Up to 32 pages are moved together: claimed, unmapped,
// forgotten by every processor at once, copied, mapped where they were. Each of these steps takes its locks once for
// all pages of one object, so a lock is held for 32 pages, or for 64 ranges that might show one.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// What came of moving pages out of a run.
public struct MoveOutcome: Sendable {
  public var moved = PageCount.zero
  /// Clean pages that were given up instead; a fault brings them back.
  public var dropped = PageCount.zero
  /// Pages that somebody had a claim on: wired, held, busy.
  public var claimed = PageCount.zero
  /// Pages for which there was no frame to move to.
  public var noRoom = PageCount.zero
  public init() {}
}

/// What is done with clean pages that have a copy on a device, or never were written to.
@frozen public enum CleanPages: UInt8, Sendable {
  case areMoved
  /// Costs no frame now, and a read if somebody wants them again.
  case areDropped
}

/// A page on its way, exclusive.
private struct Move {
  var source = FrameNumber.none
  var target = FrameNumber.none
  /// Its object and its place there, which stay while it is exclusive.
  var owner: UInt32 = 0
  var index: UInt64 = 0
  /// The first of its mappings, to be made again, 0 for none; others come back by faults.
  var address: UInt64 = 0
  var isWritable = false
}

/// Pages on their way, on the stack of `move`: read and written in place.
private struct Moves {
  let first: UnsafeMutablePointer<Move>
  let count: Int

  @inline(__always) subscript(i: Int) -> UnsafeMutablePointer<Move> { first + i }
}

extension PagedMemory {
  /// Ranges that are looked at in one hold of an object's lock, but for those of the last page.
  private static var rangesInOneHold: Int { 64 }

  /// Moves pages of `run` to other frames, as long as more than `leaving` frames are free, and `limit` at most.
  /// Nothing outside of the run is touched. No lock may be held; costs a copy and some 1000 instructions a page.
  public func move(
    outOf run: FrameRun, leaving reserve: PageCount, clean: CleanPages, atMost limit: PageCount
  ) -> MoveOutcome {
    var outcome = MoveOutcome()
    var at = run.first
    while at < run.end {
      var moving = PageBatch()
      var dropping = PageBatch()
      var dropped = PageBatch()
      let room = min(UInt64(PageBatch.capacity), limit.rawValue - min(limit.rawValue, outcome.moved.rawValue))
      let hasRoom = room > 0 && physical.freeCount > reserve
      at = claim(from: at, to: run.end, hasRoom, clean, &moving, &dropping, &outcome)
      withTargets(for: &moving, Int(room), reserve, &outcome) { moves, outcome in
        var batch = ShootdownBatch()
        unmap(moves, &batch)
        unmap(&dropping, &dropped, &batch, &outcome)
        batch.flush(on: machine)
        carryOut(moves)
      }
      moving.withFrames { physical.free(droppedPages: $0) }
      outcome.moved = outcome.moved + PageCount(moving.count)
      counters.pointee.moved.count(UInt64(moving.count))
      outcome.dropped = outcome.dropped + PageCount(dropped.count)
      var given = LaunderOutcome()
      reclaim(&dropped, &given)
    }
    return outcome
  }

  /// Makes up to a batch of pages exclusive, from frame `first` on: those to be moved and those to be dropped.
  /// Answers where to go on.
  private func claim(
    from first: FrameNumber, to end: FrameNumber, _ hasRoom: Bool, _ clean: CleanPages,
    _ moving: inout PageBatch, _ dropping: inout PageBatch, _ outcome: inout MoveOutcome
  ) -> FrameNumber {
    var met = PageBatch()
    let at = physical.forEachPage(from: first, below: end) { frame, record in
      // Not worth a claim.
      if !hasRoom && (clean == .areMoved || record.pageFlags.contains(.dirty)) {
        outcome.noRoom = outcome.noRoom + .one
        return .more
      }
      met.add(frame)
      return met.isFull ? .enough : .more
    }
    guard met.count > 0 else { return at }
    withQueues { queues in
      for i in 0..<met.count {
        let frame = met[i]
        guard queues.claim(frame, { $0.tryXbusy() }) == .claimed else {
          outcome.claimed = outcome.claimed + .one
          continue
        }
        // A first look, without the object's lock.
        if clean == .areDropped && !record(frame).pageFlags.contains(.dirty) {
          queues.remove(frame)
          dropping.add(frame)
        } else {
          moving.add(frame)
        }
      }
    }
    return at
  }

  /// Takes frames to move to and runs `body` on the pages that got one: the first of `moving`, which is cut to
  /// them. The others are let go.
  private func withTargets(
    for moving: inout PageBatch, _ limit: Int, _ reserve: PageCount, _ outcome: inout MoveOutcome,
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
    outcome.noRoom = outcome.noRoom + PageCount(moving.count - count)
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

  /// Runs `body` with the lock of an object and the tables' held, again and again, until all pages are done: it
  /// begins with page `first`, one of the object's, and answers where it has ended (see `forNeighbours`).
  @inline(__always) private func forEachObject(
    of moves: Moves, _ body: (_ first: Int, MemoryObject, borrowing PreparedPlaces) -> Int
  ) {
    var i = 0
    while i < moves.count {
      let object = object(numbered: moves[i].pointee.owner).unsafelyUnwrapped
      i = object.withLock { tables.withPlaces { body(i, object, $0) } }
    }
  }

  /// Runs `body` on page `first` and those behind it that have the same object, as most do, as far as one hold of
  /// the locks goes. `body` answers how many ranges it has looked at.
  @inline(__always) private func forNeighbours(
    _ first: Int, _ moves: Moves, _ body: (UnsafeMutablePointer<Move>) -> Int
  ) -> Int {
    let owner = moves[first].pointee.owner
    var (i, ranges) = (first, 0)
    repeat {
      ranges &+= body(moves[i])
      i &+= 1
    } while i < moves.count && ranges < Self.rangesInOneHold && moves[i].pointee.owner == owner
    return i
  }

  // MARK: Unmapping

  /// Unmaps pages that are exclusive.
  private func unmap(_ moves: Moves, _ batch: inout ShootdownBatch) {
    forEachObject(of: moves) { first, object, places in
      forNeighbours(first, moves) { unmap($0, object, places, &batch) }
    }
  }

  /// Unmaps one of them. Locks of the object and the tables held. Answers how many ranges it has looked at.
  @inline(__always) private func unmap(
    _ move: UnsafeMutablePointer<Move>, _ object: MemoryObject, _ places: borrowing PreparedPlaces,
    _ batch: inout ShootdownBatch
  ) -> Int {
    var (address, isWritable, isAccessed) = (UInt64(0), false, false)
    let ranges = forEachAddress(of: move.pointee.index, object) { place, isGoing in
      let found = places.remove(place)
      if found != nil || isGoing { batch.add(place) }
      guard let mapping = found else { return }
      if address == 0 && !isGoing { (address, isWritable) = (place.rawValue, mapping.isWritable) }
      if mapping.isAccessed { isAccessed = true }
    }
    // A reference that the old mapping saw is not lost.
    if isAccessed { record(move.pointee.source).pageFlags.insert(.referenced) }
    (move.pointee.address, move.pointee.isWritable) = (address, isWritable)
    return ranges
  }

  /// Unmaps pages that are exclusive and were clean; those that are dirty by now go back to a queue.
  private func unmap(
    _ dropping: inout PageBatch, _ dropped: inout PageBatch, _ batch: inout ShootdownBatch,
    _ outcome: inout MoveOutcome
  ) {
    var last: MemoryObject?
    for i in 0..<dropping.count {
      let record = record(dropping[i])
      if last?.number != record.owner { last = object(of: record) }
      let object = last.unsafelyUnwrapped
      let interrupts = object.lock()
      if record.pageFlags.contains(.dirty) {
        // A fault that had found it unclaimed made it so, under this lock.
        endXbusy(dropping[i], record, object, .active, interrupts)
        outcome.claimed = outcome.claimed + .one
      } else {
        removeAll(record.index, object, &batch)
        object.unlock(interrupts)
        dropped.add(dropping[i])
      }
    }
  }

  // MARK: Moving

  /// Copies pages that no processor can reach, and puts the new frames into their places.
  private func carryOut(_ moves: Moves) {
    for i in 0..<moves.count {
      machine.directMap.pointer(to: moves[i].pointee.target).copyMemory(
        from: UnsafeRawPointer(machine.directMap.pointer(to: moves[i].pointee.source)),
        byteCount: Int(Page.size))
    }
    forEachObject(of: moves) { first, object, places in
      withQueues { queues in forNeighbours(first, moves) { replace($0, object, places, &queues) } }
    }
    // A thread that slept on an old frame looks at the slot again.
    var waiters = WaitersAnswer.nobodyWaits
    for i in 0..<moves.count {
      let from = record(moves[i].pointee.source)
      guard from.busyWord.hasWaiters else { continue }
      from.busyWord = .xbusy
      waiters = .somebodyWaits
    }
    wake(waiters)
  }

  /// Puts one new frame into its place. Locks of the object, the tables and the queues held. Answers how many
  /// ranges it has looked at.
  @inline(__always) private func replace(
    _ move: UnsafeMutablePointer<Move>, _ object: MemoryObject, _ places: borrowing PreparedPlaces,
    _ queues: inout PageQueues
  ) -> Int {
    let (source, target, index) = (move.pointee.source, move.pointee.target, move.pointee.index)
    let (from, to) = (record(source), record(target))
    to.owner = move.pointee.owner
    to.index = index
    to.pageFlags = from.pageFlags
    if from.pageFlags.contains(.dirty) {
      physical.noteDirty(target)
      markClean(source, from)
    }
    let slot = object.slot(index)
    slot.value = PageSlot(.resident, target, slot.value.swap)
    queues.replace(source, by: target)
    let address = VirtualAddress(move.pointee.address)
    var (ranges, isShown) = (0, false)
    if address.rawValue != 0 {
      // The range may have gone while the page was on its way.
      ranges = forEachAddress(of: index, object) { other, isGoing in
        if other == address && !isGoing { isShown = true }
      }
    }
    if isShown { places.enter(address, target, move.pointee.isWritable ? .kernelData : .kernelReadOnly) }
    _ = to.endXbusy()
    return ranges
  }

  /// Writes pages of `run` out, `limit` at most, and reclaims them; clean ones at once, without a limit. Pages that
  /// another thread claims are left alone, and so is everything outside of the run. Sleeps.
  public func launder(
    outOf run: FrameRun, _ pages: LaunderedPages, atMost limit: PageCount
  ) -> LaunderOutcome {
    var at = run.first
    var left = limit.rawValue
    return launder(.nobody, atMost: limit) { () -> FrameNumber? in
      while at < run.end {
        let frame = at
        at = at + .one
        guard let record = physical.record(frame), record.role == .pageable else { continue }
        if pages == .inactive && record.queue == .active { continue }
        if left == 0 && record.pageFlags.contains(.dirty) { continue }
        let answer = withQueues { queues -> PageQueues.ClaimAnswer in
          let answer = queues.claim(frame) { $0.trySbusy() }
          if answer == .claimed { queues.remove(frame) }
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

/// Which pages of a run are laundered.
@frozen public enum LaunderedPages: UInt8, Sendable {
  /// All that are not active.
  case inactive
  case all
}
