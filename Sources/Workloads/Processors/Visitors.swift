// Threads that come and go: each is a worker for a few turns, on any processor, and is joined by the one who
// started it. Its stack, its record and the places that it leaves in queues are used again at once by the next.

import KernelMemory
import Kmem
import MemoryPrimitives
import Synchronization

extension StressWorker {
  /// A visitor is one object of kmem: its record, and behind it what it counts.
  private static var counterOffset: Int { (MemoryLayout<Record>.size + 7) & ~7 }
  private static var visitorSize: ByteCount { ByteCount(counterOffset + MemoryLayout<Counter>.size) }

  private struct Visit {
    let visitor: UnsafeMutablePointer<Record>
    let thread: ThreadHandle
  }

  /// Starts up to three threads, and waits for them.
  func haveVisitors() {
    var visits: InlineArray<3, Visit?> = .init(repeating: nil)
    for i in 0..<Int(1 + below(3)) {
      visits[i] = invite()
      if visits[i] == nil { countRefusal() }
    }
    for i in 0..<3 {
      guard let visit = visits[i] else { continue }
      let visitor = visit.visitor
      stress.machine.join(visit.thread)
      record.pointee.tally.exchanged += visitor.pointee.tally.exchanged
      record.pointee.tally.refused += visitor.pointee.tally.refused
      countOperation()
      dismiss(visitor)
    }
  }

  private func invite() -> Visit? {
    let things = stress.things
    guard let room = stress.memory.kmem.alloc(Self.visitorSize, type: things.type) else { return nil }
    let counter = (room + Self.counterOffset).bindMemory(to: Counter.self, capacity: 1)
    counter.initialize(to: Counter())
    let visitor = room.bindMemory(to: Record.self, capacity: 1)
    let number = stress.state.pointee.visitors.add(1, ordering: .relaxed).oldValue
    visitor.initialize(
      to: Record(
        stress: stress, number: 1000 + Int(number), operations: counter,
        random: SeededRandom(seed: record.pointee.random.next())))
    let thread = stress.machine.start("visitor", .worker, visitor) {
      let me = StressWorker($0.unsafelyUnwrapped.assumingMemoryBound(to: Record.self))
      for _ in 0..<8 where !me.stress.isOver { me.stress.things.exchange(me) }
    }
    guard let thread else {
      stress.state.pointee.visitors.subtract(1, ordering: .relaxed)
      dismiss(visitor)
      return nil
    }
    return Visit(visitor: visitor, thread: thread)
  }

  private func dismiss(_ visitor: UnsafeMutablePointer<Record>) {
    visitor.pointee.operations.deinitialize(count: 1)
    visitor.deinitialize(count: 1)
    stress.memory.kmem.free(
      UnsafeMutableRawPointer(visitor), size: Self.visitorSize, type: stress.things.type)
  }
}
