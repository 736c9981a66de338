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
    var table = BuddyTable(FreeBlocks(physical))
    // A person reads the orders across, a tool one after the other.
    if isJSON { return printRows(table.free) }
    let free = table.free.frames
    table.layOut(width: width)
    printBuddyLines(table)
    if table.isSplit {
      table.showRest()
      printBuddyLines(table)
    }
    print(
      "\(count: free, "frame") free in \(count: table.free.total, "block"), \(PageCount(free).bytes); the largest has \(table.largest)"
    )
    if !table.hasBlockOf2MiB {
      if free >= 1024 {
        print("! No block of 2 MiB: it is fragmentation, not shortage. Type: why 2M align=2M")
      } else {
        print("! No block of 2 MiB: it is shortage. Type: frames")
      }
    }
  }

  private func printRows(_ free: FreeBlocks) {
    let table = table("buddy")
    table.column("list", .text)
    table.column("order", .figure)
    table.column("blocks", .figure)
    table.column("frames", .figure)
    RangeList.forEach { list in
      for order in 0...FreeBlocks.largestOrder {
        table.begin()
        table.text(list.description)
        table.plain(UInt64(order))
        table.count(free.blocks(in: list, of: order))
        table.count(free.blocks(in: list, of: order) << UInt64(order))
        table.end()
      }
    }
  }

  /// Prints the orders that `table` shows: each list that has blocks, their sum, and the two shares.
  private func printBuddyLines(_ table: BuddyTable) {
    print(table.line("order", "frames") { "\($0)" })
    RangeList.forEach { list in
      let frames = table.free.frames(in: list)
      if frames == 0 && !showsAll { return }
      print(
        table.line(list.description, "\(count: frames)") {
          BuddyTable.digits(table.free.blocks(in: list, of: $0))
        })
    }
    print(
      table.line("all blocks", "\(count: table.free.frames)") { BuddyTable.digits(table.free.blocks(of: $0)) }
    )
    print(table.line("unusable, %", Line()) { table.unusable($0) })
    print(table.line("fragmentation", Line()) { table.fragmentation($0) })
  }
}

extension RangeList {
  fileprivate static func forEach(_ body: (RangeList) -> Void) {
    for number in 0..<count {
      if let list = RangeList(rawValue: UInt8(number)) { body(list) }
    }
  }
}

/// The free blocks by list and order, read once, so that they add up while other processors allocate.
private struct FreeBlocks {
  static var largestOrder: Int { 18 }
  private static var orders: Int { largestOrder + 1 }

  private var counts = InlineArray<57, UInt64>(repeating: 0)

  init(_ physical: FrameAllocator) {
    RangeList.forEach { list in
      for order in 0...Self.largestOrder {
        counts[Int(list.rawValue) * Self.orders + order] = physical.blocks(
          in: list, of: BlockOrder(UInt8(order)))
      }
    }
  }

  func blocks(in list: RangeList, of order: Int) -> UInt64 {
    counts[Int(list.rawValue) * Self.orders + order]
  }

  /// Blocks of an order in all lists.
  func blocks(of order: Int) -> UInt64 {
    var sum: UInt64 = 0
    RangeList.forEach { sum += blocks(in: $0, of: order) }
    return sum
  }

  func frames(in list: RangeList) -> UInt64 {
    var sum: UInt64 = 0
    for order in 0...Self.largestOrder { sum += blocks(in: list, of: order) << UInt64(order) }
    return sum
  }

  /// Free frames in blocks.
  var frames: UInt64 {
    var sum: UInt64 = 0
    RangeList.forEach { sum += frames(in: $0) }
    return sum
  }

  /// Blocks of all lists and orders.
  var total: UInt64 {
    var sum: UInt64 = 0
    for order in 0...Self.largestOrder { sum += blocks(of: order) }
    return sum
  }
}

/// The layout of free blocks in a table. A column is as wide as its widest figure, with
/// two blanks between columns where they fit. Orders that don't fit beside the others get a table of their own below.
private struct BuddyTable {
  let free: FreeBlocks
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

  init(_ free: FreeBlocks) {
    self.free = free
    for order in highest...FreeBlocks.largestOrder where free.blocks(of: order) > 0 { highest = order }
  }

  /// Decides the widths of columns for a screen of `width` columns, and shows the orders that fit.
  mutating func layOut(width: Int) {
    tailWidth = max(10, ("\(count: free.frames)" as Line).count + 2)
    var sum = 14 + tailWidth
    var fits = -1
    for order in 0...highest {
      widths[order] = max(
        max(Line("\(order)").count, Self.digits(free.blocks(of: order)).count),
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
    for smaller in 0..<order { below += free.blocks(of: smaller) << UInt64(smaller) }
    let all = free.frames
    return all == 0 ? "-" : "\((below * 100 + all / 2) / all)"
  }

  /// 1 - (1 + free / wanted) / blocks, where no block is large enough: near 0 for shortage, near 1 for
  /// fragmentation.
  func fragmentation(_ order: Int) -> Line {
    for larger in order...FreeBlocks.largestOrder where free.blocks(of: larger) > 0 { return "-" }
    let total = free.total
    guard total > 0 else { return "-" }
    let share = (1000 + free.frames * 1000 >> UInt64(order)) / total
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
    for order in 9...FreeBlocks.largestOrder where free.blocks(of: order) > 0 { return true }
    return false
  }

  /// The size of the largest free block.
  var largest: ByteCount {
    for order in stride(from: FreeBlocks.largestOrder, through: 0, by: -1) where free.blocks(of: order) > 0 {
      return BlockOrder(UInt8(order)).frames.bytes
    }
    return .zero
  }
}
