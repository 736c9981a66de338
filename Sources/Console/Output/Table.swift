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

  /// The table of the console, in place.
  @inline(__always) var state: State {
    unsafeAddress { UnsafePointer(inPlace(&console.state.pointee.table)) }
    nonmutating unsafeMutableAddress { inPlace(&console.state.pointee.table) }
  }
  var columnCount: Int { state.columnCount }
  func columnStyle(_ column: Int) -> ColumnStyle { state.columns[column].style }
  func columnWidth(_ column: Int) -> UInt8 { state.columns[column].width }

  var rows: UnsafeMutablePointer<Row> {
    UnsafeMutableRawPointer(inPlace(&state.rows)).assumingMemoryBound(to: Row.self)
  }
  private var scratch: UnsafeMutablePointer<Row> { inPlace(&state.scratch) }

  init(_ console: Shell, _ kind: StaticString, sorted: Sorting) {
    self.console = console
    state.kind = kind
    state.besideKind = kind
    state.besideFirst = .max
    state.isOpen = false
    state.isBeside = false
    state.isMuted = false
    state.sorted = sorted == .largestFirst
    state.hasHeader = false
    state.columnCount = 0
    state.declared = 0
    state.hidden = 0
    state.rowCount = 0
    state.rowsEver = 0
    state.filling = 0
    state.gathered = 0
    state.gap = 2
    clear(inPlace(&state.others))
    clear(inPlace(&state.total))
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
    if isHidden { state.hidden |= 1 << UInt32(state.declared) }
    state.declared += 1
    precondition(state.declared <= 32)
    if isHidden { return }
    let index = state.columnCount
    precondition(index < Self.columnCapacity)
    state.columns[index] = Column(
      title: title, key: key ?? title, style: style,
      width: UInt8(title.utf8CodeUnitCount))
    state.columnCount = index + 1
  }

  /// Columns from here on are those of rows of another kind, which stand beside the others. Tools get them as rows of
  /// their own.
  func beside(_ kind: StaticString) {
    state.besideKind = kind
    state.besideFirst = state.declared
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
    state.filling = 0
    state.filled = 0
    state.isBeside = false
    if console.isJSON { state.isMuted = console.shouldStop }
  }

  /// The cells up to the end of the row, or up to those of the rows beside it, are for `audience`.
  func part(for audience: Audience) {
    guard console.isJSON else { return }
    endFirstKind()
    state.isMuted = audience == .people || console.shouldStop
  }

  /// Whether the next cell is in a column for another reader.
  private var isHidden: Bool { state.hidden >> UInt32(state.filling) & 1 != 0 }

  private func add(_ kind: Cell.Kind, _ a: UInt64, _ b: UInt64 = 0, short: UInt8 = 0) {
    precondition(state.filling < state.declared, "more cells than columns")
    defer { state.filling += 1 }
    if isHidden { return }
    let cell = Cell(kind: kind, short: short, a: a, b: b)
    if console.isJSON {
      write(cell, nil)
    } else {
      scratch.pointee.cells[state.filled] = cell
    }
    state.filled += 1
  }

  func text(_ words: StaticString) {
    add(.fixed, UInt64(UInt(bitPattern: words.utf8Start)), UInt64(words.utf8CodeUnitCount))
  }
  @_disfavoredOverload func text(_ line: Line) {
    if isHidden { return empty() }
    if console.isJSON {
      write(Cell(kind: .text, short: 0, a: 0, b: 0), line)
      state.filling += 1
      state.filled += 1
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
    state.rowsEver += 1
    if console.isJSON { return closeObject() }
    sumUp(scratch, into: inPlace(&state.total))
    if state.sorted && scratch.pointee.weight == 0 && !console.showsAll { return }
    if state.rowCount == Self.rowCapacity {
      guard state.sorted else {
        printRows()
        state.rowCount = 0
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
    keep(at: state.rowCount)
  }

  private func keep(at index: Int) {
    (rows + index).update(from: scratch, count: 1)
    state.rowCount = index + 1
  }

  func gather(_ row: UnsafeMutablePointer<Row>) {
    state.gathered += 1
    sumUp(row, into: inPlace(&state.others))
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
}

extension Shell {
  /// A table of rows of `kind`, the only one under way.
  func table(_ kind: StaticString, _ sorted: Table.Sorting = .asGiven) -> Table {
    Table(self, kind, sorted: sorted)
  }
}
