// One processor's two magazines: a cache line, accessed by its processor alone with interrupts off.
//
// The fast paths of an owner work on a slot directly, so that the owner's counting shares the one interval with
// interrupts off.

import MemoryPrimitives

/// The magazines of one processor. 64 bytes; valid when initialised by `MagazineSet.create`.
@frozen @usableFromInline package struct MagazineSlot: ~Copyable {
  /// Words of the loaded magazine; without one, an address that no code reads from.
  @usableFromInline var loaded: UnsafeMutablePointer<UInt>
  /// Words in it.
  @usableFromInline var rounds: Int
  /// Words that fit; zero when there is no magazine.
  @usableFromInline var capacity: Int
  @usableFromInline var previous: UnsafeMutablePointer<UInt>?
  @usableFromInline var previousRounds: Int
  @usableFromInline let exchanges: Counter
  @usableFromInline let refills: Counter
  @usableFromInline let spills: Counter

  init() {
    loaded = UnsafeMutablePointer(bitPattern: 8).unsafelyUnwrapped
    rounds = 0
    capacity = 0
    previous = nil
    previousRounds = 0
    exchanges = Counter()
    refills = Counter()
    spills = Counter()
  }

  /// Pops the word that was pushed last; nil when the loaded magazine has none.
  @inline(always) package mutating func pop() -> UInt? {
    let rounds = self.rounds
    guard rounds != 0 else { return nil }
    self.rounds = rounds &- 1
    return loaded[rounds &- 1]
  }

  /// Pushes a word on the loaded magazine. Answers false when it is full.
  @inline(always) package mutating func push(_ word: UInt) -> Bool {
    let rounds = self.rounds
    guard rounds != capacity else { return false }
    loaded[rounds] = word
    self.rounds = rounds &+ 1
    return true
  }

  /// Does `push` for words that are addresses. Answers false also when the word is on top already: pushed twice in a row.
  /// An empty magazine has its link on top, which is the address of no object.
  @inline(always) package mutating func pushUnlessOnTop(_ word: UInt) -> Bool {
    let rounds = self.rounds
    guard rounds != capacity, loaded[rounds &- 1] != word else { return false }
    loaded[rounds] = word
    self.rounds = rounds &+ 1
    return true
  }

  /// Loads the previous magazine, which the slot has; the loaded one, if any, becomes the previous one.
  mutating func swap(capacity current: Int) {
    let (words, count) = (loaded, rounds)
    let hadLoaded = capacity != 0
    load(previous.unsafelyUnwrapped, rounds: previousRounds, capacity: max(previousRounds, current))
    previous = hadLoaded ? words : nil
    previousRounds = count
  }

  /// Whether one of the two magazines has `word`.
  func holds(_ word: UInt) -> Bool {
    UnsafeBufferPointer(start: loaded, count: rounds).contains(word)
      || UnsafeBufferPointer(start: previous, count: previousRounds).contains(word)
  }

  mutating func load(_ words: UnsafeMutablePointer<UInt>, rounds: Int, capacity: Int) {
    loaded = words
    self.rounds = rounds
    self.capacity = capacity
  }

  /// Removes both magazines; the counters stay.
  mutating func unload() {
    load(UnsafeMutablePointer(bitPattern: 8).unsafelyUnwrapped, rounds: 0, capacity: 0)
    previous = nil
    previousRounds = 0
  }
}
