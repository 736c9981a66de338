// The depot: magazines that no processor has at the moment, by how full they are.

import MemoryPrimitives
import Synchronization

/// The state that all processors share, behind the handle `MagazineSet`.
@usableFromInline struct Depot: ~Copyable {
  let lists: Locked<DepotLists>
  @usableFromInline let slots: UnsafeMutableRawPointer
  @usableFromInline let stride: Int
  /// Words that fit into a magazine.
  let rounds: Int
  /// Words to which processors fill a magazine at the moment: from `leastCapacity` to `mostCapacity`.
  let capacity: Atomic<Int>
  let leastCapacity: Int16
  let mostCapacity: Int16
  let machine: Machine
}

/// The lists under the depot's lock.
struct DepotLists {
  var full = MagazineList()
  var partial = MagazineList()
  var empty = MagazineList()
  /// Magazines in lists and slots together.
  var total = 0
  /// Magazines with words that the depot keeps at most.
  var fullLimit: Int
  /// The fewest magazines with words, and the fewest empty ones, that it had since the last trim.
  var fewestStocked = 0
  var fewestEmpty = 0
  var isOn = true
  /// Exchanges, refills and spills of all processors until the last trim.
  var eventsAtTrim: UInt64 = 0

  init(fullLimit: Int) { self.fullLimit = fullLimit }

  /// Adds a magazine to the list for its number of rounds.
  mutating func push(_ words: UnsafeMutablePointer<UInt>, rounds: Int, capacity: Int) {
    if rounds == 0 {
      empty.push(words)
    } else if rounds == capacity {
      full.push(words)
    } else {
      words[capacity - 1] = UInt(rounds) ^ Self.mark(words)
      partial.push(words)
    }
  }

  /// Reads the rounds of a partly filled magazine; nil when a stray write changed the word that says so.
  static func partialRounds(_ words: UnsafePointer<UInt>, capacity: Int) -> Int? {
    let rounds = words[capacity - 1] ^ mark(words)
    return rounds >= 1 && rounds < UInt(capacity) ? Int(rounds) : nil
  }
  /// Computes a word that differs from one magazine to the next, so that a stray write leaves no valid number of rounds.
  private static func mark(_ words: UnsafePointer<UInt>) -> UInt {
    UInt(bitPattern: words) &* 0x9e37_79b9_7f4a_7c15
  }

  /// Magazines with words.
  var stocked: Int { full.count + partial.count }

  /// Pops a magazine with words, a full one first.
  mutating func popStocked() -> StockedMagazine? {
    let isFull = full.count > 0
    guard let words = isFull ? full.pop() : partial.pop() else { return nil }
    fewestStocked = min(fewestStocked, stocked)
    return StockedMagazine(words: words, isFull: isFull)
  }

  mutating func popEmpty() -> UnsafeMutablePointer<UInt>? {
    let words = empty.pop()
    fewestEmpty = min(fewestEmpty, empty.count)
    return words
  }

  /// Finds the words of magazine number `index` of those that have any, full ones first.
  func magazine(_ index: Int, capacity: Int) -> UnsafeBufferPointer<UInt>? {
    if index < full.count { return UnsafeBufferPointer(start: full.at(index), count: capacity) }
    guard index - full.count < partial.count, let words = partial.at(index - full.count) else { return nil }
    return UnsafeBufferPointer(start: words, count: Self.partialRounds(words, capacity: capacity) ?? 0)
  }
}

/// A magazine with words that the depot had.
struct StockedMagazine {
  let words: UnsafeMutablePointer<UInt>
  let isFull: Bool

  /// Counts the words, for an owner that gets them. If a stray write changed the number of a partly filled magazine, it
  /// is unknown which words that had. The owner then gets only the address of the number, to report it, and not the
  /// value written there, which may be a word that is in use.
  func countWords(capacity: Int) -> Int {
    if isFull { return capacity }
    if let rounds = DepotLists.partialRounds(words, capacity: capacity) { return rounds }
    words[0] = UInt(bitPattern: words + capacity - 1)
    return 1
  }
}

/// A stack of magazines, linked through the word before each one's rounds.
struct MagazineList {
  private(set) var first: UnsafeMutablePointer<UInt>?
  private(set) var count = 0

  static func link(_ words: UnsafeMutablePointer<UInt>) -> UnsafeMutablePointer<UInt>? {
    UnsafeMutablePointer(bitPattern: words[-1])
  }

  mutating func push(_ words: UnsafeMutablePointer<UInt>) {
    words[-1] = UInt(bitPattern: first)
    first = words
    count += 1
  }

  mutating func pop() -> UnsafeMutablePointer<UInt>? {
    guard let words = first else { return nil }
    first = Self.link(words)
    count -= 1
    return words
  }

  /// Finds the magazine `index` steps below the top; `index` is below `count`.
  func at(_ index: Int) -> UnsafeMutablePointer<UInt>? {
    var words = first
    for _ in 0..<index { words = words.flatMap(Self.link) }
    return words
  }

  var isSound: Bool {
    var (next, seen) = (first, 0)
    while let words = next, seen <= count {
      seen += 1
      next = Self.link(words)
    }
    return seen == count
  }
}
