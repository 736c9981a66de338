// Magazines: each processor's stock of machine words, taken and given without a lock.
//
// Bonwick and Adams, "Magazines and Vmem" (USENIX 2001), section 3. A magazine is an array of words; a
// processor has two of them, *loaded* and *previous*, and takes from and gives to the loaded one with
// interrupts off: no lock, no atomic read-modify-write. When the loaded one is empty (full) and the
// previous one is not, the two change places; so a caller that alternates at the edge of a magazine
// does not go further. Only then a whole magazine is exchanged at the *depot*, under its lock.
//
// This layer knows words only: Kmem keeps objects here, Vmem segments of its quantum caches. Whoever
// stands above releases what does not fit and brings what is missing. Each magazine is a part of
// memory that the owner gave, and gets back.
//
// A processor without magazines has a slot with rounds = capacity = 0. That is at once empty and full,
// so both hot halves fall into their slow ones without a test of their own; a processor's first
// operation, and a depot that is switched off, cost the hot path nothing.
//
//   Invariants
//   1. A slot's loaded magazine has `capacity` rounds, or the slot has none and rounds = capacity = 0.
//   2. The previous magazine is full or empty: only a full or an empty one is ever put aside.
//   3. What lies in the depot's list of full magazines is full; the empty list holds no word; a partly
//      filled one (from a processor that was drained) carries its number of rounds, marked, in its last word.
//   4. Every magazine given is in exactly one slot or one list; a depot that is off has all of them
//      in its empty list, once it has been drained.
//   5. At most `fullLimit` magazines lie full in the depot, but for what a drain moves there, and for what lay there
//      when the limit was lowered.
//
//   Locks: the depot's, of rank `kmemDepot`; nothing is called while it is held.
//   Cost: hot halves about ten instructions; an exchange a lock and two list operations; a drain one
//   upcall a processor, then a visit for each word.
//   When memory is gone: nothing here needs memory. `push` without a magazine answers so, and its
//   caller releases the word itself.

import CPlatform
import MemoryPrimitives

/// How a word that was to be given to the magazines fared.
@frozen public enum PushOutcome: UInt8, Sendable {
  case pushed
  /// All magazines of this processor are full and the depot takes no more: spill, or release the word.
  case full
  /// The depot has no empty magazine, and may be given one.
  case noMagazine
  /// The depot is switched off.
  case off
}

/// What `popSlow(unlessRejected:)` brought.
public enum PopOutcome {
  case word(UInt)
  /// Neither this processor nor the depot has a word.
  case empty
  /// The depot gave a full magazine that the caller does not find sound.
  case rejected(UnsafeMutablePointer<UInt>)
}

/// What a refill brought.
public enum RefillOutcome {
  case word(UInt)
  /// The caller's own supply had nothing.
  case empty
  /// This processor has no magazine to fill, and the depot has no empty one.
  case noMagazine
  /// The depot is switched off.
  case off
}

/// One depot and the slots of all processors: a handle.
@frozen public struct MagazineSet {
  @usableFromInline let state: UnsafeMutablePointer<Depot>

  /// Bytes of a depot, to be aligned to 64.
  public static var size: ByteCount { ByteCount((MemoryLayout<Depot>.size + 63) & ~63) }
  /// Bytes of the slots of `processors`, one behind the other, to be aligned to 64.
  public static func slotsSize(processors: Int) -> ByteCount {
    ByteCount(processors * MemoryLayout<MagazineSlot>.stride)
  }
  /// Bytes of one magazine that holds `rounds` words.
  public static func magazineSize(rounds: Int) -> ByteCount { ByteCount(8 + 8 * rounds) }

  /// A handle on what `create` made in `memory`.
  @inline(always) public init(at memory: UnsafeMutableRawPointer) {
    state = memory.assumingMemoryBound(to: Depot.self)
  }

