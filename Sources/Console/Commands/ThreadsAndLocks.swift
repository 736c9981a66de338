// cpus, threads, locks, watchdog: the state of processors and threads, and the waits for locks.

import CPlatform
import MemoryPrimitives
import Workloads

extension Shell {
  private func executive() throws(CommandError) -> ExecutiveView {
    guard let view = state.pointee.host.executive else {
      _ = refuse("There are no processors and threads of Strata's own here.")
      throw .unfit
    }
    return view
  }

  private func name(_ bytes: UnsafeMutablePointer<UInt8>, _ length: UInt8) -> Line {
    var line = Line()
    line.append(bytes: UnsafeBufferPointer(start: bytes, count: Int(length)))
    return line
  }

  /// Instructions for which a spin lock may be held.
  private static var holdBudget: UInt64 { Budget.longestHeld.row.bound ?? 0 }

  private var cycleWord: StaticString { countsInstructions ? "instructions" : "cycles" }

  // MARK: cpus

  func cpus() throws(CommandError) {
    let view = try executive()
    let table = table("cpu", .asGiven)
    table.column("cpu", .text)
    table.column("apic", .figure)
    table.column("runs", .text)
    table.column("switches", .sum)
    table.column("interrupts", .sum)
    table.column("idle", .figure, key: "idle_cycles")
    table.column("longest off", .figure)
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
      table.end()
    }
    table.finish(total: "\(count: count, "cpu")")
    guard !isJSON else { return }
    leftOut.forEachReason { print("! \(count: $0, "processor") of ACPI's list \($1).") }
    print("Idle and off are in \(cycleWord); off is measured while machine.measure=on.")
  }

  // MARK: threads

  func threads() throws(CommandError) {
    let view = try executive()
    let table = table("thread", .asGiven)
    table.column("id", .text)
    table.column("thread", .text, key: "name")
    table.column("state", .text)
    table.column("cpu", .figure)
    table.column("stack used", .figure, key: "stack_used")
    table.column("turns", .sum)
    table.column("waits for", .text, key: "waits_for")
    if isJSON {
      table.column("stack_size", .figure)
      table.column("deadline", .figure)
    }
    var count: UInt64 = 0
    view.forEachThread { row in
      count += 1
      table.begin()
      table.plain(UInt64(row.number))
      table.text(name(cp_thread_name(&row), row.name_length))
      table.text(words(row))
      table.plain(UInt64(row.processor))
      table.size(ByteCount(row.stack_used))
      table.count(row.runs)
      table.text(awaited(row))
      if isJSON {
        table.size(ByteCount(row.stack_size))
        if hasDeadline(row) { table.count(row.deadline) } else { table.none() }
      }
      table.end()
    }
    table.finish(total: "\(count: count, "thread")")
  }

  private func hasDeadline(_ row: cp_thread_row) -> Bool { row.state == .sleeping && row.deadline != .max }

  /// The purpose of a thread's sleep, and its deadline.
  private func awaited(_ row: cp_thread_row) -> Line {
    var line = Line()
    guard let what = row.waits_for else { return line }
    var count = 0
    while what[count] != 0 { count += 1 }
    line.append(bytes: UnsafeBufferPointer(start: what, count: count))
    if hasDeadline(row) && !isJSON { line.append(line: ", tick \(count: row.deadline)") }
    return line
  }

  private func words(_ row: cp_thread_row) -> StaticString {
    switch row.state {
    case .ready: row.is_idle ? "idle" : "ready"
    case .running: "runs"
    case .sleeping: "sleeps"
    case .ended: "ended"
    }
  }

  // MARK: locks

  func locks() throws(CommandError) {
    let view = try executive()
    let table = table("lock", .asGiven)
    table.column("rank", .text)
    table.column("locks", .text, key: "name")
    table.column("kind", .text, key: "sort")
    table.column("waits", .sum)
    table.column("longest wait", .figure)
    table.column("longest hold", .figure)
    table.column("held by", .text)
    LockRank.forEach { rank, title in
      var row = cp_lock_row()
      view.locks(view.context, rank.rawValue, &row)
      table.begin()
      table.plain(UInt64(rank.rawValue))
      table.text(title)
      table.text(rank.kind == .spin ? "spin" : "sleeping")
      table.count(row.waits)
      table.count(row.longest_wait)
      table.count(row.longest_hold)
      table.text(holders(rank, view))
      table.end()
    }
    table.finish()
    guard !isJSON else { return }
    LockRank.forEach { rank, title in
      var row = cp_lock_row()
      view.locks(view.context, rank.rawValue, &row)
      guard rank.kind == .spin, countsInstructions, row.longest_hold > Self.holdBudget else { return }
      print("! \(title): \(count: row.longest_hold) up to \(code(VirtualAddress(row.hold_site)) ?? "-")")
    }
    print("A thread acquires locks in rising rank. Waits and holds are in \(cycleWord);")
    print(
      "holds are measured while machine.measure=on. The budget for a spin lock: \(count: Self.holdBudget).")
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

  // MARK: watchdog

  func watchdog(_ arguments: Arguments) throws(CommandError) {
    let usage: StaticString = "watchdog [on|off]"
    let view = try executive()
    if let word = arguments.next() {
      try arguments.end(usage)
      switch true {
      case word.bytes == "on": view.watch(view.context, true)
      case word.bytes == "off": view.watch(view.context, false)
      default: throw refuse(word, "on or off")
      }
    }
    let isOn = view.watching(view.context)
    if isJSON {
      row("watchdog") { $0.field("on", isOn ? 1 : 0) }
    } else {
      print(
        isOn ? "On: a processor without progress for ten seconds reports, and the machine stops." : "Off.")
    }
  }
}
