// A naive model of pages, isolations and candidates: the state of each frame, one by one, and brute force over all
// starts.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory

struct PageName: Hashable {
  var owner: UInt32
  var index: UInt64
}

/// A page that is in use.
struct ModelPage {
  var frame: Int
  var wires: UInt32 = 0
  var isHeld = false
  var isDirty = false
}

/// A system and what must be so of each of its frames.
final class PageModel {
  let system: FrameAllocatorFixture
  let memory: FrameAllocator
  var frames: Model
  var pages: [PageName: ModelPage] = [:]
  var names: [Int: PageName] = [:]
  var cached: [Int: PageName] = [:]
  /// Where a page was when its object gave it up: right or long wrong.
  var hints: [PageName: Int] = [:]
  var isolations: [(Isolation, Set<Int>)] = []
  private let initial: [FrameRole]

  init(_ system: FrameAllocatorFixture) throws {
    self.system = system
    memory = system.memory!
    frames = Model(system)
    initial = frames.roles
    for priority in [AllocationPriority.normal, .system] { try memory.setReserve(.zero, for: priority) }
  }

  private func words(_ frame: Int) -> UnsafeMutablePointer<UInt64> {
    system.host.machine.directMap.pointer(to: FrameNumber(UInt32(frame))).bindMemory(
      to: UInt64.self, capacity: 512)
  }

  func stamp(_ frame: Int, _ name: PageName) {
    for i in [0, 255, 511] { words(frame)[i] = UInt64(name.owner) << 32 | name.index << 10 | UInt64(i) }
  }

  func isStamped(_ frame: Int, _ name: PageName) -> Bool {
    [0, 255, 511].allSatisfy { words(frame)[$0] == UInt64(name.owner) << 32 | name.index << 10 | UInt64($0) }
  }

  /// Records that an owner has allocated these frames, and writes to them.
  func take(_ first: Int, _ count: Int, _ role: FrameRole) {
    frames.set(first, count, role)
    for frame in first..<first + count {
      cached[frame] = nil
      for i in [0, 255, 511] { words(frame)[i] = .max }
    }
  }

  /// Frames that became free: captured where an isolation has them.
  func give(_ first: Int, _ count: Int) {
    for frame in first..<first + count {
      frames.roles[frame] = .free
      for k in isolations.indices where isolations[k].0.run.contains(FrameNumber(UInt32(frame))) {
        frames.roles[frame] = .contiguous
        isolations[k].1.insert(frame)
        cached[frame] = nil
      }
    }
  }

  // MARK: Pages

  func record(_ frame: Int) -> FrameRecordPointer { memory.record(FrameNumber(UInt32(frame)))! }

  func makePage(_ name: PageName) throws {
    let frame = Int(try memory.allocate(Order(0), role: .pageable).rawValue)
    XCTAssertEqual(frames.roles[frame], .free)
    take(frame, 1, .pageable)
    let record = record(frame)
    record.owner = name.owner
    record.index = name.index
    record.pageFlags = .valid
    record.busyWord = .none
    pages[name] = ModelPage(frame: frame)
    names[frame] = name
    hints[name] = nil
    stamp(frame, name)
  }

  func wire(_ name: PageName) {
    let record = record(pages[name]!.frame)
    record.busyWord = BusyWord(rawValue: record.busyWord.rawValue + 1)
    pages[name]!.wires += 1
    if pages[name]!.wires == 1 { memory.setMobility(of: FrameNumber(UInt32(pages[name]!.frame)), .unmovable) }
  }

  func unwire(_ name: PageName) {
    let record = record(pages[name]!.frame)
    record.busyWord = BusyWord(rawValue: record.busyWord.rawValue - 1)
    pages[name]!.wires -= 1
    if pages[name]!.wires == 0 { memory.setMobility(of: FrameNumber(UInt32(pages[name]!.frame)), .movable) }
  }

  func toggleHold(_ name: PageName) {
    let record = record(pages[name]!.frame)
    record.busyWord = BusyWord(rawValue: record.busyWord.rawValue ^ 1 << 12)
    pages[name]!.isHeld.toggle()
  }

  func toggleDirty(_ name: PageName) {
    let frame = FrameNumber(UInt32(pages[name]!.frame))
    let record = memory.record(frame)!
    pages[name]!.isDirty.toggle()
    if pages[name]!.isDirty {
      record.pageFlags.insert(.dirty)
      memory.countDirty(frame)
    } else {
      record.pageFlags.remove(.dirty)
      memory.countClean(frame)
    }
  }

