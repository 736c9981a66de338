// The depot: magazines that no processor has at the moment, by what is in them.

import MemoryPrimitives

/// What all processors share. Behind the handle `MagazineSet`.
@usableFromInline struct Depot: ~Copyable {
  let lists: Locked<DepotLists>
  @usableFromInline let slots: UnsafeMutableRawPointer
  @usableFromInline let stride: Int
  let rounds: Int
  let machine: Machine
}

/// The lists under the depot's lock.
struct DepotLists {
  var full = MagazineList()
  var partial = MagazineList()
  var empty = MagazineList()
  /// Magazines in lists and slots together.
  var total = 0
  var isOn = true
  /// Full magazines that may lie here.
  var fullLimit: Int
  /// The fewest that lay here since the last trim.
  var fewestFull = 0
  var fewestEmpty = 0

  init(fullLimit: Int) { self.fullLimit = fullLimit }

  mutating func put(_ words: UnsafeMutablePointer<UInt>, rounds: Int, capacity: Int) {
    if rounds == 0 {
      empty.put(words)
    } else if rounds == capacity {
      full.put(words)
    } else {
      words[capacity - 1] = UInt(rounds) ^ Self.mark(words)
      partial.put(words)
    }
  }

  /// The rounds of a partly filled magazine; nil when something else wrote to the word that says so.
  static func partialRounds(_ words: UnsafePointer<UInt>, capacity: Int) -> Int? {
    let rounds = words[capacity - 1] ^ mark(words)
    return rounds >= 1 && rounds < UInt(capacity) ? Int(rounds) : nil
  }
  /// A word that differs from one magazine to the next, so that what a stray write leaves is no number of rounds.
  private static func mark(_ words: UnsafePointer<UInt>) -> UInt {
    UInt(bitPattern: words) &* 0x9e37_79b9_7f4a_7c15
  }

  mutating func takeFull() -> UnsafeMutablePointer<UInt>? {
    let words = full.take()
    fewestFull = min(fewestFull, full.count)
    return words
  }

  mutating func takeEmpty() -> UnsafeMutablePointer<UInt>? {
    let words = empty.take()
    fewestEmpty = min(fewestEmpty, empty.count)
    return words
  }

  /// The words of magazine number `index` of those that have any, full ones first.
  func magazine(_ index: Int, capacity: Int) -> UnsafeBufferPointer<UInt>? {
    if index < full.count { return UnsafeBufferPointer(start: full.at(index), count: capacity) }
    guard index - full.count < partial.count, let words = partial.at(index - full.count) else { return nil }
    return UnsafeBufferPointer(start: words, count: Self.partialRounds(words, capacity: capacity) ?? 0)
  }
}

/// A stack of magazines, linked through the word in front of each one's rounds.
struct MagazineList {
  private(set) var first: UnsafeMutablePointer<UInt>?
  private(set) var count = 0

  static func link(_ words: UnsafeMutablePointer<UInt>) -> UnsafeMutablePointer<UInt>? {
    UnsafeMutablePointer(bitPattern: words[-1])
  }

  mutating func put(_ words: UnsafeMutablePointer<UInt>) {
    words[-1] = UInt(bitPattern: first)
    first = words
    count += 1
  }

  mutating func take() -> UnsafeMutablePointer<UInt>? {
    guard let words = first else { return nil }
    first = Self.link(words)
    count -= 1
    return words
  }

  /// The magazine `index` steps below the top, which is below `count`.
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
