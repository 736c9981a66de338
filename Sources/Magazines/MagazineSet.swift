// Magazines: each processor's stock of machine words, pushed and popped without a lock.
//
// This layer knows words only. Kmem keeps objects in magazines; a cache of any other resource that a word can name may
// do the same. The owner of a set frees the words that do not fit and supplies those that are missing. Each magazine is a
// part of memory that the owner adds, and may remove when it is empty.
//
// STRUCTURES
//
// A magazine is an array of words. A processor has two of them, *loaded* and *previous*, in its slot (MagazineSlot.swift).
// It pops from and pushes to the loaded one with interrupts off: no lock, no atomic read-modify-write. When the loaded
// magazine is empty (full) and the previous one has words (space), the two change places. So a caller that alternates at
// the edge of a magazine does not go further. Only then a magazine is exchanged at the *depot* (Depot.swift), under its
// lock.
//
// A processor without magazines has a slot with rounds = capacity = 0. That is at once empty and full, so both fast
// paths fall into their slow ones without a test of their own. A processor's first operation, and a depot that is
// switched off, cost the fast path nothing.
//
// CAPACITY: a processor fills a magazine up to the set's capacity, which may be less than the magazine can hold. It
// follows the working set: each exchange, refill or spill shows that two magazines were not enough, and raises it by half.
// A trim that finds none of these since the last trim halves it. So a cache that few requests reach keeps few words.
//
// INVARIANTS, each checked by `checkInvariants`
//
//   MG-1  A slot's loaded magazine has at most `capacity` rounds, and that is at most what it can hold; or the slot has
//         no magazine and rounds = capacity = 0.
//   MG-2  The previous magazine has at most as many rounds as it can hold.
//   MG-3  Each of the depot's lists has as many magazines as it counts. The full list has those that can hold no more,
//         the empty list empty ones. Any other has its number of rounds, marked, in its last word. A stray write to that
//         word breaks no invariant: the owner gets its place, to report it, and gets no word of the magazine.
//   MG-4  Every magazine that the owner added is in exactly one slot or one list.
//   MG-5  A depot that is off has all magazines in its empty list, once it has been drained.
//   MG-6  The set's capacity is between the least and the most that its owner chose.
//
// At most `fullLimit` magazines with words lie in the depot, except for those that a drain moves there, and those that
// were there when the limit was lowered.
//
// LOCKS
//
// The depot's spin lock, of rank `kmemDepot`; no call leaves this layer while it is held. `isSound` and the body of
// `refill` run with interrupts off and no lock held, and may acquire a spin lock of a higher rank.
//
// COST
//
// The fast paths cost about ten instructions; an exchange a lock and two list operations; a drain one upcall for each
// processor, then one call for each word.
//
// EXHAUSTION
//
// Nothing here needs memory. `push` without a magazine answers so, and its caller frees the word itself.
//
// SOURCES
//
// Bonwick and Adams, "Magazines and Vmem" (USENIX 2001), section 3.

import CPlatform
import MemoryPrimitives
import Synchronization

/// The result of a push.
@frozen @usableFromInline package enum PushOutcome: UInt8, Sendable {
  case pushed
  /// All magazines of this processor are full and the depot accepts no more: spill, or free the word.
  case full
  /// The depot has no empty magazine; the owner may add one.
  case noMagazine
  /// The depot is switched off.
  case off
}

/// The result of `popSlow(unlessRejected:)`.
package enum PopOutcome {
  case word(UInt)
  /// Neither this processor nor the depot has a word.
  case empty
  /// The depot had a magazine with so many words, and the caller rejected it.
  case rejected(UnsafeMutablePointer<UInt>, rounds: Int)
}

/// The result of a refill.
package enum RefillOutcome {
  case word(UInt)
  /// The caller's own supply had nothing.
  case empty
  /// This processor has no magazine to fill, and the depot has no empty one.
  case noMagazine
  /// The depot is switched off.
  case off
}

