// The choice of the sleeper whose sleep is refused, when all threads sleep and no processor can wake any.
//
// This is true of the set of sleepers and not of each: a thread that waits for memory may hold a lock that another waits
// for. So one sleep is refused, of a thread that waits for memory, because its caller can handle that. Its next steps may
// wake the others, which continue to sleep. While a thread waits for an interrupt, the machine may still go on, and no
// sleep is refused.

/// The choice among threads that all sleep without a deadline: `add` each of them once.
@usableFromInline package struct StuckSleepers<Sleeper> {
  @usableFromInline var mayBeInterrupted = false
  @usableFromInline var oldest: (sleeper: Sleeper, since: UInt64)?

  /// Makes a choice among no threads.
  @inlinable package init() {}

  /// Adds a sleeper. `since` orders the sleeps: a lower number began earlier.
  @inlinable package mutating func add(_ sleeper: Sleeper, _ kind: WaitKind, since: UInt64) {
    switch kind {
    case .thread: break
    case .interrupt: mayBeInterrupted = true
    case .memory:
      if let oldest, oldest.since < since { return }
      oldest = (sleeper, since)
    }
  }

  /// The thread whose sleep is refused: of those that wait for memory the one that has slept longest.
  @inlinable package var refused: Sleeper? { mayBeInterrupted ? nil : oldest?.sleeper }
}
