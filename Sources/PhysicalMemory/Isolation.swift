// Isolation: a run of frames that is being emptied, so that what gets free in it stays with whoever empties
// it (the lesson of FreeBSD's reclaim, which gives each page back and may lose it before the retry).
//
// While a run is isolated, no frame of it is in the queues: what is free when it begins is taken out, what
// is freed later, by whomever, is *captured* on its way into the queues. A captured frame has the role
// contiguous and claims that nobody but an isolation gives (wired and exclusive at once): so it can be told
// from a run that somebody else owns, and a second free of it is met as a bug. Capturing is not
// freeing: nobody who waits for memory is woken.
//
// Up to four isolations at once, which never overlap. A free looks at them only when there are any (one
// load, shared with the notes of hopeless requests).

import MemoryPrimitives
import Synchronization

/// A run that is being emptied: a token, copied freely, void when the isolation has ended.
public struct Isolation: Sendable {
  public let run: FrameRun
  let slot: Int
  let number: UInt32
}

/// The table entry of an isolation.
struct IsolatedRun {
  var first: UInt32 = 0
  var end: UInt32 = 0
  var captured: UInt32 = 0
  /// Zero for none.
  var number: UInt32 = 0
  /// Captures; while it is being given back it doesn't any more, but still keeps others off.
  var captures = Capture.off

  enum Capture { case on, off }
}

extension PhysicalMemory {
  /// From now on every frame of `run` that is free, cached or gets freed is captured for the caller: role
  /// contiguous, out of the queues. What is free now is taken above the reserve of `level`. A few dozen
  /// instructions for each free block, a few for each frame; the lock is let go on the way.
  /// Throws `outsideMemory` unless all of the run is memory that isn't kept for good, `notFree` when it touches
  /// a run that is isolated already, `noMemory` when four are or when too little is free; then everything
  /// is as before.
  public func isolate(_ run: FrameRun, level: Level) throws(PhysicalMemoryError) -> Isolation {
    if machine.failsHere(.physicalMemory) { throw .noMemory }
    guard isOneSpan(run) else { throw .outsideMemory }
    let (first, end) = (run.first.rawValue, run.first.rawValue + UInt32(run.count.rawValue))
    guard admitsFree(of: first, end, level) else { throw .noMemory }
    let isolation = try register(run, first, end)
    if !captureFree(first, end, level, isolation.slot) {
      abandon(isolation)
      throw .noMemory
    }
    return isolation
  }

  private func register(
    _ run: FrameRun, _ first: UInt32, _ end: UInt32
  ) throws(PhysicalMemoryError) -> Isolation {
    let interrupts = lock()
    defer { unlock(interrupts) }
    var slot: Int?
    for i in 0..<4 {
      let other = core.pointee.isolations[i]
      if other.number == 0 {
        slot = i
      } else if first < other.end && other.first < end {
        throw .notFree
      }
    }
    guard let slot else { throw .noMemory }
    let number = nextNumber()
    core.pointee.isolations[slot] = IsolatedRun(first: first, end: end, number: number, captures: .on)
    core.pointee.watchers += 1
    state.pointee.events.pointee.isolations.add()
    return Isolation(run: run, slot: slot, number: number)
  }

  /// A number that no living isolation or note has. Lock held.
  func nextNumber() -> UInt32 {
    core.pointee.lastNumber &+= 1
    if core.pointee.lastNumber == 0 { core.pointee.lastNumber = 1 }
    return core.pointee.lastNumber
  }

  /// Whether all of `run` lies in one stretch of memory that isn't kept for good.
  private func isOneSpan(_ run: FrameRun) -> Bool {
    let first = UInt64(run.first.rawValue)
    guard run.count > .zero, run.count.rawValue <= UInt64(FrameNumber.limit) - first else { return false }
    for i in 0..<state.pointee.spanCount {
      let span = state.pointee.spans[i]
      if first < UInt64(span.end) {
        return first >= UInt64(span.first) && first + run.count.rawValue <= UInt64(span.end)
      }
    }
    return false
  }

  /// Whether what is free in frames `first` to `end` may be taken at `level`. No lock: a first look.
  private func admitsFree(of first: UInt32, _ end: UInt32, _ level: Level) -> Bool {
    var free: UInt64 = 0
    var at = first
    while at < end {
      let pieceEnd = Piece.end(at, end)
      if pieceEnd - at == Piece.frames {
        free += pieceUnchecked(at).glance.free
      } else if pieceUnchecked(at).state == .valid {
        let record = recordUnchecked(at)
        for i in 0..<Int(pieceEnd - at) where FrameRecordPointer(record.raw + i &* 32).glance.isFree {
          free += 1
        }
      } else if pieceUnchecked(at).glance.free == 512 {
        free += UInt64(pieceEnd - at)
      }
      at = pieceEnd
    }
    let interrupts = lock()
    defer { unlock(interrupts) }
    return admits(free, level)
  }

