import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory

/// A machine full of pages, free frames and wired frames, denser here and there, and requests for runs of it.
private struct CandidateLandscape {
  private let model: PageModel
  private var memory: FrameAllocator { model.memory }
  private var top: Int { model.frames.roles.count }
  /// Requests for which a run was found, and those of them for which it was the cheapest.
  private(set) var searched = 0
  private(set) var best = 0

  init(_ frames: [(UInt64, UInt64)], _ random: inout SeededRandom) throws {
    model = try PageModel(FrameAllocatorFixture(frames: frames))
    for frame in fillWithPages(memory) {
      let number = Int(frame.rawValue)
      let name = PageName(owner: 1, index: memory.record(frame)!.index)
      model.take(number, 1, .pageable)
      model.pages[name] = ModelPage(frame: number)
      model.names[number] = name
      model.stamp(number, name)
    }
    scatter(&random)
  }

  /// Wires, frees, holds and dirties pages: so many of a thousand, another number in each pageblock.
  private func scatter(_ random: inout SeededRandom) {
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
  }

  /// Checks the landscape itself, and the answers to random requests. Returns the first mistake, or nil.
  mutating func check(_ random: inout SeededRandom) -> String? {
    if let wrong = model.check() ?? model.checkFrames() { return wrong }
    let isIdle = !model.pages.values.contains { $0.isHeld }
    for _ in 0..<100 {
      if let wrong = request(&random, isIdle: isIdle) { return wrong }
    }
    let longest = Int(memory.longestEmptiableRun()?.count.rawValue ?? 0)
    return longest == model.longestEmptiable() ? nil : "longest emptiable run: \(longest)"
  }

  /// Compares the answers to one request with brute force. Returns the mistake, or nil.
  private mutating func request(_ random: inout SeededRandom, isIdle: Bool) -> String? {
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
    if let wrong { return "\(wrong): \(count) \(constraints) without \(runs)" }
    memory.cacheFailedRequest(PageCount(count), constraints)
    let hasFailedRecently = memory.hasFailedRecently(PageCount(count), constraints)
    if hasFailedRecently
      != (model.cheapest(count, constraints) == nil && RunRequest(PageCount(count), constraints) != nil)
    {
      return "in the failed-request cache: \(hasFailedRecently), \(count) \(constraints)"
    }
    if case .found(let candidate) = answer {
      searched += 1
      let first = Int(candidate.run.first.rawValue)
      let cost = (first..<first + count).reduce(0) { $0 + model.cost($1)! }
      if cost == model.cheapest(count, constraints, runs) { best += 1 }
    }
    return nil
  }
}

/// Landscapes of pages, free frames and wired frames, denser here and there, and any request.
final class CandidateLandscapeTests: XCTestCase {
  func testASearchAgreesWithBruteForceOverAllStarts() throws {
    let seed = historySeed(71)
    var random = SeededRandom(seed: seed)
    var (searched, best) = (0, 0)
    let maps: [[(UInt64, UInt64)]] = [
      [(0, 159), (256, 5000)], [(512, 1024), (2048, 700), (2800, 2400)], [(4096 - 1200, 2900)],
      [(100, 3000), (3 << 15, 1500)],
    ]
    for round in 0..<24 {
      var landscape = try CandidateLandscape(maps[round % 4], &random)
      if let wrong = landscape.check(&random) {
        return XCTFail("\(wrong), round \(round), STRATA_SEED=\(seed)")
      }
      searched += landscape.searched
      best += landscape.best
    }
    print("\(best) of \(searched) candidates were the cheapest")
  }
}
