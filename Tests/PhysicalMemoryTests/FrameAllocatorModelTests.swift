// Random histories against a model: one role a frame, and brute force.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

/// The model: the role of each frame, and nothing of blocks.
struct Model {
  var roles: [FrameRole]

  init(_ system: FrameAllocatorFixture) { roles = system.roles }

  var free: UInt64 { UInt64(roles.reduce(0) { $0 + ($1 == .free ? 1 : 0) }) }

  func isFree(_ first: Int, _ count: Int) -> Bool {
    first + count <= roles.count && (first..<first + count).allSatisfy { roles[$0] == .free }
  }

  func hasBlock(_ order: Int) -> Bool {
    stride(from: 0, to: roles.count, by: 1 << order).contains { isFree($0, 1 << order) }
  }

  func allows(_ first: Int, _ count: Int, _ where: RunConstraints) -> Bool {
    let (from, to) = (UInt64(first) << 12, UInt64(first + count) << 12)
    guard from >= `where`.low.rawValue, to <= `where`.high.rawValue,
      from % `where`.alignment.rawValue == 0
    else { return false }
    guard let boundary = `where`.boundary?.rawValue else { return true }
    return from / boundary == (to - 1) / boundary
  }

  func hasRun(_ count: Int, _ where: RunConstraints) -> Bool {
    var length = 0
    for frame in 0..<roles.count {
      length = roles[frame] == .free ? length + 1 : 0
      if length >= count, allows(frame - count + 1, count, `where`) { return true }
    }
    return false
  }

  func longestRun() -> Int {
    var (best, length) = (0, 0)
    for role in roles {
      length = role == .free ? length + 1 : 0
      best = max(best, length)
    }
    return best
  }

  mutating func set(_ first: Int, _ count: Int, _ role: FrameRole) {
    for frame in first..<first + count { roles[frame] = role }
  }
}

/// A system driven by random operations beside its model. A method returns the mistake that it has found, or nil.
private struct FrameHistory {
  let memory: FrameAllocator
  let initial: [FrameRole]
  let largestRun: UInt64
  let top: UInt64
  var random: SeededRandom
  var model: Model
  var given: [(Int, Int)] = []
  var fillsUp = true

  init(_ system: FrameAllocatorFixture, seed: UInt64, largestRun: UInt64) {
    random = SeededRandom(seed: seed)
    memory = system.memory
    model = Model(system)
    initial = model.roles
    top = UInt64(initial.count)
    self.largestRun = largestRun
  }

