// diff: the statistics that have changed since a snapshot.

import CPlatform
import KernelMemory
import MemoryPrimitives

extension CommandDescription {
  static var diff: CommandDescription {
    CommandDescription(
      name: "diff", usage: "diff [NAME] [-a]",
      about: "Changes since the snapshot of that name, or since the last one.",
      example: "diff before", after: "snapshot before", question: .change,
      completion: .names(of: .snapshots))
  }
}

extension Shell {
  func diff(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.nextOfAnyForm()
    try arguments.end()
    let kept = inPlace(&state.pointee.snapshots)
    guard kept.pointee.count > 0 else { throw refuse("There is no snapshot. Type: snapshot") }
    var slot = kept.pointee.latest
    if let word {
      slot = -1
      for i in 0..<kept.pointee.count where kept.pointee.names[i] == ShortName(bytes: word.bytes) { slot = i }
      if slot < 0 {
        throw refuse(
          "No snapshot \"\(word.line)\". The latest is \"\(kept.pointee.names[kept.pointee.latest])\".")
      }
    }
    let table = table("diff", .largestFirst)
    table.column("counter", .text)
    table.column("before", .figure)
    table.column("now", .figure)
    table.column("change", .figure)
    var unchanged: UInt64 = 0
    for i in 0..<kept.pointee.counts[slot] {
      let before = kept.pointee.values[slot * Snapshots.figures + i]
      let now = statistics[i].value
      if before == now {
        unchanged += 1
        continue
      }
      table.begin(weight: max(before, now) - min(before, now))
      table.text(statistics[i].name)
      table.count(before)
      table.count(now)
      table.change(from: before, to: now)
      table.end()
    }
    row("unchanged") { $0.field("counters", unchanged) }
    if unchanged == UInt64(kept.pointee.counts[slot]) {
      print("All \(count: unchanged, "counter") are unchanged.")
      return
    }
    table.finish()
    if isStopped("Stopped. The list of changes is not complete.") { return }
    print("\(count: unchanged) others are unchanged.")
  }
}
