// Contiguous memory: runs of frames for devices and for large pages, on a machine whose memory is full.
//
// STRUCTURES
//   search      the cheapest run to empty, by the counts of pageblocks and by prices (folder RunSearch)
//   request     count, constraints, priority, passes and budget (ContiguousRequest)
//   means       the frames, slots and budget that a request may use at one moment, and how they pay for a run (Means)
//   forecast    the judgement of one run by those counts (Forecast); `forecast` returns it without emptying the run
//   attempt     one request from its first search to its last step, and what it has spent so far (ReclaimAttempt)
//   failure     a value of fixed size: never, not now, or later (ContiguousFailure)
// The allocator itself has only counters and two tunables. Isolation and capture, and the entries of the failed-request
// cache, lie in PhysicalMemory: frees look at both under its lock.
//
// HOW A RUN IS EMPTIED
//   pass 1  free and cached   the buddy queues have it, or its free frames are captured
//   pass 2  relocate          its pages are moved to free frames, as long as memory is not short
//   pass 3  launder inactive  pages that were not used recently are written out
//   pass 4  launder active    all others too, and once more those that were dirtied during that
// Passes 3 and 4 are left out where nothing can be written: there are neither slots nor pages of a device.
//
// A request is judged first, by counting: which run, and whether the free frames, the slots of swap and the
// budget pay for it. A run that they don't pay for costs no move and no write.
//
// The run comes from the counts of each pageblock (RunSearch.swift): the one with the fewest obstacles of those that
// can be paid for. It is isolated: every frame that is free in it or becomes free is
// captured for this request. So no page enters it again, even while the request sleeps. After each sleep the busy word
// of each page is read again.
//
// A page that is wired, held or busy at its turn is tried again in the next pass. If any is left after the
// last pass, the captured frames are freed and another run is chosen. The request tries four runs at most, as long as
// all attempts together have moved and written no more than twice as many pages as the run has.
//
// INVARIANTS (`checkInvariants`)
//   CM-1  A request ends once, granted or refused: granted + refused is at most the number of requests.
//   CM-2  Only refused requests count as repeated, and no run was abandoned more often than requests were tried.
//   CM-3  The tunables have values of their types.
//
// LOCKS. None of its own: counters and tunables are atomic. No lock is held while it calls down or calls the observer.
//
// COST. One search of the pageblock summaries; for each page in the way a copy and some 900 instructions, or a write. A
// repeated request that failed is refused in constant time, until a run for it could have become free.
//
// EXHAUSTION. Moving needs a frame for each page, and stops where the page daemon would have to work for
// other threads; writing needs none. Capturing a free frame counts as allocating it: the reserve of the request's
// priority stays. A frame that becomes free in an isolated run is captured at once, and lowers no count. Free frames
// that the reserve protects stay in the queues until the page daemon has freed as many elsewhere. Only for them does it
// free anything outside of the run. Once an attempt it frees as many as the forecast says, and the pages that
// it writes count against the caller's budget. A request that may not sleep, or not write, does without.
//
// A request is refused when no run in its range can be emptied so. If each run has an unmovable frame, the
// failed-request cache records that, and refuses the request in constant time until a run for it could have become
// free.
//
// SOURCES. contigmalloc(9) of FreeBSD and the commit log of its first fifteen years.
//   2004  launder only the run that can satisfy the request, keep the cleaned pages, and try at most twice against a
//         thread that keeps dirtying
//   2015  move instead of writing where frames are free
//   2016  distinguish "never" from "not now"
// Linux' alloc_contig_range adds isolation. The strategy before 2004 (LaunderQueuesStrategy) can be selected for
// contigmalloc at run time, to show the difference; `allocContig` does not use it.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization
import Zsmalloc

/// The allocator of contiguous memory: a handle.
public struct ContiguousAllocator {
  struct State: ~Copyable {
    let machine: Machine
    let physical: FrameAllocator
    let space: KernelAddressSpace
    let kmem: KmemAllocator
    let paging: PagedMemory
    let zspages: ZspageAllocator
    let strategy = Atomic<UInt64>(UInt64(ContiguousStrategy.new.rawValue))
    let passes = Atomic<UInt64>(UInt64(ContiguousPass.launderActive.rawValue))
    let counters = Counters()
  }
  /// Counts since the start.
  struct Counters: ~Copyable {
    let requests = Atomic<UInt64>(0)
    let granted = Atomic<UInt64>(0)
    let refused = Atomic<UInt64>(0)
    let repeated = Atomic<UInt64>(0)
    let moved = Atomic<UInt64>(0)
    let written = Atomic<UInt64>(0)
    let runsAbandoned = Atomic<UInt64>(0)
    let searches = Atomic<UInt64>(0)
    let searchSteps = Atomic<UInt64>(0)
    let failedCacheHits = Atomic<UInt64>(0)
    let failedCacheSteps = Atomic<UInt64>(0)
  }
  let state: UnsafeMutablePointer<State>

  /// Bytes that `create` needs, aligned to 64.
  package static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.size) }

  /// Brings the allocator up in `memory`, which it keeps.
  package static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, space: KernelAddressSpace,
    kmem: KmemAllocator, paging: PagedMemory, zspages: ZspageAllocator
  ) -> ContiguousAllocator {
    let state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        machine: machine, physical: physical, space: space, kmem: kmem, paging: paging, zspages: zspages))
    let allocator = ContiguousAllocator(state: state)
    physical.setBlockEmptier(allocator.blockEmptier)
    kmem.setSlabRuns(allocator.slabRuns)
    return allocator
  }

  var machine: Machine { state.pointee.machine }
  var physical: FrameAllocator { state.pointee.physical }
  var space: KernelAddressSpace { state.pointee.space }
  var kmem: KmemAllocator { state.pointee.kmem }
  var paging: PagedMemory { state.pointee.paging }
  var zspages: ZspageAllocator { state.pointee.zspages }
  var counters: Counters {
    @inline(__always) _read { yield state.pointee.counters }
  }

  // MARK: Frames without a mapping

  /// Allocates `request.count` frames in a row, each with the role `contiguous` and one wire. Moves and writes out the
  /// pages of one run, and no others. Calls `observe` after each step.
  ///
  /// Costs one search; then for each page in the way a copy and some 900 instructions, or a write.
  public func allocContig(
    _ request: ContiguousRequest, observe: (ContiguousEvent) -> Void = { _ in }
  ) throws(ContiguousFailure) -> FrameRun {
    try counted(request) { (attempt) throws(ContiguousFailure) in try attempt.reclaimRun(observe) }
  }

  /// Carries out a request, and counts and logs how it ended.
  func counted<R>(
    _ request: ContiguousRequest, _ body: (inout ReclaimAttempt) throws(ContiguousFailure) -> R
  ) throws(ContiguousFailure) -> R {
    counters.requests.add(1, ordering: .relaxed)
    var attempt = ReclaimAttempt(self, request)
    do throws(ContiguousFailure) {
      let result = try body(&attempt)
      counters.granted.add(1, ordering: .relaxed)
      attempt.log(nil)
      return result
    } catch {
      counters.refused.add(1, ordering: .relaxed)
      if error.isRepeated { counters.repeated.add(1, ordering: .relaxed) }
      attempt.log(error)
      throw error
    }
  }

  /// Frees frames that `allocContig` returned: all of them, or any part.
  public func releaseContig(_ run: FrameRun) { physical.free(run) }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension ContiguousAllocator: @unchecked Sendable {}
