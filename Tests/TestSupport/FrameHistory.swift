// Random histories of blocks, runs and given frames beside a model.

import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

/// A system driven by random operations beside its model. A method returns the mistake that it has found, or nil.
package struct FrameHistory {
  package let memory: FrameAllocator
  package let initial: [FrameRole]
  package let largestRun: UInt64
  package let top: UInt64
  package var random: SeededRandom
  package var model: FrameModel
  package var given: [(Int, Int)] = []
  package var fillsUp = true
  /// A further check after a run was refused; it returns the mistake that it has found.
  package var afterRefusal: ((FrameHistory, Int, RunConstraints) -> String?)?

  /// Memory maps of small machines.
  package static var smallMachines: [[(UInt64, UInt64)]] {
    [
      [(0, 512)],
      [(256, 512)],
      [(300, 117), (430, 99), (512, 300), (1027, 5)],
      [(4096 - 300, 600)],  // around 16 MiB, where one list ends and another begins
      [(700, 100), (900, 333), (4000, 200)],
    ]
  }

  package init(_ system: FrameAllocatorFixture, seed: UInt64, largestRun: UInt64) {
    random = SeededRandom(seed: seed)
    memory = system.memory
    model = FrameModel(system)
    initial = model.roles
    top = UInt64(initial.count)
    self.largestRun = largestRun
  }

  /// One random operation.
  package mutating func step() -> String? {
    if random.oneIn(200) { fillsUp.toggle() }
    let roles: [FrameRole] = [.wired, .slab, .pageable, .kmem]
    let role = roles[Int(random.below(4))]
    let priority = AllocationPriority(rawValue: UInt8(random.below(3)))!
    switch random.below(fillsUp ? 8 : 12) {
    case 0...2: return allocateBlock(role, priority)
    case 3...4: return allocateRun(role, priority)
    case 5: return allocateFrame(role, priority)
    default:
      free()
      return nil
    }
  }

  package func check() -> String? {
    if let broken = memory.checkInvariants() { return "invariant \(broken)" }
    if memory.freeCount.rawValue != model.free { return "count of free frames" }
    if Int(memory.longestFreeRun()?.count.rawValue ?? 0) != model.longestRun() { return "longest run" }
    return nil
  }

  private func admits(_ count: UInt64, _ priority: AllocationPriority) -> Bool {
    model.free >= count + memory.reserve(for: priority).rawValue
  }

  private mutating func allocateBlock(_ role: FrameRole, _ priority: AllocationPriority) -> String? {
    let order = Int(random.below(random.oneIn(4) ? 10 : 3))
    let isAdmitted = admits(1 << order, priority)
    do {
      let frame = Int(try memory.allocate(BlockOrder(UInt8(order)), role: role, priority: priority).rawValue)
      if !model.isFree(frame, 1 << order) || frame % (1 << order) != 0 || !isAdmitted {
        return "a block that is not free, not aligned or out of the reserve"
      }
      model.set(frame, 1 << order, role)
      given.append((frame, 1 << order))
    } catch {
      if isAdmitted && model.hasBlock(order) { return "a block was refused" }
    }
    return nil
  }

  private mutating func allocateRun(_ role: FrameRole, _ priority: AllocationPriority) -> String? {
    let count = 1 + Int(random.below(random.oneIn(3) ? largestRun : 12))
    var constraints = RunConstraints()
    if random.oneIn(2) { constraints.alignment = Alignment(4096 << random.below(7))! }
    if random.oneIn(3) { constraints.boundary = Alignment(4096 << random.below(9))! }
    if random.oneIn(3) { constraints.low = PhysicalAddress(random.below(top << 12)) }
    if random.oneIn(3) { constraints.high = PhysicalAddress(random.below(top << 12)) }
    let free = memory.freeRun(PageCount(count), where: constraints, priority: priority)
    let isAdmitted = admits(UInt64(count), priority)
    do {
      let run = try memory.allocate(
        run: PageCount(count), where: constraints, role: role, priority: priority)
      let first = Int(run.first.rawValue)
      if !model.isFree(first, count) || !model.allows(first, count, constraints) || !isAdmitted {
        return "a run that is not free or breaks its constraints"
      }
      if free != run { return "granted, and not the free run that was named" }
      model.set(first, count, role)
      given.append((first, count))
    } catch {
      if isAdmitted && model.hasRun(count, constraints) { return "a run of \(count) was refused" }
      if free != nil { return "a free run was named but refused" }
      return afterRefusal?(self, count, constraints)
    }
    return nil
  }

  private mutating func allocateFrame(_ role: FrameRole, _ priority: AllocationPriority) -> String? {
    let frame = Int(random.below(top + 3))
    let isKnown = frame < model.roles.count && model.roles[frame] != .absent
    let isAdmitted = admits(1, priority)
    do {
      try memory.allocate(frame: FrameNumber(UInt32(frame)), role: role, priority: priority)
      if !isKnown || !model.isFree(frame, 1) || !isAdmitted { return "a given frame was granted" }
      model.set(frame, 1, role)
      given.append((frame, 1))
    } catch {
      let expected: PhysicalMemoryError =
        !isKnown ? .outsideMemory : model.roles[frame] != .free ? .notFree : .noMemory
      if error != expected || (expected == .noMemory && isAdmitted) {
        return "a given frame was refused as \(error)"
      }
    }
    return nil
  }

  private mutating func free() {
    guard !given.isEmpty else { return }
    // A part of an allocation: all of it, an end, or the middle.
    let k = Int(random.below(UInt64(given.count)))
    let (first, count) = given[k]
    let from = random.oneIn(2) ? 0 : Int(random.below(UInt64(count)))
    let to = random.oneIn(2) ? count : from + 1 + Int(random.below(UInt64(count - from)))
    memory.free(
      FrameRun(first: FrameNumber(UInt32(first + from)), count: PageCount(to - from)))
    model.set(first + from, to - from, .free)
    given[k] = given[given.count - 1]
    given.removeLast()
    if from > 0 { given.append((first, from)) }
    if to < count { given.append((first + to, count - to)) }
  }

  /// Drives a system with random requests; each answer is checked against the model.
  package static func drive(
    _ system: FrameAllocatorFixture, seed: UInt64, operations: Int, largestRun: UInt64, checkEvery: Int,
    afterRefusal: ((FrameHistory, Int, RunConstraints) -> String?)? = nil
  ) {
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    var history = FrameHistory(system, seed: seed, largestRun: largestRun)
    history.afterRefusal = afterRefusal
    for i in 0..<operations {
      var wrong = history.step()
      if wrong == nil && i % checkEvery == 0 {
        wrong = history.check()
        if wrong == nil && i % (checkEvery * 50) == 0 && system.roles != history.model.roles {
          wrong = "roles"
        }
      }
      if let wrong { return XCTFail("\(wrong), operation \(i), STRATA_SEED=\(seed)") }
    }
    XCTAssertEqual(system.roles, history.model.roles)
    for (first, count) in history.given {
      memory.free(FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count)))
    }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before, "STRATA_SEED=\(seed)")
  }
}
