// Brute force over all starts of a run, in the model of pages.

import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport

@testable import ContiguousMemory

extension PageModel {
  private func isCaptured(_ frame: Int) -> Bool { isolations.contains { $0.1.contains(frame) } }

  /// The cost of emptying each frame; nil for one that can't be emptied.
  func cost(_ frame: Int) -> Int? {
    switch frames.roles[frame] {
    case .free: return 0
    case .pageable:
      guard let name = names[frame] else { return 8 }
      let page = pages[name]!
      return page.wires > 0 ? nil : page.isHeld ? 8 : 1
    default: return nil
    }
  }

  /// The least cost of a run that can be emptied, or nil.
  func cheapest(_ count: Int, _ where: RunConstraints, _ excluded: [FrameRun] = []) -> Int? {
    var best: Int?
    var sum = 0
    var length = 0
    let costs = frames.roles.indices.map { frame in
      excluded.contains { $0.contains(FrameNumber(UInt32(frame))) } ? nil : cost(frame)
    }
    for frame in costs.indices {
      guard let here = costs[frame] else {
        (length, sum) = (0, 0)
        continue
      }
      length += 1
      sum += here
      if length > count { sum -= costs[frame - count]! }
      if length >= count, frames.allows(frame - count + 1, count, `where`) { best = min(best ?? sum, sum) }
    }
    return best
  }

  func longestEmptiable() -> Int {
    var (best, length) = (0, 0)
    for frame in frames.roles.indices {
      length = cost(frame) == nil ? 0 : length + 1
      best = max(best, length)
    }
    return best
  }

  /// Whether a run could be emptied if every page and allocation were freed.
  func isPossible(_ count: Int, _ where: RunConstraints) -> Bool {
    var empty = frames
    for frame in initial.indices { empty.roles[frame] = initial[frame].isPermanent ? initial[frame] : .free }
    return empty.hasRun(count, `where`)
  }

  /// Returns the mistake in the result of a search, or nil.
  func mistake(
    in answer: RunSearch.Answer, _ count: Int, _ where: RunConstraints, _ excluded: [FrameRun], isExact: Bool
  ) -> String? {
    let least = cheapest(count, `where`, excluded)
    func check(_ candidate: RunCandidate) -> String? {
      let first = Int(candidate.run.first.rawValue)
      guard Int(candidate.run.count.rawValue) == count, frames.allows(first, count, `where`) else {
        return "a candidate that breaks the constraints"
      }
      let range = first..<first + count
      let free = range.filter { frames.roles[$0] == .free }.count
      let movable = range.filter { frames.roles[$0] != .free && cost($0) != nil }.count
      let dirty = range.filter { cost($0) != nil && names[$0] != nil && pages[names[$0]!]!.isDirty }.count
      guard candidate.free == PageCount(free), candidate.movable == PageCount(movable),
        candidate.unmovable == PageCount(count - free - movable)
      else { return "a candidate that is counted wrong" }
      if free + movable == count && candidate.dirty != PageCount(dirty) { return "its dirty pages" }
      return nil
    }
    switch answer {
    case .found(let candidate):
      guard let least else { return "found, but there is none" }
      if let mistake = check(candidate) { return mistake }
      let run = candidate.run
      if excluded.contains(where: { run.first < $0.end && $0.first < run.end }) {
        return "found what was excluded"
      }
      let first = Int(run.first.rawValue)
      let total = (first..<first + count).reduce(0) { $0 + (self.cost($1) ?? 1000) }
      if total < least { return "cheaper than the cheapest" }
      if isExact && total != least { return "costs \(total) instead of \(least)" }
    case .blocked(let candidate):
      if least != nil { return "blocked, but there is one" }
      if let mistake = check(candidate) { return mistake }
      // Every owner of a frame in the way, and its lowest frame, where all of them are kept.
      let first = Int(candidate.run.first.rawValue)
      let blockers = (first..<first + count).filter { cost($0) == nil && !isCaptured($0) }
      let owners = memory.owners(of: candidate.run, .unmovable)
      if owners.frames.rawValue != UInt64(blockers.count) { return "frames in the way" }
      if owners.count < 8,
        (0..<owners.count).map({ owners.list[$0]!.first.rawValue }).min()
          != blockers.first.map({ UInt32($0) })
      {
        return "the lowest frame in the way"
      }
    case .never: if isPossible(count, `where`) { return "never, but there could be one" }
    }
    return nil
  }
}
