// Emptying: drains, trims, and switching a set off and on.

import CPlatform
import MemoryPrimitives
import Synchronization

extension MagazineSet {
  /// Removes every word from every processor's magazines and the depot, and passes each to `body`, which runs with
  /// interrupts as they were and no lock. Words that other processors push during the drain may stay.
  /// Asks every processor; call it with no spin lock held.
  package func drain(_ body: (UInt) -> Void) {
    for processor in 0..<depot.machine.processorCount {
      depot.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer(state)) {
        MagazineSet(at: $0).unload()
      }
    }
    drainDepot(body)
  }

  /// Does the depot's part of `drain`: the processors keep their words, and none is asked.
  package func drainDepot(_ body: (UInt) -> Void) {
    while let stocked = depot.lists.withLock({ $0.popStocked() }) { empty(stocked, body) }
  }

  /// Passes to `body` the words of magazines that were not needed since the last trim, and counts these magazines. The
  /// counts of a trim go on.
  package func drainSurplus(_ body: (UInt) -> Void) -> Int {
    let unused = depot.lists.withLock { $0.fewestStocked }
    var emptied = 0
    while emptied < unused, let stocked = depot.lists.withLock({ $0.popStocked() }) {
      empty(stocked, body)
      emptied += 1
    }
    // The rest was needed since the last trim.
    depot.lists.withLock { $0.fewestStocked = 0 }
    return emptied
  }

  /// Passes the words of a magazine to `body`, and returns it to the depot.
  private func empty(_ stocked: StockedMagazine, _ body: (UInt) -> Void) {
    for i in 0..<stocked.countWords(capacity: depot.rounds) { body(stocked.words[i]) }
    depot.lists.withLock { $0.empty.push(stocked.words) }
  }

  /// Passes to `body`, as `drain` does, the words of magazines that were not needed since the last trim. Their number
  /// is the fewest magazines with words that the depot had in that time (Bonwick and Adams, 3.1). Answers how many were
  /// emptied, and how many empty magazines are not needed, these included, which `removeEmpty` can remove. A set that
  /// needed neither depot nor owner since then lowers its capacity. The processors are not asked.
  package func trim(_ body: (UInt) -> Void) -> (emptied: Int, spare: Int) {
    let events = exchanges &+ refills &+ spills
    let (fewestEmpty, hadEvents) = depot.lists.withLock { lists in
      defer { lists.eventsAtTrim = events }
      return (lists.fewestEmpty, lists.eventsAtTrim != events)
    }
    if !hadEvents {
      depot.capacity.store(max(Int(depot.leastCapacity), capacity / 2), ordering: .relaxed)
    }
    let emptied = drainSurplus(body)
    depot.lists.withLock { lists in
      lists.fewestStocked = lists.stocked
      lists.fewestEmpty = lists.empty.count
    }
    return (emptied, fewestEmpty + emptied)
  }

  /// Moves this processor's magazines to the depot; its slot has none afterwards. Runs on the processor
  /// itself with interrupts off.
  package func unload() {
    let slot = mine
    let capacity = depot.rounds
    let (loaded, rounds) = (slot.pointee.capacity == 0 ? nil : slot.pointee.loaded, slot.pointee.rounds)
    let (previous, previousRounds) = (slot.pointee.previous, slot.pointee.previousRounds)
    slot.pointee.unload()
    depot.lists.withLock { lists in
      if let loaded { lists.push(loaded, rounds: rounds, capacity: capacity) }
      if let previous { lists.push(previous, rounds: previousRounds, capacity: capacity) }
    }
  }

  /// Switches the magazines off: every `pop` answers nil and every `push` `.off` from now on. Passes their words to
  /// `body`, at the cost of `drain`. Does nothing unless `isWanted`, which is asked under the depot's lock: so of two
  /// callers that switch at once, the later one decides by what both have written before.
  package func switchOff(if isWanted: () -> Bool = { true }, _ body: (UInt) -> Void) {
    let isOff = depot.lists.withLock { lists in
      if isWanted() { lists.isOn = false }
      return !lists.isOn
    }
    // A processor that loaded a magazine just before has it in its slot when it is asked; none loads one now.
    if isOff { drain(body) }
  }

  /// Switches them on again, if `isWanted`; each processor loads a magazine at its next operation.
  package func switchOn(if isWanted: () -> Bool = { true }) {
    depot.lists.withLock { lists in
      if isWanted() { lists.isOn = true }
    }
  }

  /// Whether they are switched on.
  package var isOn: Bool { depot.lists.withLock { $0.isOn } }
}
