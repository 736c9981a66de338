// The one primitive for waiting: a queue is a sequence number that changes at each event that a sleeper may wait for.
//
// A caller reads the number under the lock that guards its condition, releases the lock, and sleeps until the number has
// changed. So a wake between the two is never lost. The machine implements the sleep: until the wake it runs other
// threads, or on one processor without threads the devices.

import CPlatform
import Synchronization

/// The kind of event that a sleeper waits for.
@usableFromInline package typealias WaitKind = cp_wait_kind

/// A queue of sleepers. Lives in place; no thread may sleep on it when its memory is released.
package struct WaitQueue: ~Copyable {
  let sequence = Atomic<UInt64>(0)
  private let what: StaticString
  private let kind: WaitKind

  /// Makes a queue. The list of threads shows the text `what`. A queue that an interrupt handler wakes has the kind
  /// `interrupt`. One that only threads wake must have another kind: while a thread waits for an interrupt, those that
  /// wait for memory are not refused.
  package init(_ what: StaticString, _ kind: WaitKind = .interrupt) {
    self.what = what
    self.kind = kind
  }

  /// The argument of `sleep`, read under the lock that guards the condition.
  package struct Ticket { let seen: UInt64 }

  /// Reads the sequence number. Call it under the lock that guards the condition.
  package borrowing func ticket() -> Ticket {
    Ticket(seen: sequence.load(ordering: .acquiring))
  }

  /// Sleeps until a wake after `ticket` was read. Answers false when the deadline passed, or when no thread can wake the
  /// queue: this ends sleeps for memory only, except on a machine without threads.
  package borrowing func sleep(_ ticket: Ticket, until deadline: Tick = .never, on machine: Machine) -> Bool {
    withUnsafePointer(to: sequence) { atomic in
      atomic.withMemoryRebound(to: UInt64.self, capacity: 1) {
        machine.sleep($0, seen: ticket.seen, until: deadline, kind, for: what) == .woken
      }
    }
  }

  /// Wakes every sleeper. May be called with a condition's lock released, and by interrupt handlers.
  package borrowing func wake(on machine: Machine) {
    sequence.add(1, ordering: .sequentiallyConsistent)
    withUnsafePointer(to: sequence) { atomic in
      atomic.withMemoryRebound(to: UInt64.self, capacity: 1) { machine.wake($0) }
    }
  }
}
