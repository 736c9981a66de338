// locks: the waits for locks by rank, and their holders.

import CPlatform
import MemoryPrimitives
import Workloads

extension CommandDescription {
  static var locks: CommandDescription {
    CommandDescription(
      name: "locks", usage: "locks",
      about: """
        Locks by rank: how often a processor waited for one, how long at most, and
        which processors hold one at this moment.
        """,
      example: "locks", question: .failure,
      arguments: .none)
  }
}

extension Shell {
  /// Instructions for which a spin lock may be held.
  private static var holdBudget: UInt64 { Budget.longestHeld.row.bound ?? 0 }

  func locks() throws(CommandError) {
    let view = try executive()
    let table = table("lock", .asGiven)
    table.column("rank", .text)
    table.column("locks", .text, key: "name")
    table.column("kind", .text, key: "sort")
    table.column("waits", .sum)
    table.column("longest wait", .figure, key: "longest_wait_cost")
    table.column("longest hold", .figure, key: "longest_hold_cost")
    table.column("unit", .text, for: .tools)
    table.column("held by", .text)
    LockRank.forEach { rank, title in
      let row = view.waits(for: rank)
      table.begin()
      table.plain(UInt64(rank.rawValue))
      table.text(title)
      table.text(rank.kind == .spin ? "spin" : "sleeping")
      table.count(row.waits)
      table.count(row.longest_wait)
      table.count(row.longest_hold)
      table.text(costUnit)
      table.text(holders(rank, view))
      table.end()
    }
    table.finish()
    LockRank.forEach { rank, title in
      let row = view.waits(for: rank)
      guard rank.kind == .spin, CycleCounter.countsInstructions, row.longest_hold > Self.holdBudget else {
        return
      }
      print("! \(title): \(count: row.longest_hold) up to \(code(VirtualAddress(row.hold_site)) ?? "-")")
    }
    print("A thread acquires locks in rising rank. Waits and holds are in \(costUnit);")
    print("holds are measured while machine.measure=on.")
    if CycleCounter.countsInstructions {
      print("The budget for a spin lock: \(count: Self.holdBudget) instructions.")
    }
  }

  /// The processors whose innermost spin lock is of this rank.
  private func holders(_ rank: LockRank, _ view: ExecutiveView) -> Line {
    var line = Line()
    view.forEachProcessor { index, row in
      guard row.held_rank == rank.rawValue else { return }
      line.append(line: line.count == 0 ? "cpu \(index)" : ", \(index)")
    }
    return line
  }
}
