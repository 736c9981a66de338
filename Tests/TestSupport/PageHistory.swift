// Random histories of pages, isolations, blocks and runs beside the naive model.

import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

/// A system driven by random operations beside its model. A method returns the mistake that it has found, or nil.
package final class PageHistory {
  package let system: FrameAllocatorFixture
  package let model: PageModel
  package let memory: FrameAllocator
  package let top: Int
  package var random: SeededRandom
  package var given: [(Int, Int)] = []
  package var fullness = 3

  /// Memory maps of small machines.
  package static var smallMachines: [[(UInt64, UInt64)]] {
    [
      [(0, 700)],
      [(256, 1900)],
      [(300, 117), (430, 99), (512, 300), (1027, 5)],
      [(4096 - 700, 1500)],  // around 16 MiB
      [(700, 100), (900, 1333), (4000, 900)],
      [(512, 2048), (3 << 15, 3000)],
    ]
  }

  package init(_ frames: [(UInt64, UInt64)], seed: UInt64) throws {
    random = SeededRandom(seed: seed)
    system = try FrameAllocatorFixture(frames: frames)
    model = try PageModel(system)
    memory = model.memory
    top = model.frames.roles.count
  }

  /// One random operation.
  package func step() throws -> String? {
    switch random.below(24) {
    case 0...5: return addPage()
    case 6...8: changePage()
    case 9...12:
      guard random.below(8) >= UInt64(fullness) || random.oneIn(3), let name = pick() else { return nil }
      model.freePage(name, random.oneIn(3) ? .dropped : .cached)
    case 13: return reactivatePage()
    case 14: return discardPage()
    case 15...16: return allocateBlock()
    case 17: return allocateRun()
    case 18: return allocateFrame()
    case 19...20: freeFrames()
    case 21: return isolate()
    case 22: endIsolation()
    default: if random.oneIn(100) { fullness = Int(random.below(9)) }
    }
    return nil
  }

  // MARK: Pages

  private func pick() -> PageName? {
    guard !model.pages.isEmpty else { return nil }
    // Dictionaries have no order that a seed repeats.
    while true {
      let frame = Int(random.below(UInt64(top)))
      for at in frame..<top { if let name = model.names[at] { return name } }
    }
  }

  private func randomName() -> PageName {
    PageName(owner: 1 + UInt32(random.below(5)), index: random.below(2000))
  }

  private func addPage() -> String? {
    guard random.below(8) < UInt64(fullness) else { return nil }
    let name = randomName()
    guard model.pages[name] == nil else { return nil }
    if let hint = model.hints[name], random.oneIn(2) {
      if !model.reactivate(name, at: hint) { return "reactivate" }
      if model.pages[name] != nil { return nil }
    }
    do { try model.makePage(name) } catch {
      if model.frames.free > 0 { return "a page was refused" }
    }
    return nil
  }

  private func changePage() {
    guard let name = pick() else { return }
    switch random.below(5) {
    case 0: model.wire(name)
    case 1: if model.pages[name]!.wires > 0 { model.unwire(name) }
    case 2: model.toggleHold(name)
    default: model.toggleDirty(name)
    }
  }

  private func reactivatePage() -> String? {
    // A hint that is right, or any.
    let frame = Int(random.below(UInt64(top)))
    let name = model.cached[frame] ?? randomName()
    guard model.pages[name] == nil else { return nil }
    return model.reactivate(name, at: frame) ? nil : "reactivate"
  }

  private func discardPage() -> String? {
    let frame = Int(random.below(UInt64(top)))
    guard let name = model.cached[frame] else { return nil }
    let other = PageName(owner: name.owner, index: name.index + 1)
    for (name, goes) in [(other, false), (name, true)] {
      memory.discard(cached: FrameNumber(UInt32(frame)), owner: name.owner, index: name.index)
      if goes { model.cached[frame] = nil }
      if memory.cachedCount != PageCount(model.cached.count) { return "discard" }
    }
    return nil
  }

  // MARK: Frames

  private func allocateBlock() -> String? {
    guard random.below(8) < UInt64(fullness) else { return nil }
    let order = Int(random.below(random.oneIn(4) ? 10 : 3))
    guard let frame = try? memory.allocate(BlockOrder(UInt8(order)), role: .slab) else {
      return model.frames.hasBlock(order) ? "a block was refused" : nil
    }
    if !model.frames.isFree(Int(frame.rawValue), 1 << order) { return "a block that is not free" }
    model.take(Int(frame.rawValue), 1 << order, .slab)
    given.append((Int(frame.rawValue), 1 << order))
    return nil
  }

  private func allocateRun() -> String? {
    let count = 1 + Int(random.below(60))
    let constraints = random.constraints(top)
    guard let run = try? memory.allocate(run: PageCount(count), where: constraints, role: .wired) else {
      return model.frames.hasRun(count, constraints) ? "a run was refused" : nil
    }
    if !model.frames.isFree(Int(run.first.rawValue), count) { return "a run that is not free" }
    model.take(Int(run.first.rawValue), count, .wired)
    given.append((Int(run.first.rawValue), count))
    return nil
  }

  private func allocateFrame() -> String? {
    let frame = Int(random.below(UInt64(top)))
    let isFree = model.frames.roles[frame] == .free
    let isGiven = (try? memory.allocate(frame: FrameNumber(UInt32(frame)), role: .wired)) != nil
    if isFree != isGiven { return "a given frame" }
    if isGiven {
      model.take(frame, 1, .wired)
      given.append((frame, 1))
    }
    return nil
  }

  private func freeFrames() {
    guard !given.isEmpty else { return }
    let k = Int(random.below(UInt64(given.count)))
    let (first, count) = given[k]
    let from = random.oneIn(2) ? 0 : Int(random.below(UInt64(count)))
    let to = random.oneIn(2) ? count : from + 1 + Int(random.below(UInt64(count - from)))
    memory.free(FrameRun(first: FrameNumber(UInt32(first + from)), count: PageCount(to - from)))
    model.give(first + from, to - from)
    given[k] = given[given.count - 1]
    given.removeLast()
    if from > 0 { given.append((first, from)) }
    if to < count { given.append((first + to, count - to)) }
  }

  // MARK: Isolations

  private func isolate() -> String? {
    let count = min(random.length(top), 1100)
    let first = Int(random.below(UInt64(top)))
    let run = FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count))
    let isMemory =
      first + count <= top
      && (first..<first + count).allSatisfy { !model.frames.roles[$0].isPermanent }
    let overlaps = model.isolations.contains { run.first < $0.0.run.end && $0.0.run.first < run.end }
    do throws(PhysicalMemoryError) {
      try model.isolate(first, count)
      if !isMemory || overlaps || model.isolations.count > 4 { return "isolated" }
    } catch {
      let expected: PhysicalMemoryError = !isMemory ? .outsideMemory : overlaps ? .notFree : .noMemory
      if error != expected && !(overlaps && model.isolations.count == 4 && error == .noMemory) {
        return "not isolated: \(error)"
      }
      if error == .noMemory && model.isolations.count < 4 { return "not isolated" }
    }
    return nil
  }

  private func endIsolation() {
    guard !model.isolations.isEmpty else { return }
    let k = Int(random.below(UInt64(model.isolations.count)))
    // Empty it the rest of the way, now and then.
    if random.oneIn(2) {
      let run = model.isolations[k].0.run
      for frame in Int(run.first.rawValue)..<Int(run.end.rawValue) {
        if let name = model.names[frame] { model.freePage(name, random.oneIn(2) ? .dropped : .cached) }
      }
    }
    if let run = model.finish(k) {
      given.append((Int(run.first.rawValue), Int(run.count.rawValue)))
    } else if random.oneIn(2) {
      model.abandon(k)
    }
  }

  package func freeAll() {
    while !model.isolations.isEmpty { model.abandon(0) }
    for (first, count) in given {
      memory.free(FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(count)))
    }
    for name in model.pages.keys { model.freePage(name, .dropped) }
    for (frame, name) in model.cached {
      memory.discard(cached: FrameNumber(UInt32(frame)), owner: name.owner, index: name.index)
    }
  }

  /// Drives a system with random operations; each answer and the state after it are checked. `after` returns the mistake
  /// of a further check after each operation, or nil.
  package static func drive(
    _ frames: [(UInt64, UInt64)], seed: UInt64, operations: Int,
    after: (PageHistory) -> String? = { _ in nil }
  ) throws {
    let history = try PageHistory(frames, seed: seed)
    let (memory, model) = (history.memory, history.model)
    let before = FrameSnapshot(memory)
    for i in 0..<operations {
      var wrong = try history.step() ?? model.check()
      if wrong == nil && i % 200 == 0 { wrong = model.checkFrames() }
      if let wrong = wrong ?? after(history) {
        return XCTFail("\(wrong), operation \(i), STRATA_SEED=\(seed)")
      }
    }
    history.freeAll()
    XCTAssertEqual(memory.cachedCount, .zero)
    history.system.check()
    XCTAssertEqual(FrameSnapshot(memory), before, "STRATA_SEED=\(seed)")
  }
}
