// The means of a request, and whether they pay for a run: by counting only, no page is touched.
//
// A run of n frames has free ones, which are captured, and pages, each of which is moved, written or reclaimed. A free
// frame that is captured and a page that is moved need one free frame each, above the reserve; a page that is
// written or reclaimed needs none. A page that is written to swap needs a slot. So the run can be emptied when
//   captured + moved     do not exceed the free frames above the reserve, and those that the page daemon can free
//                        elsewhere: clean pages, and dirty ones as far as slots are left
//   written              exceeds neither the slots, except for pages of a device, nor the budget
//   moved                does not exceed the budget
// Pages of zspages can only be moved.
// The pages that the daemon writes elsewhere count against the caller's budget, and not against twice the run's pages.
// A request that can pay both ways moves as long as the page daemon's target stays met, and writes the rest.

import MemoryPrimitives
import Paging
import PhysicalMemory

/// The frames, slots and pages that a request may spend on one run, at one moment.
struct Means {
  let request: ContiguousRequest
  /// Pages that may still be moved, and written.
  let budget: ContiguousBudget
  /// Pages that the caller's budget lets the request write, in the run and elsewhere.
  let writable: UInt64
  let memory: ContiguousAllocator
  /// Free frames.
  let free: UInt64
  /// Frames that capturing leaves free.
  let reserve: UInt64
  /// Frames that moving leaves free as long as there is another way, so that the page daemon has no work.
  let comfort: UInt64
  /// Frames that any moving leaves free.
  let leastForMoving: UInt64
  /// Free slots of swap.
  let slots: UInt64
  /// Whether a queued waiter keeps this request from allocating single frames.
  let isBehindOthers: Bool
  let distinguishesDirtyPages: Bool
  /// Pages anywhere, if the page daemon may have to free some for this request; nil if it need not, or must not.
  /// Counted as far as they make a difference to `plan`.
  let elsewhere: IdlePages?

  /// How a run is emptied, in pages.
  struct Plan {
    /// Pages to move.
    var moved: UInt64 = 0
    /// Pages to write.
    var written: UInt64 = 0
    /// Clean pages to reclaim.
    var dropped: UInt64 = 0
    /// Frames that the daemon must free elsewhere.
    var fetched: UInt64 = 0
    /// Frames of the run that can't be paid for.
    var missing: UInt64 = 0
    /// Whether pages are moved before any is written.
    var order = Order.movesFirst
    /// Whether clean pages are moved with them.
    var clean = CleanPages.discard

    enum Order { case movesFirst, writesFirst }
    var movesFirst: Bool { order == .movesFirst && fetched == 0 }
  }

  var mayMove: Bool { request.passes > .free }
  let mayWrite: Bool
  private var mayWriteAny: Bool { mayWrite && request.passes == .launderActive }

  /// `known` are the pages of all memory, where they were counted for this request before.
  init(
    _ request: ContiguousRequest, _ spent: Spending, _ memory: ContiguousAllocator,
    known: IdlePages? = nil
  ) {
    let physical = memory.physical
    self.request = request
    self.memory = memory
    budget = ContiguousBudget(
      moved: spent.leftToMove(for: request), written: spent.leftToWrite(for: request))
    writable = spent.writable(for: request).rawValue
    free = physical.freeCount.rawValue
    reserve = physical.reserve(for: request.priority).rawValue
    // Frames to move to are allocated at the normal priority.
    leastForMoving = max(reserve, physical.reserve(for: .normal).rawValue)
    slots = memory.paging.swap.figures.free.rawValue
    isBehindOthers = physical.awaited > .zero
    mayWrite = request.waitPolicy.mayWait && request.passes > .relocate && budget.written > .zero
    comfort = mayWrite ? max(leastForMoving, memory.paging.freeTarget.rawValue) : leastForMoving
    // Where the free frames above the reserve suffice for a whole run, the daemon need not free any.
    let isShort = free < leastForMoving + min(request.count.rawValue, physical.total.rawValue)
    let slotsAreFew =
      slots < request.count.rawValue || (isShort && slots < physical.count(.pageable).rawValue)
    distinguishesDirtyPages =
      request.passes == .launderInactive || (slotsAreFew && memory.paging.hasDeviceObjects)
    let distinguishesDirtyPages = distinguishesDirtyPages
    if isShort && request.waitPolicy.mayWait && request.passes == .launderActive {
      elsewhere =
        known
        ?? Self.pagesElsewhere(
          request, memory, least: leastForMoving, slots: slots, writable: writable,
          CountedPages(
            paging: memory.paging, distinguishesDirtyPages: distinguishesDirtyPages, physical: physical))
    } else {
      elsewhere = nil
    }
  }

