// Isolation: a run of frames that is being emptied, so that each page freed in it stays with the thread that empties it.
// FreeBSD's reclaim frees each page to everyone, and may lose it before the retry.
//
// While a run is isolated, no frame of it is in the queues. Frames that are free at the start are removed, and frames
// that are freed later, by any thread, are *captured* on their way into the queues. A captured frame has the role
// contiguous and a busy word that only an isolation gives (wired and xbusy at once). So it differs from a run that
// has another owner, and a second free of it is reported. Capturing is not freeing: no waiter is woken.
//
// Up to four isolations exist at once, and never overlap. A free looks at them only when there are any: one load, shared
// with the failed-request cache.

import MemoryPrimitives
import Synchronization

/// A run that is being emptied: a token that is used once, by `finish` or `abandon`. One that goes out of scope is
/// abandoned.
@frozen @usableFromInline package struct Isolation: ~Copyable {
  /// The frames that are isolated.
  package let run: FrameRun
  @usableFromInline let physical: FrameAllocator
  @usableFromInline let slot: Int

  fileprivate init(_ run: FrameRun, in physical: FrameAllocator, slot: Int) {
    (self.run, self.physical, self.slot) = (run, physical, slot)
  }

  deinit { physical.endIsolation(of: run, slot) }

  fileprivate consuming func finish() {
    physical.finishIsolation(of: run, slot)
    discard self
  }
}

/// The table entry of an isolation.
struct IsolatedRun {
  var first: UInt32 = 0
  var end: UInt32 = 0
  var captured: UInt32 = 0
  var state = State.unused

  enum State {
    /// The entry has no run.
    case unused
    /// Frames that are freed in the run are captured.
    case capturing
    /// The run is freed again or handed over: the entry only keeps other isolations away.
    case ending
  }
}

/// The frames that one hold of the lock has captured.
private struct CaptureStep {
  enum Answer { case more, refused }
  var answer = Answer.more
  /// Where the next step begins.
  var next: UInt32
  /// Frames from `first` on, a bit for each; or all frames from `first` to `end`.
  var first: UInt32
  var frames: UInt64 = 0
  var end: UInt32

  /// Frames that a step captures at most one by one.
  static var width: UInt32 { 64 }
}

extension FrameDomain {
  /// Enters a run into the table, and returns its slot. Throws `notFree` when it overlaps an isolated one, `noMemory` when
  /// the table is full.
  fileprivate mutating func register(_ first: UInt32, _ end: UInt32) throws(PhysicalMemoryError) -> Int {
    var slot: Int?
    for i in isolations.indices {
      if isolations[i].state == .unused {
        slot = i
      } else if first < isolations[i].end && isolations[i].first < end {
        throw .notFree
      }
    }
    guard let slot else { throw .noMemory }
    isolations[slot] = IsolatedRun(first: first, end: end, state: .capturing)
    watchers += 1
    events.pointee.isolations.add()
    return slot
  }

  /// Whether `run` can't be isolated now.
  fileprivate func isBusy(isolating run: FrameRun) -> Bool {
    var count = 0
    for i in isolations.indices where isolations[i].state != .unused {
      if run.first.rawValue < isolations[i].end && isolations[i].first < run.end.rawValue { return true }
      count += 1
    }
    return count == isolations.count
  }

  /// Ends capturing, so that the frames can be freed or handed over. The isolation stands until they are: another one of
  /// the same run would accept them as captured.
  fileprivate mutating func endCapturing(_ slot: Int) { isolations[slot].state = .ending }

  fileprivate mutating func close(_ slot: Int) {
    isolations[slot] = IsolatedRun()
    watchers -= 1
  }

  // MARK: Capturing what is free

