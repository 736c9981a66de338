// snapshot: keeps all statistics of a moment, for diff.

import CPlatform
import KernelMemory
import MemoryPrimitives

extension CommandDescription {
  static var snapshot: CommandDescription {
    CommandDescription(
      name: "snapshot", usage: "snapshot [NAME]",
      about: "Keeps all counters under a name, for diff. It keeps four at most.",
      example: "snapshot before", question: .change)
  }
}

/// Four snapshots of all figures. Valid as zeroes.
struct Snapshots {
  static var capacity: Int { 4 }
  static var figures: Int { 512 }

  var count: Int
  /// The slot that was written last.
  var latest: Int
  /// Snapshots so far, and of each slot how many there were when it was written.
  var written: UInt64
  var ages: InlineArray<4, UInt64>
  var names: InlineArray<4, ShortName>
  var counts: InlineArray<4, Int>
  var values: InlineArray<2048, UInt64>
}

extension Shell {
  func forEachSnapshotName(_ body: (ShortName) -> Void) {
    for i in 0..<state.pointee.snapshots.count { body(state.pointee.snapshots.names[i]) }
  }

  func snapshot(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.nextOfAnyForm()
    try arguments.end()
    if let word, word.bytes.count == 0 || word.bytes.count > ShortName.capacity {
      throw refuse(word, "a name has 1 to \(UInt64(ShortName.capacity)) bytes")
    }
    let name = word.map { ShortName(bytes: $0.bytes) } ?? ShortName("last")
    let kept = inPlace(&state.pointee.snapshots)
    var slot = -1
    for i in 0..<kept.pointee.count where kept.pointee.names[i] == name { slot = i }
    if slot < 0 && kept.pointee.count < Snapshots.capacity {
      slot = kept.pointee.count
      kept.pointee.count += 1
    }
    var dropped: ShortName?
    if slot < 0 {
      slot = 0
      for i in 1..<Snapshots.capacity where kept.pointee.ages[i] < kept.pointee.ages[slot] { slot = i }
      dropped = kept.pointee.names[slot]
    }
    let count = min(statistics.count, Snapshots.figures)
    (kept.pointee.names[slot], kept.pointee.counts[slot]) = (name, count)
    kept.pointee.latest = slot
    kept.pointee.written += 1
    kept.pointee.ages[slot] = kept.pointee.written
    for i in 0..<count { kept.pointee.values[slot * Snapshots.figures + i] = statistics[i].value }
    row("snapshot") { row in
      row.field("name", text: "\(name)")
      row.field("counters", UInt64(count))
    }
    print("Kept \(count: UInt64(count), "counter") as \"\(name)\". Type: diff \(name)")
    if let dropped { print("\"\(dropped)\" was dropped: four are kept.") }
  }
}
