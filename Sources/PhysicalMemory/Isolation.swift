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

extension FrameAllocator {
  /// From now on every frame of `run` that is free, cached or gets freed is captured for the caller: role
  /// contiguous, out of the queues. What is free now is captured as far as the reserve of `priority` allows; the rest
  /// stays in the queues, where any request may take it, until `captureFree`. A few dozen instructions for each free
  /// block, a few for each frame; the lock is held for 64 frames at a time.
  /// Throws `outsideMemory` unless all of the run is memory that isn't kept for good, `notFree` when it touches
  /// a run that is isolated already, `noMemory` when four are; then everything is as before.
  public func isolate(_ run: FrameRun, priority: AllocationPriority) throws(PhysicalMemoryError) -> Isolation
  {
    if machine.failsHere(.physicalMemory) { throw .noMemory }
    guard isOneSpan(run) else { throw .outsideMemory }
    let (first, end) = (run.first.rawValue, run.first.rawValue + UInt32(run.count.rawValue))
    let isolation = try register(run, first, end)
    captureFree(first, end, priority, isolation.slot)
    return isolation
  }

  /// Whether `run` can't be isolated now: a part of it is, or as many runs as may be.
  public func isBusy(isolating run: FrameRun) -> Bool {
    let interrupts = lock()
    defer { unlock(interrupts) }
    var count = 0
    for i in 0..<4 where core.pointee.isolations[i].number != 0 {
      let other = core.pointee.isolations[i]
      if run.first.rawValue < other.end && other.first < run.end.rawValue { return true }
      count += 1
    }
    return count == 4
  }

  /// Captures what is still free in the run, as far as the reserve of `priority` allows. A step for each free block.
  public func captureFree(_ isolation: Isolation, priority: AllocationPriority) {
    let interrupts = lock()
    let isKnown = stands(isolation)
    unlock(interrupts)
    guard isKnown else { return refuse(isolation) }
    captureFree(isolation.run.first.rawValue, isolation.run.end.rawValue, priority, isolation.slot)
  }

  /// Whether a frame of the run is free and not captured, because the reserve does not allow for it. A step for each
  /// pageblock of the run, a few instructions for each frame of one that the run has a part of. Takes no lock.
  public func hasFreeFrames(_ isolation: Isolation) -> Bool {
    let end = isolation.run.end.rawValue
    var at = isolation.run.first.rawValue
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let pageblock = pageblockUnchecked(at)
      let isWhole = pageblockEnd - at == Pageblock.frames
      if pageblock.snapshot.free > 0 {
        if isWhole || pageblock.state != .valid { return true }
        let record = recordUnchecked(at)
        for i in 0..<Int(pageblockEnd - at) where FrameRecordPointer(record.raw + i &* 32).snapshot.isFree {
          return true
        }
      }
      at = pageblockEnd
    }
    return false
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

  /// Whether all of `run` lies in one extent of memory that isn't kept for good.
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

  /// Takes what is free in frames `first` to `end` out of the queues, as far as `priority` may have it.
  private func captureFree(_ first: UInt32, _ end: UInt32, _ priority: AllocationPriority, _ slot: Int) {
    var at = first
    while at < end {
      let interrupts = lock()
      let step = captureStep(at, end, priority, slot)
      unlock(interrupts)
      // Out of the queues, frames are the isolation's, as those of any request are.
      stamp(step)
      if step.answer == .refused { return }
      at = step.next
    }
  }

  /// The frames that one hold of the lock has captured.
  private struct CaptureStep {
    enum Answer { case goOn, refused }
    var answer = Answer.goOn
    /// Where the next step begins.
    var next: UInt32
    /// Frames from `first` on, a bit for each; or all frames from `first` to `end`.
    var first: UInt32
    var frames: UInt64 = 0
    var end: UInt32
  }

  /// Captures free frames from `at` on: whole blocks in a row of 64 frames, or the part of one larger block that lies
  /// in its pageblock. Lock held, for 8000 instructions at most: a pageblock whose records are to be made valid.
  @inline(__always)
  private func captureStep(_ at: UInt32, _ end: UInt32, _ priority: AllocationPriority, _ slot: Int)
    -> CaptureStep
  {
    let pageblockEnd = Pageblock.end(at, end)
    var step = CaptureStep(next: pageblockEnd, first: at, end: at)
    let pageblock = pageblockUnchecked(at)
    if pageblock.free == 0 { return step }
    let isValid = pageblock.state == .valid
    let head = recordUnchecked(at)
    if !isValid || (head.hasRole(.free) && head.queue != .buddy) || head.blockSize > pageblockEnd &- at
      || head.blockSize > 64
    {
      guard let (head, order) = block(holding: at) else {
        if isValid { step.next = at + 1 }
        return step
      }
      let blockEnd = min(pageblockEnd, head + (1 << UInt32(order)))
      captureBlock(at, blockEnd, priority, slot, &step)
      return step
    }
    step.next = min(pageblockEnd, at | 63 + 1)
    var count: UInt32 = 0
    var frame = at
    while frame < step.next {
      let size = FrameRecordPointer(head.raw + Int(frame - at) &* 32).blockSize
      if size == 0 {
        frame += 1
        continue
      }
      // A block that ends behind the run is a step of its own.
      if frame + size > step.next {
        step.next = frame
        break
      }
      guard admits(UInt64(count + size), priority) else {
        step.next = frame
        // What can be paid for of this block is a step of its own.
        if count == 0 {
          step.first = frame
          captureBlock(frame, frame + size, priority, slot, &step)
          return step
        }
        break
      }
      unlink(frame, size.trailingZeroBitCount)
      step.frames |= (~0 >> UInt64(64 - size)) << UInt64(frame - at)
      count += size
      frame += size
    }
    if count > 0 { accountCaptured(at, count, slot) }
    return step
  }