  /// Counts the pages of all memory, as far as they make a difference. The daemon frees at most `short` frames for a
  /// run. The run itself has at most `count` pages, and needs at most as many slots and writes. Of each kind, more
  /// than both together make no difference. Where slots and writes suffice for that many, one kind stands for another.
  private static func pagesElsewhere(
    _ request: ContiguousRequest, _ memory: ContiguousAllocator, least: UInt64, slots: UInt64,
    writable: UInt64,
    _ kinds: CountedPages
  ) -> IdlePages {
    let count = min(request.count.rawValue, memory.physical.total.rawValue)
    let short = count + least
    let most = short + count
    let forSwap = slots == 0 ? 0 : min(slots + count, most)
    let enough = IdlePages(
      clean: most, forSwap: forSwap, forDevice: kinds.distinguishesDirtyPages ? most : 0)
    return memory.search {
      $0.idlePages(
        enough: enough, enoughInAll: min(slots, writable) >= most ? most : .max, by: kinds)
    }
  }

  /// Whether the request could go further without its own bounds.
  var isBound: Bool {
    !request.waitPolicy.mayWait || request.passes < .launderActive
      || budget.moved < request.count || budget.written < request.count
  }

  /// The means of the same request when it may sleep, go through all passes and spend without a bound.
  func unbounded() -> Means {
    var request = request
    request.waitPolicy = .allowed
    request.passes = .launderActive
    request.budget = .unlimited
    return Means(request, Spending(), memory, known: elsewhere)
  }

  /// Plans how a run with these contents is emptied. Captured frames cost nothing.
  func plan(for contents: RunContents) -> Plan {
    var answer = Plan()
    guard mayMove else {
      answer.missing = contents.pages + lack(contents.free)
      return answer
    }
    let dirty = contents.dirty
    let captured = min(contents.free, free > reserve ? free - reserve : 0)
    let mayAllocate = !isBehindOthers && captured == contents.free
    let left = free - captured
    // Frames to move to that leave the daemon without work.
    var comfortable: UInt64 = 0
    if mayAllocate && left > comfort { comfortable = min(left - comfort, budget.moved.rawValue) }
    if comfortable >= request.count.rawValue {
      answer.moved = contents.pages
      answer.clean = .move
      return answer
    }
    // Pages of zspages can only be moved, so they come first.
    let fixed = min(contents.zspages, isBehindOthers ? 0 : budget.moved.rawValue)
    answer.missing = contents.zspages - fixed
    comfortable -= min(comfortable, fixed)
    answer.dropped = contents.clean
    let forSwap =
      mayWriteAny
      ? contents.activeForSwap + contents.inactiveForSwap : mayWrite ? contents.inactiveForSwap : 0
    let forDevice =
      mayWriteAny
      ? contents.activeForDevice + contents.inactiveForDevice : mayWrite ? contents.inactiveForDevice : 0
    let first = min(dirty, comfortable)
    // Whichever pages are moved first, the others can be written.
    let restCanBeWritten =
      forSwap + forDevice == dirty && slots >= forSwap && budget.written.rawValue >= dirty - first
    var slotsUsed: UInt64
    if first == dirty || restCanBeWritten {
      answer.moved = fixed + first
      answer.written = dirty - first
      slotsUsed = min(forSwap, answer.written)
    } else {
      answer.order = .writesFirst
      answer.written = min(forDevice + min(forSwap, slots), budget.written.rawValue)
      slotsUsed = min(min(forSwap, slots), answer.written)
      let rest = dirty - answer.written
      let moved = isBehindOthers ? 0 : min(rest, budget.moved.rawValue - fixed)
      answer.moved = fixed + moved
      answer.missing += rest - moved
    }
    payForFrames(&answer, contents, slotsUsed: slotsUsed)
    return answer
  }