  /// Captures free frames from `at` on: whole blocks in a row of 64 frames, or the part of one larger block that lies in
  /// its pageblock. 8000 instructions at most: a pageblock whose records are to be made valid.
  @inline(__always)
  fileprivate mutating func captureStep(
    _ at: UInt32, _ end: UInt32, for slot: Int, priority: AllocationPriority
  ) -> CaptureStep {
    let pageblockEnd = Pageblock.end(at, end)
    var step = CaptureStep(next: pageblockEnd, first: at, end: at)
    let pageblock = table.pageblock(at)
    if pageblock.free == 0 { return step }
    let isValid = pageblock.state == .valid
    let head = table.record(at)
    if !isValid || (head.hasRole(.free) && head.queue != .buddy) || head.blockSize > pageblockEnd &- at
      || head.blockSize > CaptureStep.width
    {
      guard let (head, order) = block(holding: at) else {
        if isValid { step.next = at + 1 }
        return step
      }
      let blockEnd = min(pageblockEnd, head + (1 << UInt32(order)))
      captureBlock(at, blockEnd, for: slot, priority: priority, &step)
      return step
    }
    step.next = min(pageblockEnd, at | (CaptureStep.width - 1) + 1)
    var count: UInt32 = 0
    var frame = at
    while frame < step.next {
      let size = head.after(Int(frame - at)).blockSize
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
        // The part of this block that the reserve allows is a step of its own.
        if count == 0 {
          step.first = frame
          captureBlock(frame, frame + size, for: slot, priority: priority, &step)
          return step
        }
        break
      }
      unlink(frame, size.trailingZeroBitCount)
      step.frames |= (~0 >> UInt64(CaptureStep.width - size)) << UInt64(frame - at)
      count += size
      frame += size
    }
    if count > 0 { accountCaptured(at, count, slot) }
    return step
  }

  /// Captures free frames `at` to `end` of one block, as far as `priority` allows.
  private mutating func captureBlock(
    _ at: UInt32, _ end: UInt32, for slot: Int, priority: AllocationPriority, _ step: inout CaptureStep
  ) {
    let count = UInt32(min(UInt64(end - at), available(to: priority)))
    if at + count < end { step.answer = .refused }
    (step.next, step.end) = (at + count, at + count)
    guard count > 0 else { return }
    detach(at, at + count)
    accountCaptured(at, count, slot)
  }

  /// Counts `count` frames of the pageblock of `first`, removed from the queues, as captured for `slot`.
  private mutating func accountCaptured(_ first: UInt32, _ count: UInt32, _ slot: Int) {
    table.subtract(UInt64(count), from: .free)
    table.add(UInt64(count), to: .contiguous)
    table.accountAllocated(first, count, .contiguous)
    isolations[slot].captured += count
    events.pointee.captures.add(UInt64(count))
  }

  // MARK: Capturing what is freed

  /// Gives dropped pages, whose records have the role free already, to the isolation that has all of them: they count as
  /// captured and no longer as pages. Returns false, and changes nothing, when no isolation has. For 32 at most.
  mutating func captureDropped(_ frames: UnsafeBufferPointer<FrameNumber>, _ sound: UInt32) -> Bool {
    guard let slot = isolation(ofAll: frames, sound) else { return false }
    let count = UInt64(sound.nonzeroBitCount)
    for i in 0..<frames.count where sound >> UInt32(i) & 1 != 0 {
      let pageblock = table.pageblock(frames[i].rawValue)
      pageblock.movable &-= 1
      pageblock.unmovable &+= 1
      table.record(frames[i].rawValue).handOut(.contiguous, .captured)
    }
    table.subtract(count, from: .pageable)
    table.add(count, to: .contiguous)
    isolations[slot].captured += UInt32(count)
    events.pointee.captures.add(count)
    events.pointee.frees.add(count)
    return true
  }

  /// The slot of the isolation that captures all of these frames.
  private func isolation(ofAll frames: UnsafeBufferPointer<FrameNumber>, _ sound: UInt32) -> Int? {
    var (lowest, highest) = (UInt32.max, UInt32(0))
    for i in 0..<frames.count where sound >> UInt32(i) & 1 != 0 {
      lowest = min(lowest, frames[i].rawValue)
      highest = max(highest, frames[i].rawValue)
    }
    for slot in isolations.indices where isolations[slot].state == .capturing {
      if lowest >= isolations[slot].first && highest < isolations[slot].end { return slot }
    }
    return nil
  }

  /// Puts frames of one pageblock that have just become free into the queues or into an isolation, and reports unmovable
  /// ones to the failed-request cache: `role` is the role that they had.
  @inline(never) mutating func enqueueWatched(_ first: UInt32, _ end: UInt32, _ role: FrameRole) {
    var at = first
    while at < end {
      var partEnd = end
      var slot: Int?
      for i in isolations.indices where isolations[i].state == .capturing {
        if at < isolations[i].first {
          partEnd = min(partEnd, isolations[i].first)
        } else if at < isolations[i].end {
          slot = i
          partEnd = min(partEnd, isolations[i].end)
        }
      }
      if let slot {
        accountCaptured(at, partEnd - at, slot)
        table.stamp(at, partEnd, .contiguous, .captured)
      } else {
        enqueue(at, partEnd)
        if !role.isMovable { recordEmptiable(at, partEnd) }
      }
      at = partEnd
    }
  }
}

