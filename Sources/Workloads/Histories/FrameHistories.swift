// Histories of frames: blocks by order and single frames by number (`buddy`), runs with constraints (`runs`). Either
// holds runs of frames, and frees them whole or in parts.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension SeededHistory {
  mutating func runBuddy() {
    runFrames { history in
      if history.random.oneIn(16) {
        history.requestFrame()
      } else {
        history.requestBlock()
      }
    }
  }

  mutating func runRuns() { runFrames { $0.requestRun() } }

  private mutating func runFrames(_ ask: (inout SeededHistory) -> Void) {
    let start = system.physical.freeCount
    repeated({ history in
      if history.grows() { ask(&history) } else { history.freeFrames() }
      history.fold(history.system.physical.freeCount.rawValue)
    }) { $0.physical.checkInvariants() }
    let physical = system.physical
    physical.forEachFreeBlock { first, order in fold(UInt64(first.rawValue) << 8 | UInt64(order.rawValue)) }
    physical.forEachRole { run, role in
      fold(UInt64(run.first.rawValue) << 8 | UInt64(role.rawValue))
      fold(run.count.rawValue)
    }
    while used > 0 {
      free(FrameRun(first: FrameNumber(UInt32(slots[0].a)), count: PageCount(slots[0].b)), slots[0].c)
      remove(0)
    }
    require(physical.freeCount == start, "not all frames were freed")
    examine { $0.physical.checkInvariants() }
  }

  // MARK: Requests

  private mutating func role() -> FrameRole {
    switch random.below(4) {
    case 0: .wired
    case 1: .slab
    case 2: .pageTable
    default: .pageable
    }
  }

  mutating func priority() -> AllocationPriority {
    switch random.below(8) {
    case 0: .interrupt
    case 1: .system
    default: .normal
    }
  }

  private mutating func requestBlock() {
    // Half of all requests are for one frame, a quarter for two, …
    let order = BlockOrder(UInt8(min(11, random.next().trailingZeroBitCount)))
    let (role, priority) = (role(), priority())
    do throws(PhysicalMemoryError) {
      let first = try system.physical.allocate(
        order, role: role, priority: priority, for: FrameOwner("a frame history"))
      require(UInt64(first.rawValue) & (order.frames.rawValue - 1) == 0, "a block is not aligned to its size")
      recordRun(FrameRun(first: first, count: order.frames), role)
    } catch {
      countRefusal(error.rawValue)
    }
  }

  private mutating func requestFrame() {
    let frame = FrameNumber(UInt32(random.below(system.physical.total.rawValue + 512)))
    let (role, priority) = (role(), priority())
    do throws(PhysicalMemoryError) {
      try system.physical.allocate(
        frame: frame, role: role, priority: priority, for: FrameOwner("a frame history"))
      recordRun(FrameRun(first: frame, count: .one), role)
    } catch {
      countRefusal(error.rawValue)
    }
  }

  private mutating func requestRun() {
    let count = 1 + random.below(1 << random.below(10))
    let size = count << Page.shift
    let top = system.physical.total.rawValue << Page.shift
    var constraints = RunConstraints()
    if random.oneIn(2) { constraints.alignment = Alignment(Page.size << random.below(8)) ?? .page }
    if random.oneIn(4) { constraints.boundary = Alignment(Page.size << random.below(12)) }
    if random.oneIn(4) { constraints.low = PhysicalAddress(random.below(top)) }
    if random.oneIn(4) {
      constraints.high = PhysicalAddress(constraints.low.rawValue + size + random.below(top))
    }
    let (role, priority) = (role(), priority())
    do throws(PhysicalMemoryError) {
      let run = try system.physical.allocate(
        run: PageCount(count), where: constraints, role: role, priority: priority,
        for: FrameOwner("a frame history"))
      let (first, last) = (run.first.address.rawValue, run.first.address.rawValue + size - 1)
      require(run.count.rawValue == count, "a run has another length")
      require(
        first >= constraints.low.rawValue && last < constraints.high.rawValue, "a run lies out of its range")
      require(first & (constraints.alignment.rawValue - 1) == 0, "a run is not aligned")
      if let boundary = constraints.boundary {
        require(
          first & ~(boundary.rawValue - 1) == last & ~(boundary.rawValue - 1), "a run crosses its boundary")
      }
      recordRun(run, role)
    } catch {
      countRefusal(error.rawValue)
    }
  }

  /// Stamps a run with the number of its operation, and records it.
  private mutating func recordRun(_ run: FrameRun, _ role: FrameRole) {
    fold(UInt64(run.first.rawValue) << 32 | run.count.rawValue)
    for frame in run.first.rawValue..<run.end.rawValue {
      let record = system.physical.record(FrameNumber(frame))
      require(record.map { $0.role == role } == true, "a frame has another role than requested")
      system.machine.directMap.pointer(to: FrameNumber(frame)).storeBytes(
        of: done << 32 | UInt64(frame), as: UInt64.self)
    }
    record(Slot(a: UInt64(run.first.rawValue), b: run.count.rawValue, c: done, d: 0))
  }

  // MARK: Freeing

  private mutating func freeFrames() {
    let index = Int(random.below(UInt64(used)))
    let slot = slots[index]
    // A part from the middle, or all of it.
    var (from, to) = (UInt64(0), slot.b)
    if slot.b > 1 && random.oneIn(2) {
      from = random.below(slot.b)
      to = from + 1 + random.below(slot.b - from)
    }
    let start = UInt32(slot.a)
    free(FrameRun(first: FrameNumber(start + UInt32(from)), count: PageCount(to - from)), slot.c)
    fold(UInt64(start) << 32 | from << 16 | to)
    remove(index)
    if from > 0 { record(Slot(a: slot.a, b: from, c: slot.c, d: 0)) }
    if to < slot.b { record(Slot(a: slot.a + to, b: slot.b - to, c: slot.c, d: 0)) }
  }

  private mutating func free(_ run: FrameRun, _ stamp: UInt64) {
    for frame in run.first.rawValue..<run.end.rawValue {
      let word = system.machine.directMap.pointer(to: FrameNumber(frame)).load(as: UInt64.self)
      require(word == stamp << 32 | UInt64(frame), "a frame had two owners")
    }
    system.physical.free(run)
  }
}
