// Tables. A command declares its columns once, fills rows with figures, and gets a table for a person or
// one JSON object a row for tools.
//
// Rows are kept as figures, not as text, so that small ones can be gathered into `N others` and a total can be
// printed: widths are known only when the last row has come. The largest row stands first, rows of nothing are left
// out, figures stand right, names left, two blanks between. More rows than fit the buffer: a sorted table gathers the
// smallest as they come, an unsorted one prints what it has, in the widths found so far.
//
// For tools each cell is written as it comes, so nothing is kept and no text is cut.

import MemoryPrimitives

/// The kind of a column: its contents, and its part in the last rows.
enum ColumnStyle: UInt8 {
  /// Text, left; cut at its end where the table is wider than the screen.
  case text
  /// Figures, addresses or names to be pasted back, left; never cut.
  case exact
  /// Words with figures among them, left; never cut. Where the table is wider than the screen, they go on below.
  case folded
  /// A figure, right; has no sum.
  case figure
  /// A figure, right, summed up.
  case sum
  /// A part of one whole, in percent: parts add up. For people only.
  case share
  /// A part of a whole of its own: parts and wholes add up. For people only.
  case ratio
  /// A share drawn in the space that is left. For people only.
  case bar
}

struct Table {
  static var rowCapacity: Int { 128 }
  static var columnCapacity: Int { 20 }
  /// Rows that a sorted table shows before it gathers the rest, and how many must be left to do so.
  static var shownRows: Int { 12 }

  /// The readers of a column.
  enum Audience: UInt8 { case everyone, people, tools }

  struct Column {
    var title: StaticString
    var key: StaticString
    var style: ColumnStyle
    var width: UInt8
  }

  struct Cell {
    enum Kind: UInt8 {
      case empty, fixed, text, count, plain, decimal, size, share, physical, virtual, change, truth, none
    }
    var kind: Kind
    var short: UInt8
    var a: UInt64
    var b: UInt64
  }

  struct Row {
    var weight: UInt64
    var used: Int
    var cells: InlineArray<20, Cell>
    var text: InlineArray<320, UInt8>
  }

  struct State {
    var kind: StaticString
    /// The kind of the rows that stand beside these, and their first column among all; none at first.
    var besideKind: StaticString
    var besideFirst: Int
    /// For tools: whether an object has been begun, that of the rows beside, and whether the next cells are for people
    /// only.
    var isOpen: Bool
    var isBeside: Bool
    var isMuted: Bool
    var sorted: Bool
    var hasHeader: Bool
    /// The columns that this reader gets.
    var columnCount: Int
    /// All columns, and those that are for another reader, a bit each.
    var declared: Int
    var hidden: UInt32
    var rowCount: Int
    var rowsEver: UInt64
    /// The next cell, counted among all columns and among those that this reader gets.
    var filling: Int
    var filled: Int
    var gathered: UInt64
    /// Blanks between columns.
    var gap: Int
    var columns: InlineArray<20, Column>
    var others: Row
    var total: Row
    var scratch: Row
    var order: InlineArray<128, UInt8>
    var rows: InlineArray<128, Row>
  }

  let console: Shell

  private var state: UnsafeMutablePointer<State> { inPlace(&console.state.pointee.table) }
  private var rowCount: Int {
    get { state.pointee.rowCount }
    nonmutating set { state.pointee.rowCount = newValue }
  }
  private var filling: Int {
    get { state.pointee.filling }
    nonmutating set { state.pointee.filling = newValue }
  }
  private var isOpen: Bool {
    get { state.pointee.isOpen }
    nonmutating set { state.pointee.isOpen = newValue }
  }
  private var isBeside: Bool {
    get { state.pointee.isBeside }
    nonmutating set { state.pointee.isBeside = newValue }
  }
  private var columnCount: Int { state.pointee.columnCount }
  private func columnStyle(_ column: Int) -> ColumnStyle { state.pointee.columns[column].style }
  private func columnWidth(_ column: Int) -> UInt8 { state.pointee.columns[column].width }

  private var rows: UnsafeMutablePointer<Row> {
    UnsafeMutableRawPointer(inPlace(&state.pointee.rows)).assumingMemoryBound(to: Row.self)
  }
  private var scratch: UnsafeMutablePointer<Row> { inPlace(&state.pointee.scratch) }

  init(_ console: Shell, _ kind: StaticString, sorted: Sorting) {
    self.console = console
    state.pointee.kind = kind
    state.pointee.besideKind = kind
    state.pointee.besideFirst = .max
    state.pointee.isOpen = false
    state.pointee.isBeside = false
    state.pointee.isMuted = false
    state.pointee.sorted = sorted == .largestFirst
    state.pointee.hasHeader = false
    state.pointee.columnCount = 0
    state.pointee.declared = 0
    state.pointee.hidden = 0
    state.pointee.rowCount = 0
    state.pointee.rowsEver = 0
    state.pointee.filling = 0
    state.pointee.gathered = 0
    state.pointee.gap = 2
    clear(inPlace(&state.pointee.others))
    clear(inPlace(&state.pointee.total))
  }

