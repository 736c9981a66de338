// Threads that sleep on a machine with other threads, and the choice of one to refuse when no processor can wake any.
//
// A test may declare that only processors of the machine wake its sleepers. Then a machine on which all of them sleep
// is stuck, as the kernel is when all processors are idle, and the same choice names the thread to refuse
// (StuckSleepers). When there is none, and no sleeper waits for a deadline or an interrupt, a wake-up was lost, or the
// threads wait for each other. Then all are woken to check again, and the machine counts it for the test.

import CPlatform
import Foundation
import MemoryPrimitives

/// A thread that sleeps, or waits for another to end. Guarded by the machine's condition.
final class HostSleeper {
  let processor: HostProcessor
  let kind: WaitKind
  let deadline: UInt64
  /// Whether what it waits for has happened.
  let isDue: () -> Bool
  var answer: cp_wake?

  init(_ processor: HostProcessor, _ kind: WaitKind, until deadline: UInt64, _ isDue: @escaping () -> Bool) {
    self.processor = processor
    self.kind = kind
    self.deadline = deadline
    self.isDue = isDue
  }
}

extension SimulatedMachine {
  /// Threads that sleep now, on a machine with other threads.
  public var sleeperCount: Int { condition.withLock { sleepers.count } }

  /// Those of them that nothing has woken: the others are about to run.
  package var restingCount: Int { condition.withLock { sleepers.filter { !$0.isDue() }.count } }

  /// Sleeps until `isDue`, or the deadline has passed, with interrupt windows on the way, or until the machine refuses
  /// the sleep.
  func sleepAmongThreads(_ kind: WaitKind, until deadline: UInt64, _ isDue: @escaping () -> Bool) -> cp_wake {
    let me = processors[Int(cp_processor_index())]
    let sleeper = HostSleeper(me, kind, until: deadline, isDue)
    condition.withLock { sleepers.append(sleeper) }
    while true {
      me.poll()
      let answer: cp_wake? = condition.withLock {
        if sleeper.answer == nil { findStuck() }
        let isOver = isDue()
        if isOver || sleeper.answer != nil || ticks >= deadline {
          sleepers.removeAll { $0 === sleeper }
          return isOver ? .woken : sleeper.answer ?? .deadline
        }
        if !me.isAsked { _ = condition.wait(until: Date(timeIntervalSinceNow: 0.001)) }
        return nil
      }
      if let answer { return answer }
    }
  }

  /// Refuses the sleep of one sleeper if no processor can wake any. Call it with the condition locked.
  func findStuck() {
    guard isClosed else { return }
    func canRun() -> Bool {
      sleepers.contains {
        $0.answer != nil || $0.isDue() || ticks >= $0.deadline || $0.processor.isAsked
          || ($0.deadline != .max && !$0.processor.isService)
      }
    }
    // In this order: a thread that ends is live, then leaving, then ended, which makes the joining thread due.
    guard
      processors.allSatisfy({ processor in
        !processor.isLive || sleepers.contains { $0.processor === processor }
      }),
      threads.leaving.load(ordering: .sequentiallyConsistent) == 0, !canRun()
    else { return }
    var stuck = StuckSleepers<HostSleeper>()
    let untimed = sleepers.filter { $0.deadline == .max }
    for (since, sleeper) in untimed.enumerated() { stuck.add(sleeper, sleeper.kind, since: UInt64(since)) }
    if let refused = stuck.refused {
      refused.answer = .never
      refusals += 1
    } else if untimed.count == sleepers.count && !sleepers.contains(where: { $0.kind == .interrupt }) {
      rescues += 1
      precondition(rescues < 1000, "all threads of this machine sleep, and wait for each other")
      for sleeper in sleepers { sleeper.answer = .woken }
    }
    condition.broadcast()
  }
}
