// threads: the threads of the kernel.

import CPlatform
import MemoryPrimitives
import Workloads

extension CommandDescription {
  static var threads: CommandDescription {
    CommandDescription(
      name: "threads", usage: "threads",
      about: """
        The threads of the kernel: where each runs or ran last, how deep its stack
        ever was, how often it had its turn, until when it sleeps.
        """,
      example: "threads", question: .thing,
      synonyms: "ps top",
      arguments: .none)
  }
}

extension Shell {
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
    table.column("stack size", .figure, for: .tools)
    table.column("deadline", .figure, for: .tools)
    var count: UInt64 = 0
    view.forEachThread { row in
      count += 1
      table.begin()
      table.plain(UInt64(row.number))
      table.text(name(cp_thread_name(&row), row.name_length))
      table.text(description(of: row))
      table.plain(UInt64(row.processor))
      table.size(ByteCount(row.stack_used))
      table.count(row.runs)
      table.text(awaited(row))
      table.size(ByteCount(row.stack_size))
      if hasDeadline(row) { table.count(row.deadline) } else { table.none() }
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

  private func description(of row: cp_thread_row) -> StaticString {
    switch row.state {
    case .ready: row.is_idle ? "idle" : "ready"
    case .running: "runs"
    case .sleeping: "sleeps"
    case .ended: "ended"
    }
  }
}