  /// One random operation.
  mutating func step() -> String? {
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

  func check() -> String? {
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
      let frame = Int(try memory.allocate(Order(UInt8(order)), role: role, priority: priority).rawValue)
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
    let search = memory.candidate(run: PageCount(count), where: constraints)
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
      // A run that is free, but not above the reserve, costs nothing to empty.
      return mistake(in: search, count, constraints)
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

  /// Returns the mistake in the result of a search for a run to be emptied, or nil.
  private func mistake(
    in search: RunSearch, _ count: Int, _ constraints: RunConstraints
  ) -> String? {
    var empty = model
    func isThere(_ isEmptiable: (Int) -> Bool) -> Bool {
      for frame in empty.roles.indices where isEmptiable(frame) { empty.roles[frame] = .free }
      return empty.hasRun(count, constraints)
    }
    let best: RunCandidate
    switch search {
    case .never:
      return isThere { !initial[$0].isPermanent } ? "never, but there could be one" : nil
    case .found(let candidate):
      best = candidate
      if !isThere({ empty.roles[$0].isMovable }) { return "found, but there is none" }
    case .blocked(let candidate):
      best = candidate
      if isThere({ empty.roles[$0].isMovable }) { return "blocked, but there is one" }
    }
    let first = Int(best.run.first.rawValue)
    guard Int(best.run.count.rawValue) == count, model.allows(first, count, constraints) else {
      return "a candidate that breaks the constraints"
    }
    let frames = model.roles[first..<first + count]
    let free = frames.count { $0 == .free }
    let movable = frames.count { $0.isMovable }
    guard !frames.contains(where: { $0.isPermanent }), Int(best.free.rawValue) == free,
      Int(best.movable.rawValue) == movable, Int(best.unmovable.rawValue) == count - free - movable
    else { return "a candidate that is counted wrong" }
    return nil
  }
}

final class FrameAllocatorModelTests: XCTestCase {
  /// Drives a system with random requests; each answer is checked against the model.
  func history(
    _ system: FrameAllocatorFixture, seed: UInt64, operations: Int, largestRun: UInt64, checkEvery: Int
  ) {
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    var history = FrameHistory(system, seed: seed, largestRun: largestRun)
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

  func testSmallMachinesAgreeWithTheModel() throws {
    let maps: [[(UInt64, UInt64)]] = [
      [(0, 512)],
      [(256, 512)],
      [(300, 117), (430, 99), (512, 300), (1027, 5)],
      [(4096 - 300, 600)],  // around 16 MiB, where one list ends and another begins
      [(700, 100), (900, 333), (4000, 200)],
    ]
    for (i, frames) in maps.enumerated() {
      let system = try FrameAllocatorFixture(frames: frames)
      let isSmall = frames.allSatisfy { $0.0 < 2000 }
      history(
        system, seed: historySeed(UInt64(100 + i)), operations: isSmall ? 12_000 : 3000, largestRun: 200,
        checkEvery: 1
      )
    }
  }

  func testAMachineAcrossFourGibibytesAgreesWithTheModel() throws {
    let system = try FrameAllocatorFixture(frames: [((1 << 20) - 256, 512)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    let first = (1 << 20) - UInt32(100)
    let constraints = RunConstraints(
      low: PhysicalAddress(UInt64(first) << 12), high: PhysicalAddress(UInt64(first + 150) << 12))
    let run = try memory.allocate(run: PageCount(UInt64(150)), where: constraints, role: .wired)
    XCTAssertEqual(run.first.rawValue, first)
    system.check()
    memory.free(run)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testExtentsAcrossPageblocksAreFound() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 2600)])
    let memory = system.memory!
    for priority in [AllocationPriority.normal, .system] { try memory.setReserve(.zero, for: priority) }
    var frames = 0
    while (try? memory.allocate(Order(0), role: .slab)) != nil { frames += 1 }
    var model = Model(system)
    let number = historySeed(31)
    var random = SeededRandom(seed: number)
    for round in 0..<100 {
      var islands: [(Int, Int)] = []
      for _ in 0..<1 + random.below(3) {
        let count = 1 + Int(random.below(60))
        let first = 512 * (1 + Int(random.below(4))) - 30 + Int(random.below(60)) - count / 2
        guard model.roles[first..<first + count].allSatisfy({ $0 == .slab }) else { continue }
        memory.free(FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count)))
        model.set(first, count, .free)
        islands.append((first, count))
      }
      let longest = model.longestRun()
      XCTAssertEqual(Int(memory.longestFreeRun()?.count.rawValue ?? 0), longest, "round \(round)")
      for count in 1...longest + 1 {
        let constraints = RunConstraints(alignment: Alignment(4096 << random.below(3))!)
        let run = memory.freeRun(PageCount(count), where: constraints)
        let exists = model.hasRun(count, constraints)
        XCTAssertEqual(run != nil, exists, "\(count) frames, round \(round), STRATA_SEED=\(number)")
      }
      for (first, count) in islands {
        let at = PhysicalAddress(UInt64(first) << 12)
        _ = try memory.allocate(
          run: PageCount(count),
          where: RunConstraints(low: at, high: at + PageCount(count).bytes), role: .slab)
        model.set(first, count, .slab)
      }
    }
    system.check()
    XCTAssertEqual(memory.freeCount, .zero)
  }

