// cpus: the processors.

import CPlatform
import MemoryPrimitives
import Workloads

extension CommandDescription {
  static var cpus: CommandDescription {
    CommandDescription(
      name: "cpus", usage: "cpus",
      about: """
        The processors: what runs on each, how often it changed to another thread,
        how many interrupts it handled, how long it was idle.
        """,
      example: "cpus", question: .thing,
      arguments: .none)
  }
}

extension Shell {
  func cpus() throws(CommandError) {
    let view = try executive()
    let table = table("cpu", .asGiven)
    table.column("cpu", .text)
    table.column("apic", .figure)
    table.column("runs", .text)
    table.column("switches", .sum)
    table.column("interrupts", .sum)
    table.column("idle", .figure, key: "idle_cost")
    table.column("longest off", .figure, key: "longest_off_cost")
    table.column("unit", .text, for: .tools)
    var count: UInt64 = 0
    var leftOut = cp_left_out()
    view.forEachProcessor { index, row in
      count += 1
      leftOut = row.left_out
      table.begin()
      table.plain(UInt64(index))
      table.plain(UInt64(row.identity))
      table.text(name(cp_processor_name(&row), row.name_length))
      table.count(row.switches)
      table.count(row.interrupts)
      table.count(row.idle_cycles)
      table.count(row.longest_off)
      table.text(costUnit)
      table.end()
    }
    table.finish(total: "\(count: count, "cpu")")
    leftOut.forEachReason { print("! \(count: $0, "processor") of ACPI's list \($1).") }
    print("Idle and off are in \(costUnit); off is measured while machine.measure=on.")
  }
}
