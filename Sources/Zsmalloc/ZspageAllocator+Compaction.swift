// Compaction: objects are moved together, so that pages become free.
//
// First within a class: the objects of its emptiest zspage move into its fullest one, until one zspage with free
// slots is left; the objects of that one move to its lowest slots. Then across classes, from the smallest up: if the
// free slots of the next larger classes' last zspages hold objects of a class's last zspage, and fewer pages remain,
// they move there. Slots that are more than 1.6 times as large are not used, so an object never costs much more than
// its class.
//
// A step holds the lock for four objects. Others may store and free between two steps; each step looks again. A
// zspage with a reader is passed over, and tried again some time later: readers don't sleep.
//
// COST
//   Some 500 instructions and one copy for each object that moves, 20 steps for each class. At most two frames are
//   allocated, which hold objects until those that they have left become free.

import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// The result of a compaction.
public struct CompactionOutcome: Sendable {
  /// Objects that were moved.
  public var moved: UInt64 = 0
  /// Frames that are held less than before.
  public var freed = PageCount.zero
  /// Classes that were left as they are, because a reader did not end, or because no frame was free.
  public var leftAlone = 0
  /// Nothing moved.
  public init() {}
}

/// The answer of a step under the lock.
enum CompactionStep {
  /// So many objects were moved; there may be more.
  case moved(Int)
  case done
  /// A zspage has a reader.
  case pinned
  /// Objects can move only to pages without a frame: so many must be in the supply.
  case lacksFrames(Int)
}

/// The last zspage of a class whose objects move to larger classes.
struct CrossMove {
  /// Objects that are still to be moved.
  var objects: Int
  /// The class whose free slots hold the last of them.
  var lastClass: Int
}

extension ZspageAllocator {
  /// Moves objects together and frees the pages that become empty. When it has finished, and nothing was left alone,
  /// no class has two zspages with free slots. Sleeps never; other stores, frees and reads go on.
  @discardableResult public func compact() -> CompactionOutcome {
    var outcome = CompactionOutcome()
    var supply = ZspageSupply()
    var freed = 0
    for number in 0..<classes.count where number != classes.huge {
      run(&supply, &outcome, &freed) { lists, supply in lists.mergeStep(number, &supply) }
    }
    for number in 0..<classes.count where number != classes.huge {
      guard var move = lists.withLock({ $0.crossMove(from: number) }) else { continue }
      run(&supply, &outcome, &freed) { lists, supply in lists.crossStep(number, &move, &supply) }
    }
    release(&supply)
    releaseDescriptors()
    outcome.freed = PageCount(UInt64(max(0, freed)))
    lists.withLock { $0.counters.pointee.compactedFrames.add(outcome.freed.rawValue) }
    return outcome
  }

  /// Steps for one class: others may store and free as fast as it moves.
  private static var mostSteps: Int { 1 << 20 }

  /// Frees the frames of descriptors that no zspage has. A reader looks a descriptor up and pins it with interrupts
  /// off, so none looks at one that left the directory before every processor has answered. Not where processors
  /// can't be asked.
  func releaseDescriptors() {
    guard mayAskProcessors() else { return }
    while true {
      var unlinked = ZspageSupply()
      lists.withLock { $0.releaseDescriptors(&unlinked) }
      if unlinked.tables.count == 0 { return }
      for index in 0..<machine.processorCount {
        machine.run(on: ProcessorIndex(UInt32(index)), UnsafeMutableRawPointer(state)) { _ in }
      }
      release(&unlinked)
    }
  }