  /// Makes the page one that can be freed, and frees it.
  func freePage(_ name: PageName, _ keeping: PageIdentity) {
    if pages[name]!.isDirty { toggleDirty(name) }
    if pages[name]!.isHeld { toggleHold(name) }
    while pages[name]!.wires > 0 { unwire(name) }
    let frame = pages[name]!.frame
    XCTAssertTrue(record(frame).exchangeBusyWord(.none, for: .xbusy))
    memory.free(page: FrameNumber(UInt32(frame)), keeping)
    pages[name] = nil
    names[frame] = nil
    if keeping == .cached {
      cached[frame] = name
      hints[name] = frame
    }
    give(frame, 1)
  }

  /// Whether the answer is right.
  func reactivate(_ name: PageName, at frame: Int) -> Bool {
    let isCached = cached[frame] == name
    let answer = memory.reactivate(
      FrameNumber(UInt32(frame)), owner: name.owner, index: name.index, priority: .normal)
    guard isCached else { return answer == .gone }
    guard answer == .taken, isStamped(frame, name) else { return false }
    let record = record(frame)
    guard record.role == .pageable, record.busyWord == .xbusy, record.pageFlags == .valid,
      record.owner == name.owner, record.index == name.index, record.queue == .none
    else { return false }
    record.busyWord = .none
    cached[frame] = nil
    frames.roles[frame] = .pageable
    pages[name] = ModelPage(frame: frame)
    names[frame] = name
    hints[name] = nil
    return true
  }

  // MARK: Isolations

  func isolate(_ first: Int, _ count: Int) throws(PhysicalMemoryError) {
    let isolation = try memory.isolate(
      FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count)), priority: .normal)
    isolations.append((isolation, []))
    for frame in first..<first + count where frames.roles[frame] == .free { give(frame, 1) }
  }

  func abandon(_ k: Int) {
    let (isolation, captured) = isolations.remove(at: k)
    memory.abandon(isolation)
    for frame in captured { frames.roles[frame] = .free }
  }

  /// The run, if it is complete; nothing happens otherwise.
  func finish(_ k: Int) -> FrameRun? {
    let (isolation, captured) = isolations[k]
    let run = memory.finish(isolation)
    if run != nil { isolations.remove(at: k) }
    XCTAssertEqual(run != nil, captured.count == Int(isolation.run.count.rawValue))
    return run
  }

  // MARK: Brute force

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

  /// Whether a run could ever be had.
  func isPossible(_ count: Int, _ where: RunConstraints) -> Bool {
    var empty = frames
    for frame in initial.indices { empty.roles[frame] = initial[frame].isPermanent ? initial[frame] : .free }
    return empty.hasRun(count, `where`)
  }

  /// Returns the mistake in the result of a search, or nil.
  func mistake(
    in answer: RunSearch, _ count: Int, _ where: RunConstraints, _ excluded: [FrameRun], isExact: Bool
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
      let owners = memory.owners(of: candidate.run, .fixed)
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

  /// Returns the mistake in the state of the system, or nil.
  func check() -> String? {
    if let broken = memory.checkInvariants() { return "invariant \(broken)" }
    if memory.cachedCount != PageCount(cached.count) { return "count of cached pages" }
    if memory.freeCount.rawValue != frames.free { return "count of free frames" }
    for (isolation, captured) in isolations where memory.capturedCount(isolation) != PageCount(captured.count)
    {
      return "count of captured frames"
    }
    return nil
  }

  /// The slow part of the check: each frame.
  func checkFrames() -> String? {
    if system.roles != frames.roles { return "roles" }
    for (name, page) in pages where !isStamped(page.frame, name) { return "contents of a page" }
    for (frame, name) in cached {
      let description = memory.whatIs(FrameNumber(UInt32(frame)))
      if description.pageFlags != .cached || description.owner != name.owner
        || description.index != name.index
        || !isStamped(frame, name)
      {
        return "a cached page"
      }
    }
    for (isolation, captured) in isolations {
      for frame in frames.roles.indices
      where memory.isCaptured(FrameNumber(UInt32(frame)), isolation) != captured.contains(frame) {
        return "a captured frame"
      }
    }
    return nil
  }
}

extension SeededRandom {
  /// Any request for a run, `top` frames of memory.
  mutating func constraints(_ top: Int) -> RunConstraints {
    var constraints = RunConstraints()
    if oneIn(2) { constraints.alignment = Alignment(4096 << below(12))! }
    if oneIn(3) { constraints.boundary = Alignment(4096 << below(13))! }
    if oneIn(3) { constraints.low = PhysicalAddress(below(UInt64(top) << 12)) }
    if oneIn(3) { constraints.high = PhysicalAddress(below(UInt64(top) << 12)) }
    return constraints
  }

  mutating func length(_ top: Int) -> Int {
    let choices: [UInt64] = [
      1 + below(4), 1 + below(40), 1 + below(600), 512, 512 * (1 + below(4)), 1 + below(UInt64(top)),
    ]
    return Int(choices[Int(below(6))])
  }
}
