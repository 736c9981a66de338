// The agreement between the processor that starts another one and the called processor, whether it came in time.
//
// The caller prepares a stack, a block and a thread for the called processor; they belong to one of the two at any time.
// A called processor may answer late, when the caller has offered the preparation to the next one, or stop between its
// answer and its first function. So each step is one exchange of a word that holds the identity of the called processor
// and its state:
//
//     unused ──call──▸ called ──claim──▸ claimed ──join──▸ joined
//       ▴               │                  │                │
//       └── withdraw ───┴──────────────────┴────────────────┘
//
// The called processor claims (boot/processors.asm), then joins; the caller withdraws when it has waited long enough. Of
// two that try at once one succeeds. The identity keeps a late processor from claiming another one's ticket.
//
// There is one record that describes the preparation, and the caller writes it anew after a call is over. So the called
// processor reads all of it after its claim, then checks that it still has the claim, and only then uses the record.
//
// INVARIANT: a preparation that was withdrawn before it was claimed belongs to the caller again. One withdrawn after that
// stays with the processor that claimed it, which may still run on it. That processor halts when it fails to join.

import Synchronization

/// A handle on the word.
package struct StartTicket {
  /// The steps of the called processor. boot/processors.asm uses the first three values.
  package enum State: UInt32 { case unused, called, claimed, joined }

  /// The outcome of a call.
  package enum Outcome: Sendable {
    /// It did not answer: the preparation is unused.
    case noAnswer
    /// It answered and went no further: the preparation is lost.
    case lost
    /// It runs.
    case joined
  }

  private let word: UnsafeMutablePointer<Atomic<UInt64>>

  /// Makes a handle. The word is zero before the first call.
  package init(_ word: UnsafeMutablePointer<Atomic<UInt64>>) { self.word = word }

  private static func value(_ identity: UInt32, _ state: State) -> UInt64 {
    state == .unused ? 0 : UInt64(state.rawValue) << 32 | UInt64(identity)
  }

  private func move(_ identity: UInt32, from old: State, to new: State) -> Bool {
    word.pointee.compareExchange(
      expected: Self.value(identity, old), desired: Self.value(identity, new),
      ordering: .sequentiallyConsistent
    ).exchanged
  }

  /// Offers the preparation to the processor with this identity. No call may be open.
  package func call(_ identity: UInt32) {
    precondition(word.pointee.load(ordering: .relaxed) == 0, "two processors are called at once")
    word.pointee.store(Self.value(identity, .called), ordering: .sequentiallyConsistent)
  }

  /// The last step of the called processor.
  package var state: State {
    State(rawValue: UInt32(truncatingIfNeeded: word.pointee.load(ordering: .acquiring) >> 32)) ?? .unused
  }

  /// Ends the call: the processor can no longer join, unless it has.
  package func withdraw(_ identity: UInt32) -> Outcome {
    if move(identity, from: .called, to: .unused) { return .noAnswer }
    if move(identity, from: .claimed, to: .unused) { return .lost }
    word.pointee.store(0, ordering: .sequentiallyConsistent)
    return .joined
  }

  /// Joins, for a called processor that is ready to run. Answers false when it came too late, and must halt.
  package func join(_ identity: UInt32) -> Bool { move(identity, from: .claimed, to: .joined) }
}
