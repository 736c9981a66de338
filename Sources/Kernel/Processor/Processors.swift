// The processors of this machine: which of them run, and the state of each.
//
// A processor has an index, counted from 0 in the order of their starts, and the identity of its local APIC, to which
// messages are sent. Its block of words lies behind gs. A block is never freed, so any processor may read the block
// of another, which only its owner writes.

import ACPI
import CPlatform
import MemoryPrimitives
import Synchronization

typealias ProcessorBlock = UnsafeMutablePointer<cp_processor_block>

enum Processors {
  /// The count of processors that have per-processor state: every index is below it. Written once, before anything is
  /// made.
  nonisolated(unsafe) private(set) static var made = 1
  /// The processors of ACPI's list that do not run, by reason.
  nonisolated(unsafe) static var leftOut = cp_left_out()

  private static let online = Atomic<UInt64>(0)
  private static let count = Atomic<UInt64>(0)

  /// A bit for each processor that runs.
  static var onlineMask: UInt64 { online.load(ordering: .acquiring) }
  /// The count of processors that run: their indices are below it.
  static var onlineCount: Int { Int(count.load(ordering: .acquiring)) }
  static func isOnline(_ index: Int) -> Bool { onlineMask >> UInt64(index) & 1 != 0 }

  /// Sets the count of processors that get per-processor state.
  static func make(for list: ProcessorList) {
    precondition(list.count <= Int(CP_PROCESSORS), "a list of more processors than there is storage for")
    made = list.count
  }

  /// The words of processor `index`, which must have been added.
  static func block(_ index: Int) -> ProcessorBlock {
    precondition(index >= 0 && index < made, "a processor for which nothing was made")
    return ProcessorBlock(bitPattern: UInt(cp_processors(Image.storage)[index])).unsafelyUnwrapped
  }

  /// This processor's words. Interrupts must be off, or the thread may be moved.
  static var mine: ProcessorBlock {
    UnsafeMutableRawPointer(cp_processor()).assumingMemoryBound(to: cp_processor_block.self)
  }

  /// Publishes a block under its index.
  static func add(_ block: ProcessorBlock, index: Int) {
    precondition(index >= 0 && index < made, "a processor for which nothing was made")
    cp_processors(Image.storage)[index] = UInt64(UInt(bitPattern: block))
    block.pointee.processor.`self` = UnsafeMutableRawPointer(block).assumingMemoryBound(to: cp_processor.self)
    block.pointee.processor.index = UInt32(index)
    block.pointee.processor.waits = cp_lock_waits_of(block)
  }

  /// Marks a processor that is ready for messages as online. From here on it is sent invalidations. It invalidates
  /// everything once it finds itself online, in place of those that it was not sent.
  static func recordOnline(_ index: Int) {
    // The count comes first. A processor that finds itself in the mask may send, and a receiver reads the messages of
    // the processors that are counted. It would pass over one that is not counted yet, and no second interrupt comes
    // for that message.
    count.add(1, ordering: .sequentiallyConsistent)
    online.bitwiseOr(1 << UInt64(index), ordering: .sequentiallyConsistent)
  }
}
