// A table for a person: columns as wide as their cells, figures to the right, and lines that fit the screen.

import MemoryPrimitives

extension Table {
  /// Prints the table. `total` begins the last line, which has the sums; `note` ends it.
  func finish(total: Line? = nil, note: Line? = nil) {
    guard !console.isJSON else { return }
    let count = state.rowCount
    for i in 0..<count { state.order[i] = UInt8(i) }
    if state.sorted {
      // By insertion: rows come nearly sorted, and equal ones stay as they came.
      var i = 1
      while i < count {
        let moving = state.order[i]
        var j = i
        while j > 0 && rows[Int(state.order[j - 1])].weight < rows[Int(moving)].weight {
          state.order[j] = state.order[j - 1]
          j -= 1
        }
        state.order[j] = moving
        i += 1
      }
      if !console.showsAll && count > Self.shownRows + 2 {
        for i in Self.shownRows..<count { gather(rows + Int(state.order[i])) }
        state.rowCount = Self.shownRows
      }
    }
    var others = Line()
    if state.gathered > 0 { others = "\(count: state.gathered, "other")" }
    printRows(others: others, total: total, note: note)
  }

  /// The row that is shown at place `i`.
  private func row(at i: Int) -> UnsafeMutablePointer<Row> {
    rows + (state.sorted ? Int(state.order[i]) : i)
  }

  func printRows(others: Line = Line(), total: Line? = nil, note: Line? = nil) {
    let columns = columnCount
    for column in 0..<columns {
      var width = Int(columnWidth(column))
      guard columnStyle(column) != .bar else { continue }
      for i in 0..<state.rowCount { width = max(width, render(row(at: i), column).count) }
      if others.count > 0 {
        width = max(
          width, column == 0 ? others.count : render(inPlace(&state.others), column).count)
      }
      if let total {
        width = max(width, column == 0 ? total.count : render(inPlace(&state.total), column).count)
      }
      state.columns[column].width = UInt8(min(width, 200))
    }
    fit()
    if !state.hasHeader {
      state.hasHeader = true
      var header = Line()
      for column in 0..<columns {
        put(&header, Line(state.columns[column].title), column)
      }
      printTrimmed(header)
    }
    for i in 0..<state.rowCount {
      printRow(row(at: i), label: nil, note: nil)
      if console.shouldStop { return }
    }
    if others.count > 0 { printRow(inPlace(&state.others), label: others, note: nil) }
    if let total { printRow(inPlace(&state.total), label: total, note: note) }
  }

  /// Makes a table that is wider than the screen narrower: columns move together, then the widest ones of
  /// words lose their ends. Figures and addresses stay whole, so that they can be pasted back.
  private func fit() {
    state.gap = 2
    var sum = -2
    for column in 0..<columnCount { sum += Int(columnWidth(column)) + 2 }
    if sum > console.width {
      state.gap = 1
      sum -= columnCount - 1
    }
    while sum > console.width {
      var widest = -1
      for column in 0..<columnCount {
        let width = columnWidth(column)
        guard width > leastWidth(of: column) else { continue }
        if widest < 0 || width > columnWidth(widest) { widest = column }
      }
      guard widest >= 0 else { return }
      state.columns[widest].width -= 1
      sum -= 1
    }
  }

  /// The width down to which a column may be made narrower: an address of 16 digits and a comma fit a folded one.
  private func leastWidth(of column: Int) -> UInt8 {
    switch columnStyle(column) {
    case .text: 8
    case .folded: 22
    case .exact, .figure, .sum, .share, .ratio, .bar: .max
    }
  }

  private func printRow(_ row: UnsafeMutablePointer<Row>, label: Line?, note: Line?) {
    var line = Line()
    var folds = false
    for column in 0..<columnCount {
      if column == 0, let label {
        line.append(line: label)
        line.append(blanks: Int(columnWidth(0)) - label.count)
      } else if columnStyle(column) == .bar {
        if label != nil { continue }
        let cell = row.pointee.cells[column]
        let space = console.width - line.count - 2
        guard space >= 8, cell.b > 0 else { continue }
        let length = (cell.a * UInt64(space) + cell.b / 2) / cell.b
        line.append("  ")
        for _ in 0..<length { line.append(byte: UInt8(ascii: "#")) }
      } else if columnStyle(column) == .folded {
        put(&line, fold(row, column, 0) ?? Line(), column)
        folds = true
      } else {
        put(&line, render(row, column), column)
      }
    }
    if let note {
      line.append("  ")
      line.append(line: note)
    }
    printTrimmed(line)
    if folds { printFolds(row) }
  }