  /// Takes what is free in frames `first` to `end` out of the queues. False when `level` may not have so much.
  private func captureFree(_ first: UInt32, _ end: UInt32, _ level: Level, _ slot: Int) -> Bool {
    var at = first
    var steps = 0
    var interrupts = lock()
    while at < end {
      if steps > 150 {
        unlock(interrupts)
        interrupts = lock()
        steps = 0
      }
      steps += 1
      let pieceEnd = Piece.end(at, end)
      if pieceUnchecked(at).free == 0 {
        at = pieceEnd
        continue
      }
      guard let (head, order) = block(holding: at) else {
        at = pieceUnchecked(at).state == .valid ? at + 1 : pieceEnd
        continue
      }
      // A block larger than a piece goes piece by piece.
      let blockEnd = min(pieceEnd, head + (1 << UInt32(order)))
      guard admits(UInt64(blockEnd - at), level) else {
        unlock(interrupts)
        return false
      }
      if head == at && blockEnd == head + (1 << UInt32(order)) && order < 9 {
        unlink(head, order)
      } else {
        detach(at, blockEnd)
      }
      subtract(UInt64(blockEnd - at), from: .free)
      capture(at, blockEnd, slot)
      steps += 20 + Int(blockEnd - at)
      at = blockEnd
    }
    unlock(interrupts)
    return true
  }

  /// Gives frames of one piece, out of the queues and counted as neither free nor anybody's, to the isolation in
  /// `slot`. Lock held.
  private func capture(_ first: UInt32, _ end: UInt32, _ slot: Int) {
    add(UInt64(end - first), to: .contiguous)
    accountTaken(first, end - first, .contiguous)
    stamp(first, end, .contiguous, .captured)
    core.pointee.isolations[slot].captured += end - first
    state.pointee.events.pointee.captures.add(UInt64(end - first))
  }

  /// Puts frames of one piece that have just become free where they belong, when isolations or notes want to
  /// see them: `role` is what they had. Lock held.
  @inline(never) func queueUpWatched(_ first: UInt32, _ end: UInt32, _ role: FrameRole) {
    var at = first
    while at < end {
      var partEnd = end
      var slot: Int?
      for i in 0..<4 where core.pointee.isolations[i].captures == .on {
        let run = core.pointee.isolations[i]
        if at < run.first {
          partEnd = min(partEnd, run.first)
        } else if at < run.end {
          slot = i
          partEnd = min(partEnd, run.end)
        }
      }
      if let slot {
        subtract(UInt64(partEnd - at), from: .free)
        capture(at, partEnd, slot)
      } else {
        queueUp(at, partEnd)
        if !role.isMovable { noteEmptiable(at, partEnd) }
      }
      at = partEnd
    }
  }

  /// Whether `isolation` still stands. Lock held.
  private func stands(_ isolation: Isolation) -> Bool {
    core.pointee.isolations[isolation.slot].number == isolation.number
  }

  private func refuse(_ isolation: Isolation) {
    machine.report(
      FaultReport(
        .notAllocated, "an isolation was used that has ended", UInt64(isolation.run.first.rawValue), .frame))
  }

  /// Frames captured so far. Constant.
  public func capturedCount(_ isolation: Isolation) -> PageCount {
    let interrupts = lock()
    defer { unlock(interrupts) }
    return stands(isolation) ? PageCount(UInt64(core.pointee.isolations[isolation.slot].captured)) : .zero
  }

  /// Whether the isolation has this frame. Constant, takes no lock.
  public func isCaptured(_ frame: FrameNumber, _ isolation: Isolation) -> Bool {
    guard isolation.run.contains(frame), pieceUnchecked(frame.rawValue).state == .valid else { return false }
    return recordUnchecked(frame.rawValue).glance.isCaptured
  }

  /// When all frames are captured: ends the isolation; the run is the caller's, role contiguous, each frame
  /// wired once. Else nil, and nothing changes. A store a frame.
  public func finish(_ isolation: Isolation) -> FrameRun? {
    let run = isolation.run
    let interrupts = lock()
    let isKnown = stands(isolation)
    let isWhole =
      isKnown
      && UInt64(core.pointee.isolations[isolation.slot].captured) == run.count.rawValue
    if isWhole {
      // The isolation stands until the frames are marked: another of the same run would take them for its own.
      core.pointee.isolations[isolation.slot].captures = .off
      state.pointee.events.pointee.runs.add()
    }
    unlock(interrupts)
    if !isKnown { refuse(isolation) }
    guard isWhole else { return nil }
    for i in 0..<UInt32(run.count.rawValue) { recordUnchecked(run.first.rawValue + i).claims = .wiredOnce }
    close(isolation)
    return run
  }

  /// Gives everything captured back and ends the isolation. Like a free of it.
  public func abandon(_ isolation: Isolation) {
    let interrupts = lock()
    let isKnown = stands(isolation) && core.pointee.isolations[isolation.slot].captures == .on
    if isKnown { core.pointee.isolations[isolation.slot].captures = .off }
    unlock(interrupts)
    guard isKnown else { return refuse(isolation) }
    let end = isolation.run.end.rawValue
    var at = isolation.run.first.rawValue
    while at < end {
      let pieceEnd = Piece.end(at, end)
      guard pieceUnchecked(at).state == .valid else {
        at = pieceEnd
        continue
      }
      while at < pieceEnd && !recordUnchecked(at).glance.isCaptured { at += 1 }
      var partEnd = at
      while partEnd < pieceEnd && recordUnchecked(partEnd).glance.isCaptured { partEnd += 1 }
      if at < partEnd { release(at, partEnd) }
      at = partEnd
    }
    close(isolation)
  }

  private func close(_ isolation: Isolation) {
    let interrupts = lock()
    core.pointee.isolations[isolation.slot] = IsolatedRun()
    core.pointee.watchers -= 1
    unlock(interrupts)
  }
}
