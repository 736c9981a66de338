// buddy: free blocks by list and order, and two measures of fragmentation.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var buddy: CommandDescription {
    CommandDescription(
      name: "buddy", usage: "buddy",
      about: """
        Free blocks by list and order. Unusable is the share of free memory that
        lies in blocks too small for the order; the fragmentation index is
        near 1 where a refusal comes of fragmentation, near 0 where of shortage.
        """,
      example: "buddy", question: .failure,
      arguments: .none)
  }
}

extension Shell {
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
  /// The column of sums, with the blanks before it.
  private var tailWidth = 10
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
    tailWidth = max(10, ("\(count: free)" as Line).count + 2)
    var sum = 14 + tailWidth
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
      line.append(blanks: tailWidth - tail.count)
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