  /// Prints the lines below the first one of a row: the parts of its folded cells.
  private func printFolds(_ row: UnsafeMutablePointer<Row>) {
    for part in 1...Line.capacity {
      var line = Line()
      var isEmpty = true
      for column in 0..<columnCount where columnStyle(column) != .bar {
        let isFolded = columnStyle(column) == .folded
        let text = isFolded ? fold(row, column, part) : nil
        if text != nil { isEmpty = false }
        put(&line, text ?? Line(), column)
      }
      if isEmpty { return }
      printTrimmed(line)
    }
  }

  /// Part `number` of a folded cell; nil behind the last.
  private func fold(_ row: UnsafeMutablePointer<Row>, _ column: Int, _ number: Int) -> Line? {
    let text = render(row, column)
    let width = Int(columnWidth(column))
    var from = 0
    for _ in 0..<number {
      from = Self.foldEnd(text, from, width)
      if from == text.count { return nil }
    }
    var part = Line()
    for i in from..<Self.foldEnd(text, from, width) where part.count > 0 || text[i] != UInt8(ascii: " ") {
      part.append(byte: text[i])
    }
    return part
  }

  /// The end of the part of `text` that begins at `from`. A unit stays with its figure, and a figure with the word before
  /// it, unless a comma stands there.
  private static func foldEnd(_ text: Line, _ from: Int, _ width: Int) -> Int {
    var start = from
    while start < text.count && text[start] == UInt8(ascii: " ") { start += 1 }
    if text.count - start <= width { return text.count }
    for end in stride(from: start + width, to: start, by: -1) where text[end] == UInt8(ascii: " ") {
      let isWord = end + 1 < text.count && text[end + 1] >= UInt8(ascii: "a")
      let isAddress = end + 2 < text.count && text[end + 2] == UInt8(ascii: "x")
      if isWord || isAddress || text[end - 1] == UInt8(ascii: ",") { return end }
    }
    return start + width
  }

  private func printTrimmed(_ line: Line) {
    var line = line
    while line.count > 0 && line[line.count - 1] == UInt8(ascii: " ") { line.truncate(to: line.count - 1) }
    console.print(line)
  }

  private func put(_ line: inout Line, _ text: Line, _ column: Int) {
    if column > 0 { line.append(blanks: state.gap) }
    let width = Int(columnWidth(column))
    let style = columnStyle(column)
    if style == .text || style == .exact || style == .folded {
      var text = text
      if style == .text && text.count > width {
        // A cut text ends with a mark.
        text.truncate(to: width - 2)
        text.append("..")
      }
      line.append(line: text)
      line.append(blanks: width - text.count)
    } else {
      line.append(blanks: width - text.count)
      line.append(line: text)
    }
  }

  private func render(_ row: UnsafeMutablePointer<Row>, _ column: Int) -> Line {
    let cell = row.pointee.cells[column]
    guard cell.kind == .text else { return spelled(cell, columnStyle(column)) }
    var line = Line()
    for i in 0..<Int(cell.b) { line.append(byte: row.pointee.text[Int(cell.a) + i]) }
    return line
  }

  /// A cell as text, unless it is one of text.
  func spelled(_ cell: Cell, _ style: ColumnStyle) -> Line {
    var line = Line()
    switch cell.kind {
    case .empty, .text: break
    case .none: line.append("-")
    case .fixed: line.append(bytes: Self.fixed(cell))
    case .count: line.append(grouped: cell.a)
    case .plain: line.append(decimal: cell.a)
    case .decimal: line.append(decimal: cell.a, scale: cell.b)
    case .size: line.append(size: ByteCount(cell.a))
    case .share:
      if style == .ratio {
        line.append(roughShare: cell.a, of: cell.b)
      } else {
        line.append(share: cell.a, of: cell.b)
      }
    case .physical: line.append(hex: cell.a, digits: Int(cell.short))
    case .virtual: line.append(hex: cell.a, digits: 16)
    case .truth: line.append(cell.a == 1 ? "yes" : "no")
    case .change:
      line.append(byte: UInt8(ascii: cell.b < cell.a ? "-" : "+"))
      line.append(grouped: cell.b < cell.a ? cell.a - cell.b : cell.b - cell.a)
    }
    return line
  }

  static func fixed(_ cell: Cell) -> Bytes {
    Bytes(start: UnsafePointer<UInt8>(bitPattern: UInt(cell.a)), count: Int(cell.b))
  }
}