  enum Sorting: UInt8 { case largestFirst, asGiven }

  private func clear(_ row: UnsafeMutablePointer<Row>) {
    row.pointee.weight = 0
    row.pointee.used = 0
    for i in 0..<Self.columnCapacity { row.pointee.cells[i] = Cell(kind: .empty, short: 0, a: 0, b: 0) }
  }

  // MARK: Columns

  /// A column with `title`; its JSON key is `key`, or the title. One for tools is no part of the printed table, and
  /// one for people no part of the JSON.
  func column(
    _ title: StaticString, _ style: ColumnStyle, key: StaticString? = nil, for audience: Audience = .everyone
  ) {
    let isHidden = audience == (console.isJSON ? .people : .tools)
    if isHidden { state.pointee.hidden |= 1 << UInt32(state.pointee.declared) }
    state.pointee.declared += 1
    precondition(state.pointee.declared <= 32)
    if isHidden { return }
    let index = state.pointee.columnCount
    precondition(index < Self.columnCapacity)
    state.pointee.columns[index] = Column(
      title: title, key: key ?? title, style: style,
      width: UInt8(title.utf8CodeUnitCount))
    state.pointee.columnCount = index + 1
  }

  /// Columns from here on are those of rows of another kind, which stand beside the others. Tools get them as rows of
  /// their own.
  func beside(_ kind: StaticString) {
    state.pointee.besideKind = kind
    state.pointee.besideFirst = state.pointee.declared
  }

  /// Columns for a cost: in the unit of this machine's cycle counter, which tools find beside the figure.
  func costColumns(_ style: ColumnStyle = .figure) {
    column(console.costUnit, style, key: "cost")
    column("unit", .text, for: .tools)
  }

  // MARK: Rows

  /// Starts a row. `weight` is what a sorted table sorts by; nothing of weight zero is shown.
  func begin(weight: UInt64 = 1) {
    clear(scratch)
    scratch.pointee.weight = weight
    filling = 0
    state.pointee.filled = 0
    isBeside = false
    if console.isJSON { state.pointee.isMuted = console.shouldStop }
  }

  /// The cells up to the end of the row, or up to those of the rows beside it, are for `audience`.
  func part(for audience: Audience) {
    guard console.isJSON else { return }
    endFirstKind()
    state.pointee.isMuted = audience == .people || console.shouldStop
  }

  /// Whether the next cell is in a column for another reader.
  private var isHidden: Bool { state.pointee.hidden >> UInt32(filling) & 1 != 0 }

  private func add(_ kind: Cell.Kind, _ a: UInt64, _ b: UInt64 = 0, short: UInt8 = 0) {
    precondition(filling < state.pointee.declared, "more cells than columns")
    defer { filling += 1 }
    if isHidden { return }
    let cell = Cell(kind: kind, short: short, a: a, b: b)
    if console.isJSON {
      write(cell, nil)
    } else {
      scratch.pointee.cells[state.pointee.filled] = cell
    }
    state.pointee.filled += 1
  }

  func text(_ words: StaticString) {
    add(.fixed, UInt64(UInt(bitPattern: words.utf8Start)), UInt64(words.utf8CodeUnitCount))
  }
  @_disfavoredOverload func text(_ line: Line) {
    if isHidden { return empty() }
    if console.isJSON {
      write(Cell(kind: .text, short: 0, a: 0, b: 0), line)
      filling += 1
      state.pointee.filled += 1
      return
    }
    let start = scratch.pointee.used
    let length = min(line.count, Line.capacity - start)
    for i in 0..<length { scratch.pointee.text[start + i] = line[i] }
    // More than a line of text can't be shown: its end is marked like that of any text that is cut.
    if length < line.count {
      for i in max(0, length - 2)..<length { scratch.pointee.text[start + i] = UInt8(ascii: ".") }
    }
    scratch.pointee.used = start + length
    add(.text, UInt64(start), UInt64(length))
  }
  @_disfavoredOverload func text(_ name: ShortName) { text("\(name)" as Line) }
  /// A count, with commas.
  func count(_ value: UInt64) { add(.count, value) }
  /// A number without commas: of a frame, an order.
  func plain(_ value: UInt64) { add(.plain, value) }
  /// A figure in parts of `scale`, a power of ten; a whole one is a count.
  func decimal(_ value: UInt64, scale: UInt64) {
    if scale == 1 { count(value) } else { add(.decimal, value, scale) }
  }
  func size(_ bytes: ByteCount) { add(.size, bytes.rawValue) }
  func share(_ part: UInt64, of whole: UInt64) { add(.share, part, whole) }
  func address(_ address: PhysicalAddress, digits: UInt8 = 12) {
    add(.physical, address.rawValue, short: digits)
  }
  func address(_ address: VirtualAddress) { add(.virtual, address.rawValue) }
  /// A cost in the unit of the cycle counter, for `costColumns`.
  func cost(_ value: UInt64) {
    count(value)
    text(console.costUnit)
  }
  /// How far `now` is from `before`, with its sign.
  func change(from before: UInt64, to now: UInt64) { add(.change, before, now) }
  func truth(_ value: JSONRow.Truth) { add(.truth, value == .yes ? 1 : 0) }
  /// A cell without a value: a dash.
  func none() { add(.none, 0) }
  /// An empty cell.
  func empty() { add(.empty, 0) }

