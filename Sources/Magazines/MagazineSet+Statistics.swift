// Counts of a set's magazines and of its exchanges.

import CPlatform
import MemoryPrimitives

extension MagazineSet {
  /// Magazines that the owner added, in the depot or with processors.
  package var magazineCount: Int { depot.lists.withLock { $0.total } }
  /// Magazines with words in the depot.
  package var stockedCount: Int { depot.lists.withLock { $0.stocked } }
  /// Empty magazines in the depot.
  package var emptyCount: Int { depot.lists.withLock { $0.empty.count } }
  /// Magazines that processors exchanged with the depot.
  package var exchanges: UInt64 { sum { $0.pointee.exchanges.value } }
  /// Times a magazine was filled from the owner's supply.
  package var refills: UInt64 { sum { $0.pointee.refills.value } }
  /// Times the words of a full magazine were returned to the owner's supply.
  package var spills: UInt64 { sum { $0.pointee.spills.value } }

  private func sum(_ reader: (UnsafeMutablePointer<MagazineSlot>) -> UInt64) -> UInt64 {
    var sum: UInt64 = 0
    for processor in 0..<depot.machine.processorCount { sum += reader(slot(processor)) }
    return sum
  }
}
