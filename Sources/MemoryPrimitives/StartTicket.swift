// How the processor that calls another one and the called one agree whether it came in time.
//
// What a processor runs on (stack, block, thread) is prepared by the caller and belongs to one of the two at any time.
// A called processor may answer late, when the caller has given the preparation to the next one, or stop between its
// answer and its first function. So each step is one exchange of a word that holds the identity of the called processor
// and how far it has come:
//
//     unused ──call──▸ called ──claim──▸ claimed ──join──▸ joined
//       ▴               │                  │                │
//       └── withdraw ───┴──────────────────┴────────────────┘
//
// The called processor claims (boot/processors.asm), then joins; the caller withdraws when it has waited long enough. Of
// two that try at once one succeeds, and the identity keeps a late processor from taking another one's ticket.
//
// The record that describes the preparation is there once, and the caller writes it anew after a call that is over.
// So the called processor reads all of it after its claim, then looks whether it still has the claim, and only then uses
// what it read.
//
// INVARIANT. A preparation that was withdrawn before it was claimed is the caller's again; one withdrawn after that
// stays with the processor that claimed it, which may still run on it, and which halts when it fails to join.

import Synchronization

/// A handle on the word.
package struct StartTicket {
  /// How far the called processor has come. boot/processors.asm knows the first three values.
  package enum State: UInt32 { case unused, called, claimed, joined }

  /// What became of a call that is over.
  package enum Outcome: Sendable {
    /// It did not answer: what was prepared for it is unused.
    case noAnswer
    /// It answered and went no further: what was prepared for it is lost.
    case lost
    /// It runs.
    case joined
  }

  private let word: UnsafeMutablePointer<Atomic<UInt64>>

  /// The word is zero before the first call.
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

  /// How far the called processor has come.
  package var state: State {
    State(rawValue: UInt32(truncatingIfNeeded: word.pointee.load(ordering: .acquiring) >> 32)) ?? .unused
  }

  /// Ends the call: from here on the processor comes too late, unless it has joined.
  package func withdraw(_ identity: UInt32) -> Outcome {
    if move(identity, from: .called, to: .unused) { return .noAnswer }
    if move(identity, from: .claimed, to: .unused) { return .lost }
    word.pointee.store(0, ordering: .sequentiallyConsistent)
    return .joined
  }

  /// The step of a called processor that is ready to run: false when it came too late, and must halt.
  package func join(_ identity: UInt32) -> Bool { move(identity, from: .claimed, to: .joined) }
}