  /// Ends the row.
  func end() {
    state.pointee.rowsEver += 1
    if console.isJSON { return closeObject() }
    sumUp(scratch, into: inPlace(&state.pointee.total))
    if state.pointee.sorted && scratch.pointee.weight == 0 && !console.showsAll { return }
    if rowCount == Self.rowCapacity {
      guard state.pointee.sorted else {
        printRows()
        rowCount = 0
        keep(at: 0)
        return
      }
      var smallest = 0
      for i in 1..<Self.rowCapacity where rows[i].weight < rows[smallest].weight { smallest = i }
      if scratch.pointee.weight <= rows[smallest].weight {
        gather(scratch)
      } else {
        gather(rows + smallest)
        (rows + smallest).update(from: scratch, count: 1)
      }
      return
    }
    keep(at: rowCount)
  }

  private func keep(at index: Int) {
    (rows + index).update(from: scratch, count: 1)
    rowCount = index + 1
  }

  private func gather(_ row: UnsafeMutablePointer<Row>) {
    state.pointee.gathered += 1
    sumUp(row, into: inPlace(&state.pointee.others))
  }

  private func sumUp(_ row: UnsafeMutablePointer<Row>, into sum: UnsafeMutablePointer<Row>) {
    for i in 0..<columnCount {
      let cell = row.pointee.cells[i]
      switch columnStyle(i) {
      case .text, .exact, .folded, .figure: continue
      case .sum, .share, .ratio, .bar: break
      }
      guard cell.kind != .none && cell.kind != .empty else { continue }
      let style = columnStyle(i)
      sum.pointee.cells[i].kind = cell.kind
      sum.pointee.cells[i].short = cell.short
      sum.pointee.cells[i].a &+= cell.a
      if style == .ratio {
        sum.pointee.cells[i].b &+= cell.b
      } else {
        sum.pointee.cells[i].b = cell.b
      }
    }
  }

  // MARK: As text

  /// Prints the table. `total` begins the last line, which has the sums; `note` ends it.
  func finish(total: Line? = nil, note: Line? = nil) {
    guard !console.isJSON else { return }
    let count = rowCount
    for i in 0..<count { state.pointee.order[i] = UInt8(i) }
    if state.pointee.sorted {
      // By insertion: rows come nearly sorted, and equal ones stay as they came.
      var i = 1
      while i < count {
        let moving = state.pointee.order[i]
        var j = i
        while j > 0 && rows[Int(state.pointee.order[j - 1])].weight < rows[Int(moving)].weight {
          state.pointee.order[j] = state.pointee.order[j - 1]
          j -= 1
        }
        state.pointee.order[j] = moving
        i += 1
      }
      if !console.showsAll && count > Self.shownRows + 2 {
        for i in Self.shownRows..<count { gather(rows + Int(state.pointee.order[i])) }
        rowCount = Self.shownRows
      }
    }
    var others = Line()
    if state.pointee.gathered > 0 { others = "\(count: state.pointee.gathered, "other")" }
    printRows(others: others, total: total, note: note)
  }

  /// The row that is shown at place `i`.
  private func row(at i: Int) -> UnsafeMutablePointer<Row> {
    rows + (state.pointee.sorted ? Int(state.pointee.order[i]) : i)
  }

  private func printRows(others: Line = Line(), total: Line? = nil, note: Line? = nil) {
    let columns = columnCount
    for column in 0..<columns {
      var width = Int(columnWidth(column))
      guard columnStyle(column) != .bar else { continue }
      for i in 0..<rowCount { width = max(width, render(row(at: i), column).count) }
      if others.count > 0 {
        width = max(
          width, column == 0 ? others.count : render(inPlace(&state.pointee.others), column).count)
      }
      if let total {
        width = max(width, column == 0 ? total.count : render(inPlace(&state.pointee.total), column).count)
      }
      state.pointee.columns[column].width = UInt8(min(width, 200))
    }
    fit()
    if !state.pointee.hasHeader {
      state.pointee.hasHeader = true
      var header = Line()
      for column in 0..<columns {
        put(&header, Line(state.pointee.columns[column].title), column)
      }
      printTrimmed(header)
    }
    for i in 0..<rowCount {
      printRow(row(at: i), label: nil, note: nil)
      if console.shouldStop { return }
    }
    if others.count > 0 { printRow(inPlace(&state.pointee.others), label: others, note: nil) }
    if let total { printRow(inPlace(&state.pointee.total), label: total, note: note) }
  }

