import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory

/// Searches take no lock, and another processor allocates and frees at the same time.
final class SearchThreadsTests: XCTestCase {
  func testSearchesBesideAnotherThreadStayInMemory() throws {
    let system = try FrameAllocatorFixture(frames: [(256, 6000)], processors: 2)
    let before = FrameSnapshot(system.memory)
    let memory = system.memory!
    let seed = historySeed(64)
    nonisolated(unsafe) var found = 0
    system.host.onThreads(2) { processor in
      if processor == 1 { return hammer(memory, seed &+ 1, 30_000, .normal) }
      var random = SeededRandom(seed: seed)
      for _ in 0..<2000 {
        let first = FrameNumber(256 + UInt32(random.below(5000)))
        let run = FrameRun(first: first, count: PageCount(1 + random.below(700)))
        guard let isolation = try? memory.isolated(run, priority: .normal) else { continue }
        let count = PageCount(1 + random.below(700))
        if case .found(let candidate) = memory.candidate(run: count) {
          found += 1
          if candidate.run.count != count || candidate.run.first.rawValue < 256
            || candidate.run.end.rawValue > 6256
          {
            XCTFail("a candidate outside of memory")
          }
        }
        if let longest = memory.longestEmptiableRun(), longest.end.rawValue > 6256 {
          XCTFail("a run outside of memory")
        }
        memory.abandon(isolation)
      }
    }
    XCTAssertGreaterThan(found, 0)
    system.check()
    XCTAssertEqual(FrameSnapshot(memory), before)
  }
}