  /// Adds what the frames cost that must be free: those that are captured, and those to move to.
  private func payForFrames(_ answer: inout Plan, _ contents: RunContents, slotsUsed: UInt64) {
    var needed = contents.free
    if answer.moved > 0 {
      needed += answer.moved
      needed += leastForMoving
    } else if needed > 0 {
      needed += reserve
    }
    guard needed > free else { return }
    var short = needed - free
    if let elsewhere {
      func others(_ all: UInt64, _ mine: UInt64) -> UInt64 { all > mine ? all - mine : 0 }
      let slotsLeft = slots - min(slots, slotsUsed)
      let clean = others(elsewhere.clean, contents.clean)
      let dirty =
        others(elsewhere.forDevice, contents.activeForDevice + contents.inactiveForDevice)
        + min(slotsLeft, others(elsewhere.forSwap, contents.activeForSwap + contents.inactiveForSwap))
      let mayWriteMore = writable - min(writable, answer.written)
      answer.fetched = min(short, clean + min(dirty, mayWriteMore))
      short -= answer.fetched
    }
    // Pages that can't be moved for lack of frames are missing; the rest are free frames that can't be captured.
    answer.moved -= min(answer.moved, short)
    answer.missing += short
  }

  /// Counts how many of `count` frames are missing above the reserve.
  private func lack(_ count: UInt64) -> UInt64 {
    count > 0 && count + reserve > free ? count + reserve - free : 0
  }
}

/// Counts the pages of all memory.
private struct CountedPages: DirtyPageKinds {
  let paging: PagedMemory
  let distinguishesDirtyPages: Bool
  let physical: FrameAllocator
  func isForDevice(_ frame: FrameNumber) -> Bool { paging.isForDevice(frame, physical) }
}

extension PagedMemory {
  /// Whether a page, dirty a moment ago, is written to a device of its own.
  fileprivate func isForDevice(_ frame: FrameNumber, _ physical: FrameAllocator) -> Bool {
    guard let record = physical.record(frame), record.role == .pageable,
      let object = object(numbered: record.owner)
    else { return false }
    return object.kind == .device
  }
}

extension Means: RunPricing {
  func isForDevice(_ frame: FrameNumber) -> Bool {
    memory.paging.isForDevice(frame, memory.physical)
  }

  func price(_ contents: RunContents) -> RunPrice {
    let answer = plan(for: contents)
    let unmovable = contents.unmovable + contents.captured
    // In this order: unmovable frames, frames that are missing, pages that are claimed.
    let limit: UInt64 = 1 << 20 - 1
    let obstacles =
      min(unmovable, limit) << 40 | min(answer.missing, limit) << 20 | min(contents.claimed, limit)
    // Pages elsewhere belong to no part of the request, so they count twice.
    return RunPrice(
      obstacles: obstacles, work: contents.pages + 2 * answer.fetched + 8 * contents.claimed,
      dirty: contents.dirty)
  }

  /// With the page daemon's help and without a bound, means that pay for one run pay for any: only claims differ.
  /// That does not hold where one run needs no free frame, or captures frames without a move, and so may leave less
  /// free than others: below the reserve, and where capturing may go deeper into it than moving.
  func varies(_ price: RunPrice) -> Bool {
    let isMissing = price.obstacles >> 20 & (1 << 20 - 1) > 0
    let hasOneReserve = reserve == leastForMoving && free >= reserve
    return !isMissing || !hasOneReserve || isBound || elsewhere == nil || isBehindOthers
  }
}