extension FrameAllocator {
  /// Isolates a run: from now on every frame of it that is free, cached or gets freed is captured for the caller, with
  /// role contiguous, out of the queues. Frames that are free now are captured as far as the reserve of `priority`
  /// allows; the rest stays in the queues, where any request may be given it, until `captureFree`. A few dozen
  /// instructions for each free block, a few for each frame; the lock is held for 64 frames at a time. Throws
  /// `outsideMemory` unless all of the run is memory that is not permanent. Throws `notFree` when it overlaps an isolated
  /// run, `noMemory` when four runs are isolated. Then everything is as before.
  package func isolate(_ run: FrameRun, priority: AllocationPriority) throws(PhysicalMemoryError) -> Isolation
  {
    if machine.failsHere(.physicalMemory) { throw .noMemory }
    guard isOneSpan(run) else { throw .outsideMemory }
    let (first, end) = (run.first.rawValue, run.first.rawValue + UInt32(run.count.rawValue))
    let slot = try domain.withLock { domain throws(PhysicalMemoryError) in try domain.register(first, end) }
    let isolation = Isolation(run, in: self, slot: slot)
    captureFree(isolation, priority: priority)
    return isolation
  }

  /// Whether `run` can't be isolated now: a part of it is isolated, or four other runs are.
  package func isBusy(isolating run: FrameRun) -> Bool { domain.withLock { $0.isBusy(isolating: run) } }

  /// Captures the frames of the run that are still free, as far as the reserve of `priority` allows. A step for each free
  /// block.
  package func captureFree(_ isolation: borrowing Isolation, priority: AllocationPriority) {
    let (end, slot) = (isolation.run.end.rawValue, isolation.slot)
    var at = isolation.run.first.rawValue
    while at < end {
      let step = domain.withLock { $0.captureStep(at, end, for: slot, priority: priority) }
      // Removed from the queues, the frames belong to the isolation, as those of any request do.
      stamp(step)
      if step.answer == .refused { return }
      at = step.next
    }
  }