  /// Makes a depot in `memory` (`size` bytes, aligned to 64), which must stay while it is in use. The
  /// slot of processor n lies at `slots + n * stride`; all are set up here.
  ///
  /// No magazine is there yet: `add` them. `rounds` is the capacity of each, and `fullLimit` the number
  /// of full ones that the depot keeps.
  public static func create(
    in memory: UnsafeMutableRawPointer, slots: UnsafeMutableRawPointer,
    stride: ByteCount = ByteCount(MemoryLayout<MagazineSlot>.stride), rounds: Int, fullLimit: Int,
    machine: Machine
  ) -> Self {
    precondition(rounds > 0 && MemoryLayout<MagazineSlot>.size == 64)
    let state = memory.bindMemory(to: Depot.self, capacity: 1)
    state.initialize(
      to: Depot(
        lists: Locked(.kmemDepot, DepotLists(fullLimit: fullLimit)), slots: slots,
        stride: Int(stride.rawValue), rounds: rounds, machine: machine))
    for processor in 0..<machine.processorCount {
      (slots + processor * Int(stride.rawValue)).bindMemory(to: MagazineSlot.self, capacity: 1)
        .initialize(to: MagazineSlot())
    }
    return Self(at: memory)
  }

  /// Rounds of each magazine.
  public var rounds: Int { state.pointee.rounds }

  @inlinable @inline(__always) var mine: UnsafeMutablePointer<MagazineSlot> {
    slot(Int(cp_processor_index()))
  }

  @inlinable @inline(__always) func slot(_ processor: Int) -> UnsafeMutablePointer<MagazineSlot> {
    (state.pointee.slots + processor &* state.pointee.stride).assumingMemoryBound(to: MagazineSlot.self)
  }

  // MARK: Taking

  /// A word from this processor's magazines or the depot; nil when neither has one: `refill`.
  @inline(always) public func pop() -> UInt? {
    let interrupts = cp_interrupts_disable()
    let word = mine.pointee.take()
    cp_interrupts_restore(interrupts)
    return word ?? popSlow()
  }

  /// `pop` for a caller that has tried the loaded magazine itself: an exchange with the previous one,
  /// then with the depot.
  @inline(never) public func popSlow() -> UInt? {
    guard case .word(let word) = popSlow(unlessRejected: { _, _ in true }) else { return nil }
    return word
  }

