// Transient threads: each is a worker for a few turns, on any processor. The worker that started it joins it. Its
// stack, its record and its links in queues are reused at once by the next.

import KernelMemory
import Kmem
import MemoryPrimitives
import Synchronization

extension StressWorker {
  /// A transient thread has one object of kmem: its record, and behind it its counter.
  private static var counterOffset: Int { (MemoryLayout<Record>.size + 7) & ~7 }
  private static var recordSize: ByteCount { ByteCount(counterOffset + MemoryLayout<Counter>.size) }

  private struct Transient {
    let transient: UnsafeMutablePointer<Record>
    let thread: ThreadHandle
  }

  /// Starts up to three threads, and waits for them.
  func runTransientThreads() {
    var started: InlineArray<3, Transient?> = .init(repeating: nil)
    for i in 0..<Int(1 + below(3)) {
      started[i] = startTransient()
      if started[i] == nil { countRefusal() }
    }
    for i in 0..<3 {
      guard let thread = started[i] else { continue }
      let transient = thread.transient
      stress.machine.join(thread.thread)
      record.pointee.tally.exchanged += transient.pointee.tally.exchanged
      record.pointee.tally.refused += transient.pointee.tally.refused
      countOperation()
      free(transient)
    }
  }

  private func startTransient() -> Transient? {
    let resources = stress.resources
    guard let storage = stress.memory.kmem.alloc(Self.recordSize, type: resources.type) else { return nil }
    let counter = (storage + Self.counterOffset).bindMemory(to: Counter.self, capacity: 1)
    counter.initialize(to: Counter())
    let transient = storage.bindMemory(to: Record.self, capacity: 1)
    let number = stress.state.pointee.transients.add(1, ordering: .relaxed).oldValue
    transient.initialize(
      to: Record(
        stress: stress, number: 1000 + Int(number), operations: counter,
        random: SeededRandom(seed: record.pointee.random.next())))
    let thread = stress.machine.start("visitor", .worker, transient) {
      let me = StressWorker($0.unsafelyUnwrapped.assumingMemoryBound(to: Record.self))
      for _ in 0..<8 where !me.stress.isOver { me.stress.resources.exchange(me) }
    }
    guard let thread else {
      stress.state.pointee.transients.subtract(1, ordering: .relaxed)
      free(transient)
      return nil
    }
    return Transient(transient: transient, thread: thread)
  }

  private func free(_ transient: UnsafeMutablePointer<Record>) {
    transient.pointee.operations.deinitialize(count: 1)
    transient.deinitialize(count: 1)
    stress.memory.kmem.free(
      UnsafeMutableRawPointer(transient), size: Self.recordSize, type: stress.resources.type)
  }
}
