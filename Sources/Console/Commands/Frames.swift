// memmap, frames, buddy: what physical memory there is and who has it.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension Shell {
  // MARK: memmap

  func memmap() throws(CommandError) {
    let boot = subject.pointee.boot
    let map = memory.map
    let count = Int(boot.pointee.range_count)
    let ranges = cp_boot_ranges(boot)
    var highest: UInt64 = 0
    for i in 0..<count { highest = max(highest, ranges[i].base &+ max(1, ranges[i].length) &- 1) }
    let digits = UInt8(max(1, (64 - highest.leadingZeroBitCount + 15) / 16) * 4)

    let table = table("memmap")
    table.column("from", .text)
    table.column("to", .text)
    table.column("size", .figure, key: "bytes")
    table.column("firmware", .text)
    table.column("frames", .text)
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
        var (first, end, taken) = (UInt64.max, UInt64(0), UInt64(0))
        if ranges[i].type == 1 && length > 0 {
          usable = usable &+ length
          // A frame counts where its first byte lies, and once.
          let (low, high) = (max(start, covered), last < start ? UInt64.max : last)
          for k in 0..<map.count {
            let run = map[k]
            let from = max(UInt64(run.first.rawValue), (low + Page.size - 1) >> Page.shift)
            let to = min(UInt64(run.end.rawValue), high >> Page.shift + 1)
            guard from < to else { continue }
            taken += to - from
            first = min(first, from)
            end = max(end, to)
          }
          covered = max(covered, high == .max ? high : high + 1)
        }
        table.begin()
        table.address(PhysicalAddress(start), digits: digits)
        table.address(PhysicalAddress(last), digits: digits)
        table.size(ByteCount(length))
        table.text(Self.firmwareWords(ranges[i].type))
        if taken > 0 {
          table.text("\(first) to \(end - 1)")
          table.count(taken)
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
    if !isJSON {
      print("\(map.frames.bytes) in \(count: map.frames.rawValue, "frame") of \(ByteCount(usable)) usable.")
    }
    leftOut(of: map, digits)
    if isJSON { return }
    if boot.pointee.ranges_dropped > 0 {
      print(
        "! \(count: UInt64(boot.pointee.ranges_dropped), "range") of the firmware did not fit the boot record."
      )
    }
  }

  /// What was usable and not taken, in the order of addresses, and whether the MTRRs were heard.
  private func leftOut(of map: MemoryMap, _ digits: UInt8) {
    if map.noteCount > 0 {
      let table = table("memmap_left_out")
      table.column("left out", .text, key: "from")
      table.column("size", .figure, key: "bytes")
      table.column("frames", .text)
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
    if isJSON {
      row("memmap_rules") { row in
        row.field("left_out", UInt64(map.noteCount + map.unkeptNoteCount))
        row.field("mtrrs", text: Line(Self.words(map.caching)))
      }
      return
    }
    switch map.caching {
    case .on: break
    case .off: print("The MTRRs are off: no memory is left out for its caching.")
    case .absent: print("There are no MTRRs: no memory is left out for its caching.")
    }
  }

  /// All that was left out, added up for each reason: for a map that could not keep a note of each place.
  private func leftOutByReason(_ map: MemoryMap) {
    if !isJSON {
      print("\(count: UInt64(map.unkeptNoteCount), "more place") were left out. All places by reason:")
    }
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

  private static func words(_ state: MemoryTypeRanges.State) -> StaticString {
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

  // MARK: frames

  func frames() throws(CommandError) {
    let total = physical.total.rawValue
    let table = table("frames", .largestFirst)
    table.column("role", .text)
    table.column("frames", .sum)
    table.column("size", .sum, key: "bytes")
    table.column("share", .share)
    table.column("", .bar)
    var sum: UInt64 = 0
    for value in 0..<FrameRole.count {
      guard let role = FrameRole(rawValue: UInt8(value)), role != .absent else { continue }
      let count = physical.count(role)
      sum += count.rawValue
      table.begin(weight: count.rawValue)
      table.text(role.description)
      table.count(count.rawValue)
      table.size(count.bytes)
      table.share(count.rawValue, of: total)
      table.share(count.rawValue, of: total)
      table.end()
    }
    table.finish(total: "all roles", note: sum == total ? "as memmap took them" : Line())
    let cached = physical.cachedCount
    row("cached") { row in
      row.field("pages", cached.rawValue)
      row.field("bytes_cached", cached.bytes.rawValue)
    }
    if cached > .zero && !isJSON {
      print("Cached pages among the free ones: \(count: cached.rawValue). A fault takes one back unread.")
    }
    if sum != total && !isJSON {
      print("! memmap took \(count: total): a frame is counted twice or not at all. Type: selftest")
    }
  }

  // MARK: buddy

  func buddy() throws(CommandError) {
    var blocks = InlineArray<19, UInt64>(repeating: 0)
    var highest = 10
    if isJSON {
      for list in 0..<RangeList.count {
        guard let list = RangeList(rawValue: UInt8(list)) else { continue }
        for order in 0...18 {
          let count = physical.blocks(in: list, of: Order(UInt8(order)))
          row("buddy") { row in
            row.field("list", text: Line(list.description))
            row.field("order", UInt64(order))
            row.field("blocks", count)
            row.field("frames", count << UInt64(order))
          }
        }
      }
      return
    }
    for order in 0...18 {
      for list in 0..<RangeList.count {
        guard let list = RangeList(rawValue: UInt8(list)) else { continue }
        blocks[order] += physical.blocks(in: list, of: Order(UInt8(order)))
      }
      if blocks[order] > 0 { highest = max(highest, order) }
    }
    var free: UInt64 = 0
    var total: UInt64 = 0
    for order in 0...18 {
      free += blocks[order] << UInt64(order)
      total += blocks[order]
    }
    func digits(_ count: UInt64) -> Line { count == 0 ? "." : "\(count)" }
    /// Of all that is free, what lies in blocks below this order (Gorman and Whitcroft, 2006).
    func unusable(_ order: Int) -> Line {
      var below: UInt64 = 0
      for smaller in 0..<order { below += blocks[smaller] << UInt64(smaller) }
      return free == 0 ? "-" : "\((below * 100 + free / 2) / free)"
    }
    /// 1 - (1 + free / wanted) / blocks, where no block is large enough: near 0 it is shortage, near 1
    /// fragmentation.
    func fragmentation(_ order: Int) -> Line {
      for larger in order...18 where blocks[larger] > 0 { return "-" }
      guard total > 0 else { return "-" }
      let share = (1000 + free * 1000 >> UInt64(order)) / total
      let index = share >= 1000 ? 0 : 1000 - share
      if index == 1000 { return "1.000" }
      var line = Line(".")
      if index < 100 { line.append("0") }
      if index < 10 { line.append("0") }
      line.append(decimal: index)
      return line
    }
    // A column is as wide as its widest figure; two blanks between them where they fit. Orders that don't fit
    // beside the others get a table of their own below.
    var widths = InlineArray<19, Int>(repeating: 1)
    var sum = 15 + 9
    var (first, last, fits) = (0, highest, -1)
    for order in 0...highest {
      widths[order] = max(
        max(Line("\(order)").count, digits(blocks[order]).count),
        max(unusable(order).count, fragmentation(order).count))
      sum += widths[order] + 1
      if sum <= width { fits = order }
    }
    let isSplit = sum > width && fits >= 0
    let gap = isSplit || sum + highest + 1 > width ? 1 : 2
    if isSplit { last = fits }

    func line(_ name: StaticString, _ tail: Line, _ cell: (Int) -> Line) {
      var line = Line(name)
      line.append(blanks: 14 - line.count)
      for order in first...last {
        let text = cell(order)
        line.append(blanks: gap + widths[order] - text.count)
        line.append(line: text)
      }
      if last == highest {
        line.append(blanks: 10 - tail.count)
        line.append(line: tail)
      }
      while line.count > 0 && line[line.count - 1] == UInt8(ascii: " ") { line.truncate(to: line.count - 1) }
      print(line)
    }
    func lines() {
      line("order", "frames") { "\($0)" }
      for list in 0..<RangeList.count {
        guard let list = RangeList(rawValue: UInt8(list)) else { continue }
        var frames: UInt64 = 0
        for order in 0...18 { frames += physical.blocks(in: list, of: Order(UInt8(order))) << UInt64(order) }
        if frames == 0 && !showsAll { continue }
        line(list.description, "\(count: frames)") { digits(physical.blocks(in: list, of: Order(UInt8($0)))) }
      }
      line("all blocks", "\(count: free)") { digits(blocks[$0]) }
      line("unusable, %", Line()) { unusable($0) }
      line("fragmentation", Line()) { fragmentation($0) }
    }
    lines()
    if isSplit {
      (first, last) = (fits + 1, highest)
      lines()
    }
    print(
      "\(count: free, "frame") free in \(count: total, "block"), \(PageCount(free).bytes); the largest has \(largest(blocks))"
    )
    var hasLarge = false
    for order in 9...18 where blocks[order] > 0 { hasLarge = true }
    if !hasLarge {
      if free >= 1024 {
        print("! No block of 2 MiB: it is fragmentation, not shortage. Type: why 2M align=2M")
      } else {
        print("! No block of 2 MiB: it is shortage. Type: frames")
      }
    }
  }

  private func largest(_ blocks: InlineArray<19, UInt64>) -> ByteCount {
    for order in stride(from: 18, through: 0, by: -1) where blocks[order] > 0 {
      return Order(UInt8(order)).frames.bytes
    }
    return .zero
  }
}
