// One thread of a stress: its random turns, and its tally.

import CPlatform
import Kmem
import KernelMemory
import MemoryPrimitives
import Paging
import Synchronization

/// A worker: a handle on its record, which no other thread uses while it runs.
struct StressWorker {
  struct Record {
    let stress: ProcessorStress
    let number: Int
    /// The counter of operations, which others may read while it runs.
    let operations: UnsafeMutablePointer<Counter>
    var random: SeededRandom
    /// The processor that it must run on, if any.
    var processor: UInt32?
    var tally = StressTally()
    /// Stamps that it has made: no two are equal.
    var made: UInt64 = 0
  }
  let record: UnsafeMutablePointer<Record>

  init(_ record: UnsafeMutablePointer<Record>) { self.record = record }

  var stress: ProcessorStress { record.pointee.stress }
  func below(_ limit: UInt64) -> UInt64 { record.pointee.random.below(limit) }
  func oneIn(_ n: UInt64) -> Bool { record.pointee.random.oneIn(n) }
  func countOperation() { record.pointee.operations.pointee.add() }
  func countRefusal() { record.pointee.tally.refused += 1 }

  /// Records a failure unless an invariant holds.
  func require(
    _ holds: Bool, _ invariant: StaticString, _ subject: UInt64 = 0, found: UInt64 = 0, expected: UInt64 = 0
  ) {
    guard !holds else { return }
    var failure = StressFailure(invariant)
    failure.subject = subject
    failure.found = found
    failure.expected = expected
    stress.record(failure)
  }

  /// A new stamp, different from all others.
  func stamp() -> UInt64 {
    record.pointee.made += 1
    return (UInt64(record.pointee.number) << 28 | record.pointee.made) &* 0x9e37_79b9_7f4a_7c15 | 1
  }

  // MARK: The thread

  /// Starts its thread on the processor of its number, or on any, where that processor has no thread free.
  func start() -> ThreadHandle? {
    let processor = UInt64(record.pointee.number % stress.plan.processors)
    let machine = stress.machine
    stress.state.pointee.running.add(1, ordering: .acquiringAndReleasing)
    // The thread reads it, so it is set before the thread begins.
    record.pointee.processor = UInt32(processor)
    if let thread = machine.start("stress", .worker, on: 1 << processor, record, Self.body) { return thread }
    record.pointee.processor = nil
    if let thread = machine.start("stress", .worker, record, Self.body) { return thread }
    stress.state.pointee.running.subtract(1, ordering: .acquiringAndReleasing)
    return nil
  }

  private static var body: @convention(c) (UnsafeMutableRawPointer?) -> Void {
    { StressWorker($0.unsafelyUnwrapped.assumingMemoryBound(to: Record.self)).work() }
  }

  private func work() {
    let plan = stress.plan
    stress.pages?.fill(self)
    while record.pointee.tally.rounds < plan.rounds, !stress.isOver {
      turn()
      record.pointee.tally.rounds += 1
      if let processor = record.pointee.processor {
        let here = cp_processor_index()
        require(
          here == processor, "a thread runs on a processor that it may not run on", found: UInt64(here),
          expected: UInt64(processor))
      }
    }
    stress.state.pointee.running.subtract(1, ordering: .acquiringAndReleasing)
    stress.state.pointee.ended.wake(on: stress.machine)
  }

  private func turn() {
    if stress.plan.turns == .compressedStore { return stress.stored.use(self) }
    switch below(34) {
    case 0..<7: stress.resources.exchange(self)
    case 7, 8: stress.bounded.use(self)
    case 9..<17: stress.addresses.read(self)
    case 17..<20: stress.addresses.remap(self)
    case 20..<28: stress.pages?.use(self)
    case 28: stress.pages?.wire(self)
    case 29: stress.pages?.disturb(self)
    case 31..<33: stress.stored.use(self)
    case 30: if oneIn(16) { stress.memory.kmem.drain() }
    default: if oneIn(4) { runTransientThreads() }
    }
  }
}

/// The counts of a worker.
struct StressTally {
  var rounds: UInt64 = 0
  var exchanged: UInt64 = 0
  var remapped: UInt64 = 0
  var reads: UInt64 = 0
  var pages: UInt64 = 0
  var refused: UInt64 = 0
}

extension ProcessorStressOutcome {
  mutating func add(_ tally: StressTally) {
    rounds += tally.rounds
    exchanged += tally.exchanged
    remapped += tally.remapped
    reads += tally.reads
    pages += tally.pages
    refused += tally.refused
  }
}
