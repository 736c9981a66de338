// help: the commands, sorted by the question that a person has.

import KernelMemory
import MemoryPrimitives

extension Shell {
  func help(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else {
      if isJSON {
        for i in 0..<Command.all.count { row(for: Command.all[i]) }
        return
      }
      print("Where did my memory go?  frames map kmem vmem objects vmstat -m|-z")
      print("Why did it fail?         why SIZE, failures, buddy, queues, swap, locks")
      print("What is this?            whatis ADDRESS, pagetable ADDRESS, memmap")
      print("Try it                   tour replay dirty verify contig launder wire unwire")
      print("                         fault selftest bench watchdog")
      print("What has changed?        snapshot diff watch; cpus, threads")
      print("Tune it, leave           sysctl NAME=VALUE; poweroff, panic")
      print("help COMMAND explains one and gives an example. Tab completes. -j is for tools.")
      return
    }
    try arguments.end("help [COMMAND]")
    guard let command = Command.named(word.bytes) else {
      if let near = Command.nearest(to: word.bytes) {
        throw refuse("No command \"\(word.line)\". Did you mean \(near.name)?")
      }
      throw refuse("No command \"\(word.line)\". help lists all.")
    }
    if isJSON {
      row(for: command)
      return
    }
    printUsage(command.usage)
    forEachLine(of: command.about) { text in
      var line = Line("  ")
      line.append(bytes: text)
      print(line)
    }
    print("  Example: \(command.example)")
  }

  /// Prints the usage, broken at blanks where it is longer than the screen is wide.
  private func printUsage(_ usage: StaticString) {
    let bytes = Bytes(start: usage.utf8Start, count: usage.utf8CodeUnitCount)
    var from = 0
    while from < bytes.count {
      var line = Line()
      if from > 0 { line.append(blanks: 2) }
      var end = min(bytes.count, from + width - line.count)
      while end < bytes.count && bytes[end] != UInt8(ascii: " ") && end > from + 1 { end -= 1 }
      line.append(bytes: Bytes(rebasing: bytes[from..<end]))
      print(line)
      from = end + 1
    }
  }

  private func row(for command: Command) {
    row("command") { row in
      row.field("command", text: Line(command.name))
      row.field("usage", text: Line(command.usage))
      row.field("example", text: Line(command.example))
    }
  }

  /// Calls `body` with each line of `text`.
  func forEachLine(of text: StaticString, _ body: (Bytes) -> Void) {
    let bytes = Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount)
    var from = 0
    for i in 0...bytes.count where i == bytes.count || bytes[i] == 0x0a {
      body(Bytes(rebasing: bytes[from..<i]))
      from = i + 1
    }
  }
}
