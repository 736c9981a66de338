// Emptying a run of frames for whoever wants it as one piece: pages are moved elsewhere, or written out.
//
// The run is isolated (PhysicalMemory): whatever becomes free in it is captured, so no page ever comes into it
// again, and one pass over its frames meets each page once. Up to 32 pages are moved together: claimed, unmapped,
// forgotten by every processor at once, copied, mapped where they were.

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

/// Pages on their way, on the stack.
private struct Moves {
  /// Where they come from, exclusive; and where they go.
  var from = PageBatch()
  var to: InlineArray<32, FrameNumber> = .init(repeating: .none)
  /// The first of each page's mappings, to be made again; others come back by faults. 0 for none.
  var addresses: InlineArray<32, UInt64> = .init(repeating: 0)
  /// A bit for each whose mapping was writable.
  var writable: UInt32 = 0

  mutating func withTargets<R>(_ body: (UnsafeMutableBufferPointer<FrameNumber>) -> R) -> R {
    let count = from.count
    return withUnsafeMutablePointer(to: &to) { array in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: FrameNumber.self)
      return body(UnsafeMutableBufferPointer(start: first, count: count))
    }
  }
}

/// The object met last: neighbours mostly have the same.
private struct LastObject {
  var number: UInt32 = 0
  var object: MemoryObject?
}

extension Paging {
  /// Moves pages of `run` to other frames, as long as more than `leaving` frames are free, and `limit` at most.
  /// Nothing outside of the run is touched. No lock may be held; costs a copy and some 900 instructions a page.
  public func move(
    outOf run: FrameRun, leaving floor: PageCount, clean: CleanPages, atMost limit: PageCount
  ) -> MoveOutcome {
    var outcome = MoveOutcome()
    var last = LastObject()
    var at = run.first
    while at < run.end {
      var moves = Moves()
      var dropping = PageBatch()
      let room = min(UInt64(PageBatch.capacity), limit.rawValue - min(limit.rawValue, outcome.moved.rawValue))
      let hasRoom = room > 0 && physical.freeCount > floor
      while at < run.end && moves.from.count < PageBatch.capacity && !dropping.isFull {
        guard let record = claim(at, hasRoom, clean, &outcome) else {
          at = at + .one
          continue
        }
        // A first look, without the lock.
        if clean == .areDropped && !record.pageFlags.contains(.dirty) {
          withQueues { _ = $0.remove(at) }
          dropping.add(at)
        } else {
          moves.from.add(at)
        }
        at = at + .one
      }
      let count = findRoom(for: &moves, Int(room), floor, &outcome)
      var batch = ShootdownBatch()
      for i in 0..<count { withdraw(i, &moves, &batch, &last) }
      var dropped = PageBatch()
      for i in 0..<dropping.count {
        let record = record(dropping[i])
        let object = object(of: record, &last)
        let interrupts = object.lock()
        if record.pageFlags.contains(.dirty) {
          // A fault that had found it unclaimed made it so, under this lock.
          endExclusive(dropping[i], record, object, .active, interrupts)
          outcome.claimed = outcome.claimed + .one
        } else {
          withdrawAll(record.index, object, &batch)
          object.unlock(interrupts)
          dropped.add(dropping[i])
        }
      }
      batch.flush(on: machine)
      for i in 0..<count {
        let rights: Protection = moves.writable >> UInt32(i) & 1 != 0 ? .kernelData : .kernelReadOnly
        carryOut(moves.from[i], to: moves.to[i], VirtualAddress(moves.addresses[i]), rights, &last)
      }
      moves.from.withFrames { physical.free(droppedPages: $0) }
      outcome.moved = outcome.moved + PageCount(count)
      counters.pointee.moved.count(UInt64(count))
      outcome.dropped = outcome.dropped + PageCount(dropped.count)
      var given = LaunderOutcome()
      giveUp(&dropped, &given)
    }
    return outcome
  }

  /// The record of a page that is exclusive now; nil for what is no page, or somebody's, or has nowhere to go.
  private func claim(
    _ frame: FrameNumber, _ hasRoom: Bool, _ clean: CleanPages, _ outcome: inout MoveOutcome
  ) -> FrameRecordPointer? {
    guard let record = physical.record(frame), record.role == .pageable else { return nil }
    // Not worth a claim.
    if !hasRoom && (clean == .areMoved || record.pageFlags.contains(.dirty)) {
      outcome.noRoom = outcome.noRoom + .one
      return nil
    }
    guard withQueues({ $0.claim(frame) { $0.tryExclusive() } }) == .claimed else {
      outcome.claimed = outcome.claimed + .one
      return nil
    }
    return record
  }