/// One depot and the slots of all processors: a handle.
@frozen @usableFromInline package struct MagazineSet {
  @usableFromInline let state: UnsafeMutablePointer<Depot>

  /// Bytes of a depot, aligned to 64.
  package static var size: ByteCount { ByteCount(Alignment.cacheLine.roundUp(MemoryLayout<Depot>.size)) }
  /// Computes the bytes of the slots of `processors`, one behind the other, aligned to 64.
  package static func slotsSize(processors: Int) -> ByteCount {
    ByteCount(processors * MemoryLayout<MagazineSlot>.stride)
  }
  /// Computes the bytes of one magazine that holds `rounds` words: these and a link.
  package static func magazineSize(rounds: Int) -> ByteCount { ByteCount(8 + 8 * rounds) }

  /// Makes a handle on the set that `create` made in `memory`.
  @inline(always) package init(at memory: UnsafeMutableRawPointer) {
    state = memory.assumingMemoryBound(to: Depot.self)
  }

  /// Makes a set with its depot in `memory` (`size` bytes, aligned to 64), which must stay while the set is in use. The
  /// slot of processor n lies at `slots + n * stride`; this call initializes all of them.
  ///
  /// The set has no magazine yet: `add` them. `rounds` is how many words each can hold, `capacity` to how many processors
  /// fill them: at first, and at most. `fullLimit` is the number of magazines with words that the depot keeps.
  package static func create(
    in memory: UnsafeMutableRawPointer, slots: UnsafeMutableRawPointer,
    stride: ByteCount = ByteCount(MemoryLayout<MagazineSlot>.stride), rounds: Int,
    capacity: ClosedRange<Int>, fullLimit: Int, machine: Machine
  ) -> Self {
    precondition(capacity.lowerBound > 0 && capacity.upperBound <= rounds)
    precondition(MemoryLayout<MagazineSlot>.size == 64)
    let state = memory.bindMemory(to: Depot.self, capacity: 1)
    state.initialize(
      to: Depot(
        lists: Locked(.kmemDepot, DepotLists(fullLimit: fullLimit)), slots: slots,
        stride: Int(stride.rawValue), rounds: rounds, capacity: Atomic(capacity.lowerBound),
        leastCapacity: Int16(capacity.lowerBound), mostCapacity: Int16(capacity.upperBound), machine: machine)
    )
    for processor in 0..<machine.processorCount {
      (slots + processor * Int(stride.rawValue)).bindMemory(to: MagazineSlot.self, capacity: 1)
        .initialize(to: MagazineSlot())
    }
    return Self(at: memory)
  }

  /// The shared state, in place.
  var depot: Depot { @inline(__always) _read { yield state.pointee } }
  /// Words that each magazine can hold.
  package var rounds: Int { depot.rounds }
  /// Words to which processors fill a magazine at the moment.
  package var capacity: Int { depot.capacity.load(ordering: .relaxed) }

  /// Raises the capacity by half, as two magazines were not enough for a processor.
  private func raiseCapacity() {
    let capacity = capacity
    let most = Int(depot.mostCapacity)
    guard capacity < most else { return }
    // Two processors at once may count as one; a later exchange raises it again.
    depot.capacity.store(min(most, capacity + capacity / 2 + 1), ordering: .relaxed)
  }

  @inlinable @inline(__always) var mine: UnsafeMutablePointer<MagazineSlot> {
    slot(Int(cp_processor_index()))
  }

  @inlinable @inline(__always) func slot(_ processor: Int) -> UnsafeMutablePointer<MagazineSlot> {
    (state.pointee.slots + processor &* state.pointee.stride).assumingMemoryBound(to: MagazineSlot.self)
  }

  // MARK: Popping

  /// Pops a word from this processor's magazines or the depot; nil when neither has one: `refill`.
  @inline(always) package func pop() -> UInt? {
    let interrupts = cp_interrupts_disable()
    let word = mine.pointee.pop()
    cp_interrupts_restore(interrupts)
    return word ?? popSlow()
  }

  /// Does `pop` for a caller that has tried the loaded magazine itself: exchanges it with the previous one, then with one
  /// of the depot.
  @inline(never) @usableFromInline package func popSlow() -> UInt? {
    guard case .word(let word) = popSlow(unlessRejected: { _, _ in true }) else { return nil }
    return word
  }

  /// Does `popSlow` for a caller whose users may write to a magazine by mistake. `isSound` checks the words of a magazine
  /// that comes from the depot. It runs with interrupts off, and may acquire a spin lock of a higher rank than the
  /// depot's. A magazine that it rejects belongs to the caller until `returnEmpty`.
  @inline(__always)
  package func popSlow(unlessRejected isSound: (UnsafePointer<UInt>, Int) -> Bool) -> PopOutcome {
    withInterruptsOff {
      let slot = mine
      // An interrupt may have pushed a word since the caller tried.
      if let word = slot.pointee.pop() { return .word(word) }
      if slot.pointee.previousRounds > 0 {
        slot.pointee.swap(capacity: capacity)
        return slot.pointee.pop().map { .word($0) } ?? .empty
      }
      let returned = slot.pointee.previous
      let stocked = depot.lists.withLock { lists -> StockedMagazine? in
        // When off, the depot only accepts magazines: the drain that switched it off empties its other ones.
        guard lists.isOn, let stocked = lists.popStocked() else { return nil }
        if let returned { lists.empty.push(returned) }
        return stocked
      }
      guard let stocked else { return .empty }
      let rounds = stocked.countWords(capacity: depot.rounds)
      guard isSound(stocked.words, rounds) else {
        slot.pointee.previous = nil
        return .rejected(stocked.words, rounds: rounds)
      }
      raiseCapacity()
      slot.pointee.previous = slot.pointee.capacity == 0 ? nil : slot.pointee.loaded
      slot.pointee.load(stocked.words, rounds: rounds, capacity: max(rounds, capacity))
      slot.pointee.exchanges.add()
      return slot.pointee.pop().map { .word($0) } ?? .empty
    }
  }

  /// Returns a magazine that the caller of `popSlow(unlessRejected:)` rejected. Its words are discarded.
  package func returnEmpty(_ magazine: UnsafeMutablePointer<UInt>) {
    depot.lists.withLock { $0.empty.push(magazine) }
  }

  /// Lets `body` write words to this processor's loaded magazine, at most as many as its second argument says, and pops
  /// one of them. `body` answers how many it wrote. It runs with interrupts off, and may acquire a spin lock of a higher
  /// rank than the depot's, but call nothing else.
  package func refill(_ body: (UnsafeMutablePointer<UInt>, Int) -> Int) -> RefillOutcome {
    withInterruptsOff {
      let slot = mine
      if let word = slot.pointee.pop() { return .word(word) }
      if slot.pointee.capacity == 0 {
        switch equip(slot) {
        case .pushed: break
        case .off: return .off
        default: return .noMagazine
        }
      }
      raiseCapacity()
      let capacity = max(slot.pointee.capacity, capacity)
      slot.pointee.capacity = capacity
      // Half, so that a push which follows finds space.
      let count = body(slot.pointee.loaded, (capacity + 1) / 2)
      assert(count >= 0 && count <= capacity)
      slot.pointee.rounds = count
      slot.pointee.refills.add()
      if let word = slot.pointee.pop() { return .word(word) }
      return .empty
    }
  }

  // MARK: Pushing

  /// Pushes a word to this processor's magazines.
  @inline(always) package func push(_ word: UInt) -> PushOutcome {
    let interrupts = cp_interrupts_disable()
    let isPushed = mine.pointee.push(word)
    cp_interrupts_restore(interrupts)
    return isPushed ? .pushed : pushSlow(word)
  }

  /// Does `push` for a caller that has tried the loaded magazine itself.
  @inline(never) @usableFromInline package func pushSlow(_ word: UInt) -> PushOutcome {
    withInterruptsOff {
      let slot = mine
      if slot.pointee.push(word) { return .pushed }
      if slot.pointee.previousRounds >= capacity { raiseCapacity() }
      if slot.pointee.capacity != 0 && slot.pointee.rounds < capacity {
        slot.pointee.capacity = capacity
        _ = slot.pointee.push(word)
        return .pushed
      }
      if slot.pointee.previous != nil && slot.pointee.previousRounds < capacity {
        slot.pointee.swap(capacity: capacity)
        _ = slot.pointee.push(word)
        return .pushed
      }
      let outcome = equip(slot)
      if outcome == .pushed { _ = slot.pointee.push(word) }
      return outcome
    }
  }

  /// Whether the last word that this processor pushed is `word`, and it still has it.
  package func isOnTop(_ word: UInt) -> Bool {
    withInterruptsOff {
      let slot = mine
      return slot.pointee.rounds > 0 && slot.pointee.loaded[slot.pointee.rounds - 1] == word
    }
  }

  /// Loads an empty magazine from the depot into a slot whose magazines are full or missing; the previous one goes to
  /// the depot in exchange. `.pushed` says that the slot has space now.
  private func equip(_ slot: UnsafeMutablePointer<MagazineSlot>) -> PushOutcome {
    let returned = slot.pointee.previousRounds > 0 ? slot.pointee.previous : nil
    let fails = depot.machine.failsHere(.magazines)
    var outcome = PushOutcome.pushed
    let empty = depot.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
      guard lists.isOn else {
        outcome = .off
        return nil
      }
      guard returned == nil || lists.stocked < lists.fullLimit else {
        outcome = .full
        return nil
      }
      guard !fails, let empty = lists.popEmpty() else {
        outcome = .noMagazine
        return nil
      }
      if let returned {
        lists.push(returned, rounds: slot.pointee.previousRounds, capacity: depot.rounds)
      }
      return empty
    }
    guard let empty else { return outcome }
    if slot.pointee.capacity != 0 {
      slot.pointee.previous = slot.pointee.loaded
      slot.pointee.previousRounds = slot.pointee.rounds
    }
    slot.pointee.load(empty, rounds: 0, capacity: capacity)
    slot.pointee.exchanges.add()
    return .pushed
  }

  /// Moves the words of a full magazine of this processor to `words`, so that the next `push` finds space: for a depot
  /// that accepts no more. Writes up to `rounds` words; answers how many.
  package func spill(into words: UnsafeMutablePointer<UInt>) -> Int {
    withInterruptsOff {
      let slot = mine
      // The previous one has the words that were not needed for longest.
      if slot.pointee.previousRounds > 0, let previous = slot.pointee.previous {
        let count = slot.pointee.previousRounds
        words.update(from: previous, count: count)
        slot.pointee.previousRounds = 0
        slot.pointee.spills.add()
        return count
      }
      let count = slot.pointee.rounds
      guard count > 0 else { return 0 }
      words.update(from: slot.pointee.loaded, count: count)
      slot.pointee.rounds = 0
      slot.pointee.spills.add()
      return count
    }
  }

  // MARK: Magazines, added and removed

  /// Adds an empty magazine of `magazineSize(rounds:)` bytes, aligned to 8, to the depot. It stays in use until
  /// `removeEmpty` returns it.
  package func add(_ magazine: UnsafeMutableRawPointer) {
    let words = magazine.bindMemory(to: UInt.self, capacity: depot.rounds + 1) + 1
    depot.lists.withLock { lists in
      lists.total += 1
      lists.empty.push(words)
    }
  }

  /// Lets the depot keep so many full magazines more, or fewer, from now on. Those beyond a lower limit stay until used.
  package func changeFullLimit(by change: Int) {
    depot.lists.withLock { $0.fullLimit += change }
  }

  /// Removes an empty magazine from the depot for good; nil when it has none.
  package func removeEmpty() -> UnsafeMutableRawPointer? {
    let words = depot.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
      guard let words = lists.popEmpty() else { return nil }
      lists.total -= 1
      return words
    }
    guard let words else { return nil }
    return UnsafeMutableRawPointer(words - 1)
  }
}
