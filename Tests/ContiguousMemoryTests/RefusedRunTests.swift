import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import XCTest

@testable import ContiguousMemory

/// After each run that is refused in a random history, the search finds a run to empty exactly if there is one.
final class RefusedRunTests: XCTestCase {
  private func history(
    _ system: FrameAllocatorFixture, seed: UInt64, operations: Int, largestRun: UInt64, checkEvery: Int
  ) {
    var refusals = 0
    FrameHistory.drive(
      system, seed: seed, operations: operations, largestRun: largestRun, checkEvery: checkEvery
    ) { history, count, constraints in
      refusals += 1
      // A run that is free, but not above the reserve, costs nothing to empty.
      return self.mistake(
        in: history.memory.candidate(run: PageCount(count), where: constraints), of: history, count,
        constraints)
    }
    XCTAssertGreaterThan(refusals, 0)
  }

  /// Returns the mistake in the result of a search for a run to be emptied, or nil.
  private func mistake(
    in search: RunSearch.Answer, of history: FrameHistory, _ count: Int, _ constraints: RunConstraints
  ) -> String? {
    let (model, initial) = (history.model, history.initial)
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

  func testSmallMachinesAgreeWithTheModel() throws {
    for (i, frames) in FrameHistory.smallMachines.enumerated() {
      let system = try FrameAllocatorFixture(frames: frames)
      let isSmall = frames.allSatisfy { $0.0 < 2000 }
      history(
        system, seed: historySeed(UInt64(100 + i)), operations: isSmall ? 12_000 : 3000, largestRun: 200,
        checkEvery: 100)
    }
  }

  func testAMediumMachineAgreesWithTheModel() throws {
    let system = try FrameAllocatorFixture(
      frames: [(0, 159), (256, 8000), (9000, 3000)],
      occupied: [(256, 342, .image), (5000, 2000, .bootModule)])
    history(system, seed: historySeed(7), operations: 30_000, largestRun: 3000, checkEvery: 1000)
  }
}
