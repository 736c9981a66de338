// memmap, frames, buddy: the physical memory of this machine, and its use.

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

  /// The memory left out, summed by reason: for a map that could not record each range.
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
      print(
        "Cached pages among the free ones: \(count: cached.rawValue). A fault reactivates one without I/O.")
    }
    if sum != total && !isJSON {
      print("! memmap took \(count: total): a frame is counted twice or not at all. Type: selftest")
    }
  }

  // MARK: buddy

  func buddy() throws(CommandError) {
    if isJSON { return printBuddyRows() }
    var table = BuddyTable(physical)
    table.layOut(width: width)
    printBuddyLines(table)
    if table.isSplit {
      table.showRest()
      printBuddyLines(table)
    }
    print(
      "\(count: table.free, "frame") free in \(count: table.total, "block"), \(PageCount(table.free).bytes); the largest has \(table.largest)"
    )
    if !table.hasBlockOf2MiB {
      if table.free >= 1024 {
        print("! No block of 2 MiB: it is fragmentation, not shortage. Type: why 2M align=2M")
      } else {
        print("! No block of 2 MiB: it is shortage. Type: frames")
      }
    }
  }

  private func printBuddyRows() {
    for list in 0..<RangeList.count {
      guard let list = RangeList(rawValue: UInt8(list)) else { continue }
      for order in 0...BuddyTable.largestOrder {
        let count = physical.blocks(in: list, of: BlockOrder(UInt8(order)))
        row("buddy") { row in
          row.field("list", text: Line(list.description))
          row.field("order", UInt64(order))
          row.field("blocks", count)
          row.field("frames", count << UInt64(order))
        }
      }
    }
  }

  /// Prints the orders that `table` shows: each list that has blocks, their sum, and the two shares.
  private func printBuddyLines(_ table: BuddyTable) {
    print(table.line("order", "frames") { "\($0)" })
    for list in 0..<RangeList.count {
      guard let list = RangeList(rawValue: UInt8(list)) else { continue }
      var frames: UInt64 = 0
      for order in 0...BuddyTable.largestOrder {
        frames += physical.blocks(in: list, of: BlockOrder(UInt8(order))) << UInt64(order)
      }
      if frames == 0 && !showsAll { continue }
      print(
        table.line(list.description, "\(count: frames)") {
          BuddyTable.digits(physical.blocks(in: list, of: BlockOrder(UInt8($0))))
        })
    }
    print(table.line("all blocks", "\(count: table.free)") { BuddyTable.digits(table.blocks[$0]) })
    print(table.line("unusable, %", Line()) { table.unusable($0) })
    print(table.line("fragmentation", Line()) { table.fragmentation($0) })
  }
}

/// The free blocks of all lists by order, and the layout of their table. A column is as wide as its widest figure, with
/// two blanks between columns where they fit. Orders that don't fit beside the others get a table of their own below.
private struct BuddyTable {
  static var largestOrder: Int { 18 }

  private(set) var blocks = InlineArray<19, UInt64>(repeating: 0)
  private(set) var free: UInt64 = 0
  private(set) var total: UInt64 = 0
  private(set) var isSplit = false
  /// The highest order with a column.
  private var highest = 10
  private var widths = InlineArray<19, Int>(repeating: 1)
  private var gap = 2
  /// The orders that are shown.
  private var first = 0
  private var last = 10

  init(_ physical: FrameAllocator) {
    for order in 0...Self.largestOrder {
      for list in 0..<RangeList.count {
        guard let list = RangeList(rawValue: UInt8(list)) else { continue }
        blocks[order] += physical.blocks(in: list, of: BlockOrder(UInt8(order)))
      }
      if blocks[order] > 0 { highest = max(highest, order) }
      free += blocks[order] << UInt64(order)
      total += blocks[order]
    }
  }

  /// Decides the widths of columns for a screen of `width` columns, and shows the orders that fit.
  mutating func layOut(width: Int) {
    var sum = 15 + 9
    var fits = -1
    for order in 0...highest {
      widths[order] = max(
        max(Line("\(order)").count, Self.digits(blocks[order]).count),
        max(unusable(order).count, fragmentation(order).count))
      sum += widths[order] + 1
      if sum <= width { fits = order }
    }
    isSplit = sum > width && fits >= 0
    gap = isSplit || sum + highest + 1 > width ? 1 : 2
    last = isSplit ? fits : highest
  }

  /// Shows the orders that did not fit.
  mutating func showRest() { (first, last) = (last + 1, highest) }

  static func digits(_ count: UInt64) -> Line { count == 0 ? "." : "\(count)" }

  /// The share of free memory that lies in blocks below this order (Gorman and Whitcroft, 2006).
  func unusable(_ order: Int) -> Line {
    var below: UInt64 = 0
    for smaller in 0..<order { below += blocks[smaller] << UInt64(smaller) }
    return free == 0 ? "-" : "\((below * 100 + free / 2) / free)"
  }

  /// 1 - (1 + free / wanted) / blocks, where no block is large enough: near 0 for shortage, near 1 for
  /// fragmentation.
  func fragmentation(_ order: Int) -> Line {
    for larger in order...Self.largestOrder where blocks[larger] > 0 { return "-" }
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

  /// A line of the table: `name`, a cell for each order that is shown, and `tail` behind the highest order.
  func line(_ name: StaticString, _ tail: Line, _ cell: (Int) -> Line) -> Line {
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
    return line
  }

  var hasBlockOf2MiB: Bool {
    for order in 9...Self.largestOrder where blocks[order] > 0 { return true }
    return false
  }

  /// The size of the largest free block.
  var largest: ByteCount {
    for order in stride(from: Self.largestOrder, through: 0, by: -1) where blocks[order] > 0 {
      return BlockOrder(UInt8(order)).frames.bytes
    }
    return .zero
  }
}
