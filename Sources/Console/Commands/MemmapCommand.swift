// memmap: the memory map as the firmware gave it, and the frames that Strata took of it.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var memmap: CommandDescription {
    CommandDescription(
      name: "memmap", usage: "memmap",
      about: """
        The memory map as the firmware gave it, the usable ranges of it, and how
        many frames were taken from each range.
        """,
      example: "memmap", question: .thing,
      arguments: .none)
  }
}

extension Shell {
  func memmap() throws(CommandError) {
    let boot = subject.pointee.boot
    let map = memory.map
    let count = Int(boot.pointee.range_count)
    let ranges = cp_boot_ranges(boot)
    var highest: UInt64 = 0
    for i in 0..<count { highest = max(highest, ranges[i].base &+ max(1, ranges[i].length) &- 1) }
    let digits = UInt8(max(1, (64 - highest.leadingZeroBitCount + 15) / 16) * 4)

    let table = table("memmap")
    table.column("from", .exact)
    table.column("to", .exact)
    table.column("size", .figure, key: "bytes")
    table.column("firmware", .text)
    table.column("frames", .exact)
    table.column("taken", .sum)
    var usable: UInt64 = 0
    var covered: UInt64 = 0
    var base: UInt64 = 0
    var done = 0
    // In the order of addresses; the firmware may have any. As many passes as there are bases.
    while done < count {
      var next = UInt64.max
      for i in 0..<count where ranges[i].base >= base { next = min(next, ranges[i].base) }
      for i in 0..<count where ranges[i].base == next && (ranges[i].base >= base) {
        done += 1
        let (start, length) = (ranges[i].base, ranges[i].length)
        let last = length == 0 ? start : start &+ length &- 1
        var frames = TakenFrames()
        if ranges[i].type == 1 && length > 0 {
          usable = usable &+ length
          // A frame belongs to the range that holds its first byte, and is counted once.
          let (low, high) = (max(start, covered), last < start ? UInt64.max : last)
          frames = takenFrames(of: map, from: low, to: high)
          covered = max(covered, high == .max ? high : high + 1)
        }
        table.begin()
        table.address(PhysicalAddress(start), digits: digits)
        table.address(PhysicalAddress(last), digits: digits)
        table.size(ByteCount(length))
        table.text(Self.firmwareWords(ranges[i].type))
        if frames.count > 0 {
          table.text("\(frames.first) to \(frames.end - 1)")
          table.count(frames.count)
        } else {
          table.empty()
          if isJSON { table.count(0) } else { table.empty() }
        }
        table.end()
        if shouldStop { return }
      }
      if next == .max { break }
      base = next + 1
    }
    table.finish(total: "\(count: UInt64(count), "range")")
    print("\(map.frames.bytes) in \(count: map.frames.rawValue, "frame") of \(ByteCount(usable)) usable.")
    leftOut(of: map, digits)
    if boot.pointee.ranges_dropped > 0 {
      print(
        "! \(count: UInt64(boot.pointee.ranges_dropped), "range") of the firmware did not fit the boot record."
      )
    }
  }

  /// Frames of a range that Strata took: the first, the end behind the last, and the count between them.
  private struct TakenFrames {
    var first = UInt64.max
    var end: UInt64 = 0
    var count: UInt64 = 0
  }

  /// The frames that begin between the addresses `low` and `high`, both inclusive.
  private func takenFrames(of map: MemoryMap, from low: UInt64, to high: UInt64) -> TakenFrames {
    var frames = TakenFrames()
    for k in 0..<map.count {
      let run = map[k]
      let from = max(UInt64(run.first.rawValue), (low + Page.size - 1) >> Page.shift)
      let to = min(UInt64(run.end.rawValue), high >> Page.shift + 1)
      guard from < to else { continue }
      frames.count += to - from
      frames.first = min(frames.first, from)
      frames.end = max(frames.end, to)
    }
    return frames
  }

  /// The usable memory that Strata left out, in the order of addresses, and the state of the MTRRs.
  private func leftOut(of map: MemoryMap, _ digits: UInt8) {
    if map.noteCount > 0 {
      let table = table("memmap_left_out")
      table.column("left out", .exact, key: "from")
      table.column("size", .figure, key: "bytes")
      table.column("frames", .exact)
      table.column("because", .text)
      var before: (UInt64, Int)?
      for _ in 0..<map.noteCount {
        var next: (UInt64, Int)?
        for i in 0..<map.noteCount {
          let place = (map.note(at: i).base.rawValue, i)
          if let before, place <= before { continue }
          if let found = next, found <= place { continue }
          next = place
        }
        guard let next else { break }
        before = next
        let note = map.note(at: next.1)
        let (base, length) = (note.base.rawValue, note.length.rawValue)
        table.begin()
        table.address(note.base, digits: digits)
        table.size(note.length)
        if length > 0 && (base | length) & (Page.size - 1) == 0 {
          let (first, count) = (base >> Page.shift, length >> Page.shift)
          table.text(count == 1 ? "\(first)" : "\(first) to \(first + count - 1)")
        } else {
          table.empty()
        }
        table.text(note.reason.description)
        table.end()
      }
      table.finish()
    }
    if map.unkeptNoteCount > 0 { leftOutByReason(map) }
    row("memmap_rules") { row in
      row.field("left_out", UInt64(map.noteCount + map.unkeptNoteCount))
      row.field("mtrrs", text: Line(Self.description(of: map.caching)))
    }
    switch map.caching {
    case .on: break
    case .off: print("The MTRRs are off: no memory is left out for its caching.")
    case .absent: print("There are no MTRRs: no memory is left out for its caching.")
    }
  }

  /// The memory left out, summed by reason: for a map that could not record each range.
  private func leftOutByReason(_ map: MemoryMap) {
    print("\(count: UInt64(map.unkeptNoteCount), "more place") were left out. All places by reason:")
    let table = table("memmap_left_out_by_reason")
    table.column("because", .text)
    table.column("places", .sum)
    table.column("size", .sum, key: "bytes")
    for value in 0..<MapNote.Reason.count {
      guard let reason = MapNote.Reason(rawValue: UInt8(value)), map.places(reason) > 0 else { continue }
      table.begin()
      table.text(reason.description)
      table.count(UInt64(map.places(reason)))
      table.size(map.dropped(reason))
      table.end()
    }
    table.finish(total: "all reasons")
  }

  private static func description(of state: MemoryTypeRanges.State) -> StaticString {
    switch state {
    case .absent: "absent"
    case .off: "off"
    case .on: "on"
    }
  }

  private static func firmwareWords(_ type: UInt32) -> Line {
    switch type {
    case 1: "usable"
    case 2: "reserved"
    case 3: "ACPI tables"
    case 4: "ACPI storage"
    case 5: "bad"
    case cp_boot_type_ram_disk: "RAM disk"
    default: "type \(type)"
    }
  }
}
