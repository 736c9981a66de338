// Waiting, the one primitive: a queue is a sequence number that changes whenever something happened
// that a sleeper may wait for.
//
// A caller reads the number under the lock that guards its condition, drops the lock, and sleeps until
// the number is another; so a wake between the two is never lost. The machine carries the sleep out:
// threads, or on one processor without threads the devices, run until woken.

import CPlatform
import Synchronization

/// What a sleeper waits for.
public typealias WaitKind = cp_wait_kind

/// A place to sleep. Lives in place; nobody may sleep on it when it goes.
public struct WaitQueue: ~Copyable {
  let sequence = Atomic<UInt64>(0)
  private let what: StaticString
  private let kind: WaitKind

  /// `what` is waited for here, as a list of threads is to say it. A queue that an interrupt handler wakes has the kind
  /// `interrupt`; one that only threads wake says so, as while a thread waits for an interrupt, those that wait for
  /// memory are not refused.
  public init(_ what: StaticString, _ kind: WaitKind = .interrupt) {
    self.what = what
    self.kind = kind
  }

  /// What to hand to `sleep`; taken under the lock that guards the condition.
  public struct Ticket { let seen: UInt64 }

  public borrowing func ticket() -> Ticket {
    Ticket(seen: sequence.load(ordering: .acquiring))
  }

  /// Sleeps until the queue was woken after `ticket` was taken. False when that can't happen: the
  /// deadline passed; or nothing runs that could wake it, which is said of a queue for memory, and of any
  /// on a machine without threads.
  public borrowing func sleep(_ ticket: Ticket, until deadline: Tick = .never, on machine: Machine) -> Bool {
    withUnsafePointer(to: sequence) { atomic in
      atomic.withMemoryRebound(to: UInt64.self, capacity: 1) {
        machine.sleep($0, seen: ticket.seen, until: deadline, kind, for: what) == .woken
      }
    }
  }

  public borrowing func wake(on machine: Machine) {
    sequence.add(1, ordering: .sequentiallyConsistent)
    withUnsafePointer(to: sequence) { atomic in
      atomic.withMemoryRebound(to: UInt64.self, capacity: 1) { machine.wake($0) }
    }
  }
}
