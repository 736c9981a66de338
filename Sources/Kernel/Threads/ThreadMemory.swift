// The memory of threads: records of a zone, and stacks of which some are kept.
//
// A thread takes new memory where there is some. Where there is none, it takes a record of the zone's demand and a kept
// stack, so that `Machine.threadsWithoutMemory` threads start when memory is gone. The stack of a thread that has ended
// is kept first. A start that found memory replenishes the stacks, and never waits for that.

import CPlatform
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import Synchronization

/// The zone of the records, and the way to a stack.
struct ThreadMemory {
  private let zone: ObjectCache
  private let type: MemoryType
  private let space: KernelAddressSpace

  /// Pages of a stack. A page fault is resolved on it, and lines of text need space.
  private static var stackPages: PageCount { PageCount(UInt64(8)) }
  /// The lowest addresses of the stacks that are kept; 0 where there is none.
  private static let first = Atomic<UInt64>(0)
  private static let second = Atomic<UInt64>(0)

  /// Makes the zone and keeps stacks. Nil when there is no memory for its demand. A small machine may have none for the
  /// stacks: they follow when a thread starts or ends.
  init?(_ memory: MemorySystem) {
    precondition(Machine.threadsWithoutMemory == 2, "two stacks are kept")
    type = memory.kmem.type(named: ShortName("thread"))
    space = memory.space
    do throws(KmemError) {
      zone = try memory.kmem.createZone(
        name: ShortName("thread"), size: ByteCount(MemoryLayout<Thread.Record>.size),
        demand: Machine.threadsWithoutMemory, type: type)
    } catch {
      return nil
    }
    replenish()
  }

  /// Allocates a record; nil when there is none.
  func allocateRecord() -> UnsafeMutablePointer<Thread.Record>? {
    let memory = zone.allocUnlogged(type: type) ?? zone.alloc(type: type, priority: .system)
    return memory?.bindMemory(to: Thread.Record.self, capacity: 1)
  }

  func free(_ record: UnsafeMutablePointer<Thread.Record>) {
    zone.free(UnsafeMutableRawPointer(record), type: type)
  }

  /// Allocates a stack; nil when there is no memory and none is kept.
  func allocateStack() -> KernelStack? {
    if let stack = try? newStack() {
      replenish()
      return stack
    }
    return take(Self.first) ?? take(Self.second)
  }

  private func take(_ kept: borrowing Atomic<UInt64>) -> KernelStack? {
    let bottom = kept.exchange(0, ordering: .acquiring)
    return bottom == 0 ? nil : KernelStack(bottom: VirtualAddress(bottom), count: Self.stackPages)
  }

  /// Keeps a stack, or frees it when enough are kept.
  func free(_ stack: KernelStack) {
    if !keep(stack) { space.freeStack(stack) }
  }

  private func newStack() throws(KernelSpaceError) -> KernelStack {
    try space.allocateStack(Self.stackPages, for: FrameOwner("a thread, its stack"))
  }

  private func replenish() {
    while lacksStack, let stack = try? newStack() { free(stack) }
  }

  private var lacksStack: Bool {
    Self.first.load(ordering: .relaxed) == 0 || Self.second.load(ordering: .relaxed) == 0
  }

  private func keep(_ stack: KernelStack) -> Bool { keep(stack, Self.first) || keep(stack, Self.second) }

  private func keep(_ stack: KernelStack, _ kept: borrowing Atomic<UInt64>) -> Bool {
    kept.compareExchange(expected: 0, desired: stack.bottom.rawValue, ordering: .releasing).exchanged
  }
}