  /// Makes a table that is wider than the screen narrower: columns move together, then the widest ones of
  /// words lose their ends. Figures and addresses stay whole, so that they can be pasted back.
  private func fit() {
    state.pointee.gap = 2
    var sum = -2
    for column in 0..<columnCount { sum += Int(columnWidth(column)) + 2 }
    if sum > console.width {
      state.pointee.gap = 1
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
      state.pointee.columns[widest].width -= 1
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
    if column > 0 { line.append(blanks: state.pointee.gap) }
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
  private func spelled(_ cell: Cell, _ style: ColumnStyle) -> Line {
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

  private static func fixed(_ cell: Cell) -> Bytes {
    Bytes(start: UnsafePointer<UInt8>(bitPattern: UInt(cell.a)), count: Int(cell.b))
  }

  // MARK: As JSON

  /// Writes the next cell; `text` is that of a cell of text.
  private func write(_ cell: Cell, _ text: Line?) {
    endFirstKind()
    let column = state.pointee.columns[state.pointee.filled]
    switch column.style {
    case .share, .ratio, .bar: return
    case .text, .exact, .folded, .figure, .sum: break
    }
    guard !state.pointee.isMuted, column.key.utf8CodeUnitCount > 0 else { return }
    let row = JSONRow(terminal: console.terminal)
    if !isOpen {
      isOpen = true
      row.open(isBeside ? state.pointee.besideKind : state.pointee.kind)
    }
    var key = Line()
    for byte in Bytes(start: column.key.utf8Start, count: column.key.utf8CodeUnitCount) {
      key.append(byte: byte == UInt8(ascii: " ") ? UInt8(ascii: "_") : byte)
    }
    switch cell.kind {
    case .empty, .none: row.none(key)
    case .fixed: row.field(key, bytes: Self.fixed(cell))
    case .text: row.field(key, text: text)
    case .physical, .virtual: row.field(key, text: spelled(cell, column.style))
    case .count, .plain, .size: row.field(key, cell.a)
    case .decimal: row.field(key, figure: spelled(cell, column.style))
    case .share: return
    case .truth: row.field(key, truth: cell.a == 1 ? .yes : .no)
    case .change:
      var figure = Line()
      figure.append(signed: Int(truncatingIfNeeded: cell.b &- cell.a))
      row.field(key, figure: figure)
    }
  }

  /// Closes the object of the first kind where the cells of the other begin.
  private func endFirstKind() {
    guard filling >= state.pointee.besideFirst, !isBeside else { return }
    closeObject()
    isBeside = true
  }

  private func closeObject() {
    guard isOpen else { return }
    isOpen = false
    console.terminal.write("}")
    console.newline()
  }
}

extension Shell {
  /// A table of rows of `kind`, the only one under way.
  func table(_ kind: StaticString, _ sorted: Table.Sorting = .asGiven) -> Table {
    Table(self, kind, sorted: sorted)
  }
}

extension Line {
  /// A figure in parts of `scale`, a power of ten.
  mutating func append(decimal value: UInt64, scale: UInt64) {
    append(decimal: value / scale)
    append(".")
    var place = scale / 10
    while place > 0 {
      append(decimal: value % scale / place % 10)
      place /= 10
    }
  }

  /// A share in whole percent, `-` of nothing.
  mutating func append(roughShare part: UInt64, of whole: UInt64) {
    guard whole > 0 else {
      append("-")
      return
    }
    append(decimal: (part * 100 + whole / 2) / whole)
    append(" %")
  }

  /// A share in percent: one place below 100, `100 %` when it is all, `-` of nothing.
  mutating func append(share part: UInt64, of whole: UInt64) {
    guard whole > 0 else {
      append("-")
      return
    }
    // Beyond 2^53 the last bits don't show in a thousandth.
    let shift = UInt64(max(0, 11 - max(part, whole).leadingZeroBitCount))
    let (part, whole) = (part >> shift, max(1, whole >> shift))
    let thousandths = (part * 1000 + whole / 2) / whole
    if part == whole {
      append("100 %")
    } else {
      append(decimal: thousandths / 10)
      append(".")
      append(decimal: thousandths % 10)
      append(" %")
    }
  }
}