  /// Whether a frame of the run is free and not captured, because the reserve does not allow it. A step for each
  /// pageblock of the run, a few instructions for each frame of one that the run has a part of. Takes no lock.
  package func hasFreeFrames(_ isolation: borrowing Isolation) -> Bool {
    let end = isolation.run.end.rawValue
    var at = isolation.run.first.rawValue
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let pageblock = table.pageblock(at)
      let isWhole = pageblockEnd - at == Pageblock.frames
      if pageblock.snapshot.free > 0 {
        if isWhole || pageblock.state != .valid { return true }
        let record = table.record(at)
        for i in 0..<Int(pageblockEnd - at) where record.after(i).snapshot.isFree { return true }
      }
      at = pageblockEnd
    }
    return false
  }

  /// Whether all of `run` lies in one extent of memory that is not permanent.
  private func isOneSpan(_ run: FrameRun) -> Bool {
    let first = UInt64(run.first.rawValue)
    guard run.count > .zero, run.count.rawValue <= UInt64(FrameNumber.limit) - first else { return false }
    for span in spans where first < UInt64(span.end) {
      return first >= UInt64(span.first) && first + run.count.rawValue <= UInt64(span.end)
    }
    return false
  }

  /// Writes the records of the frames that a step has captured. Takes no lock.
  private func stamp(_ step: CaptureStep) {
    if step.first < step.end { return table.stamp(step.first, step.end, .contiguous, .captured) }
    guard step.frames != 0 else { return }
    var cached: UInt64 = 0
    var left = step.frames
    let first = table.record(step.first)
    while left != 0 {
      let record = first.after(left.trailingZeroBitCount)
      left &= left - 1
      if record.pageFlags.contains(.cached) { cached += 1 }
      record.handOut(.contiguous, .captured)
    }
    if cached > 0 { table.cached.pointee.subtract(cached, ordering: .relaxed) }
  }

  /// Returns the number of frames captured so far. Constant.
  package func capturedCount(_ isolation: borrowing Isolation) -> PageCount {
    let slot = isolation.slot
    return domain.withLock { PageCount(UInt64($0.isolations[slot].captured)) }
  }

  /// Whether all frames of the run are captured. Then they stay so until `finish`. Constant.
  package func isComplete(_ isolation: borrowing Isolation) -> Bool {
    capturedCount(isolation) == isolation.run.count
  }

  /// Whether the isolation has captured this frame. Constant, takes no lock.
  package func isCaptured(_ frame: FrameNumber, _ isolation: borrowing Isolation) -> Bool {
    guard isolation.run.contains(frame), table.pageblock(frame.rawValue).state == .valid else {
      return false
    }
    return table.record(frame.rawValue).snapshot.isCaptured
  }

  /// Ends a complete isolation: the run is `owner`'s, role contiguous, each frame wired once. Three stores a frame.
  package func finish(_ isolation: consuming Isolation, for owner: FrameOwner = .here) -> FrameRun {
    precondition(isComplete(isolation), "frames of the isolated run are missing")
    let run = isolation.run
    setOwner(of: run, owner)
    isolation.finish()
    return run
  }

  /// Ends the isolation and frees all captured frames. Costs as much as their free.
  package func abandon(_ isolation: consuming Isolation) {}

  /// Hands the captured frames of a complete isolation over.
  fileprivate func finishIsolation(of run: FrameRun, _ slot: Int) {
    domain.withLock { domain in
      domain.endCapturing(slot)
      domain.events.pointee.runs.add()
    }
    var at = run.first.rawValue
    while at < run.end.rawValue {
      // The records of a pageblock follow each other.
      let pageblockEnd = Pageblock.end(at, run.end.rawValue)
      let record = table.record(at)
      for i in 0..<Int(pageblockEnd - at) { record.after(i).busyWord = .wiredOnce }
      at = pageblockEnd
    }
    domain.withLock { $0.close(slot) }
  }

  /// Frees the captured frames of an isolation, and ends it.
  fileprivate func endIsolation(of run: FrameRun, _ slot: Int) {
    domain.withLock { $0.endCapturing(slot) }
    let end = run.end.rawValue
    var at = run.first.rawValue
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      guard table.pageblock(at).state == .valid else {
        at = pageblockEnd
        continue
      }
      while at < pageblockEnd && !table.record(at).snapshot.isCaptured { at += 1 }
      var partEnd = at
      while partEnd < pageblockEnd && table.record(partEnd).snapshot.isCaptured { partEnd += 1 }
      if at < partEnd { release(at, partEnd) }
      at = partEnd
    }
    domain.withLock { $0.close(slot) }
  }
}
