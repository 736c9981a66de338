// The check of the invariants in MagazineSet.swift.

import CPlatform
import MemoryPrimitives

extension MagazineSet {
  /// Checks every invariant: nil when all hold, else the broken one, by its number. Takes as long as the lists are. No
  /// other processor may use the set at the same time.
  package func checkInvariants() -> StaticString? {
    let capacity = depot.rounds
    var found = 0
    if !(Int(depot.leastCapacity)...Int(depot.mostCapacity)).contains(self.capacity) {
      return "MG-6: the capacity is outside its limits"
    }
    for processor in 0..<depot.machine.processorCount {
      let slot = slot(processor)
      let rounds = slot.pointee.rounds
      if slot.pointee.capacity == 0 {
        if rounds != 0 { return "MG-1: a slot without a magazine has rounds" }
      } else {
        if slot.pointee.capacity > capacity { return "MG-1: a slot's capacity exceeds its magazine" }
        if rounds < 0 || rounds > slot.pointee.capacity { return "MG-1: a slot's rounds exceed its capacity" }
        found += 1
      }
      let previous = slot.pointee.previousRounds
      if slot.pointee.previous == nil {
        if previous != 0 { return "MG-2: a slot without a previous magazine has rounds for it" }
      } else {
        if previous < 0 || previous > capacity {
          return "MG-2: a slot's previous rounds exceed their magazine"
        }
        found += 1
      }
    }
    return depot.lists.withLock { lists -> StaticString? in
      if !lists.full.isSound || !lists.empty.isSound || !lists.partial.isSound {
        return "MG-3: a list of the depot has another length than it counts"
      }
      if found + lists.full.count + lists.empty.count + lists.partial.count != lists.total {
        return "MG-4: a magazine is lost, or in two places"
      }
      if !lists.isOn && lists.empty.count != lists.total {
        return "MG-5: magazines are in use though the depot is off"
      }
      return nil
    }
  }
}