  /// `popSlow` for a caller whose users may write to a magazine by mistake. `isSound` looks at the words of a magazine
  /// that comes from the depot; like the body of `refill` it runs with interrupts off, and may take a spin lock of a
  /// higher rank than the depot's. A magazine that it does not find sound is the caller's: see `returnEmpty`.
  @inline(__always)
  public func popSlow(unlessRejected isSound: (UnsafePointer<UInt>, Int) -> Bool) -> PopOutcome {
    withInterruptsOff {
      let slot = mine
      // An interrupt may have given something since the caller looked.
      if let word = slot.pointee.take() { return .word(word) }
      if slot.pointee.previousRounds > 0 {
        slot.pointee.swap(capacity: state.pointee.rounds)
        return slot.pointee.take().map { .word($0) } ?? .empty
      }
      let returned = slot.pointee.previous
      let full = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
        // Off, the depot only takes in; what lies full in it belongs to whoever empties it.
        guard lists.isOn, let full = lists.takeFull() else { return nil }
        if let returned { lists.empty.put(returned) }
        return full
      }
      guard let full else { return .empty }
      guard isSound(full, state.pointee.rounds) else {
        slot.pointee.previous = nil
        return .rejected(full)
      }
      slot.pointee.previous = slot.pointee.capacity == 0 ? nil : slot.pointee.loaded
      slot.pointee.load(full, rounds: state.pointee.rounds, capacity: state.pointee.rounds)
      slot.pointee.exchanges.add()
      return slot.pointee.take().map { .word($0) } ?? .empty
    }
  }

  /// Takes a magazine back that `popSlow(unlessRejected:)` rejected. Its words are not handed out any more.
  public func returnEmpty(_ magazine: UnsafeMutablePointer<UInt>) {
    state.pointee.lists.withLock { $0.empty.put(magazine) }
  }

  /// Lets `body` put words into this processor's loaded magazine, at most as many as it is told, and
  /// takes one of them. `body` runs with interrupts off and answers how many it put; a spin lock of a
  /// higher rank than the depot's may be taken there, and nothing else called.
  public func refill(_ body: (UnsafeMutablePointer<UInt>, Int) -> Int) -> RefillOutcome {
    withInterruptsOff {
      let slot = mine
      if let word = slot.pointee.take() { return .word(word) }
      if slot.pointee.capacity == 0 {
        switch equip(slot) {
        case .pushed: break
        case .off: return .off
        default: return .noMagazine
        }
      }
      let room = slot.pointee.capacity
      // Half, so that a caller who frees next finds room.
      let count = body(slot.pointee.loaded, (room + 1) / 2)
      assert(count >= 0 && count <= room)
      slot.pointee.rounds = count
      slot.pointee.refills.add()
      if let word = slot.pointee.take() { return .word(word) }
      return .empty
    }
  }

  // MARK: Giving

  /// Gives a word to this processor's magazines.
  @inline(always) public func push(_ word: UInt) -> PushOutcome {
    let interrupts = cp_interrupts_disable()
    let taken = mine.pointee.put(word)
    cp_interrupts_restore(interrupts)
    return taken ? .pushed : pushSlow(word)
  }

  /// `push` for a caller that has tried the loaded magazine itself.
  @inline(never) public func pushSlow(_ word: UInt) -> PushOutcome {
    withInterruptsOff {
      let slot = mine
      if slot.pointee.put(word) { return .pushed }
      if slot.pointee.previous != nil && slot.pointee.previousRounds == 0 {
        slot.pointee.swap(capacity: state.pointee.rounds)
        _ = slot.pointee.put(word)
        return .pushed
      }
      let outcome = equip(slot)
      if outcome == .pushed { _ = slot.pointee.put(word) }
      return outcome
    }
  }

  /// Whether this processor was given `word` last and has it still.
  public func isOnTop(_ word: UInt) -> Bool {
    withInterruptsOff {
      let slot = mine
      return slot.pointee.rounds > 0 && slot.pointee.loaded[slot.pointee.rounds - 1] == word
    }
  }

  /// Gives the slot, whose magazines are full or missing, an empty one from the depot; a full previous
  /// one goes there in exchange. `.pushed` says that there is room now.
  private func equip(_ slot: UnsafeMutablePointer<MagazineSlot>) -> PushOutcome {
    // Invariant 2: with a loaded magazine that is full and a previous one that is not empty, that is full.
    let returned = slot.pointee.previousRounds > 0 ? slot.pointee.previous : nil
    let fails = state.pointee.machine.failsHere(.magazines)
    var outcome = PushOutcome.pushed
    let empty = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
      guard lists.isOn else {
        outcome = .off
        return nil
      }
      guard returned == nil || lists.full.count < lists.fullLimit else {
        outcome = .full
        return nil
      }
      guard !fails, let empty = lists.takeEmpty() else {
        outcome = .noMagazine
        return nil
      }
      if let returned { lists.full.put(returned) }
      return empty
    }
    guard let empty else { return outcome }
    if slot.pointee.capacity != 0 {
      slot.pointee.previous = slot.pointee.loaded
      slot.pointee.previousRounds = slot.pointee.rounds
    }
    slot.pointee.load(empty, rounds: 0, capacity: state.pointee.rounds)
    slot.pointee.exchanges.add()
    return .pushed
  }

  /// Takes the words of a full magazine of this processor out, so that the next `push` finds room:
  /// for a depot that takes no more. Writes up to `rounds` words to `words`; answers how many.
  public func spill(into words: UnsafeMutablePointer<UInt>) -> Int {
    withInterruptsOff {
      let slot = mine
      // The previous one holds what was not needed for longest.
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

  // MARK: Magazines, given and taken back

  /// Gives the depot an empty magazine of `magazineSize(rounds:)` bytes, aligned to 8, which stays in
  /// use until `takeEmpty` hands it back.
  public func add(_ magazine: UnsafeMutableRawPointer) {
    let words = magazine.bindMemory(to: UInt.self, capacity: state.pointee.rounds + 1) + 1
    state.pointee.lists.withLock { lists in
      lists.total += 1
      lists.empty.put(words)
    }
  }

  /// Lets the depot keep so many full magazines more, or fewer, from now on. What it has beyond stays until it is taken.
  public func changeFullLimit(by change: Int) {
    state.pointee.lists.withLock { $0.fullLimit += change }
  }

  /// Takes an empty magazine out of the depot for good; nil when it has none.
  public func takeEmpty() -> UnsafeMutableRawPointer? {
    let words = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
      guard let words = lists.takeEmpty() else { return nil }
      lists.total -= 1
      return words
    }
    guard let words else { return nil }
    return UnsafeMutableRawPointer(words - 1)
  }

  // MARK: Emptying

  /// Takes every word out of every processor's magazines and the depot, and hands each to `body`, which
  /// runs with interrupts as they were and no lock. What other processors give meanwhile may stay.
  /// Asks every processor; call it with no spin lock held.
  public func drain(_ body: (UInt) -> Void) {
    for processor in 0..<state.pointee.machine.processorCount {
      state.pointee.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer(state)) {
        MagazineSet(at: $0).unload()
      }
    }
    drainDepot(body)
  }

  /// The depot's part of `drain`: the processors keep what they have, nobody is asked.
  public func drainDepot(_ body: (UInt) -> Void) {
    while true {
      var count = 0
      let rounds = state.pointee.rounds
      let words = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
        if let words = lists.takeFull() {
          count = rounds
          return words
        }
        if let words = lists.partial.take() {
          count = prepare(words)
          return words
        }
        return nil
      }
      guard let words else { return }
      for i in 0..<count { body(words[i]) }
      state.pointee.lists.withLock { $0.empty.put(words) }
    }
  }

  /// How many words of a partly filled magazine a drain hands over. Where a stray write changed that number, which words
  /// the magazine has held is unknown: the drain hands over the address of the number alone, for the owner to report. It
  /// does not hand over what was written there, which may be a word that is in use.
  private func prepare(_ words: UnsafeMutablePointer<UInt>) -> Int {
    let last = state.pointee.rounds - 1
    if let rounds = DepotLists.partialRounds(words, capacity: last + 1) { return rounds }
    words[0] = UInt(bitPattern: words + last)
    return 1
  }

  /// Hands to `body`, as `drain` does, what lay in full magazines that were not needed since the last trim: of these the
  /// depot had one too many all the time for each of the fewest that it ever had (Bonwick and Adams, 3.1). Partly
  /// filled ones, which no processor takes, go with them. Answers how many were emptied, and how many empty magazines
  /// can be done without, these included: `takeEmpty` hands them out. The processors are not asked.
  public func trim(_ body: (UInt) -> Void) -> (emptied: Int, spare: Int) {
    var (full, spare) = state.pointee.lists.withLock { ($0.fewestFull, $0.fewestEmpty) }
    var emptied = 0
    while true {
      var count = state.pointee.rounds
      let words = state.pointee.lists.withLock { lists -> UnsafeMutablePointer<UInt>? in
        if let words = lists.partial.take() {
          count = prepare(words)
          return words
        }
        full -= 1
        return full < 0 ? nil : lists.takeFull()
      }
      guard let words else { break }
      for i in 0..<count { body(words[i]) }
      state.pointee.lists.withLock { $0.empty.put(words) }
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
      if let loaded { lists.put(loaded, rounds: rounds, capacity: capacity) }
      if let previous { lists.put(previous, rounds: previousRounds, capacity: capacity) }
    }
  }

  /// Switches the magazines off: every `pop` answers nil and every `push` `.off` from now on, and what
  /// they hold is handed to `body`. Costs what `drain` costs.
  public func switchOff(_ body: (UInt) -> Void) {
    state.pointee.lists.withLock { $0.isOn = false }
    // A processor that got a magazine just before has it in its slot when it is asked; none gets one now.
    drain(body)
  }

  /// Switches them on again; each processor takes a magazine at its next operation.
  public func switchOn() { state.pointee.lists.withLock { $0.isOn = true } }

  /// Whether they are switched on.
  public var isOn: Bool { state.pointee.lists.withLock { $0.isOn } }

  // MARK: Figures

  /// Magazines that the depot was given, wherever they are now.
  public var magazineCount: Int { state.pointee.lists.withLock { $0.total } }
  /// Full magazines in the depot.
  public var fullCount: Int { state.pointee.lists.withLock { $0.full.count } }
  /// Empty magazines in the depot.
  public var emptyCount: Int { state.pointee.lists.withLock { $0.empty.count } }
  /// Magazines that processors exchanged with the depot.
  public var exchanges: UInt64 { sum { $0.pointee.exchanges.value } }
  /// Times a magazine was filled from the caller's supply.
  public var refills: UInt64 { sum { $0.pointee.refills.value } }
  /// Times a full magazine was handed back to the caller's supply.
  public var spills: UInt64 { sum { $0.pointee.spills.value } }

  private func sum(_ reader: (UnsafeMutablePointer<MagazineSlot>) -> UInt64) -> UInt64 {
    var sum: UInt64 = 0
    for processor in 0..<state.pointee.machine.processorCount { sum += reader(slot(processor)) }
    return sum
  }

  /// Where `word` is held; nil when no magazine has it. While others are at work this is what was so a
  /// moment ago. Asks every processor; no spin lock may be held.
  public func place(of word: UInt) -> MagazinePlace? {
    struct Search {
      let magazines: MagazineSet
      let word: UInt
      var isFound = false
    }
    var search = Search(magazines: self, word: word)
    for processor in 0..<state.pointee.machine.processorCount {
      withUnsafeMutablePointer(to: &search) {
        state.pointee.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer($0)) {
          let search = $0.assumingMemoryBound(to: Search.self)
          search.pointee.isFound = search.pointee.magazines.mine.pointee.holds(search.pointee.word)
        }
      }
      if search.isFound { return .processor(ProcessorIndex(UInt32(processor))) }
    }
    // A magazine at a time, by its number, so that the lock is held for no more.
    var index = 0
    let capacity = state.pointee.rounds
    while true {
      let isThere = state.pointee.lists.withLock { $0.magazine(index, capacity: capacity)?.contains(word) }
      guard let isThere else { return nil }
      if isThere { return .depot }
      index += 1
    }
  }

  /// Visits every word held, with the place where it lies. Only when no other processor is at it, and no
  /// interrupt: magazines may go while they are looked at. `body` must not come back here.
  public func forEachWord<E>(_ body: (UInt, MagazinePlace) throws(E) -> Void) throws(E) {
    for processor in 0..<state.pointee.machine.processorCount {
      let slot = slot(processor)
      let place = MagazinePlace.processor(ProcessorIndex(UInt32(processor)))
      for i in 0..<slot.pointee.rounds { try body(slot.pointee.loaded[i], place) }
      if let previous = slot.pointee.previous {
        for i in 0..<slot.pointee.previousRounds { try body(previous[i], place) }
      }
    }
    let rounds = state.pointee.rounds
    let (full, partial) = state.pointee.lists.withLock { ($0.full.first, $0.partial.first) }
    var next = full
    while let words = next {
      for i in 0..<rounds { try body(words[i], .depot) }
      next = MagazineList.link(words)
    }
    next = partial
    while let words = next {
      for i in 0..<(DepotLists.partialRounds(words, capacity: rounds) ?? 0) { try body(words[i], .depot) }
      next = MagazineList.link(words)
    }
  }

  /// Words held in all magazines. Only when no other processor is at it.
  public var wordCount: Int {
    var count = 0
    forEachWord { _, _ in count += 1 }
    return count
  }

  /// Which invariant is broken, nil when none is. Only when no other processor is at it; as long as the lists.
  public func checkInvariants() -> StaticString? {
    let capacity = state.pointee.rounds
    var found = 0
    for processor in 0..<state.pointee.machine.processorCount {
      let slot = slot(processor)
      let rounds = slot.pointee.rounds
      if slot.pointee.capacity == 0 {
        if rounds != 0 { return "a slot without a magazine has rounds" }
      } else {
        if slot.pointee.capacity != capacity { return "a slot's capacity is not its magazine's" }
        if rounds < 0 || rounds > capacity { return "a slot's rounds exceed its magazine" }
        found += 1
      }
      let previous = slot.pointee.previousRounds
      if slot.pointee.previous == nil {
        if previous != 0 { return "rounds without a previous magazine" }
      } else {
        if previous != 0 && previous != capacity { return "a previous magazine is neither full nor empty" }
        found += 1
      }
    }
    return state.pointee.lists.withLock { lists -> StaticString? in
      if !lists.full.isSound || !lists.empty.isSound || !lists.partial.isSound {
        return "a depot list does not have the length that it is counted to have"
      }
      if found + lists.full.count + lists.empty.count + lists.partial.count != lists.total {
        return "a magazine is lost, or in two places"
      }
      if !lists.isOn && lists.empty.count != lists.total {
        return "magazines are in use though the depot is off"
      }
      return nil
    }
  }
}

/// Where a word was found.
public enum MagazinePlace: Equatable, Sendable {
  case processor(ProcessorIndex)
  case depot
}
