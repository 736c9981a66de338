// The processors of this machine: who is there, and what each has to itself.
//
// A processor is told by its index, from 0 in the order in which they came up, and by the identity of its local
// APIC, which messages are sent to. Its block of words lies behind gs. A block stays for ever, so whoever looks at
// another's reads words that one processor writes.

import CPlatform
import MemoryPrimitives
import Synchronization

typealias ProcessorBlock = UnsafeMutablePointer<cp_processor_block>

enum Processors {
  /// Processors that may ever be there: those that ACPI names, as far as there is room for them.
  nonisolated(unsafe) static var named = 1
  /// Those of ACPI's list that did not answer, or that there was no room for.
  nonisolated(unsafe) static var leftOut = 0

  private static let online = Atomic<UInt64>(0)
  private static let count = Atomic<UInt64>(0)

  /// A bit for each that runs.
  static var onlineMask: UInt64 { online.load(ordering: .acquiring) }
  /// How many run: their indices are below it.
  static var onlineCount: Int { Int(count.load(ordering: .acquiring)) }

  /// The words of processor `index`, which must have been added.
  static func block(_ index: Int) -> ProcessorBlock {
    ProcessorBlock(bitPattern: UInt(cp_processors(Image.storage)[index])).unsafelyUnwrapped
  }

  /// This processor's words. Interrupts must be off, or the thread may be moved.
  static var mine: ProcessorBlock {
    UnsafeMutableRawPointer(cp_processor()).assumingMemoryBound(to: cp_processor_block.self)
  }

  /// Makes a block known.
  static func add(_ block: ProcessorBlock, index: Int) {
    cp_processors(Image.storage)[index] = UInt64(UInt(bitPattern: block))
    block.pointee.processor.`self` = UnsafeMutableRawPointer(block).assumingMemoryBound(to: cp_processor.self)
    block.pointee.processor.index = UInt32(index)
    block.pointee.processor.waits = cp_lock_waits_of(block)
  }

  /// Called by a processor that is ready for messages. Interrupts are off.
  static func noteOnline() {
    online.bitwiseOr(1 << UInt64(cp_processor_index()), ordering: .sequentiallyConsistent)
    count.add(1, ordering: .sequentiallyConsistent)
    // What this one has looked up before, nobody told it to forget.
    cp_invalidate_all()
  }
}
