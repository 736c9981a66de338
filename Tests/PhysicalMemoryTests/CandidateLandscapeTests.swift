import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

/// Landscapes of pages, free frames and wired frames, denser here and there, and any request.
final class CandidateLandscapeTests: XCTestCase {
  func testASearchAgreesWithBruteForceOverAllStarts() throws {
    let seed = historySeed(71)
    var random = SeededRandom(seed: seed)
    var (searched, best) = (0, 0)
    for round in 0..<24 {
      let maps: [[(UInt64, UInt64)]] = [
        [(0, 159), (256, 5000)], [(512, 1024), (2048, 700), (2800, 2400)], [(4096 - 1200, 2900)],
        [(100, 3000), (3 << 15, 1500)],
      ]
      let model = try PageModel(FrameAllocatorFixture(frames: maps[round % 4]))
      let memory = model.memory
      let top = model.frames.roles.count
      for frame in fillWithPages(memory) {
        let number = Int(frame.rawValue)
        let name = PageName(owner: 1, index: memory.record(frame)!.index)
        model.take(number, 1, .pageable)
        model.pages[name] = ModelPage(frame: number)
        model.names[number] = name
        model.stamp(number, name)
      }
      // How each pageblock is used: of a thousand frames so many are wired, free, held and dirty.
      var pageblock = -1
      var densities: [UInt64] = []
      for frame in 0..<top {
        if frame >> 9 != pageblock {
          pageblock = frame >> 9
          densities = [
            [0, 0, 0, 1, 3, 20, 400][Int(random.below(7))], [0, 0, 10, 300, 900][Int(random.below(5))],
            [0, 0, 0, 5, 200][Int(random.below(5))], [0, 0, 500, 1000][Int(random.below(4))],
          ]
        }
        guard let name = model.names[frame] else { continue }
        if random.below(1000) < densities[3] { model.toggleDirty(name) }
        if random.below(1000) < densities[0] {
          model.wire(name)
        } else if random.below(1000) < densities[2] {
          model.toggleHold(name)
        } else if random.below(1000) < densities[1] {
          model.freePage(name, random.oneIn(2) ? .cached : .dropped)
        }
      }
      if let wrong = model.check() ?? model.checkFrames() { return XCTFail("\(wrong), STRATA_SEED=\(seed)") }
      let isIdle = !model.pages.values.contains { $0.isHeld }
      for _ in 0..<100 {
        let count = random.length(top)
        let constraints = random.constraints(top)
        var runs: [FrameRun] = []
        var excluding = ExcludedRuns()
        while random.oneIn(2) && runs.count < 4 {
          let run = FrameRun(
            first: FrameNumber(UInt32(random.below(UInt64(top)))), count: PageCount(1 + random.below(1500)))
          runs.append(run)
          excluding.add(run)
        }
        let isOfPageblocks = count % 512 == 0 && constraints.alignment.rawValue >= 2 << 20
        let answer = memory.candidate(run: PageCount(count), where: constraints, excluding: excluding)
        let wrong = model.mistake(in: answer, count, constraints, runs, isExact: isOfPageblocks && isIdle)
        if let wrong {
          return XCTFail(
            "\(wrong): \(count) \(constraints) without \(runs), round \(round), STRATA_SEED=\(seed)")
        }
        memory.cacheFailedRequest(PageCount(count), constraints)
        let hasFailedRecently = memory.hasFailedRecently(PageCount(count), constraints)
        if hasFailedRecently
          != (model.cheapest(count, constraints) == nil && RunRequest(PageCount(count), constraints) != nil)
        {
          return XCTFail(
            "in the failed-request cache: \(hasFailedRecently), \(count) \(constraints), STRATA_SEED=\(seed)")
        }
        if case .found(let candidate) = answer {
          searched += 1
          let first = Int(candidate.run.first.rawValue)
          let cost = (first..<first + count).reduce(0) { $0 + model.cost($1)! }
          if cost == model.cheapest(count, constraints, runs) { best += 1 }
        }
      }
      XCTAssertEqual(Int(memory.longestEmptiableRun()?.count.rawValue ?? 0), model.longestEmptiable())
    }
    print("\(best) of \(searched) candidates were the cheapest")
  }
}