  /// Takes frames to move to. Pages for which there is none are let go; the others are the first ones.
  private func findRoom(
    for moves: inout Moves, _ limit: Int, _ floor: PageCount, _ outcome: inout MoveOutcome
  ) -> Int {
    var count = 0
    if moves.from.count > 0 && limit > 0 && !machine.failsHere(.paging) {
      count = moves.withTargets {
        physical.allocate(
          pages: UnsafeMutableBufferPointer(rebasing: $0[..<min(limit, $0.count)]), leaving: floor)
      }
    }
    for i in count..<moves.from.count { wake(record(moves.from[i]).endExclusive()) }
    outcome.noRoom = outcome.noRoom + PageCount(moves.from.count - count)
    moves.from.truncate(to: count)
    return count
  }

  private func object(of record: FrameRecordPointer, _ last: inout LastObject) -> MemoryObject {
    if let object = last.object, last.number == record.owner { return object }
    let object = object(of: record)
    last = LastObject(number: record.owner, object: object)
    return object
  }

  /// Unmaps a page that is exclusive.
  private func withdraw(
    _ i: Int, _ moves: inout Moves, _ batch: inout ShootdownBatch, _ last: inout LastObject
  ) {
    let record = record(moves.from[i])
    let object = object(of: record, &last)
    var (address, isWritable) = (UInt64(0), false)
    let interrupts = object.lock()
    forEachAddress(of: record.index, object) { place, isGoing in
      let found = tables.withdraw(place)
      if found != nil || isGoing { batch.add(place) }
      guard let mapping = found else { return }
      if address == 0 && !isGoing { (address, isWritable) = (place.rawValue, mapping.isWritable) }
      // A reference that the old mapping saw is not lost.
      if mapping.isAccessed { record.pageFlags.insert(.referenced) }
    }
    object.unlock(interrupts)
    moves.addresses[i] = address
    if isWritable { moves.writable |= 1 << UInt32(i) }
  }

  /// Copies a page that no processor can reach, and puts the new frame into its place.
  /// `address` is where it was mapped first, 0 for nowhere.
  private func carryOut(
    _ source: FrameNumber, to target: FrameNumber, _ address: VirtualAddress, _ rights: Protection,
    _ last: inout LastObject
  ) {
    let (from, to) = (record(source), record(target))
    machine.directMap.pointer(to: target).copyMemory(
      from: UnsafeRawPointer(machine.directMap.pointer(to: source)), byteCount: Int(Page.size))
    let object = object(of: from, &last)
    let index = from.index
    let interrupts = object.lock()
    let slot = object.slot(index)
    to.owner = from.owner
    to.index = index
    to.pageFlags = from.pageFlags
    if from.pageFlags.contains(.dirty) {
      physical.noteDirty(target)
      markClean(source, from)
    }
    slot.value = PageSlot(.resident, target, slot.value.swap)
    withQueues { $0.replace(source, by: target) }
    // The range may have gone while the page was on its way.
    if address.rawValue != 0, showsStill(address, index, object) { tables.enter(address, target, rights) }
    _ = to.endExclusive()
    object.unlock(interrupts)
    // Who slept on the old frame looks at the slot again.
    if from.claims.hasWaiters {
      from.claims = .exclusive
      wake(.somebodyWaits)
    }
  }

  private func showsStill(_ address: VirtualAddress, _ index: UInt64, _ object: MemoryObject) -> Bool {
    var found = false
    forEachAddress(of: index, object) { other, isGoing in if other == address && !isGoing { found = true } }
    return found
  }

  /// Writes pages of `run` out, `limit` at most, and gives them up; clean ones at once. Pages that somebody
  /// claims are left alone, and so is everything outside of the run. Sleeps.
  public func launder(
    outOf run: FrameRun, _ pages: LaunderedPages, atMost limit: PageCount
  ) -> LaunderOutcome {
    var at = run.first
    var left = limit.rawValue
    return launder(.nobody) { () -> FrameNumber? in
      while at < run.end && left > 0 {
        let frame = at
        at = at + .one
        guard let record = physical.record(frame), record.role == .pageable else { continue }
        if pages == .inactive && record.queue == .active { continue }
        let answer = withQueues { queues -> PageQueues.ClaimAnswer in
          let answer = queues.claim(frame) { $0.tryShare() }
          if answer == .claimed { queues.remove(frame) }
          return answer
        }
        if answer == .refused { continue }
        left -= 1
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
