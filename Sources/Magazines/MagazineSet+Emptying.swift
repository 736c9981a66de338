// Emptying: drains, trims, and switching a set off and on.

import CPlatform
import MemoryPrimitives

extension MagazineSet {
  /// Removes every word from every processor's magazines and the depot, and passes each to `body`, which runs with
  /// interrupts as they were and no lock. Words that other processors push during the drain may stay.
  /// Asks every processor; call it with no spin lock held.
  package func drain(_ body: (UInt) -> Void) {
    for processor in 0..<state.pointee.machine.processorCount {
      state.pointee.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer(state)) {
        MagazineSet(at: $0).unload()
      }
    }
    drainDepot(body)
  }

  /// Does the depot's part of `drain`: the processors keep their words, and none is asked.
  package func drainDepot(_ body: (UInt) -> Void) {
    while true {
      var count = 0
      let rounds = state.pointee.rounds
      let words = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
        if let words = lists.popFull() {
          count = rounds
          return words
        }
        if let words = lists.partial.pop() {
          count = prepare(words)
          return words
        }
        return nil
      }
      guard let words else { return }
      for i in 0..<count { body(words[i]) }
      state.pointee.lists.withLock { $0.empty.push(words) }
    }
  }

  /// Counts the words of a partly filled magazine that a drain passes on. If a stray write changed that number, it is
  /// unknown which words the magazine had. The drain then passes on only the address of the number, for the owner to
  /// report. It does not pass on the value written there, which may be a word that is in use.
  private func prepare(_ words: UnsafeMutablePointer<UInt>) -> Int {
    let last = state.pointee.rounds - 1
    if let rounds = DepotLists.partialRounds(words, capacity: last + 1) { return rounds }
    words[0] = UInt(bitPattern: words + last)
    return 1
  }

  /// Passes to `body`, as `drain` does, the words of full magazines that were not needed since the last trim. Their number
  /// is the fewest full magazines that the depot had in that time (Bonwick and Adams, 3.1). Partly filled ones, which no
  /// processor loads, are emptied too. Answers how many were emptied, and how many empty magazines are not needed, these
  /// included, which `removeEmpty` can remove. The processors are not asked.
  package func trim(_ body: (UInt) -> Void) -> (emptied: Int, spare: Int) {
    var (full, spare) = state.pointee.lists.withLock { ($0.fewestFull, $0.fewestEmpty) }
    var emptied = 0
    while true {
      var count = state.pointee.rounds
      let words = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
        if let words = lists.partial.pop() {
          count = prepare(words)
          return words
        }
        full -= 1
        return full < 0 ? nil : lists.popFull()
      }
      guard let words else { break }
      for i in 0..<count { body(words[i]) }
      state.pointee.lists.withLock { $0.empty.push(words) }
      emptied += 1
    }
    spare += emptied
    state.pointee.lists.withLock { lists in
      lists.fewestFull = lists.full.count
      lists.fewestEmpty = lists.empty.count
    }
    return (emptied, spare)
  }

  /// Moves this processor's magazines to the depot; its slot has none afterwards. Runs on the processor
  /// itself with interrupts off.
  func unload() {
    let slot = mine
    let capacity = state.pointee.rounds
    let (loaded, rounds) = (slot.pointee.capacity == 0 ? nil : slot.pointee.loaded, slot.pointee.rounds)
    let (previous, previousRounds) = (slot.pointee.previous, slot.pointee.previousRounds)
    slot.pointee.unload()
    state.pointee.lists.withLock { lists in
      if let loaded { lists.push(loaded, rounds: rounds, capacity: capacity) }
      if let previous { lists.push(previous, rounds: previousRounds, capacity: capacity) }
    }
  }

  /// Switches the magazines off: every `pop` answers nil and every `push` `.off` from now on. Passes their words to
  /// `body`, at the cost of `drain`.
  package func switchOff(_ body: (UInt) -> Void) {
    state.pointee.lists.withLock { $0.isOn = false }
    // A processor that loaded a magazine just before has it in its slot when it is asked; none loads one now.
    drain(body)
  }

  /// Switches them on again; each processor loads a magazine at its next operation.
  package func switchOn() { state.pointee.lists.withLock { $0.isOn = true } }

  /// Whether they are switched on.
  package var isOn: Bool { state.pointee.lists.withLock { $0.isOn } }
}
