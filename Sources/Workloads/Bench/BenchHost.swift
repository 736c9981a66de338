// The surroundings of a bench: a console or a tool, and the machine below it.

import MemoryPrimitives
import PhysicalMemory

/// Gets the figures of benches, shows how far they are, and knows the executive below, if there is one.
package protocol BenchHost {
  /// Takes a figure, in parts of its row's scale. `goal` replaces the row's on a machine smaller than the budget's.
  func measured(_ budget: Budget, _ figure: UInt64, goal: BudgetGoal)
  /// Takes the reason for which a bench is left out: a part of a sentence.
  func leftOut(_ name: StaticString, _ why: Line)
  /// Takes the state in which a bench measures: so many dirty pages.
  func prepared(_ name: StaticString, dirty pages: PageCount)
  /// Takes the verdict on the pages that a bench has dirtied.
  func verified(_ verdict: DirtyPages.Verdict)
  /// Shows progress.
  func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace
  /// Whether to go on, asked where nothing is to be shown.
  var pace: Pace { get }
  /// The seed of the next fill: no two have the same stamps.
  var seed: UInt64 { get }

  /// Processors that run threads, 64 at most; none where there are no threads.
  var processors: Int { get }
  /// The cost of an interrupt without work, in cycles.
  var interruptCost: UInt64? { get }
  /// The longest hold of a lock of this rank so far, in cycles.
  func longestHold(of rank: LockRank) -> UInt64?
}

extension BenchHost {
  /// Takes a figure that is compared with the goal of its row.
  package func measured(_ budget: Budget, _ figure: UInt64) {
    measured(budget, figure, goal: budget.row.goal)
  }
}

/// A machine without an executive.
extension BenchHost {
  package var processors: Int { 0 }
  package var interruptCost: UInt64? { nil }
  package func longestHold(of rank: LockRank) -> UInt64? { nil }
}
