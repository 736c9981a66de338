// A naive model of pages and isolations: the state of each frame, one by one.

import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

package struct PageName: Hashable {
  package var owner: UInt32
  package var index: UInt64

  package init(owner: UInt32, index: UInt64) { (self.owner, self.index) = (owner, index) }
}

/// A page that is in use.
package struct ModelPage {
  package var frame: Int
  package var wires: UInt32 = 0
  package var isHeld = false
  package var isDirty = false

  package init(frame: Int) { self.frame = frame }
}

/// A system and what must be so of each of its frames.
package final class PageModel {
  package let system: FrameAllocatorFixture
  package let memory: FrameAllocator
  package var frames: FrameModel
  package var pages: [PageName: ModelPage] = [:]
  package var names: [Int: PageName] = [:]
  package var cached: [Int: PageName] = [:]
  /// Where a page was when its object freed it: right or long wrong.
  package var hints: [PageName: Int] = [:]
  package var isolations: [(TestIsolation, Set<Int>)] = []
  package let initial: [FrameRole]

  package init(_ system: FrameAllocatorFixture) throws {
    self.system = system
    memory = system.memory!
    frames = FrameModel(system)
    initial = frames.roles
    for priority in [AllocationPriority.normal, .system] { try memory.setReserve(.zero, for: priority) }
  }

  private func words(_ frame: Int) -> UnsafeMutablePointer<UInt64> {
    system.host.machine.directMap.pointer(to: FrameNumber(UInt32(frame))).bindMemory(
      to: UInt64.self, capacity: 512)
  }

  package func stamp(_ frame: Int, _ name: PageName) {
    for i in [0, 255, 511] { words(frame)[i] = UInt64(name.owner) << 32 | name.index << 10 | UInt64(i) }
  }

  package func isStamped(_ frame: Int, _ name: PageName) -> Bool {
    [0, 255, 511].allSatisfy { words(frame)[$0] == UInt64(name.owner) << 32 | name.index << 10 | UInt64($0) }
  }

  /// The test has allocated these frames, and writes on them.
  package func take(_ first: Int, _ count: Int, _ role: FrameRole) {
    frames.set(first, count, role)
    for frame in first..<first + count {
      cached[frame] = nil
      for i in [0, 255, 511] { words(frame)[i] = .max }
    }
  }

  /// Frames that became free: captured where an isolation has them.
  package func give(_ first: Int, _ count: Int) {
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

  package func record(_ frame: Int) -> FrameRecordPointer { memory.record(FrameNumber(UInt32(frame)))! }

  package func makePage(_ name: PageName) throws {
    let frame = Int(try memory.allocate(BlockOrder(0), role: .pageable).rawValue)
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

  package func wire(_ name: PageName) {
    let record = record(pages[name]!.frame)
    record.busyWord = BusyWord(rawValue: record.busyWord.rawValue + 1)
    pages[name]!.wires += 1
    if pages[name]!.wires == 1 { memory.setMobility(of: FrameNumber(UInt32(pages[name]!.frame)), .unmovable) }
  }

  package func unwire(_ name: PageName) {
    let record = record(pages[name]!.frame)
    record.busyWord = BusyWord(rawValue: record.busyWord.rawValue - 1)
    pages[name]!.wires -= 1
    if pages[name]!.wires == 0 { memory.setMobility(of: FrameNumber(UInt32(pages[name]!.frame)), .movable) }
  }

  package func toggleHold(_ name: PageName) {
    let record = record(pages[name]!.frame)
    record.busyWord = BusyWord(rawValue: record.busyWord.rawValue ^ 1 << 12)
    pages[name]!.isHeld.toggle()
  }

  package func toggleDirty(_ name: PageName) {
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
  package func freePage(_ name: PageName, _ keeping: PageIdentity) {
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
  package func reactivate(_ name: PageName, at frame: Int) -> Bool {
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

  package func isolate(_ first: Int, _ count: Int) throws(PhysicalMemoryError) {
    let isolation = try memory.isolated(
      FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count)), priority: .normal)
    isolations.append((isolation, []))
    for frame in first..<first + count where frames.roles[frame] == .free { give(frame, 1) }
  }

  package func abandon(_ k: Int) {
    let (isolation, captured) = isolations.remove(at: k)
    memory.abandon(isolation)
    for frame in captured { frames.roles[frame] = .free }
  }

  /// The run, if it is complete; nothing happens otherwise.
  package func finish(_ k: Int) -> FrameRun? {
    let (isolation, captured) = isolations[k]
    let run = memory.finish(isolation)
    if run != nil { isolations.remove(at: k) }
    XCTAssertEqual(run != nil, captured.count == Int(isolation.run.count.rawValue))
    return run
  }

  /// Returns the mistake in the state of the system, or nil.
  package func check() -> String? {
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
  package func checkFrames() -> String? {
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
  package mutating func constraints(_ top: Int) -> RunConstraints {
    var constraints = RunConstraints()
    if oneIn(2) { constraints.alignment = Alignment(4096 << below(12))! }
    if oneIn(3) { constraints.boundary = Alignment(4096 << below(13))! }
    if oneIn(3) { constraints.low = PhysicalAddress(below(UInt64(top) << 12)) }
    if oneIn(3) { constraints.high = PhysicalAddress(below(UInt64(top) << 12)) }
    return constraints
  }

  package mutating func length(_ top: Int) -> Int {
    let choices: [UInt64] = [
      1 + below(4), 1 + below(40), 1 + below(600), 512, 512 * (1 + below(4)), 1 + below(UInt64(top)),
    ]
    return Int(choices[Int(below(6))])
  }
}
