// Inspection: where a word is, and all words.

import CPlatform
import MemoryPrimitives

/// The location of a word: a processor's magazines or the depot.
package enum MagazinePlace: Equatable, Sendable {
  case processor(ProcessorIndex)
  case depot
}

extension MagazineSet {
  /// Finds where `word` is; nil when no magazine has it. While other processors use the set, the answer may be out of
  /// date. Asks every processor; no spin lock may be held.
  package func location(of word: UInt) -> MagazinePlace? {
    struct Search {
      let magazines: MagazineSet
      let word: UInt
      var isFound = false
    }
    var search = Search(magazines: self, word: word)
    for processor in 0..<depot.machine.processorCount {
      withUnsafeMutablePointer(to: &search) {
        depot.machine.run(on: ProcessorIndex(UInt32(processor)), UnsafeMutableRawPointer($0)) {
          let search = $0.assumingMemoryBound(to: Search.self)
          search.pointee.isFound = search.pointee.magazines.mine.pointee.holds(search.pointee.word)
        }
      }
      if search.isFound { return .processor(ProcessorIndex(UInt32(processor))) }
    }
    // One magazine in each hold of the lock, by its number.
    var index = 0
    let capacity = depot.rounds
    while true {
      let isThere = depot.lists.withLock { $0.magazine(index, capacity: capacity)?.contains(word) }
      guard let isThere else { return nil }
      if isThere { return .depot }
      index += 1
    }
  }

  /// Visits every word, and says where it is. No other processor and no interrupt may use the set at the same time,
  /// because magazines could be removed under the walk; nor may `body`.
  package func forEachWord<E>(_ body: (UInt, MagazinePlace) throws(E) -> Void) throws(E) {
    for processor in 0..<depot.machine.processorCount {
      let slot = slot(processor)
      let place = MagazinePlace.processor(ProcessorIndex(UInt32(processor)))
      for i in 0..<slot.pointee.rounds { try body(slot.pointee.loaded[i], place) }
      if let previous = slot.pointee.previous {
        for i in 0..<slot.pointee.previousRounds { try body(previous[i], place) }
      }
    }
    let rounds = depot.rounds
    let (full, partial) = depot.lists.withLock { ($0.full.first, $0.partial.first) }
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

  /// Words in all magazines. No other processor may use the set at the same time.
  package var wordCount: Int {
    var count = 0
    forEachWord { _, _ in count += 1 }
    return count
  }
}