  /// Captures free frames `at` to `end` of one block, as far as `priority` allows. Lock held.
  private func captureBlock(
    _ at: UInt32, _ end: UInt32, _ priority: AllocationPriority, _ slot: Int, _ step: inout CaptureStep
  ) {
    let count = UInt32(min(UInt64(end - at), admitted(priority)))
    if at + count < end { step.answer = .refused }
    (step.next, step.end) = (at + count, at + count)
    guard count > 0 else { return }
    detach(at, at + count)
    accountCaptured(at, count, slot)
  }

  /// Counts `count` frames of the pageblock of `first`, out of the queues, as captured for `slot`. Lock held.
  private func accountCaptured(_ first: UInt32, _ count: UInt32, _ slot: Int) {
    subtract(UInt64(count), from: .free)
    add(UInt64(count), to: .contiguous)
    accountTaken(first, count, .contiguous)
    core.pointee.isolations[slot].captured += count
    state.pointee.events.pointee.captures.add(UInt64(count))
  }

  /// Writes the records of the frames that a step has captured: no lock.
  private func stamp(_ step: CaptureStep) {
    if step.first < step.end { return stamp(step.first, step.end, .contiguous, .captured) }
    guard step.frames != 0 else { return }
    var cached: UInt64 = 0
    var left = step.frames
    let first = recordUnchecked(step.first)
    while left != 0 {
      let record = FrameRecordPointer(first.raw + left.trailingZeroBitCount &* 32)
      left &= left - 1
      if record.pageFlags.contains(.cached) { cached += 1 }
      record.handOut(.contiguous, .captured)
    }
    if cached > 0 { state.pointee.cached.subtract(cached, ordering: .relaxed) }
  }

  /// Gives frames of one pageblock, just freed and in no queue, to the isolation in `slot`. Lock held.
  private func capture(_ first: UInt32, _ end: UInt32, _ slot: Int) {
    accountCaptured(first, end - first, slot)
    stamp(first, end, .contiguous, .captured)
  }

  /// Gives dropped pages, whose records say free already, to the isolation that has all of them: they count as
  /// captured and no longer as pages. False when there is none, and nothing has changed. Lock held, for 32 at most.
  func captureDropped(_ frames: UnsafeBufferPointer<FrameNumber>, _ sound: UInt32) -> Bool {
    guard let slot = isolation(ofAll: frames, sound) else { return false }
    let count = UInt64(sound.nonzeroBitCount)
    for i in 0..<frames.count where sound >> UInt32(i) & 1 != 0 {
      let pageblock = pageblockUnchecked(frames[i].rawValue)
      pageblock.movable &-= 1
      pageblock.unmovable &+= 1
      recordUnchecked(frames[i].rawValue).handOut(.contiguous, .captured)
    }
    subtract(count, from: .pageable)
    add(count, to: .contiguous)
    core.pointee.isolations[slot].captured += UInt32(count)
    state.pointee.events.pointee.captures.add(count)
    state.pointee.events.pointee.frees.add(count)
    return true
  }

  /// The slot of the isolation that captures all of these frames. Lock held.
  private func isolation(ofAll frames: UnsafeBufferPointer<FrameNumber>, _ sound: UInt32) -> Int? {
    var (lowest, highest) = (UInt32.max, UInt32(0))
    for i in 0..<frames.count where sound >> UInt32(i) & 1 != 0 {
      lowest = min(lowest, frames[i].rawValue)
      highest = max(highest, frames[i].rawValue)
    }
    for slot in 0..<4 where core.pointee.isolations[slot].captures == .on {
      if lowest >= core.pointee.isolations[slot].first && highest < core.pointee.isolations[slot].end {
        return slot
      }
    }
    return nil
  }

  /// Puts frames of one pageblock that have just become free where they belong, when isolations or notes want to
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
    guard isolation.run.contains(frame), pageblockUnchecked(frame.rawValue).state == .valid else {
      return false
    }
    return recordUnchecked(frame.rawValue).snapshot.isCaptured
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
    var at = run.first.rawValue
    while at < run.end.rawValue {
      // The records of a pageblock follow each other.
      let pageblockEnd = Pageblock.end(at, run.end.rawValue)
      let record = recordUnchecked(at)
      for i in 0..<Int(pageblockEnd - at) { FrameRecordPointer(record.raw + i &* 32).busyWord = .wiredOnce }
      at = pageblockEnd
    }
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
      let pageblockEnd = Pageblock.end(at, end)
      guard pageblockUnchecked(at).state == .valid else {
        at = pageblockEnd
        continue
      }
      while at < pageblockEnd && !recordUnchecked(at).snapshot.isCaptured { at += 1 }
      var partEnd = at
      while partEnd < pageblockEnd && recordUnchecked(partEnd).snapshot.isCaptured { partEnd += 1 }
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