  /// Carries out steps until there is nothing more to do.
  private func run(
    _ supply: inout ZspageSupply, _ outcome: inout CompactionOutcome, _ freed: inout Int,
    _ step: (inout ZspageLists, inout ZspageSupply) -> CompactionStep
  ) {
    // A reader on this processor can't end while interrupts are off.
    let mostTries: UInt32 = mayAskProcessors() ? 100_000 : 100
    var tries: UInt32 = 0
    for _ in 0..<Self.mostSteps {
      let answer = lists.withLock { lists in
        let before = lists.counters.pointee.dataFrames.value
        let answer = step(&lists, &supply)
        freed += Int(Int64(bitPattern: before &- lists.counters.pointee.dataFrames.value))
        lists.countTables()
        return answer
      }
      while supply.freed.count > 0 { physical.free(FrameRun(first: supply.freed.pop(), count: .one)) }
      switch answer {
      case .done: return
      case .moved(let objects):
        outcome.moved += UInt64(objects)
        tries = 0
      case .pinned:
        tries += 1
        if tries > mostTries {
          outcome.leftAlone += 1
          return
        }
        cp_pause(tries)
      case .lacksFrames(let count):
        do throws(PhysicalMemoryError) {
          while supply.data.count < count {
            supply.data.push(
              try physical.allocateUnlogged(BlockOrder(0), role: .zspage, for: FrameOwner("Zsmalloc")))
          }
        } catch {
          outcome.leftAlone += 1
          return
        }
      }
    }
    outcome.leftAlone += 1
  }
}

extension ZspageLists {
  /// Objects that one hold of the lock moves.
  private static var objectsInStep: Int { 4 }

  // MARK: Within a class

  /// Moves objects of the emptiest zspage of a class to the fullest; or, where only one has free slots, to its lowest
  /// slots.
  mutating func mergeStep(_ number: Int, _ supply: inout ZspageSupply) -> CompactionStep {
    guard let (source, target) = sourceAndTarget(number) else { return .done }
    if source == target { return packStep(source, &supply) }
    return move(from: source, upTo: Self.objectsInStep, &supply) { _ in target }
  }

  /// The emptiest and the fullest zspage of a class that have free slots; twice the same if there is only one.
  private func sourceAndTarget(_ number: Int) -> (UInt32, UInt32)? {
    var (source, target) = (Self.none, Self.none)
    for group in 0..<FullnessGroup.listCount {
      let first = first(number, group)
      if first == Self.none { continue }
      if source == Self.none {
        source = first
        target = zspage(first).next == Self.none ? first : zspage(first).next
      } else {
        target = first
      }
    }
    return source == Self.none ? nil : (source, target)
  }

  /// Moves objects of one zspage from its highest slots to its lowest.
  private mutating func packStep(_ place: UInt32, _ supply: inout ZspageSupply) -> CompactionStep {
    let zspage = zspage(place)
    // Its objects are in the lowest slots.
    if zspage.occupied.highest < zspage.used { return .done }
    guard zspage.tryExclude() else { return .pinned }
    defer { zspage.admit() }
    var moved = 0
    while moved < Self.objectsInStep && zspage.occupied.highest >= zspage.used {
      let (from, to) = (zspage.occupied.highest, SlotSet(bits: ~zspage.occupied.bits).lowest)
      let frames = missingFrames(for: to, of: zspage)
      if frames > supply.data.count { return moved == 0 ? .lacksFrames(frames) : .moved(moved) }
      moveObject(from, of: zspage, place, to: to, of: zspage, place, &supply)
      moved += 1
    }
    return .moved(moved)
  }

  /// Moves objects from the highest slots of a zspage to free slots of those that `target` chooses, until there is no
  /// target.
  private mutating func move(
    from place: UInt32, upTo limit: Int, _ supply: inout ZspageSupply,
    to target: (borrowing ZspageLists) -> UInt32?
  ) -> CompactionStep {
    let zspage = zspage(place)
    guard zspage.tryExclude() else { return .pinned }
    // A descriptor that is freed keeps its pins, so readers are let in again in any case.
    defer { zspage.admit() }
    var moved = 0
    while moved < limit && zspage.sizeClass != nil {
      guard let chosen = target(self) else { break }
      let other = self.zspage(chosen)
      if other.group == .full { break }
      let (slot, _) = freeSlot(of: other)
      let frames = missingFrames(for: slot, of: other)
      if frames > supply.data.count { return moved == 0 ? .lacksFrames(frames) : .moved(moved) }
      moveObject(zspage.occupied.highest, of: zspage, place, to: slot, of: other, chosen, &supply)
      moved += 1
    }
    return moved == 0 ? .done : .moved(moved)
  }

