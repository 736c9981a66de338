// Random histories of pages and isolations, with searches for runs and lookups of failed requests among them.

import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory

/// The searches in a history. A method returns the mistake that it has found, or nil.
private final class RunSearchHistory {
  let pages: PageHistory
  let memory: FrameAllocator
  let top: Int
  var random: SeededRandom
  var wanted: [(Int, RunConstraints)]
  var (asked, refused, searched, best) = (0, 0, 0, 0)

  init(_ pages: PageHistory, seed: UInt64) {
    (self.pages, memory, top) = (pages, pages.memory, pages.top)
    var random = SeededRandom(seed: seed)
    let top = pages.top
    wanted = (0..<12).map { _ in (random.length(top), random.constraints(top)) }
    wanted += [
      (512, RunConstraints(alignment: Alignment(2 << 20)!)), (16, RunConstraints()), (300, RunConstraints()),
    ]
    self.random = random
  }

  func search() -> String? {
    let (count, constraints) =
      random.oneIn(3)
      ? wanted[Int(random.below(UInt64(wanted.count)))] : (random.length(top), random.constraints(top))
    var runs: [FrameRun] = []
    var excluding = ExcludedRuns()
    while random.oneIn(2) && runs.count < 4 {
      let first = random.below(UInt64(top))
      let run = FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(1 + random.below(800)))
      runs.append(run)
      excluding.add(run)
    }
    let model = pages.model
    let isOfPageblocks = count % 512 == 0 && constraints.alignment.rawValue >= 2 << 20
    let isIdle = !model.pages.values.contains { $0.isHeld }
    let answer = memory.candidate(run: PageCount(count), where: constraints, excluding: excluding)
    if let wrong = model.mistake(in: answer, count, constraints, runs, isExact: isOfPageblocks && isIdle) {
      return "\(wrong): \(count) \(constraints) without \(runs)"
    }
    if case .found(let candidate) = answer {
      searched += 1
      let first = Int(candidate.run.first.rawValue)
      let cost = (first..<first + count).reduce(0) { $0 + model.cost($1)! }
      if cost == model.cheapest(count, constraints, runs) { best += 1 }
    }
    let longest = Int(memory.longestEmptiableRun()?.count.rawValue ?? 0)
    return longest != model.longestEmptiable() ? "the longest run that could be emptied" : nil
  }

  /// Looks requests up in the failed-request cache, and enters one.
  func lookUp() -> String? {
    let model = pages.model
    for (count, constraints) in wanted {
      let isPossible = model.cheapest(count, constraints) != nil
      let hasFailedRecently = memory.hasFailedRecently(PageCount(count), constraints)
      if isPossible && hasFailedRecently { return "cached as failed: \(count) \(constraints)" }
      if !isPossible {
        asked += 1
        if hasFailedRecently { refused += 1 }
      }
    }
    let (count, constraints) = wanted[Int(random.below(UInt64(wanted.count)))]
    memory.cacheFailedRequest(PageCount(count), constraints)
    let isPossible = model.cheapest(count, constraints) != nil
    let isRequest = RunRequest(PageCount(count), constraints) != nil
    if memory.hasFailedRecently(PageCount(count), constraints) != (isRequest && !isPossible) {
      return "entered in the failed-request cache, or not: \(count) \(constraints)"
    }
    return nil
  }
}

final class RunSearchHistoryTests: XCTestCase {
  /// Drives a system with random operations. One operation in `searches` is followed by a search, one in `lookups` by
  /// lookups in the failed-request cache; each answer is checked.
  private func drive(
    _ frames: [(UInt64, UInt64)], seed: UInt64, operations: Int, searches: UInt64, lookups: UInt64
  ) throws {
    var history: RunSearchHistory?
    try PageHistory.drive(frames, seed: seed, operations: operations) { pages in
      let here = history ?? RunSearchHistory(pages, seed: seed &+ 1)
      history = here
      var wrong: String?
      if here.random.oneIn(searches) { wrong = here.search() }
      if wrong == nil && here.random.oneIn(lookups) { wrong = here.lookUp() }
      return wrong
    }
    let end = try XCTUnwrap(history)
    XCTAssertGreaterThan(end.best, 0)
    XCTAssertGreaterThan(end.refused, 0, "the cache refused nothing")
    print("\(end.best) of \(end.searched) candidates were the cheapest")
    print("\(end.refused) of \(end.asked) failed requests were refused by the cache")
  }

  func testSmallMachinesAgreeWithTheModel() throws {
    for (i, frames) in PageHistory.smallMachines.enumerated() {
      let isSmall = frames.allSatisfy { $0.0 + $0.1 < 3000 }
      try drive(
        frames, seed: historySeed(UInt64(300 + i)), operations: isSmall ? 4000 : 1500, searches: 6, lookups: 4
      )
    }
  }

  func testManySearchesAgreeWithTheModel() throws {
    for i in 0..<3 {
      try drive(
        [(256, 900), (1536, 2100), (4300, 77)], seed: historySeed(UInt64(400 + i)), operations: 1200,
        searches: 1, lookups: 50)
    }
  }
}
