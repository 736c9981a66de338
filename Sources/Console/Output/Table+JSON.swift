// A table for tools: an object a row, whose cells are written as they come.

import MemoryPrimitives

extension Table {
  /// Writes the next cell; `text` is that of a cell of text.
  func write(_ cell: Cell, _ text: Line?) {
    endFirstKind()
    let column = state.columns[state.filled]
    switch column.style {
    case .share, .ratio, .bar: return
    case .text, .exact, .folded, .figure, .sum: break
    }
    guard !state.isMuted, column.key.utf8CodeUnitCount > 0 else { return }
    let row = JSONRow(terminal: console.terminal)
    if !state.isOpen {
      state.isOpen = true
      row.open(state.isBeside ? state.besideKind : state.kind)
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
  func endFirstKind() {
    guard state.filling >= state.besideFirst, !state.isBeside else { return }
    closeObject()
    state.isBeside = true
  }

  func closeObject() {
    guard state.isOpen else { return }
    state.isOpen = false
    console.terminal.write("}")
    console.newline()
  }
}