  /// The pages of a slot that have no frame.
  private func missingFrames(for slot: Int, of zspage: Zspage) -> Int {
    var missing = 0
    for page in shape(of: zspage).pages(ofSlot: slot) where zspage.frame(page) == .none { missing += 1 }
    return missing
  }

  /// Moves an object to a free slot, which is not smaller than its own. The source is excluded.
  private mutating func moveObject(
    _ slot: Int, of zspage: Zspage, _ place: UInt32, to free: Int, of target: Zspage, _ targetPlace: UInt32,
    _ supply: inout ZspageSupply
  ) {
    let index = owner(of: slot, in: zspage)
    let from = shape(of: zspage)
    occupy(free, of: target, targetPlace, for: index, &supply)
    copy(slot, of: zspage, from, to: free, of: target)
    // Readers of the target are not excluded: they must not find the object before its bytes.
    publish(index, targetPlace, free)
    vacate(slot, of: zspage, place, &supply)
    counters.pointee.movedObjects.add()
  }

  /// Copies all of a slot behind its header, of which the object may have a part only.
  private func copy(_ slot: Int, of zspage: Zspage, _ from: ChainClass, to free: Int, of target: Zspage) {
    let to = shape(of: target)
    var (source, destination) = (
      slot * Int(from.slotSize) + ChainClasses.headerSize, free * Int(to.slotSize) + ChainClasses.headerSize
    )
    var left = Int(from.slotSize) - ChainClasses.headerSize
    let mask = Int(Page.size) - 1
    while left > 0 {
      let some = min(left, Int(Page.size) - max(source & mask, destination & mask))
      let bytes = directMap.pointer(to: zspage.frame(source >> Int(Page.shift))) + (source & mask)
      (directMap.pointer(to: target.frame(destination >> Int(Page.shift))) + (destination & mask))
        .copyMemory(from: bytes, byteCount: some)
      source += some
      destination += some
      left -= some
    }
  }

  // MARK: Across classes

  /// Plans a move of objects of a class's last zspage to free slots of larger classes: nil where it would free no
  /// page.
  func crossMove(from number: Int) -> CrossMove? {
    guard let (source, target) = sourceAndTarget(number), source == target else { return nil }
    let shape = classes[number]
    let used = zspage(source).used
    var best: CrossMove?
    var (mostFreed, moved, added) = (0, 0, 0)
    for larger in (number + 1)..<classes.count {
      let other = classes[larger]
      // 1.6 times as large.
      guard !other.isHuge, Int(other.slotSize) * 5 <= Int(shape.slotSize) * 8 else { break }
      guard let (last, same) = sourceAndTarget(larger), last == same else { continue }
      let there = zspage(last).used
      let some = min(Int(other.slots) - there, used - moved)
      moved += some
      added += other.pages(forSlots: there + some) - other.pages(forSlots: there)
      let freed = shape.pages(forSlots: used) - shape.pages(forSlots: used - moved) - added
      if freed > mostFreed { (mostFreed, best) = (freed, CrossMove(objects: moved, lastClass: larger)) }
      if moved == used { break }
    }
    return best
  }

  /// Carries out a part of a planned move.
  mutating func crossStep(
    _ number: Int, _ plan: inout CrossMove, _ supply: inout ZspageSupply
  ) -> CompactionStep {
    guard plan.objects > 0, let (source, target) = sourceAndTarget(number), source == target else {
      return .done
    }
    let last = plan.lastClass
    let step = move(from: source, upTo: min(plan.objects, Self.objectsInStep), &supply) { lists in
      for larger in (number + 1)...last {
        for group in stride(from: FullnessGroup.listCount - 1, through: 0, by: -1) {
          let first = lists.first(larger, group)
          if first != Self.none { return first }
        }
      }
      return nil
    }
    if case .moved(let objects) = step { plan.objects -= objects }
    return step
  }
}

extension ChainClass {
  /// The pages that the lowest `count` slots touch.
  fileprivate func pages(forSlots count: Int) -> Int {
    (count * Int(slotSize) + Int(Page.size) - 1) >> Int(Page.shift)
  }
}