  func testBlocksEndWhereAListEnds() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 3 << 18)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    XCTAssertEqual(memory.blocks(in: .below16MiB, of: Order(12)), 1)
    for high: UInt64 in [16 << 20, 64 << 20] {
      let run = try memory.allocate(
        run: PageCount(UInt64(3)), where: RunConstraints(high: PhysicalAddress(high)), role: .contiguous)
      system.check()
      memory.free(run)
      system.check()
    }
    // A run over the border, of two blocks in two lists.
    let constraints = RunConstraints(low: PhysicalAddress(0), high: PhysicalAddress(64 << 20))
    let run = try memory.allocate(run: PageCount(UInt64(16384)), where: constraints, role: .contiguous)
    XCTAssertEqual(run.first.rawValue, 0)
    system.check()
    memory.free(run)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testARunWhoseInnerBlockIsCutAtTheBorderIsFound() throws {
    // Every run of 16383 frames holds an aligned block of 8192, but at 0 that is two of 4096.
    let system = try FrameAllocatorFixture(frames: [(0, 16383), (16384, 600)])
    let memory = system.memory!
    try memory.setReserve(.zero, for: .normal)
    let run = try memory.allocate(run: PageCount(UInt64(16383)), role: .contiguous)
    XCTAssertEqual(run.first.rawValue, 0)
    system.check()
    memory.free(run)
    system.check()
  }

  func testAMediumMachineAgreesWithTheModel() throws {
    let system = try FrameAllocatorFixture(
      frames: [(0, 159), (256, 8000), (9000, 3000)],
      occupied: [(256, 342, .image), (5000, 2000, .bootModule)])
    history(system, seed: historySeed(7), operations: 30_000, largestRun: 3000, checkEvery: 100)
  }

  func testLargeRunsOfManyBlocksAreAllocated() throws {
    let system = try FrameAllocatorFixture(frames: [(256, (9 << 18) - 256)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    var random = SeededRandom(seed: historySeed(11))
    for _ in 0..<4 {
      var runs: [FrameRun] = []
      for _ in 0..<12 {
        let count = PageCount(1 + random.below(3 << 18))
        let constraints = RunConstraints(
          low: PhysicalAddress(random.below(4 << 30)), alignment: Alignment(4096 << random.below(12))!)
        guard
          let run = try? memory.allocate(run: count, where: constraints, role: .contiguous)
        else { continue }
        XCTAssertGreaterThanOrEqual(run.first.address, constraints.low)
        runs.append(run)
      }
      for run in runs {
        let part = random.below(run.count.rawValue)
        if part > 0 { memory.free(FrameRun(first: run.first, count: PageCount(part))) }
        memory.free(
          FrameRun(first: run.first + PageCount(part), count: run.count - PageCount(part)))
      }
      system.check()
    }
    XCTAssertEqual(FrameSnapshot(memory), before)
  }

  func testManyOperationsOnALargeMachineAgreeWithTheModel() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 159), (256, 1 << 18)])
    let memory = system.memory!
    let before = FrameSnapshot(memory)
    let number = historySeed(3)
    var random = SeededRandom(seed: number)
    var given: [FrameRun] = []
    for i in 0..<1_000_000 {
      if given.count < 3000 || random.oneIn(2) {
        let order = UInt8(min(9, random.next().trailingZeroBitCount))
        if let frame = try? memory.allocate(Order(order), role: random.oneIn(2) ? .slab : .pageable) {
          given.append(FrameRun(first: frame, count: Order(order).frames))
        }
      } else {
        let k = Int(random.below(UInt64(given.count)))
        memory.free(given[k])
        given[k] = given[given.count - 1]
        given.removeLast()
      }
      if i % 20_000 == 0, let broken = memory.checkInvariants() {
        return XCTFail("invariant \(broken), operation \(i), STRATA_SEED=\(number)")
      }
    }
    for run in given { memory.free(run) }
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }
}
