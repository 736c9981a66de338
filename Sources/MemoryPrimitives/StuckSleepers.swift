// Which sleeper is told that no processor can wake it, when all sleep.
//
// It is true of the set of sleepers and not of each: a thread that waits for memory may hold what another waits for.
// So one thread is told, one that waits for memory, as its caller can be refused; what it does then may wake the
// others, which go on sleeping. While a thread waits for an interrupt, the machine is not dead: none is told.

/// The choice among threads that all sleep without a deadline: each is shown to it once.
public struct StuckSleepers<Sleeper> {
  @usableFromInline var mayBeInterrupted = false
  @usableFromInline var oldest: (sleeper: Sleeper, since: UInt64)?

  @inlinable public init() {}

  /// `since` orders the sleeps: a lower number began earlier.
  @inlinable public mutating func add(_ sleeper: Sleeper, _ kind: WaitKind, since: UInt64) {
    switch kind {
    case .thread: break
    case .interrupt: mayBeInterrupted = true
    case .memory:
      if let oldest, oldest.since < since { return }
      oldest = (sleeper, since)
    }
  }

  /// The thread to be told: of those that wait for memory the one that has slept longest.
  @inlinable public var refused: Sleeper? { mayBeInterrupted ? nil : oldest?.sleeper }
}
